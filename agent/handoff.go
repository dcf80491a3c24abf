package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/bodkin-net/bodkin/agent/charon"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// Timing of watching charon after a handoff.
const (
	// confirmPoll is between looks at the byte counters once a CHILD SA is
	// installed: charon has no event for traffic.
	confirmPoll = 20 * time.Millisecond
	// idlePoll is between looks while charon's events should come first.
	idlePoll = time.Second
	// initiateAgain is between initiations that the peer's charon refuses.
	initiateAgain = 300 * time.Millisecond
	// takeOver is when the controlled side initiates by itself: after what the
	// controlling side takes to drop an old tunnel and to repeat a first message
	// that was lost (charon does after 4 s, and again after 11 s). Two that
	// initiate at once make two tunnels, and either may end the other's.
	takeOver = 6 * time.Second
	// halfOpenTimeout bounds tidying up after a handoff; charon answers in
	// milliseconds, or not at all.
	halfOpenTimeout = time.Second
	// reassurances are the probes after our own confirmation, for the peer
	// whose CHILD SA was installed after our earlier ones had arrived.
	reassurances     = 5
	reassuranceEvery = 250 * time.Millisecond
)

// establish makes charon's tunnel run over path and returns when bytes have
// come through it, or with the reason why none did.
func (r *run) establish(ctx context.Context, path wire.Path) error {
	if r.shared.charonReady.wait(ctx) != nil {
		return failf("charon is not reachable")
	}
	sas, err := r.sas(ctx)
	if err != nil {
		return err
	}
	seen := bytesIn(sas)
	if !r.fresh && r.reused(ctx, path, sas) {
		return nil
	}
	r.stayRelayed(ctx)
	defer r.unpin()
	if err := r.load(ctx, path); err != nil {
		return err
	}
	if r.peer.Role == wire.Controlling {
		// What did not prove itself has to go first: charon takes a second
		// CHILD SA of the same selectors for a duplicate and does nothing.
		destroy(ctx, r.shared.vici, r.log, sas, func(sa charon.SA) bool { return sameEnds(sa, path) })
		if err := r.proved(ctx, path); err != nil {
			return err
		}
		if err := r.initiate(ctx); err != nil {
			return err
		}
	}
	if err := r.confirm(ctx, path, seen, r.initiate); err != nil {
		return err
	}
	// The new tunnel works; an SA over an older path would only linger until
	// dead peer detection, and one that is still being made would replace it.
	// Which those are is asked anew: when the peer's mapping changes, charon
	// moves an SA to the new path by itself.
	if sas, err = r.sas(ctx); err != nil {
		return err
	}
	destroy(ctx, r.shared.vici, r.log, sas, func(sa charon.SA) bool { return !sameEnds(sa, path) || !usable(sa) })
	r.endChecks(ctx, sas)
	return nil
}

// reused takes the tunnel that charon has on path, if that proves that it works. What
// a run that was cut short has not come to ask for is asked for beside what stands.
func (r *run) reused(ctx context.Context, path wire.Path, sas []charon.SA) bool {
	want := carriers(r.shared.id.endpoint, r.peer.Endpoint)
	lacks, may := completed(sas, path, want)
	if !may || len(lacks) > 0 && r.peer.Role != wire.Controlling {
		return false
	}
	if err := r.initiateAll(ctx, lacks); err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, reuseTimeout)
	defer cancel()
	seen := bytesIn(sas)
	return r.await(ctx, path, func(sas []charon.SA) (progress, bool) {
		p := measure(sas, path, seen)
		r.steps.came(p)
		return p, p.bytes && len(missing(sas, path, want)) == 0
	}, nil) == nil
}

// proved lets the path of a new tunnel carry something nobody misses before it
// takes over what the relay carries well. Where charon does ESP itself that is IKE:
// ESP goes through the same UDP flow there, and with a check's CHILD SA charon
// would remove its route to the peer's subnets, which is the tunnel's as well.
func (r *run) proved(ctx context.Context, path wire.Path) error {
	checks := check(r.shared.id.endpoint, r.peer.Endpoint)
	if !r.replacesRelay() || len(checks) == 0 {
		return nil
	}
	initiate := func(ctx context.Context) error { return r.initiateAll(ctx, checks) }
	proof := func(sas []charon.SA) (progress, bool) {
		p := measureOf(sas, path, nil, checking)
		return p, p.bytes
	}
	if !r.kernelESP(ctx) {
		initiate = r.initiateSA
		proof = func(sas []charon.SA) (progress, bool) {
			p := measure(sas, path, nil)
			return p, p.ike
		}
	}
	if err := initiate(ctx); err != nil {
		return err
	}
	return r.await(ctx, path, proof, initiate)
}

// endChecks ends the CHILD SAs that the tunnel has no more use for.
func (r *run) endChecks(ctx context.Context, sas []charon.SA) {
	if r.peer.Role != wire.Controlling {
		return
	}
	for _, sa := range sas {
		for _, c := range sa.Children {
			if checking(sa, c) {
				r.endChild(ctx, c)
			}
		}
	}
}

