package rawudp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/internal/nstest"
)

// path is a host, two routers and a server in a row.
type path struct {
	host, near, far, server *nstest.Namespace
	here                    netip.Addr
	routers                 [2]netip.Addr
	there                   netip.Addr
	lost                    netip.Addr // an address to which far has no route
}

func newPath(t *testing.T, prefix string) path {
	t.Helper()
	at := func(suffix string) netip.Addr { return netip.MustParseAddr(prefix + suffix) }
	sep := "."
	if prefix[len(prefix)-1] == ':' {
		sep = ":"
	}
	p := path{
		host: nstest.New(t), near: nstest.New(t), far: nstest.New(t), server: nstest.New(t),
		here: at("1" + sep + "1"), routers: [2]netip.Addr{at("1" + sep + "2"), at("2" + sep + "2")},
		there: at("3" + sep + "2"), lost: at("4" + sep + "1"),
	}
	for _, router := range []*nstest.Namespace{p.near, p.far} {
		router.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1",
			"net.ipv4.icmp_ratemask=0", "net.ipv6.icmp.ratelimit=0")
	}
	nstest.Join(t, "one", p.host, p.here, p.near, p.routers[0])
	nstest.Join(t, "two", p.near, at("2"+sep+"1"), p.far, p.routers[1])
	nstest.Join(t, "three", p.far, at("3"+sep+"1"), p.server, p.there)
	p.host.Run(t, "ip", "route", "add", "default", "via", p.routers[0].String())
	p.near.Run(t, "ip", "route", "add", "default", "via", p.routers[1].String())
	p.far.Run(t, "ip", "route", "add", netip.PrefixFrom(p.here, p.here.BitLen()-8).Masked().String(), "via", at("2"+sep+"1").String())
	p.server.Run(t, "ip", "route", "add", "default", "via", at("3"+sep+"1").String())
	return p
}

func (p path) hop(ctx context.Context, to netip.AddrPort, ttl int) (from netip.Addr, err error) {
	p.host.Do(func() { from, err = Hop(ctx, PlainOptions{Addr: p.here}, to, ttl) })
	return from, err
}

func TestHop(t *testing.T) {
	t.Parallel()
	for family, prefix := range map[string]string{"IPv4": "10.9.", "IPv6": "fd00::"} {
		t.Run(family, func(t *testing.T) {
			t.Parallel()
			p := newPath(t, prefix)
			stun := listenUDP(t, p.server, netip.AddrPortFrom(p.there, 3478))
			answered := make(chan struct{})
			go func() {
				defer close(answered)
				b := make([]byte, 64)
				for {
					n, from, err := stun.ReadFromUDPAddrPort(b)
					if err != nil {
						return
					}
					_, _ = stun.WriteToUDPAddrPort(b[:n], from)
				}
			}()
			defer func() { _ = stun.Close(); <-answered }()
			silent := listenUDP(t, p.server, netip.AddrPortFrom(p.there, 3479))

			open, closed := addrPortOf(stun), netip.AddrPortFrom(p.there, 9)
			for _, tt := range []struct {
				name string
				to   netip.AddrPort
				ttl  int
				want netip.Addr
			}{
				{"expires at the near router", open, 1, p.routers[0]},
				{"expires at the far router", open, 2, p.routers[1]},
				{"answered", open, 3, p.there},
				{"answered with some to spare", open, 64, p.there},
				{"port closed", closed, 3, p.there},
				{"expires before the closed port", closed, 2, p.routers[1]},
			} {
				ctx, cancel := context.WithTimeout(t.Context(), arrival)
				if got, err := p.hop(ctx, tt.to, tt.ttl); err != nil || got != tt.want {
					t.Errorf("%s: Hop = %s, %v; want %s", tt.name, got, err, tt.want)
				}
				cancel()
			}

			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			if from, err := p.hop(ctx, addrPortOf(silent), 3); !errors.Is(err, ErrNoHop) {
				t.Errorf("silence: Hop = %s, %v; want ErrNoHop", from, err)
			}
			ctx, cancel = context.WithTimeout(t.Context(), arrival)
			defer cancel()
			if from, err := p.hop(ctx, netip.AddrPortFrom(p.lost, 9), 3); !errors.Is(err, ErrNoHop) || ctx.Err() != nil {
				t.Errorf("no route: Hop = %s, %v; want ErrNoHop at once", from, err)
			}
			if _, err := p.hop(ctx, open, 0); !errors.Is(err, ErrOptions) {
				t.Errorf("TTL 0: %v; want ErrOptions", err)
			}
		})
	}
}

func listenPlain(t *testing.T, ns *nstest.Namespace, o PlainOptions) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	var err error
	ns.Do(func() { conn, err = ListenPlain(o) })
	if err != nil {
		t.Fatalf("ListenPlain(%+v): %v", o, err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// What leaves a plain socket needs the mark and the exemption to get through.
func TestListenPlain(t *testing.T) {
	t.Parallel()
	for family, addrs := range map[string][2]netip.Addr{
		"IPv4": {netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("10.9.0.2")},
		"IPv6": {netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")},
	} {
		t.Run(family, func(t *testing.T) {
			t.Parallel()
			here, there := nstest.New(t), nstest.New(t)
			local, remote := addrs[0], addrs[1]
			nstest.Join(t, "eth0", here, local, there, remote)
			here.Nft(t, `table inet t { chain out { type filter hook output priority 0; udp dport 5000 meta mark != 0x42 drop; }; }`)
			here.Run(t, "ip", "xfrm", "policy", "add", "src", local.String(), "dst", remote.String(), "dir", "out",
				"tmpl", "src", local.String(), "dst", remote.String(), "proto", "esp", "mode", "tunnel")
			peer := listenUDP(t, there, netip.AddrPortFrom(remote, 5000))
			conn := listenPlain(t, here, PlainOptions{Addr: local, Mark: 0x42})
			if got := addrPortOf(conn); got.Addr() != local || got.Port() == 0 {
				t.Errorf("local address %s, want %s with a port", got, local)
			}
			send(t, conn, addrPortOf(peer), stunPayload("through"))
			wantPacket(t, udpReader{peer}, stunPayload("through"), addrPortOf(conn))
			send(t, peer, addrPortOf(conn), []byte("not STUN"))
			wantPacket(t, udpReader{conn}, []byte("not STUN"), addrPortOf(peer))
		})
	}
}

func TestListenPlainRefuses(t *testing.T) {
	t.Parallel()
	ns := nstest.New(t)
	for want, options := range map[error][]PlainOptions{
		ErrOptions: {
			{},
			{Addr: netip.IPv6Unspecified()},
			{Addr: netip.MustParseAddr("ff02::1")},
			{Addr: localhost4, TTL: 256},
			{Addr: localhost4, TTL: -1},
		},
		ErrNotLocal: {{Addr: netip.MustParseAddr("192.0.2.1")}},
	} {
		for _, o := range options {
			var err error
			ns.Do(func() { _, err = ListenPlain(o) })
			if !errors.Is(err, want) {
				t.Errorf("ListenPlain(%+v): %v; want %v", o, err, want)
			}
		}
	}
}
