package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

// relayed waits until a pair is relayed.
func relayed(ctx context.Context, t *testing.T, c *Cluster, a, b *Node) *Pair {
	t.Helper()
	p, err := c.WaitPair(ctx, a, b, IsRelayed)
	must(t, err)
	return p
}

// forwarding is what the connector's agent says of its filter.
func forwarding(ctx context.Context, t *testing.T, c *Cluster) (f struct {
	Edges   int    `json:"edges"`
	Dropped uint64 `json:"dropped"`
	Error   string `json:"error"`
},
) {
	t.Helper()
	out, err := c.Connector.Run(ctx, bin, "status", "--socket", c.Connector.Socket(), "-o", "json")
	must(t, err)
	must(t, json.Unmarshal([]byte(out), &struct {
		Forwarding any `json:"forwarding"`
	}{&f}))
	return f
}

// diesAtConnector fails the test if a ping from one pod to another is answered,
// or is not dropped by the connector's filter.
func diesAtConnector(ctx context.Context, t *testing.T, c *Cluster, a, b *Node) {
	t.Helper()
	before := forwarding(ctx, t, c).Dropped
	res, err := a.PingPod(ctx, b, 5, 20*time.Millisecond)
	must(t, err)
	if res.Received != 0 {
		t.Errorf("%s → %s: %d of %d pings answered, though no community holds both", a.Name, b.Name, res.Received, res.Sent)
	}
	if dropped := forwarding(ctx, t, c).Dropped - before; dropped < 5 {
		t.Errorf("%s → %s: the connector dropped %d of 5 pings", a.Name, b.Name, dropped)
	}
}

// symmetricTrio is three edges that no direct tunnel can join. The first two are
// in one community, the last two in another.
func symmetricTrio(ctx context.Context, t *testing.T, c *Cluster) (a, b, d *Node) {
	t.Helper()
	a, _ = edge(ctx, t, c, "edge1", lab.Symmetric)
	b, _ = edge(ctx, t, c, "edge2", lab.Symmetric)
	d, _ = edge(ctx, t, c, "edge3", lab.Symmetric)
	must(t, c.WaitOnline(ctx, c.Connector, a, b, d))
	must(t, c.Apply(ctx, "first", a, b))
	must(t, c.Apply(ctx, "second", b, d))
	relayed(ctx, t, c, a, b)
	relayed(ctx, t, c, b, d)
	return a, b, d
}

// TestRelayed: edges that cannot reach each other directly do so through the
// connector, as far as their communities go and no further.
func TestRelayed(t *testing.T) {
	ctx, c := start(t, ClusterOptions{})
	a, b, d := symmetricTrio(ctx, t, c)
	pings(ctx, t, a, b)
	pings(ctx, t, b, a)
	pings(ctx, t, d, b)
	pings(ctx, t, a, c.Connector)
	diesAtConnector(ctx, t, c, d, a)
	diesAtConnector(ctx, t, c, a, d)

	t.Run("another's address", func(t *testing.T) {
		must(t, d.AddAddress(netip.PrefixFrom(b.Pod, 32)))
		defer func() {
			_, err := d.Run(ctx, "ip", "addr", "del", b.Pod.String(), "dev", "lo")
			must(t, err)
		}()
		res, err := d.Ping(ctx, a.Pod, 5, 20*time.Millisecond, b.Pod)
		must(t, err)
		if res.Received != 0 {
			t.Errorf("%d of %d pings from %s's address were answered", res.Received, res.Sent, b.Name)
		}
	})

	t.Run("rendezvous restarted", func(t *testing.T) {
		during(ctx, t, a, b, func() {
			must(t, c.RestartRendezvous(ctx, nil))
			must(t, c.WaitOnline(ctx, c.Connector, a, b, d))
			relayed(ctx, t, c, a, b)
		})
	})

	t.Run("agents restarted", func(t *testing.T) {
		during(ctx, t, a, b, func() {
			for _, n := range []*Node{a, c.Connector, b} {
				n.Agent().Kill()
				must(t, n.StartAgent(ctx))
				must(t, c.WaitOnline(ctx, n))
				relayed(ctx, t, c, a, b)
			}
		})
		diesAtConnector(ctx, t, c, d, a)
	})

	t.Run("firewall reloaded", func(t *testing.T) {
		_, err := c.Connector.Run(ctx, "nft", "flush", "ruleset")
		must(t, err)
		must(t, c.until(ctx, "the filter is there again", func() (bool, error) {
			tables, err := c.Connector.Run(ctx, "nft", "list", "tables")
			return strings.Contains(tables, "bodkin-relay"), err
		}))
		diesAtConnector(ctx, t, c, d, a)
		pings(ctx, t, a, b)
	})

	t.Run("communities changed", func(t *testing.T) {
		must(t, c.Apply(ctx, "second", b, d, a))
		relayed(ctx, t, c, a, d)
		// The rendezvous says so when it has told the connector, who needs a moment.
		must(t, c.until(ctx, a.Name+" reaches "+d.Name, func() (bool, error) {
			res, err := a.PingPod(ctx, d, 1, time.Second)
			return res.Received == 1, err
		}))
		pings(ctx, t, a, d)
		must(t, c.Apply(ctx, "second", b, d))
		must(t, c.until(ctx, d.Name+" cannot reach "+a.Name+" any more", func() (bool, error) {
			res, err := d.PingPod(ctx, a, 1, time.Second)
			return res.Received == 0, err
		}))
		diesAtConnector(ctx, t, c, d, a)
		pings(ctx, t, d, b)
	})
}

