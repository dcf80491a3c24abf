package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"

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
	// charonPatience is for a charon that is just restarting.
	charonPatience = 3 * time.Second
	// leaveTimeout bounds ending a tunnel whose path has died, also when another
	// run is waiting to begin; charon answers in milliseconds, or not at all.
	leaveTimeout = time.Second
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
	// packets are those sent so far to get through, steps what else was done.
	packets int
	steps   []wire.Step
	// relay and note are of a tunnel with the connector that is direct: whether
	// it relays, and why not.
	relay bool
	note  string
	// left: the run has left the tunnel, as it was told to.
	left bool
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
	// packets counts what the punch has sent, steps what it and charon did.
	packets int
	steps   steps
	// trickle brings what became known of the peer after the order.
	trickle chan *wire.Trickle
	// wake says that charon reported something about this connection.
	wake chan struct{}
	// hurry says that the path may have gone: check it now.
	hurry chan struct{}
	// meter counts what the checks cost.
	meter *meter
	// flow is what the daemon sees of the tunnel's traffic.
	flow flow
	// renewed is the peer with the range that the relay is to cover now, if it
	// has changed since the run began; wake tells.
	renewed atomic.Pointer[wire.Peer]
	// loaded is the range that charon's connection has for the relay.
	loaded []netip.Prefix
	// held is what this node sends to the peer and waits for the relay, nil for none.
	held *hold
	// pins hold what this node sends to the peer in the relay.
	pins []netlink.XfrmPolicy
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
	metered     bool
	probe       ProbeConfig
	rewrites    rewrites
	directMark  DirectMark
	// filter is of what a connector relays.
	filter   *forwardFilter
	localNAT *atomic.Pointer[wire.NAT]
	// relayUp: this node is reached through its connector, too. A tunnel that
	// has died is left at once then. relayWanted: it shall be, and what comes
	// through it must not be held against a direct tunnel's policy.
	relayUp, relayWanted *atomic.Bool
	events               chan<- runEvent
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
	if r.begin.leave {
		r.leave(ctx, r.at)
		r.emit(ctx, runEvent{left: true})
		return
	}
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
	if !direct {
		r.steps.once(wire.Step{Kind: wire.StepFailed, Text: e.reason})
	}
	// First the word, then the deed: charon's own would not say why.
	r.emit(ctx, e)
	if direct && r.order != nil && r.shared.relayUp.Load() {
		r.leave(ctx, time.Time{})
	}
}

func (r *run) emit(ctx context.Context, e runEvent) {
	e.peer, e.run, e.packets, e.steps = r.peer.Endpoint.Name, r.run, r.packets, r.steps.all()
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
