package agent

import (
	"sync"
	"time"

	"github.com/bodkin-net/bodkin/agent/charon"
)

// When the counters of a tunnel give reason to look at its path.
const (
	// silentAfter is for bytes that leave while none return: above the round trip
	// and the think time of almost everything that answers at all.
	silentAfter = 500 * time.Millisecond
	// silentAfterMax is what it doubles to while looks find the path alive. It is
	// above answerEvery, so that one-way traffic to a peer that answers it with
	// probes is soon no reason any more.
	silentAfterMax = 2 * time.Second
	// silentForgotten is how long after the last look without a finding silence
	// is as suspicious as ever.
	silentForgotten = 10 * time.Second
	// denseIn is how many packets would have come in since the last look, at the
	// rate that they did before, for their absence to be a reason at once. Of
	// packets that come at random moments none does once in 400 times.
	denseIn = 6
	// sparseOut is how few packets that leave are no reason: one may get lost.
	sparseOut = 2

	// stoppedAfter is for traffic that went both ways and has stopped altogether:
	// a transfer that is done, or a path that died with a peer who was sending.
	stoppedAfter = 600 * time.Millisecond
	// stoppedEvery is between looks for that reason, which is a weak one, in the
	// long run; stoppedAtOnce is how many there may be at a time.
	stoppedEvery  = 5 * time.Second
	stoppedAtOnce = 3
	// busyRate is how many packets a second make traffic whose end is a reason, or
	// busyIn of them between two looks.
	busyRate = 5
	busyIn   = 5

	// answerEvery is between probes to a peer whose traffic gets no answer, for
	// its counters' sake; answerFrom is how many packets of it get one. Probes are
	// traffic, too: below two, two agents would answer each other for ever.
	answerEvery = time.Second
	answerFrom  = 3

	// excusedFor is how long after a look that found the path alive packets that
	// leave are no reason for another: they may be its last probes.
	excusedFor = 500 * time.Millisecond

	// swallowsAfter is how long a tunnel that nobody watches may be deaf while an
	// attempt for a better one is under way, swallowsUnprobed without any: nobody
	// probes then, and a peer answers one-way traffic within two seconds.
	// swallowsFrom is how many packets have to be lost on it by then.
	swallowsAfter    = 1500 * time.Millisecond
	swallowsUnprobed = 5 * time.Second
	swallowsFrom     = 5

	// rateWindow is what the rate of incoming packets is averaged over.
	rateWindow = 500 * time.Millisecond
	// oneFlow is how close in time bytes in and out have to be seen to prove that
	// the path carries both ways.
	oneFlow = 1200 * time.Millisecond
)

// sighting is what a look at a tunnel's counters has shown.
type sighting struct {
	// bothWays: authentic bytes pass in both directions.
	bothWays bool
	// suspect: look at the path now. weak says that there may well be nothing
	// wrong: traffic has stopped.
	suspect, weak bool
	// answer: send a probe, for the peer to see that its traffic arrives.
	answer bool
}

// traffic judges one tunnel by charon's counters, look by look. It is pure: the
// time is an argument. The zero value is ready.
type traffic struct {
	counted []childCount // at the last look
	at      time.Time    // of the last look, zero before the first

	rate            float64   // of packets coming in, a second
	lastIn, lastOut time.Time // when packets were last seen to have passed
	inSinceOut      uint64    // packets that came since one left
	outSinceIn      uint64
	// silentSince is when packets began to leave without any coming in, zero
	// while some do. Up to excused there is another explanation.
	silentSince, excused time.Time
	// suspected is the last time that anything was suspected, unfounded how often
	// it was since all was well.
	suspected time.Time
	unfounded int
	busy      bool // traffic went both ways, and its end has given no look yet
	// stopsUntil is when all of stoppedAtOnce may be used again.
	stopsUntil time.Time
	answered   time.Time
}

// childCount are the packets of one CHILD SA.
type childCount struct {
	id      charon.ChildID
	in, out uint64
}

// look takes the tunnel's SAs as charon lists them at now.
func (t *traffic) look(now time.Time, sas []charon.SA) (s sighting) {
	in, out := t.count(sas)
	before := t.at
	t.at = now
	if before.IsZero() || !now.After(before) {
		return s // only now there is something to compare with
	}
	window := now.Sub(before)
	expected := t.rate * window.Seconds()
	t.pass(now, before, in, out)
	if in > 0 && t.rate >= busyRate || in >= busyIn {
		t.busy = true
	}
	s.bothWays = in > 0 && now.Sub(t.lastOut) <= oneFlow && !t.lastOut.IsZero()
	s.suspect = t.silent(now, in, expected)
	if !s.suspect && t.stopped(now, in, out) {
		s.suspect, s.weak = true, true
	}
	if s.suspect {
		t.suspected = now
	}
	if t.inSinceOut >= answerFrom && now.Sub(t.answered) >= answerEvery {
		t.answered, s.answer = now, true
	}
	weight := min(1, window.Seconds()/rateWindow.Seconds())
	t.rate += weight * (float64(in)/window.Seconds() - t.rate)
	return s
}

