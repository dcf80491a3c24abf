package rendezvous

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// newRelaying is a machine with a connector that relays.
func newRelaying(t *testing.T, cs ...Community) *machine {
	m := newMachine(t)
	m.relaying = relaying{enabled: true}
	m.Communities(m.now, cs)
	m.join(connector)
	return m
}

// says lets one end of an edge's tunnel with the connector speak.
func (m *machine) says(from, peer wire.NodeName, relay bool, note string) []action {
	return m.Report(m.now, from, &wire.Report{Peer: peer, Outcome: wire.OutcomeDirect, Relay: relay, Reason: note})
}

// carries brings the relay of edges up, or down.
func (m *machine) carries(up bool, edges ...wire.NodeName) (out []action) {
	for _, edge := range edges {
		out = append(out, m.says(edge, connector, up, "")...)
		out = append(out, m.says(connector, edge, up, "")...)
	}
	return out
}

func prefixes(texts ...string) (ps []netip.Prefix) {
	for _, s := range texts {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

func TestRelayRanges(t *testing.T) {
	var far []string // in more networks than a message may name
	for i := range wire.MaxSubnets + 1 {
		far = append(far, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 1, 0}), 24).String())
	}
	tests := []struct {
		name       string
		subnets    map[wire.NodeName][]netip.Prefix
		configured []netip.Prefix
		ranges     []netip.Prefix
		missing    map[wire.NodeName]string // part of why; who is not here is relayed
	}{
		{name: "widened to the network around",
			subnets: map[wire.NodeName][]netip.Prefix{edge1: prefixes("10.233.66.0/24"), edge2: prefixes("10.233.67.0/24", "fd00:1:2:3::/64")},
			ranges:  prefixes("10.233.0.0/16", "fd00:1:2::/48")},
		{name: "two networks",
			subnets: map[wire.NodeName][]netip.Prefix{edge1: prefixes("10.233.66.0/24"), edge2: prefixes("10.9.0.0/17")},
			ranges:  prefixes("10.9.0.0/16", "10.233.0.0/16")},
		{name: "as wide already",
			subnets: map[wire.NodeName][]netip.Prefix{edge1: prefixes("10.233.0.0/16"), edge2: prefixes("fd00:1:2::/48", "10.7.0.0/16")},
			ranges:  prefixes("10.6.0.0/15", "10.232.0.0/15", "fd00:1:2::/47")},
		{name: "one within another",
			subnets: map[wire.NodeName][]netip.Prefix{edge1: prefixes("10.64.0.0/10"), edge2: prefixes("10.5.1.0/24")},
			ranges:  prefixes("10.0.0.0/9")},
		{name: "too wide to have anything around it",
			subnets: map[wire.NodeName][]netip.Prefix{edge1: prefixes("10.0.0.0/8"), edge2: prefixes("172.16.1.0/24")},
			ranges:  prefixes("172.16.0.0/16"),
			missing: map[wire.NodeName]string{edge1: "subnet 10.0.0.0/8 of beijing.edge1 is too wide"}},
		{name: "no subnets",
			subnets: map[wire.NodeName][]netip.Prefix{edge1: nil, edge2: prefixes("10.5.1.0/24")},
			ranges:  prefixes("10.5.0.0/16"),
			missing: map[wire.NodeName]string{edge1: "beijing.edge1 has no subnets"}},
		{name: "more networks than can be told",
			subnets: map[wire.NodeName][]netip.Prefix{edge1: prefixes("172.16.1.0/24"), edge2: prefixes(far...)},
			ranges:  prefixes("172.16.0.0/16"),
			missing: map[wire.NodeName]string{edge2: "set relay.ranges"}},
		{name: "configured",
			subnets:    map[wire.NodeName][]netip.Prefix{edge1: prefixes("10.233.66.0/24"), edge2: prefixes("10.233.67.0/24", "fd00:1::/64")},
			configured: prefixes("10.233.64.0/18", "fd00:1::/32", "10.233.64.0/20"),
			ranges:     prefixes("10.233.64.0/18", "fd00:1::/32")},
		{name: "configured, but one subnet lies outside",
			subnets:    map[wire.NodeName][]netip.Prefix{edge1: prefixes("10.233.66.0/24"), edge2: prefixes("10.233.67.0/24", "10.9.1.0/24")},
			configured: prefixes("10.233.64.0/18"), ranges: prefixes("10.233.64.0/18"),
			missing: map[wire.NodeName]string{edge2: "no range around subnet 10.9.1.0/24 of beijing.edge2"}},
		{name: "configured, no wider than a subnet",
			subnets:    map[wire.NodeName][]netip.Prefix{edge1: prefixes("10.233.64.0/18"), edge2: prefixes("10.233.0.0/17")},
			configured: prefixes("10.233.64.0/18"),
			missing:    map[wire.NodeName]string{edge1: "that is wider", edge2: "that is wider"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			berths := berthsAt(connector, tt.subnets, tt.configured)
			for name, subnets := range tt.subnets {
				b, missing := berths[name], tt.missing[name]
				if missing != "" {
					if b.connector != "" || b.ranges != nil || !strings.Contains(b.missing, missing) {
						t.Errorf("%s: %+v, want none: %s", name, b, missing)
					}
					continue
				}
				if b.connector != connector || b.missing != "" || !slices.Equal(b.ranges, tt.ranges) {
					t.Errorf("%s: %+v, want %v", name, b, tt.ranges)
				}
				for _, s := range subnets {
					if outside(name, []netip.Prefix{s}, b.ranges) != "" {
						t.Errorf("%s: nothing around %s in %v", name, s, b.ranges)
					}
				}
			}
			relay := wire.Peers{Peers: []wire.Peer{{Endpoint: endpointOf(edge1), Plan: wire.PlanPublic, Role: wire.Controlled, Relay: tt.ranges}}}
			if err := relay.Validate(); err != nil {
				t.Errorf("nobody would take it: %v", err)
			}
		})
	}
}

