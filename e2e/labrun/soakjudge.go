package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/bodkin-net/bodkin/e2e"
)

// soakFault is a fault as it happened, times counted from the start. A fault
// that still lasts has ended in the far future.
type soakFault struct {
	kind        *soakKind
	text        string
	begun, over time.Duration
	// pairs are those it befell.
	pairs map[nodePair]bool
}

const stillLasts = time.Duration(1<<63 - 1)

// silence is a row of lost pings of one pair.
type silence struct {
	pair     nodePair
	from, to time.Duration
}

// silences are the rows of lost pings in a timeline.
func silences(pair nodePair, t e2e.Timeline, start time.Time) []silence {
	var all []silence
	open := false
	for _, e := range t {
		sent := e.Sent.Sub(start)
		switch lost := e.Answered.IsZero(); {
		case lost && !open:
			all, open = append(all, silence{pair, sent, sent + e2e.StreamEvery}), true
		case lost:
			all[len(all)-1].to = sent + e2e.StreamEvery
		case open:
			all[len(all)-1].to, open = sent, false
		}
	}
	return all
}

// span is a stretch of time.
type span struct{ from, to time.Duration }

func (s span) length() time.Duration { return s.to - s.from }

// without is what is left of a stretch when others are taken out of it.
func (s span) without(others []span) []span {
	left := []span{s}
	for _, o := range others {
		var next []span
		for _, l := range left {
			if o.to <= l.from || o.from >= l.to {
				next = append(next, l)
				continue
			}
			if l.from < o.from {
				next = append(next, span{l.from, o.from})
			}
			if o.to < l.to {
				next = append(next, span{o.to, l.to})
			}
		}
		left = next
	}
	return left
}

// violation is something that must not be.
type violation struct {
	At   time.Duration `json:"-"`
	AtS  float64       `json:"at_s"`
	What string        `json:"what"`
}

func newViolation(at time.Duration, what string) violation {
	return violation{At: at, AtS: round(at.Seconds(), 2), What: what}
}

// impassable are the stretches of a silence in which nothing could pass, or
// nobody was there to mend what another fault broke.
func impassable(s silence, faults []soakFault) []span {
	var hard, impaired []span
	broken := false
	for _, f := range faults {
		if !f.explains(s) {
			continue
		}
		broken = broken || f.kind.limit > blink
		if f.kind.hard {
			hard = append(hard, span{f.begun, f.over})
		}
		if f.kind.impairs {
			impaired = append(impaired, span{f.begun, f.over})
		}
	}
	if broken {
		hard = append(hard, impaired...)
	}
	return hard
}

// allowed is how long a pair may be silent, at least a blink: the limits of all
// faults together that it may still have to recover from, or else that of one
// which is past and shows late.
func allowed(s silence, faults []soakFault) time.Duration {
	var sum, most, slower time.Duration
	for _, f := range faults {
		if !f.explains(s) {
			continue
		}
		if f.kind.limit > blink {
			most = max(most, f.kind.limit)
			if f.lastsUntil(s.from - f.kind.limit) {
				sum += f.kind.limit
			}
		}
		if f.lastsUntil(s.from - blink) {
			slower += f.kind.slows
		}
	}
	if most == 0 {
		return blink
	}
	return max(sum, most) + slower
}

func (f soakFault) lastsUntil(t time.Duration) bool { return f.over == stillLasts || f.over >= t }

// explains reports whether the fault befell the pair of a silence just before
// it or meanwhile.
func (f soakFault) explains(s silence) bool {
	return f.pairs[s.pair] && f.begun <= s.to && f.lastsUntil(s.from-aftermath)
}

// judgeSilence is what is wrong with a silence, if anything is: each part of it
// in which something could have passed is judged by itself.
func judgeSilence(s silence, faults []soakFault) (violation, bool) {
	for _, part := range (span{s.from, s.to}).without(impassable(s, faults)) {
		p := silence{s.pair, part.from, part.to}
		limit := allowed(p, faults)
		if part.length() <= limit {
			continue
		}
		what := fmt.Sprintf("%s and %s silent for %.2f s, at most %.2f s", s.pair[0], s.pair[1], part.length().Seconds(), limit.Seconds())
		for _, f := range faults {
			if f.explains(p) {
				what += fmt.Sprintf("; %s %+.1f s", f.text, (f.begun - part.from).Seconds())
			}
		}
		return newViolation(part.from, what), true
	}
	return violation{}, false
}

// trickle is how much of trickleWindow a pair may be silent without a fault to
// blame, in however small parts: a path that drops each tenth packet has no
// silence worth the name.
const (
	trickle       = blink
	trickleWindow = 10 * time.Second
)

// judgeTrickle is where many small silences that no fault explains come to a
// large one. They are in order.
func judgeTrickle(all []silence, faults []soakFault) (violation, bool) {
	quiet := unblamed(all, faults)
	first, sum := 0, time.Duration(0)
	for _, s := range quiet {
		sum += s.to - s.from
		for quiet[first].from < s.to-trickleWindow {
			sum -= quiet[first].to - quiet[first].from
			first++
		}
		if at := quiet[first]; sum > trickle && at != s {
			return newViolation(at.from, fmt.Sprintf("%s and %s silent for %.2f s in all within %v, and no fault explains it", s.pair[0], s.pair[1], sum.Seconds(), trickleWindow)), true
		}
	}
	return violation{}, false
}

// unblamed are the silences that no fault explains.
func unblamed(all []silence, faults []soakFault) []silence {
	return slices.DeleteFunc(slices.Clone(all), func(s silence) bool {
		return slices.ContainsFunc(faults, func(f soakFault) bool { return f.explains(s) })
	})
}

// unexplainedLoss counts the pings lost that no fault explains.
func unexplainedLoss(all []silence, faults []soakFault) int {
	var sum time.Duration
	for _, s := range unblamed(all, faults) {
		sum += s.to - s.from
	}
	return int(sum / e2e.StreamEvery)
}

// expelled is how long after leaving a community a node may still be heard.
const expelled = 3 * time.Second

// judgeExpulsion is where a node was reached that shared no community.
func judgeExpulsion(pair nodePair, t e2e.Timeline, start time.Time, faults []soakFault) (violation, bool) {
	for _, f := range faults {
		if f.kind.name != memberLeft || !f.pairs[pair] {
			continue
		}
		for _, e := range t {
			// Not the last ones, which may be answered after the return.
			if at := e.Sent.Sub(start); at > f.begun+expelled && at < f.over-blink && !e.Answered.IsZero() && e.Answered.Sub(start) < f.over {
				return newViolation(at, fmt.Sprintf("%s reached %s, which it shares no community with since %.2f s", pair[0], pair[1], (at-f.begun).Seconds())), true
			}
		}
	}
	return violation{}, false
}