// dropHalfOpen ends what a failed handoff has begun. charon would repeat its
// messages for minutes, and an SA that comes of them late takes the place of
// the tunnel that a later attempt has made. A connection of that name that is
// somebody else's is left alone.
func (r *run) dropHalfOpen(ctx context.Context) {
	if !r.shared.owned.has(r.name) {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), halfOpenTimeout)
	defer cancel()
	sas, err := r.shared.vici.SAs(ctx, r.name)
	if err != nil {
		return // no charon, no SA
	}
	destroy(ctx, r.shared.vici, r.log, sas, func(sa charon.SA) bool { return !usable(sa) || provesOnly(sa) })
}

// initiate asks charon for the tunnel's children.
func (r *run) initiate(ctx context.Context) error {
	self, peer := r.shared.id.endpoint, r.wanted()
	return r.initiateAll(ctx, append(carriers(self, peer.Endpoint), relay(self, peer)...))
}

func (r *run) initiateAll(ctx context.Context, children []charon.Child) error {
	for _, c := range children {
		if err := r.shared.vici.Initiate(ctx, r.name, c.Name); err != nil {
			return failf("charon would not initiate %s: %v", c.Name, err)
		}
	}
	return nil
}

// initiateSA asks charon for the tunnel's IKE SA alone.
func (r *run) initiateSA(ctx context.Context) error {
	if err := r.shared.vici.InitiateSA(ctx, r.name); err != nil {
		return failf("charon would not initiate: %v", err)
	}
	return nil
}

// carries reports whether bytes still come through the tunnel on path.
func (r *run) carries(ctx context.Context, path wire.Path) bool {
	sas, err := r.sas(ctx)
	if err != nil || !measure(sas, path, nil).installed {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, reuseTimeout)
	defer cancel()
	return r.confirm(ctx, path, bytesIn(sas), nil) == nil
}

// destroy ends those of the SAs that which picks, without waiting for the peer's
// answer: the path to it may be gone.
func destroy(ctx context.Context, vici *charon.Client, log *slog.Logger, sas []charon.SA, which func(charon.SA) bool) {
	for _, sa := range sas {
		if which(sa) {
			if err := vici.Destroy(ctx, sa.ID); err != nil && !errors.Is(err, charon.ErrNotFound) {
				log.Warn("old SA not ended", "connection", sa.Name, "sa", sa.ID, "err", err)
			}
		}
	}
}

// bytesIn notes the byte counter of every CHILD SA.
func bytesIn(sas []charon.SA) map[charon.ChildID]uint64 {
	seen := map[charon.ChildID]uint64{}
	for _, sa := range sas {
		for _, c := range sa.Children {
			seen[c.ID] = c.BytesIn
		}
	}
	return seen
}

// sas lists the connection's SAs; a charon that is just restarting is waited for.
func (r *run) sas(ctx context.Context) ([]charon.SA, error) {
	for {
		sas, err := r.shared.vici.SAs(ctx, r.name)
		if err == nil {
			return sas, nil
		}
		if !errors.Is(err, charon.ErrUnreachable) || r.wait(ctx, charonRetry) != nil {
			return nil, failf("%v", err)
		}
	}
}

func (r *run) load(ctx context.Context, path wire.Path) error {
	encap := r.encap || encapFor(path, localPrefixes())
	peer := r.wanted()
	peer.Endpoint.PublicAddresses = routed(peer.Endpoint.PublicAddresses, r.hasRoute)
	c := connection(r.shared.id.endpoint, peer, path, encap)
	switch kernel := r.kernelESP(ctx); {
	case kernel && peer.Plan != wire.PlanPublic && r.shared.relayWanted.Load():
		c.Children = marked(c.Children, r.shared.directMark)
	case !kernel:
		var err error
		if c.Children, err = spareOwn(c.Children); err != nil {
			return failf("this node's own subnets would go into the relay: %v", err)
		}
	}
	creds := r.shared.id.credentials().charon
	c.CertPEM = creds.CertPEM
	// charon may trust other authorities for other purposes.
	c.CAPEMs = creds.CAPEMs
	if err := r.shared.charonReady.wait(ctx); err != nil {
		return failf("charon is not reachable")
	}
	for {
		err := r.shared.vici.Load(ctx, c)
		if err == nil {
			r.steps.once(wire.Step{Kind: wire.StepLoaded})
			return nil
		}
		if !errors.Is(err, charon.ErrUnreachable) || r.wait(ctx, charonRetry) != nil {
			return failf("charon did not take the connection: %v", err)
		}
	}
}

// kernelESP reports whether ESP is done by the kernel. charon knows of no marks
// where it does ESP itself, and a policy that demands one would match nothing.
func (r *run) kernelESP(ctx context.Context) bool {
	plugins, err := r.shared.vici.Plugins(ctx)
	return err == nil && !slices.Contains(plugins, "kernel-libipsec")
}

