package agent

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/bodkin-net/bodkin/punch"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// Timing of watching a tunnel that stands.
const (
	// carriesInterval is between looks at a tunnel whose peer has no agent:
	// the interval of consent, which the look stands in for.
	carriesInterval = 30 * time.Second
	// deafTimeout is how long bytes may leave without any returning while the
	// path passes STUN, with probes sent meanwhile: a peer that is idle notices
	// within a second (pollIdle) that what it gets is not answered, and answers.
	deafTimeout = 2 * time.Second
	// publicLook is how long a look through the tunnel to the connector takes at
	// most, if it has answered in less than half of that before: no consent tells
	// there whether the path is dead, and the relay is what everything else falls
	// back on. Where a firewall there leaves the answer to the agent, it can take
	// publicLookMax.
	publicLook    = 800 * time.Millisecond
	publicLookMax = 2 * time.Second
)

// monitor watches the path until it is lost or ICE moves to another. It is lost
// when neither the peer's agent answers checks on it nor its charon lets bytes
// through the tunnel: an agent that is away leaves a tunnel that works.
func (r *run) monitor(ctx context.Context, session *punch.Session, path wire.Path) (*wire.Path, error) {
	w := r.newWatch(ctx, path)
	defer w.stop()
	consent := consentFor(r.natHere(), r.order.RemoteNAT, r.shared.metered || r.peer.Metered)
	consent.Proof = r.flow.lastBothWays
	silent := make(chan error, 1)
	w.working.Go(func() { silent <- session.Monitor(w.ctx, consent) })
	for {
		select {
		case p := <-session.Paths():
			if better := wirePath(p); better.Remote != path.Remote || better.Local != path.Local {
				return &better, nil
			}
		case <-r.trickle: // the path is chosen
		case <-r.hurry:
			w.look(session.CheckNow())
		case w.silent = <-silent:
			if !errors.Is(w.silent, punch.ErrConsentLost) {
				return nil, w.silent
			}
			if !w.failed.IsZero() && time.Since(w.failed) <= consent.Hurried.Lost {
				return nil, w.lost()
			}
			w.look(reuseTimeout)
		case carries := <-w.looked:
			w.moved = session.Moved()
			w.done(carries)
			if w.dead(carries) {
				return nil, w.lost()
			}
			if deaf := r.flow.deafFor(time.Now()); !carries && deaf > 0 {
				w.look(deafTimeout - deaf)
			}
		case <-w.again.C:
			w.look(reuseTimeout)
		case <-w.ctx.Done():
			return nil, w.ctx.Err()
		}
	}
}

// watch is what the watching of one path knows. It belongs to the run's
// goroutine.
type watch struct {
	run    *run
	path   wire.Path
	ctx    context.Context //nolint:containedctx // that of its goroutines, ended by stop
	cancel context.CancelFunc
	// working are its goroutines: the looks, of which there is one at a time, and
	// the session's Monitor.
	working sync.WaitGroup
	looked  chan bool
	// looking: a look is under way, since began; failed is when the last one found
	// nothing, zero if it did.
	looking bool
	began   time.Time
	failed  time.Time
	// patience is how long a look through the tunnel to the connector takes.
	patience time.Duration
	// silent is set when the peer's agent does not answer any more; again is the
	// next look then.
	silent error
	again  *time.Timer
	said   bool
	// moved: the NAT before this node gives the path another mapping than it had.
	moved bool
}

func (r *run) newWatch(ctx context.Context, path wire.Path) *watch {
	w := &watch{run: r, path: path, looked: make(chan bool, 1), again: time.NewTimer(0), patience: publicLookMax}
	w.again.Stop()
	w.ctx, w.cancel = context.WithCancel(ctx)
	return w
}

// stop ends what the watch has started, and waits for it.
func (w *watch) stop() {
	w.cancel()
	w.again.Stop()
	w.working.Wait()
}

// look asks for bytes through the tunnel, for so long. The answer goes to looked.
func (w *watch) look(timeout time.Duration) {
	if w.looking {
		return
	}
	w.looking, w.began = true, time.Now()
	w.working.Go(func() {
		ctx, cancel := context.WithTimeout(w.ctx, timeout)
		defer cancel()
		w.looked <- w.run.carries(ctx, w.path)
	})
}

// lookPublic is look for the tunnel to the connector.
func (w *watch) lookPublic() { w.look(w.patience) }

// done notes the result of a look.
func (w *watch) done(carries bool) {
	now := time.Now()
	w.looking, w.failed = false, time.Time{}
	if !carries {
		w.failed = now
		return
	}
	w.run.flow.excuse(now)
	if now.Sub(w.began) < publicLook/2 {
		w.patience = publicLook
	}
	if w.silent != nil {
		w.again.Reset(carriesInterval)
		if !w.said {
			w.said = true
			w.run.log.Info("the peer's agent does not answer, but its charon does: the tunnel stays")
		}
	}
}

// dead reports whether a look has shown that the tunnel is: what the peer's
// charon sends to a mapping that is gone does not arrive, though consent does.
func (w *watch) dead(carries bool) bool {
	return !carries && (w.silent != nil || w.moved || w.run.flow.deafFor(time.Now()) >= deafTimeout)
}

// lost says why the path is given up.
func (w *watch) lost() error {
	switch {
	case w.silent != nil:
		return failf("the path to %s went silent: %v", w.path.Remote, w.silent)
	case w.moved:
		return failf("the NAT here has another mapping for %s than the tunnel was made with", w.path.Remote)
	}
	return failf("STUN passes to %s, ESP does not: bytes leave through the tunnel and none return", w.path.Remote)
}
