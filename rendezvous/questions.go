package rendezvous

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

const (
	// answerTimeout bounds the wait for an agent's answer: a round trip and what
	// charon takes to list its SAs.
	answerTimeout = 5 * time.Second
	// maxQuestions bounds what one agent is asked at a time.
	maxQuestions = 8
)

// errGone says that the session ended before the answer came.
var errGone = fmt.Errorf("%w: its session ended", errNoAnswer)

// questions are those of one session that wait for an answer. The zero value is
// ready; it is safe for concurrent use.
type questions struct {
	mu    sync.Mutex
	open  map[string]chan *wire.Reply // by ID; closed without a reply at the end
	ended bool
}

// ask makes room for an answer.
func (q *questions) ask(id string) (<-chan *wire.Reply, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ended {
		return nil, errGone
	}
	if len(q.open) >= maxQuestions {
		return nil, fmt.Errorf("%w: %d questions to it wait already: try again", ErrConflict, maxQuestions)
	}
	if q.open == nil {
		q.open = map[string]chan *wire.Reply{}
	}
	answer := make(chan *wire.Reply, 1)
	q.open[id] = answer
	return answer, nil
}

// answer hands an answer to who waits for it. One that nobody waits for any more
// is late.
func (q *questions) answer(r *wire.Reply) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if answer := q.open[r.ID]; answer != nil {
		answer <- r
		delete(q.open, r.ID)
	}
}

func (q *questions) forget(id string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.open, id)
}

// end tells all who wait that no answer will come.
func (q *questions) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = true
	for id, answer := range q.open {
		close(answer)
		delete(q.open, id)
	}
}

// ask has a node's agent answer a question.
func (h *hub) ask(ctx context.Context, name wire.NodeName, question wire.Question) (json.RawMessage, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	id := token(8)
	var answer <-chan *wire.Reply
	var session *session
	var failed error
	err := h.call(ctx, func(time.Time) []action {
		session = h.sessions[name]
		switch {
		case h.details[name] == nil:
			failed = fmt.Errorf("node %s: %w", clip(string(name)), store.ErrNotFound)
		case session == nil:
			failed = fmt.Errorf("%w: node %s is offline", ErrConflict, name)
		case !session.answers:
			failed = fmt.Errorf("%w: the agent of node %s is too old to be asked: update bodkin there", ErrConflict, name)
		default:
			if answer, failed = session.questions.ask(id); failed == nil {
				session.send(&wire.Ask{ID: id, Question: question})
			}
		}
		return nil
	})
	if err := errors.Join(err, failed); err != nil {
		return nil, err
	}
	defer session.questions.forget(id)
	select {
	case r, ok := <-answer:
		switch {
		case !ok:
			return nil, fmt.Errorf("node %s: %w", name, errGone)
		case r.Error != "":
			return nil, fmt.Errorf("%w: node %s: %s", ErrConflict, name, wire.Clip(r.Error))
		}
		return r.Body, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("node %s: %w within %s", name, errNoAnswer, answerTimeout)
	}
}

// getSAs is charon's SAs of a node, in its agent's own words.
func (s *Server) getSAs(r *http.Request) (any, error) {
	return s.hub.ask(r.Context(), nameIn(r), wire.AskSAs)
}
