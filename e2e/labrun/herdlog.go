package main

import (
	"slices"
	"sync"
	"time"
)

// herdKind is what happened to an agent.
type herdKind int

const (
	dialled herdKind = iota
	joined
	refusedSession
	broken   // a connection that was accepted, and failed before it was joined
	ordered  // to punch
	finished // punching, or called off
)

type herdEvent struct {
	at   time.Time
	kind herdKind
	// dialled and reason are of a connection that failed.
	dialled time.Time
	reason  string
}

// herdLog is what happened to a herd, in order. It may be used from any
// goroutine.
type herdLog struct {
	mu     sync.Mutex
	events []herdEvent
}

func (l *herdLog) add(e herdEvent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e.at = time.Now()
	l.events = append(l.events, e)
}

// result is what happened since the rendezvous was killed, in figures.
// Connections that were dialled before it was started again and broke were with
// the one that died.
func (l *herdLog) result(killed, started time.Time) herdResult {
	l.mu.Lock()
	events := slices.Clone(l.events)
	l.mu.Unlock()
	events = eventsFrom(events, killed)
	orders := timesOf(events, ordered)
	faults, example := 0, ""
	for _, e := range events {
		failed := e.kind == broken && e.dialled.After(started)
		if failed {
			faults++
		}
		if failed || e.kind == refusedSession {
			example = e.reason
		}
	}
	return herdResult{
		DialsPeak:    peakPerSecond(timesOf(events, dialled)),
		SessionsPeak: peakPerSecond(timesOf(events, joined)),
		Orders:       len(orders), OrdersPeak: peakPerSecond(orders), OrdersInFlight: peakInFlight(events),
		Refused: len(timesOf(events, refusedSession)), Broken: faults, Example: example,
	}
}

// eventsFrom is the events from a time on; they are in order.
func eventsFrom(events []herdEvent, t time.Time) []herdEvent {
	i, _ := slices.BinarySearchFunc(events, t, func(e herdEvent, t time.Time) int { return e.at.Compare(t) })
	return events[i:]
}

func timesOf(events []herdEvent, kind herdKind) []time.Time {
	var at []time.Time
	for _, e := range events {
		if e.kind == kind {
			at = append(at, e.at)
		}
	}
	return at
}

// peakPerSecond is the most events within any second.
func peakPerSecond(at []time.Time) int {
	peak, first := 0, 0
	for i := range at {
		for at[i].Sub(at[first]) >= time.Second {
			first++
		}
		peak = max(peak, i-first+1)
	}
	return peak
}

// peakInFlight is the most orders at one moment that had not ended.
func peakInFlight(events []herdEvent) int {
	peak, now := 0, 0
	for _, e := range events {
		switch e.kind {
		case ordered:
			now++
		case finished:
			now--
		}
		peak = max(peak, now)
	}
	return peak
}
