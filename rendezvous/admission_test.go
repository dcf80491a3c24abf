package rendezvous

import (
	"fmt"
	"reflect"
	"slices"
	"testing"

	"github.com/bodkin-net/bodkin/punch/nat"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// A node that is not let in is nobody's peer, whatever happens meanwhile, and all
// is as before when it is let in again.
func TestBar(t *testing.T) {
	all, punchless := community("all", edge1, edge2, edge3), community("one", edge1, edge2)
	punchless.Punch = wire.PolicyNever
	lists := func(m *machine) map[wire.NodeName][]wire.NodeName {
		out := map[wire.NodeName][]wire.NodeName{}
		for name, n := range m.nodes {
			if n.online {
				out[name] = peerNames(n.sentPeers)
			}
		}
		return out
	}
	everybody := []wire.NodeName{edge1, edge2, edge3, connector}
	for _, barred := range everybody {
		t.Run(string(barred), func(t *testing.T) {
			m := newMachine(t, all, punchless)
			m.relaying = relaying{enabled: true}
			m.join(everybody...)
			m.rest()
			m.tellRest(m.now)
			before := lists(m)
			for name, peers := range before {
				if len(peers) != 3 {
					t.Fatalf("%s has peers %q", name, peers)
				}
			}
			m.Offline(m.now, barred)
			m.rest()
			m.Bar(m.now, barred, true)
			out := func(what string) {
				t.Helper()
				for name, peers := range lists(m) {
					if len(peers) != 2 || slices.Contains(peers, barred) {
						t.Errorf("%s: %s has peers %q", what, name, peers)
					}
				}
				for _, v := range m.Views() {
					if p := m.pairs[v.ID]; p.has(barred) {
						t.Errorf("%s: pair %s", what, v.ID)
					}
				}
			}
			out("barred")
			if got := m.Bar(m.now, barred, true); got != nil {
				t.Errorf("barred once more: %v", got)
			}
			m.Communities(m.now, []Community{punchless, all})
			out("the communities applied again")
			m.hello(everybody[(slices.Index(everybody, barred)+1)%len(everybody)])
			out("another node came back")
			if barred == connector {
				for name, n := range m.nodes {
					if n.berth.connector != "" {
						t.Errorf("%s is relayed by %s", name, n.berth.connector)
					}
				}
			}

			m.rest()
			m.Bar(m.now, barred, false)
			m.join(barred)
			m.rest()
			m.tellRest(m.now)
			if got := lists(m); !reflect.DeepEqual(got, before) {
				t.Errorf("let in again: %v, want %v", got, before)
			}
			if p := m.pairs[both12]; p.limit.policy != nat.Never || fmt.Sprint(p.communities) != "[all one]" && fmt.Sprint(p.communities) != "[one all]" {
				t.Errorf("%s in %q, limit %+v", p.id, p.communities, p.limit)
			}
		})
	}
}
