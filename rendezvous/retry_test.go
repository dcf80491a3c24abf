package rendezvous

import (
	"fmt"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

func TestAttemptDeadline(t *testing.T) {
	tests := []struct {
		name   string
		spoken []wire.NodeName
		silent string
	}{
		{"nobody spoke", nil, "beijing.edge1 and beijing.edge2"},
		{"edge1 spoke", []wire.NodeName{edge1}, "beijing.edge2"},
		{"edge2 spoke", []wire.NodeName{edge2}, "beijing.edge1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newMachine(t, community("all", edge1, edge2))
			m.join(edge1, edge2)
			id := m.attempt(edge1, edge2)
			for _, name := range tt.spoken {
				m.report(name, m.pairs[both12].other(name), wire.OutcomeDirect, id)
			}
			if next := m.Next(); !next.Equal(m.now.Add(attemptTimeout)) {
				t.Errorf("next step %v after the order, want %v", next.Sub(m.now), attemptTimeout)
			}
			if got := m.tick(attemptTimeout - time.Nanosecond); len(got) != 0 {
				t.Errorf("before the deadline: %v", got)
			}
			wantReceivers[*wire.Cancel](t, m.tick(time.Nanosecond), edge1, edge2)
			m.wantPair(edge1, edge2, Down, false, "no report from "+tt.silent+" within 25s")
			wantReceivers[*wire.Punch](t, m.toRetry(), edge1, edge2)
		})
	}
}

func TestBackOff(t *testing.T) {
	m := newMachine(t, community("all", edge1, edge2))
	m.join(edge1, edge2)
	fail := func() time.Duration {
		m.t.Helper()
		m.after(5 * time.Second)
		m.report(edge1, edge2, wire.OutcomeFailed, m.attempt(edge1, edge2))
		return m.Next().Sub(m.now)
	}
	nominal := retryMin
	distinct := map[time.Duration]bool{}
	for i := range 40 {
		got := fail()
		low, high := time.Duration(0.8*float64(nominal)), time.Duration(1.2*float64(nominal))
		if got < low || got > high {
			t.Errorf("pause %d is %v, want %v to %v", i+1, got, low, high)
		}
		distinct[got] = true
		nominal = min(2*nominal, retryMax)
		if got := m.tick(got - time.Nanosecond); len(got) != 0 {
			t.Errorf("before the pause was over: %v", got)
		}
		wantReceivers[*wire.Punch](t, m.tick(time.Nanosecond), edge1, edge2)
	}
	if len(distinct) < 30 {
		t.Errorf("%d different pauses of 40: no jitter", len(distinct))
	}
	if got := m.pair(edge1, edge2).Attempts; got != 41 {
		t.Errorf("%d attempts counted, want 41", got)
	}
}

func TestEventsResetTheBackOff(t *testing.T) {
	tests := []struct {
		name  string
		event func(*machine) []action
	}{
		{"a new session", func(m *machine) []action { return m.join(edge1) }},
		{"back after being offline", func(m *machine) []action {
			return append(m.Offline(m.now, edge2), m.join(edge2)...)
		}},
		{"another mapped address", func(m *machine) []action { return m.seen(edge1, "203.0.113.77:4500") }},
		{"another host address", func(m *machine) []action {
			return m.Network(m.now, edge2, &wire.Network{Candidates: []wire.Candidate{hostCandidate("192.168.7.7:4500")}})
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newMachine(t, community("all", edge1, edge2))
			m.join(edge1, edge2)
			for range 9 {
				m.after(attemptTimeout / 2)
				m.report(edge1, edge2, wire.OutcomeFailed, m.attempt(edge1, edge2))
				m.toRetry()
			}
			m.after(attemptTimeout / 2)
			m.report(edge1, edge2, wire.OutcomeFailed, m.attempt(edge1, edge2))
			m.after(time.Second)
			if pause := m.Next().Sub(m.now); pause < time.Minute {
				t.Fatalf("pause of %v before the event", pause)
			}
			wantReceivers[*wire.Punch](t, tt.event(m), edge1, edge2)
			// What failed before the event is no reason any more.
			m.wantPair(edge1, edge2, Down, true, "punching")
			m.after(attemptTimeout / 2)
			m.report(edge1, edge2, wire.OutcomeFailed, m.attempt(edge1, edge2))
			if pause := m.Next().Sub(m.now); pause > 2*retryMin {
				t.Errorf("pause of %v after the event", pause)
			}
		})
	}
}

func TestSuccessResetsTheBackOff(t *testing.T) {
	m := newMachine(t, community("all", edge1, edge2))
	m.join(edge1, edge2)
	for range 6 {
		m.after(5 * time.Second)
		m.report(edge1, edge2, wire.OutcomeFailed, m.attempt(edge1, edge2))
		m.toRetry()
	}
	m.connect(edge1, edge2)
	m.after(time.Hour)
	m.report(edge1, edge2, wire.OutcomeLost, "")
	m.after(5 * time.Second)
	m.report(edge1, edge2, wire.OutcomeFailed, m.attempt(edge1, edge2))
	if pause := m.Next().Sub(m.now); pause > 2*retryMin {
		t.Errorf("first failure after a success: pause of %v", pause)
	}
}

// Whatever a node does, its peers are not made to punch more than once a
// retryMin.
func TestFlappingIsBounded(t *testing.T) {
	second := "203.0.113.1:"
	tests := []struct {
		name string
		flap func(m *machine, i int)
	}{
		{"reconnecting", func(m *machine, _ int) { m.join(edge1) }},
		{"going and coming", func(m *machine, _ int) { m.Offline(m.now, edge1); m.join(edge1) }},
		{"another port each time", func(m *machine, i int) {
			m.seen(edge1, fmt.Sprint(second, 1024+i))
			m.failCurrent(edge1)
		}},
		{"another host each time", func(m *machine, i int) {
			m.Network(m.now, edge1, &wire.Network{Candidates: []wire.Candidate{hostCandidate(fmt.Sprintf("192.168.1.%d:4500", i%200+1))}})
			m.failCurrent(edge1)
		}},
		{"failing at once", func(m *machine, _ int) { m.failCurrent(edge1) }},
		{"direct and lost", func(m *machine, _ int) {
			if p := m.pairs[both12]; p.attempt != nil {
				m.connect(edge1, edge2)
			}
			m.report(edge1, edge2, wire.OutcomeLost, "")
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newMachine(t, community("all", edge1, edge2))
			m.join(edge1, edge2)
			const step, span = 50 * time.Millisecond, 30 * time.Second
			for i := range int(span / step) {
				m.tick(step)
				tt.flap(m, i)
			}
			if got, most := m.pair(edge1, edge2).Attempts, 1+int(span/retryMin); got > most || got < 2 {
				t.Errorf("%d attempts in %v, want 2 to %d", got, span, most)
			}
			m.checkNext()
		})
	}
}
