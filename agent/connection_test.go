package agent

import (
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/bodkin-net/bodkin/agent/charon"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// The three nodes of FabEdge's article.
var (
	articleEdge1 = wire.Endpoint{
		ID: "C=CN, O=fabedge.io, CN=beijing.edge1", Name: "beijing.edge1", Type: wire.Edge,
		Subnets: prefixList("10.233.66.0/24"), NodeSubnets: prefixList("10.22.46.30/32"),
	}
	articleEdge2 = wire.Endpoint{
		ID: "C=CN, O=fabedge.io, CN=beijing.edge2", Name: "beijing.edge2", Type: wire.Edge,
		Subnets: prefixList("10.233.67.0/24"), NodeSubnets: prefixList("10.22.46.28/32"),
	}
	articleConnector = wire.Endpoint{
		ID: "C=CN, O=fabedge.io, CN=beijing.connector", Name: "beijing.connector", Type: wire.Connector,
		PublicAddresses: []string{"10.40.20.181"}, Port: 45000,
		Subnets:     prefixList("10.233.0.0/18", "10.233.64.0/24", "10.233.65.0/24"),
		NodeSubnets: prefixList("192.168.56.11/32", "192.168.56.12/32"),
	}
	articleLAN = prefixList("10.22.46.30/24")
	lanPath    = wire.Path{Kind: wire.PathHost,
		Local: netip.MustParseAddrPort("10.22.46.30:4500"), Remote: netip.MustParseAddrPort("10.22.46.28:4500")}
)

func TestConnection(t *testing.T) {
	toConnector := charon.Connection{
		Name: "beijing.connector", LocalID: articleEdge1.ID, RemoteID: articleConnector.ID,
		LocalPort: 4500, RemoteAddrs: []string{"10.40.20.181"}, RemotePort: 45000,
		Encap: true, DPDDelay: dpdPublic,
		Children: []charon.Child{
			{Name: "beijing.connector-p2p", LocalTS: articleEdge1.Subnets, RemoteTS: articleConnector.Subnets},
			{Name: "beijing.connector-p2n", LocalTS: articleEdge1.Subnets, RemoteTS: articleConnector.NodeSubnets},
			{Name: "beijing.connector-n2p", LocalTS: articleEdge1.NodeSubnets, RemoteTS: articleConnector.Subnets},
		},
	}
	onConnector := charon.Connection{
		Name: "beijing.edge1", LocalID: articleConnector.ID, RemoteID: articleEdge1.ID,
		LocalPort: 4500, RemoteAddrs: []string{"%any"}, RemotePort: 4500,
		Encap: true, DPDDelay: dpdPublic,
		Children: []charon.Child{
			{Name: "beijing.edge1-p2p", LocalTS: articleConnector.Subnets, RemoteTS: articleEdge1.Subnets},
			{Name: "beijing.edge1-p2n", LocalTS: articleConnector.Subnets, RemoteTS: articleEdge1.NodeSubnets},
			{Name: "beijing.edge1-n2p", LocalTS: articleConnector.NodeSubnets, RemoteTS: articleEdge1.Subnets},
		},
	}
	onLAN := charon.Connection{
		Name: "beijing.edge2", LocalID: articleEdge1.ID, RemoteID: articleEdge2.ID,
		LocalAddrs: []string{"10.22.46.30"}, LocalPort: 4500,
		RemoteAddrs: []string{"10.22.46.28"}, RemotePort: 4500,
		Encap: false, DPDDelay: dpdPunched,
		Children: []charon.Child{
			{Name: "beijing.edge2-p2p", LocalTS: articleEdge1.Subnets, RemoteTS: articleEdge2.Subnets},
			{Name: "beijing.edge2-p2n", LocalTS: articleEdge1.Subnets, RemoteTS: articleEdge2.NodeSubnets},
			{Name: "beijing.edge2-n2p", LocalTS: articleEdge1.NodeSubnets, RemoteTS: articleEdge2.Subnets},
			{Name: "beijing.edge2-check", LocalTS: articleEdge1.Subnets, RemoteTS: articleEdge2.Subnets, Protocol: 253},
		},
	}
	punched := onLAN
	punched.RemoteAddrs, punched.RemotePort, punched.Encap = []string{"203.0.113.2"}, 50123, true
	prepared := onLAN
	prepared.LocalAddrs, prepared.RemoteAddrs, prepared.Encap = nil, []string{"%any"}, false
	defaultPort := articleConnector
	defaultPort.Port = 0
	toDefaultPort := toConnector
	toDefaultPort.RemotePort = 4500

	public := wire.Path{Kind: wire.PathPublic}
	mapped := wire.Path{Kind: wire.PathPeerReflexive, Local: lanPath.Local, Remote: path2.Remote}
	tests := []struct {
		name       string
		self, peer wire.Endpoint
		plan       wire.Plan
		role       wire.Role
		path       wire.Path
		want       charon.Connection
	}{
		{"article: edge to connector", articleEdge1, articleConnector, wire.PlanPublic, wire.Controlling, public, toConnector},
		{"article: connector to edge", articleConnector, articleEdge1, wire.PlanPublic, wire.Controlled, public, onConnector},
		{"article: edges on one LAN", articleEdge1, articleEdge2, wire.PlanICE, wire.Controlling, lanPath, onLAN},
		{"punched", articleEdge1, articleEdge2, wire.PlanICE, wire.Controlled, mapped, punched},
		{"responder before the path is known", articleEdge1, articleEdge2, wire.PlanICE, wire.Controlled, wire.Path{}, prepared},
		{"connector on the usual port", articleEdge1, defaultPort, wire.PlanPublic, wire.Controlling, public, toDefaultPort},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			peer := wire.Peer{Endpoint: tt.peer, Plan: tt.plan, Role: tt.role}
			got := connection(tt.self, peer, tt.path, encapFor(tt.path, articleLAN))
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("connection:\n got %+v\nwant %+v", got, tt.want)
			}
		})
	}
}

