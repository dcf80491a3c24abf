package rendezvous

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/punch/nat"
	"github.com/bodkin-net/bodkin/rendezvous/access"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

// scribe keeps the chronicle of a machine.
type scribe struct {
	*machine
	*chronicle
	done []AttemptView
}

func (s *scribe) note(actions []action) {
	for _, a := range actions {
		switch a := a.(type) {
		case ordered:
			s.order(s.now, a)
		case ended:
			if v := s.end(s.now, a); v != nil {
				s.done = append(s.done, v.clone())
			}
		case send:
			if m, ok := a.msg.(*wire.Trickle); ok {
				s.trickle(a.to, m)
			}
		}
	}
}

// says has a side report, to the chronicle first, as the hub does.
func (s *scribe) says(from wire.NodeName, r wire.Report) *AttemptView {
	late := s.chronicle.report(s.now, from, &r)
	s.note(s.Report(s.now, from, &r))
	return late
}

// newScribe has two nodes that have just been told to punch.
func newScribe(t *testing.T) (*scribe, wire.AttemptID) {
	s := &scribe{machine: newMachine(t, community("all", edge1, edge2)), chronicle: newChronicle()}
	for i, name := range []wire.NodeName{edge1, edge2} {
		s.Online(s.now, &wire.Hello{Endpoint: endpointOf(name), Candidates: []wire.Candidate{hostCandidate(fmt.Sprintf("192.168.%d.2:4500", i))}},
			time.Duration(i+1)*20*time.Millisecond)
		s.note(s.seen(name, fmt.Sprintf("203.0.113.%d:4500", i+1)))
	}
	return s, s.attempt(edge1, edge2)
}

func steps(kinds ...wire.StepKind) (out []wire.Step) {
	for i, k := range kinds {
		out = append(out, wire.Step{AtMs: int64(i * 10), Kind: k})
	}
	return out
}

// Both sides' part in an attempt, put together.
func TestChronicle(t *testing.T) {
	s, id := newScribe(t)
	begun := s.now
	v := s.of(both12)
	if len(v) != 1 || v[0].Outcome != AttemptRunning || v[0].ID != id {
		t.Fatalf("%+v", v)
	}
	s.after(100 * time.Millisecond)
	s.note(s.Network(s.now, edge2, &wire.Network{Candidates: []wire.Candidate{hostCandidate("192.168.1.3:4500")}, NAT: portRestricted}))
	path := wire.Path{Kind: wire.PathServerReflexive, Remote: srflxCandidate("203.0.113.2:4500").Addr}
	s.says(edge1, wire.Report{Peer: edge2, Attempt: id, Outcome: wire.OutcomeNominated, Path: path, ElapsedMs: 90})
	s.after(200 * time.Millisecond)
	s.says(edge1, wire.Report{Peer: edge2, Attempt: id, Outcome: wire.OutcomeDirect, Path: path, ElapsedMs: 280, Packets: 7,
		Steps: steps(wire.StepStart, wire.StepCheck, wire.StepNominated)})
	s.says(edge2, wire.Report{Peer: edge1, Attempt: id, Outcome: wire.OutcomeDirect, ElapsedMs: 260, Steps: steps(wire.StepStart)})

	if len(s.done) != 1 {
		t.Fatalf("ended: %+v", s.done)
	}
	got := s.done[0]
	first, second := got.Sides[edge1], got.Sides[edge2]
	if got.Outcome != AttemptDirect || got.ElapsedMs != 300 || !got.At.Equal(begun) || got.Strategy == "" || got.Verdict.Expect != nat.Direct {
		t.Errorf("%+v", got)
	}
	if first.Role != wire.Controlling || second.Role != wire.Controlled || first.StartAfterMs != 20 || second.StartAfterMs != 0 || first.OffsetMs != 20 || second.OffsetMs != 40 {
		t.Errorf("roles and times: %+v and %+v", first, second)
	}
	wantSecond := []wire.Candidate{hostCandidate("192.168.1.2:4500"), srflxCandidate("203.0.113.2:4500"), hostCandidate("192.168.1.3:4500")}
	if !slices.Contains(first.Candidates, hostCandidate("192.168.0.2:4500")) || !reflect.DeepEqual(second.Candidates, wantSecond) || second.NAT != portRestricted {
		t.Errorf("candidates %v and %v, NAT %+v", first.Candidates, second.Candidates, second.NAT)
	}
	if first.Outcome != wire.OutcomeDirect || first.Path != path || first.Packets != 7 || len(first.Steps) != 3 || second.ElapsedMs != 260 || len(second.Steps) != 1 {
		t.Errorf("reports: %+v and %+v", first, second)
	}
}

