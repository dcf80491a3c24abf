package agent

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/pion/stun/v4"

	"github.com/bodkin-net/bodkin/punch"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// changeRequest is RFC 5780 section 7.2's attribute.
const changeRequest stun.AttrType = 0x0003

// natted is a STUN service behind which every client appears at one address, as
// behind an endpoint-independent NAT. It has two ports, and behind each one that
// it answers change requests from.
type natted struct {
	conns   [4]*net.UDPConn
	mapped  netip.AddrPort
	changes atomic.Int32 // change requests that came
	refuse  atomic.Bool  // all requests
}

// serveNATted is closed by the test's end.
func serveNATted(t *testing.T, mapped netip.AddrPort) *natted {
	t.Helper()
	s := &natted{mapped: mapped}
	for i := range s.conns {
		s.conns[i] = listenUDP(t, "127.0.0.1:0")
	}
	var serving sync.WaitGroup
	for i := range s.conns {
		serving.Go(func() { s.serve(t, i) })
	}
	t.Cleanup(func() {
		for _, c := range s.conns {
			c.Close()
		}
		serving.Wait()
	})
	return s
}

func (s *natted) serve(t *testing.T, i int) {
	b := make([]byte, 1500)
	for {
		n, from, err := s.conns[i].ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		request := &stun.Message{Raw: append([]byte(nil), b[:n]...)}
		if request.Decode() != nil {
			continue
		}
		content := []stun.Setter{stun.BindingSuccess, &stun.XORMappedAddress{IP: s.mapped.Addr().AsSlice(), Port: int(s.mapped.Port())}}
		if s.refuse.Load() {
			content = []stun.Setter{stun.BindingError, stun.CodeUnknownAttribute}
		}
		answer, err := stun.Build(append(content, stun.NewTransactionIDSetter(request.TransactionID))...)
		if err != nil {
			t.Errorf("answer: %v", err)
			return
		}
		out := s.conns[i]
		if request.Contains(changeRequest) {
			s.changes.Add(1)
			out = s.conns[(i+2)%len(s.conns)]
		}
		_, _ = out.WriteToUDPAddrPort(answer.Raw, from)
	}
}

// up opens a session with that STUN service.
func (s *natted) up() *linkUp { return upWith(s.conns[:]...) }

func upWith(conns ...*net.UDPConn) *linkUp {
	up := &linkUp{server: netip.MustParseAddr("127.0.0.1"), welcome: &wire.Welcome{}}
	for _, c := range conns {
		up.welcome.STUNPorts = append(up.welcome.STUNPorts, c.LocalAddr().(*net.UDPAddr).AddrPort().Port())
	}
	return up
}

func listenUDP(t *testing.T, addr string) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr)))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// newWatch is a networkWatch on a port at local.
func newWatch(t *testing.T, local string, f family) (*networkWatch, <-chan networkSeen) {
	t.Helper()
	port, err := punch.NewPort([]net.PacketConn{listenUDP(t, local)}, discardLog)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { port.Close() })
	out := make(chan networkSeen)
	return &networkWatch{family: f, port: port, dialer: outsideDialer(0, nil), out: out, look: make(chan struct{}, 1)}, out
}

// run runs a session of w until the test ends, or stop is called.
func (w *networkWatch) run(t *testing.T, up *linkUp) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { w.session(ctx, up) })
	stop = func() {
		cancel()
		running.Wait()
	}
	t.Cleanup(stop)
	return stop
}

// The mapped address is told as soon as it is known, the behaviour when it is. A
// later session tells both at once and does not ask again.
func TestNetworkWatch(t *testing.T) {
	mapped := netip.MustParseAddrPort("203.0.113.7:41000")
	server := serveNATted(t, mapped)
	w, events := newWatch(t, "127.0.0.1:0", ipv4)
	stop := w.run(t, server.up())
	if n := receive(t, events, "observation"); n.mapped != mapped || n.discovered || n.base != w.port.Local()[0] {
		t.Errorf("first %+v; want the mapped address %s alone", n, mapped)
	}
	n := receive(t, events, "discovery")
	if nat := n.nat; n.mapped != mapped || !n.discovered || !nat.Present || nat.Mapping != wire.EndpointIndependent ||
		nat.Filtering != wire.EndpointIndependent {
		t.Errorf("then %+v; want what the NAT does", n)
	}
	stop()

	asked := server.changes.Load()
	w.run(t, server.up())
	if again := receive(t, events, "second session"); again != n {
		t.Errorf("second session: %+v; want %+v", again, n)
	}
	w.look <- struct{}{} // taken when the look after the telling is over
	w.look <- struct{}{}
	if now := server.changes.Load(); now != asked || asked == 0 {
		t.Errorf("%d change requests, then %d more; want none in the second session", asked, now-asked)
	}
}

