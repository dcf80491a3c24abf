package agent

import (
	"context"
	"time"

	"github.com/bodkin-net/bodkin/punch"
	"github.com/bodkin-net/bodkin/punch/nat"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// Timing of a punch.
const (
	// punchTimeout bounds the checks of one attempt. ICE on a path that can
	// work needs two round trips; ten seconds cover loss and slow links.
	punchTimeout = 10 * time.Second
	// searchTimeout is punchTimeout for an attempt with a search: the default
	// number of probes at the default rate takes 8 s, and the path from a hit
	// to a nomination some round trips.
	searchTimeout = 12 * time.Second
	// hopelessTimeout is for an attempt that is not expected to succeed: it
	// still finds a path on a network that is not what it was taken for, and
	// three seconds are 70 checks of each address.
	hopelessTimeout = 3 * time.Second
)

func timeoutFor(order *wire.Punch) time.Duration {
	switch {
	case order.Hopeless != "":
		return hopelessTimeout
	case order.Strategy == wire.StrategyProbe:
		return searchTimeout
	default:
		return punchTimeout
	}
}

// punched is a coordinated attempt. direct tells whether the tunnel stood
// before the error.
func (r *run) punched(ctx context.Context) (direct bool, err error) {
	if err := permitted(r.shared.punch, r.order.Strategy); err != nil {
		return false, err
	}
	session, err := r.shared.port.NewSession(punch.SessionConfig{
		Role: punchRole(r.peer.Role), Log: r.log, Forbidden: r.forbidden,
		Leaves: leaves(r.shared.mark, r.shared.port.Local()), Count: r.meter.packet, Seen: r.steps.seen,
		Local:  punch.Credentials(r.order.Local),
		Remote: punch.Credentials(r.order.Remote), Remotes: r.candidates(r.order.Candidates),
	})
	if err != nil {
		return false, failf("ICE: %v", err)
	}
	defer session.Close()
	path, err := r.firstPath(ctx, session)
	if err != nil {
		r.packets = session.Checked().Sent()
		return false, err
	}
	for {
		r.packets = session.Checked().Sent()
		r.steps.add(wire.Step{Kind: wire.StepNominated, Remote: path.Remote})
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
		r.shared.rewrites.settle(r.name, path)
		r.emit(ctx, runEvent{outcome: wire.OutcomeDirect, path: path, elapsed: time.Since(r.started)})
		r.background.Go(func() { r.reassure(ctx) })
		if better, err = r.monitor(ctx, session, path); better == nil {
			return true, err
		}
		path = *better
	}
}

// permitted reports as an error that this node's operator forbids a strategy:
// the rendezvous should know, but has no say in it.
func permitted(policy wire.Policy, s wire.Strategy) error {
	if policy == wire.PolicyNever || policy == wire.PolicyICEOnly && (s == wire.StrategyPredict || s == wire.StrategyProbe) {
		return failf("this node's configuration does not permit strategy %s (punch: %s)", nat.Strategy(strategyOf(s)), policy)
	}
	return nil
}

// strategyOf is what an order means, also one from a rendezvous that knows of
// one strategy only.
func strategyOf(s wire.Strategy) wire.Strategy {
	if s == "" {
		return wire.StrategyICE
	}
	return s
}

// firstPath goes through the order's strategy, in step with the peer, until ICE
// has found a path.
func (r *run) firstPath(ctx context.Context, session *punch.Session) (wire.Path, error) {
	prepared := r.prepare(ctx)
	if err := r.wait(ctx, time.Until(r.started.Add(time.Duration(r.order.StartAfterMs)*time.Millisecond))); err != nil {
		return wire.Path{}, err
	}
	r.steps.once(wire.Step{Kind: wire.StepStart})
	search := r.beginSearch(ctx, session)
	defer search.end() //nolint:errcheck // told by awaitPath, where it matters
	if strategyOf(r.order.Strategy) != wire.StrategyICE {
		r.openers(session)
		search.begin()
		if err := r.wait(ctx, punch.Barrier); err != nil {
			return wire.Path{}, err
		}
	}
	if r.peer.Role == wire.Controlled {
		// Once our answers tell the peer of a path, its charon may be faster
		// than ours, and IKE that meets no connection is refused for good.
		if err := <-prepared; err != nil {
			return wire.Path{}, err
		}
	}
	if err := session.Start(); err != nil {
		return wire.Path{}, failf("ICE: %v", err)
	}
	path, err := r.awaitPath(ctx, session, search)
	if err == nil && r.peer.Role == wire.Controlling {
		err = <-prepared
	}
	return path, err
}

// openers sends this side's openers. A socket that cannot is no reason to give
// up: most routers do not mind.
func (r *run) openers(session *punch.Session) {
	targets := punch.OpenerTargets(r.candidates(r.order.Candidates))
	if err := session.Open(punch.OpenerTTL(natOf(r.natHere())), targets); err != nil {
		r.log.Warn("openers not sent", "err", err)
	}
	for _, to := range targets {
		r.steps.add(wire.Step{Kind: wire.StepOpeners, Remote: to})
	}
}

// awaitPath waits for ICE, and says why it found nothing.
func (r *run) awaitPath(ctx context.Context, session *punch.Session, search *search) (wire.Path, error) {
	remote := r.order.RemoteNAT
	timeout := time.NewTimer(timeoutFor(r.order))
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
			return wire.Path{}, failf("%s", punch.Explain(punch.Attempt{
				Local: r.siteHere(), Remote: r.siteThere(remote),
				Strategy: nat.Strategy(strategyOf(r.order.Strategy)), Hopeless: r.order.Hopeless,
				Trouble: search.end(), Stats: session.Checked(),
			}))
		case <-ctx.Done():
			return wire.Path{}, ctx.Err()
		}
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

// natHere is what is known of this node's NAT by now.
func (r *run) natHere() wire.NAT {
	if n := r.shared.localNAT.Load(); n != nil {
		return *n
	}
	return wire.NAT{}
}

// siteHere is what a verdict needs to know of this node.
func (r *run) siteHere() nat.Site {
	return nat.Site{
		Name: string(r.shared.id.endpoint.Name), NAT: natOf(r.natHere()), Public: r.here.public,
		Mapped: r.here.mapped, NoProbe: r.shared.rewrites.unavailable(), Policy: nat.Policy(r.shared.punch),
	}
}

// siteThere is what a verdict needs to know of the peer.
func (r *run) siteThere(n wire.NAT) nat.Site {
	s := nat.Site{Name: r.name, NAT: natOf(n), Public: publicOf(r.order.Candidates).Addr()}
	for _, c := range r.order.Candidates {
		s.Mapped = s.Mapped || c.Kind == wire.Mapped
	}
	return s
}

func (r *run) addRemotes(session *punch.Session, cs []wire.Candidate) {
	for _, c := range r.candidates(cs) {
		if err := session.AddRemote(c); err != nil {
			r.log.Warn("candidate not used", "candidate", c.Addr, "err", err)
		}
	}
}

// candidates are those of the peer's that this node's operator lets it check.
func (r *run) candidates(cs []wire.Candidate) []punch.Candidate {
	out := make([]punch.Candidate, 0, len(cs))
	for _, c := range cs {
		if c.Kind != wire.Predicted || permitted(r.shared.punch, wire.StrategyPredict) == nil {
			out = append(out, punch.Candidate{Kind: punch.Kind(c.Kind), Addr: c.Addr})
		}
	}
	return out
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

func punchRole(role wire.Role) punch.Role {
	if role == wire.Controlling {
		return punch.Controlling
	}
	return punch.Controlled
}

func wirePath(p punch.Path) wire.Path {
	return wire.Path{Kind: wire.PathKind(p.Kind), Local: p.Local, Remote: p.Remote}
}
