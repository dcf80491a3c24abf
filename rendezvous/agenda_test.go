package rendezvous

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

func TestAgenda(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	var a agenda
	pairs := map[wire.PairID]*pair{}
	for i, id := range []wire.PairID{"a", "b", "c", "d", "e"} {
		pairs[id] = &pair{id: id}
		a.set(pairs[id], at(50-10*i))
	}
	a.set(pairs["e"], at(60))      // later
	a.set(pairs["a"], at(5))       // earlier
	a.set(pairs["c"], time.Time{}) // off
	a.set(pairs["c"], time.Time{}) // off already
	a.set(pairs["d"], at(40))      // as early as b
	if next := a.next(); !next.Equal(at(5)) {
		t.Errorf("next %v, want a's", next)
	}
	var got []wire.PairID
	for _, p := range a.due(at(40)) {
		got = append(got, p.id)
	}
	if want := []wire.PairID{"a", "b", "d"}; !slices.Equal(got, want) {
		t.Errorf("due %q, want %q", got, want)
	}
	if next := a.next(); !next.Equal(at(60)) || len(a.due(at(59))) != 0 {
		t.Errorf("next %v, want e's", next)
	}
	a.set(pairs["e"], time.Time{})
	if next := a.next(); !next.IsZero() {
		t.Errorf("empty: next %v", next)
	}
}

// star is edge1 with n peers, of which each has pairs with edge1 only.
func star(n int) (cs []Community, peers []wire.NodeName) {
	for i := range n {
		peer := wire.NodeName(fmt.Sprintf("beijing.n%03d", i))
		peers = append(peers, peer)
		cs = append(cs, community("c"+string(peer), edge1, peer))
	}
	return cs, peers
}

// ordersTo are the peers that edge1 is to punch to.
func ordersTo(actions []action) (peers []wire.NodeName) {
	for _, a := range actions {
		if s, ok := a.(send); ok && s.to == edge1 {
			if p, ok := s.msg.(*wire.Punch); ok {
				peers = append(peers, p.Peer.Endpoint.Name)
			}
		}
	}
	return peers
}

// Who has waited longest is next: pairs that fail again and again must not keep
// the others from their first attempt.
func TestSlotsGoToTheLongestWaiting(t *testing.T) {
	const rounds = 5
	cs, peers := star(rounds * maxParallel)
	m := newMachine(t, cs...)
	m.join(peers...)
	m.hello(edge1)
	running := ordersTo(m.seen(edge1, "203.0.113.1:4500"))
	tried := map[wire.NodeName]bool{}
	for range rounds {
		for _, peer := range running {
			tried[peer] = true
		}
		m.after(10 * time.Second)
		for _, peer := range running {
			m.report(edge1, peer, wire.OutcomeFailed, m.attempt(edge1, peer))
		}
		running = ordersTo(m.tick(0))
	}
	if len(tried) != len(peers) {
		t.Errorf("%d of %d pairs have had an attempt after %d rounds of %d", len(tried), len(peers), rounds, maxParallel)
	}
}

// A pair that came to be while no slot was free gets one as well.
func TestPairWithoutASlotFromTheStart(t *testing.T) {
	cs, peers := star(maxParallel + 1)
	m := newMachine(t, cs[:maxParallel]...)
	m.join(append(peers, edge1)...)
	m.Communities(m.now, cs)
	m.report(edge1, peers[0], wire.OutcomeFailed, m.attempt(edge1, peers[0]))
	if next := m.Next(); next.IsZero() || next.After(m.now) {
		t.Fatalf("a slot is free and a pair waits, but the next step is at %v", next)
	}
	if got := ordersTo(m.tick(0)); !slices.Equal(got, peers[maxParallel:]) {
		t.Errorf("order for %q, want %q", got, peers[maxParallel:])
	}
}

// What strains a NAT is done for one pair after the other.
func TestOneStrainingAttemptAtATime(t *testing.T) {
	for _, tt := range []struct {
		name   string
		one    wire.NAT // edge1's
		others wire.NAT
		want   int // attempts at a time
	}{
		{"opening ports", symmetric, portRestricted, 1},
		{"searching for ports", portRestricted, symmetric, 1},
		{"counting", sequential, portRestricted, 1},
		{"peers that count", portRestricted, sequential, 3},
		{"checks only", portRestricted, portRestricted, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cs, peers := star(3)
			m := newMachine(t, cs...)
			for _, peer := range peers {
				m.hello(peer)
				m.nodes[peer].nat = tt.others
				m.seen(peer, fmt.Sprintf("203.0.113.%d:4500", number(peer)))
			}
			m.hello(edge1)
			m.nodes[edge1].nat = tt.one
			m.seen(edge1, "203.0.113.1:4500")
			tried := map[wire.NodeName]bool{}
			for len(tried) < len(peers) {
				var running []wire.NodeName
				for _, peer := range peers {
					if m.pair(edge1, peer).Punching {
						running = append(running, peer)
					}
				}
				if len(running) != tt.want {
					t.Fatalf("%q at a time, want %d", running, tt.want)
				}
				m.checkNext()
				m.after(time.Second)
				for _, peer := range running {
					tried[peer] = true
					m.report(edge1, peer, wire.OutcomeFailed, m.attempt(edge1, peer))
				}
				if next := m.Next(); tt.want == 1 && len(tried) < len(peers) && next.After(m.now) {
					t.Fatalf("a pair waits, but the next step is in %v", next.Sub(m.now))
				}
				m.tick(2 * time.Second)
			}
		})
	}
}