func TestNetworkWatchSaysWhyNot(t *testing.T) {
	silent := listenUDP(t, "127.0.0.1:0")
	t.Cleanup(func() { silent.Close() })
	tests := []struct {
		name, local string
		family      family
		up          *linkUp
		reason      string
		noWay       bool
	}{
		{"no STUN service", "127.0.0.1:0", ipv4, upWith(silent), "STUN service does not answer", false},
		{"another route", "127.0.0.2:0", ipv4, upWith(silent), "leaves from 127.0.0.1", true},
		{"no address in the family", "127.0.0.1:0", ipv6, upWith(silent), "names no IPv6 address", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // one waits for all retransmissions
			w, events := newWatch(t, tt.local, tt.family)
			w.run(t, tt.up)
			n := receive(t, events, "word on the network")
			if n.family != tt.family || n.err == nil || !strings.Contains(n.err.Error(), tt.reason) || errors.Is(n.err, errNoWay) != tt.noWay {
				t.Errorf("network %+v; want %q, no way %v", n, tt.reason, tt.noWay)
			}
		})
	}
}

// The route leaves from an address that the agent does not have open. That is
// told once, not with each look.
func TestNetworkWatchSaysOnceThatABaseIsMissing(t *testing.T) {
	silent := listenUDP(t, "127.0.0.1:0")
	defer silent.Close()
	w, _ := newWatch(t, "127.0.0.2:0", ipv4)
	service, err := stunServiceOf(upWith(silent), ipv4)
	if err != nil {
		t.Fatal(err)
	}
	first, second := w.observe(t.Context(), service), w.observe(t.Context(), service)
	if !errors.Is(first.err, punch.ErrNoBase) || !errors.Is(first.err, errNoWay) {
		t.Errorf("error %v; want no way out, for want of a base", first.err)
	}
	if !second.same(first) {
		t.Errorf("%q is news after %q", second.err, first.err)
	}
}

func TestSTUNServiceOf(t *testing.T) {
	v4, v6, other := netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("198.51.100.2")
	at := func(a netip.Addr, ports ...uint16) (out [4]netip.AddrPort) {
		for i, p := range ports {
			out[i] = netip.AddrPortFrom(a, p)
		}
		return out
	}
	tests := []struct {
		name   string
		server netip.Addr
		ports  []uint16
		addrs  []netip.Addr
		family family
		want   [4]netip.AddrPort // none: an error
	}{
		{"all ports", v4, []uint16{1, 2, 3, 4}, nil, ipv4, at(v4, 1, 2, 3, 4)},
		{"no alternates", v4, []uint16{1, 2}, nil, ipv4, at(v4, 1, 2)},
		{"one port", v4, []uint16{1}, nil, ipv4, at(v4, 1, 1)},
		{"the address that was dialled", v4, []uint16{1, 2}, []netip.Addr{other, v6}, ipv4, at(v4, 1, 2)},
		{"other family", v4, []uint16{1, 2}, []netip.Addr{other, v6}, ipv6, at(v6, 1, 2)},
		{"dialled over IPv6", v6, []uint16{1, 2}, []netip.Addr{other, v4}, ipv4, at(other, 1, 2)},
		{"no address of the family", v4, []uint16{1, 2}, []netip.Addr{other}, ipv6, [4]netip.AddrPort{}},
	}
	for _, tt := range tests {
		up := &linkUp{server: tt.server, welcome: &wire.Welcome{STUNPorts: tt.ports, STUNAddrs: tt.addrs, STUNUsername: "u", STUNPassword: "p"}}
		s, err := stunServiceOf(up, tt.family)
		if s.servers != tt.want || (err != nil) != (tt.want == [4]netip.AddrPort{}) {
			t.Errorf("%s: %v, error %v; want %v", tt.name, s.servers, err, tt.want)
		}
		if want := (punch.STUNCredential{Username: "u", Password: "p"}); s.cred != want {
			t.Errorf("%s: credential %+v; want %+v", tt.name, s.cred, want)
		}
	}
}

func TestBaseFor(t *testing.T) {
	bases := []netip.AddrPort{
		netip.MustParseAddrPort("192.168.1.10:4500"), netip.MustParseAddrPort("[2001:db8:2::10]:4500"), netip.MustParseAddrPort("[2001:db8:1::10]:4500"),
	}
	tests := []struct{ name, source, want string }{
		{"a base", "192.168.1.10", "192.168.1.10:4500"},
		{"no base", "192.168.1.11", ""},
		{"a base, IPv6", "2001:db8:1::10", "[2001:db8:1::10]:4500"},
		{"temporary address", "2001:db8:1::a1b2", "[2001:db8:1::10]:4500"},
		{"another link", "2001:db8:3::10", ""},
	}
	for _, tt := range tests {
		got, ok := baseFor(netip.MustParseAddr(tt.source), bases)
		if ok != (tt.want != "") || ok && got.String() != tt.want {
			t.Errorf("%s: %v, %v; want %q", tt.name, got, ok, tt.want)
		}
	}
}
