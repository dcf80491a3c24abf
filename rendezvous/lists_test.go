package rendezvous

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// listing is a list of peers as an onlooker saw it.
type listing struct {
	names []wire.NodeName
	at    time.Time
}

// list follows what a node is told, and holds it against the rules.
func (w *world) list(to wire.NodeName, m *wire.Peers) {
	w.t.Helper()
	before, told := w.listed[to]
	if told && w.now.Sub(before.at) < listPause {
		w.t.Errorf("%s gets a list %v after the last", to, w.now.Sub(before.at))
	}
	for _, p := range m.Peers {
		name := p.Endpoint.Name
		if !w.mayTalk(to, name) {
			w.t.Errorf("%s hears of %s", to, name)
		}
		if p.Plan == wire.PlanPublic && p.Role == wire.Controlling && w.up[name] && !slices.Contains(w.listed[name].names, to) {
			w.t.Errorf("%s hears of %s, to whom it will initiate and who has not heard of it", to, name)
		}
	}
	w.listed[to] = listing{peerNames(m), w.now}
}

// checkLists: who has not been told all will be, at a time that is known.
func (w *world) checkLists() {
	w.t.Helper()
	for name := range w.lists.untold {
		w.waits++
		if due := w.lists.due; due.IsZero() || due.After(w.now.Add(listPause)) {
			w.t.Errorf("%s waits for its lists until %v", name, due)
		}
	}
	for _, p := range w.sorted {
		for i, name := range p.names {
			if w.up[name] && w.nodes[p.other(name)] != nil && !p.listed[i] && !w.lists.untold[name] {
				w.t.Errorf("%s has not been told of %s, and is not going to be", name, p.other(name))
			}
		}
	}
}

// manyEdges are edges of one cluster; number is too small for them.
func manyEdges(n int) (names []wire.NodeName) {
	for i := range n {
		names = append(names, wire.NodeName(fmt.Sprintf("beijing.n%03d", i)))
	}
	return names
}

// crowd is a machine in whose community there are n edges, all online, as is
// their connector. Nobody is in a pause.
func crowd(t *testing.T, n int) (*machine, []wire.NodeName) {
	names := manyEdges(n)
	m := newMachine(t, community("all", append(slices.Clone(names), edge1, edge2)...))
	m.relaying.enabled = true
	for _, name := range append([]wire.NodeName{connector}, names...) {
		e := endpointOf(name)
		e.Subnets = nil
		m.Online(m.now, &wire.Hello{Endpoint: e}, 0)
	}
	m.after(time.Minute)
	m.Tick(m.now)
	return m, names
}

// A node that comes alone is told, and told of, at once.
func TestFirstListAtOnce(t *testing.T) {
	m, names := crowd(t, 3)
	actions := m.coordinator.Online(m.now, &wire.Hello{Endpoint: endpointOf(edge1)}, 0)
	all := append([]wire.NodeName{edge1, connector}, names...)
	slices.Sort(all)
	wantReceivers[*wire.Peers](t, actions, all...)
	order := sequence[*wire.Peers](actions)
	if slices.Index(order, connector) > slices.Index(order, edge1) {
		t.Errorf("told in the order %q, want the connector before the edge that initiates to it", order)
	}
}

// What comes within a pause is told at its end, in one list, the connector's
// first; who is new waits only for that.
func TestListsArePaused(t *testing.T) {
	m, names := crowd(t, 30)
	const pause = 31 * peerPause // of who has been told of 29 others, the connector and edge1
	m.coordinator.Online(m.now, &wire.Hello{Endpoint: endpointOf(edge1)}, 0)
	m.after(20 * time.Millisecond)
	wantReceivers[*wire.Peers](t, m.coordinator.Online(m.now, &wire.Hello{Endpoint: endpointOf(edge2)}, 0))
	wantReceivers[*wire.Forwarding](t, m.Tick(m.now))
	if got, want := m.Next(), m.now.Add(80*time.Millisecond); !got.Equal(want) {
		t.Fatalf("next step in %v, want at the end of the connector's pause", got.Sub(m.now))
	}
	actions := m.toRetry()
	wantReceivers[*wire.Peers](t, actions, connector, edge2)
	wantReceivers[*wire.Forwarding](t, actions, connector)
	if got := sequence[*wire.Peers](actions); got[0] != connector {
		t.Errorf("told in the order %q, want the connector first", got)
	}
	wantReceivers[*wire.Peers](t, m.tick(pause-101*time.Millisecond))
	wantReceivers[*wire.Peers](t, m.toRetry(), append([]wire.NodeName{edge1}, names...)...)
	if !m.lists.due.IsZero() || len(m.lists.untold) > 0 {
		t.Errorf("all are told, and %v are waited for", m.lists)
	}
	wantReceivers[*wire.Peers](t, m.tick(time.Minute))
}

// Who goes before it is told gets nothing, and a new session gets its list at
// once.
func TestPauseEndsWithTheSession(t *testing.T) {
	m := newMachine(t, community("all", edge1, edge2))
	m.hello(edge1)
	m.coordinator.Online(m.now, &wire.Hello{Endpoint: endpointOf(edge2)}, 0)
	if !m.lists.untold[edge1] {
		t.Fatal("edge1 is told of edge2 in its pause")
	}
	m.Offline(m.now, edge1)
	wantReceivers[*wire.Peers](t, m.tick(time.Second))
	m.coordinator.Online(m.now, &wire.Hello{Endpoint: endpointOf(edge1)}, 0)
	actions := m.coordinator.Online(m.now, &wire.Hello{Endpoint: endpointOf(edge1)}, 0)
	if got := fmt.Sprint(peerNames(sent[*wire.Peers](t, actions)[edge1])); got != fmt.Sprint([]wire.NodeName{edge2}) {
		t.Errorf("edge1 is told of %s in its second session", got)
	}
}

// An order waits until both ends have been told of each other as they are.
func TestOrderWaitsForTheList(t *testing.T) {
	m := newMachine(t, community("all", edge1, edge2))
	m.join(edge1)
	m.coordinator.Online(m.now, &wire.Hello{Endpoint: endpointOf(edge2)}, 0)
	wantReceivers[*wire.Punch](t, m.seen(edge2, "203.0.113.2:4500"))
	actions := m.toRetry()
	wantReceivers[*wire.Peers](t, actions, edge1)
	wantReceivers[*wire.Punch](t, actions, edge1, edge2)
	if first, ok := actions[0].(send); !ok || first.msg.Type() != "peers" {
		t.Errorf("first comes %+v, want the list", actions[0])
	}
	m.connect(edge1, edge2)

	// Another subnet is another peer.
	m.tick(time.Second)
	changed := endpointOf(edge2)
	changed.NodeSubnets = endpointOf(edge4).Subnets
	m.Online(m.now, &wire.Hello{Endpoint: changed}, 0)
	m.coordinator.Online(m.now, &wire.Hello{Endpoint: endpointOf(edge2)}, 0)
	wantReceivers[*wire.Punch](t, m.seen(edge2, "203.0.113.2:4500"))
	wantReceivers[*wire.Punch](t, m.tick(listPause), edge1, edge2)
}

// sequence is who gets messages of one kind, in order.
func sequence[M wire.Message](actions []action) (names []wire.NodeName) {
	for _, a := range actions {
		if s, ok := a.(send); ok {
			if _, ok := s.msg.(M); ok {
				names = append(names, s.to)
			}
		}
	}
	return names
}
