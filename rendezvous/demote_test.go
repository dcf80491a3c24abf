package rendezvous

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// newUpgraded is a machine with a pair that is direct and has a relay.
func newUpgraded(t *testing.T) *machine {
	m := newRelaying(t, community("all", edge1, edge2))
	m.join(edge1, edge2)
	m.carries(true, edge1, edge2)
	m.connect(edge1, edge2)
	m.wantPair(edge1, edge2, Direct, false, "")
	m.after(time.Minute)
	return m
}

func TestDemote(t *testing.T) {
	m := newUpgraded(t)
	actions := m.report(edge1, edge2, wire.OutcomeLost, "")
	demotes := sent[*wire.Demote](t, actions)
	if d := demotes[edge2]; len(demotes) != 1 || d == nil || d.Peer != edge1 || d.Reason != "beijing.edge1: because of it" || d.StartAfterMs != 0 {
		t.Errorf("demotes %+v", demotes)
	}
	wantReceivers[*wire.Punch](t, actions, edge1, edge2)
	var order []string
	for _, a := range actions {
		if s, ok := a.(send); ok && s.to == edge2 {
			order = append(order, s.msg.Type())
		}
	}
	if want := []string{"demote", "punch"}; !slices.Equal(order, want) {
		t.Errorf("edge2 hears %q, want %q", order, want)
	}
	m.wantPair(edge1, edge2, Relayed, true, "beijing.edge1: because of it")

	// That it has left is no reason of its own, and nobody is told again.
	m.after(time.Second)
	wantReceivers[*wire.Demote](t, m.report(edge2, edge1, wire.OutcomeLost, ""))
	m.wantPair(edge1, edge2, Relayed, true, "beijing.edge1: because of it")
	m.connect(edge1, edge2)
	m.wantPair(edge1, edge2, Direct, false, "")
}

func TestDemoteGoesTo(t *testing.T) {
	standing := func(id wire.NodeName) wire.Tunnel { return wire.Tunnel{Peer: id, Monitored: true} }
	relayed := wire.Tunnel{Peer: connector, Relay: true}
	tests := []struct {
		name string
		do   func(*machine) []action
		want []wire.NodeName
	}{
		{"nobody without a relay", func(m *machine) []action {
			m.carries(false, edge1)
			return m.report(edge1, edge2, wire.OutcomeLost, "")
		}, nil},
		{"nobody who is offline", func(m *machine) []action {
			m.Offline(m.now, edge2)
			return m.report(edge1, edge2, wire.OutcomeLost, "")
		}, nil},
		{"nobody who has lost it, too", func(m *machine) []action {
			m.carries(false, edge1)
			m.report(edge1, edge2, wire.OutcomeLost, "")
			m.report(edge2, edge1, wire.OutcomeLost, "")
			m.failCurrent(edge1)
			return m.carries(true, edge1)
		}, nil},
		{"who believes in it when the relay comes up", func(m *machine) []action {
			m.carries(false, edge1)
			m.report(edge1, edge2, wire.OutcomeLost, "")
			m.failCurrent(edge1)
			return m.carries(true, edge1)
		}, []wire.NodeName{edge2}},
		{"nobody while an attempt is to tell more", func(m *machine) []action {
			m.carries(false, edge1)
			m.report(edge1, edge2, wire.OutcomeLost, "")
			return m.carries(true, edge1)
		}, nil},
		{"who believes in it when that attempt has failed", func(m *machine) []action {
			m.carries(false, edge1)
			m.report(edge1, edge2, wire.OutcomeLost, "")
			m.carries(true, edge1)
			return m.report(edge1, edge2, wire.OutcomeFailed, m.attempt(edge1, edge2))
		}, []wire.NodeName{edge2}},
		{"whose peer comes back without it", func(m *machine) []action {
			return m.hello(edge1, relayed)
		}, []wire.NodeName{edge2}},
		{"nobody whose peer comes back with it", func(m *machine) []action {
			return m.hello(edge1, relayed, standing(edge2))
		}, nil},
		{"who is direct in an attempt that the other has given up", func(m *machine) []action {
			m.report(edge1, edge2, wire.OutcomeLost, "")
			m.report(edge2, edge1, wire.OutcomeLost, "")
			id := m.attempt(edge1, edge2)
			m.report(edge1, edge2, wire.OutcomeFailed, id)
			return m.report(edge2, edge1, wire.OutcomeDirect, id)
		}, []wire.NodeName{edge2}},
		{"who kept it for want of a relay, when it has one", func(m *machine) []action {
			m.report(edge1, edge2, wire.OutcomeLost, "")
			m.failCurrent(edge1)
			m.carries(false, edge2)
			return m.carries(true, edge2)
		}, []wire.NodeName{edge2}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newUpgraded(t)
			wantReceivers[*wire.Demote](t, tt.do(m), tt.want...)
		})
	}
}

