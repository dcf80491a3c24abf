package agent

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"time"

	"github.com/bodkin-net/bodkin/agent/charon"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// Timing of the relay.
const (
	// relayPoll is between looks at a relay that nothing was reported of: charon
	// tells when a CHILD SA comes or goes, unless its event was lost.
	relayPoll = time.Minute
	// The edge asks again for a relay that it did not get. At first the connector
	// is likely to be just about to load it; later somebody has to do something.
	relayRetryMin = 100 * time.Millisecond
	relayRetryMax = 30 * time.Second
	// relayAsks is how many times it asks before it gives up the relay of an
	// earlier range, which charon may take today's for a duplicate of.
	relayAsks = 4
)

// public keeps the tunnel to or on the connector, which needs no punch, and the
// relay in it.
func (r *run) public(ctx context.Context) (direct bool, err error) {
	if err := r.claim(ctx); err != nil {
		return false, err
	}
	path := wire.Path{Kind: wire.PathPublic}
	// What charon has may be from before the relay's range changed.
	if err := r.loadRelay(ctx); err != nil {
		return false, err
	}
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
	if path, err = r.current(ctx, path); err != nil {
		return false, err
	}
	k := relayKeeper{path: path, elapsed: time.Since(r.started)}
	r.background.Go(func() { r.reassure(ctx) })
	return true, r.keepRelay(ctx, &k)
}

// wanted is the peer as it is wanted now: with the range that the relay is to
// cover, and without one while this connector does not filter what it would
// forward.
func (r *run) wanted() wire.Peer {
	peer, err := r.relayable()
	if err != nil {
		peer.Relay = nil
	}
	return peer
}

// relayable is the peer as the rendezvous wants it now, and why this node may not
// relay for it.
func (r *run) relayable() (wire.Peer, error) {
	peer := r.peer
	if n := r.renewed.Load(); n != nil {
		peer.Relay = n.Relay
	}
	if r.shared.id.endpoint.Type != wire.Connector || len(peer.Relay) == 0 {
		return peer, nil
	}
	return peer, r.shared.filter.holds(peer)
}

// followRange loads the connection anew when the relay is to cover something else.
func (r *run) followRange(ctx context.Context) error {
	if r.peer.Plan != wire.PlanPublic || slices.Equal(r.wanted().Relay, r.loaded) {
		return nil
	}
	return r.loadRelay(ctx)
}

func (r *run) loadRelay(ctx context.Context) error {
	covers := r.wanted().Relay
	if err := r.load(ctx, wire.Path{Kind: wire.PathPublic}); err != nil {
		return err
	}
	r.loaded = covers
	return nil
}

// relayKeeper is what keepRelay knows from one look to the next.
type relayKeeper struct {
	path    wire.Path
	elapsed time.Duration
	// told is what the daemon knows, nil before it knows anything.
	told *relayState
	// asks are the initiations of want that have led to nothing, the last one
	// asked for when; old are the relays that stood before the first of them.
	want  []charon.Child
	asks  int
	asked time.Time
	old   []charon.ChildID
}

// relayState is whether a tunnel with the connector relays, and why not.
type relayState struct {
	up   bool
	note string
}

// keepRelay tells that the tunnel stands, and keeps its relay until nothing comes
// through it any more.
func (r *run) keepRelay(ctx context.Context, k *relayKeeper) error {
	w := r.newWatch(ctx, wire.Path{Kind: wire.PathPublic})
	defer w.stop()
	for {
		state, next := r.relayNow(ctx, k)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if k.told == nil || *k.told != state {
			k.told = &state
			r.emit(ctx, runEvent{outcome: wire.OutcomeDirect, path: k.path, elapsed: k.elapsed, relay: state.up, note: state.note})
		}
		t := time.NewTimer(next)
		select {
		case <-t.C:
		case <-r.wake:
		case <-r.hurry:
			if r.peer.Role == wire.Controlling {
				w.lookPublic()
			}
		case carries := <-w.looked:
			if w.done(carries); !carries {
				return failf("nothing comes from %s through the tunnel any more", r.name)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
		t.Stop()
	}
}

// relayNow looks at the relay, does what it lacks, and says when to look again.
func (r *run) relayNow(ctx context.Context, k *relayKeeper) (relayState, time.Duration) {
	if err := r.followRange(ctx); err != nil {
		return relayState{note: err.Error()}, relayRetryMax
	}
	sas, err := r.sas(ctx)
	if err != nil {
		return relayState{note: err.Error()}, relayRetryMax
	}
	want := relay(r.shared.id.endpoint, r.wanted())
	if len(want) > 0 && len(missing(sas, wire.Path{}, want)) > 0 {
		return r.askRelay(ctx, k, sas, want)
	}
	k.asks = 0
	r.endRelays(ctx, sas, func(c charon.ChildSA) bool {
		return !slices.ContainsFunc(want, func(w charon.Child) bool { return matches(c, w) })
	})
	if _, err := r.relayable(); err != nil {
		return relayState{note: err.Error()}, relayRetryMax
	}
	if len(want) == 0 {
		return relayState{}, relayPoll
	}
	return relayState{up: true}, relayPoll
}

// askRelay initiates the relay where that is this side's to do, less and less
// often as long as it does not come.
//
// A connector that has not loaded its side yet answers with what it has in common
// with the edge, e.g. its own subnets, and charon then takes each further initiation
// for a duplicate: such a CHILD SA has to go. That of an earlier range stays until
// today's stands.
func (r *run) askRelay(ctx context.Context, k *relayKeeper, sas []charon.SA, want []charon.Child) (relayState, time.Duration) {
	if r.peer.Role != wire.Controlling {
		return relayState{note: "the edge has not asked for the relay yet"}, relayPoll
	}
	state := relayState{note: "charon has no CHILD SA of the relay yet (see its log, and what the connector says)"}
	if !reflect.DeepEqual(k.want, want) {
		k.want, k.asks, k.old = want, 0, nil
		for _, c := range r.relays(sas) {
			k.old = append(k.old, c.ID)
		}
	}
	pause := min(relayRetryMax, relayRetryMin<<min(k.asks, 10))
	if due := k.asked.Add(pause); k.asks > 0 && time.Now().Before(due) {
		return state, time.Until(due)
	}
	r.endRelays(ctx, sas, func(c charon.ChildSA) bool { return k.asks > relayAsks || !slices.Contains(k.old, c.ID) })
	k.asks, k.asked = k.asks+1, time.Now()
	if err := r.initiateAll(ctx, want); err != nil {
		state.note = err.Error()
	}
	return state, pause
}

// relays are the installed CHILD SAs of the connection's relay, of whatever range.
func (r *run) relays(sas []charon.SA) (out []charon.ChildSA) {
	for _, sa := range sas {
		for _, c := range sa.Children {
			if c.Name == r.name+relayChild && installed(c) {
				out = append(out, c)
			}
		}
	}
	return out
}

// endRelays ends those relays that which picks. The edge does: it has made them.
func (r *run) endRelays(ctx context.Context, sas []charon.SA, which func(charon.ChildSA) bool) {
	if r.peer.Role != wire.Controlling {
		return
	}
	for _, c := range r.relays(sas) {
		if which(c) {
			r.endChild(ctx, c)
		}
	}
}

func (r *run) endChild(ctx context.Context, c charon.ChildSA) {
	if err := r.shared.vici.TerminateChild(ctx, c.ID); err != nil && !errors.Is(err, charon.ErrNotFound) {
		r.log.Warn("CHILD SA not ended", "child", c.Name, "id", c.ID, "err", err)
	}
}
