package rendezvous

import (
	"net/netip"
	"time"
)

const (
	// stunRate is the sustained number of requests per second and source. Agents
	// refresh every minute and a check of the NAT's behaviour is about ten requests,
	// so a carrier's NAT with thousands of agents behind one address fits; 200
	// answers, each hardly longer than its request (stunPlainGrowth), are no flood
	// to a victim whose address is forged.
	stunRate = 200
	// stunBurst is what a source may send at once: a site with hundreds of agents
	// whose power comes back.
	stunBurst = 2000
	// stunSources bounds the sources remembered (about 100 bytes each).
	stunSources = 16384
	// stunSweepSteps bounds the search for a slot to reuse, so that a request costs
	// the same however full the table is.
	stunSweepSteps = 8

	// A source is an IPv4 address, or the /64 that one IPv6 site commands whole.
	stunSourceBitsIPv4 = 32
	stunSourceBitsIPv6 = 64
)

// stunLimiter is a token bucket per source with bounded memory. A bucket is
// kept as the time at which it would be full again (GCRA). A full bucket says
// nothing that a new one would not, so those are the first to be forgotten;
// when there is none near the hand of the clock, the one under it goes.
//
// It is not safe for concurrent use: its owner is the STUN server, under its
// mutex.
type stunLimiter struct {
	interval time.Duration // what one request costs
	depth    time.Duration // what a full bucket holds
	index    map[netip.Prefix]int
	slots    []stunBucket // up to its capacity
	hand     int
}

type stunBucket struct {
	source netip.Prefix
	fullAt time.Time
}

// newSTUNLimiter allows each source rate requests per second and burst at
// once, and remembers at most sources of them.
func newSTUNLimiter(rate, burst, sources int) *stunLimiter {
	interval := time.Second / time.Duration(rate)
	return &stunLimiter{
		interval: interval,
		depth:    time.Duration(burst) * interval,
		index:    make(map[netip.Prefix]int),
		slots:    make([]stunBucket, 0, sources),
	}
}

// allow takes a token from the bucket of addr's source and tells whether there
// was one.
func (l *stunLimiter) allow(addr netip.Addr, now time.Time) bool {
	bucket := l.bucket(stunSourceOf(addr), now)
	fullAt := bucket.fullAt
	if fullAt.Before(now) {
		fullAt = now
	}
	fullAt = fullAt.Add(l.interval)
	if fullAt.Sub(now) > l.depth {
		return false
	}
	bucket.fullAt = fullAt
	return true
}

// stunSourceOf is the range of addresses that counts as one source.
func stunSourceOf(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap().WithZone("")
	bits := stunSourceBitsIPv6
	if addr.Is4() {
		bits = stunSourceBitsIPv4
	}
	source, _ := addr.Prefix(bits) // fails only for an invalid address, which is then one source
	return source
}

// bucket returns the slot of a source, taking a new or another's one for it if
// there is none.
func (l *stunLimiter) bucket(source netip.Prefix, now time.Time) *stunBucket {
	if i, ok := l.index[source]; ok {
		return &l.slots[i]
	}
	i := len(l.slots)
	if i < cap(l.slots) {
		l.slots = l.slots[:i+1]
	} else {
		i = l.victim(now)
		delete(l.index, l.slots[i].source)
	}
	l.slots[i] = stunBucket{source: source}
	l.index[source] = i
	return &l.slots[i]
}

// victim moves the hand to a slot with a full bucket, or by stunSweepSteps.
func (l *stunLimiter) victim(now time.Time) int {
	for range stunSweepSteps {
		l.hand = (l.hand + 1) % len(l.slots)
		if !l.slots[l.hand].fullAt.After(now) {
			break
		}
	}
	return l.hand
}
