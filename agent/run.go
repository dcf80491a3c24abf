package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bodkin-net/bodkin/agent/charon"
	"github.com/bodkin-net/bodkin/punch"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// Timing of one run.
const (
	// establishTimeout is from a path to bytes through the tunnel. charon
	// repeats a lost IKE message after 4 s.
	establishTimeout = 9 * time.Second
	// reuseTimeout is how long a tunnel that stood before gets to prove that
	// it still works on the path found.
	reuseTimeout = 2 * time.Second
	// carriesInterval is between looks at a tunnel whose peer has no agent:
	// the interval of consent, which the look stands in for.
	carriesInterval = 30 * time.Second
	// charonPatience is for a charon that is just restarting.
	charonPatience = 3 * time.Second
	// charonRetry: charon restarts in a second or two.
	charonRetry = 250 * time.Millisecond
)

// runEvent is what a run tells the daemon.
type runEvent struct {
	peer wire.NodeName
	run  runID
	// outcome decides which of the others are set.
	outcome  wire.Outcome
	path     wire.Path
	reason   string
	elapsed  time.Duration
	plainESP bool
	// packets are those sent so far to get through.
	packets int
}

// run is the work on one tunnel, in the order it happens: punch, hand the path
// to charon, see bytes come through, watch the path. It is one goroutine; its
// context ends it.
type run struct {
	begin
	name    string
	started time.Time
	log     *slog.Logger
	shared  *shared
	// here is where this node is, forbidden what the peer's candidates may not be.
	here      whereabouts
	forbidden []punch.Forbidden
	// packets counts what the punch has sent.
	packets int
	// trickle brings what became known of the peer after the order.
	trickle chan *wire.Trickle
	// wake says that charon reported something about this connection.
	wake chan struct{}
	// hurry says that the path may have gone: check it now.
	hurry chan struct{}
	// background is what the run started beside itself.
	background sync.WaitGroup
}

// shared is what all runs use; its parts may be called from any goroutine.
type shared struct {
	id    *identity
	vici  *charon.Client
	owned *owned
	// charonReady is open while charon is there with our credentials in it.
	charonReady *gate
	port        *punch.Port
	mark        uint32 // of sockets beside the tunnels, see Config
	punch       wire.Policy
	probe       ProbeConfig
	rewrites    rewrites
	localNAT    *atomic.Pointer[wire.NAT]
	events      chan<- runEvent
}

// failure is why a run ended without a tunnel.
type failure struct {
	reason   string
	plainESP bool
}

func (f *failure) Error() string { return f.reason }

func failf(format string, args ...any) error { return &failure{reason: fmt.Sprintf(format, args...)} }

// do runs to the end.
func (r *run) do(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer r.background.Wait()
	defer cancel()
	work := r.public
	if r.order != nil {
		work = r.punched
	}
	direct, err := work(ctx)
	if !direct && r.order != nil {
		r.dropHalfOpen(ctx)
	}
	if ctx.Err() != nil || err == nil {
		return // whoever stopped the run knows why
	}
	e := runEvent{outcome: wire.OutcomeFailed, reason: err.Error(), elapsed: time.Since(r.started)}
	if direct {
		e.outcome = wire.OutcomeLost
	}
	if f, ok := errors.AsType[*failure](err); ok {
		e.plainESP = f.plainESP
	}
	r.emit(ctx, e)
}

func (r *run) emit(ctx context.Context, e runEvent) {
	e.peer, e.run, e.packets = r.peer.Endpoint.Name, r.run, r.packets
	select {
	case r.shared.events <- e:
	case <-ctx.Done():
	}
}

// claim makes the connection's name ours, once charon can be asked whose it is.
func (r *run) claim(ctx context.Context) error {
	wait, cancel := context.WithTimeout(ctx, charonPatience)
	defer cancel()
	if r.shared.charonReady.wait(wait) != nil {
		return failf("charon is not reachable: is strongSwan running on this node?")
	}
	return r.shared.owned.claim(ctx, r.shared.vici, r.name, r.storeID)
}

// public keeps the tunnel to or on the connector, which needs no punch.
func (r *run) public(ctx context.Context) (direct bool, err error) {
	if err := r.claim(ctx); err != nil {
		return false, err
	}
	path := wire.Path{Kind: wire.PathPublic}
	if r.peer.Role == wire.Controlling {
		ectx, cancel := context.WithTimeout(ctx, establishTimeout)
		defer cancel()
		err = r.establish(ectx, path)
	} else {
		err = r.establish(ctx, path) // the edge may come at any time
	}
	if err != nil {
		return false, err
	}
	path, err = r.current(ctx, path)
	if err != nil {
		return false, err
	}
	r.emit(ctx, runEvent{outcome: wire.OutcomeDirect, path: path, elapsed: time.Since(r.started)})
	r.background.Go(func() { r.reassure(ctx) })
	<-ctx.Done() // charon's dead peer detection watches it
	return true, ctx.Err()
}

func (r *run) wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