// hasRoute reports whether this node can send to an address, as far as it knows.
// With ESP in the kernel charon makes a route of its own to what is inside a
// tunnel's selectors, such as the connector's address, also in a family in which
// there is no other.
func (r *run) hasRoute(a netip.Addr) bool {
	source, err := routeSource(r.shared.mark, netip.AddrPortFrom(a, charon.DefaultPort).String())
	if err == nil && slices.ContainsFunc(r.shared.id.endpoint.Subnets, func(p netip.Prefix) bool { return p.Contains(source) }) {
		_, err = routeSource(r.shared.mark, defaultRoutes[familyOf(a)])
	}
	return err == nil && !r.here.blocked[familyOf(a)]
}

func usable(sa charon.SA) bool {
	return sa.State == charon.StateEstablished || sa.State == charon.StateRekeying
}

// sameEnds reports whether an SA runs over path. What path leaves open, such as
// the connector's address, may be any.
func sameEnds(sa charon.SA, path wire.Path) bool {
	return (!path.Remote.IsValid() || sa.Remote == path.Remote) &&
		(!path.Local.IsValid() || sa.Local.Addr() == path.Local.Addr())
}

// confirm waits until a CHILD SA of the tunnel on path has let in more bytes than
// seen says. As long as charon has no SA it calls again every now and then (see
// initiatesAfter).
func (r *run) confirm(ctx context.Context, path wire.Path, seen map[charon.ChildID]uint64, again func(context.Context) error) error {
	return r.await(ctx, path, func(sas []charon.SA) (progress, bool) {
		p := measure(sas, path, seen)
		r.steps.came(p)
		return p, p.bytes
	}, again)
}

// await is confirm for what done tells of charon's SAs.
func (r *run) await(ctx context.Context, path wire.Path, done func([]charon.SA) (progress, bool), again func(context.Context) error) error {
	last := progress{}
	initiated := time.Now()
	probePause := confirmPoll // doubles while nothing comes: the peer may be long away
	for {
		poll := idlePoll
		if again != nil { // a look at what stands leaves that to the run
			if err := r.followRange(ctx); err != nil {
				return err
			}
		}
		sas, err := r.sas(ctx)
		if err == nil {
			var enough bool
			last, enough = done(sas)
			r.steps.came(progress{ike: last.ike}) // what else there is may be a check's
			if enough {
				return nil
			}
			after, may := initiatesAfter(r.peer.Role, path)
			if len(sas) == 0 && again != nil && may && time.Since(initiated) >= after {
				initiated = time.Now()
				if err := again(ctx); err != nil {
					return err
				}
			}
			if r.answerCheck(sas, path) {
				poll = confirmPoll // it will not take long
			}
		}
		switch {
		case len(sas) > 0:
		case r.peer.Role == wire.Controlling:
			poll = initiateAgain
		case r.peer.Plan == wire.PlanPublic:
			poll = relayPoll // the edge may be away for long, and charon tells when it comes
		}
		if measure(sas, path, nil).installed {
			probe(r.shared.id.endpoint, r.peer.Endpoint)
			poll = probePause
			probePause = min(2*probePause, idlePoll)
		}
		t := time.NewTimer(poll)
		select {
		case <-t.C:
		case <-r.wake:
			t.Stop()
			probePause = confirmPoll
		case <-ctx.Done():
			t.Stop()
			return &failure{reason: last.reason(r.peer.Role), plainESP: last.plain}
		}
	}
}

// answerCheck does this side's part in a check, if one is on: the initiator
// probes, and the other side answers what it gets, so that what comes back has
// been through both directions.
func (r *run) answerCheck(sas []charon.SA, path wire.Path) bool {
	p := measureOf(sas, path, nil, checking)
	if p.installed && (p.bytes || r.peer.Role == wire.Controlling) {
		mark := uint32(0)
		if len(r.pins) > 0 {
			mark = r.shared.directMark.Value // past the pins
		}
		probeCheck(r.shared.id.endpoint, r.peer.Endpoint, mark)
	}
	return p.installed
}

// initiatesAfter is how long charon may be without any SA before this side
// initiates, if it may at all.
//
// The controlling side has initiated, and charon gives up at once when the
// peer's was not ready. The controlled side waits to be called, but not for
// ever: a charon that was killed leaves its SAs in the kernel, traffic goes on,
// and the controlling side rightly keeps a tunnel that only the controlled
// side's new charon knows nothing of.
func initiatesAfter(role wire.Role, path wire.Path) (time.Duration, bool) {
	if role == wire.Controlling {
		return initiateAgain, true
	}
	return takeOver, path.Remote.IsValid()
}

// reassure sends the probes a peer may still need after we are content.
func (r *run) reassure(ctx context.Context) {
	for range reassurances {
		if r.wait(ctx, reassuranceEvery) != nil {
			return
		}
		probe(r.shared.id.endpoint, r.peer.Endpoint)
	}
}

// current is the path the tunnel has taken, as charon sees it.
func (r *run) current(ctx context.Context, path wire.Path) (wire.Path, error) {
	sas, err := r.sas(ctx)
	if err != nil {
		return path, err
	}
	for _, sa := range sas {
		if usable(sa) {
			path.Local, path.Remote = sa.Local, sa.Remote
		}
	}
	return path, nil
}
