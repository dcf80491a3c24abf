package rendezvous

import (
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

func peerNames(m *wire.Peers) (names []wire.NodeName) {
	for _, p := range m.Peers {
		names = append(names, p.Endpoint.Name)
	}
	return names
}

// lastPeers is what a node was told last of its peers.
func lastPeers(actions []action) map[wire.NodeName][]wire.NodeName {
	last := map[wire.NodeName][]wire.NodeName{}
	for _, a := range actions {
		if s, ok := a.(send); ok {
			if m, ok := s.msg.(*wire.Peers); ok {
				last[s.to] = peerNames(m)
			}
		}
	}
	return last
}

func pairIDs(m *machine) (ids []string) {
	for _, v := range m.Views() {
		ids = append(ids, string(v.ID))
	}
	return ids
}

func TestPeersAreComplete(t *testing.T) {
	m := newMachine(t, community("all", edge1, edge2, edge3))
	steps := []struct {
		name string
		do   func() []action
		want map[wire.NodeName][]wire.NodeName
	}{
		{"alone", func() []action { return m.hello(edge1) }, map[wire.NodeName][]wire.NodeName{edge1: nil}},
		{"a second", func() []action { return m.hello(edge2) }, map[wire.NodeName][]wire.NodeName{edge1: {edge2}, edge2: {edge1}}},
		{"who is offline is a peer all the same", func() []action { return m.Offline(m.now, edge2) }, map[wire.NodeName][]wire.NodeName{}},
		{"a new session hears it anew", func() []action { return m.hello(edge1) }, map[wire.NodeName][]wire.NodeName{edge1: {edge2}}},
		{"who is of no community is nobody's peer", func() []action { return m.hello(edge4) }, map[wire.NodeName][]wire.NodeName{edge4: nil}},
		{"the same communities again", func() []action {
			return m.Communities(m.now, []Community{community("all", edge1, edge2, edge3)})
		}, map[wire.NodeName][]wire.NodeName{}},
		{"into a community", func() []action {
			return m.Communities(m.now, []Community{community("all", edge1, edge2, edge3), community("far", edge1, edge4)})
		}, map[wire.NodeName][]wire.NodeName{edge1: {edge2, edge4}, edge4: {edge1}}},
		{"out of all", func() []action { return m.Communities(m.now, nil) }, map[wire.NodeName][]wire.NodeName{edge1: nil, edge4: nil}},
	}
	for _, s := range steps {
		if got := lastPeers(s.do()); !reflect.DeepEqual(got, s.want) {
			t.Errorf("%s: peers %v, want %v", s.name, got, s.want)
		}
	}
}

func TestPeersHearOfNewSubnets(t *testing.T) {
	m := newMachine(t, community("all", edge1, edge2))
	m.join(edge1, edge2)
	e := endpointOf(edge2)
	e.Subnets = append(e.Subnets, netip.MustParsePrefix("10.99.0.0/24"))
	peers := sent[*wire.Peers](t, m.Online(m.now, &wire.Hello{Endpoint: e}, 0))
	if got := peers[edge1]; got == nil || !reflect.DeepEqual(got.Peers[0].Endpoint, e) {
		t.Errorf("edge1 hears %+v, want the new subnet", got)
	}
}

func TestRolesAndPlans(t *testing.T) {
	second := wire.NodeName("beijing.connector2")
	tests := []struct {
		a, b         wire.NodeName // a is controlling
		plan         wire.Plan
		communityToo bool
	}{
		{edge1, edge2, wire.PlanICE, true},
		{edge3, edge4, wire.PlanICE, true},
		{edge1, connector, wire.PlanPublic, false},
		{edge1, second, wire.PlanPublic, false},
		{edge4, connector, wire.PlanPublic, true}, // the other cluster's: by community alone
		{connector, second, wire.PlanPublic, true},
	}
	for _, tt := range tests {
		t.Run(string(tt.a)+" "+string(tt.b), func(t *testing.T) {
			m := newMachine(t)
			if tt.communityToo {
				m.Communities(m.now, []Community{community("one", tt.a, tt.b)})
			}
			told := map[wire.NodeName]wire.Peer{}
			for _, a := range m.join(tt.a, tt.b) {
				if s, ok := a.(send); ok {
					if p, ok := s.msg.(*wire.Peers); ok && len(p.Peers) == 1 {
						told[s.to] = p.Peers[0]
					}
				}
			}
			a, b := told[tt.a], told[tt.b]
			if a.Endpoint.Name != tt.b || b.Endpoint.Name != tt.a {
				t.Fatalf("%s has peer %q, %s has %q", tt.a, a.Endpoint.Name, tt.b, b.Endpoint.Name)
			}
			if a.Role != wire.Controlling || b.Role != wire.Controlled {
				t.Errorf("roles %s and %s", a.Role, b.Role)
			}
			if a.Plan != tt.plan || b.Plan != tt.plan {
				t.Errorf("plans %s and %s, want %s", a.Plan, b.Plan, tt.plan)
			}
			if punching := m.pair(tt.a, tt.b).Punching; punching != (tt.plan == wire.PlanICE) {
				t.Errorf("punching: %v", punching)
			}
		})
	}
}

// Without any community each connector has the edges of its own cluster, and
// nobody else anybody.
func TestConnectorPairs(t *testing.T) {
	m := newMachine(t)
	m.join(edge1, edge2, edge4, connector, "beijing.connector2", "shanghai.connector")
	want := []string{
		"beijing.connector2|beijing.edge1", "beijing.connector2|beijing.edge2",
		"beijing.connector|beijing.edge1", "beijing.connector|beijing.edge2",
		"shanghai.connector|shanghai.edge4",
	}
	got := pairIDs(m)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("pairs %q, want %q", got, want)
	}
	m.Communities(m.now, []Community{community("gate", edge1, connector)})
	if v := m.pair(edge1, connector); !slices.Equal(v.Communities, []string{"gate"}) {
		t.Errorf("communities %q", v.Communities)
	}
	m.Communities(m.now, nil)
	if v := m.pair(edge1, connector); len(v.Communities) != 0 {
		t.Errorf("communities %q after leaving", v.Communities)
	}
}

