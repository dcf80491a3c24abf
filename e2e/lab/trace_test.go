package lab

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"
)

func TestUDPMessage(t *testing.T) {
	stun := func(typ uint16) []byte {
		b := make([]byte, 20)
		binary.BigEndian.PutUint16(b, typ)
		binary.BigEndian.PutUint32(b[4:], 0x2112A442)
		return b
	}
	ike := func(exchange, flags byte) []byte {
		b := make([]byte, 28)
		b[0], b[18], b[19] = 0xaa, exchange, flags
		return b
	}
	marked := func(b []byte) []byte { return append(make([]byte, 4), b...) }
	for _, tt := range []struct {
		src, dst uint16
		data     []byte
		want     string
	}{
		{4500, 3478, stun(0x0001), "STUN Binding request"},
		{4500, 7777, stun(0x0011), "STUN Binding indication"},
		{3478, 4500, stun(0x0101), "STUN Binding success response"},
		{3478, 4500, stun(0x0111), "STUN Binding error response"},
		{3478, 4500, stun(0x0113), "STUN method 3 error response"},
		{4500, 4500, []byte{0xff}, "NAT-T keepalive"},
		{500, 500, ike(34, 0x08), "IKE_SA_INIT request"},
		{20001, 4500, marked(ike(35, 0x20)), "IKE_AUTH response"},
		{20001, 31234, marked(ike(36, 0x08)), "CREATE_CHILD_SA request"},
		{4500, 4500, marked(ike(99, 0)), "IKE exchange 99"},
		{4500, 4500, make([]byte, 10), "IKE"},
		{4500, 31234, []byte{1, 2, 3, 4, 0, 0, 0, 1}, "ESP in UDP"},
		{1000, 2000, []byte("hello"), "UDP"},
		{1000, 2000, nil, "UDP"},
	} {
		if got := udpMessage(tt.src, tt.dst, tt.data); got != tt.want {
			t.Errorf("%d → %d, %x: %q, want %q", tt.src, tt.dst, tt.data, got, tt.want)
		}
	}
}

func TestTrace(t *testing.T) {
	a, b, from, to := pair(t, Options{})
	var seen []Packet
	stop := a.lab.Trace(func(p Packet) { seen = append(seen, p) })
	nobody := netip.MustParseAddrPort("192.0.2.99:9")
	setTTL(t, from, 2)
	from.send(to.addr, "opener")
	setTTL(t, from, 64)
	from.send(nobody, "lost")
	from.send(to.addr, "check")
	to.receive()
	to.send(from.addr, "answer")
	from.receive()
	stop()
	from.send(to.addr, "unseen")
	to.receive()

	want := []Packet{
		{From: a.Name(), To: b.Name(), Src: from.addr, Dst: to.addr, TTL: 2, Length: 34, What: "UDP", Fate: Expired},
		{From: a.Name(), Src: from.addr, Dst: nobody, TTL: 64, Length: 32, What: "UDP", Fate: NoRoute},
		{From: a.Name(), To: b.Name(), Src: from.addr, Dst: to.addr, TTL: 64, Length: 33, What: "UDP", Fate: Delivered},
		{From: b.Name(), To: a.Name(), Src: to.addr, Dst: from.addr, TTL: 64, Length: 34, What: "UDP", Fate: Delivered},
	}
	if len(seen) != len(want) {
		t.Fatalf("%d packets in the trace, want %d: %v", len(seen), len(want), seen)
	}
	for i, p := range seen {
		if i > 0 && p.At < seen[i-1].At {
			t.Errorf("packet %d is from before the one that precedes it", i)
		}
		p.At = 0
		if p != want[i] {
			t.Errorf("packet %d: %+v, want %+v", i, p, want[i])
		}
	}
	if line := seen[0].String(); !strings.Contains(line, "ttl 2") || !strings.HasSuffix(line, "(expired)") {
		t.Errorf("line %q", line)
	}
}