// count returns what has passed since the last look. A CHILD SA that was not
// there yet has counted from 0; one that has gone is forgotten.
func (t *traffic) count(sas []charon.SA) (in, out uint64) {
	old := t.counted
	t.counted = make([]childCount, 0, len(old))
	for _, sa := range sas {
		for _, c := range sa.Children {
			is := childCount{c.ID, c.PacketsIn, c.PacketsOut}
			t.counted = append(t.counted, is)
			was := childCount{}
			for _, o := range old {
				if o.id == is.id {
					was = o
				}
			}
			in += is.in - min(is.in, was.in)
			out += is.out - min(is.out, was.out)
		}
	}
	return in, out
}

// pass notes packets that passed between two looks.
func (t *traffic) pass(now, before time.Time, in, out uint64) {
	if out > 0 {
		t.lastOut, t.inSinceOut = now, 0
		t.outSinceIn += out
	}
	if in > 0 {
		t.lastIn, t.silentSince, t.outSinceIn = now, time.Time{}, 0
		if out == 0 {
			t.inSinceOut += in
		}
		if now.Sub(t.suspected) >= silentForgotten {
			t.unfounded = 0
		}
	} else if out > 0 && t.silentSince.IsZero() && now.After(t.excused) {
		t.silentSince = before.Add(now.Sub(before) / 2) // somewhere in between
	}
	if in == 0 && out > 0 {
		t.busy = false // silence says more
	}
}

// excuse says that a look at that time has found the path alive.
func (t *traffic) excuse(at time.Time) {
	if until := at.Add(excusedFor); until.After(t.excused) {
		t.excused, t.silentSince, t.outSinceIn = until, time.Time{}, 0
	}
}

// silent reports whether bytes leave and suspiciously none return.
func (t *traffic) silent(now time.Time, in uint64, expected float64) bool {
	if in > 0 || t.silentSince.IsZero() || t.outSinceIn < sparseOut {
		return false
	}
	since := t.silentSince
	if t.suspected.After(since) {
		since = t.suspected
	} else if expected >= denseIn {
		t.unfounded++
		return true
	}
	if now.Sub(since) < min(silentAfter<<min(t.unfounded, 8), silentAfterMax) {
		return false
	}
	t.unfounded++
	return true
}

// stopped reports whether traffic that went both ways has come to an end. A look
// that may not be yet is made up for.
func (t *traffic) stopped(now time.Time, in, out uint64) bool {
	if !t.busy || in > 0 || out > 0 || now.Sub(t.lastIn) < stoppedAfter {
		return false
	}
	if t.stopsUntil.Sub(now) > (stoppedAtOnce-1)*stoppedEvery {
		return false
	}
	t.busy = false
	if t.stopsUntil.Before(now) {
		t.stopsUntil = now
	}
	t.stopsUntil = t.stopsUntil.Add(stoppedEvery)
	return true
}

// deaf is how long bytes have been leaving while none returned.
func (t *traffic) deaf(now time.Time) time.Duration {
	if t.silentSince.IsZero() {
		return 0
	}
	return now.Sub(t.silentSince)
}

// swallows reports whether a tunnel that nobody watches is of no use any more.
func (t *traffic) swallows(now time.Time, attempted bool) bool {
	after := swallowsUnprobed
	if attempted {
		after = swallowsAfter
	}
	return t.deaf(now) >= after && t.outSinceIn >= swallowsFrom
}

// flow tells a run what the daemon sees of its tunnel's traffic. Its methods may
// be called from any goroutine; the zero value is ready.
type flow struct {
	mu       sync.Mutex
	bothWays time.Time     // last seen
	deaf     time.Duration // as of at
	at       time.Time
	alive    time.Time // when a look last found it so
}

func (f *flow) seen(now time.Time, bothWays bool, deaf time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if bothWays {
		f.bothWays = now
	}
	f.deaf, f.at = deaf, now
}

// excuse notes that a look has found the tunnel alive.
func (f *flow) excuse(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.alive, f.deaf = now, 0
}

// excused is when a look last found the tunnel alive, zero for never.
func (f *flow) excused() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.alive
}

// lastBothWays is when bytes were last seen to pass both ways, zero for never.
func (f *flow) lastBothWays() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.bothWays
}

// deafFor is how long bytes have been leaving while none returned.
func (f *flow) deafFor(now time.Time) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.deaf == 0 {
		return 0
	}
	return f.deaf + now.Sub(f.at)
}
