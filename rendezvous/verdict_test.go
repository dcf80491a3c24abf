package rendezvous

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/punch/nat"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// NATs of the tests.
var (
	portRestricted = wire.NAT{Present: true, Mapping: wire.EndpointIndependent, Filtering: wire.AddressAndPortDependent, Poisoned: wire.No}
	symmetric      = wire.NAT{Present: true, Mapping: wire.AddressAndPortDependent, Filtering: wire.AddressAndPortDependent, Allocation: wire.Random}
	sequential     = wire.NAT{Present: true, Mapping: wire.AddressAndPortDependent, Filtering: wire.AddressAndPortDependent, Allocation: wire.Sequential, Step: 2}
)

// tell lets an agent say what its NAT does.
func (m *machine) tell(name wire.NodeName, n wire.NAT) []action {
	return m.Network(m.now, name, &wire.Network{Candidates: m.nodes[name].told, NAT: n})
}

// joinBehind brings edge1 and edge2 online, each behind a NAT that is known
// before the first order.
func (m *machine) joinBehind(one, two wire.NAT) []action {
	for name, n := range map[wire.NodeName]wire.NAT{edge1: one, edge2: two} {
		m.hello(name)
		m.nodes[name].nat = n
	}
	return append(m.seen(edge1, "203.0.113.1:4500"), m.seen(edge2, "203.0.113.2:4500")...)
}

func TestJudge(t *testing.T) {
	site := func(name wire.NodeName, n wire.NAT, public string) *known {
		return &known{kind: wire.Edge, online: true, site: nat.Site{
			Name: string(name), NAT: natOf(n), V4: true, Public: netip.MustParseAddr(public),
		}}
	}
	carrier := portRestricted
	carrier.Hops, carrier.Hairpin = 3, wire.No
	inner := func(name wire.NodeName) *known {
		k := site(name, carrier, "203.0.113.1")
		k.inner = true
		return k
	}
	hub := site(connector, wire.NAT{}, "198.51.100.1")
	hub.kind = wire.Connector
	careful := site(edge1, symmetric, "203.0.113.1")
	careful.site.Policy = nat.ICEOnly
	tests := []struct {
		name     string
		one, two *known
		limit    limit
		expect   nat.Expectation
		strategy nat.Strategy
		reason   string // part of it
	}{
		{"never online", site(edge1, symmetric, "203.0.113.1"), nil, limit{}, expectUnknown, "", "beijing.edge2 has never been online, or was deleted"},
		{"a connector", site(edge1, symmetric, "203.0.113.1"), hub, limit{}, nat.Direct, strategyPublic, "is a connector"},
		{"a connector, from a network without UDP", site(edge1, wire.NAT{Blocked: "no answer"}, "203.0.113.1"), hub, limit{}, nat.Relay, strategyPublic, "UDP does not leave the network of beijing.edge1: no answer"},
		{"a connector is no punch to forbid", site(edge1, symmetric, "203.0.113.1"), hub, limit{nat.Never, "quiet"}, nat.Direct, strategyPublic, "is a connector"},
		{"probe", site(edge1, symmetric, "203.0.113.1"), site(edge2, portRestricted, "203.0.113.2"), limit{}, nat.Direct, nat.Probe, "random ports"},
		{"forbidden by the community", site(edge1, symmetric, "203.0.113.1"), site(edge2, portRestricted, "203.0.113.2"),
			limit{nat.ICEOnly, "careful"}, nat.Relay, nat.ICE, "(ice-only) for beijing.edge1, by community careful"},
		{"forbidden by the node already", careful, site(edge2, portRestricted, "203.0.113.2"),
			limit{nat.ICEOnly, "careful"}, nat.Relay, nat.ICE, "(ice-only) for beijing.edge1"},
		{"never, by the community", site(edge1, portRestricted, "203.0.113.1"), site(edge2, portRestricted, "203.0.113.2"),
			limit{nat.Never, "quiet"}, nat.Relay, nat.None, "by community quiet"},
		{"a limit that changes nothing", site(edge1, portRestricted, "203.0.113.1"), site(edge2, portRestricted, "203.0.113.2"),
			limit{nat.ICEOnly, "careful"}, nat.Direct, nat.ICE, "both ports are known"},
		{"one carrier, nothing forwarded", site(edge1, carrier, "203.0.113.1"), site(edge2, carrier, "203.0.113.1"), limit{}, nat.Relay, nat.ICE, "carrier NAT"},
		{"one carrier, forwarded inside", inner(edge1), inner(edge2), limit{}, nat.Direct, nat.ICE, "both ports are known"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			names := [2]wire.NodeName{edge1, edge2}
			if tt.two == hub {
				names[1] = connector
			}
			v := judge(names, [2]*known{tt.one, tt.two}, tt.limit)
			if v.Expect != tt.expect || v.Strategy != tt.strategy || !strings.Contains(v.Reason, tt.reason) {
				t.Errorf("%+v, want %s, %s, %q", v, tt.expect, tt.strategy, tt.reason)
			}
			if v.Reason == "" || tt.name == "forbidden by the node already" && strings.Contains(v.Reason, "community") {
				t.Errorf("reason %q", v.Reason)
			}
		})
	}
}

