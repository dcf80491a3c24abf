package agent

import (
	"context"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// running is a run and how to end it.
type running struct {
	*run
	cancel context.CancelFunc
	done   chan struct{} // closed when it has ended
}

// stop ends the run and waits for the end.
func (r *running) stop() {
	r.cancel()
	<-r.done
}

func (d *Daemon) beginRun(ctx context.Context, b begin) {
	name := b.peer.Endpoint.Name
	d.stopRun(name)
	r := &run{
		begin: b, name: string(name), started: time.Now(),
		log:     d.log.With("peer", name),
		trickle: make(chan *wire.Trickle, 8), wake: make(chan struct{}, 1), hurry: make(chan struct{}, 1),
		shared: &shared{
			id: d.id, vici: d.vici, owned: d.owned, charonReady: d.charonReady, port: d.port, mark: d.cfg.Mark, events: d.runEvents,
			localNAT: &d.localNAT, relayUp: &d.relayUp, relayWanted: &d.relayWanted, punch: d.cfg.Punch, metered: d.cfg.Metered, probe: d.cfg.Probe, rewrites: d.rewrites,
			directMark: d.cfg.DirectMark, filter: d.filter,
		},
		here: d.whereabouts(), meter: d.usage.meter(name),
	}
	r.steps.began = r.started
	if b.order != nil {
		r.forbidden = d.forbidden(publicOf(b.order.Candidates).Addr())
	}
	rctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.do(rctx)
	}()
	d.runs[name] = &running{run: r, cancel: cancel, done: done}
}

func (d *Daemon) stopRun(name wire.NodeName) {
	if r := d.runs[name]; r != nil {
		delete(d.runs, name)
		r.stop()
	}
}

// hasten begins to end those of the runs that which picks. The end of an ICE
// session takes a while, and that of many is waited for only once.
func (d *Daemon) hasten(which func(wire.NodeName) bool) {
	for name, r := range d.runs {
		if which(name) {
			r.cancel()
		}
	}
}

// runEvent passes a run's word to its tunnel.
func (d *Daemon) runEvent(ctx context.Context, e runEvent) {
	t := d.tunnels[e.peer]
	if t == nil {
		return
	}
	now := time.Now()
	t.sent(e.run, e.packets, e.steps)
	if e.left {
		d.perform(ctx, t, t.left(now, e.run))
		return
	}
	switch e.outcome {
	case wire.OutcomeNominated:
		d.perform(ctx, t, t.nominated(e.run, e.path))
	case wire.OutcomeDirect:
		t.relays(e.run, e.relay, e.note)
		d.perform(ctx, t, t.direct(now, e.run, e.path, e.elapsed))
	case wire.OutcomeFailed:
		if e.run == t.run {
			// A port that nothing came of, or that a router has forgotten since:
			// checks that leave from it could not find another way.
			d.dropUnused(t)
		}
		d.perform(ctx, t, t.failed(now, e.run, e.reason, e.plainESP))
	case wire.OutcomeLost:
		d.lookAgain()
		d.signalling.check() // whatever broke the path may have broken the session
		d.perform(ctx, t, t.lost(now, e.run, e.reason))
	}
}
