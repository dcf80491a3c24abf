package rendezvous

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"
)

var stunEpoch = time.Unix(1_700_000_000, 0)

func TestSTUNLimiterRefills(t *testing.T) {
	t.Parallel()
	const rate, burst = 10, 5
	l := newSTUNLimiter(rate, burst, 4)
	src := netip.MustParseAddr("192.0.2.1")
	steps := []struct {
		after    time.Duration // since the start
		requests int
		allowed  int
	}{
		{0, burst + 3, burst},
		{90 * time.Millisecond, 1, 0},
		{100 * time.Millisecond, 2, 1},
		{400 * time.Millisecond, 9, 3},
		{time.Hour, burst + 1, burst}, // it never holds more than the burst
	}
	for _, s := range steps {
		allowed := 0
		for range s.requests {
			if l.allow(src, stunEpoch.Add(s.after)) {
				allowed++
			}
		}
		if allowed != s.allowed {
			t.Errorf("after %v: %d of %d allowed, want %d", s.after, allowed, s.requests, s.allowed)
		}
	}
}

func TestSTUNLimiterSources(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, a, b string
		same       bool
	}{
		{"IPv4 neighbours", "192.0.2.1", "192.0.2.2", false},
		{"IPv4 and its mapped form", "192.0.2.1", "::ffff:192.0.2.1", true},
		{"one IPv6 /64", "2001:db8::1", "2001:db8::ffff:1", true},
		{"two IPv6 /64", "2001:db8::1", "2001:db8:0:1::1", false},
		{"zones", "fe80::1%a", "fe80::1%b", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newSTUNLimiter(1, 1, 4)
			if !l.allow(netip.MustParseAddr(tt.a), stunEpoch) {
				t.Fatal("the first request was refused")
			}
			if refused := !l.allow(netip.MustParseAddr(tt.b), stunEpoch); refused != tt.same {
				t.Errorf("%s and %s are one source: %v, want %v", tt.a, tt.b, refused, tt.same)
			}
		})
	}
}

func stunTestSource(i int) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, 0x0a000000+uint32(i))))
}

// However many addresses are forged, memory stays bounded, and a source over
// its limit is kept in mind while there are idle ones to forget.
func TestSTUNLimiterIsBounded(t *testing.T) {
	t.Parallel()
	const sources = 13 // out of step with the refills
	l := newSTUNLimiter(1, 1, sources)
	greedy, granted := stunTestSource(0), 0
	now := stunEpoch
	const steps, step = 1000, 250 * time.Millisecond // at most 4 of the others' buckets are not full
	for i := range steps {
		now = now.Add(step)
		l.allow(stunTestSource(1+i), now)
		if l.allow(greedy, now) {
			granted++
		}
	}
	if most := int(steps*step/time.Second) + 1; granted == 0 || granted > most {
		t.Errorf("the greedy source was granted %d requests, want 1 to %d", granted, most)
	}

	for i := range 1000 { // none is idle
		if !l.allow(stunTestSource(5000+i), now) {
			t.Fatalf("new source %d refused", i)
		}
	}
	if len(l.slots) != sources || cap(l.slots) != sources || len(l.index) != sources {
		t.Errorf("%d slots of %d, %d indexed; want %d", len(l.slots), cap(l.slots), len(l.index), sources)
	}
	for source, i := range l.index {
		if l.slots[i].source != source {
			t.Errorf("slot %d holds %s, index says %s", i, l.slots[i].source, source)
		}
	}
}
