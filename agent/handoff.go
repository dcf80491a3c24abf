package agent

import (
	"context"
	"errors"
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
	if self, peer := r.shared.id.endpoint, r.peer.Endpoint; !r.fresh && len(missing(sas, path, children(self, peer))) == 0 {
		rctx, cancel := context.WithTimeout(ctx, reuseTimeout)
		err := r.confirm(rctx, path, seen, nil)
		cancel()
		if err == nil {
			return nil
		}
	}
	if err := r.load(ctx, path); err != nil {
		return err
	}
	if r.peer.Role == wire.Controlling {
		// What did not prove itself has to go first: charon takes a second
		// CHILD SA of the same selectors for a duplicate and does nothing.
		r.destroy(ctx, sas, func(sa charon.SA) bool { return sameEnds(sa, path) })
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
	r.destroy(ctx, sas, func(sa charon.SA) bool { return !sameEnds(sa, path) || !usable(sa) })
	return nil
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
	r.destroy(ctx, sas, func(sa charon.SA) bool { return !usable(sa) })
}

// initiate asks charon for all children of the connection.
func (r *run) initiate(ctx context.Context) error {
	for _, c := range children(r.shared.id.endpoint, r.peer.Endpoint) {
		if err := r.shared.vici.Initiate(ctx, r.name, c.Name); err != nil {
			return failf("charon would not initiate %s: %v", c.Name, err)
		}
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

// destroy ends those of this connection's SAs that which picks, without waiting
// for the peer's answer: the path to it may be gone.
func (r *run) destroy(ctx context.Context, sas []charon.SA, which func(charon.SA) bool) {
	for _, sa := range sas {
		if which(sa) {
			if err := r.shared.vici.Destroy(ctx, sa.ID); err != nil && !errors.Is(err, charon.ErrNotFound) {
				r.log.Warn("old SA not ended", "sa", sa.ID, "err", err)
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
	peer := r.peer.Endpoint
	peer.PublicAddresses = routed(peer.PublicAddresses, r.hasRoute)
	c := connection(r.shared.id.endpoint, peer, r.peer.Plan, r.peer.Role, path, encap)
	c.CertPEM = r.shared.id.credentials.CertPEM
	// charon may trust other authorities for other purposes.
	c.CAPEMs = r.shared.id.credentials.CAPEMs
	if err := r.shared.charonReady.wait(ctx); err != nil {
		return failf("charon is not reachable")
	}
	for {
		err := r.shared.vici.Load(ctx, c)
		if err == nil {
			return nil
		}
		if !errors.Is(err, charon.ErrUnreachable) || r.wait(ctx, charonRetry) != nil {
			return failf("charon did not take the connection: %v", err)
		}
	}
}

// hasRoute reports whether this node can send to an address, as far as it knows.
func (r *run) hasRoute(a netip.Addr) bool {
	_, err := routeSource(r.shared.mark, netip.AddrPortFrom(a, charon.DefaultPort).String())
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

// confirm waits until a CHILD SA on path has let in more bytes than seen says.
// As long as charon has no SA it calls again every now and then (see
// initiatesAfter).
func (r *run) confirm(ctx context.Context, path wire.Path, seen map[charon.ChildID]uint64, again func(context.Context) error) error {
	last := progress{}
	initiated := time.Now()
	probePause := confirmPoll // doubles while nothing comes: the peer may be long away
	for {
		sas, err := r.sas(ctx)
		if err == nil {
			last = measure(sas, path, seen)
			if last.bytes {
				return nil
			}
			after, may := initiatesAfter(r.peer.Role, path)
			if len(sas) == 0 && again != nil && may && time.Since(initiated) >= after {
				initiated = time.Now()
				if err := again(ctx); err != nil {
					return err
				}
			}
		}
		poll := idlePoll
		if len(sas) == 0 && r.peer.Role == wire.Controlling {
			poll = initiateAgain
		}
		if last.installed {
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

// progress is how far a handoff has come.
type progress struct {
	ike, installed, bytes bool
	// plain: the CHILD SA that lets nothing in is ESP without UDP.
	plain bool
}

// missing are the children without an installed CHILD SA of their selectors on
// path. A tunnel whose node has gained or lost a subnet since is not complete.
func missing(sas []charon.SA, path wire.Path, want []charon.Child) []charon.Child {
	return slices.DeleteFunc(slices.Clone(want), func(c charon.Child) bool {
		return slices.ContainsFunc(sas, func(sa charon.SA) bool {
			return usable(sa) && sameEnds(sa, path) && slices.ContainsFunc(sa.Children, func(is charon.ChildSA) bool {
				return is.Name == c.Name && (is.State == charon.StateInstalled || is.State == charon.StateRekeying) &&
					sameSelectors(is.LocalTS, c.LocalTS) && sameSelectors(is.RemoteTS, c.RemoteTS)
			})
		})
	})
}

// sameSelectors compares sets: charon keeps no order.
func sameSelectors(is []charon.Selector, want []netip.Prefix) bool {
	return len(is) == len(want) && !slices.ContainsFunc(is, func(s charon.Selector) bool {
		p, ok := s.Prefix()
		return !ok || !slices.Contains(want, p)
	})
}

// measure reads a handoff's progress off charon's SAs.
func measure(sas []charon.SA, path wire.Path, seen map[charon.ChildID]uint64) progress {
	var p progress
	for _, sa := range sas {
		if !usable(sa) || !sameEnds(sa, path) {
			continue
		}
		p.ike = true
		for _, c := range sa.Children {
			if c.State != charon.StateInstalled && c.State != charon.StateRekeying {
				continue
			}
			p.installed = true
			p.plain = !c.Encap
			p.bytes = p.bytes || c.BytesIn > seen[c.ID]
		}
	}
	return p
}

// reason says what is missing, for a person.
func (p progress) reason(role wire.Role) string {
	switch {
	case p.installed && p.plain:
		return "the tunnel is installed, but no bytes came through it: something on the network drops ESP (IP protocol 50)"
	case p.installed:
		return "the tunnel is installed, but no bytes came through it: a firewall on the way, or no address inside the peer's subnets to probe from"
	case p.ike:
		return "IKE is established, but no CHILD SA: traffic selectors or ESP proposals differ (see charon's log)"
	case role == wire.Controlling:
		return "the path is open, but IKE got no answer on it: is charon running at the peer, and do both trust one CA (see charon's log)?"
	}
	return "the path is open, but the peer's charon did not initiate on it (see its log)"
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
