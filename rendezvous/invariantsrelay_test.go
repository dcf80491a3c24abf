package rendezvous

import (
	"fmt"
	"strings"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// loses lets one end lose a tunnel that stands.
func (w *world) loses() string {
	for _, v := range w.Views() {
		from := v.Nodes[w.rand.IntN(2)]
		said := [2]wire.NodeName{from, v.Nodes[0]}
		if from == v.Nodes[0] {
			said[1] = v.Nodes[1]
		}
		if v.State != Direct || !w.up[from] || v.Verdict.Strategy == strategyPublic || w.open[v.ID] != "" {
			continue
		}
		before := w.carriers()
		w.word[said], w.relay[said] = saysNot, false
		w.recarry(before)
		w.take(w.machine.report(from, said[1], wire.OutcomeLost, ""))
		return fmt.Sprintf("%s loses %s", from, said[1])
	}
	return "nothing"
}

// uplinkReport says something of the relay between an edge and the connector.
func (w *world) uplinkReport(from wire.NodeName) string {
	to := connector
	if from == connector {
		to = w.names[w.rand.IntN(3)]
	}
	if !w.up[from] {
		return "nothing"
	}
	if w.pairs[wire.NewPairID(string(from), string(to))] == nil {
		return "nothing"
	}
	said, relay, before := [2]wire.NodeName{from, to}, w.rand.IntN(8) > 0, w.carriers()
	w.word[said], w.of[said], w.relay[said] = saysDirect, "", relay && w.plan(w.pairs[wire.NewPairID(string(from), string(to))]) == wire.PlanPublic
	w.recarry(before)
	w.take(w.Report(w.now, from, &wire.Report{Peer: to, Outcome: wire.OutcomeDirect, Relay: relay}))
	return fmt.Sprintf("%s: relay with %s %v", from, to, relay)
}

// recarry: who could not leave its tunnel for want of a relay may be told again.
func (w *world) recarry(before map[wire.NodeName]bool) {
	for name, up := range w.carriers() {
		if up != before[name] {
			for said := range w.demoted {
				w.demoted[said] = w.demoted[said] && said[0] != name && said[1] != name
			}
		}
	}
}

// carriers are the edges whose tunnel with the connector relays, by what both
// ends say.
func (w *world) carriers() map[wire.NodeName]bool {
	up := map[wire.NodeName]bool{}
	for _, edge := range []wire.NodeName{edge1, edge2, edge3} {
		here, there := [2]wire.NodeName{edge, connector}, [2]wire.NodeName{connector, edge}
		trust := func(said, other [2]wire.NodeName) bool {
			return w.relay[said] && (w.relay[other] || w.word[other] == "" && !w.up[other[0]])
		}
		_, known := w.policy[edge]
		up[edge] = known && (trust(here, there) || trust(there, here))
	}
	return up
}

// demote holds an order to leave a tunnel against what everybody has said.
func (w *world) demote(to wire.NodeName, m *wire.Demote) {
	w.demotes++
	said, other := [2]wire.NodeName{to, m.Peer}, [2]wire.NodeName{m.Peer, to}
	id := wire.NewPairID(string(to), string(m.Peer))
	up := w.carriers()
	switch {
	case w.word[said] != saysDirect && !w.late[said]:
		w.t.Errorf("%s is to leave its tunnel with %s, and says it has none", to, m.Peer)
	case w.word[other] == saysDirect && w.strictest(to, m.Peer) != wire.PolicyNever && !w.late[said] && !w.doubts(id, to):
		w.t.Errorf("%s is to leave its tunnel with %s, who has not lost it", to, m.Peer)
	case !up[to] || !up[m.Peer]:
		w.t.Errorf("%s is to leave its tunnel with %s, and nothing relays", to, m.Peer)
	case w.demoted[said]:
		w.t.Errorf("%s is told twice to leave its tunnel with %s", to, m.Peer)
	case w.open[id] != "":
		w.t.Errorf("%s is to leave its tunnel with %s while attempt %s runs", to, m.Peer, w.open[id])
	}
	w.demoted[said] = true
}

// doubts reports whether what a node says is older than its peer's loss.
func (w *world) doubts(id wire.PairID, name wire.NodeName) bool {
	p := w.pairs[id]
	return p.sides[p.index(name)].stale != ""
}

// checkRelay: a pair is relayed if both ends have a relay, and is not direct.
func (w *world) checkRelay(v PairView) {
	w.t.Helper()
	up := w.carriers()
	a, b := v.Nodes[0], v.Nodes[1]
	carried := a != connector && b != connector && w.mayTalk(a, b) && up[a] && up[b]
	if a != connector && b != connector && (v.Relay != "") != carried {
		w.t.Errorf("%s: relay %q, its ends' relays are %v and %v", v.ID, v.Relay, up[a], up[b])
	}
	if v.State != Direct && (v.State == Relayed) != carried {
		w.t.Errorf("%s is %s, its ends' relays are %v and %v", v.ID, v.State, up[a], up[b])
	}
}

// checkStep: what is not direct is tried again at a known time, or says what
// that waits for.
func (w *world) checkStep(v PairView) {
	w.t.Helper()
	p := w.pairs[v.ID]
	if p.damping.held(w.now) {
		w.holds++
		if p.damping.until.After(w.now.Add(holdMax)) {
			w.t.Errorf("%s is held until %v", v.ID, p.damping.until)
		}
	}
	if v.State == Direct || v.Punching || !v.RetryAt.IsZero() || v.Verdict.Strategy == strategyPublic {
		return
	}
	if p.listed != [2]bool{true, true} && !w.lists.due.IsZero() {
		return // its ends have yet to be told
	}
	for _, blocker := range []string{"offline", "never been online", "first STUN request", "forbidden"} {
		if strings.Contains(v.Reason, blocker) {
			return
		}
	}
	w.t.Errorf("%s is %s without a next step: %q", v.ID, v.State, v.Reason)
}
