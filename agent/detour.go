package agent

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/bodkin-net/bodkin/agent/charon"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// Timing of leaving a tunnel that works.
const (
	// settle is from the detour to the peer's being told: what was sent into the
	// tunnel before must not be overtaken by the deletion of its SA.
	settle = 100 * time.Millisecond
	// partTimeout is how long the side that is told waits to be; charon repeats a
	// lost deletion only after 4 s. The other side gives it time to act first.
	partTimeout = 3 * time.Second
)

// leave ends the tunnel's SAs at a moment, so that the relay takes over; at once
// and without the peer, which may not be there, if the moment is zero. A run that
// is to make another tunnel ends the waiting, but not the rest: what is left of
// this one would swallow what the relay carries.
func (r *run) leave(ctx context.Context, at time.Time) {
	if !at.IsZero() && r.wait(ctx, time.Until(at)) == nil {
		r.part(ctx)
	}
	defer r.unpin()
	defer r.release()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer cancel()
	sas, err := r.shared.vici.SAs(ctx, r.name)
	if err != nil {
		return // no charon, no SA
	}
	destroy(ctx, r.shared.vici, r.log, sas, func(charon.SA) bool { return true })
}

// part leaves a tunnel that works, without losing what is on its way.
//
// Who deletes a CHILD SA lets in what still comes through it until the peer has
// answered, and charon, when it is told, stops sending into it before it answers
// (RFC 7296 section 1.4.1). So only the deleting side has to send elsewhere before;
// the other does where nothing has to wait for it. Of an IKE SA charon answers the
// deletion first.
func (r *run) part(ctx context.Context) {
	deletes := r.peer.Role == wire.Controlling
	if deletes || r.kernelESP(ctx) {
		if err := r.detour(ctx); err != nil {
			r.log.Warn("no detour: what is on its way to the peer may be lost", "err", err)
		}
	}
	if !deletes {
		r.awaitGone(ctx, partTimeout, func(charon.SA) bool { return true })
		return
	}
	_ = r.wait(ctx, settle)
	sas, err := r.shared.vici.SAs(ctx, r.name)
	if err != nil {
		return
	}
	for _, sa := range sas {
		for _, c := range sa.Children {
			if betweenPods(sa, c) {
				r.endChild(ctx, c)
			}
		}
	}
	r.awaitGone(ctx, partTimeout+leaveTimeout, func(sa charon.SA) bool {
		return slices.ContainsFunc(sa.Children, func(c charon.ChildSA) bool { return betweenPods(sa, c) })
	})
	r.release()
	for _, sa := range sas {
		if err := r.shared.vici.TerminateSA(ctx, sa.ID); err != nil && !errors.Is(err, charon.ErrNotFound) {
			r.log.Warn("direct tunnel not ended", "sa", sa.ID, "err", err)
		}
	}
	r.awaitGone(ctx, leaveTimeout, func(charon.SA) bool { return true })
}

// betweenPods reports whether a CHILD SA carries, one way at least, what the relay
// can carry as well.
func betweenPods(sa charon.SA, c charon.ChildSA) bool {
	return c.Name == sa.Name+podToPod && (installed(c) || c.State == charon.StateDeleting)
}

// awaitGone returns when charon has none of those SAs of the connection that which
// picks, or after a time.
func (r *run) awaitGone(ctx context.Context, timeout time.Duration, which func(charon.SA) bool) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		sas, err := r.shared.vici.SAs(ctx, r.name)
		if err != nil || !slices.ContainsFunc(sas, which) {
			return
		}
		t := time.NewTimer(idlePoll)
		select {
		case <-t.C:
		case <-r.wake:
			t.Stop()
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}

// detour has what this node sends to the peer's subnets take the relay, although
// the direct tunnel stands. What comes through that is let in all the same. Where
// charon does ESP itself its policies are its own, and it waits for the relay.
func (r *run) detour(ctx context.Context) error {
	if r.kernelESP(ctx) {
		return r.pin()
	}
	return r.hold()
}

// replacesRelay reports whether the tunnel that the run makes takes over from a
// relay that works.
func (r *run) replacesRelay() bool {
	return r.peer.Plan != wire.PlanPublic && !r.standing && r.shared.relayUp.Load()
}

// stayRelayed keeps what this node sends in the relay where charon, asked by the
// peer's, will install a direct tunnel that the peer has not installed yet. It
// ends with unpin. Where charon does ESP itself there is no such means, and that is
// a matter of a millisecond.
func (r *run) stayRelayed(ctx context.Context) {
	if r.peer.Role != wire.Controlled || !r.replacesRelay() || !r.kernelESP(ctx) {
		return
	}
	if err := r.pin(); err != nil {
		r.log.Warn("some packets may be lost on the way from the relay to the direct tunnel", "err", err)
	}
}
