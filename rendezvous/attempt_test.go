package rendezvous

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/punch/nat"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// prepared answers a Prepare for the running attempt.
func (m *machine) prepared(from wire.NodeName, next uint16, step int) []action {
	m.t.Helper()
	return m.Prepared(m.now, from, &wire.Prepared{Attempt: m.attempt(edge1, edge2), Next: next, Step: step})
}

func countOf(cs []wire.Candidate, kind wire.CandidateKind) (n int) {
	for _, c := range cs {
		if c.Kind == kind {
			n++
		}
	}
	return n
}

func TestPrepare(t *testing.T) {
	m := newMachine(t, community("all", edge1, edge2))
	actions := m.joinBehind(portRestricted, sequential)
	wantReceivers[*wire.Prepare](t, actions, edge2)
	wantReceivers[*wire.Punch](t, actions)
	m.wantPair(edge1, edge2, Down, true, "punching")
	if next := m.Next(); !next.Equal(m.now.Add(prepareTimeout)) {
		t.Errorf("next step in %v, want %v", next.Sub(m.now), prepareTimeout)
	}
	// Nobody was asked for these.
	for name, said := range map[wire.NodeName]*wire.Prepared{
		edge2: {Attempt: "0ther", Next: 7}, edge1: {Attempt: m.attempt(edge1, edge2), Next: 7}, edge3: {Attempt: m.attempt(edge1, edge2), Next: 7},
	} {
		if got := m.Prepared(m.now, name, said); len(got) != 0 {
			t.Errorf("%+v of %s: %v", said, name, got)
		}
	}
	// What becomes known meanwhile is in the order, not beside it.
	wantReceivers[*wire.Trickle](t, m.seen(edge1, "203.0.113.1:4501"))

	orders := sent[*wire.Punch](t, m.prepared(edge2, 1026, 2))
	one, two := orders[edge1], orders[edge2]
	if one == nil || two == nil || one.Strategy != wire.StrategyPredict || two.Strategy != wire.StrategyPredict {
		t.Fatalf("orders %+v", orders)
	}
	if got := countOf(one.Candidates, wire.Predicted); got != maxPredicted || one.Candidates[0] != predictedCandidate("203.0.113.2:1026") || one.Candidates[1] != predictedCandidate("203.0.113.2:1028") {
		t.Errorf("candidates of edge2: %v", one.Candidates)
	}
	if want := []wire.Candidate{srflxCandidate("203.0.113.1:4501")}; !slices.Equal(two.Candidates, want) {
		t.Errorf("candidates of edge1: %v, want %v", two.Candidates, want)
	}
	for name, o := range orders {
		if err := o.Validate(); err != nil {
			t.Errorf("%s would refuse: %v", name, err)
		}
	}
	if got := m.prepared(edge2, 2000, 2); len(got) != 0 {
		t.Errorf("a second answer: %v", got)
	}
	if next := m.Next(); !next.Equal(m.now.Add(attemptTimeout)) {
		t.Errorf("next step in %v, want %v", next.Sub(m.now), attemptTimeout)
	}
}

func TestPrepareBothSides(t *testing.T) {
	m := newMachine(t, community("all", edge1, edge2))
	wantReceivers[*wire.Prepare](t, m.joinBehind(sequential, sequential), edge1, edge2)
	wantReceivers[*wire.Punch](t, m.prepared(edge2, 1026, 2))
	orders := sent[*wire.Punch](t, m.prepared(edge1, 3000, -1))
	for name, o := range orders {
		if countOf(o.Candidates, wire.Predicted) != maxPredicted || o.Strategy != wire.StrategyPredict {
			t.Errorf("%s: %s, %v", name, o.Strategy, o.Candidates)
		}
	}
	if len(orders) != 2 {
		t.Errorf("orders %v", orders)
	}
}