// The side that is called off, or comes late, is heard all the same, for a while.
func TestChronicleHearsBothSides(t *testing.T) {
	s, id := newScribe(t)
	s.says(edge1, wire.Report{Peer: edge2, Attempt: id, Outcome: wire.OutcomeFailed, Reason: "no check was answered", Steps: steps(wire.StepStart, wire.StepFailed)})
	if len(s.done) != 1 || s.done[0].Outcome != AttemptFailed || s.done[0].Reason != "beijing.edge1: no check was answered" || s.done[0].Sides[edge2].Outcome != "" {
		t.Fatalf("%+v", s.done)
	}
	s.after(time.Second)
	late := s.says(edge2, wire.Report{Peer: edge1, Attempt: id, Outcome: wire.OutcomeFailed, Reason: "called off", Steps: steps(wire.StepStart)})
	if late == nil || len(late.Sides[edge2].Steps) != 1 || len(late.Sides[edge1].Steps) != 2 {
		t.Errorf("late: %+v", late)
	}
	// Once is enough, and a stranger's word is none.
	if again := s.says(edge2, wire.Report{Peer: edge1, Attempt: id, Outcome: wire.OutcomeFailed}); again != nil {
		t.Errorf("said twice: %+v", again)
	}
	if stranger := s.chronicle.report(s.now, edge3, &wire.Report{Peer: edge1, Attempt: id, Outcome: wire.OutcomeFailed}); stranger != nil {
		t.Errorf("a stranger: %+v", stranger)
	}
	s.after(lateReport + time.Second)
	if tooLate := s.says(edge1, wire.Report{Peer: edge2, Attempt: id, Outcome: wire.OutcomeFailed}); tooLate != nil || s.attempts[id] != nil {
		t.Errorf("kept for too long: %+v", s.attempts)
	}
}

// What a node tells is shown on operators' terminals.
func TestChronicleWithoutControlCharacters(t *testing.T) {
	s, id := newScribe(t)
	const erase = "\x1b[2J"
	s.says(edge1, wire.Report{Peer: edge2, Attempt: id, Outcome: wire.OutcomeFailed, Reason: "no" + erase,
		Steps: []wire.Step{{Kind: "odd" + erase, Text: "so" + erase}}})
	if len(s.done) != 1 {
		t.Fatalf("%+v", s.done)
	}
	if got := fmt.Sprint(*s.done[0].Sides[edge1]); strings.Contains(got, erase) || !strings.Contains(got, "odd [2J") || !strings.Contains(got, "so [2J") {
		t.Errorf("%q", got)
	}
}

func TestChronicleOfCancelled(t *testing.T) {
	for name, end := range map[string]func(*scribe) []action{
		"a node went offline": func(s *scribe) []action { return s.Offline(s.now, edge2) },
		"a new session":       func(s *scribe) []action { return s.hello(edge1) },
		"no community":        func(s *scribe) []action { return s.Communities(s.now, nil) },
	} {
		s, _ := newScribe(t)
		s.note(end(s))
		if len(s.done) != 1 || s.done[0].Outcome != AttemptCancelled || s.done[0].Reason == "" {
			t.Errorf("%s: %+v", name, s.done)
		}
	}
	s, _ := newScribe(t)
	s.note(s.tick(attemptTimeout))
	if len(s.done) != 1 || s.done[0].Outcome != AttemptFailed || s.done[0].Reason != "no report from beijing.edge1 and beijing.edge2 within 25s" {
		t.Errorf("silence: %+v", s.done)
	}
}

func TestChronicleIsBounded(t *testing.T) {
	c := newChronicle()
	now := sampleNow
	punch := &wire.Punch{}
	for i := range 3 * maxLate {
		id := wire.AttemptID(fmt.Sprint(i))
		c.order(now, ordered{attempt: id, names: [2]wire.NodeName{edge1, edge2}, orders: [2]*wire.Punch{punch, punch}})
		c.end(now, ended{attempt: id, outcome: AttemptFailed})
	}
	if len(c.attempts) > maxLate+1 {
		t.Errorf("%d attempts kept", len(c.attempts))
	}
	id := wire.AttemptID("last")
	c.order(now, ordered{attempt: id, names: [2]wire.NodeName{edge1, edge2}, orders: [2]*wire.Punch{punch, punch}})
	for i := range 10 * maxChronicled {
		c.trickle(edge1, &wire.Trickle{Attempt: id, Candidates: []wire.Candidate{hostCandidate(fmt.Sprintf("192.0.2.1:%d", i+1))}})
	}
	if n := len(c.attempts[id].Sides[edge2].Candidates); n != maxChronicled {
		t.Errorf("%d candidates kept", n)
	}
}