// An operator who forbids punching gets both ends to leave at one moment.
func TestPlannedDowngrade(t *testing.T) {
	forbid := func(m *machine) []action {
		c := community("all", edge1, edge2)
		c.Punch = wire.PolicyNever
		return m.Communities(m.now, []Community{c})
	}
	t.Run("both leave together", func(t *testing.T) {
		m := newUpgraded(t)
		m.Delay(edge1, 10*time.Millisecond)
		m.Delay(edge2, 60*time.Millisecond)
		demotes := sent[*wire.Demote](t, forbid(m))
		for name, offset := range map[wire.NodeName]int64{edge1: 50, edge2: 0} {
			d := demotes[name]
			if d == nil || d.StartAfterMs != offset+leaveLead.Milliseconds() || !strings.Contains(d.Reason, "forbidden (never)") || d.Validate() != nil {
				t.Errorf("%s: %+v, want an offset of %d ms", name, d, offset)
			}
		}
		// Until they say so it is not left.
		m.wantPair(edge1, edge2, Direct, false, "")
		m.report(edge1, edge2, wire.OutcomeLost, "")
		reason := m.pair(edge1, edge2).Verdict.Reason
		m.wantPair(edge1, edge2, Relayed, false, reason)
		wantReceivers[*wire.Demote](t, m.report(edge2, edge1, wire.OutcomeLost, ""))
		m.wantPair(edge1, edge2, Relayed, false, reason)
		if next := m.Next(); !next.IsZero() {
			t.Errorf("next step at %v", next)
		}
		// Permitted again it is punched at once: nothing speaks against the path.
		wantReceivers[*wire.Punch](t, m.Communities(m.now, []Community{community("all", edge1, edge2)}), edge1, edge2)
		m.connect(edge1, edge2)
		m.after(retryMin)
		wantReceivers[*wire.Punch](t, m.report(edge1, edge2, wire.OutcomeLost, ""), edge1, edge2)
	})
	t.Run("by a node of its own", func(t *testing.T) {
		m := newUpgraded(t)
		tunnels := []wire.Tunnel{{Peer: connector, Relay: true}, {Peer: edge2, Monitored: true}}
		actions := m.Online(m.now, &wire.Hello{Endpoint: endpointOf(edge1), Tunnels: tunnels, Punch: wire.PolicyNever}, 0)
		wantReceivers[*wire.Demote](t, actions, edge1, edge2)
	})
	t.Run("without a relay it is left as it is", func(t *testing.T) {
		m := newUpgraded(t)
		m.carries(false, edge1)
		wantReceivers[*wire.Demote](t, forbid(m))
		m.wantPair(edge1, edge2, Direct, false, "")
		wantReceivers[*wire.Demote](t, m.carries(true, edge1), edge1, edge2)
	})
	t.Run("never one end alone", func(t *testing.T) {
		m := newUpgraded(t)
		m.Offline(m.now, edge2)
		wantReceivers[*wire.Demote](t, forbid(m))
		actions := m.hello(edge2, wire.Tunnel{Peer: connector, Relay: true}, wire.Tunnel{Peer: edge1, Monitored: true})
		wantReceivers[*wire.Demote](t, actions, edge1, edge2)
	})
}

// TestHold: a path that comes and goes is left alone for longer and longer, and
// the pair says so.
func TestHold(t *testing.T) {
	m := newUpgraded(t)
	for i, hold := range []time.Duration{0, 15 * time.Second, 30 * time.Second, time.Minute, 2 * time.Minute, 4 * time.Minute, 5 * time.Minute, 5 * time.Minute} {
		m.after(5 * time.Second)
		actions := m.report(edge1, edge2, wire.OutcomeLost, "")
		m.report(edge2, edge1, wire.OutcomeLost, "")
		v := m.pair(edge1, edge2)
		if hold == 0 {
			wantReceivers[*wire.Punch](t, actions, edge1, edge2)
			m.connect(edge1, edge2)
			continue
		}
		until := m.now.Add(hold)
		if v.State != Relayed || v.Punching || !v.RetryAt.Equal(until) || !m.Next().Equal(until) ||
			!strings.HasPrefix(v.Reason, "beijing.edge1: because of it; relayed until "+until.UTC().Format("15:04:05 UTC")) {
			t.Errorf("loss %d: %+v, want relayed until %v", i+1, v, until)
		}
		if got := sent[*wire.Punch](t, m.tick(hold-time.Nanosecond)); len(got) != 0 {
			t.Errorf("loss %d: punched before the hold was over", i+1)
		}
		wantReceivers[*wire.Punch](t, m.tick(time.Nanosecond), edge1, edge2)
		m.wantPair(edge1, edge2, Relayed, true, "beijing.edge1: because of it")
		m.connect(edge1, edge2)
	}
	m.after(calmAfter)
	wantReceivers[*wire.Punch](t, m.report(edge1, edge2, wire.OutcomeLost, ""), edge1, edge2)
}