func TestLimitOf(t *testing.T) {
	set := policies([]Community{
		{Name: "any"}, {Name: "said", Punch: wire.PolicyAuto}, {Name: "careful", Punch: wire.PolicyICEOnly}, {Name: "quiet", Punch: wire.PolicyNever},
	})
	for _, tt := range []struct {
		names []string
		want  limit
	}{
		{nil, limit{}},
		{[]string{"any", "said"}, limit{}},
		{[]string{"any", "careful", "said"}, limit{nat.ICEOnly, "careful"}},
		{[]string{"careful", "quiet"}, limit{nat.Never, "quiet"}},
		{[]string{"quiet", "careful"}, limit{nat.Never, "quiet"}},
	} {
		if got := limitOf(tt.names, set); got != tt.want {
			t.Errorf("%q: %+v, want %+v", tt.names, got, tt.want)
		}
	}
}

// The order says what the verdict does.
func TestOrdersFollowTheVerdict(t *testing.T) {
	blocked := wire.NAT{Blocked: "no answer over UDP"}
	poisoned := portRestricted
	poisoned.Poisoned = wire.Yes
	tests := []struct {
		name     string
		one, two wire.NAT
		strategy wire.Strategy
		parts    [2]wire.ProbePart
		hopeless bool
	}{
		{"both ports known", portRestricted, portRestricted, wire.StrategyICE, [2]wire.ProbePart{}, false},
		{"a router that remembers", portRestricted, poisoned, wire.StrategyOpeners, [2]wire.ProbePart{}, false},
		{"nothing known", wire.NAT{}, wire.NAT{}, wire.StrategyOpeners, [2]wire.ProbePart{}, false},
		{"the first is symmetric", symmetric, portRestricted, wire.StrategyProbe, [2]wire.ProbePart{wire.PartOpen, wire.PartSearch}, false},
		{"the second is symmetric", portRestricted, symmetric, wire.StrategyProbe, [2]wire.ProbePart{wire.PartSearch, wire.PartOpen}, false},
		{"both are symmetric", symmetric, symmetric, wire.StrategyICE, [2]wire.ProbePart{}, true},
		{"one counts, one does not", symmetric, sequential, wire.StrategyICE, [2]wire.ProbePart{}, true},
		{"UDP is blocked", portRestricted, blocked, wire.StrategyICE, [2]wire.ProbePart{}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newMachine(t, community("all", edge1, edge2))
			m.hello(edge1)
			m.tell(edge1, tt.one)
			m.seen(edge1, "203.0.113.1:4500")
			m.hello(edge2)
			orders := sent[*wire.Punch](t, m.tell(edge2, tt.two))
			for i, name := range []wire.NodeName{edge1, edge2} {
				o := orders[name]
				if o == nil {
					t.Fatalf("no order for %s", name)
				}
				if o.Strategy != tt.strategy || o.Part != tt.parts[i] || (o.Hopeless != "") != tt.hopeless {
					t.Errorf("%s: %s %q, hopeless %q", name, o.Strategy, o.Part, o.Hopeless)
				}
				if err := o.Validate(); err != nil {
					t.Errorf("%s would refuse: %v", name, err)
				}
			}
			v := m.pair(edge1, edge2)
			if string(v.Verdict.Strategy) != string(tt.strategy) || (v.Verdict.Expect == nat.Relay) != tt.hopeless {
				t.Errorf("verdict %+v", v.Verdict)
			}
		})
	}
}

// What an operator forbids is not tried; what stands is not touched.
func TestNever(t *testing.T) {
	quiet := community("all", edge1, edge2)
	quiet.Punch = wire.PolicyNever
	const reason = "punching is forbidden (never) for beijing.edge1, by community all"
	t.Run("from the start", func(t *testing.T) {
		m := newMachine(t, quiet)
		wantReceivers[*wire.Punch](t, m.join(edge1, edge2))
		m.wantPair(edge1, edge2, Down, false, reason)
		if next := m.Next(); !next.IsZero() {
			t.Errorf("next step at %v", next)
		}
		// Permitted again, it starts at once.
		wantReceivers[*wire.Punch](t, m.Communities(m.now, []Community{community("all", edge1, edge2)}), edge1, edge2)
	})
	t.Run("by one node", func(t *testing.T) {
		m := newMachine(t, community("all", edge1, edge2))
		m.join(edge1)
		m.Online(m.now, &wire.Hello{Endpoint: endpointOf(edge2), Punch: wire.PolicyNever}, 0)
		wantReceivers[*wire.Punch](t, m.seen(edge2, "203.0.113.2:4500"))
		m.wantPair(edge1, edge2, Down, false, "punching is forbidden (never) for beijing.edge2")
	})
	t.Run("during an attempt", func(t *testing.T) {
		m := newMachine(t, community("all", edge1, edge2))
		m.join(edge1, edge2)
		wantReceivers[*wire.Cancel](t, m.Communities(m.now, []Community{quiet}), edge1, edge2)
		m.wantPair(edge1, edge2, Down, false, reason)
	})
	t.Run("with a tunnel", func(t *testing.T) {
		m := newMachine(t, community("all", edge1, edge2))
		m.join(edge1, edge2)
		m.connect(edge1, edge2)
		actions := m.Communities(m.now, []Community{quiet})
		wantReceivers[*wire.Cancel](t, actions)
		wantReceivers[*wire.Peers](t, actions)
		m.wantPair(edge1, edge2, Direct, false, "")
		wantReceivers[*wire.Punch](t, m.report(edge1, edge2, wire.OutcomeLost, ""))
		m.wantPair(edge1, edge2, Down, false, reason)
	})
}

