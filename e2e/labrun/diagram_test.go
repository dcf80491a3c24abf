package main

import (
	"net/netip"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

func TestDraw(t *testing.T) {
	packet := func(at time.Duration, from string, src, dst uint16, ttl uint8, what string, fate lab.Fate) lab.Packet {
		to, a, b := "r", netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("203.0.113.3")
		if from == "r" {
			to, a, b = "l", b, a
		}
		return lab.Packet{At: at, From: from, To: to, Src: netip.AddrPortFrom(a, src), Dst: netip.AddrPortFrom(b, dst), TTL: ttl, What: what, Fate: fate}
	}
	const ms = time.Millisecond
	packets := []lab.Packet{
		packet(100*ms, "l", 4500, 4500, 1, "STUN Binding indication", lab.Expired),
		packet(101*ms, "r", 4500, 20001, 63, "STUN Binding request", lab.Delivered),
	}
	for i := range uint16(manyAlike) {
		packets = append(packets, packet(102*ms, "r", 4500, 20002+i, 63, "STUN Binding request", lab.Delivered))
	}
	got := draw(append(packets,
		packet(105*ms, "l", 4500, 4500, 63, "ESP in UDP", lab.Delivered),
		packet(106*ms, "l", 4500, 4500, 63, "ESP in UDP", lab.Delivered),
		packet(107*ms, "r", 4500, 4500, 63, "ESP in UDP", lab.Delivered),
		packet(108*ms, "r", 4500, 4500, 63, "NAT-T keepalive", lab.Delivered),
	), "l", "symmetric", "port-restricted")
	want := `      ms  symmetric                                              port-restricted
     0.0   4500 ───── Binding indication, TTL 1 ─────✕                     4500
     1.0  20001 ◀──────────────────── Binding request ──────────────────── 4500
     2.0                        ◀ Binding request: 8 more
     5.0   4500 ────────────────────── ESP in UDP ───────────────────────▶ 4500
     7.0   4500 ◀────────────────────── ESP in UDP ─────────────────────── 4500
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestReplacePart(t *testing.T) {
	const doc = "a\n<!-- x: generated -->\nold\n<!-- end -->\nb\n<!-- y: generated -->\n<!-- end -->\n"
	got, err := replacePart(doc, "y", "new\n")
	if want := "a\n<!-- x: generated -->\nold\n<!-- end -->\nb\n<!-- y: generated -->\nnew\n<!-- end -->\n"; err != nil || got != want {
		t.Errorf("got %q, %v", got, err)
	}
	again, err := replacePart(got, "y", "new\n")
	if err != nil || again != got {
		t.Errorf("a second time: %q, %v", again, err)
	}
	if _, err := replacePart(doc, "z", ""); err == nil {
		t.Error("no such part: no error")
	}
	if _, err := replacePart("<!-- x: generated -->\nopen", "x", ""); err == nil {
		t.Error("a part without an end: no error")
	}
}
