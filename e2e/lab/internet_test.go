package lab

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair is two hosts on the internet with a socket each.
func pair(t *testing.T, opts Options) (a, b *Host, from, to socket) {
	t.Helper()
	l := newLab(t, opts)
	a, b = addHost(t, l, "a", HostOptions{}), addHost(t, l, "b", HostOptions{})
	return a, b, listen(t, a, 1000), listen(t, b, 1000)
}

func setLink(t *testing.T, h *Host, link Link) {
	t.Helper()
	if err := h.SetLink(link); err != nil {
		t.Fatal(err)
	}
}

func ping(t *testing.T, from *Host, to netip.Addr, count int) PingResult {
	t.Helper()
	result, err := from.Ping(t.Context(), to, count, 20*time.Millisecond, netip.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func TestDelayAddsUp(t *testing.T) {
	a, b, _, _ := pair(t, Options{})
	setLink(t, a, Link{Delay: 30 * time.Millisecond})
	setLink(t, b, Link{Delay: 20 * time.Millisecond, Jitter: 5 * time.Millisecond})
	result := ping(t, a, b.Addr(), 5)
	if result.Sent != 5 || result.Lost() != 0 || len(result.RTTs) != 5 {
		t.Fatalf("%+v, want 5 answers", result)
	}
	for _, rtt := range result.RTTs {
		if rtt < 100*time.Millisecond {
			t.Errorf("round trip %v, want at least twice 30 ms and 20 ms", rtt)
		}
	}
}

func TestDelayKeepsOrder(t *testing.T) {
	a, _, from, to := pair(t, Options{})
	setLink(t, a, Link{Delay: 5 * time.Millisecond})
	const packets = 200
	for i := range packets {
		from.send(to.addr, fmt.Sprint(i))
	}
	for i := range packets {
		if text, _ := to.receive(); text != fmt.Sprint(i) {
			t.Fatalf("packet %s came in place of %d", text, i)
		}
	}
}

func TestLoss(t *testing.T) {
	a, b, _, _ := pair(t, Options{})
	setLink(t, b, Link{Loss: 1})
	if result := ping(t, a, b.Addr(), 3); result.Received != 0 {
		t.Errorf("%+v over a link that loses everything", result)
	}
	// Each way survives with probability 1/2: of 60, 15 answers are expected,
	// and none or all of them less than once in ten million runs.
	setLink(t, b, Link{Loss: 0.5})
	if result := ping(t, a, b.Addr(), 60); result.Received == 0 || result.Lost() == 0 {
		t.Errorf("%+v over a link that loses half", result)
	}
}

func TestLowTTLDiesOnTheWay(t *testing.T) {
	for _, hops := range []int{0, 4} {
		_, b, from, to := pair(t, Options{Hops: hops})
		if hops == 0 {
			hops = DefaultHops
		}
		setTTL(t, from, hops)
		from.send(to.addr, "opener")
		setTTL(t, from, hops+1)
		from.send(to.addr, "check")
		if text, _ := to.receive(); text != "check" {
			t.Errorf("%d hops: a packet with that TTL arrived", hops)
		}
		if traffic, _ := b.Traffic(); traffic.ReceivedPackets != 1 {
			t.Errorf("%d hops: %d packets arrived, want 1", hops, traffic.ReceivedPackets)
		}
	}
}

func setTTL(t *testing.T, s socket, ttl int) {
	t.Helper()
	raw, err := s.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var setErr error
	err = raw.Control(func(fd uintptr) { setErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TTL, ttl) })
	if err != nil || setErr != nil {
		t.Fatal(err, setErr)
	}
}

func TestSetUp(t *testing.T) {
	l := newLab(t, Options{})
	server := addHost(t, l, "server", HostOptions{})
	r := addRouter(t, l, "router", RouterOptions{NAT: PortRestricted})
	inside := addHost(t, l, "inside", HostOptions{Router: r})
	for _, node := range []*Host{server, r.Host, inside} {
		if err := node.SetUp(false); err != nil {
			t.Fatal(err)
		}
		if result, err := inside.Ping(t.Context(), server.Addr(), 1, time.Second, netip.Addr{}); err == nil && result.Received != 0 {
			t.Errorf("%s is down and ping is answered", node.Name())
		}
		if err := node.SetUp(true); err != nil {
			t.Fatal(err)
		}
		until(t, node.Name()+" is back", func() bool { return ping(t, inside, server.Addr(), 1).Received == 1 })
	}
	if err := inside.SetLink(Link{}); err == nil {
		t.Error("a host on a lan took a link to the internet")
	}
}

func TestAddresses(t *testing.T) {
	a, b, _, _ := pair(t, Options{})
	second := netip.MustParseAddr("198.51.100.9")
	if err := b.AddPublicAddr(second); err != nil {
		t.Fatal(err)
	}
	if result := ping(t, a, second, 1); result.Received != 1 {
		t.Errorf("second public address: %+v", result)
	}
	v6 := netip.MustParseAddr("2001:db8::9")
	if err := b.AddPublicAddr(v6); err != nil {
		t.Fatal(err)
	}
	if err := a.AddPublicAddr(netip.MustParseAddr("2001:db8::1")); err != nil {
		t.Fatal(err)
	}
	if result := ping(t, a, v6, 1); result.Received != 1 {
		t.Errorf("IPv6: %+v", result)
	}
	inner := netip.MustParsePrefix("10.233.66.1/24")
	if err := b.AddAddress(inner); err != nil {
		t.Fatal(err)
	}
	if result := ping(t, b, inner.Addr(), 1); result.Received != 1 {
		t.Errorf("address on lo: %+v", result)
	}
	if result := ping(t, a, inner.Addr(), 1); result.Received != 0 {
		t.Errorf("address on lo is reachable from the internet: %+v", result)
	}
	moved := netip.MustParseAddr("198.51.100.10")
	if err := a.SetPublicAddr(moved); err != nil {
		t.Fatal(err)
	}
	if result := ping(t, b, moved, 1); result.Received != 1 || a.Addr() != moved {
		t.Errorf("after the change to %v: %+v, host says %v", moved, result, a.Addr())
	}
}

func TestParseAndSpend(t *testing.T) {
	v4 := []byte{0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 198, 51, 100, 7}
	sum := checksum(v4)
	v4[10], v4[11] = byte(sum>>8), byte(sum)
	v6 := make([]byte, 40)
	v6[0], v6[6], v6[7], v6[8], v6[24], v6[39] = 0x60, 17, 64, 0x20, 0x20, 9
	tests := []struct {
		name   string
		packet []byte
		dst    string // empty: no IP packet
	}{
		{"v4", v4, "198.51.100.7"},
		{"v4 short", v4[:19], ""},
		{"v4 with options it has not", append([]byte{0x46}, v4[1:]...), ""},
		{"v6", v6, "2000::9"},
		{"v6 short", v6[:39], ""},
		{"unknown version", []byte{0x10, 0}, ""},
		{"empty", nil, ""},
	}
	for _, tt := range tests {
		packet := append([]byte(nil), tt.packet...)
		h, ok := parse(packet)
		if ok != (tt.dst != "") || ok && h.dst.String() != tt.dst {
			t.Errorf("%s: %+v, %v; want destination %q", tt.name, h, ok, tt.dst)
		}
		if !ok {
			continue
		}
		spend(packet, 63)
		if after, _ := parse(packet); h.ttl != 64 || after.ttl != 1 || h.protocol != protocolUDP {
			t.Errorf("%s: ttl %d, then %d, protocol %d; want 64, 1 and UDP", tt.name, h.ttl, after.ttl, h.protocol)
		}
		if h.dst.Is4() && checksum(packet) != 0 {
			t.Errorf("%s: header checksum is wrong after the TTL changed", tt.name)
		}
	}
}

// Each router on the way answers from an address of its own, also to who sits
// behind a NAT, and as often as it is asked.
func TestHopsAnswer(t *testing.T) {
	l := newLab(t, Options{Hops: 3})
	server := addHost(t, l, "server", HostOptions{Addr6: netip.MustParseAddr("2001:db8::1")})
	outside := addHost(t, l, "outside", HostOptions{Addr6: netip.MustParseAddr("2001:db8::2")})
	r := addRouter(t, l, "router", RouterOptions{NAT: PortRestricted, LAN6: netip.MustParsePrefix("2001:db8:1::/64")})
	inside := addHost(t, l, "inside", HostOptions{Router: r})
	for _, tt := range []struct {
		from *Host
		to   netip.Addr
		ttl  int
		want string // empty: the destination answers
	}{
		{outside, server.Addr(), 1, "198.18.0.1"},
		{outside, server.Addr(), 3, "198.18.0.3"},
		{outside, server.Addr(), 4, ""},
		{outside, server.Addr6(), 1, "2001:db8:ffff::1"},
		{outside, server.Addr6(), 3, "2001:db8:ffff::3"},
		{outside, server.Addr6(), 4, ""},
		{inside, server.Addr(), 1, r.Gateway().String()},
		{inside, server.Addr(), 2, "198.18.0.1"},
		{inside, server.Addr(), 4, "198.18.0.3"},
		{inside, server.Addr6(), 2, "2001:db8:ffff::1"},
		{inside, server.Addr6(), 5, ""},
	} {
		const count = 5
		out, err := tt.from.Run(t.Context(), "ping", "-n", "-c", fmt.Sprint(count), "-i", "0.02", "-W", "2", "-t", fmt.Sprint(tt.ttl), tt.to.String())
		if tt.want == "" {
			if err != nil {
				t.Errorf("%s → %v, ttl %d: %v", tt.from.Name(), tt.to, tt.ttl, err)
			}
			continue
		}
		if got := strings.Count(out, "From "+tt.want+" "); got != count {
			t.Errorf("%s → %v, ttl %d: %d answers from %s, want %d:\n%s", tt.from.Name(), tt.to, tt.ttl, got, tt.want, count, out)
		}
	}
}

func TestNoErrorAboutErrors(t *testing.T) {
	src, dst, router := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.7"), hopAddr(1, netip.MustParseAddr("192.0.2.1"))
	echo := append(ipHeader(src, dst, 8), 8, 0, 0, 0, 0, 0, 0, 0)
	h, _ := parse(echo)
	answer := timeExceeded(router, h, echo)
	about, ok := parse(answer)
	if !ok || about.src != router || about.dst != src || about.payload[0] != 11 {
		t.Fatalf("an echo request is answered with %x", answer)
	}
	if again := timeExceeded(router, about, answer); again != nil {
		t.Errorf("an error is answered with %x", again)
	}
	h.dst = netip.MustParseAddr("224.0.0.1")
	if answer := timeExceeded(router, h, echo); answer != nil {
		t.Errorf("a multicast is answered with %x", answer)
	}
}

func TestIPv6OnlyHost(t *testing.T) {
	l := newLab(t, Options{})
	server := addHost(t, l, "server", HostOptions{Addr6: netip.MustParseAddr("2001:db8::1")})
	r := addRouter(t, l, "router", RouterOptions{NAT: PortRestricted, LAN6: netip.MustParsePrefix("2001:db8:1::/64"), WAN6: netip.MustParseAddr("2001:db8::2")})
	h := addHost(t, l, "inside", HostOptions{Router: r, IPv6Only: true})
	if !h.Addr().Is6() || h.Addr() != h.Addr6() {
		t.Errorf("addresses %v and %v, want one of IPv6", h.Addr(), h.Addr6())
	}
	if result := ping(t, h, server.Addr6(), 1); result.Received != 1 {
		t.Errorf("over IPv6: %+v", result)
	}
	if result := ping(t, server, r.Addr6(), 1); result.Received != 1 {
		t.Errorf("the router's own IPv6 address: %+v", result)
	}
	if _, err := h.Ping(t.Context(), server.Addr(), 1, time.Second, netip.Addr{}); err == nil {
		t.Error("there is a way over IPv4")
	}
	v4 := addRouter(t, l, "v4", RouterOptions{NAT: PortRestricted})
	if _, err := l.Host("odd", HostOptions{Router: v4, IPv6Only: true}); err == nil {
		t.Error("a host without any address was made")
	}
}
