package e2e

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

// TestArticle is the scenario of FabEdge's v0.8.0 article: the connector behind
// a mapping of 45000 to 4500, edge1 and edge2 on one LAN, all-edges.yaml.
func TestArticle(t *testing.T) {
	ctx, c := start(t, ClusterOptions{PublicPort: 45000})
	lan, err := c.Router("office", lab.RouterOptions{NAT: lab.PortRestricted})
	must(t, err)
	edge1, err := c.AddEdge(ctx, "edge1", lan)
	must(t, err)
	edge2, err := c.AddEdge(ctx, "edge2", lan)
	must(t, err)
	must(t, c.WaitOnline(ctx, c.Connector, edge1, edge2))
	direct(ctx, t, c, edge1, c.Connector)
	direct(ctx, t, c, edge2, c.Connector)

	if p, err := c.Pair(ctx, edge1, edge2); err != nil || p != nil {
		t.Fatalf("before any community: pair %+v, error %v; want none", p, err)
	}
	must(t, c.Apply(ctx, "all-edges", edge1, edge2))
	p := direct(ctx, t, c, edge1, edge2)
	for from, to := range map[*Node]*Node{edge1: edge2, edge2: edge1} {
		want := netip.AddrPortFrom(to.Addr(), ikePort)
		if got := p.Paths[from.Name]; got.Remote != want || got.Kind != "host" {
			t.Errorf("path of %s is %+v, want host %s: two nodes of one LAN meet there", from.Name, got, want)
		}
		pings(ctx, t, from, to)
		pings(ctx, t, from, c.Connector)
		listing, err := from.Swanctl(ctx, "--list-sas")
		must(t, err)
		for _, line := range []string{
			"remote 'C=CN, O=fabedge.io, CN=beijing.connector' @ " + c.PublicAddr.String() + "[45000]",
			"remote 'C=CN, O=fabedge.io, CN=" + to.Name + "' @ " + to.Addr().String() + "[4500]",
			"local  'C=CN, O=fabedge.io, CN=" + from.Name + "' @ " + from.Addr().String() + "[4500]",
			to.Name + "-p2p: #", to.Name + "-p2n: #", to.Name + "-n2p: #",
			"beijing.connector-p2p: #", "ESP:AES_GCM_16-128",
			"AES_CBC-128/HMAC_SHA2_256_128/PRF_HMAC_SHA2_256/CURVE_25519",
			"remote " + to.Subnet.String(), "remote " + to.Addr().String() + "/32",
		} {
			if !strings.Contains(listing, line) {
				t.Errorf("list-sas of %s lacks %q:\n%s", from.Name, line, listing)
			}
		}
	}
	if listing, err := edge1.Swanctl(ctx, "--list-sas"); err != nil || strings.Count(listing, "ESTABLISHED") != 2 {
		t.Errorf("edge1 has not exactly two IKE SAs (error %v):\n%s", err, listing)
	}
}
