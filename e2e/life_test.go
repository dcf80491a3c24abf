package e2e

import (
	"context"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

// during pings from a to b every 20 ms while f runs and fails the test for each
// ping that was lost.
func during(ctx context.Context, t *testing.T, a, b *Node, f func()) {
	t.Helper()
	stream, err := a.StartStream(ctx, b)
	must(t, err)
	defer stream.Stop()
	f()
	if echos := stream.Stop(); echos.Lost() != 0 {
		t.Fatalf("%s → %s: %d of %d pings lost, for %v at a stretch", a.Name, b.Name, echos.Lost(), len(echos), echos.Longest())
	}
}

// trio is three edges behind their own NATs, all direct with each other and with
// the connector.
func trio(ctx context.Context, t *testing.T, c *Cluster) (a, b, d *Node) {
	t.Helper()
	a, _ = edge(ctx, t, c, "edge1", lab.PortRestricted)
	b, _ = edge(ctx, t, c, "edge2", lab.PortRestricted)
	d, _ = edge(ctx, t, c, "edge3", lab.AddressRestricted)
	must(t, c.WaitOnline(ctx, c.Connector, a, b, d))
	must(t, c.Apply(ctx, "all-edges", a, b, d))
	direct(ctx, t, c, a, b)
	direct(ctx, t, c, a, d)
	direct(ctx, t, c, b, d)
	for _, n := range []*Node{a, b, d} {
		direct(ctx, t, c, n, c.Connector)
	}
	return a, b, d
}

// TestLeave: an edge that leaves a community loses exactly that tunnel.
func TestLeave(t *testing.T) {
	ctx, c := start(t, ClusterOptions{})
	a, b, d := trio(ctx, t, c)
	during(ctx, t, a, b, func() {
		must(t, c.Apply(ctx, "all-edges", a, b))
		for _, n := range []*Node{a, b} {
			must(t, c.until(ctx, n.Name+" drops its tunnel to "+d.Name, func() (bool, error) {
				conns, err := n.Swanctl(ctx, "--list-conns")
				sas, err2 := n.Swanctl(ctx, "--list-sas")
				return err == nil && err2 == nil && !strings.Contains(conns, d.Name) && !strings.Contains(sas, d.Name), nil
			}))
		}
	})
	direct(ctx, t, c, a, b)
	pings(ctx, t, d, c.Connector)
	listing, err := d.Swanctl(ctx, "--list-sas")
	must(t, err)
	if !strings.Contains(listing, "beijing.connector: #") || strings.Contains(listing, a.Name+":") || strings.Contains(listing, b.Name+":") {
		t.Errorf("%s should be left with its connector tunnel alone:\n%s", d.Name, listing)
	}
}

// established lists a node's IKE SAs by name and number.
func established(ctx context.Context, t *testing.T, n *Node) string {
	t.Helper()
	out, err := n.Swanctl(ctx, "--list-sas")
	must(t, err)
	var ids []string
	for line := range strings.Lines(out) {
		if id, rest, ok := strings.Cut(line, ","); ok && strings.Contains(rest, "ESTABLISHED") && !strings.HasPrefix(line, " ") {
			ids = append(ids, id)
		}
	}
	return strings.Join(ids, "; ")
}

// TestStop: tunnels stay when the agent stops, and end when that is asked for.
func TestStop(t *testing.T) {
	ctx, c := start(t, ClusterOptions{})
	a, b, _ := trio(ctx, t, c)
	stranger := addStranger(ctx, t, a)
	during(ctx, t, a, b, func() { must(t, a.Agent().Stop(ctx)) })
	// Consent ends with the agent that gave it, and is asked for where there is no
	// traffic; the tunnel stays.
	must(t, c.until(ctx, "b finds out that only the agent is away", func() (bool, error) {
		return strings.Contains(b.Agent().Log(), "agent does not answer, but its charon does"), nil
	}))
	pings(ctx, t, a, b)
	if p, err := c.Pair(ctx, a, b); err != nil || p.State != "direct" {
		t.Errorf("pair %+v, error %v: want direct, for pings pass", p, err)
	}
	must(t, a.StartAgent(ctx, "--teardown-on-exit"))
	must(t, c.until(ctx, "the agent is back", func() (bool, error) {
		s, err := a.Status(ctx)
		return err == nil && s.Rendezvous.Connected && len(s.Tunnels) == 3, nil
	}))
	must(t, a.Agent().Stop(ctx))
	must(t, c.until(ctx, "all tunnels ended", func() (bool, error) { return established(ctx, t, a) == "", nil }))
	conns, err := a.Swanctl(ctx, "--list-conns")
	must(t, err)
	if strings.Contains(conns, b.Name) || !strings.Contains(conns, stranger) {
		t.Errorf("want %s gone and %s kept:\n%s", b.Name, stranger, conns)
	}
}

// addStranger loads a connection into the node's charon that is not Bodkin's.
func addStranger(ctx context.Context, t *testing.T, n *Node) string {
	t.Helper()
	must(t, n.WriteSwanctl("connections { office-vpn { remote_addrs = 192.0.2.1\n local { auth = psk } remote { auth = psk } children { all { } } } }"))
	if _, err := n.Swanctl(ctx, "--load-conns"); err != nil {
		t.Fatal(err)
	}
	return "office-vpn"
}

// TestCharonRestart: the agent notices, loads everything again, and the pair is
// direct again with a new IKE SA.
func TestCharonRestart(t *testing.T) {
	ctx, c := start(t, ClusterOptions{})
	a, b, d := trio(ctx, t, c)
	for _, n := range []*Node{a, b, c.Connector} { // initiator, responder, and whom both have a tunnel with
		n.KillCharon()
		must(t, c.until(ctx, "the agent sees that charon is gone", func() (bool, error) {
			s, err := n.Status(ctx)
			return err == nil && !s.Charon.Connected, nil
		}))
		_, err := n.StartCharon(lab.CharonOptions{})
		must(t, err)
		must(t, c.until(ctx, "all tunnels of "+n.Name+" are direct again", func() (bool, error) {
			for _, p := range [][2]*Node{{a, b}, {a, d}, {b, d}, {a, c.Connector}, {b, c.Connector}} {
				if res, err := p[0].PingPod(ctx, p[1], 1, time.Second); err != nil || res.Lost() > 0 {
					return false, err
				}
			}
			return true, nil
		}))
		direct(ctx, t, c, a, b)
		direct(ctx, t, c, a, c.Connector)
		direct(ctx, t, c, b, c.Connector)
	}
}

// TestWaitingConnector: the connector's charon restarts while an edge is away;
// the edge gets its tunnel when it comes back.
func TestWaitingConnector(t *testing.T) {
	ctx, c := start(t, ClusterOptions{})
	a, _ := edge(ctx, t, c, "edge1", lab.PortRestricted)
	must(t, c.WaitOnline(ctx, c.Connector, a))
	direct(ctx, t, c, a, c.Connector)
	a.Agent().Kill()
	a.KillCharon()
	c.Connector.KillCharon()
	_, err := c.Connector.StartCharon(lab.CharonOptions{})
	must(t, err)
	_, err = a.StartCharon(lab.CharonOptions{})
	must(t, err)
	must(t, a.StartAgent(ctx))
	must(t, c.until(ctx, "pings pass again", func() (bool, error) {
		res, err := a.PingPod(ctx, c.Connector, 1, time.Second)
		return err == nil && res.Lost() == 0, err
	}))
}

// TestChildLost: a CHILD SA that ends while others of its tunnel stand comes back.
func TestChildLost(t *testing.T) {
	ctx, c := start(t, ClusterOptions{})
	a, b, _ := trio(ctx, t, c)
	if out, err := b.Swanctl(ctx, "--terminate", "--child", a.Name+"-p2p"); err != nil {
		t.Fatal(err, out)
	}
	must(t, c.until(ctx, "pod traffic passes again", func() (bool, error) {
		res, err := a.PingPod(ctx, b, 1, 100*time.Millisecond)
		return err == nil && res.Lost() == 0, err
	}))
}

// TestSubnetAdded: what a node gains is in the tunnel after its agent's restart.
func TestSubnetAdded(t *testing.T) {
	ctx, c := start(t, ClusterOptions{})
	a, b, _ := trio(ctx, t, c)
	added := netip.MustParsePrefix("10.233.99.0/24")
	must(t, a.AddAddress(netip.PrefixFrom(added.Addr().Next(), 24)))
	conf, err := os.ReadFile(a.config)
	must(t, err)
	with := strings.Replace(string(conf), "subnets: ["+a.Subnet.String(), "subnets: ["+a.Subnet.String()+", "+added.String(), 1)
	must(t, os.WriteFile(a.config, []byte(with), 0o600))
	must(t, a.Agent().Stop(ctx))
	must(t, a.StartAgent(ctx))
	must(t, c.until(ctx, "the added subnet is reachable", func() (bool, error) {
		res, err := b.Ping(ctx, added.Addr().Next(), 1, 100*time.Millisecond, b.Pod)
		return err == nil && res.Lost() == 0, err
	}))
	pings(ctx, t, a, b)
}

// TestReasonFromTheStart: the first failure names the true reason, although the
// NATs were not known when the attempt began.
func TestReasonFromTheStart(t *testing.T) {
	ctx, c := start(t, ClusterOptions{})
	names := []*Node{{Name: "beijing.edge1"}, {Name: "beijing.edge2"}}
	must(t, c.Apply(ctx, "all-edges", names...))
	a, _ := edge(ctx, t, c, "edge1", lab.Symmetric)
	b, _ := edge(ctx, t, c, "edge2", lab.Symmetric)
	p, err := c.WaitPair(ctx, a, b, func(p *Pair) bool { return p.Failed() })
	must(t, err)
	if p.Attempts != 1 || !strings.Contains(p.Reason, "symmetric") {
		t.Errorf("after %d attempts the reason is %q, want the symmetric NAT named after the first", p.Attempts, p.Reason)
	}
}

// TestAddressChange: the path goes silent, both ends find each other again.
func TestAddressChange(t *testing.T) {
	ctx, c := start(t, ClusterOptions{})
	a, router := edge(ctx, t, c, "edge1", lab.PortRestricted)
	b, _ := edge(ctx, t, c, "edge2", lab.PortRestricted)
	must(t, c.WaitOnline(ctx, c.Connector, a, b))
	must(t, c.Apply(ctx, "all-edges", a, b))
	old := direct(ctx, t, c, a, b).Paths[b.Name].Remote
	fresh := c.FreeAddr()
	must(t, router.SetPublicAddr(fresh))
	p, err := c.WaitPair(ctx, a, b, func(p *Pair) bool {
		return p.State == "direct" && p.Paths[b.Name].Remote != old
	})
	must(t, err)
	if got := p.Paths[b.Name].Remote; got.Addr() != fresh {
		t.Errorf("%s reaches %s at %s, want the new address %s", b.Name, a.Name, got, fresh)
	}
	pings(ctx, t, a, b)
	pings(ctx, t, b, a)
}

// TestHostAddressChange: a node that gets another address itself opens the shared
// port there, and is direct again without anybody's help.
func TestHostAddressChange(t *testing.T) {
	ctx, c := start(t, ClusterOptions{})
	a, err := c.AddEdge(ctx, "edge1", nil)
	must(t, err)
	b, _ := edge(ctx, t, c, "edge2", lab.PortRestricted)
	must(t, c.WaitOnline(ctx, c.Connector, a, b))
	must(t, c.Apply(ctx, "all-edges", a, b))
	direct(ctx, t, c, a, b)
	fresh := c.FreeAddr()
	must(t, a.SetPublicAddr(fresh))
	_, err = c.WaitPair(ctx, a, b, func(p *Pair) bool {
		return p.State == "direct" && p.Paths[b.Name].Remote.Addr() == fresh
	})
	must(t, err)
	pings(ctx, t, a, b)
	pings(ctx, t, b, a)
	direct(ctx, t, c, a, c.Connector)
}

// TestSecondRendezvous: a second one on the same store is refused at once.
func TestSecondRendezvous(t *testing.T) {
	ctx, c := start(t, ClusterOptions{})
	p, err := c.Connector.Start(ctx, "second", nil, bin, "rendezvous", "--config", c.config)
	must(t, err)
	if err := p.Wait(ctx); err == nil || !strings.Contains(p.Log(), "rendezvous.db") || !strings.Contains(p.Log(), "another process") {
		t.Errorf("a second rendezvous: error %v, said:\n%s", err, p.Log())
	}
	must(t, c.Connector.Agent().Signal(syscall.SIGTERM))
	if err := c.Connector.Agent().Wait(ctx); err != nil {
		t.Errorf("the agent stopped by SIGTERM: %v\n%s", err, c.Connector.Agent().Log())
	}
}
