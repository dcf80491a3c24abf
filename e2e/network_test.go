package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

// dualStack adds an edge with both address families, behind a router of its own
// that translates IPv4 and is a firewall for IPv6.
func dualStack(ctx context.Context, t *testing.T, c *Cluster, name string) (*Node, *lab.Router) {
	t.Helper()
	r, err := c.Router(name+"-nat", lab.RouterOptions{NAT: lab.PortRestricted, LAN6: lan6(c.next)})
	must(t, err)
	must(t, r.SetLink(lab.Link{Delay: 20 * time.Millisecond}))
	n, err := c.AddEdge(ctx, name, r)
	must(t, err)
	return n, r
}

// over checks where the paths of two nodes lead.
func over(t *testing.T, p *Pair, a, b *Node, kind string, to map[*Node]netip.Addr) {
	t.Helper()
	for from, peer := range map[*Node]*Node{a: b, b: a} {
		if got := p.Paths[from.Name]; got.Kind != kind || got.Remote.Addr() != to[peer] {
			t.Errorf("path of %s is %+v; want %s %s", from.Name, got, kind, to[peer])
		}
	}
}

// TestIPv6: two edges that have IPv6 alone, each behind a firewall, reach each
// other and the connector.
func TestIPv6(t *testing.T) {
	ctx, c := start(t, ClusterOptions{IPv6: true})
	site := Site{Name: "ipv6-firewall", NAT: lab.PortRestricted, IPv6: true}
	a, err := c.AddSite(ctx, "edge1", site)
	must(t, err)
	b, err := c.AddSite(ctx, "edge2", site)
	must(t, err)
	must(t, c.WaitOnline(ctx, c.Connector, a, b))
	must(t, c.Apply(ctx, "all-edges", a, b))
	over(t, direct(ctx, t, c, a, b), a, b, "host", map[*Node]netip.Addr{a: a.Addr6(), b: b.Addr6()})
	for _, n := range []*Node{a, b} {
		p := direct(ctx, t, c, n, c.Connector)
		if got := p.Paths[n.Name].Remote.Addr(); got != c.PublicAddr6 {
			t.Errorf("%s reaches the connector at %s; want %s", n.Name, got, c.PublicAddr6)
		}
		pings(ctx, t, n, c.Connector)
	}
	pings(ctx, t, a, b)
	pings(ctx, t, b, a)
}

// TestDualStack: two edges that have both address families use IPv6, and IPv4
// when IPv6 does not get through.
func TestDualStack(t *testing.T) {
	ctx, c := start(t, ClusterOptions{IPv6: true})
	a, _ := dualStack(ctx, t, c, "edge1")
	b, _ := dualStack(ctx, t, c, "edge2")
	d, r := dualStack(ctx, t, c, "edge3")
	out, err := r.Run(ctx, "ip", "-6", "route", "add", "blackhole", lan6(1).String())
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	must(t, c.WaitOnline(ctx, c.Connector, a, b, d))
	must(t, c.Apply(ctx, "all-edges", a, b, d))
	over(t, direct(ctx, t, c, a, b), a, b, "host", map[*Node]netip.Addr{a: a.Addr6(), b: b.Addr6()})
	pings(ctx, t, a, b)

	p := direct(ctx, t, c, a, d)
	if got := p.Paths[a.Name].Remote; got.Addr() != r.WAN() {
		t.Errorf("without a way over IPv6 %s reaches %s at %s; want %s", a.Name, d.Name, got, r.WAN())
	}
	pings(ctx, t, a, d)
}

// TestNoCommonFamily: that no path can be is said, with the families.
func TestNoCommonFamily(t *testing.T) {
	ctx, c := start(t, ClusterOptions{IPv6: true})
	a, err := c.AddSite(ctx, "edge1", Site{NAT: lab.PortRestricted, IPv6: true})
	must(t, err)
	b, _ := edge(ctx, t, c, "edge2", lab.PortRestricted)
	must(t, c.WaitOnline(ctx, c.Connector, a, b))
	must(t, c.Apply(ctx, "all-edges", a, b))
	p, err := c.WaitPair(ctx, a, b, func(p *Pair) bool { return p.State == "direct" || p.Failed() })
	must(t, err)
	for _, want := range []string{"no common address family", a.Name + " has IPv6 only", b.Name + " has IPv4 only"} {
		if p.State != "relayed" || !strings.Contains(p.Reason, want) {
			t.Errorf("%s: %q; want relayed, since %q", p.State, p.Reason, want)
		}
	}
}

// TestSameNetwork: two edges on one LAN meet there, whatever their router does
// with packets to its own outside address.
func TestSameNetwork(t *testing.T) {
	for _, hairpin := range []bool{false, true} {
		t.Run(fmt.Sprintf("hairpin %v", hairpin), func(t *testing.T) {
			ctx, c := start(t, ClusterOptions{})
			r, err := c.Router("office", lab.RouterOptions{NAT: lab.FullCone, Hairpin: hairpin})
			must(t, err)
			a, err := c.AddEdge(ctx, "edge1", r)
			must(t, err)
			b, err := c.AddEdge(ctx, "edge2", r)
			must(t, err)
			must(t, c.WaitOnline(ctx, c.Connector, a, b))
			must(t, c.Apply(ctx, "all-edges", a, b))
			over(t, direct(ctx, t, c, a, b), a, b, "host", map[*Node]netip.Addr{a: a.Addr(), b: b.Addr()})
			pings(ctx, t, a, b)
		})
	}
}

// TestSameCarrier: two homes behind one carrier's NAT have one public address,
// and a direct path only if that NAT turns packets to it around.
func TestSameCarrier(t *testing.T) {
	for _, hairpin := range []bool{true, false} {
		t.Run(fmt.Sprintf("hairpin %v", hairpin), func(t *testing.T) {
			ctx, c := start(t, ClusterOptions{})
			carrier, err := c.Router("carrier", lab.RouterOptions{NAT: lab.FullCone, LAN: carrierLAN(0), Hairpin: hairpin})
			must(t, err)
			var homes [2]*Node
			for i := range homes {
				name := fmt.Sprintf("edge%d", i+1)
				r, err := c.Router(name+"-nat", lab.RouterOptions{NAT: lab.PortRestricted, Carrier: carrier})
				must(t, err)
				homes[i], err = c.AddEdge(ctx, name, r)
				must(t, err)
			}
			a, b := homes[0], homes[1]
			must(t, c.WaitDiscovered(ctx, a, b))
			must(t, c.Apply(ctx, "all-edges", a, b))
			if hairpin {
				p := direct(ctx, t, c, a, b)
				if got := p.Paths[a.Name].Remote.Addr(); got != carrier.WAN() {
					t.Errorf("%s reaches %s at %s; want the carrier's %s", a.Name, b.Name, got, carrier.WAN())
				}
				pings(ctx, t, a, b)
				return
			}
			p, err := c.WaitPair(ctx, a, b, func(p *Pair) bool { return p.State == "direct" || p.Failed() })
			must(t, err)
			if want := "does not hairpin"; p.State != "relayed" || !strings.Contains(p.Reason, want) || !strings.Contains(p.Verdict.Reason, want) {
				t.Errorf("%s: %q, verdict %+v; want relayed, since the carrier %s", p.State, p.Reason, p.Verdict, want)
			}
		})
	}
}
