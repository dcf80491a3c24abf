package agent

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// answersAtOnce bounds what the rendezvous can have this node work on at a time:
// more than operators do, and too little to keep charon from its work.
const answersAtOnce = 4

// answerMax is the longest answer, in bytes: a frame with some room for the rest
// of the message.
const answerMax = wire.MaxFrame - 1<<10

// answer has a question answered in the background, in the session it came in.
func (d *Daemon) answer(ctx context.Context, ask *wire.Ask) {
	send := d.link.send
	select {
	case d.answering <- struct{}{}:
	default:
		send(&wire.Reply{ID: ask.ID, Error: "the node is busy with other questions"})
		return
	}
	d.answers.Go(func() {
		defer func() { <-d.answering }()
		send(d.replyTo(ctx, ask))
	})
}

// replyTo answers a question.
func (d *Daemon) replyTo(ctx context.Context, ask *wire.Ask) *wire.Reply {
	r := &wire.Reply{ID: ask.ID}
	if ask.Question != wire.AskSAs {
		r.Error = fmt.Sprintf("this node's agent (%s) does not know the question %q", d.version, ask.Question)
		return r
	}
	sas, err := d.listSAs(ctx)
	if err != nil {
		r.Error = shortened(err.Error())
		return r
	}
	body, err := json.Marshal(sas)
	switch {
	case err != nil:
		r.Error = shortened(err.Error())
	case len(body) > answerMax:
		r.Error = fmt.Sprintf("%d SAs are more than fit into a message: run `bodkin sas` on the node itself", len(sas))
	default:
		r.Body = body
	}
	return r
}

// shortened is a text as long as the wire takes it.
func shortened(s string) string { return s[:min(len(s), wire.MaxText)] }