func TestConnectorPairBecomesDirectWithoutAnAttempt(t *testing.T) {
	m := newMachine(t)
	m.join(edge1, connector)
	m.wantPair(edge1, connector, Down, false, "waiting for the tunnel")
	m.report(edge1, connector, wire.OutcomeDirect, "")
	m.report(connector, edge1, wire.OutcomeDirect, "")
	m.wantPair(edge1, connector, Direct, false, "")
	actions := m.report(edge1, connector, wire.OutcomeLost, "")
	wantReceivers[*wire.Punch](t, actions)
	m.wantPair(edge1, connector, Down, false, "beijing.edge1: because of it")
	m.report(edge1, connector, wire.OutcomeFailed, "")
	m.wantPair(edge1, connector, Down, false, "beijing.edge1: because of it")
	m.report(edge1, connector, wire.OutcomeDirect, "")
	m.wantPair(edge1, connector, Direct, false, "")
	if next := m.Next(); !next.IsZero() {
		t.Errorf("next step at %v: an edge retries its connector by itself", next)
	}
}

func TestLeavingACommunity(t *testing.T) {
	m := newMachine(t, community("all", edge1, edge2, edge3))
	m.join(edge1, edge2, edge3)
	m.connect(edge1, edge3)
	id := m.attempt(edge1, edge2)
	actions := m.Communities(m.now, []Community{community("all", edge1, edge3)})

	if got, want := lastPeers(actions), (map[wire.NodeName][]wire.NodeName{edge1: {edge3}, edge2: nil, edge3: {edge1}}); !reflect.DeepEqual(got, want) {
		t.Errorf("peers %v, want %v", got, want)
	}
	cancels := map[wire.NodeName]int{}
	var forgotten []wire.PairID
	for _, a := range actions {
		switch a := a.(type) {
		case send:
			if c, ok := a.msg.(*wire.Cancel); ok {
				cancels[a.to]++
				if !strings.Contains(c.Reason, "no longer share a community") {
					t.Errorf("cancelled with %q", c.Reason)
				}
			}
		case forget:
			forgotten = append(forgotten, a.id)
		}
	}
	if want := (map[wire.NodeName]int{edge1: 1, edge2: 2, edge3: 1}); !reflect.DeepEqual(cancels, want) {
		t.Errorf("cancels %v, want %v", cancels, want)
	}
	if want := []wire.PairID{both12, wire.NewPairID(string(edge2), string(edge3))}; !slices.Equal(forgotten, want) {
		t.Errorf("forgotten %v, want %v", forgotten, want)
	}
	m.wantPair(edge1, edge3, Direct, false, "")
	if got := m.report(edge1, edge2, wire.OutcomeDirect, id); len(got) != 1 || got[0].(refuseReport).node != edge1 {
		t.Errorf("a report on the ended pair: %v, want it refused", got)
	}
	if got := pairIDs(m); len(got) != 1 {
		t.Errorf("pairs %q", got)
	}
}

