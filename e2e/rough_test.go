package e2e

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

// TestLossAndReordering: a fifth of the packets lost each way between two
// edges, and many that overtake others, delay a tunnel and do not prevent it.
func TestLossAndReordering(t *testing.T) {
	for name, link := range map[string]lab.Link{
		"loss":                {Loss: 0.2},
		"loss and reordering": {Loss: 0.2, Delay: 10 * time.Millisecond, Jitter: 40 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, c := start(t, ClusterOptions{})
			a, _ := edge(ctx, t, c, "edge1", lab.PortRestricted)
			b, r := edge(ctx, t, c, "edge2", lab.PortRestricted)
			// On one end only: that is each way between the two already.
			must(t, r.SetLink(link))
			must(t, c.WaitOnline(ctx, c.Connector, a, b))
			must(t, c.Apply(ctx, "all-edges", a, b))
			p := direct(ctx, t, c, a, b)
			t.Logf("direct after %d ms, %d attempts", p.TimeToDirectMs, p.Attempts)
			res, err := a.PingPod(ctx, b, 20, 50*time.Millisecond)
			must(t, err)
			if res.Received == 0 {
				t.Errorf("none of %d pings came through", res.Sent)
				for _, n := range []*Node{a, b} {
					sas, err := n.Swanctl(ctx, "--list-sas")
					t.Logf("%s: %v\n%s", n.Name, err, sas)
				}
			}
		})
	}
}

// TestPoisonedColdStart: routers that remember an early packet are met before
// anybody can know that they do. The community is in force already when the
// agents start, so they are told to punch while their NATs are unknown.
func TestPoisonedColdStart(t *testing.T) {
	for name, kinds := range map[string][2]lab.NATKind{
		"one side":   {lab.PortRestrictedPoisoned, lab.PortRestricted},
		"both sides": {lab.PortRestrictedPoisoned, lab.PortRestrictedPoisoned},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, c := start(t, ClusterOptions{})
			must(t, c.Apply(ctx, "all-edges", &Node{Name: c.Name + ".edge1"}, &Node{Name: c.Name + ".edge2"}))
			first := firstPackets(t, c, "edge1-nat", "edge2-nat")
			a, _ := edge(ctx, t, c, "edge1", kinds[0])
			b, _ := edge(ctx, t, c, "edge2", kinds[1])
			if p := direct(ctx, t, c, a, b); p.Attempts != 1 {
				t.Errorf("it took %d attempts", p.Attempts)
			}
			pings(ctx, t, a, b)
			for _, router := range []string{"edge1-nat", "edge2-nat"} {
				if got := first(router); got.Fate != lab.Expired {
					t.Errorf("the first packet from %s to the other side was no opener: %v", router, got)
				}
			}
		})
	}
}

// firstPackets watches for the first packet that each of two hosts on the
// internet sends to the other.
func firstPackets(t *testing.T, c *Cluster, a, b string) (first func(from string) lab.Packet) {
	t.Helper()
	var mu sync.Mutex
	seen := map[string]lab.Packet{}
	t.Cleanup(c.Trace(func(p lab.Packet) {
		if between := p.From == a && p.To == b || p.From == b && p.To == a; !between {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if _, known := seen[p.From]; !known {
			seen[p.From] = p
		}
	}))
	return func(from string) lab.Packet {
		mu.Lock()
		defer mu.Unlock()
		return seen[from]
	}
}

// TestPoisonedKnown: the same routers, known for what they are.
func TestPoisonedKnown(t *testing.T) {
	ctx, c := start(t, ClusterOptions{})
	a, _ := edge(ctx, t, c, "edge1", lab.PortRestrictedPoisoned)
	b, _ := edge(ctx, t, c, "edge2", lab.PortRestrictedPoisoned)
	must(t, c.WaitDiscovered(ctx, a, b))
	wantPoisoned(ctx, t, c, a, b)
	must(t, c.Apply(ctx, "all-edges", a, b))
	direct(ctx, t, c, a, b)
	pings(ctx, t, a, b)
}

func wantPoisoned(ctx context.Context, t *testing.T, c *Cluster, nodes ...*Node) {
	t.Helper()
	seen, err := c.Nodes(ctx)
	must(t, err)
	for _, o := range seen {
		for _, n := range nodes {
			if o.Name == n.Name && o.NAT.Poisoned != "yes" {
				t.Errorf("the NAT of %s is known as %+v, want it poisoned", n.Name, o.NAT)
			}
		}
	}
}
