package rendezvous

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// An attempt needs both ends online, both gathered, and a community.
func TestAttemptStarts(t *testing.T) {
	shared := []Community{community("all", edge1, edge2)}
	seen := func(name wire.NodeName) func(*machine) []action {
		return func(m *machine) []action { return m.seen(name, "203.0.113.1:4500") }
	}
	hello := func(name wire.NodeName) func(*machine) []action {
		return func(m *machine) []action { return m.hello(name) }
	}
	apply := func(m *machine) []action { return m.Communities(m.now, shared) }
	tests := []struct {
		name   string
		before []Community
		steps  []func(*machine) []action // the last one starts the attempt
		reason string                    // just before that
	}{
		{"second node seen", shared, []func(*machine) []action{hello(edge1), seen(edge1), hello(edge2), seen(edge2)},
			"waiting for beijing.edge2's first STUN request"},
		{"first node seen last", shared, []func(*machine) []action{hello(edge1), hello(edge2), seen(edge2), seen(edge1)},
			"waiting for beijing.edge1's first STUN request"},
		{"no STUN, but the agent has given up on it", shared, []func(*machine) []action{hello(edge1), hello(edge2), seen(edge2),
			func(m *machine) []action {
				return m.Network(m.now, edge1, &wire.Network{NAT: wire.NAT{Blocked: "no answer"}})
			}}, "waiting for beijing.edge1's first STUN request"},
		{"community comes last", []Community{community("one", edge1, edge3), community("two", edge2, edge3)},
			[]func(*machine) []action{hello(edge1), hello(edge2), seen(edge2), seen(edge1), apply}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newMachine(t, tt.before...)
			for i, step := range tt.steps {
				last := i == len(tt.steps)-1
				if last && tt.reason != "" {
					m.wantPair(edge1, edge2, Down, false, tt.reason)
				}
				actions := step(m)
				if last {
					wantReceivers[*wire.Punch](t, actions, edge1, edge2)
				} else {
					wantReceivers[*wire.Punch](t, actions)
				}
			}
			m.wantPair(edge1, edge2, Down, true, "punching")
		})
	}
}

func TestOrderIsWhatBothSidesNeed(t *testing.T) {
	m := newMachine(t, community("all", edge1, edge2), community("some", edge1, edge2, edge3))
	hosts := []wire.Candidate{hostCandidate("192.168.1.10:4500"), hostCandidate("[2001:db8::10]:4500")}
	m.Online(m.now, &wire.Hello{Endpoint: endpointOf(edge1), Candidates: hosts}, 10*time.Millisecond)
	m.seen(edge1, "203.0.113.1:1024")
	m.Network(m.now, edge1, &wire.Network{Candidates: hosts, NAT: wire.NAT{Present: true, Mapping: wire.EndpointIndependent}})
	m.Online(m.now, &wire.Hello{Endpoint: endpointOf(edge2)}, 60*time.Millisecond)
	orders := sent[*wire.Punch](t, m.seen(edge2, "203.0.113.2:4500"))

	one, two := orders[edge1], orders[edge2]
	if one == nil || two == nil {
		t.Fatalf("orders for %v", orders)
	}
	for name, o := range orders {
		if err := o.Validate(); err != nil {
			t.Errorf("order for %s: %v", name, err)
		}
	}
	if one.Attempt != two.Attempt || one.Attempt != m.attempt(edge1, edge2) {
		t.Errorf("attempts %q and %q", one.Attempt, two.Attempt)
	}
	if one.Local != two.Remote || one.Remote != two.Local || one.Local == one.Remote {
		t.Errorf("credentials %v/%v and %v/%v", one.Local, one.Remote, two.Local, two.Remote)
	}
	// The order reaches edge1 50 ms before edge2.
	if one.StartAfterMs != 50 || two.StartAfterMs != 0 {
		t.Errorf("start offsets %d and %d ms, want 50 and 0", one.StartAfterMs, two.StartAfterMs)
	}
	want := wire.Peer{Endpoint: endpointOf(edge2), Plan: wire.PlanICE, Role: wire.Controlling, Communities: []string{"all", "some"}}
	if !reflect.DeepEqual(one.Peer, want) {
		t.Errorf("peer %+v, want %+v", one.Peer, want)
	}
	if two.Peer.Role != wire.Controlled {
		t.Errorf("role of edge2 %q", two.Peer.Role)
	}
	if want := append(slices.Clone(hosts), srflxCandidate("203.0.113.1:1024")); !slices.Equal(two.Candidates, want) {
		t.Errorf("candidates of edge1 %v, want %v", two.Candidates, want)
	}
	if two.RemoteNAT.Mapping != wire.EndpointIndependent {
		t.Errorf("NAT of edge1 %+v", two.RemoteNAT)
	}
}