// What is needed for a relay is told at the hello, to connectors first.
func TestRelayIsToldAtOnce(t *testing.T) {
	m := newRelaying(t, community("all", edge1, edge2, edge4))
	m.hello(edge1)
	actions := m.hello(edge2)
	want := prefixes("10.10.0.0/16")
	relays := func(actions []action, to, peer wire.NodeName) []netip.Prefix {
		for _, a := range actions {
			if s, ok := a.(send); ok && s.to == to {
				if m, ok := s.msg.(*wire.Peers); ok {
					for _, p := range m.Peers {
						if p.Endpoint.Name == peer {
							return p.Relay
						}
					}
				}
			}
		}
		return nil
	}
	for _, ends := range [][2]wire.NodeName{{edge2, connector}, {connector, edge2}} {
		if got := relays(actions, ends[0], ends[1]); !slices.Equal(got, want) {
			t.Errorf("%s hears of %s with relay %v, want %v", ends[0], ends[1], got, want)
		}
	}
	if got := relays(actions, edge2, edge1); got != nil {
		t.Errorf("edge1 relays %v for edge2", got)
	}
	var order []string
	for _, a := range actions {
		if s, ok := a.(send); ok {
			order = append(order, string(s.to)+" "+s.msg.Type())
		}
	}
	if want := []string{"beijing.connector peers", "beijing.connector forwarding", "beijing.edge1 peers", "beijing.edge2 peers"}; !slices.Equal(order, want) {
		t.Errorf("told in the order %q, want %q", order, want)
	}
	// Of another cluster, it has no pair with this connector.
	if got := m.hello(edge4); relays(got, edge4, connector) != nil {
		t.Errorf("edge4 is relayed by a connector of another cluster: %v", got)
	}
	// Nobody to talk to, nothing to relay.
	m.Communities(m.now, nil)
	if got := m.hello(edge1); relays(got, edge1, connector) != nil {
		t.Errorf("edge1 is relayed to nobody: %v", got)
	}
}

func TestForwarding(t *testing.T) {
	group := func(name string, nodes ...wire.NodeName) wire.Group { return wire.Group{Community: name, Nodes: nodes} }
	both := []Community{community("a", edge1, edge2), community("b", edge2, edge3)}
	m := newMachine(t)
	m.relaying = relaying{enabled: true}
	m.Communities(m.now, both)
	second := wire.NodeName("beijing.connector2")
	steps := []struct {
		name string
		do   func() []action
		want []wire.Group // nil for no message
	}{
		{"nobody to relay for", func() []action { return m.hello(connector) }, []wire.Group{}},
		{"one member", func() []action { return m.hello(edge2) }, nil},
		{"two of one community", func() []action { return m.hello(edge1) }, []wire.Group{group("a", edge1, edge2)}},
		{"and of another", func() []action { return m.hello(edge3) }, []wire.Group{group("a", edge1, edge2), group("b", edge2, edge3)}},
		{"again", func() []action { return m.hello(edge3) }, nil},
		{"who is offline is a member", func() []action { return m.Offline(m.now, edge3) }, nil},
		{"a new session hears it anew", func() []action { return m.hello(connector) }, []wire.Group{group("a", edge1, edge2), group("b", edge2, edge3)}},
		{"another connector relays for nobody", func() []action { return m.hello(second) }, []wire.Group{}},
		{"a community ends", func() []action { return m.Communities(m.now, both[:1]) }, []wire.Group{group("a", edge1, edge2)}},
		{"another cluster's member", func() []action {
			m.hello(edge4)
			return m.Communities(m.now, []Community{community("a", edge1, edge2, edge4)})
		}, nil},
		{"all end", func() []action { return m.Communities(m.now, nil) }, []wire.Group{}},
	}
	for _, s := range steps {
		actions := s.do()
		var got []wire.Group
		peersFirst := true
		for _, a := range actions {
			if a, ok := a.(send); ok {
				switch msg := a.msg.(type) {
				case *wire.Forwarding:
					got = msg.Groups
					if err := msg.Validate(); err != nil {
						t.Errorf("%s: %v", s.name, err)
					}
				case *wire.Peers:
					peersFirst = peersFirst && (got == nil || a.to != connector)
				}
			}
		}
		if !reflect.DeepEqual(got, s.want) || !peersFirst {
			t.Errorf("%s: %v, want %v; after the peers: %v", s.name, got, s.want, peersFirst)
		}
	}
}

