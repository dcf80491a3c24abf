package agent

import (
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// effect is something the daemon has to do.
type effect interface{ isEffect() }

// begin starts a run, after the one before it has ended.
type begin struct {
	run   runID
	peer  wire.Peer
	order *wire.Punch
	// storeID is the rendezvous' store that asked for the tunnel.
	storeID string
	// encap demands ESP in UDP where plain ESP would otherwise be used.
	encap bool
	// fresh demands another tunnel even where one seems to work.
	fresh bool
	// standing says that there is one that seems to.
	standing bool
	// leave has the run end what there is, at a moment, and do nothing else.
	leave bool
	at    time.Time
}

// renew tells the current run that the range its relay covers has changed.
type renew struct{ peer wire.Peer }

// stop ends the current run. The tunnel stays.
type stop struct{}

// tell sends a report to the rendezvous.
type tell struct {
	report *wire.Report
	// strategy is that of the attempt that the report names.
	strategy wire.Strategy
}

func (begin) isEffect() {}
func (renew) isEffect() {}
func (stop) isEffect()  {}
func (tell) isEffect()  {}

func (t *tunnel) tell(o wire.Outcome, path wire.Path, reason string, elapsed time.Duration) {
	r := t.report(o, reason)
	r.Path, r.ElapsedMs, r.Packets, r.Relay = path, max(0, elapsed.Milliseconds()), t.packets, t.relay
	if r.Attempt != "" && o != wire.OutcomeNominated { // it has ended
		r.Steps = t.steps
	}
	e := tell{report: r}
	if t.order != nil {
		e.strategy = t.order.Strategy
	}
	t.do(e)
}

func (t *tunnel) report(o wire.Outcome, reason string) *wire.Report {
	r := &wire.Report{Peer: t.name(), Outcome: o, Reason: reason}
	if t.order != nil && !t.own {
		r.Attempt = t.order.Attempt
	}
	return r
}
