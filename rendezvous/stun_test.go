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

// serveSTUN runs a server on two ports of addr until the test ends and checks
// that nothing is left of it.
func serveSTUN(t *testing.T, addr string, observe func(Observation)) *STUNServer {
	t.Helper()
	leaks := goleak.IgnoreCurrent()
	at := netip.AddrPortFrom(netip.MustParseAddr(addr), 0)
	s, err := ListenSTUN(STUNConfig{
		Listen:     []netip.AddrPort{at, at},
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

// stunExchange sends a request and returns the response and where it came from.
func stunExchange(t *testing.T, client *net.UDPConn, to netip.AddrPort, request []byte) (*stun.Message, netip.AddrPort) {
	t.Helper()
	if _, err := client.WriteToUDPAddrPort(request, to); err != nil {
		t.Fatalf("send to %s: %v", to, err)
	}
	if err := client.SetReadDeadline(time.Now().Add(stunTestWait)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, stunMaxRequest)
	n, from, err := client.ReadFromUDPAddrPort(b)
	if err != nil {
		t.Fatalf("response from %s: %v", to, err)
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
			s := serveSTUN(t, tt.listen, func(o Observation) { observations <- o })
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

			m, from := stunExchange(t, client, ports[1], bindingRequest(testUsername, testIntegrity))
			if got := mappedAddress(t, m); got != self || from != ports[1] || testIntegrity.Check(m) != nil {
				t.Errorf("authenticated: %s from %s, want %s from %s with MESSAGE-INTEGRITY: %s", got, from, self, ports[1], m)
			}
			o := <-observations
			if time.Since(o.At) > time.Hour {
				t.Errorf("observed at %v", o.At)
			}
			want := Observation{Username: stunTestUser, Addr: self, Local: ports[1], At: o.At, Means: o.Means}
			if !reflect.DeepEqual(o, want) {
				t.Errorf("observation %+v, want %+v", o, want)
			}

			m, from = stunExchange(t, client, ports[0], bindingRequest(testUsername, rawAttribute(stun.AttrChangeRequest, 0, 0, 0, 2), testIntegrity))
			var origin stun.ResponseOrigin
			if err := origin.GetFrom(m); err != nil || testIntegrity.Check(m) != nil {
				t.Fatalf("change port: %s: %v", m, err)
			}
			if from.Addr() != ports[0].Addr() || from.Port() == ports[0].Port() || from.Port() == ports[1].Port() || origin.String() != from.String() {
				t.Errorf("change port: from %s, RESPONSE-ORIGIN %s; want a third port of %s", from, origin, ports[0].Addr())
			}
			<-observations
			if len(observations) != 0 {
				t.Error("a plain request was observed")
			}
		})
	}
}

func TestSTUNServerCounts(t *testing.T) {
	s := serveSTUN(t, "127.0.0.1", nil)
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
	s := serveSTUN(t, "127.0.0.1", nil)
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
	s := serveSTUN(t, "127.0.0.1", nil)
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
	local := netip.MustParseAddrPort("127.0.0.1:0")
	if _, err := ListenSTUN(STUNConfig{Listen: []netip.AddrPort{local}}); err == nil {
		t.Error("one address was accepted")
	}
	held, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(local))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	taken := held.LocalAddr().(*net.UDPAddr).AddrPort()
	var sysErr *os.SyscallError
	if _, err := ListenSTUN(STUNConfig{Listen: []netip.AddrPort{local, taken}}); !errors.As(err, &sysErr) {
		t.Errorf("a taken port gave %v", err)
	}
}

// Close ends a Serve, which then has no error to tell.
func TestSTUNServerClose(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	at := netip.MustParseAddrPort("127.0.0.1:0")
	s, err := ListenSTUN(STUNConfig{Listen: []netip.AddrPort{at, at}})
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