// One community of two is left: the pair stays as it is.
func TestLeavingOneOfTwoCommunities(t *testing.T) {
	m := newMachine(t, community("a", edge1, edge2), community("b", edge1, edge2))
	m.join(edge1, edge2)
	id := m.attempt(edge1, edge2)
	actions := m.Communities(m.now, []Community{community("b", edge1, edge2)})
	wantReceivers[*wire.Cancel](t, actions)
	if m.attempt(edge1, edge2) != id || !slices.Equal(m.pair(edge1, edge2).Communities, []string{"b"}) {
		t.Errorf("%+v", m.pair(edge1, edge2))
	}
}

// A rendezvous that has just started learns from the hellos what stands.
func TestStandingTunnels(t *testing.T) {
	tunnel := func(to wire.NodeName, monitored bool) wire.Tunnel {
		return wire.Tunnel{Peer: to, Monitored: monitored, Path: wire.Path{Remote: netip.MustParseAddrPort("203.0.113.9:4500")}}
	}
	none := []wire.Tunnel(nil)
	tests := []struct {
		name     string
		one, two []wire.Tunnel // of edge1 and edge2
		state    State
		punches  bool
	}{
		{"both watch it", []wire.Tunnel{tunnel(edge2, true)}, []wire.Tunnel{tunnel(edge1, true)}, Direct, false},
		{"one does not watch it", []wire.Tunnel{tunnel(edge2, true)}, []wire.Tunnel{tunnel(edge1, false)}, Direct, true},
		{"nobody watches it", []wire.Tunnel{tunnel(edge2, false)}, []wire.Tunnel{tunnel(edge1, false)}, Direct, true},
		{"only one has it", []wire.Tunnel{tunnel(edge2, true)}, none, Down, true},
		{"only the other has it", none, []wire.Tunnel{tunnel(edge1, true)}, Down, true},
		{"no tunnel", none, none, Down, true},
		{"a tunnel to somebody else", []wire.Tunnel{tunnel(edge3, true)}, []wire.Tunnel{tunnel(edge3, true)}, Down, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newMachine(t, community("all", edge1, edge2))
			m.hello(edge1, tt.one...)
			m.seen(edge1, "203.0.113.1:4500")
			if len(tt.one) > 0 && tt.one[0].Peer == edge2 {
				m.wantPair(edge1, edge2, Direct, false, "") // edge2 has not contradicted
			}
			m.hello(edge2, tt.two...)
			actions := m.seen(edge2, "203.0.113.2:4500")
			if got := len(sent[*wire.Punch](t, actions)) == 2; got != tt.punches {
				t.Errorf("punch ordered: %v", got)
			}
			if v := m.pair(edge1, edge2); v.State != tt.state || v.Punching != tt.punches {
				t.Errorf("%s, punching %v", v.State, v.Punching)
			}
		})
	}
}

// After the store was lost, members come back before their connector or their
// community does. What they have said of their tunnels counts once there is a
// pair.
func TestStandingTunnelsOfLaterPairs(t *testing.T) {
	for _, tt := range []struct {
		name  string
		then  func(*machine) []action // before the connector is back
		state State
	}{
		{"it stands", func(*machine) []action { return nil }, Direct},
		{"lost meanwhile", func(m *machine) []action { return m.report(edge1, connector, wire.OutcomeLost, "") }, Down},
		{"offline meanwhile", func(m *machine) []action { return m.Offline(m.now, edge1) }, Direct}, // it has not contradicted
		{"another session without it", func(m *machine) []action { return m.hello(edge1)[:0] }, Down},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newMachine(t)
			m.hello(edge1, wire.Tunnel{Peer: connector, Relay: true}, wire.Tunnel{Peer: edge2})
			if got := tt.then(m); len(got) != 0 {
				t.Errorf("%v, want nothing done or held against it", got)
			}
			m.hello(connector, wire.Tunnel{Peer: edge1, Relay: true})
			if v := m.pair(edge1, connector); v.State != tt.state {
				t.Errorf("%+v, want %s", v, tt.state)
			}
		})
	}
	t.Run("a community that is applied again", func(t *testing.T) {
		m := newMachine(t)
		m.hello(edge1, wire.Tunnel{Peer: edge2, Monitored: true})
		m.hello(edge2, wire.Tunnel{Peer: edge1, Monitored: true})
		m.seen(edge1, "203.0.113.1:4500")
		m.seen(edge2, "203.0.113.2:4500")
		all := []Community{community("all", edge1, edge2)}
		wantReceivers[*wire.Punch](t, m.Communities(m.now, all))
		m.wantPair(edge1, edge2, Direct, false, "")
		// Gone and applied once more, the agents have ended it.
		m.Communities(m.now, nil)
		m.Communities(m.now, all)
		m.wantPair(edge1, edge2, Down, true, "punching")
	})
}