// Without a prediction the port is searched for, if it is the only one and its
// side can open many; else the pair is tried with what is left.
func TestPrepareFails(t *testing.T) {
	fails := map[string]func(*machine) []action{
		"not found out": func(m *machine) []action { return m.prepared(edge2, 0, 0) },
		"no answer":     func(m *machine) []action { return m.tick(prepareTimeout) },
	}
	for name, tc := range map[string]struct {
		first wire.NAT
		want  wire.Strategy
		parts [2]wire.ProbePart
	}{
		"one counts": {portRestricted, wire.StrategyProbe, [2]wire.ProbePart{wire.PartSearch, wire.PartOpen}},
		"both count": {sequential, wire.StrategyOpeners, [2]wire.ProbePart{}},
	} {
		for how, fail := range fails {
			t.Run(name+", "+how, func(t *testing.T) {
				m := newMachine(t, community("all", edge1, edge2))
				m.joinBehind(tc.first, sequential)
				if tc.first == sequential {
					m.prepared(edge1, 3000, 1)
				}
				orders := sent[*wire.Punch](t, fail(m))
				if len(orders) != 2 || orders[edge1].Strategy != tc.want || orders[edge2].Strategy != tc.want ||
					[2]wire.ProbePart{orders[edge1].Part, orders[edge2].Part} != tc.parts || countOf(orders[edge1].Candidates, wire.Predicted) != 0 {
					t.Fatalf("orders %+v", orders)
				}
				// The verdict has not changed, so nothing is begun anew.
				if got := m.tell(edge2, sequential); len(sent[*wire.Cancel](t, got)) != 0 {
					t.Errorf("%v", got)
				}
				m.report(edge1, edge2, wire.OutcomeFailed, m.attempt(edge1, edge2))
				if v := m.pair(edge1, edge2); wire.Strategy(v.Strategy) != tc.want || v.Verdict.Strategy != nat.Predict || v.Attempts != 1 {
					t.Errorf("%+v", v)
				}
			})
		}
	}
}

// Predictions that miss again and again give way to a search.
func TestPredictionsMiss(t *testing.T) {
	m := newMachine(t, community("all", edge1, edge2))
	m.joinBehind(portRestricted, sequential)
	for range maxPredictions {
		orders := sent[*wire.Punch](t, m.prepared(edge2, 2000, 1))
		if o := orders[edge1]; o == nil || o.Strategy != wire.StrategyPredict {
			t.Fatalf("orders %+v, want a prediction", orders)
		}
		m.report(edge1, edge2, wire.OutcomeFailed, m.attempt(edge1, edge2))
		m.tick(retryMax)
	}
	if p := m.pairs[both12]; p.attempt == nil || p.attempt.strategy != nat.Probe {
		t.Errorf("after %d predictions: %+v, want a search", maxPredictions, p.attempt)
	}
}

// IPv6 at both ends that leads nowhere does not keep IPv4 from what it needs.
func TestIPv6Fails(t *testing.T) {
	m := newMachine(t, community("all", edge1, edge2))
	m.joinBehind(portRestricted, symmetric)
	m.report(edge1, edge2, wire.OutcomeFailed, m.attempt(edge1, edge2))
	for name, at := range map[wire.NodeName]string{edge1: "[2001:db8:1::1]:4500", edge2: "[2001:db8:2::1]:4500"} {
		m.Observed(m.now, name, netip.MustParseAddrPort(at))
	}
	m.tick(retryMax)
	if v := m.pair(edge1, edge2); v.Verdict.Strategy != nat.ICE || !v.Punching {
		t.Fatalf("%+v, want an attempt over IPv6", v)
	}
	m.report(edge1, edge2, wire.OutcomeFailed, m.attempt(edge1, edge2))
	if v := m.pair(edge1, edge2); v.Verdict.Strategy != nat.Probe {
		t.Errorf("after it failed: %+v, want a search", v.Verdict)
	}
}

