//go:build kernelesp

// What only ESP in the kernel can show: `make e2e-kernel` boots one that has it
// and builds these tests in.

package e2e

import (
	"context"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

// startKernel is start, for what only ESP in the kernel can show.
func startKernel(t *testing.T) (context.Context, *Cluster) {
	t.Helper()
	if !kernelESP {
		t.Fatal("needs ESP in the kernel: make e2e-kernel boots one that has it")
	}
	return start(t, ClusterOptions{})
}

// xfrmBytes matches the byte counter of an SA in `ip -s xfrm state`, not its
// limits.
var xfrmBytes = regexp.MustCompile(`lifetime current:\s+(\d+)\(bytes\)`)

// carried is what all of the node's kernel SAs have carried, in bytes.
func carried(ctx context.Context, t *testing.T, n *Node) int {
	t.Helper()
	out, err := n.Run(ctx, "ip", "-s", "xfrm", "state")
	must(t, err)
	total := 0
	for _, m := range xfrmBytes.FindAllStringSubmatch(out, -1) {
		bytes, err := strconv.Atoi(m[1])
		must(t, err)
		total += bytes
	}
	return total
}

// pingsByKernel fails the test if a ping is lost, or was not the kernel's ESP.
func pingsByKernel(ctx context.Context, t *testing.T, a, b *Node) {
	t.Helper()
	pingsBetween(ctx, t, a, a.Pod, b, b.Pod)
}

// pingsBetween is pingsByKernel between any addresses of two nodes.
func pingsBetween(ctx context.Context, t *testing.T, a *Node, src netip.Addr, b *Node, dst netip.Addr) {
	t.Helper()
	for _, n := range []*Node{a, b} {
		before := carried(ctx, t, n)
		res, err := a.Ping(ctx, dst, 10, 20*time.Millisecond, src)
		must(t, err)
		if res.Lost() != 0 {
			t.Fatalf("%s → %s: %d of %d pings lost", src, dst, res.Lost(), res.Sent)
		}
		// 10 requests and 10 replies of 84 bytes.
		if more := carried(ctx, t, n) - before; more < 20*84 {
			t.Errorf("%s: the kernel's SAs carried %d bytes of 10 pings from %s to %s and their replies, want at least %d", n.Name, more, src, dst, 20*84)
		}
	}
}

// mode is how swanctl lists a node's CHILD SAs towards a peer: TUNNEL or
// TUNNEL-in-UDP, or both if they differ.
func mode(ctx context.Context, t *testing.T, n, peer *Node) string {
	t.Helper()
	out, err := n.Swanctl(ctx, "--list-sas")
	must(t, err)
	seen := map[string]bool{}
	var modes []string
	for line := range strings.Lines(out) {
		fields := strings.Split(strings.TrimSpace(line), ", ")
		if strings.HasPrefix(fields[0], peer.Name+"-") && len(fields) > 3 && !seen[fields[3]] {
			seen[fields[3]] = true
			modes = append(modes, fields[3])
		}
	}
	return strings.Join(modes, " and ")
}

func wantMode(ctx context.Context, t *testing.T, a, b *Node, want string) {
	t.Helper()
	for _, pair := range [][2]*Node{{a, b}, {b, a}} {
		if got := mode(ctx, t, pair[0], pair[1]); got != want {
			t.Errorf("CHILD SAs of %s to %s are %q, want %q", pair[0].Name, pair[1].Name, got, want)
		}
	}
}

// TestKernelPunched: both behind NATs, so ESP goes through the punched mapping.
func TestKernelPunched(t *testing.T) {
	ctx, c := startKernel(t)
	a, _ := edge(ctx, t, c, "edge1", lab.PortRestricted)
	b, _ := edge(ctx, t, c, "edge2", lab.PortRestricted)
	must(t, c.WaitOnline(ctx, c.Connector, a, b))
	must(t, c.Apply(ctx, "all-edges", a, b))
	direct(ctx, t, c, a, b)
	wantMode(ctx, t, a, b, "TUNNEL-in-UDP")
	pingsByKernel(ctx, t, a, b)
	pingsByKernel(ctx, t, b, a)
}

// portRewrite matches the rule by which a node's packets to a peer leave from
// the port that a probe has hit.
var portRewrite = regexp.MustCompile(`udp sport 4500 .*snat to :\d+`)

func rewrites(ctx context.Context, t *testing.T, n *Node) bool {
	t.Helper()
	out, err := n.Run(ctx, "nft", "list", "ruleset")
	must(t, err)
	return portRewrite.MatchString(out)
}

// TestKernelSymmetric: a symmetric NAT against one that filters by port. The
// source port of what the kernel sends is rewritten to the one that probing has
// found, in both directions of a tunnel of either initiator, and for as long as
// the tunnel stands, agent or not.
func TestKernelSymmetric(t *testing.T) {
	for name, kinds := range map[string][2]lab.NATKind{
		"symmetric first":       {lab.Symmetric, lab.PortRestricted},
		"port-restricted first": {lab.PortRestricted, lab.Symmetric},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, c := startKernel(t)
			a, _ := edge(ctx, t, c, "edge1", kinds[0])
			b, _ := edge(ctx, t, c, "edge2", kinds[1])
			symmetric := a
			if kinds[1] == lab.Symmetric {
				symmetric = b
			}
			must(t, c.WaitOnline(ctx, c.Connector, a, b))
			must(t, c.WaitDiscovered(ctx, a, b))
			must(t, c.Apply(ctx, "all-edges", a, b))
			if p := direct(ctx, t, c, a, b); p.Strategy != "probe" {
				t.Errorf("direct by %q, want probe", p.Strategy)
			}
			wantMode(ctx, t, a, b, "TUNNEL-in-UDP")
			pingsByKernel(ctx, t, a, b)
			pingsByKernel(ctx, t, b, a)
			if !rewrites(ctx, t, symmetric) {
				t.Errorf("%s sends from 4500: the tunnel proves nothing of the rewrite", symmetric.Name)
			}

			symmetric.Agent().Kill()
			pingsByKernel(ctx, t, a, b)
			must(t, symmetric.StartAgent(ctx))
			must(t, c.WaitOnline(ctx, a, b))
			direct(ctx, t, c, a, b)
			pingsByKernel(ctx, t, b, a)

			must(t, c.Delete(ctx, "all-edges"))
			must(t, c.until(ctx, "the rewrite ends with the tunnel", func() (bool, error) {
				return !rewrites(ctx, t, symmetric), nil
			}))
		})
	}
}