func TestCarriers(t *testing.T) {
	self := func(subnets, nodes []netip.Prefix) wire.Endpoint {
		return wire.Endpoint{Name: "a.self", Subnets: subnets, NodeSubnets: nodes}
	}
	peer := func(subnets, nodes []netip.Prefix) wire.Endpoint {
		return wire.Endpoint{Name: "a.peer", Subnets: subnets, NodeSubnets: nodes}
	}
	podsA, podsB := prefixList("10.1.0.0/24"), prefixList("10.2.0.0/24")
	nodeA, nodeB := prefixList("192.168.1.2/32"), prefixList("192.168.1.3/32")
	nodeA6, nodeB6 := prefixList("2001:db8:1::2/128"), prefixList("2001:db8:2::2/128")
	tests := []struct {
		name       string
		self, peer wire.Endpoint
		want       []string
	}{
		{"all", self(podsA, nodeA), peer(podsB, nodeB), []string{"a.peer-p2p", "a.peer-p2n", "a.peer-n2p"}},
		{"no node subnets", self(podsA, nil), peer(podsB, nil), []string{"a.peer-p2p"}},
		{"peer without node subnets", self(podsA, nodeA), peer(podsB, nil), []string{"a.peer-p2p", "a.peer-n2p"}},
		{"self without node subnets", self(podsA, nil), peer(podsB, nodeB), []string{"a.peer-p2p", "a.peer-p2n"}},
		{"same private address", self(podsA, nodeA), peer(podsB, nodeA), []string{"a.peer-p2p"}},
		{"one network in the other", self(podsA, nodeA), peer(podsB, prefixList("192.168.0.0/16")), []string{"a.peer-p2p"}},
		{"peer without pods", self(podsA, nodeA), peer(nil, nodeB), []string{"a.peer-p2n"}},
		{"IPv6 nodes around IPv4 pods", self(podsA, nodeA6), peer(podsB, nodeB6), []string{"a.peer-p2p"}},
		{"dual-stack nodes", self(podsA, slices.Concat(nodeA6, nodeA)), peer(podsB, nodeB), []string{"a.peer-p2p", "a.peer-p2n", "a.peer-n2p"}},
		{"no common family", self(podsA, nodeA), peer(nodeB6, nil), nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, c := range carriers(tt.self, tt.peer) {
				got = append(got, c.Name)
				if len(c.LocalTS) == 0 || len(c.RemoteTS) == 0 {
					t.Errorf("%s has no selectors: %+v", c.Name, c)
				}
				if c.LocalTS[0].Addr().Is4() != c.RemoteTS[0].Addr().Is4() || len(c.LocalTS) > 1 {
					t.Errorf("%s mixes families: %+v", c.Name, c)
				}
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("children %v; want %v", got, tt.want)
			}
		})
	}
}

