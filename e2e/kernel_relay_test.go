//go:build kernelesp

package e2e

import (
	"context"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

// counter is one of the node's counters in /proc/net, by a pattern with one group.
func counter(t *testing.T, n *Node, file, pattern string) int {
	t.Helper()
	var out []byte
	must(t, n.Exec(func() (err error) {
		out, err = os.ReadFile("/proc/thread-self/net/" + file)
		return err
	}))
	m := regexp.MustCompile(pattern).FindSubmatch(out)
	if m == nil {
		t.Fatalf("%s has nothing like %q:\n%s", file, pattern, out)
	}
	v, err := strconv.Atoi(string(m[1]))
	must(t, err)
	return v
}

// mismatches counts the packets whose policy wants another SA than they came
// through.
func mismatches(t *testing.T, n *Node) int {
	t.Helper()
	return counter(t, n, "xfrm_stat", `XfrmInTmplMismatch\s+(\d+)`)
}

// echoes counts the ICMP echo requests that have come to the node.
func echoes(t *testing.T, n *Node) int {
	t.Helper()
	return counter(t, n, "snmp", `\nIcmp: (?:\d+ ){8}(\d+)`)
}

// directPolicy is the node's policy for what comes from a peer's pods through
// the direct tunnel, as `ip xfrm policy` lists it.
func directPolicy(ctx context.Context, t *testing.T, n, peer *Node) string {
	t.Helper()
	out, err := n.Run(ctx, "ip", "xfrm", "policy", "list", "dir", "in")
	must(t, err)
	for _, p := range strings.Split(out, "\nsrc ") {
		if strings.HasPrefix(strings.TrimPrefix(p, "src "), peer.Subnet.String()+" dst "+n.Subnet.String()) {
			return p
		}
	}
	t.Fatalf("%s has no policy for what comes from %s:\n%s", n.Name, peer.Subnet, out)
	return ""
}

// TestKernelRelayBesideDirect: one end has left the direct tunnel, the other does
// not know. What the first sends through the relay is let in all the same.
func TestKernelRelayBesideDirect(t *testing.T) {
	ctx, c := startKernel(t)
	a, aRouter := edge(ctx, t, c, "edge1", lab.PortRestricted)
	b, bRouter := edge(ctx, t, c, "edge2", lab.PortRestricted)
	must(t, c.WaitOnline(ctx, c.Connector, a, b))
	must(t, c.ApplyLimited(ctx, "all-edges", "never", a, b))
	relayed(ctx, t, c, a, b)
	pingsByKernel(ctx, t, a, b)
	must(t, c.Apply(ctx, "all-edges", a, b))
	direct(ctx, t, c, a, b)
	pingsByKernel(ctx, t, a, b)

	policy := directPolicy(ctx, t, a, b)
	if !strings.Contains(policy, "mark 0x10000000/0x10000000") {
		t.Errorf("the direct tunnel's policy has no mark:\n%s", policy)
	}
	// Nobody shall put it right, and no deletion arrive.
	a.Agent().Kill()
	b.Agent().Kill()
	for _, side := range [][2]*lab.Router{{aRouter, bRouter}, {bRouter, aRouter}} {
		out, err := side[0].Run(ctx, "nft", "add table ip cut; add chain ip cut f { type filter hook forward priority -10; }; "+
			"add rule ip cut f ip saddr "+side[1].WAN().String()+" drop; add rule ip cut f ip daddr "+side[1].WAN().String()+" drop")
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	_, err := b.Swanctl(ctx, "--terminate", "--ike", a.Name, "--force", "--timeout", "-1")
	must(t, err)
	must(t, c.until(ctx, b.Name+" has left the direct tunnel", func() (bool, error) {
		out, err := b.Swanctl(ctx, "--list-sas", "--ike", a.Name)
		return !strings.Contains(out, "INSTALLED"), err
	}))

	arrive := func(want bool) {
		t.Helper()
		echoed, mismatched := echoes(t, a), mismatches(t, a)
		_, err := b.PingPod(ctx, a, 5, 20*time.Millisecond)
		must(t, err)
		echoed, mismatched = echoes(t, a)-echoed, mismatches(t, a)-mismatched
		if want && (echoed < 5 || mismatched != 0) || !want && (echoed != 0 || mismatched < 5) {
			t.Errorf("of 5 pings through the relay %d arrived, %d had the wrong policy; want them all to arrive: %v", echoed, mismatched, want)
		}
	}
	arrive(true)
	// Without the mark the same policy is the one that a packet of the relay meets.
	tmpl := regexp.MustCompile(`tmpl src (\S+) dst (\S+)\s+proto esp.*reqid (\d+)`).FindStringSubmatch(policy)
	if tmpl == nil {
		t.Fatalf("no template in:\n%s", policy)
	}
	out, err := a.Run(ctx, "ip", "xfrm", "policy", "add", "src", b.Subnet.String(), "dst", a.Subnet.String(), "dir", "in", "priority", "1",
		"tmpl", "src", tmpl[1], "dst", tmpl[2], "proto", "esp", "reqid", tmpl[3], "mode", "tunnel")
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	arrive(false)
}

// TestKernelRelayForged: an edge that puts another's address on what it sends
// through its own relay gets nothing out of the connector.
func TestKernelRelayForged(t *testing.T) {
	ctx, c := startKernel(t)
	a, b, d := symmetricTrio(ctx, t, c)
	out, err := d.Run(ctx, "ip", "xfrm", "policy", "list", "dir", "out")
	must(t, err)
	relay := regexp.MustCompile(`src ` + regexp.QuoteMeta(d.Subnet.String()) + ` dst 10\.233\.0\.0/16[^\n]*\n[^\n]*\n\s*tmpl src (\S+) dst (\S+)\n\s*proto esp.*reqid (\d+)`).FindStringSubmatch(out)
	if relay == nil {
		t.Fatalf("%s has no policy of the relay:\n%s", d.Name, out)
	}
	must(t, d.AddAddress(netip.PrefixFrom(b.Pod, 32)))
	if out, err := d.Run(ctx, "ip", "xfrm", "policy", "add", "src", b.Subnet.String(), "dst", a.Subnet.String(), "dir", "out", "priority", "1",
		"tmpl", "src", relay[1], "dst", relay[2], "proto", "esp", "reqid", relay[3], "mode", "tunnel"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	echoed, mismatched := echoes(t, a), mismatches(t, c.Connector)
	_, err = d.Ping(ctx, a.Pod, 5, 20*time.Millisecond, b.Pod)
	must(t, err)
	if n := echoes(t, a) - echoed; n != 0 {
		t.Errorf("%d of 5 pings with %s's address reached %s", n, b.Name, a.Name)
	}
	if n := mismatches(t, c.Connector) - mismatched; n < 5 {
		t.Errorf("the connector's kernel refused %d of 5 forged packets", n)
	}
}
