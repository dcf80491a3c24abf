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
	// punchTimeout bounds the checks of one attempt. ICE on a path that can
	// work needs two round trips; ten seconds cover loss and slow links.
	punchTimeout = 10 * time.Second
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
	e.peer, e.run = r.peer.Endpoint.Name, r.run
	select {
	case r.shared.events <- e:
	case <-ctx.Done():
	}
}

// punched is a coordinated attempt. direct tells whether the tunnel stood
// before the error.
func (r *run) punched(ctx context.Context) (direct bool, err error) {
	session, err := r.shared.port.NewSession(punch.SessionConfig{
		Role: punchRole(r.peer.Role), Log: r.log,
		Local:  punch.Credentials(r.order.Local),
		Remote: punch.Credentials(r.order.Remote), Remotes: punchCandidates(r.order.Candidates),
	})
	if err != nil {
		return false, failf("ICE: %v", err)
	}
	defer session.Close()
	prepared := r.prepare(ctx)
	if err := r.wait(ctx, time.Until(r.started.Add(time.Duration(r.order.StartAfterMs)*time.Millisecond))); err != nil {
		return false, err
	}
	if r.peer.Role == wire.Controlled {
		// Once our answers tell the peer of a path, its charon may be faster
		// than ours, and IKE that meets no connection is refused for good.
		if err := <-prepared; err != nil {
			return false, err
		}
	}
	if err := session.Start(); err != nil {
		return false, failf("ICE: %v", err)
	}
	path, err := r.firstPath(ctx, session)
	if err != nil {
		return false, err
	}
	if r.peer.Role == wire.Controlling {
		if err := <-prepared; err != nil {
			return false, err
		}
	}
	for {
		r.emit(ctx, runEvent{outcome: wire.OutcomeNominated, path: path})
		better, err := r.establishUnless(ctx, path, session.Paths())
		if better != nil {
			path = *better
			continue
		}
		if err != nil {
			return direct, err
		}
		direct = true
		r.emit(ctx, runEvent{outcome: wire.OutcomeDirect, path: path, elapsed: time.Since(r.started)})
		r.background.Go(func() { r.reassure(ctx) })
		if better, err = r.monitor(ctx, session, path); better == nil {
			return true, err
		}
		path = *better
	}
}

// prepare loads the responder's side before the path is known, so that the
// initiator's first message meets a connection. The result comes when done.
func (r *run) prepare(ctx context.Context) <-chan error {
	done := make(chan error, 1)
	r.background.Go(func() {
		err := r.claim(ctx)
		if err == nil && r.peer.Role == wire.Controlled {
			err = r.load(ctx, wire.Path{})
		}
		done <- err
	})
	return done
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

func (r *run) firstPath(ctx context.Context, session *punch.Session) (wire.Path, error) {
	remote := r.order.RemoteNAT
	timeout := time.NewTimer(punchTimeout)
	defer timeout.Stop()
	for {
		select {
		case p := <-session.Paths():
			return wirePath(p), nil
		case t := <-r.trickle:
			r.addRemotes(session, t.Candidates)
			if t.RemoteNAT != nil {
				remote = *t.RemoteNAT
			}
		case <-timeout.C:
			return wire.Path{}, failf("%s", punch.Explain(r.natHere(), punchNAT(remote), session.Checked()))
		case <-ctx.Done():
			return wire.Path{}, ctx.Err()
		}
	}
}

// natHere is what is known of this node's NAT by now.
func (r *run) natHere() punch.NAT {
	if n := r.shared.localNAT.Load(); n != nil {
		return punchNAT(*n)
	}
	return punch.NAT{}
}

func (r *run) addRemotes(session *punch.Session, cs []wire.Candidate) {
	for _, c := range punchCandidates(cs) {
		if err := session.AddRemote(c); err != nil {
			r.log.Warn("candidate not used", "candidate", c.Addr, "err", err)
		}
	}
}

// establishUnless establishes the tunnel on path, unless ICE settles on another
// one meanwhile: then that one is returned.
func (r *run) establishUnless(ctx context.Context, path wire.Path, paths <-chan punch.Path) (*wire.Path, error) {
	ctx, cancel := context.WithTimeout(ctx, establishTimeout)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- r.establish(ctx, path) }()
	for {
		select {
		case p := <-paths:
			if better := wirePath(p); better.Remote != path.Remote || better.Local != path.Local {
				cancel()
				<-done //nolint:errcheck // it ended because it was told to
				return &better, nil
			}
		case err := <-done:
			return nil, err
		}
	}
}

// monitor watches the path until it is lost or ICE moves to another.
func (r *run) monitor(ctx context.Context, session *punch.Session, path wire.Path) (*wire.Path, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- r.watch(ctx, session, path) }()
	for {
		select {
		case p := <-session.Paths():
			if better := wirePath(p); better.Remote != path.Remote || better.Local != path.Local {
				cancel()
				<-done //nolint:errcheck // it ended because it was told to
				return &better, nil
			}
		case <-r.trickle: // the path is chosen
		case <-r.hurry:
			session.CheckNow()
		case err := <-done:
			return nil, failf("the path to %s went silent: %v", path.Remote, err)
		}
	}
}

// watch returns when neither the peer's agent nor its charon is heard on path
// any more. An agent that is away leaves a tunnel that works.
func (r *run) watch(ctx context.Context, session *punch.Session, path wire.Path) error {
	lost := session.Monitor(ctx, punch.DefaultConsent())
	for errors.Is(lost, punch.ErrConsentLost) && r.carries(ctx, path) {
		r.log.Info("the peer's agent does not answer, but its charon does: the tunnel stays")
		if r.wait(ctx, carriesInterval) != nil {
			return ctx.Err()
		}
	}
	return lost
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

func punchRole(role wire.Role) punch.Role {
	if role == wire.Controlling {
		return punch.Controlling
	}
	return punch.Controlled
}

func punchCandidates(cs []wire.Candidate) []punch.Candidate {
	out := make([]punch.Candidate, 0, len(cs))
	for _, c := range cs {
		out = append(out, punch.Candidate{Kind: punch.Kind(c.Kind), Addr: c.Addr})
	}
	return out
}

func punchNAT(n wire.NAT) punch.NAT {
	return punch.NAT{
		Present: n.Present, Mapping: punch.Behaviour(n.Mapping),
		Filtering: punch.Behaviour(n.Filtering), Blocked: n.Blocked,
	}
}

func wireNAT(n punch.NAT) wire.NAT {
	return wire.NAT{
		Present: n.Present, Mapping: wire.Behaviour(n.Mapping),
		Filtering: wire.Behaviour(n.Filtering), Blocked: n.Blocked,
	}
}

func wirePath(p punch.Path) wire.Path {
	return wire.Path{Kind: wire.PathKind(p.Kind), Local: p.Local, Remote: p.Remote}
}