// Punching for the monitor's sake must not take a tunnel down that stands.
func TestFailedMonitorLeavesTheTunnel(t *testing.T) {
	m := newMachine(t, community("all", edge1, edge2))
	m.hello(edge1, wire.Tunnel{Peer: edge2})
	m.seen(edge1, "203.0.113.1:4500")
	m.hello(edge2, wire.Tunnel{Peer: edge1})
	m.seen(edge2, "203.0.113.2:4500")
	m.after(10 * time.Second)
	m.report(edge1, edge2, wire.OutcomeFailed, m.attempt(edge1, edge2))
	m.wantPair(edge1, edge2, Direct, false, "")
	wantReceivers[*wire.Punch](t, m.toRetry(), edge1, edge2)
	m.wantPair(edge1, edge2, Direct, true, "")
	m.tick(attemptTimeout)
	m.wantPair(edge1, edge2, Direct, false, "")
	m.toRetry()
	m.connect(edge1, edge2)
	m.wantPair(edge1, edge2, Direct, false, "")
	if next := m.Next(); !next.IsZero() {
		t.Errorf("next step at %v", next)
	}
}

func TestRestore(t *testing.T) {
	last := time.Unix(1_600_000_000, 0)
	m := &machine{t: t, coordinator: newCoordinator(rand.New(rand.NewPCG(1, 2))), now: time.Unix(1_700_000_000, 0)}
	m.Restore(m.now, []NodeView{{Name: edge1, Endpoint: endpointOf(edge1)}, {Name: edge2, Endpoint: endpointOf(edge2)}},
		[]Community{community("all", edge1, edge2, edge3)},
		[]PairView{
			{ID: both12, State: Direct, Attempts: 7, TimeToDirectMs: 1000, LastDirect: last},
			{ID: "no.longer|wanted", Attempts: 3},
		})
	if got := m.flush(); len(got) != 0 {
		t.Errorf("what is restored is no news: %v", got)
	}
	v := m.pair(edge1, edge2)
	if v.Attempts != 7 || v.TimeToDirectMs != 1000 || !v.LastDirect.Equal(last) {
		t.Errorf("%+v", v)
	}
	// Whether its tunnel stands, an agent will say.
	m.wantPair(edge1, edge2, Down, false, "beijing.edge1 is offline")
	m.wantPair(edge1, edge3, Down, false, "beijing.edge1 is offline")
	if got := pairIDs(m); len(got) != 3 {
		t.Errorf("pairs %q", got)
	}
	// The first one back hears of all its known peers at once, so that it has
	// no reason to take a tunnel down.
	if got := lastPeers(m.hello(edge1)); !reflect.DeepEqual(got, map[wire.NodeName][]wire.NodeName{edge1: {edge2}}) {
		t.Errorf("peers %v", got)
	}
	m.wantPair(edge1, edge3, Down, false, "waiting for beijing.edge1's first STUN request")
}

