package rendezvous

import (
	"encoding/json"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/bodkin-net/bodkin/rendezvous/access"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// answering joins a node whose agent takes questions.
func (r *running) answering(name wire.NodeName) *peer {
	r.t.Helper()
	p := r.dial(name)
	p.send(&wire.Hello{AgentVersion: "test", Endpoint: endpointOf(name), Candidates: []wire.Candidate{}, Answers: true})
	p.expectPeers()
	return p
}

// asked has somebody ask for a node's SAs, and returns the question and where the
// answer will be.
func (r *running) asked(p *peer) (*wire.Ask, <-chan *httptest.ResponseRecorder) {
	r.t.Helper()
	done := make(chan *httptest.ResponseRecorder, 1)
	go func() {
		done <- apiCall(r.t, r.serving(access.Socket), "GET", "/api/v1/nodes/"+string(p.name)+"/sas", nil)
	}()
	return expect[*wire.Ask](p), done
}

func TestSAs(t *testing.T) {
	r := newSite(t).start()
	p := r.answering(edge1)
	ask, done := r.asked(p)
	if ask.Question != wire.AskSAs {
		t.Errorf("%+v", ask)
	}
	p.send(&wire.Reply{ID: "another", Body: json.RawMessage(`["wrong"]`)})
	p.send(&wire.Reply{ID: ask.ID, Body: json.RawMessage(`[{"name":"beijing.edge2"}]`)})
	if w := <-done; w.Code != 200 || strings.Join(strings.Fields(w.Body.String()), "") != `[{"name":"beijing.edge2"}]` {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	p.send(&wire.Reply{ID: ask.ID, Body: json.RawMessage(`["late"]`)}) // nobody asks any more

	ask, done = r.asked(p)
	p.send(&wire.Reply{ID: ask.ID, Error: "charon does not answer"})
	if w := <-done; w.Code != 409 || !strings.Contains(w.Body.String(), "beijing.edge1: charon does not answer") {
		t.Errorf("%d %s", w.Code, w.Body)
	}

	// What waits ends with the session.
	_, done = r.asked(p)
	_ = p.conn.Close()
	if w := <-done; w.Code != 504 || !strings.Contains(w.Body.String(), "its session ended") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	r.until("offline", func(s Snapshot) bool { return !nodeIn(s, edge1).Online })
	if w := apiCall(t, r.serving(access.Socket), "GET", "/api/v1/nodes/beijing.edge1/sas", nil); w.Code != 409 || !strings.Contains(w.Body.String(), "is offline") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	r.join(edge2).expectPeers()
	if w := apiCall(t, r.serving(access.Socket), "GET", "/api/v1/nodes/beijing.edge2/sas", nil); w.Code != 409 || !strings.Contains(w.Body.String(), "too old to be asked") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// A session that takes the place of another does not leave its questions open.
func TestQuestionsOfReplacedSession(t *testing.T) {
	r := newSite(t).start()
	p := r.answering(edge1)
	_, done := r.asked(p)
	r.answering(edge1)
	if w := <-done; w.Code != 504 || !strings.Contains(w.Body.String(), "its session ended") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// An agent that does not answer is not waited for forever, nor asked more than it
// bears.
func TestUnanswered(t *testing.T) {
	r := newSite(t).start()
	p := r.answering(edge1)
	var waiting []<-chan *httptest.ResponseRecorder
	for range maxQuestions {
		_, done := r.asked(p)
		waiting = append(waiting, done)
	}
	if w := apiCall(t, r.serving(access.Socket), "GET", "/api/v1/nodes/beijing.edge1/sas", nil); w.Code != 409 || !strings.Contains(w.Body.String(), "8 questions to it wait already") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	for _, done := range waiting {
		if w := <-done; w.Code != 504 || !strings.Contains(w.Body.String(), "node beijing.edge1: no answer within 5s") {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	}
	ask, done := r.asked(p)
	p.send(&wire.Reply{ID: ask.ID, Body: json.RawMessage(`[]`)})
	if w := <-done; w.Code != 200 {
		t.Errorf("after that: %d %s", w.Code, w.Body)
	}
}
