package punch

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/transport/v5/vnet"
)

var stunCred = STUNCredential{"beijing.edge1", "a password of this session"}

// loopback is a port and a STUN server on real sockets.
func loopback(t *testing.T, cred STUNCredential) (*Port, netip.AddrPort, *stunServer) {
	socket := func() net.PacketConn {
		c, err := net.ListenPacket("udp4", "127.0.0.1:0")
		must(t, err)
		return c
	}
	server := startSTUN(t, cred, socket(), socket())
	p := openPort(t, socket())
	return p, p.Local()[0], server
}

// onTheWAN is the same on a virtual network, for the clock of synctest.
func onTheWAN(t *testing.T, cred STUNCredential) (*Port, netip.AddrPort, *stunServer) {
	in := newInternet(t)
	n := in.addHost(in.wan, "203.0.113.5")
	in.start(cred)
	p := openPort(t, listen(t, n, "203.0.113.5:4500"))
	return p, p.Local()[0], in.stun
}

func TestBind(t *testing.T) {
	for name, cred := range map[string]STUNCredential{"plain": {}, "authenticated": stunCred} {
		t.Run(name, func(t *testing.T) {
			p, from, server := loopback(t, cred)
			res, err := p.Bind(t.Context(), from, server.addrs()[0], BindOptions{Credential: cred})
			must(t, err)
			if res.Mapped != from || res.Origin != server.addrs()[0] {
				t.Errorf("%+v, want mapped %s from %s", res, from, server.addrs()[0])
			}
			res, err = p.Bind(t.Context(), from, server.addrs()[0], BindOptions{Credential: cred, ChangePort: true})
			must(t, err)
			if res.Origin != server.addrs()[1] {
				t.Errorf("origin %s, want the other port %s", res.Origin, server.addrs()[1])
			}
			if got := p.Traffic(); got.PacketsIn != 2 || got.PacketsOut < 2 || got.BytesIn == 0 || got.BytesOut == 0 {
				t.Errorf("traffic %+v, want two packets each way", got)
			}
		})
	}
}

func TestBindFails(t *testing.T) {
	for name, tc := range map[string]struct {
		cred    STUNCredential
		prepare func(*stunServer)
		want    error
	}{
		"server silent":    {stunCred, func(s *stunServer) { s.deaf.Store(true) }, ErrTimeout},
		"wrong credential": {STUNCredential{"beijing.edge1", "wrong"}, func(*stunServer) {}, ErrUnauthorised},
		"no credential":    {STUNCredential{}, func(*stunServer) {}, ErrUnauthorised},
		"forged answer":    {stunCred, func(s *stunServer) { s.forging.Store(true) }, ErrIntegrity},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, from, server := onTheWAN(t, stunCred)
				tc.prepare(server)
				if _, err := p.Bind(t.Context(), from, server.addrs()[0], BindOptions{Credential: tc.cred}); !errors.Is(err, tc.want) {
					t.Errorf("got %v, want %v", err, tc.want)
				}
			})
		})
	}
}

func TestBindEndsWithContextAndPort(t *testing.T) {
	p, from, server := loopback(t, STUNCredential{})
	server.deaf.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	_, err := p.Bind(ctx, from, server.addrs()[0], BindOptions{})
	if !errors.Is(err, ErrTimeout) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want %v and %v", err, ErrTimeout, context.DeadlineExceeded)
	}
	if _, err := p.Bind(t.Context(), netip.MustParseAddrPort("127.0.0.1:1"), server.addrs()[0], BindOptions{}); !errors.Is(err, ErrNoBase) {
		t.Errorf("got %v, want %v", err, ErrNoBase)
	}
	must(t, p.Close())
	if _, err := p.Bind(t.Context(), from, server.addrs()[0], BindOptions{}); err == nil {
		t.Error("Bind on a closed port, want an error")
	}
}

func TestNewPortRefuses(t *testing.T) {
	any4, err := net.ListenPacket("udp4", "0.0.0.0:0")
	must(t, err)
	defer any4.Close()
	if _, err := NewPort([]net.PacketConn{any4}, testLog(t)); err == nil {
		t.Error("unspecified address, want an error")
	}
	one, err := net.ListenPacket("udp4", "127.0.0.1:0")
	must(t, err)
	defer one.Close()
	if _, err := NewPort([]net.PacketConn{one, one}, testLog(t)); err == nil {
		t.Error("the same address twice, want an error")
	}
}

func TestDiscover(t *testing.T) {
	for name, tc := range map[string]struct {
		nat                *vnet.NATType
		mapping, filtering Behaviour
	}{
		"no NAT":             {nil, EndpointIndependent, EndpointIndependent},
		"full cone":          {&fullCone, EndpointIndependent, EndpointIndependent},
		"address-restricted": {&addressRestricted, EndpointIndependent, EndpointIndependent}, // one server address cannot tell
		"port-restricted":    {&portRestricted, EndpointIndependent, AddressAndPortDependent},
		"symmetric":          {&symmetricNAT, AddressAndPortDependent, AddressAndPortDependent},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			in := newInternet(t)
			router, host, seen := in.wan, "203.0.113.5", "203.0.113.5"
			if tc.nat != nil {
				router, host, seen = in.addSite("203.0.113.10", "192.168.1", *tc.nat), "192.168.1.10", "203.0.113.10"
			}
			n := in.addHost(router, host)
			in.start(stunCred)
			p := openPort(t, listen(t, n, host+":4500"))
			got, err := Discover(t.Context(), p, p.Local()[0], in.stun.addrs(), stunCred)
			must(t, err)
			if got.Mapped.Addr().String() != seen {
				t.Errorf("mapped %s, want address %s", got.Mapped, seen)
			}
			got.Mapped = netip.AddrPort{}
			if want := (NAT{Present: tc.nat != nil, Mapping: tc.mapping, Filtering: tc.filtering}); got != want {
				t.Errorf("%+v, want %+v", got, want)
			}
		})
	}
}

func TestDiscoverBlockedAndUnauthorised(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, from, server := onTheWAN(t, stunCred)
		server.deaf.Store(true)
		got, err := Discover(t.Context(), p, from, server.addrs(), stunCred)
		must(t, err)
		if got.Blocked == "" || got.Mapped.IsValid() {
			t.Errorf("silent server: %+v, want blocked", got)
		}
		server.deaf.Store(false)
		if _, err := Discover(t.Context(), p, from, server.addrs(), STUNCredential{"x", "y"}); !errors.Is(err, ErrUnauthorised) {
			t.Errorf("wrong credential: %v, want %v", err, ErrUnauthorised)
		}
	})
}