func TestRelayedTakesEveryEnd(t *testing.T) {
	type word struct{ from, peer wire.NodeName }
	all := []word{{edge1, connector}, {connector, edge1}, {edge2, connector}, {connector, edge2}}
	for missing := range len(all) + 1 {
		m := newRelaying(t, community("all", edge1, edge2))
		m.join(edge1, edge2)
		for i, w := range all {
			if i != missing {
				m.says(w.from, w.peer, true, "")
			}
		}
		v := m.pair(edge1, edge2)
		if missing < len(all) {
			if v.State != Down || v.Relay != "" || !strings.Contains(v.Reason, "; no relay: ") {
				t.Errorf("without a word of %v: %+v", all[missing], v)
			}
			continue
		}
		if v.State != Relayed || v.Relay != connector || v.Reason != "punching" || !v.Since.Equal(m.now) {
			t.Errorf("%+v", v)
		}
		for _, edge := range []wire.NodeName{edge1, edge2} {
			if v := m.pair(edge, connector); v.State != Direct || v.Relay != connector {
				t.Errorf("%+v", v)
			}
		}
	}
	t.Run("a pair of edges cannot relay for itself", func(t *testing.T) {
		m := newRelaying(t, community("all", edge1, edge2))
		m.join(edge1, edge2)
		m.says(edge1, edge2, true, "")
		m.says(edge2, edge1, true, "")
		if v := m.pair(edge1, edge2); v.Relay != "" {
			t.Errorf("%+v", v)
		}
	})
	t.Run("a connector of another cluster does not", func(t *testing.T) {
		m := newRelaying(t, community("all", edge1, edge4), community("gate", edge4, connector))
		m.join(edge1, edge4)
		m.carries(true, edge1, edge4)
		if v := m.pair(edge1, edge4); v.State != Down || !strings.Contains(v.Reason, "connectors relay within their cluster, and these are of beijing and shanghai") {
			t.Errorf("%+v", v)
		}
	})
}

// What stands is taken over by a rendezvous that was started again, from
// whatever end is back first.
func TestRelayAfterARestart(t *testing.T) {
	m := newMachine(t)
	m.relaying = relaying{enabled: true}
	since := m.now.Add(-time.Hour)
	var nodes []NodeView
	for _, name := range []wire.NodeName{connector, edge1, edge2} {
		nodes = append(nodes, NodeView{Name: name, Endpoint: endpointOf(name)})
	}
	m.Restore(m.now, nodes, []Community{community("all", edge1, edge2)}, []PairView{{ID: both12, State: Relayed, Since: since}})
	tunnel := wire.Tunnel{Peer: connector, Relay: true}
	m.hello(edge1, tunnel)
	if v := m.pair(edge1, edge2); v.State != Down {
		t.Errorf("with one end back: %+v", v)
	}
	m.hello(edge2, tunnel)
	if v := m.pair(edge1, edge2); v.State != Relayed || !v.Since.Equal(since) {
		t.Errorf("with both back: %+v, want relayed since %v", v, since)
	}
	m.hello(connector)
	if v := m.pair(edge1, edge2); v.State != Down {
		t.Errorf("the connector has no tunnel: %+v", v)
	}
}

