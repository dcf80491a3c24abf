package access

import (
	"net/netip"
	"sync"
	"time"
)

const (
	// failurePause is how often a source may fail in the long run, and
	// failureDepth how many times at once, in that measure: five. A person
	// mistypes a few times; whoever guesses has 300 guesses an hour.
	failurePause = 12 * time.Second
	failureDepth = 5 * failurePause
	// maxSources bounds the limiter's memory, about 1 MB.
	maxSources = 10_000
	// sourceBits6 is what one customer has at the least of IPv6 (RFC 6177).
	sourceBits6 = 64
)

// Limiter bounds how often one source may fail to prove itself. The zero value is
// ready. It is safe for concurrent use; what it verifies, it verifies one at a
// time, so that no burst of guesses passes before the first has failed.
type Limiter struct {
	mu sync.Mutex
	// unusedAt is when none of what a source may do at once would be used up
	// (GCRA). Who is not in it has not failed for long.
	unusedAt map[netip.Prefix]time.Time
}

// Check runs verify unless source has failed too often, when it returns how long
// to wait instead. It must be asked also of those who know the secret: otherwise
// it would not bound guessing.
func (l *Limiter) Check(source netip.Addr, now time.Time, verify func() bool) (wait time.Duration, ok bool) {
	key := sourceOf(source)
	l.mu.Lock()
	defer l.mu.Unlock()
	at := l.unusedAt[key]
	if at.Before(now) {
		at = now
	}
	if wait := at.Add(failurePause).Sub(now) - failureDepth; wait > 0 {
		return wait, false
	}
	if verify() {
		return 0, true
	}
	l.failed(key, at.Add(failurePause), now)
	return 0, false
}

// failed keeps a failure. Without room it forgets another source, one that may
// fail again anyway if some looks find one: who has so many addresses gains little
// by that.
func (l *Limiter) failed(key netip.Prefix, until, now time.Time) {
	if l.unusedAt == nil {
		l.unusedAt = map[netip.Prefix]time.Time{}
	}
	if _, known := l.unusedAt[key]; !known && len(l.unusedAt) >= maxSources {
		const looks = 16
		var other netip.Prefix
		n := 0
		for source, at := range l.unusedAt { // in no order
			other = source
			if n++; n == looks || !at.After(now) {
				break
			}
		}
		delete(l.unusedAt, other)
	}
	l.unusedAt[key] = until
}

func sourceOf(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := a.BitLen()
	if a.Is6() {
		bits = sourceBits6
	}
	p, _ := a.Prefix(bits) // the zero prefix for an address that is none
	return p
}