// office is two edges on one LAN, in one community.
func office(ctx context.Context, t *testing.T, c *Cluster, before func(*lab.Router)) (a, b *Node) {
	t.Helper()
	lan, err := c.Router("office", lab.RouterOptions{NAT: lab.PortRestricted})
	must(t, err)
	before(lan)
	a, err = c.AddEdge(ctx, "edge1", lan)
	must(t, err)
	b, err = c.AddEdge(ctx, "edge2", lan)
	must(t, err)
	must(t, c.WaitOnline(ctx, c.Connector, a, b))
	must(t, c.Apply(ctx, "all-edges", a, b))
	return a, b
}

// TestKernelPlainESP: between two nodes of one LAN ESP needs no UDP.
func TestKernelPlainESP(t *testing.T) {
	ctx, c := startKernel(t)
	a, b := office(ctx, t, c, func(*lab.Router) {})
	direct(ctx, t, c, a, b)
	wantMode(ctx, t, a, b, "TUNNEL")
	pingsByKernel(ctx, t, a, b)
	pingsByKernel(ctx, t, b, a)
}

// TestKernelPlainESPBlocked: what drops protocol 50 inside a LAN costs one
// attempt; the next goes inside UDP.
func TestKernelPlainESPBlocked(t *testing.T) {
	ctx, c := startKernel(t)
	a, b := office(ctx, t, c, func(lan *lab.Router) {
		out, err := lan.Run(ctx, "nft", "add table bridge isolation; "+
			"add chain bridge isolation forward { type filter hook forward priority 0; }; "+
			"add rule bridge isolation forward ether type ip ip protocol esp counter drop")
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	})
	p := direct(ctx, t, c, a, b)
	t.Logf("direct after %d attempts", p.Attempts)
	wantMode(ctx, t, a, b, "TUNNEL-in-UDP")
	pingsByKernel(ctx, t, a, b)
	if log := a.Agent().Log() + b.Agent().Log(); !strings.Contains(log, "drops ESP (IP protocol 50)") {
		t.Error("no agent said that ESP without UDP is dropped")
	}
}

