package lab

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// natSite is a router of one kind with a host inside, and two servers outside.
type natSite struct {
	router           *Router
	inside           socket   // port 4500
	outside          []socket // server 1 port 1000, server 1 port 2000, server 2 port 1000
	server1, server2 *Host
}

func newNATSite(t *testing.T, kind NATKind) natSite {
	t.Helper()
	l := newLab(t, Options{})
	var s natSite
	s.server1, s.server2 = addHost(t, l, "server1", HostOptions{}), addHost(t, l, "server2", HostOptions{})
	s.router = addRouter(t, l, "router", RouterOptions{NAT: kind})
	s.inside = listen(t, addHost(t, l, "inside", HostOptions{Router: s.router}), 4500)
	s.outside = []socket{listen(t, s.server1, 1000), listen(t, s.server1, 2000), listen(t, s.server2, 1000)}
	return s
}

// poke sends from an outside socket to the NAT and returns once the router
// has the packet, forwarded or dropped.
func (s natSite) poke(t *testing.T, from socket, to netip.AddrPort, text string) {
	t.Helper()
	before := s.received(t)
	from.send(to, text)
	until(t, "the router receives", func() bool { return s.received(t) > before })
}

func (s natSite) received(t *testing.T) uint64 {
	t.Helper()
	traffic, err := s.router.Traffic()
	if err != nil {
		t.Fatal(err)
	}
	return traffic.ReceivedPackets
}

func TestNATBehavior(t *testing.T) {
	for _, kind := range NATKinds() {
		if kind == UDPBlocked {
			continue
		}
		t.Run(kind.String(), func(t *testing.T) {
			s := newNATSite(t, kind)
			want := kind.Behavior()
			if got := mappingOf(t, s); got != want.Mapping {
				t.Errorf("mapping %s, want %s", got, want.Mapping)
			}
			s.router.Reboot()
			if got := filteringOf(t, s); got != want.Filtering {
				t.Errorf("filtering %s, want %s", got, want.Filtering)
			}
		})
	}
}

// mappingOf sends to three destinations and compares what they see.
func mappingOf(t *testing.T, s natSite) Behavior {
	t.Helper()
	var seen []netip.AddrPort
	for _, o := range s.outside {
		s.inside.send(o.addr, "hello")
		_, from := o.receive()
		seen = append(seen, from)
	}
	samePort, sameAddr := seen[0] == seen[1], seen[0] == seen[2]
	switch {
	case seen[0] == s.inside.addr:
		return NoNAT
	case seen[0].Addr() != s.router.WAN():
		t.Fatalf("seen from %v, want the router's address %v", seen[0], s.router.WAN())
	case samePort && sameAddr:
		return EndpointIndependent
	case samePort:
		return AddressDependent
	}
	return AddressAndPortDependent
}

// filteringOf opens a mapping to one destination and lets the others answer.
// The one that was asked answers last, and ends the wait.
func filteringOf(t *testing.T, s natSite) Behavior {
	t.Helper()
	s.inside.send(s.outside[0].addr, "open")
	_, mapped := s.outside[0].receive()
	stranger := s.outside[2]
	s.poke(t, stranger, netip.AddrPortFrom(mapped.Addr(), 5000), "wrong port")
	s.poke(t, stranger, mapped, "other address")
	s.poke(t, s.outside[1], mapped, "other port")
	s.poke(t, s.outside[0], mapped, "asked")
	var got []string
	for !slices.Contains(got, "asked") {
		text, _ := s.inside.receive()
		got = append(got, text)
	}
	otherAddr, otherPort := slices.Contains(got, "other address"), slices.Contains(got, "other port")
	switch {
	case slices.Contains(got, "wrong port"):
		t.Fatal("a packet to a port without mapping came in")
	case mapped == s.inside.addr:
		return NoNAT
	case otherAddr && otherPort:
		return EndpointIndependent
	case otherPort:
		return AddressDependent
	case otherAddr:
		t.Fatal("another address came in but not another port of the one that was asked")
	}
	return AddressAndPortDependent
}

func TestNATPortPreservation(t *testing.T) {
	tests := []struct {
		kind      NATKind
		early     bool // the peer's packet reaches the NAT before the local opener
		preserved bool
	}{
		{FullCone, true, true},
		{AddressRestricted, true, true},
		{PortRestricted, true, true},
		{PortRestrictedPoisoned, false, true},
		{PortRestrictedPoisoned, true, false},
	}
	for _, tt := range tests {
		t.Run(tt.kind.String(), func(t *testing.T) {
			s := newNATSite(t, tt.kind)
			peer := s.outside[0]
			if tt.early {
				s.poke(t, peer, netip.AddrPortFrom(s.router.WAN(), 4500), "early")
			}
			s.inside.send(peer.addr, "opener")
			_, from := peer.receive()
			if preserved := from.Port() == 4500; preserved != tt.preserved {
				t.Errorf("early packet %v: opener left from port %d; want port 4500 kept: %v", tt.early, from.Port(), tt.preserved)
			}
		})
	}
}

