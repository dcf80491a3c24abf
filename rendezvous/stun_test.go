package rendezvous

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"reflect"
	"testing"
	"time"

	"github.com/pion/stun/v4"
	"go.uber.org/goleak"
)

// stunTestWait bounds the wait for what is sure to come, on any machine.
const stunTestWait = 20 * time.Second

// serveSTUN runs a server on ports of one or two addresses until the test ends
// and checks that nothing is left of it.
func serveSTUN(t *testing.T, observe func(Observation), addrs ...string) *STUNServer {
	t.Helper()
	leaks := goleak.IgnoreCurrent()
	s, err := ListenSTUN(STUNConfig{
		Listen:     anySTUNPorts(addrs...),
		Credential: stunTestAnswerer.credential,
		Observe:    observe,
	})
	if err != nil {
		t.Fatalf("ListenSTUN: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		goleak.VerifyNone(t, leaks)
	})
	return s
}

// anySTUNPorts is STUNConfig.Listen on the first and the last address.
func anySTUNPorts(addrs ...string) (at [2]netip.AddrPort) {
	at[0] = netip.AddrPortFrom(netip.MustParseAddr(addrs[0]), 0)
	at[1] = netip.AddrPortFrom(netip.MustParseAddr(addrs[len(addrs)-1]), 0)
	return at
}

// stunExchange sends a request and returns the response and where it came from.
func stunExchange(t *testing.T, client *net.UDPConn, to netip.AddrPort, request []byte) (*stun.Message, netip.AddrPort) {
	t.Helper()
	if _, err := client.WriteToUDPAddrPort(request, to); err != nil {
		t.Fatalf("send to %s: %v", to, err)
	}
	return stunReceive(t, client)
}

func stunReceive(t *testing.T, client *net.UDPConn) (*stun.Message, netip.AddrPort) {
	t.Helper()
	if err := client.SetReadDeadline(time.Now().Add(stunTestWait)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, stunMaxRequest)
	n, from, err := client.ReadFromUDPAddrPort(b)
	if err != nil {
		t.Fatalf("response to %s: %v", client.LocalAddr(), err)
	}
	m := new(stun.Message)
	if err := stun.Decode(b[:n], m); err != nil {
		t.Fatalf("response %x: %v", b[:n], err)
	}
	return m, netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

func stunClient(t *testing.T, addr string) (*net.UDPConn, netip.AddrPort) {
	t.Helper()
	client, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), 0)))
	if err != nil {
		t.Fatalf("listen: %v", err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client, client.LocalAddr().(*net.UDPAddr).AddrPort()
}

func mappedAddress(t *testing.T, m *stun.Message) netip.AddrPort {
	t.Helper()
	var mapped stun.XORMappedAddress
	if err := mapped.GetFrom(m); err != nil {
		t.Fatalf("XOR-MAPPED-ADDRESS of %s: %v", m, err)
	}
	addr, _ := netip.AddrFromSlice(mapped.IP)
	return netip.AddrPortFrom(addr.Unmap(), uint16(mapped.Port))
}

func TestSTUNServer(t *testing.T) {
	tests := []struct{ name, listen, ask, client string }{
		{"IPv4", "127.0.0.1", "127.0.0.1", "127.0.0.1"},
		{"IPv6", "::1", "::1", "::1"},
		{"all IPv4 addresses, asked at the second", "0.0.0.0", "127.0.0.2", "127.0.0.1"},
		{"all addresses, asked over IPv4", "::", "127.0.0.2", "127.0.0.1"},
		{"all addresses, asked over IPv6", "::", "::1", "::1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			observations := make(chan Observation, 10)
			s := serveSTUN(t, func(o Observation) { observations <- o }, tt.listen)
			client, self := stunClient(t, tt.client)
			var ports []netip.AddrPort
			for _, a := range s.Addrs() {
				ports = append(ports, netip.AddrPortFrom(netip.MustParseAddr(tt.ask), a.Port()))
			}

			for _, port := range ports {
				m, from := stunExchange(t, client, port, bindingRequest())
				if got := mappedAddress(t, m); got != self || from != port || len(m.Attributes) != 1 {
					t.Errorf("plain: %s from %s, want %s from %s and nothing else: %s", got, from, self, port, m)
				}
			}
			for i, port := range ports {
				m, from := stunExchange(t, client, port, bindingRequest(changePortOnly, stunPadding))
				alternate := ports[i^stunAlternate]
				if got := mappedAddress(t, m); got != self || from != alternate {
					t.Errorf("change port at %s: %s from %s, want %s from %s", port, got, from, self, alternate)
				}
				wantSTUNOrigin(t, m, from, alternate)
			}

			m, from := stunExchange(t, client, ports[1], bindingRequest(testUsername, testIntegrity))
			if got := mappedAddress(t, m); got != self || from != ports[1] || testIntegrity.Check(m) != nil {
				t.Errorf("authenticated: %s from %s, want %s from %s with MESSAGE-INTEGRITY: %s", got, from, self, ports[1], m)
			}
			wantSTUNOrigin(t, m, from, ports[3])
			o := <-observations
			if time.Since(o.At) > time.Hour {
				t.Errorf("observed at %v", o.At)
			}
			want := Observation{Username: stunTestUser, Addr: self, Local: ports[1], At: o.At, Means: o.Means}
			if !reflect.DeepEqual(o, want) {
				t.Errorf("observation %+v, want %+v", o, want)
			}
			if len(observations) != 0 {
				t.Error("a plain request was observed")
			}
		})
	}
}