// TestRelayNeedsForwarding: a connector that does not forward says what to set,
// and every pair it would have relayed says so.
func TestRelayNeedsForwarding(t *testing.T) {
	ctx, c := start(t, ClusterOptions{})
	out, err := c.Connector.Run(ctx, "sysctl", "-w", "net.ipv4.ip_forward=0")
	if err != nil {
		t.Fatal(out)
	}
	a, _ := edge(ctx, t, c, "edge1", lab.Symmetric)
	b, _ := edge(ctx, t, c, "edge2", lab.Symmetric)
	must(t, c.WaitOnline(ctx, c.Connector, a, b))
	must(t, c.Apply(ctx, "all-edges", a, b))
	const want = "net.ipv4.ip_forward"
	p, err := c.WaitPair(ctx, a, b, func(p *Pair) bool { return strings.Contains(p.Reason, want) })
	must(t, err)
	if p.State != "down" {
		t.Errorf("%+v: want it down", p)
	}
	direct(ctx, t, c, a, c.Connector)
	if f := forwarding(ctx, t, c); !strings.Contains(f.Error, want) {
		t.Errorf("the connector's status says %q, want something of %s", f.Error, want)
	}
	must(t, c.Connector.EnableForwarding())
	relayed(ctx, t, c, a, b)
	pings(ctx, t, a, b)
}

// TestRelayChanges: as a pair goes from relayed to direct and back, nothing is lost
// and nothing is left of what saw to that. There is one exception: where charon does
// ESP itself, whoever answers an initiation uses the new SA before the initiator has
// it, and what is sent in that millisecond is lost.
func TestRelayChanges(t *testing.T) {
	ctx, c := start(t, ClusterOptions{})
	a, _ := edge(ctx, t, c, "edge1", lab.PortRestricted)
	b, _ := edge(ctx, t, c, "edge2", lab.PortRestricted)
	must(t, c.WaitOnline(ctx, c.Connector, a, b))
	must(t, c.WaitDiscovered(ctx, a, b))
	must(t, c.ApplyLimited(ctx, "all-edges", "never", a, b))
	relayed(ctx, t, c, a, b)
	pings(ctx, t, a, b)

	// At 20 ms one in twenty changes may hit the millisecond; at 5 ms, in both
	// directions, each loses less than one packet on average.
	for _, tt := range []struct {
		interval time.Duration
		changes  int
		most     int
	}{{StreamEvery, 5, 2}, {StreamEvery / 4, 5, 20}} {
		t.Run(fmt.Sprint(tt.interval), func(t *testing.T) {
			most := map[string]int{}
			if !kernelESP {
				// Back to the relay one in some 10,000 pings was lost on a busy
				// machine, it is not known why; else none.
				most["direct"], most["relayed"] = tt.most, 1
			}
			sent, lost := map[string]int{}, map[string]int{}
			for i := range tt.changes {
				for _, to := range []string{"direct", "relayed"} {
					for _, pings := range duringChange(ctx, t, c, a, b, to, tt.interval) {
						sent[to], lost[to] = sent[to]+len(pings), lost[to]+pings.Lost()
						if pings.Lost() != 0 {
							t.Logf("change %d to %s: %d of %d pings lost, for %v at a stretch", i+1, to, pings.Lost(), len(pings), pings.Longest())
						}
					}
				}
			}
			for to := range sent {
				t.Logf("%d changes to %s: %d of %d pings lost", tt.changes, to, lost[to], sent[to])
				if lost[to] > most[to] {
					t.Errorf("%d changes to %s lost %d pings, want at most %d", tt.changes, to, lost[to], most[to])
				}
			}
		})
	}
	for _, n := range []*Node{a, b} {
		for _, left := range []struct{ list, what string }{{"ip xfrm policy list dir out", "priority 2829"}, {"ip link", "bodkin-hold"}} {
			out, err := n.Run(ctx, strings.Fields(left.list)...)
			must(t, err)
			if strings.Contains(out, left.what) {
				t.Errorf("%s still has %s:\n%s", n.Name, left.what, out)
			}
		}
	}
}