func TestStartOffsets(t *testing.T) {
	for _, tt := range []struct {
		delays [2]time.Duration
		want   [2]int64
	}{
		{[2]time.Duration{0, 0}, [2]int64{0, 0}},
		{[2]time.Duration{30 * time.Millisecond, 30 * time.Millisecond}, [2]int64{0, 0}},
		{[2]time.Duration{250 * time.Millisecond, 5 * time.Millisecond}, [2]int64{0, 245}},
		{[2]time.Duration{0, pongTimeout / 2}, [2]int64{maxStartOffset.Milliseconds(), 0}},
	} {
		m := newMachine(t, community("all", edge1, edge2))
		m.hello(edge1)
		m.join(edge2)
		m.Delay(edge1, tt.delays[0])
		m.Delay(edge2, tt.delays[1])
		orders := sent[*wire.Punch](t, m.seen(edge1, "203.0.113.1:4500"))
		got := [2]int64{orders[edge1].StartAfterMs, orders[edge2].StartAfterMs}
		if got != tt.want || orders[edge1].Validate() != nil || orders[edge2].Validate() != nil {
			t.Errorf("delays %v: offsets %v, want %v", tt.delays, got, tt.want)
		}
	}
}

// A peer must be able to take what is passed on to it.
func TestCandidatesArePassable(t *testing.T) {
	many := make([]wire.Candidate, wire.MaxCandidates)
	for i := range many {
		many[i] = hostCandidate(fmt.Sprintf("192.168.1.%d:4500", i+1))
	}
	public := []wire.Candidate{hostCandidate("203.0.113.1:4500")}
	tests := []struct {
		name     string
		hosts    []wire.Candidate
		observed string
		want     []wire.Candidate
	}{
		{"host and observed", many[:1], "203.0.113.1:4500", []wire.Candidate{many[0], srflxCandidate("203.0.113.1:4500")}},
		{"not behind a NAT", public, "203.0.113.1:4500", public},
		{"more hosts than a node has", many, "203.0.113.1:4500",
			append(slices.Clone(many[:maxHosts]), srflxCandidate("203.0.113.1:4500"))},
		{"beside the rendezvous", many[:1], "127.0.0.1:4500", many[:1]},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newMachine(t, community("all", edge1, edge2))
			m.join(edge2)
			m.Online(m.now, &wire.Hello{Endpoint: endpointOf(edge1), Candidates: tt.hosts}, 0)
			order := sent[*wire.Punch](t, m.seen(edge1, tt.observed))[edge2]
			if !slices.Equal(order.Candidates, tt.want) {
				t.Errorf("candidates %v, want %v", order.Candidates, tt.want)
			}
			if err := order.Validate(); err != nil {
				t.Errorf("edge2 would refuse: %v", err)
			}
		})
	}
}