func TestNoRelayReasons(t *testing.T) {
	tests := []struct {
		name string
		do   func(*machine)
		want string
	}{
		{"its tunnel is not there yet", func(m *machine) { m.carries(true, edge2) },
			"punching; no relay: the tunnel of beijing.edge1 with beijing.connector is down: waiting for the tunnel"},
		{"it is there, and does not relay yet", func(m *machine) { m.carries(false, edge1) },
			"punching; no relay: the tunnel of beijing.edge1 with beijing.connector does not relay yet"},
		{"the other's", func(m *machine) { m.carries(true, edge1); m.carries(false, edge2) },
			"punching; no relay: the tunnel of beijing.edge2 with beijing.connector does not relay yet"},
		{"the connector says why", func(m *machine) { m.says(connector, edge1, false, "net.ipv4.ip_forward is 0") },
			"punching; no relay: beijing.connector says: net.ipv4.ip_forward is 0"},
		{"the edge says why", func(m *machine) { m.carries(true, edge1); m.says(edge1, connector, false, "no CHILD\x1b SA") },
			"punching; no relay: beijing.edge1 says: no CHILD  SA"},
		{"the connector is offline", func(m *machine) { m.Offline(m.now, connector) },
			"punching; no relay: beijing.connector is offline"},
		{"UDP is blocked", func(m *machine) {
			m.Network(m.now, edge1, &wire.Network{NAT: wire.NAT{Blocked: "no answer"}})
			m.failCurrent(edge1)
		}, "UDP does not leave the network of beijing.edge1: no answer; beijing.edge1: because of it; " +
			"no relay: strongSwan needs UDP to the connector, too, and it does not leave the network of beijing.edge1"},
		{"an edge is offline", func(m *machine) { m.Offline(m.now, edge1) }, "beijing.edge1 is offline"},
		{"the connector is forgotten", func(m *machine) { m.Offline(m.now, connector); m.Forget(m.now, connector) },
			"punching; no relay: there is no connector in cluster beijing"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newRelaying(t, community("all", edge1, edge2))
			m.join(edge1, edge2)
			tt.do(m)
			if v := m.pair(edge1, edge2); v.State != Down || v.Relay != "" || v.Reason != tt.want {
				t.Errorf("%s, relay %q, %q\nwant %q", v.State, v.Relay, v.Reason, tt.want)
			}
		})
	}
	t.Run("never online", func(t *testing.T) {
		m := newRelaying(t, community("all", edge1, edge2))
		m.join(edge1)
		m.wantPair(edge1, edge2, Down, false, "beijing.edge2 has never been online, or was deleted")
	})
	t.Run("turned off", func(t *testing.T) {
		m := newMachine(t, community("all", edge1, edge2))
		m.join(connector, edge1, edge2)
		m.carries(true, edge1, edge2)
		m.wantPair(edge1, edge2, Down, true, "punching")
	})
}

// A change of one edge's relay is news of that edge's pairs alone.
func TestRelayTouchesItsOwnPairs(t *testing.T) {
	m := newRelaying(t, community("all", edge1, edge2, edge3))
	m.join(edge1, edge2, edge3)
	m.carries(true, edge1, edge2)
	var changed []wire.PairID
	for _, a := range m.carries(true, edge3) {
		if r, ok := a.(record); ok {
			changed = append(changed, r.pair.ID)
		}
	}
	slices.Sort(changed)
	want := []wire.PairID{wire.NewPairID(string(connector), string(edge3)), wire.NewPairID(string(edge1), string(edge3)), wire.NewPairID(string(edge2), string(edge3))}
	if got := slices.Compact(changed); !slices.Equal(got, want) {
		t.Errorf("changed %v, want %v", got, want)
	}
	for _, a := range m.carries(false, edge3) {
		if r, ok := a.(record); ok && r.pair.ID != want[0] && (r.pair.State != Down || r.pair.Relay != "") {
			t.Errorf("%+v", r.pair)
		}
	}
	if v := m.pair(edge1, edge2); v.State != Relayed {
		t.Errorf("%+v", v)
	}
}

// A tunnel with the connector needs no session: the pair stays relayed until one
// of its ends says otherwise, and tells of the end that is offline.
func TestRelayedWhileOffline(t *testing.T) {
	m := newRelaying(t, community("all", edge1, edge2))
	m.join(edge1, edge2)
	m.carries(true, edge1, edge2)
	m.Offline(m.now, edge2)
	m.wantPair(edge1, edge2, Relayed, false, "beijing.edge2 is offline; its tunnel with beijing.connector stands, as far as is known")
	m.Report(m.now, connector, &wire.Report{Peer: edge2, Outcome: wire.OutcomeLost, Reason: "it is dead"})
	m.wantPair(edge1, edge2, Down, false, "beijing.edge2 is offline")
}