func TestSymmetricSequentialCounts(t *testing.T) {
	s := newNATSite(t, SymmetricSequential)
	var ports []uint16
	for _, o := range s.outside {
		s.inside.send(o.addr, "hello")
		_, from := o.receive()
		ports = append(ports, from.Port())
	}
	if ports[1] != ports[0]+1 || ports[2] != ports[1]+1 {
		t.Errorf("ports %v, want each one after the last", ports)
	}
}

func TestUDPBlocked(t *testing.T) {
	s := newNATSite(t, UDPBlocked)
	s.inside.send(s.outside[0].addr, "lost")
	listener, err := s.server1.Listen(t.Context(), "tcp", s.outside[0].addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	inside := s.router.lab.hosts["inside"]
	conn, err := inside.Dial(t.Context(), "tcp", s.outside[0].addr.String())
	if err != nil {
		t.Fatalf("tcp must pass: %v", err)
	}
	defer conn.Close()
	// By now the datagram would have come: it was sent before the connection.
	if text, from, err := s.outside[0].receiveWithin(0); err == nil {
		t.Errorf("udp %q came through from %v", text, from)
	}
}

// Two hosts that use one port, as two edges with charon do, behind one cone.
func TestFullConeServesSeveralHosts(t *testing.T) {
	s := newNATSite(t, FullCone)
	second := listen(t, addHost(t, s.router.lab, "second", HostOptions{Router: s.router}), 4500)
	seen := make(map[netip.AddrPort]string)
	for name, inside := range map[string]socket{"first": s.inside, "second": second} {
		inside.send(s.outside[0].addr, "hello")
		_, mapped := s.outside[0].receive()
		inside.send(s.outside[2].addr, "hello")
		if _, again := s.outside[2].receive(); again != mapped {
			t.Errorf("%s host: mapped to %v, then to %v", name, mapped, again)
		}
		seen[mapped] = name
		s.outside[1].send(mapped, name)
		if text, _ := inside.receive(); text != name {
			t.Errorf("%s host received what was meant for %s", name, text)
		}
	}
	if len(seen) != 2 {
		t.Errorf("both hosts share the mapping %v", seen)
	}
}

func TestHairpin(t *testing.T) {
	for _, hairpin := range []bool{true, false} {
		l := newLab(t, Options{})
		server := listen(t, addHost(t, l, "server", HostOptions{}), 1000)
		r := addRouter(t, l, "router", RouterOptions{NAT: FullCone, Hairpin: hairpin})
		one := listen(t, addHost(t, l, "one", HostOptions{Router: r}), 4500)
		two := listen(t, addHost(t, l, "two", HostOptions{Router: r}), 4501)
		one.send(server.addr, "open")
		_, mappedOne := server.receive()
		two.send(server.addr, "open")
		_, mappedTwo := server.receive()
		two.send(mappedOne, "round the hairpin")
		two.send(one.addr, "straight") // comes last
		text, from := one.receive()
		if hairpin && (text != "round the hairpin" || from != mappedTwo) {
			t.Errorf("hairpin: got %q from %v, want it from %v", text, from, mappedTwo)
		}
		if !hairpin && text != "straight" {
			t.Errorf("no hairpin: got %q from %v", text, from)
		}
		for ; text != "straight"; text, _ = one.receive() {
		}
		server.send(mappedOne, "from outside")
		if text, from := one.receive(); text != "from outside" || from != server.addr {
			t.Errorf("hairpin %v: got %q from %v, want it from %v", hairpin, text, from, server.addr)
		}
	}
	l := newLab(t, Options{})
	if _, err := l.Router("router", RouterOptions{NAT: Symmetric, Hairpin: true}); err == nil {
		t.Error("a symmetric router took the hairpin option")
	}
}

func TestForwardPort(t *testing.T) {
	s := newNATSite(t, PortRestricted)
	inside := s.router.lab.hosts["inside"]
	if err := s.router.ForwardPort("udp", 45000, inside, 4500); err != nil {
		t.Fatal(err)
	}
	public := netip.AddrPortFrom(s.router.WAN(), 45000)
	s.outside[0].send(public, "unasked")
	if text, from := s.inside.receive(); text != "unasked" || from != s.outside[0].addr {
		t.Errorf("got %q from %v", text, from)
	}
	s.inside.send(s.outside[0].addr, "answer")
	if text, from := s.outside[0].receive(); text != "answer" || from != public {
		t.Errorf("got %q from %v, want it from %v", text, from, public)
	}
	if err := s.router.ForwardPort("udp", 45001, s.server1, 4500); err == nil {
		t.Error("forwarded to a host outside of the lan")
	}
}

func TestRebootForgetsMappings(t *testing.T) {
	for _, kind := range []NATKind{PortRestricted, AddressRestricted} {
		t.Run(kind.String(), func(t *testing.T) {
			s := newNATSite(t, kind)
			s.inside.send(s.outside[0].addr, "open")
			_, mapped := s.outside[0].receive()
			if err := s.router.Reboot(); err != nil {
				t.Fatal(err)
			}
			s.poke(t, s.outside[0], mapped, "after the reboot")
			s.inside.send(s.outside[0].addr, "open again")
			s.outside[0].receive()
			s.outside[0].send(mapped, "answer")
			if text, _ := s.inside.receive(); text != "answer" {
				t.Errorf("%q came through a mapping from before the reboot", text)
			}
		})
	}
}

func TestAddressChange(t *testing.T) {
	s := newNATSite(t, FullCone)
	old := s.router.WAN()
	changed := netip.MustParseAddr("198.51.100.77")
	if err := s.router.SetPublicAddr(changed); err != nil {
		t.Fatal(err)
	}
	s.inside.send(s.outside[0].addr, "from the new address")
	if _, from := s.outside[0].receive(); from.Addr() != changed || s.router.WAN() != changed {
		t.Errorf("seen from %v, router says %v; want %v instead of %v", from, s.router.WAN(), changed, old)
	}
	addHost(t, s.router.lab, "heir", HostOptions{Addr: old}) // the old address is free again
}

func TestCarrierNAT(t *testing.T) {
	l := newLab(t, Options{})
	server := listen(t, addHost(t, l, "server", HostOptions{}), 1000)
	carrier := addRouter(t, l, "carrier", RouterOptions{NAT: Symmetric, LAN: netip.MustParsePrefix("100.64.0.0/24")})
	home := addRouter(t, l, "home", RouterOptions{NAT: FullCone, Carrier: carrier})
	edge := listen(t, addHost(t, l, "edge", HostOptions{Router: home}), 4500)
	edge.send(server.addr, "out")
	_, from := server.receive()
	if from.Addr() != carrier.WAN() {
		t.Errorf("seen from %v, want the carrier's %v", from, carrier.WAN())
	}
	server.send(from, "back")
	if text, _ := edge.receive(); text != "back" {
		t.Errorf("got %q", text)
	}
	if got := home.lab.hosts["edge"].Outside(); got != carrier.Host {
		t.Errorf("the edge's packets reach the internet by %s, want the carrier", got.Name())
	}
	if !carrier.LAN().Contains(home.WAN()) {
		t.Errorf("home router's wan %v is not on the carrier's lan %v", home.WAN(), carrier.LAN())
	}
}

func TestIPv6Firewall(t *testing.T) {
	for _, kind := range []NATKind{PortRestricted, None} {
		t.Run(kind.String(), func(t *testing.T) {
			l := newLab(t, Options{})
			server := addHost(t, l, "server", HostOptions{Addr: netip.MustParseAddr("2001:db8::1")})
			r := addRouter(t, l, "router", RouterOptions{NAT: kind, LAN6: netip.MustParsePrefix("2001:db8:1::/64")})
			inside := addHost(t, l, "inside", HostOptions{Router: r})
			asked, stranger := listen(t, server, 1000), listen(t, server, 2000)
			conn, err := inside.ListenUDP(netip.AddrPortFrom(inside.Addr6(), 4500))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			edge := socket{conn, t, netip.AddrPortFrom(inside.Addr6(), 4500)}
			edge.send(asked.addr, "open")
			if _, from := asked.receive(); from != edge.addr {
				t.Errorf("seen from %v, want %v untranslated", from, edge.addr)
			}
			stranger.send(edge.addr, "unasked")
			asked.send(edge.addr, "answer")
			want := map[NATKind]string{PortRestricted: "answer", None: "unasked"}[kind]
			if text, _ := edge.receive(); text != want {
				t.Errorf("first packet in is %q, want %q", text, want)
			}
		})
	}
}

func TestShortMappingTimeout(t *testing.T) {
	l := newLab(t, Options{})
	server := listen(t, addHost(t, l, "server", HostOptions{}), 1000)
	r := addRouter(t, l, "router", RouterOptions{NAT: FullCone, UDPTimeout: time.Second})
	inside := listen(t, addHost(t, l, "inside", HostOptions{Router: r}), 4500)
	inside.send(server.addr, "open")
	_, mapped := server.receive()
	until(t, "the mapping expires", func() bool {
		flows, err := r.Run(t.Context(), "conntrack", "-L", "-p", "udp")
		if err != nil {
			t.Fatal(err)
		}
		table, err := r.Run(t.Context(), "nft", "list", "map", "ip", "nat", "inward")
		if err != nil {
			t.Fatal(err)
		}
		return !strings.Contains(flows, "dport=1000") && !strings.Contains(table, "elements")
	})
	natSite{router: r}.poke(t, server, mapped, "too late")
	inside.send(server.addr, "open again")
	_, mapped = server.receive()
	server.send(mapped, "in time")
	if text, _ := inside.receive(); text != "in time" {
		t.Errorf("%q came in", text)
	}
}
