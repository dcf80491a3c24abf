package punch

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/stun/v4"
)

var stunCred = STUNCredential{"beijing.edge1", "a password of this session"}

// loopback is a port and a STUN server on real sockets.
func loopback(t *testing.T, cred STUNCredential) (*Port, netip.AddrPort, *stunServer) {
	socket := func() net.PacketConn {
		c, err := net.ListenPacket("udp4", "127.0.0.1:0")
		must(t, err)
		return c
	}
	server := startSTUN(t, cred, map[int]int{0: 1}, socket(), socket())
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
			if other := server.addrs()[1]; res.Origin != other || res.Other != other {
				t.Errorf("%+v, want it from the other port %s, and that named", res, other)
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
		"no credential":    {STUNCredential{}, func(s *stunServer) { s.strangers.Store(false) }, ErrUnauthorised},
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

// A server behind a port mapping names its inside addresses, and a plain one
// names none.
func TestOtherAddress(t *testing.T) {
	server := netip.MustParseAddrPort("203.0.113.1:3478")
	at := func(s string) (net.IP, int) {
		a := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(s))
		return a.IP, a.Port
	}
	other := func(s string) stun.Setter {
		ip, port := at(s)
		return &stun.OtherAddress{IP: ip, Port: port}
	}
	origin := func(s string) stun.Setter {
		ip, port := at(s)
		return &stun.ResponseOrigin{IP: ip, Port: port}
	}
	for name, tc := range map[string]struct {
		attributes []stun.Setter
		want       string
	}{
		"none":                      {nil, ""},
		"another port":              {[]stun.Setter{other("203.0.113.1:3480")}, "203.0.113.1:3480"},
		"another address":           {[]stun.Setter{other("203.0.113.2:3480"), origin("203.0.113.1:3478")}, "203.0.113.2:3480"},
		"behind a port mapping":     {[]stun.Setter{other("192.168.5.2:3480"), origin("192.168.5.2:3478")}, "203.0.113.1:3480"},
		"behind two":                {[]stun.Setter{other("192.168.5.3:3480"), origin("192.168.5.2:3478")}, "203.0.113.1:3480"},
		"behind one, and says less": {[]stun.Setter{other("192.168.5.2:3480")}, "203.0.113.1:3480"},
		"nonsense":                  {[]stun.Setter{other("203.0.113.2:0")}, ""},
		"another family":            {[]stun.Setter{other("[2001:db8::1]:3480")}, ""},
		"multicast":                 {[]stun.Setter{other("224.0.0.1:3480")}, ""},
		"loopback":                  {[]stun.Setter{other("127.0.0.1:3480")}, ""},
	} {
		m := stun.MustBuild(append([]stun.Setter{stun.BindingSuccess}, tc.attributes...)...)
		var want netip.AddrPort
		if tc.want != "" {
			want = netip.MustParseAddrPort(tc.want)
		}
		if got := otherAddress(m, server); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

// Unauthenticated requests leave room for all that RFC 5780 says in an answer,
// even to a server whose answers are no longer than what was asked.
func TestRequestPadding(t *testing.T) {
	for name, ip := range map[string]net.IP{"IPv4": net.ParseIP("203.0.113.1").To4(), "IPv6": net.ParseIP("2001:db8::1")} {
		req, err := bindingRequest(BindOptions{ChangePort: true})
		must(t, err)
		res := stun.MustBuild(req, stun.BindingSuccess, &stun.XORMappedAddress{IP: ip, Port: 1},
			&stun.ResponseOrigin{IP: ip, Port: 1}, &stun.OtherAddress{IP: ip, Port: 1}, stun.Fingerprint)
		if len(res.Raw) > len(req.Raw) {
			t.Errorf("%s: %d bytes in answer to %d", name, len(res.Raw), len(req.Raw))
		}
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