// A node that goes while it is asked ends the attempt; who has not heard of it
// is not told.
func TestOfflineWhilePreparing(t *testing.T) {
	m := newMachine(t, community("all", edge1, edge2))
	m.joinBehind(portRestricted, sequential)
	wantReceivers[*wire.Cancel](t, m.Offline(m.now, edge2))
	m.wantPair(edge1, edge2, Down, false, "beijing.edge2 is offline")
	m.after(time.Minute)
	m.hello(edge2)
	m.seen(edge2, "203.0.113.2:4500")
	wantReceivers[*wire.Cancel](t, m.Offline(m.now, edge1), edge2)
	if v := m.pair(edge1, edge2); v.Punching || v.Strategy != "" {
		t.Errorf("%+v", v)
	}
}

// What becomes known of a NAT overtakes an attempt that knew less.
func TestVerdictOvertakesTheAttempt(t *testing.T) {
	start := func(t *testing.T) (*machine, wire.AttemptID) {
		m := newMachine(t, community("all", edge1, edge2))
		m.join(edge1, edge2)
		m.tell(edge1, portRestricted)
		return m, m.attempt(edge1, edge2)
	}
	t.Run("probe after openers", func(t *testing.T) {
		m, id := start(t)
		actions := m.tell(edge2, symmetric)
		cancels, orders := sent[*wire.Cancel](t, actions), sent[*wire.Punch](t, actions)
		if len(cancels) != 2 || cancels[edge1].Attempt != id || len(orders) != 2 || orders[edge1].Attempt == id || orders[edge1].Strategy != wire.StrategyProbe {
			t.Errorf("cancels %v, orders %v", cancels, orders)
		}
		// It is not begun anew by less.
		id = m.attempt(edge1, edge2)
		m.tell(edge2, sequential)
		m.tell(edge2, wire.NAT{})
		if m.attempt(edge1, edge2) != id {
			t.Error("another attempt")
		}
	})
	t.Run("predict after openers", func(t *testing.T) {
		m, _ := start(t)
		actions := m.tell(edge2, sequential)
		wantReceivers[*wire.Cancel](t, actions, edge1, edge2)
		wantReceivers[*wire.Prepare](t, actions, edge2)
	})
	t.Run("not one that has found a path", func(t *testing.T) {
		m, id := start(t)
		m.report(edge1, edge2, wire.OutcomeNominated, id)
		wantReceivers[*wire.Cancel](t, m.tell(edge2, symmetric))
		if m.attempt(edge1, edge2) != id {
			t.Error("another attempt")
		}
	})
	t.Run("hope after none", func(t *testing.T) {
		m := newMachine(t, community("all", edge1, edge2))
		m.joinBehind(symmetric, symmetric)
		actions := m.tell(edge2, portRestricted)
		wantReceivers[*wire.Cancel](t, actions, edge1, edge2)
		if o := sent[*wire.Punch](t, actions)[edge1]; o == nil || o.Strategy != wire.StrategyProbe || o.Hopeless != "" {
			t.Errorf("%+v", o)
		}
	})
	t.Run("after it has failed", func(t *testing.T) {
		m, id := start(t)
		for range 5 {
			m.report(edge1, edge2, wire.OutcomeFailed, id)
			m.toRetry()
			id = m.attempt(edge1, edge2)
		}
		m.report(edge1, edge2, wire.OutcomeFailed, id)
		m.after(retryMin)
		wantReceivers[*wire.Punch](t, m.tell(edge2, symmetric), edge1, edge2)
	})
}