func TestTrickle(t *testing.T) {
	m := newMachine(t, community("all", edge1, edge2))
	m.join(edge1, edge2)
	id := m.attempt(edge1, edge2)
	tests := []struct {
		name string
		do   func() []action
		want []wire.Candidate // for edge2; nil for nothing
	}{
		{"seen at another address", func() []action { return m.seen(edge1, "203.0.113.1:1024") },
			[]wire.Candidate{srflxCandidate("203.0.113.1:1024")}},
		{"seen there again", func() []action { return m.seen(edge1, "203.0.113.1:1024") }, nil},
		{"another host address", func() []action {
			return m.Network(m.now, edge1, &wire.Network{Candidates: []wire.Candidate{hostCandidate("192.168.1.10:4500")}})
		}, []wire.Candidate{hostCandidate("192.168.1.10:4500"), srflxCandidate("203.0.113.1:1024")}},
		{"the NAT's behaviour alone", func() []action {
			return m.Network(m.now, edge1, &wire.Network{
				Candidates: []wire.Candidate{hostCandidate("192.168.1.10:4500")}, NAT: wire.NAT{Present: true},
			})
		}, []wire.Candidate{hostCandidate("192.168.1.10:4500"), srflxCandidate("203.0.113.1:1024")}},
		{"the same again", func() []action {
			return m.Network(m.now, edge1, &wire.Network{
				Candidates: []wire.Candidate{hostCandidate("192.168.1.10:4500")}, NAT: wire.NAT{Present: true},
			})
		}, nil},
	}
	for _, tt := range tests {
		actions := tt.do()
		got := sent[*wire.Trickle](t, actions)
		if tt.want == nil {
			if len(actions) != 0 {
				t.Errorf("%s: %v", tt.name, actions)
			}
			continue
		}
		if len(got) != 1 || got[edge2] == nil || got[edge2].Attempt != id || !slices.Equal(got[edge2].Candidates, tt.want) {
			t.Errorf("%s: %+v, want %v for edge2", tt.name, got, tt.want)
		}
	}
	if m.attempt(edge1, edge2) != id {
		t.Error("another attempt")
	}
}

// What the NAT does is told as soon as it is known: without it a failed
// attempt has no true reason.
func TestTrickleTellsTheNAT(t *testing.T) {
	m := newMachine(t, community("all", edge1, edge2))
	m.join(edge1, edge2)
	id := m.attempt(edge1, edge2)
	nat := wire.NAT{Present: true, Mapping: wire.AddressAndPortDependent}
	got := sent[*wire.Trickle](t, m.Network(m.now, edge1, &wire.Network{NAT: nat}))
	if len(got) != 1 || got[edge2] == nil || got[edge2].Attempt != id || got[edge2].RemoteNAT == nil || *got[edge2].RemoteNAT != nat {
		t.Errorf("%+v, want the NAT for edge2", got)
	}
	// It is still known when the node comes back.
	m.Offline(m.now, edge1)
	m.join(edge1)
	if m.nodes[edge1].nat != nat {
		t.Errorf("after a new session: %+v, want %+v", m.nodes[edge1].nat, nat)
	}
}

// A node runs only so many attempts at a time; the others follow.
func TestAttemptsAtATimeAreBounded(t *testing.T) {
	cs, peers := star(maxParallel + 5)
	m := newMachine(t, cs...)
	m.join(peers...)
	m.hello(edge1)
	first := ordersTo(m.seen(edge1, "203.0.113.1:4500"))
	if len(first) != maxParallel {
		t.Fatalf("%d attempts at a time, want %d", len(first), maxParallel)
	}
	if next := m.Next(); !next.After(m.now) {
		t.Errorf("the next step is at %v, now: it would spin until a slot is free", next)
	}
	m.report(edge1, first[0], wire.OutcomeFailed, m.attempt(edge1, first[0]))
	if next := m.Next(); next.After(m.now) {
		t.Errorf("a slot is free and pairs wait, but the next step is at %v", next)
	}
	if more := ordersTo(m.tick(0)); len(more) != 1 || slices.Contains(first, more[0]) {
		t.Errorf("after one has failed: %v, want one that waited", more)
	}
}