var (
	changePortOnly = rawAttribute(stun.AttrChangeRequest, 0, 0, 0, changePort)
	// stunPadding makes room for all that an answer over IPv6 can say.
	stunPadding = stun.NewSoftware("forty-four bytes of padding and some more...")
)

// wantSTUNOrigin checks RESPONSE-ORIGIN and OTHER-ADDRESS.
func wantSTUNOrigin(t *testing.T, m *stun.Message, from, other netip.AddrPort) {
	t.Helper()
	var gotFrom stun.ResponseOrigin
	var gotOther stun.OtherAddress
	if err := errors.Join(gotFrom.GetFrom(m), gotOther.GetFrom(m)); err != nil {
		t.Errorf("%s: %v", m, err)
	}
	if gotFrom.String() != from.String() || gotOther.String() != other.String() {
		t.Errorf("RESPONSE-ORIGIN %s, OTHER-ADDRESS %s, want %s, %s", gotFrom, gotOther, from, other)
	}
}

// One server serves both families at the same ports.
func TestSTUNServerBothFamilies(t *testing.T) {
	s := serveSTUN(t, nil, "::")
	for _, addr := range []string{"127.0.0.1", "::1"} {
		client, self := stunClient(t, addr)
		for _, a := range s.Addrs() {
			port := netip.AddrPortFrom(netip.MustParseAddr(addr), a.Port())
			m, from := stunExchange(t, client, port, bindingRequest())
			if got := mappedAddress(t, m); got != self || from != port {
				t.Errorf("%s from %s, want %s from %s", got, from, self, port)
			}
		}
	}
}

func TestSTUNServerTwoAddresses(t *testing.T) {
	s := serveSTUN(t, nil, "127.0.0.1", "127.0.0.2")
	at := s.Addrs()
	client, _ := stunClient(t, "127.0.0.1")
	for asked, port := range at {
		for flags, via := range map[byte]int{changeIP: asked ^ 1, changePort: asked ^ 2, changeIP | changePort: asked ^ 3} {
			m, from := stunExchange(t, client, port, bindingRequest(rawAttribute(stun.AttrChangeRequest, 0, 0, 0, flags), stunPadding))
			if from != at[via] {
				t.Errorf("flags %d at %s: from %s, want %s", flags, port, from, at[via])
			}
			wantSTUNOrigin(t, m, from, at[asked^3])
		}
	}
}

// RESPONSE-PORT leads an answer to another port of the one who asked.
func TestSTUNServerResponsePort(t *testing.T) {
	s := serveSTUN(t, nil, "::")
	for _, addr := range []string{"127.0.0.1", "::1"} {
		asking, self := stunClient(t, addr)
		waiting, elsewhere := stunClient(t, addr)
		to := rawAttribute(stun.AttrResponsePort, byte(elsewhere.Port()>>8), byte(elsewhere.Port()), 0, 0)
		port := func(i int) netip.AddrPort { return netip.AddrPortFrom(self.Addr(), s.Addrs()[i].Port()) }

		if m, from := stunExchange(t, asking, port(1), bindingRequest(to)); m.Type != stun.BindingError || from != port(1) {
			t.Errorf("a stranger got %s from %s", m, from)
		}
		if _, err := asking.WriteToUDPAddrPort(bindingRequest(testUsername, changePortOnly, to, testIntegrity), port(1)); err != nil {
			t.Fatal(err)
		}
		m, from := stunReceive(t, waiting)
		if got := mappedAddress(t, m); got != self || from != port(3) || testIntegrity.Check(m) != nil {
			t.Errorf("%s from %s, want %s from %s with MESSAGE-INTEGRITY: %s", got, from, self, port(3), m)
		}
	}
}