func TestAdmit(t *testing.T) {
	prefixes := func(texts ...string) (ps []netip.Prefix) {
		for _, s := range texts {
			ps = append(ps, netip.MustParsePrefix(s))
		}
		return ps
	}
	tests := []struct {
		name                 string
		subnets, nodeSubnets []netip.Prefix
		wrong                string // part of the error; empty for none
	}{
		{"its own", prefixes("10.2.0.0/24"), prefixes("192.168.1.20/32"), ""},
		{"beside the other's", prefixes("10.1.1.0/24"), nil, ""},
		{"the other's", prefixes("10.1.0.0/24"), nil, "endpoint.subnets: 10.1.0.0/24 overlaps 10.1.0.0/24 of beijing.edge1"},
		{"around the other's", prefixes("10.2.0.0/24", "10.0.0.0/8"), nil, "10.0.0.0/8 overlaps 10.1.0.0/24 of beijing.edge1"},
		{"within the other's", prefixes("10.1.0.128/25"), nil, "10.1.0.128/25 overlaps 10.1.0.0/24 of beijing.edge1"},
		{"the other's IPv6", prefixes("fd00:1::/64"), nil, "fd00:1::/64 overlaps fd00:1::/48 of beijing.edge1"},
		{"the other's node as a subnet", prefixes("192.168.1.0/24"), nil, "192.168.1.0/24 overlaps 192.168.1.10/32 of beijing.edge1"},
		{"the other's subnet as a node", nil, prefixes("10.1.0.7/32"), "endpoint.nodeSubnets: 10.1.0.7/32 overlaps subnet 10.1.0.0/24 of beijing.edge1"},
		// Two homes may number their networks alike.
		{"the other's node address", nil, prefixes("192.168.1.10/32"), ""},
	}
	for _, online := range []bool{true, false} {
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				m := newMachine(t)
				first := endpointOf(edge1)
				first.Subnets, first.NodeSubnets = prefixes("10.1.0.0/24", "fd00:1::/48"), prefixes("192.168.1.10/32")
				m.Online(m.now, &wire.Hello{Endpoint: first}, 0)
				if !online {
					m.Offline(m.now, edge1)
				}
				second := endpointOf(edge2)
				second.Subnets, second.NodeSubnets = tt.subnets, tt.nodeSubnets
				err := m.Admit(second)
				if tt.wrong == "" && err != nil || tt.wrong != "" && (err == nil || !strings.Contains(err.Error(), tt.wrong)) {
					t.Errorf("%v, want %q", err, tt.wrong)
				}
				// The node itself may come again with the same.
				if err := m.Admit(first); err != nil {
					t.Errorf("edge1 again: %v", err)
				}
			})
		}
	}
}

// A node that is gone for good gives its subnets back; one that is online stays.
func TestForget(t *testing.T) {
	m := newMachine(t, community("all", edge1, edge2))
	m.join(edge1, edge2)
	m.connect(edge1, edge2)
	if got := m.Forget(m.now, edge2); got != nil || m.nodes[edge2] == nil {
		t.Errorf("an online node was forgotten: %v", got)
	}
	m.Offline(m.now, edge2)
	taken := endpointOf(edge2)
	taken.Name = edge3
	if m.Admit(taken) == nil {
		t.Error("the subnets of an offline node were given away")
	}
	m.Forget(m.now, edge2)
	if err := m.Admit(taken); err != nil {
		t.Errorf("the subnets of a forgotten node: %v", err)
	}
	m.wantPair(edge1, edge2, Down, false, "beijing.edge2 has never been online, or was deleted")
}

// An end of a connector's tunnel that believes in it is told when the other has
// lost it; of a punched pair the next order tells.
func TestRetryIsSuggested(t *testing.T) {
	m := newMachine(t, community("all", edge1, edge2))
	m.join(connector, edge1, edge2)
	m.connect(edge1, edge2)
	m.report(edge1, connector, wire.OutcomeDirect, "")
	m.report(connector, edge1, wire.OutcomeDirect, "")
	got := sent[*wire.Retry](t, m.report(connector, edge1, wire.OutcomeLost, ""))
	if len(got) != 1 || got[edge1] == nil || got[edge1].Peer != connector || got[edge1].Reason == "" {
		t.Errorf("lost at the connector: %v, want edge1 told", got)
	}
	if got := sent[*wire.Retry](t, m.report(connector, edge1, wire.OutcomeDirect, "")); len(got) != 0 {
		t.Errorf("direct again: %v", got)
	}
	if got := sent[*wire.Retry](t, m.hello(connector)); len(got) != 1 || got[edge1] == nil {
		t.Errorf("the connector comes back without the tunnel: %v, want edge1 told", got)
	}
	if got := sent[*wire.Retry](t, m.report(edge1, edge2, wire.OutcomeLost, "")); len(got) != 0 {
		t.Errorf("a punched pair: %v", got)
	}
}
