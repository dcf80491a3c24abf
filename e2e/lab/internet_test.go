package lab

import (
	"fmt"
	"net/netip"
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

func TestRoute(t *testing.T) {
	v4 := []byte{0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 198, 51, 100, 7}
	sum := checksum(v4)
	v4[10], v4[11] = byte(sum>>8), byte(sum)
	v6 := make([]byte, 40)
	v6[0], v6[7], v6[24], v6[39] = 0x60, 64, 0x20, 9
	tests := []struct {
		name   string
		packet []byte
		hops   uint8
		want   string // empty: dropped
	}{
		{"v4", v4, 2, "198.51.100.7"},
		{"v4 last hop", v4, 63, "198.51.100.7"},
		{"v4 dies", v4, 64, ""},
		{"v4 short", v4[:19], 2, ""},
		{"v6", v6, 63, "2000::9"},
		{"v6 dies", v6, 64, ""},
		{"v6 short", v6[:39], 1, ""},
		{"unknown version", []byte{0x10, 0}, 1, ""},
		{"empty", nil, 1, ""},
	}
	for _, tt := range tests {
		packet := append([]byte(nil), tt.packet...)
		addr, alive := route(packet, tt.hops)
		if alive != (tt.want != "") || alive && addr.String() != tt.want {
			t.Errorf("%s: %v, %v; want %q", tt.name, addr, alive, tt.want)
		}
		if alive && addr.Is4() && checksum(packet) != 0 {
			t.Errorf("%s: header checksum is wrong after the TTL changed", tt.name)
		}
	}
}

// checksum is that of RFC 1071 over an IPv4 header; zero over a valid one.
func checksum(header []byte) uint16 {
	var sum uint32
	for i := 0; i < len(header); i += 2 {
		sum += uint32(header[i])<<8 | uint32(header[i+1])
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