// What a connection has beside FabEdge's children, and on which end.
func TestChildrenOfRelay(t *testing.T) {
	whole := prefixList("10.233.0.0/16")
	to := func(e wire.Endpoint, plan wire.Plan, covers ...netip.Prefix) wire.Peer {
		return wire.Peer{Endpoint: e, Plan: plan, Relay: covers}
	}
	twice := articleEdge1
	twice.Subnets = prefixList("10.233.66.0/24", "10.233.166.0/24", "fd00:66::/64")
	elsewhere := articleEdge1
	elsewhere.Subnets = prefixList("10.9.0.0/24")
	tests := []struct {
		name string
		self wire.Endpoint
		peer wire.Peer
		want []charon.Child
	}{
		{"edge to edge", articleEdge1, to(articleEdge2, wire.PlanICE, whole...), []charon.Child{
			{Name: "beijing.edge2-check", LocalTS: articleEdge1.Subnets, RemoteTS: articleEdge2.Subnets, Protocol: 253}}},
		{"edge to connector without a relay", articleEdge1, to(articleConnector, wire.PlanPublic), nil},
		{"edge to connector", articleEdge1, to(articleConnector, wire.PlanPublic, whole...), []charon.Child{
			{Name: "beijing.connector-relay", LocalTS: articleEdge1.Subnets, RemoteTS: whole},
			{Name: "beijing.connector-own", LocalTS: articleEdge1.Subnets, RemoteTS: articleEdge1.Subnets, Pass: true}}},
		{"edge with subnets of another family", twice, to(articleConnector, wire.PlanPublic, whole...), []charon.Child{
			{Name: "beijing.connector-relay", LocalTS: twice.Subnets[:2], RemoteTS: whole},
			{Name: "beijing.connector-own", LocalTS: twice.Subnets, RemoteTS: twice.Subnets, Pass: true}}},
		{"edge outside the range", elsewhere, to(articleConnector, wire.PlanPublic, whole...), []charon.Child{
			{Name: "beijing.connector-relay", LocalTS: elsewhere.Subnets, RemoteTS: whole}}},
		{"connector to edge", articleConnector, to(articleEdge1, wire.PlanPublic, whole...), []charon.Child{
			{Name: "beijing.edge1-relay", LocalTS: whole, RemoteTS: articleEdge1.Subnets}}},
		{"connector to edge without a relay", articleConnector, to(articleEdge1, wire.PlanPublic), nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := children(tt.self, tt.peer)
			if n := len(carriers(tt.self, tt.peer.Endpoint)); !reflect.DeepEqual(got[n:], append([]charon.Child{}, tt.want...)) {
				t.Errorf("beside FabEdge's:\n got %+v\nwant %+v", got[n:], tt.want)
			}
		})
	}
}

// Only what the relay carries, too, is told apart by a mark.
func TestMarked(t *testing.T) {
	mark := DirectMark{Value: 1, Mask: 3}
	for _, c := range marked(children(articleEdge1, wire.Peer{Endpoint: articleEdge2, Plan: wire.PlanICE}), mark) {
		want := charon.Mark{}
		if c.Name == "beijing.edge2-p2p" {
			want = charon.Mark(mark)
		}
		if c.MarkIn != want {
			t.Errorf("%s has mark %s, want %s", c.Name, c.MarkIn, want)
		}
	}
}

func TestRouted(t *testing.T) {
	both := []string{"203.0.113.1", "2001:db8::1", "connector.example.net"}
	has := func(want ...string) func(netip.Addr) bool {
		return func(a netip.Addr) bool { return slices.Contains(want, a.String()) }
	}
	tests := []struct {
		name     string
		addrs    []string
		hasRoute func(netip.Addr) bool
		want     []string
	}{
		{"dual stack", both, has("203.0.113.1", "2001:db8::1"), both},
		{"IPv6 alone", both, has("2001:db8::1"), both[1:]},
		{"IPv4 alone", both, has("203.0.113.1"), []string{"203.0.113.1", "connector.example.net"}},
		{"no route but for a name", both, has(), both[2:]},
		{"no route at all", both[:2], has(), both[:2]},
	}
	for _, tt := range tests {
		if got := routed(tt.addrs, tt.hasRoute); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v; want %v", tt.name, got, tt.want)
		}
	}
	if both[1] != "2001:db8::1" {
		t.Error("the list was changed")
	}
}

