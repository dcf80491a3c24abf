package agent

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/bodkin-net/bodkin/agent/charon"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// How often charon is asked for its counters.
const (
	// pollFlowing is while something passes: with the hurried consent check after
	// it, a path that dies under traffic is noticed within 1.2 s.
	pollFlowing = 200 * time.Millisecond
	// pollIdle is while nothing does, from pollLinger after something did: its end
	// is news.
	pollIdle   = time.Second
	pollLinger = time.Second
	// pollShare bounds what asking costs where there are many tunnels: charon
	// lists at most 1/pollShare of the time. That may lengthen the pause up to
	// pollSlow, so that a slow machine is not blind as well; beyond it only
	// pollShareMost counts.
	pollShare     = 20
	pollSlow      = 500 * time.Millisecond
	pollShareMost = 4
	// suspectEvery is between looks at all that a router may have forgotten, for
	// a reason to look at one path.
	suspectEvery = time.Second
)

// poller asks charon for all SAs, again and again. It is one goroutine.
type poller struct {
	list func(context.Context) ([]charon.SA, error)
	out  chan<- []charon.SA
	last uint64 // sum of all counters
	cost cost
}

// cost is how long the last listings took. The shortest tells what charon needs:
// the others have waited, for a busy machine or for charon's other work.
type cost [4]time.Duration

// note takes one more listing and returns what one needs.
func (c *cost) note(took time.Duration) time.Duration {
	copy(c[1:], c[:])
	c[0] = took
	return slices.Min(c[:])
}

// run ends with ctx.
func (p *poller) run(ctx context.Context) {
	var flowed time.Time
	pause := pollIdle
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		asked := time.Now()
		sas, err := p.list(ctx)
		took := time.Since(asked)
		pause = pollIdle
		if err == nil {
			if p.flows(sas) {
				flowed = asked
			}
			if asked.Sub(flowed) <= pollLinger {
				pause = pollFlowing
			}
			select {
			case p.out <- sas:
			case <-ctx.Done():
				return
			}
		}
		timer.Reset(pauseFor(pause, p.cost.note(took)))
	}
}

// pauseFor is how long to wait after a listing that needs so long.
func pauseFor(pause, needs time.Duration) time.Duration {
	return max(pause, min(pollShare*needs, pollSlow), pollShareMost*needs)
}

// flows reports whether anything has passed since the last look.
func (p *poller) flows(sas []charon.SA) bool {
	var sum uint64
	for i := range sas {
		for _, c := range sas[i].Children {
			sum += c.PacketsIn + c.PacketsOut
		}
	}
	is := sum != p.last
	p.last = sum
	return is
}

// startTraffic begins to watch the tunnels' counters; stop ends it and waits.
func (d *Daemon) startTraffic(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	p := &poller{
		list: func(ctx context.Context) ([]charon.SA, error) { return d.vici.SAs(ctx, "") },
		out:  d.snapshots,
	}
	var polling sync.WaitGroup
	polling.Go(func() { p.run(ctx) })
	return func() { cancel(); polling.Wait() }
}

// trafficSeen judges the tunnels by a new snapshot, and has those that give reason
// to looked at.
func (d *Daemon) trafficSeen(ctx context.Context, now time.Time, sas []charon.SA) {
	of := byConnection(slices.DeleteFunc(sas, func(sa charon.SA) bool { return !usable(sa) }))
	maps.DeleteFunc(d.traffic, func(name wire.NodeName, _ *traffic) bool {
		t := d.tunnels[name]
		return t == nil || !t.standing
	})
	for name, t := range d.tunnels {
		if t.standing {
			d.judge(ctx, now, t, of[string(name)])
		}
	}
}

// judge is trafficSeen for one tunnel that stands.
func (d *Daemon) judge(ctx context.Context, now time.Time, t *tunnel, sas []charon.SA) {
	name := t.name()
	judge := d.traffic[name]
	if judge == nil {
		judge = &traffic{}
		d.traffic[name] = judge
	}
	r := d.runs[name]
	if r != nil {
		judge.excuse(r.flow.excused())
	}
	s := judge.look(now, sas)
	d.usage.idle(name, now, judge, sas, t.peer.Plan)
	if s.answer {
		probe(d.id.endpoint, t.peer.Endpoint)
	}
	if r != nil {
		r.flow.seen(now, s.bothWays, judge.deaf(now))
	}
	switch {
	case t.unwatched():
		if judge.swallows(now, t.run != 0) && d.relayUp.Load() {
			d.abandon(ctx, now, t)
		}
	case s.suspect && r != nil && (t.peer.Plan != wire.PlanPublic || t.peer.Role == wire.Controlling): // at the connector it is the edge's to look
		d.suspect(now, t, r, s.weak)
	}
}

// suspect has the run look at its path. Where each byte is paid for, weak reasons
// are for the one path alone.
func (d *Daemon) suspect(now time.Time, t *tunnel, r *running, weak bool) {
	d.log.Debug("traffic gives reason to check the path", "peer", t.name())
	signal(r.hurry)
	if weak && d.cfg.Metered {
		return
	}
	d.lookAround(now, weak)
}

// lookAround checks what else may be gone with a path: a router that has forgotten a
// mapping has forgotten all, and the connector can reach this node only after that
// has spoken to it.
func (d *Daemon) lookAround(now time.Time, weak bool) {
	if now.Sub(d.suspected) < suspectEvery {
		return
	}
	d.suspected = now
	for name, t := range d.tunnels {
		if r := d.runs[name]; r != nil && t.peer.Plan == wire.PlanPublic && t.peer.Role == wire.Controlling {
			signal(r.hurry)
		}
	}
	if !weak {
		d.lookAgain()
		d.signalling.check()
	}
}

// abandon leaves a tunnel that nobody watches: what it swallows the relay can
// carry. An attempt under way goes on.
func (d *Daemon) abandon(ctx context.Context, now time.Time, t *tunnel) {
	sas, err := d.vici.SAs(ctx, string(t.name()))
	if err != nil {
		return
	}
	destroy(ctx, d.vici, d.log, sas, func(sa charon.SA) bool { return usable(sa) && sameEnds(sa, t.path) })
	d.perform(ctx, t, t.gone(now, "bytes left through the old tunnel and none returned"))
}

// leaveDead ends what charon still has of punched tunnels that are lost, for the
// relay is there now. What an attempt under way has made of a path is its own.
func (d *Daemon) leaveDead(ctx context.Context) {
	sas, err := d.vici.SAs(ctx, "")
	if err != nil {
		return
	}
	destroy(ctx, d.vici, d.log, sas, func(sa charon.SA) bool {
		t := d.tunnels[wire.NodeName(sa.Name)]
		return t != nil && usable(sa) && t.peer.Plan != wire.PlanPublic && !t.standing && !t.path.Remote.IsValid() &&
			d.owned.has(sa.Name)
	})
}