// demandESP makes the kernel refuse everything between two addresses that does
// not come through IPsec, in both directions.
func demandESP(ctx context.Context, t *testing.T, n *Node, peer string) {
	t.Helper()
	here := n.Addr().String()
	for _, p := range [][3]string{{"out", here, peer}, {"in", peer, here}} {
		out, err := n.Run(ctx, "ip", "xfrm", "policy", "add", "src", p[1], "dst", p[2], "dir", p[0], "priority", "1",
			"tmpl", "src", p[1], "dst", p[2], "proto", "esp", "mode", "tunnel", "level", "required")
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
}

// TestKernelPolicies: tunnels carry what goes between nodes and pods. With
// policies in place that demand ESP between the nodes themselves, the checks of
// a new attempt still pass, and the tunnel that is to be replaced carries every
// ping.
func TestKernelPolicies(t *testing.T) {
	ctx, c := startKernel(t)
	a, aRouter := edge(ctx, t, c, "edge1", lab.PortRestricted)
	b, bRouter := edge(ctx, t, c, "edge2", lab.PortRestricted)
	must(t, c.WaitOnline(ctx, c.Connector, a, b))
	must(t, c.Apply(ctx, "all-edges", a, b))
	direct(ctx, t, c, a, b)
	demandESP(ctx, t, a, bRouter.WAN().String())
	demandESP(ctx, t, b, aRouter.WAN().String())
	for _, pair := range [][2]*Node{{a, b}, {b, a}} {
		pingsBetween(ctx, t, pair[0], pair[0].Addr(), pair[1], pair[1].Pod) // n2p
		pingsBetween(ctx, t, pair[0], pair[0].Pod, pair[1], pair[1].Addr()) // p2n
	}
	if out, err := a.Run(ctx, "ip", "xfrm", "policy"); err != nil || !strings.Contains(out, "src "+a.Addr().String()+"/32 dst "+b.Subnet.String()) {
		t.Errorf("no node-to-pod policy is in place (%v):\n%s", err, out)
	}
	during(ctx, t, a, b, func() {
		for _, n := range []*Node{a, b} { // the controlling and the controlled side
			n.Agent().Kill()
			must(t, n.StartAgent(ctx))
			must(t, c.until(ctx, n.Name+" watches the path by ICE again", func() (bool, error) {
				s, err := n.Status(ctx)
				if err != nil || len(s.Tunnels) != 2 {
					return false, nil
				}
				for _, tun := range s.Tunnels {
					if tun.State != "direct" || !tun.Monitored {
						return false, nil
					}
				}
				return true, nil
			}))
		}
	})
	pingsByKernel(ctx, t, a, b)
}

// TestKernelRendezvousRestart: the agents' links and STUN requests go around
// the tunnels although the rendezvous' address is inside their selectors, and a
// restarted rendezvous costs no ping.
func TestKernelRendezvousRestart(t *testing.T) {
	ctx, c := startKernel(t)
	a, b, d := trio(ctx, t, c)
	during(ctx, t, a, b, func() {
		must(t, c.RestartRendezvous(ctx, nil))
		must(t, c.WaitOnline(ctx, c.Connector, a, b, d))
	})
	if log := c.Rendezvous().Log(); strings.Contains(log, "remote=10.233.") {
		t.Error("an agent reached the rendezvous through its tunnel")
	}
	known, err := c.Nodes(ctx)
	must(t, err)
	for _, n := range known {
		if !n.Online || !n.Observed.IsValid() || n.NAT.Blocked != "" {
			t.Errorf("%+v: want it online and observed as before", n)
		}
	}
}

// TestKernelOrphans: a charon that is killed leaves its SAs in the kernel. As
// soon as another one has opened the port traffic goes on, and hides from the
// peer that nobody can rekey them any more.
// The tunnel is made anew all the same, from whichever side can.
func TestKernelOrphans(t *testing.T) {
	ctx, c := startKernel(t)
	a, _ := edge(ctx, t, c, "edge1", lab.PortRestricted)
	b, _ := edge(ctx, t, c, "edge2", lab.PortRestricted)
	must(t, c.WaitOnline(ctx, c.Connector, a, b))
	must(t, c.Apply(ctx, "all-edges", a, b))
	for _, killed := range []*Node{a, b, c.Connector} {
		direct(ctx, t, c, a, b)
		direct(ctx, t, c, a, c.Connector)
		direct(ctx, t, c, b, c.Connector)
		killed.KillCharon()
		_, err := killed.StartCharon(lab.CharonOptions{})
		must(t, err)
		must(t, c.until(ctx, "the new charon of "+killed.Name+" has two tunnels", func() (bool, error) {
			out, err := killed.Swanctl(ctx, "--list-sas")
			return strings.Count(out, "ESTABLISHED") == 2, err
		}))
	}
	direct(ctx, t, c, a, b)
	pingsByKernel(ctx, t, a, b)
	pingsByKernel(ctx, t, b, c.Connector)
}
