package access

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func wrong() bool { return false }
func right() bool { return true }

func TestLimiter(t *testing.T) {
	a, b := netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.2")
	six, neighbour, other := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"), netip.MustParseAddr("2001:db8:0:1::1")
	var l Limiter
	for _, tt := range []struct {
		at     time.Duration
		from   netip.Addr
		verify func() bool
		wait   time.Duration
		ok     bool
	}{
		{0, a, right, 0, true},
		{0, a, wrong, 0, false}, {0, a, wrong, 0, false}, {0, a, wrong, 0, false}, {0, a, wrong, 0, false}, {0, a, wrong, 0, false},
		{0, a, right, 12 * time.Second, false},
		{0, netip.AddrFrom16(a.As16()), right, 12 * time.Second, false}, // the same address
		{0, b, right, 0, true},
		{5 * time.Second, a, wrong, 7 * time.Second, false},
		{12 * time.Second, a, right, 0, true},
		{12 * time.Second, a, wrong, 0, false},
		{12 * time.Second, a, right, 12 * time.Second, false},
		{2 * time.Minute, a, wrong, 0, false}, {2 * time.Minute, a, wrong, 0, false}, {2 * time.Minute, a, right, 0, true},
		{0, six, wrong, 0, false}, {0, neighbour, wrong, 0, false}, {0, six, wrong, 0, false}, {0, neighbour, wrong, 0, false}, {0, six, wrong, 0, false},
		{0, neighbour, right, 12 * time.Second, false}, // of one customer
		{0, other, right, 0, true},
		{0, netip.Addr{}, right, 0, true},
	} {
		if wait, ok := l.Check(tt.from, noon.Add(tt.at), tt.verify); wait != tt.wait || ok != tt.ok {
			t.Errorf("%s after %s: %v, %t; want %v, %t", tt.from, tt.at, wait, ok, tt.wait, tt.ok)
		}
	}
}

// A burst is counted, too.
func TestLimiterTakesOneAtATime(t *testing.T) {
	var l Limiter
	var tried atomic.Int32
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			l.Check(netip.MustParseAddr("198.51.100.1"), noon, func() bool { tried.Add(1); return false })
		})
	}
	wg.Wait()
	if n := tried.Load(); n != 5 {
		t.Errorf("%d of 100 guesses at once were tried, want 5", n)
	}
}

func TestLimiterIsBounded(t *testing.T) {
	var l Limiter
	at := netip.MustParseAddr("10.0.0.0")
	for i := range 3 * maxSources {
		l.Check(at, noon.Add(time.Duration(i)*time.Millisecond), wrong)
		at = at.Next()
		if len(l.unusedAt) > maxSources {
			t.Fatalf("%d sources kept", len(l.unusedAt))
		}
	}
	if len(l.unusedAt) < maxSources/4 {
		t.Errorf("%d sources kept: too few to be of use", len(l.unusedAt))
	}
}