// A search is costly: it is repeated rarely, whatever happens.
func TestProbingIsBounded(t *testing.T) {
	m := newMachine(t, community("all", edge1, edge2))
	m.joinBehind(symmetric, portRestricted)
	nominal := probeRetryMin
	for i := range 12 {
		m.after(5 * time.Second)
		failed := m.now
		m.report(edge1, edge2, wire.OutcomeFailed, m.attempt(edge1, edge2))
		got := m.Next().Sub(failed)
		if low, high := time.Duration(0.8*float64(nominal)), time.Duration(1.2*float64(nominal)); got < low || got > high {
			t.Errorf("pause %d is %v, want %v to %v", i+1, got, low, high)
		}
		nominal = min(2*nominal, probeRetryMax)
		wantReceivers[*wire.Punch](t, m.toRetry(), edge1, edge2)
	}

	// Events bring the next one nearer, but not too near.
	m.after(10 * time.Second)
	m.report(edge1, edge2, wire.OutcomeFailed, m.attempt(edge1, edge2))
	began := m.now.Add(-10 * time.Second)
	m.hello(edge1)
	wantReceivers[*wire.Punch](t, m.seen(edge1, "203.0.113.1:4500"))
	wantReceivers[*wire.Punch](t, m.Network(m.now, edge1, &wire.Network{Candidates: []wire.Candidate{hostCandidate("192.168.7.7:4500")}, NAT: symmetric}))
	if next := m.Next(); !next.Equal(began.Add(probeRetryMin)) {
		t.Errorf("the next search is %v after the last, want %v", next.Sub(began), probeRetryMin)
	}
	// Another public address is another NAT.
	wantReceivers[*wire.Punch](t, m.seen(edge1, "203.0.113.77:4500"), edge1, edge2)
}

// Strategy and packets of an attempt are kept when it has ended, and what its
// other side says afterwards counts.
func TestPacketsAreCounted(t *testing.T) {
	m := newMachine(t, community("all", edge1, edge2))
	m.joinBehind(symmetric, portRestricted)
	id := m.attempt(edge1, edge2)
	say := func(from, to wire.NodeName, o wire.Outcome, packets int) {
		m.Report(m.now, from, &wire.Report{Peer: to, Attempt: id, Outcome: o, Reason: "x", Packets: packets})
	}
	say(edge1, edge2, wire.OutcomeNominated, 250)
	if v := m.pair(edge1, edge2); v.Packets != 0 || v.Strategy != "" {
		t.Errorf("while it runs: %s, %d packets", v.Strategy, v.Packets)
	}
	say(edge1, edge2, wire.OutcomeFailed, 256)
	say(edge2, edge1, wire.OutcomeFailed, 2400)
	say(edge2, edge1, wire.OutcomeFailed, 7)
	if v := m.pair(edge1, edge2); v.Packets != 2656 || v.Strategy != nat.Probe || v.Attempts != 1 {
		t.Errorf("%s, %d packets, %d attempts", v.Strategy, v.Packets, v.Attempts)
	}
	say(edge2, edge1, wire.OutcomeFailed, int(^uint(0)>>1))
	if v := m.pair(edge1, edge2); v.Packets != 256+maxPackets {
		t.Errorf("%d packets", v.Packets)
	}
}

// What an end says of a failed attempt is told once, as it stays: without the name
// of the end where it only repeats what was expected.
func TestFailureIsToldOnce(t *testing.T) {
	m := newMachine(t, community("all", edge1, edge2))
	m.join(edge1, edge2)
	m.tell(edge1, symmetric)
	m.tell(edge2, symmetric)
	if m.pairs[both12].attempt == nil {
		m.toRetry()
	}
	reason := m.pairs[both12].verdict.Reason
	var said []string
	for _, a := range m.Report(m.now, edge1, &wire.Report{Peer: edge2, Attempt: m.attempt(edge1, edge2), Outcome: wire.OutcomeFailed, Reason: reason}) {
		if r, ok := a.(record); ok {
			said = append(said, r.pair.Reason)
		}
	}
	if reason == "" || len(said) == 0 || len(slices.Compact(said)) != 1 || said[0] != m.pair(edge1, edge2).Reason {
		t.Errorf("told %q, in the end %q", said, m.pair(edge1, edge2).Reason)
	}
}
