package rendezvous

import (
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/access"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// An operator's order does not wait for the back-off.
func TestRetryAtOnce(t *testing.T) {
	m := newMachine(t, community("all", edge1, edge2))
	m.join(edge1, edge2)
	for range 8 {
		m.report(edge1, edge2, wire.OutcomeFailed, m.attempt(edge1, edge2))
		m.toRetry()
	}
	id := m.attempt(edge1, edge2)
	if out := m.Retry(m.now, both12); len(out) != 0 || m.attempt(edge1, edge2) != id {
		t.Errorf("while an attempt runs: %v", out)
	}
	m.after(attemptTimeout / 2)
	m.report(edge1, edge2, wire.OutcomeFailed, id)
	if wait := m.Next().Sub(m.now); wait < 10*retryMin {
		t.Fatalf("the next attempt is due in %s: no back-off to speak of", wait)
	}
	if why := m.cannotPunch(m.pairs[both12]); why != "" {
		t.Errorf("refused: %s", why)
	}
	wantReceivers[*wire.Punch](t, m.Retry(m.now, both12), edge1, edge2)
	// The back-off begins anew.
	m.after(attemptTimeout / 2)
	m.report(edge1, edge2, wire.OutcomeFailed, m.attempt(edge1, edge2))
	if wait := m.Next().Sub(m.now); wait > 2*retryMin {
		t.Errorf("after an operator's order the next attempt is due in %s", wait)
	}
	m.checkNext()
	// Nobody punches faster than the NATs bear.
	m.toRetry()
	m.report(edge1, edge2, wire.OutcomeFailed, m.attempt(edge1, edge2))
	wantReceivers[*wire.Punch](t, m.Retry(m.now, both12))
	if wait := m.Next().Sub(m.now); wait != retryMin {
		t.Errorf("right after an attempt: the next in %s, want %s", wait, retryMin)
	}
	if out := m.Retry(m.now, wire.NewPairID("a.b", "c.d")); len(out) != 0 {
		t.Errorf("of no pair: %v", out)
	}
}

// What is held against a path that flaps is let go.
func TestRetryLetsGo(t *testing.T) {
	m := newMachine(t, community("all", edge1, edge2, connector))
	m.relaying = relaying{enabled: true}
	m.join(connector, edge1, edge2)
	for _, edge := range []wire.NodeName{edge1, edge2} {
		for _, ends := range [][2]wire.NodeName{{edge, connector}, {connector, edge}} {
			m.Report(m.now, ends[0], &wire.Report{Peer: ends[1], Outcome: wire.OutcomeDirect, Relay: true})
		}
	}
	for range 3 {
		m.connect(edge1, edge2)
		m.after(time.Minute)
		m.report(edge1, edge2, wire.OutcomeLost, "")
		m.report(edge2, edge1, wire.OutcomeLost, "")
		if m.pairs[both12].attempt == nil {
			m.toRetry()
		}
	}
	m.report(edge1, edge2, wire.OutcomeFailed, m.attempt(edge1, edge2))
	m.connectHeld()
	if !m.pairs[both12].damping.held(m.now) {
		t.Fatal("nothing is held: the test tests nothing")
	}
	m.after(2 * retryMin)
	wantReceivers[*wire.Punch](t, m.Retry(m.now, both12), edge1, edge2)
}

// connectHeld has the pair flap until it is held.
func (m *machine) connectHeld() {
	m.t.Helper()
	for range 5 {
		p := m.pairs[both12]
		if p.attempt == nil && p.damping.held(m.now) {
			return
		}
		if p.attempt == nil {
			m.toRetry()
		}
		m.connect(edge1, edge2)
		m.after(time.Second)
		m.report(edge1, edge2, wire.OutcomeLost, "")
		m.report(edge2, edge1, wire.OutcomeLost, "")
	}
}

func TestCannotPunch(t *testing.T) {
	quiet := community("quiet", edge1, edge3)
	quiet.Punch = wire.PolicyNever
	m := newMachine(t, community("all", edge1, edge2, edge4, connector), quiet)
	m.join(connector, edge1, edge2, edge3)
	m.connect(edge1, edge2)
	for pair, want := range map[wire.PairID]string{
		both12: "the pair of beijing.edge1 and beijing.edge2 is direct already, since 2023-11-14 22:13:20 UTC",
		wire.NewPairID(string(edge1), string(edge4)):     "shanghai.edge4 is offline",
		wire.NewPairID(string(edge1), string(connector)): "beijing.connector is a connector: its tunnels are not punched",
		wire.NewPairID(string(edge1), string(edge3)):     m.pairs[wire.NewPairID(string(edge1), string(edge3))].verdict.Reason,
	} {
		if got := m.cannotPunch(m.pairs[pair]); got != want || want == "" {
			t.Errorf("%s: %q, want %q", pair, got, want)
		}
	}
}

// The order by the API, with the events that follow it.
func TestPunchOrder(t *testing.T) {
	r := newSite(t).start()
	r.apply(community("all", edge1, edge2))
	h := r.serving(access.Caller{Who: "anna", Role: access.Admin})
	path := "/api/v1/pairs/beijing.edge1/beijing.edge2/punch"
	if w := apiCall(t, h, "POST", path, nil); w.Code != 409 {
		t.Errorf("of nodes that are offline: %d %s", w.Code, w.Body)
	}
	if w := apiCall(t, h, "POST", "/api/v1/pairs/beijing.edge1/beijing.edge9/punch", nil); w.Code != 404 {
		t.Errorf("of no pair: %d %s", w.Code, w.Body)
	}
	if n := len(r.audits()); n != 1 { // of the communities
		t.Errorf("%d audit entries of what was refused", n-1)
	}
	one, two := r.join(edge1), r.join(edge2)
	one.expectPeers(edge2)
	two.expectPeers(edge1)
	one.askSTUN()
	two.askSTUN()
	order := expect[*wire.Punch](one)
	expect[*wire.Punch](two)
	one.send(&wire.Report{Peer: edge2, Attempt: order.Attempt, Outcome: wire.OutcomeFailed, Reason: "no answer"})
	expect[*wire.Cancel](two)
	w := apiCall(t, h, "POST", path, nil)
	if w.Code != 200 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if again := expect[*wire.Punch](two); again.Attempt == order.Attempt {
		t.Errorf("%+v", again)
	}
	if e := r.audits()[0]; e.Who != "anna" || e.Action != "punch pair" || e.Object != string(both12) {
		t.Errorf("%+v", e)
	}
}
