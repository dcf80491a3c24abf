package main

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

func TestTraceRows(t *testing.T) {
	a, b := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2")
	var packets []lab.Packet
	add := func(ms int, from, to netip.AddrPort, ttl uint8, what string, fate lab.Fate) {
		packets = append(packets, lab.Packet{At: time.Duration(ms) * time.Millisecond, Src: from, Dst: to, TTL: ttl, What: what, Fate: fate})
	}
	const opener, request = "STUN Binding indication", "STUN Binding request"
	for i := range 3 { // two kinds, interleaved
		add(100+10*i, netip.AddrPortFrom(a, 4500), netip.AddrPortFrom(b, uint16(5000+i)), 64, request, lab.Delivered)
		add(101+10*i, netip.AddrPortFrom(b, uint16(6000+i)), netip.AddrPortFrom(a, 4500), 3, opener, lab.Expired)
	}
	add(2000, netip.AddrPortFrom(a, 4500), netip.AddrPortFrom(b, 6001), 64, request, lab.Delivered)
	var out strings.Builder
	printRows(&out, rows(packets))
	want := strings.Join([]string{
		"ms        from                   to                     ttl  packets  ",
		"0.0–20.0  203.0.113.1:4500       203.0.113.2 (3 ports)  64   3        " + request,
		"1.0–21.0  203.0.113.2 (3 ports)  203.0.113.1:4500       3    3        " + opener + " (expired)",
		"1900.0    203.0.113.1:4500       203.0.113.2:6001       64   1        " + request,
		"",
	}, "\n")
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}

func TestTraceEndsWithTheTunnel(t *testing.T) {
	packet := func(from, what string) lab.Packet { return lab.Packet{From: from, What: what} }
	packets := []lab.Packet{
		packet("a", "IKE_AUTH request"), packet("a", "ESP in UDP"), packet("a", "ESP in UDP"), packet("b", "ESP in UDP"), packet("b", "ESP in UDP"),
	}
	if got := untilESP(packets); len(got) != 4 {
		t.Errorf("%d packets, want the first 4", len(got))
	}
	if got := untilESP(packets[:3]); len(got) != 3 {
		t.Errorf("%d packets of a tunnel that does not stand, want all 3", len(got))
	}
}