func TestSTUNServerCounts(t *testing.T) {
	s := serveSTUN(t, nil, "127.0.0.1")
	client, _ := stunClient(t, "127.0.0.1")
	to := s.Addrs()[0]
	if _, err := client.WriteToUDPAddrPort([]byte("garbage"), to); err != nil {
		t.Fatal(err)
	}
	stunExchange(t, client, to, bindingRequest())
	stunExchange(t, client, to, bindingRequest(rawAttribute(0x7fff)))
	stunExchange(t, client, to, bindingRequest(testUsername, stun.NewShortTermIntegrity("guess")))
	stunExchange(t, client, to, bindingRequest(testUsername, testIntegrity))

	wantSTUNStats(t, s, STUNStats{Plain: 1, Authenticated: 1, Malformed: 1, Refused: 1, Unauthorised: 1, Responses: 4})
}

// wantSTUNStats waits for the counters: a response is counted after it is sent.
func wantSTUNStats(t *testing.T, s *STUNServer, want STUNStats) {
	t.Helper()
	deadline := time.Now().Add(stunTestWait)
	for s.Stats() != want && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	if got := s.Stats(); got != want {
		t.Errorf("Stats = %+v, want %+v", got, want)
	}
}

func TestSTUNServerLimitsRate(t *testing.T) {
	s := serveSTUN(t, nil, "127.0.0.1")
	const burst = 3
	s.mu.Lock()
	s.limiter.interval, s.limiter.depth = time.Hour, burst*time.Hour // no refill during the test
	s.mu.Unlock()
	client, _ := stunClient(t, "127.0.0.1")
	to := s.Addrs()[0]
	for range burst {
		stunExchange(t, client, to, bindingRequest())
	}
	if _, err := client.WriteToUDPAddrPort(bindingRequest(), to); err != nil {
		t.Fatal(err)
	}
	wantSTUNStats(t, s, STUNStats{Plain: burst, RateLimited: 1, Responses: burst})
	// Another source has its own bucket.
	other, _ := stunClient(t, "127.0.0.2")
	stunExchange(t, other, to, bindingRequest())
}

// pion's client is what the agents' ICE uses.
func TestSTUNServerWithPionClient(t *testing.T) {
	s := serveSTUN(t, nil, "127.0.0.1")
	client, err := stun.Dial("udp4", s.Addrs()[0].String())
	if err != nil {
		t.Fatalf("stun.Dial: %v", err)
	}
	var result error
	err = client.Do(stun.MustBuild(stun.TransactionID, stun.BindingRequest, stun.Fingerprint), func(e stun.Event) {
		if result = e.Error; result == nil {
			var mapped stun.XORMappedAddress
			result = errors.Join(mapped.GetFrom(e.Message), stun.Fingerprint.Check(e.Message))
		}
	})
	if err := errors.Join(err, result, client.Close()); err != nil {
		t.Fatalf("Binding: %v", err)
	}
}

func TestListenSTUNRefuses(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	held, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	taken := held.LocalAddr().(*net.UDPAddr).AddrPort()
	listen := anySTUNPorts("127.0.0.1")
	var sysErr *os.SyscallError
	for name, cfg := range map[string]STUNConfig{
		"port":      {Listen: [2]netip.AddrPort{listen[0], taken}},
		"alternate": {Listen: listen, Alternates: [2]uint16{0, taken.Port()}},
	} {
		if _, err := ListenSTUN(cfg); !errors.As(err, &sysErr) {
			t.Errorf("a taken %s gave %v", name, err)
		}
	}
}

// Close ends a Serve, which then has no error to tell.
func TestSTUNServerClose(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	s, err := ListenSTUN(STUNConfig{Listen: anySTUNPorts("127.0.0.1")})
	if err != nil {
		t.Fatalf("ListenSTUN: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	if err := s.Serve(context.Background()); err != nil {
		t.Errorf("Serve after Close: %v", err)
	}
}