func TestDirectTakesBothSides(t *testing.T) {
	m := newMachine(t, community("all", edge1, edge2))
	m.join(edge1, edge2)
	id := m.attempt(edge1, edge2)
	m.report(edge1, edge2, wire.OutcomeNominated, id)
	m.wantPair(edge1, edge2, Down, true, "punching")
	m.report(edge1, edge2, wire.OutcomeDirect, id)
	m.wantPair(edge1, edge2, Down, true, "punching")
	m.after(time.Second)
	m.Report(m.now, edge2, &wire.Report{Peer: edge1, Attempt: id, Outcome: wire.OutcomeDirect, ElapsedMs: 700})
	m.wantPair(edge1, edge2, Direct, false, "")
	v := m.pair(edge1, edge2)
	if v.TimeToDirectMs != 700 || !v.Since.Equal(m.now) || !v.LastDirect.Equal(m.now) || v.Attempts != 1 {
		t.Errorf("%+v", v)
	}
	if next := m.Next(); !next.IsZero() {
		t.Errorf("next step at %v", next)
	}
	if got := m.tick(24 * time.Hour); len(got) != 0 {
		t.Errorf("a day later: %v", got)
	}

	// The tunnel moves: that is one attempt with two paths.
	moved := wire.Path{Kind: wire.PathHost, Remote: netip.MustParseAddrPort("192.168.1.20:4500")}
	m.Report(m.now, edge1, &wire.Report{Peer: edge2, Attempt: id, Outcome: wire.OutcomeDirect, Path: moved, ElapsedMs: 90_000})
	if v := m.pair(edge1, edge2); v.Paths[edge1] != moved || v.TimeToDirectMs != 700 || v.State != Direct {
		t.Errorf("after the move: %+v", v)
	}
}

func TestOneSideFails(t *testing.T) {
	m := newMachine(t, community("all", edge1, edge2))
	m.join(edge1, edge2)
	id := m.attempt(edge1, edge2)
	m.report(edge2, edge1, wire.OutcomeNominated, id)
	actions := m.report(edge1, edge2, wire.OutcomeFailed, id)
	cancels := sent[*wire.Cancel](t, actions)
	want := map[wire.NodeName]*wire.Cancel{edge2: {Attempt: id, Reason: "beijing.edge1: because of it"}}
	if !reflect.DeepEqual(cancels, want) {
		t.Errorf("cancels %v, want %v", cancels, want)
	}
	m.wantPair(edge1, edge2, Down, false, "beijing.edge1: because of it")
	if v := m.pair(edge1, edge2); len(v.Paths) != 0 || v.RetryAt.IsZero() {
		t.Errorf("%+v: want no path, and a time of the next attempt", v)
	}
	// The next attempt keeps saying why the last one failed, until it succeeds.
	wantReceivers[*wire.Punch](t, m.toRetry(), edge1, edge2)
	m.wantPair(edge1, edge2, Down, true, "beijing.edge1: because of it")
	m.connect(edge1, edge2)
	m.wantPair(edge1, edge2, Direct, false, "")
}

func TestLost(t *testing.T) {
	m := newMachine(t, community("all", edge1, edge2))
	m.join(edge1, edge2)
	m.connect(edge1, edge2)
	m.after(time.Hour)
	actions := m.report(edge2, edge1, wire.OutcomeLost, "")
	wantReceivers[*wire.Punch](t, actions, edge1, edge2)
	m.wantPair(edge1, edge2, Down, true, "beijing.edge2: because of it")

	// edge1 has not said that its tunnel is lost, but both have to say again
	// that it works.
	id := m.attempt(edge1, edge2)
	m.report(edge1, edge2, wire.OutcomeDirect, id)
	m.wantPair(edge1, edge2, Down, true, "beijing.edge2: because of it")
	m.report(edge2, edge1, wire.OutcomeDirect, id)
	m.wantPair(edge1, edge2, Direct, false, "")
}

func TestLostDuringItsAttempt(t *testing.T) {
	m := newMachine(t, community("all", edge1, edge2))
	m.join(edge1, edge2)
	id := m.attempt(edge1, edge2)
	m.report(edge1, edge2, wire.OutcomeDirect, id)
	wantReceivers[*wire.Cancel](t, m.report(edge1, edge2, wire.OutcomeLost, id), edge2)
	m.wantPair(edge1, edge2, Down, false, "beijing.edge1: because of it")
	wantReceivers[*wire.Punch](t, m.toRetry(), edge1, edge2)
}