// A tunnel that stands is not touched by what becomes known of the NATs.
func TestVerdictLeavesTheTunnel(t *testing.T) {
	m := newMachine(t, community("all", edge1, edge2))
	m.join(edge1, edge2)
	m.connect(edge1, edge2)
	m.after(time.Minute)
	for name, n := range map[wire.NodeName]wire.NAT{edge1: symmetric, edge2: portRestricted} {
		for _, a := range m.tell(name, n) {
			if s, ok := a.(send); ok {
				t.Errorf("%s for %s", s.msg.Type(), s.to)
			}
		}
	}
	v := m.pair(edge1, edge2)
	if v.State != Direct || v.Verdict.Strategy != nat.Probe {
		t.Errorf("%s, verdict %+v", v.State, v.Verdict)
	}
}

// A tunnel that stands and nobody watches, as after a restart, is not searched
// for again: its way is open. If it is not, the search follows.
func TestStandingIsNotSearched(t *testing.T) {
	m := newMachine(t, community("all", edge1, edge2))
	for name, n := range map[wire.NodeName]wire.NAT{edge1: symmetric, edge2: portRestricted} {
		m.hello(name, wire.Tunnel{Peer: map[wire.NodeName]wire.NodeName{edge1: edge2, edge2: edge1}[name]})
		m.nodes[name].nat = n
	}
	orders := sent[*wire.Punch](t, append(m.seen(edge1, "203.0.113.1:4500"), m.seen(edge2, "203.0.113.2:4500")...))
	if o := orders[edge1]; o == nil || o.Strategy != wire.StrategyOpeners {
		t.Fatalf("orders %+v", orders)
	}
	m.report(edge1, edge2, wire.OutcomeFailed, m.attempt(edge1, edge2))
	m.tick(retryMax)
	if p := m.pairs[both12]; p.attempt == nil || p.attempt.strategy != nat.Probe {
		t.Errorf("then %+v, want a search", p.attempt)
	}
}

// After an attempt without hope the reason is why there is none, and then what
// was seen.
func TestHopelessReason(t *testing.T) {
	m := newMachine(t, community("all", edge1, edge2))
	m.joinBehind(symmetric, symmetric)
	m.wantPair(edge1, edge2, Down, true, "punching")
	m.report(edge1, edge2, wire.OutcomeFailed, m.attempt(edge1, edge2))
	const why = "both NATs are symmetric with random ports: neither side's port can be known or found"
	m.wantPair(edge1, edge2, Down, false, why+"; beijing.edge1: because of it")
	m.tick(retryMax)
	m.Report(m.now, edge1, &wire.Report{Peer: edge2, Outcome: wire.OutcomeFailed, Attempt: m.attempt(edge1, edge2), Reason: why})
	m.wantPair(edge1, edge2, Down, false, why)
	// A port mapping gives hope, at once.
	m.after(retryMin)
	mapped := []wire.Candidate{mappedCandidate("203.0.113.1:4500")}
	orders := sent[*wire.Punch](t, m.Network(m.now, edge1, &wire.Network{Candidates: mapped, NAT: symmetric}))
	if o := orders[edge2]; o == nil || o.Hopeless != "" || o.Candidates[0] != mapped[0] {
		t.Errorf("order for edge2: %+v", o)
	}
	m.wantPair(edge1, edge2, Down, true, "punching")
}

// A verdict "UDP is blocked" of a former session does not survive a STUN
// request.
func TestBlockedIsForgotten(t *testing.T) {
	m := newMachine(t, community("all", edge1, edge2))
	m.join(edge2)
	m.hello(edge1)
	m.tell(edge1, wire.NAT{Blocked: "no answer"})
	m.Offline(m.now, edge1)
	m.after(retryMin)
	m.hello(edge1)
	if o := sent[*wire.Punch](t, m.seen(edge1, "203.0.113.1:4500"))[edge2]; o == nil || o.Hopeless != "" {
		t.Errorf("order: %+v", o)
	}
}