func TestEncapFor(t *testing.T) {
	path := func(kind wire.PathKind, local, remote string) wire.Path {
		return wire.Path{Kind: kind, Local: netip.MustParseAddrPort(local), Remote: netip.MustParseAddrPort(remote)}
	}
	tests := []struct {
		name   string
		path   wire.Path
		locals []netip.Prefix
		want   bool
	}{
		{"one LAN", lanPath, articleLAN, false},
		{"one LAN, IPv6", path(wire.PathHost, "[fd00::1]:4500", "[fd00::2]:4500"), prefixList("fd00::1/64"), false},
		{"IPv6 behind firewalls", path(wire.PathHost, "[2001:db8:1::1]:4500", "[2001:db8:2::1]:4500"), prefixList("2001:db8:1::1/64"), true},
		{"mapped by the LAN's router", path(wire.PathMapped, "10.22.46.30:4500", "10.22.46.1:4500"), articleLAN, true},
		{"private addresses, but routed", path(wire.PathHost, "10.22.46.30:4500", "10.22.47.1:4500"), articleLAN, true},
		{"peer-reflexive inside the LAN's range", path(wire.PathPeerReflexive, "10.22.46.30:4500", "10.22.46.28:4500"), articleLAN, true},
		{"server-reflexive", path1, articleLAN, true},
		{"the network of another address of ours", lanPath, prefixList("10.22.46.99/24"), true},
		{"a /32 address", lanPath, prefixList("10.22.46.30/32"), true},
		{"connector", wire.Path{Kind: wire.PathPublic}, articleLAN, true},
		{"not known yet: the initiator decides", wire.Path{}, articleLAN, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := encapFor(tt.path, tt.locals); got != tt.want {
				t.Errorf("encapFor = %v; want %v", got, tt.want)
			}
		})
	}
}

func TestProbeAddrs(t *testing.T) {
	v6 := wire.Endpoint{Subnets: prefixList("fd02::/64")}
	tests := []struct {
		name       string
		self, peer wire.Endpoint
		locals     []netip.Prefix
		from, to   string // empty: no probe
	}{
		{"pod address first", articleEdge1, articleEdge2, prefixList("10.22.46.30/24", "10.233.66.1/24"), "10.233.66.1", "10.233.67.1"},
		{"node address else", articleEdge1, articleEdge2, prefixList("127.0.0.1/8", "10.22.46.30/24"), "10.22.46.30", "10.233.67.1"},
		{"a single address is its own first", wire.Endpoint{Subnets: prefixList("10.1.0.1/32")}, wire.Endpoint{Subnets: prefixList("10.2.0.1/32")},
			prefixList("10.1.0.1/32"), "10.1.0.1", "10.2.0.1"},
		{"a node address that no child has", wire.Endpoint{Subnets: prefixList("10.1.0.0/24"), NodeSubnets: prefixList("192.168.1.2/32")},
			wire.Endpoint{Subnets: prefixList("10.2.0.0/24"), NodeSubnets: prefixList("192.168.1.2/32")}, prefixList("192.168.1.2/24"), "", ""},
		{"no address inside", articleEdge1, articleEdge2, prefixList("127.0.0.1/8", "192.168.9.9/24"), "", ""},
		{"peer without subnets", articleEdge1, wire.Endpoint{}, articleLAN, "", ""},
		{"the selectors of our family", articleEdge1, wire.Endpoint{Subnets: prefixList("fd02::/64", "10.233.67.0/24")}, prefixList("10.233.66.1/24"), "10.233.66.1", "10.233.67.1"},
		{"families do not mix", articleEdge1, v6, prefixList("10.233.66.1/24"), "", ""},
		{"IPv6", wire.Endpoint{Subnets: prefixList("fd01::/64")}, v6, prefixList("10.0.0.1/8", "fd01::1/64"), "fd01::1", "fd02::1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			from, to, ok := probeAddrs(carriers(tt.self, tt.peer), tt.locals)
			if !ok {
				if tt.from != "" {
					t.Fatal("no probe")
				}
				return
			}
			if from.String() != tt.from || to.String() != tt.to {
				t.Errorf("probe from %s to %s; want %s to %s", from, to, tt.from, tt.to)
			}
		})
	}
}