func TestOffline(t *testing.T) {
	t.Run("a direct pair stays direct", func(t *testing.T) {
		m := newMachine(t, community("all", edge1, edge2))
		m.join(edge1, edge2)
		m.connect(edge1, edge2)
		if got := m.Offline(m.now, edge1); len(got) != 0 {
			t.Errorf("%v", got)
		}
		m.Offline(m.now, edge2)
		m.wantPair(edge1, edge2, Direct, false, "")
		if next := m.Next(); !next.IsZero() {
			t.Errorf("next step at %v", next)
		}
	})
	t.Run("until its other end says otherwise", func(t *testing.T) {
		m := newMachine(t, community("all", edge1, edge2))
		m.join(edge1, edge2)
		m.connect(edge1, edge2)
		m.Offline(m.now, edge1)
		m.report(edge2, edge1, wire.OutcomeLost, "")
		m.wantPair(edge1, edge2, Down, false, "beijing.edge1 is offline")
	})
	t.Run("an attempt ends", func(t *testing.T) {
		m := newMachine(t, community("all", edge1, edge2))
		m.join(edge1, edge2)
		id := m.attempt(edge1, edge2)
		want := map[wire.NodeName]*wire.Cancel{edge2: {Attempt: id, Reason: "beijing.edge1 went offline"}}
		if got := sent[*wire.Cancel](t, m.Offline(m.now, edge1)); !reflect.DeepEqual(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
		m.wantPair(edge1, edge2, Down, false, "beijing.edge1 is offline")
		// Back again, the reason it was away is none any more.
		m.after(time.Minute)
		m.hello(edge1)
		m.wantPair(edge1, edge2, Down, false, "waiting for beijing.edge1's first STUN request")
		m.seen(edge1, "203.0.113.1:4500")
		m.wantPair(edge1, edge2, Down, true, "punching")
	})
	t.Run("twice is once", func(t *testing.T) {
		m := newMachine(t, community("all", edge1, edge2))
		m.join(edge1)
		m.Offline(m.now, edge1)
		for _, name := range []wire.NodeName{edge1, edge2, "nobody.knows"} {
			if got := m.Offline(m.now, name); got != nil {
				t.Errorf("%s: %v", name, got)
			}
		}
	})
}

func TestReportsThatChangeNothing(t *testing.T) {
	old := wire.AttemptID("0ld")
	tests := []struct {
		name   string
		from   wire.NodeName
		report wire.Report
		// refused is why it is held against its sender, empty when it is not.
		refused string
	}{
		{"by an outsider", edge3, wire.Report{Peer: edge1, Outcome: wire.OutcomeDirect}, "it has no pair with that node"},
		{"loss by an outsider", edge3, wire.Report{Peer: edge1, Outcome: wire.OutcomeLost, Reason: "x"}, "it has no pair with that node"},
		{"about itself", edge1, wire.Report{Peer: edge1, Outcome: wire.OutcomeLost}, "it has no pair with that node"},
		{"about nobody", edge1, wire.Report{Peer: "nobody.knows", Outcome: wire.OutcomeFailed}, "it has no pair with that node"},
		{"failure of an attempt whose pair has ended", edge3, wire.Report{Peer: edge1, Attempt: old, Outcome: wire.OutcomeFailed, Reason: "x"}, ""},
		{"stale nominated", edge1, wire.Report{Peer: edge2, Attempt: old, Outcome: wire.OutcomeNominated}, ""},
		{"stale direct", edge1, wire.Report{Peer: edge2, Attempt: old, Outcome: wire.OutcomeDirect}, ""},
		{"stale failure", edge1, wire.Report{Peer: edge2, Attempt: old, Outcome: wire.OutcomeFailed, Reason: "x"}, ""},
		{"failure of a try of its own", edge1, wire.Report{Peer: edge2, Outcome: wire.OutcomeFailed, Reason: "x"}, ""},
		{"stale loss", edge1, wire.Report{Peer: edge2, Attempt: old, Outcome: wire.OutcomeLost, Reason: "x"}, "that attempt has led to no tunnel"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newMachine(t, community("all", edge1, edge2), community("other", edge2, edge3))
			m.join(edge1, edge2, edge3)
			before := m.Views()
			got := m.Report(m.now, tt.from, &tt.report)
			var want []action
			if tt.refused != "" {
				want = []action{refuseReport{tt.from, &tt.report, tt.refused}}
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%v, want %v", got, want)
			}
			if after := m.Views(); !reflect.DeepEqual(before, after) {
				t.Errorf("%+v\nbecame\n%+v", before, after)
			}
			m.wantPair(edge1, edge2, Down, true, "punching")
		})
	}
}