func TestWithStored(t *testing.T) {
	record := func(id string, n time.Duration, outcome AttemptOutcome) store.Attempt {
		b, err := json.Marshal(AttemptView{ID: wire.AttemptID(id), At: sampleNow.Add(n), Outcome: outcome})
		if err != nil {
			t.Fatal(err)
		}
		return store.Attempt{ID: id, Record: b}
	}
	at := []AttemptView{{ID: "c", At: sampleNow.Add(3), Outcome: AttemptRunning}}
	got, err := withStored(at, []store.Attempt{record("c", 3, AttemptFailed), record("b", 2, AttemptFailed), record("a", 1, AttemptDirect)})
	var said []string
	for _, v := range got {
		said = append(said, string(v.ID)+" "+string(v.Outcome))
	}
	if err != nil || !slices.Equal(said, []string{"c running", "b failed", "a direct"}) {
		t.Errorf("%q, %v", said, err)
	}
	if _, err := withStored(nil, []store.Attempt{{ID: "x", Record: json.RawMessage(`7`)}}); err == nil {
		t.Error("a record that is none was taken")
	}
	if got, err := withStored(nil, nil); err != nil || got == nil {
		t.Errorf("none: %v, %v, want an empty list", got, err)
	}
}

// From two agents' reports to the pair's page, counters and events, over a restart.
func TestPairDetail(t *testing.T) {
	site := newSite(t)
	r := site.start()
	r.apply(community("all", edge1, edge2))
	one, two := r.join(edge1), r.join(edge2)
	one.expectPeers(edge2)
	two.expectPeers(edge1)
	one.askSTUN()
	two.askSTUN()
	first := expect[*wire.Punch](one)
	expect[*wire.Punch](two)
	path := "/api/v1/pairs/" + string(edge2) + "/" + string(edge1) // in any order
	var detail PairDetail
	h := r.serving(access.Socket)
	getJSON(t, h, path, &detail)
	if len(detail.Attempts) != 1 || detail.Attempts[0].Outcome != AttemptRunning || !detail.Pair.Punching {
		t.Errorf("while it runs: %+v", detail)
	}
	for _, p := range []*peer{one, two} {
		other := map[wire.NodeName]wire.NodeName{edge1: edge2, edge2: edge1}[p.name]
		p.send(&wire.Report{Peer: other, Attempt: first.Attempt, Outcome: wire.OutcomeDirect, ElapsedMs: 80, Steps: steps(wire.StepStart, wire.StepBytes)})
	}
	r.until("direct", func(s Snapshot) bool { return pairIn(s, edge1, edge2).State == Direct })
	check := func(h func(path string, into any)) {
		t.Helper()
		var detail PairDetail
		h(path, &detail)
		if len(detail.Attempts) != 1 || detail.Attempts[0].Outcome != AttemptDirect || len(detail.Attempts[0].Sides[edge2].Steps) != 2 {
			t.Errorf("%+v", detail)
		}
		var o Overview
		h("/api/v1/overview", &o)
		if o.Since.IsZero() || o.SuccessRate == nil || *o.SuccessRate != 1 || o.TimeToDirect.MedianMs != 100 || o.Hours[23].Direct+o.Hours[22].Direct != 1 || o.Pairs.Total != 1 || o.Nodes.Total != 2 {
			t.Errorf("%+v", o)
		}
		var list EventList
		h("/api/v1/events?pair="+string(both12), &list)
		var got []string
		for _, e := range slices.Backward(list.Events) {
			if e.Kind == EventAttempt || e.State == string(Direct) {
				got = append(got, string(e.Kind)+" "+e.State)
			}
		}
		if !slices.Equal(got, []string{"attempt running", "attempt direct", "pair direct"}) {
			t.Errorf("events %q", got)
		}
	}
	check(func(path string, into any) { getJSON(t, h, path, into) })
	for _, name := range []string{"/api/v1/pairs/a.b/c.d", "/api/v1/nodes/a.b", "/api/v1/nodes/a.b/sas"} {
		if w := apiCall(t, h, "GET", name, nil); w.Code != 404 {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
	body := apiCall(t, h, "GET", "/metrics", nil).Body.String()
	for _, want := range []string{
		fmt.Sprintf(`bodkin_punch_orders_total{strategy="%s"} 1`, first.Strategy), fmt.Sprintf(`bodkin_punch_attempts_total{outcome="direct",strategy="%s"} 1`, first.Strategy),
		`bodkin_time_to_direct_seconds_bucket{le="0.1"} 1`, `bodkin_time_to_direct_seconds_count 1`, `bodkin_sessions 2`,
	} {
		if !slices.Contains(strings.Split(body, "\n"), want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	r.stop()
	after := site.start()
	check(func(path string, into any) { getJSON(t, after.serving(access.Socket), path, into) })
}