func TestWhatIsNotHeld(t *testing.T) {
	lose := func(m *machine) []action {
		m.report(edge2, edge1, wire.OutcomeLost, "")
		return m.report(edge1, edge2, wire.OutcomeLost, "")
	}
	relayed := wire.Tunnel{Peer: connector, Relay: true}
	tests := []struct {
		name string
		do   func(*machine)
	}{
		{"down for want of a relay", func(m *machine) { m.carries(false, edge1); lose(m) }},
		{"another address, then the loss", func(m *machine) { m.seen(edge1, "203.0.113.99:4500"); lose(m) }},
		{"the loss, then another address", func(m *machine) { lose(m); m.after(2 * time.Second); m.seen(edge1, "203.0.113.99:4500") }},
		{"the loss, then a session from another address", func(m *machine) {
			lose(m)
			m.after(2 * time.Second)
			m.hello(edge1, relayed)
			m.seen(edge1, "203.0.113.99:4500")
		}},
		{"strongSwan stopped", func(m *machine) {
			for _, ends := range [][2]wire.NodeName{{edge1, edge2}, {edge2, edge1}} {
				m.Report(m.now, ends[0], &wire.Report{Peer: ends[1], Outcome: wire.OutcomeLost, Reason: "charon stopped"})
			}
		}},
		{"a new session", func(m *machine) {
			m.hello(edge1, relayed)
			m.seen(edge1, fmt.Sprintf("203.0.113.%d:4500", number(edge1)))
		}},
		{"the relay goes down meanwhile", func(m *machine) { lose(m); m.carries(false, edge2) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newUpgraded(t)
			lose(m) // the first one is free
			m.connect(edge1, edge2)
			m.after(5 * time.Second)
			tt.do(m)
			if next := m.Next(); m.pairs[both12].attempt == nil && next.After(m.now.Add(retryMin)) {
				t.Errorf("next step in %v", next.Sub(m.now))
			}
			m.tick(retryMin)
			m.attempt(edge1, edge2)
		})
	}
}

// A node that flaps on purpose costs its peers little: it cannot make them leave
// a tunnel more often than they say they have one, and they have one more and
// more rarely.
func TestFlappingOnPurpose(t *testing.T) {
	const span = 30 * time.Minute
	tests := []struct {
		name string
		flap func(m *machine) []action
	}{
		{"losing every tunnel", func(m *machine) []action { return m.report(edge1, edge2, wire.OutcomeLost, "") }},
		{"direct and lost without an attempt", func(m *machine) []action {
			return append(m.report(edge1, edge2, wire.OutcomeDirect, ""), m.report(edge1, edge2, wire.OutcomeLost, "")...)
		}},
		{"failing all attempts after the first tunnel", func(m *machine) []action {
			out := m.report(edge1, edge2, wire.OutcomeLost, "")
			if p := m.pairs[both12]; p.attempt != nil {
				out = append(out, m.report(edge1, edge2, wire.OutcomeFailed, p.attempt.id)...)
			}
			return out
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newUpgraded(t)
			demotes, before := 0, m.pair(edge1, edge2).Attempts
			count := func(actions []action) {
				for range receivers[*wire.Demote](t, actions) {
					demotes++
					m.report(edge2, edge1, wire.OutcomeLost, "") // it obeys
				}
			}
			for end := m.now.Add(span); m.now.Before(end); {
				count(m.tick(time.Second))
				if m.pairs[both12].attempt != nil {
					m.connect(edge1, edge2)
				}
				for range 3 {
					for _, a := range tt.flap(m) {
						count([]action{a})
					}
				}
			}
			// 15 s + 30 s + 60 s + 120 s + 240 s, and then every 300 s.
			if attempts := m.pair(edge1, edge2).Attempts - before; attempts > 14 || demotes > attempts+1 || demotes == 0 {
				t.Errorf("%d attempts and %d demotes in %v", attempts, demotes, span)
			}
		})
	}
}

// An end that has lost its tunnel has lost it on whatever path the other one
// believes in.
func TestMovedTunnelStaysLost(t *testing.T) {
	m := newMachine(t, community("all", edge1, edge2))
	m.join(edge1, edge2)
	id := m.attempt(edge1, edge2)
	m.connect(edge1, edge2)
	m.report(edge1, edge2, wire.OutcomeLost, id)
	m.report(edge2, edge1, wire.OutcomeDirect, id)
	if side := m.pairs[both12].sides[1]; side.stands() {
		t.Errorf("edge2's tunnel stands, which edge1 has lost: %+v", side)
	}
}