// duringChange are the pings between two nodes, both ways and one each interval,
// from before a pair changes until after.
func duringChange(ctx context.Context, t *testing.T, c *Cluster, a, b *Node, to string, interval time.Duration) (pings []Timeline) {
	t.Helper()
	const around = time.Second // pings before and after
	var streams []*Stream
	for range StreamEvery / interval {
		for _, pair := range [][2]*Node{{a, b}, {b, a}} {
			s, err := pair[0].StartStream(ctx, pair[1])
			must(t, err)
			streams = append(streams, s)
		}
		time.Sleep(interval)
	}
	time.Sleep(around)
	punch := map[string]string{"direct": "auto", "relayed": "never"}[to]
	err := c.ApplyLimited(ctx, "all-edges", punch, a, b)
	if err == nil {
		_, err = c.WaitPair(ctx, a, b, func(p *Pair) bool { return p.State == to })
	}
	time.Sleep(around)
	for _, s := range streams {
		pings = append(pings, s.Stop())
	}
	must(t, err)
	return pings
}

// bridged gives a node a bridge with the first address of a network on it, and a
// pod with the second one, and returns how to run something in the pod.
func bridged(ctx context.Context, t *testing.T, n *Node, name string, network netip.Prefix) (pod netip.Addr, in func(argv ...string) (string, error)) {
	t.Helper()
	gateway := network.Addr().Next()
	pod = gateway.Next()
	ns := fmt.Sprintf("bdkpod-%d-%s", os.Getpid(), name)
	host := func(argv ...string) {
		t.Helper()
		if out, err := n.Run(ctx, argv...); err != nil {
			t.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, out)
		}
	}
	in = func(argv ...string) (string, error) {
		return n.Run(ctx, append([]string{"ip", "netns", "exec", ns}, argv...)...)
	}
	pods := func(argv ...string) {
		t.Helper()
		if out, err := in(argv...); err != nil {
			t.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, out)
		}
	}
	host("ip", "netns", "add", ns)
	t.Cleanup(func() {
		if out, err := n.Run(context.Background(), "ip", "netns", "del", ns); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	host("ip", "link", "add", name, "type", "bridge")
	host("ip", "addr", "add", netip.PrefixFrom(gateway, network.Bits()).String(), "dev", name)
	host("ip", "link", "set", name, "up")
	host("ip", "link", "add", name+"p", "type", "veth", "peer", "name", "eth0", "netns", ns)
	host("ip", "link", "set", name+"p", "master", name, "up")
	pods("ip", "link", "set", "lo", "up")
	pods("ip", "addr", "add", netip.PrefixFrom(pod, network.Bits()).String(), "dev", "eth0")
	pods("ip", "link", "set", "eth0", "up")
	pods("ip", "route", "add", "default", "via", gateway.String())
	return pod, in
}

// TestRelayLeavesOwnSubnets: the relay's range contains the edge's own subnets.
// What its node and its pods say to each other does not go through the connector.
func TestRelayLeavesOwnSubnets(t *testing.T) {
	ctx, c := start(t, ClusterOptions{})
	a, _ := edge(ctx, t, c, "edge1", lab.Symmetric)
	b, _ := edge(ctx, t, c, "edge2", lab.Symmetric)
	must(t, a.EnableForwarding())
	second := netip.MustParsePrefix("10.233.165.0/24")
	third := netip.MustParsePrefix("10.233.166.0/24")
	conf, err := os.ReadFile(a.config)
	must(t, err)
	must(t, a.Agent().Stop(ctx))
	must(t, os.WriteFile(a.config, []byte(strings.Replace(string(conf), "subnets: ["+a.Subnet.String()+"]",
		fmt.Sprintf("subnets: [%s, %s, %s]", a.Subnet, second, third), 1)), 0o600))
	pod, inPod := bridged(ctx, t, a, "br2", second)
	other, _ := bridged(ctx, t, a, "br3", third)
	must(t, a.StartAgent(ctx))
	must(t, c.WaitOnline(ctx, c.Connector, a, b))
	must(t, c.Apply(ctx, "all-edges", a, b))
	relayed(ctx, t, c, a, b)
	pings(ctx, t, a, b)

	for _, src := range []netip.Addr{{}, a.Pod, second.Addr().Next(), third.Addr().Next()} {
		res, err := a.Ping(ctx, pod, 5, 20*time.Millisecond, src)
		must(t, err)
		if res.Lost() != 0 {
			t.Errorf("node, from %v, to its pod: %d of %d pings lost", src, res.Lost(), res.Sent)
		}
	}
	for _, dst := range []netip.Addr{a.Pod, second.Addr().Next(), other, b.Pod} {
		if out, err := inPod("ping", "-n", "-c", "5", "-i", "0.02", "-W", "2", dst.String()); err != nil {
			t.Errorf("pod to %s: %v:\n%s", dst, err, out)
		}
	}
	if res, err := b.Ping(ctx, pod, 5, 20*time.Millisecond, b.Pod); err != nil || res.Lost() != 0 {
		t.Errorf("%s to the pod: %d of %d pings lost, err %v", b.Name, res.Lost(), res.Sent, err)
	}
	if t.Failed() {
		for _, what := range []string{"ip rule", "ip route show table 220", "ip xfrm policy", "ip addr"} {
			out, err := a.Run(ctx, "sh", "-c", what)
			t.Logf("%s: %v\n%s", what, err, out)
		}
	}
}
