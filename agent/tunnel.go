package agent

import (
	"fmt"
	"slices"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// Retrying a tunnel that needs no coordination: its far end is the connector, whose
// coming back should be noticed soon.
const (
	publicRetryMin = time.Second
	publicRetryMax = 30 * time.Second
	// retryIgnored is how long after a new tunnel the other end's word that it has
	// none is taken to be of the old one: charon deletes that first.
	retryIgnored = 2 * time.Second
)

// runID names one run of the work on a tunnel, from the first packet to the end
// of its monitoring. What a run says after another has begun is ignored.
type runID uint64

// tunnel is what the agent knows of the tunnel to one peer: a pure state
// machine. It decides; the daemon, its only caller, does what the effects say.
//
// At most one run works on a tunnel at a time. standing says that the last
// known state of the tunnel in charon is good, whether or not a run is
// watching it: a new attempt on a standing tunnel leaves it alone until it has
// something better.
type tunnel struct {
	peer wire.Peer
	// storeID is the rendezvous' store that asked for this tunnel.
	storeID string

	run   runID
	order *wire.Punch // of the current run, nil for PlanPublic
	// known is the last order that led to a direct tunnel, with the address the
	// peer was found at: what to try while the rendezvous is away. own marks the
	// current run as such a try.
	known *wire.Punch
	own   bool
	away  bool // the rendezvous is
	// started is when the run began, packets what it has sent to get through, steps
	// what else it has done.
	started time.Time
	packets int
	steps   []wire.Step

	standing  bool
	monitored bool
	path      wire.Path
	// relay: this tunnel with the connector relays; note says why it does not.
	relay bool
	note  string
	// relayFrom is the store whose rendezvous said what the relay covers.
	relayFrom string

	// plainFailed: ESP without UDP did not get through on the local network.
	plainFailed bool
	// doubt: what charon has of the tunnel is no good, though it may look so, and
	// none has been made since: the other end has lost it, or it went silent.
	// renewed is when one was, the last time.
	doubt   bool
	renewed time.Time

	reason string
	// failure is why the last run or tunnel ended, until one succeeds.
	failure      string
	since        time.Time
	timeToDirect time.Duration
	tries        int
	retryAt      time.Time // for PlanPublic; zero for never

	// logged is what the log said last.
	logged pairState

	out []effect
}

func newTunnel(peer wire.Peer, storeID string, now time.Time) *tunnel {
	return &tunnel{peer: peer, storeID: storeID, since: now, reason: "waiting for the rendezvous"}
}

func (t *tunnel) name() wire.NodeName { return t.peer.Endpoint.Name }

func (t *tunnel) do(e effect) { t.out = append(t.out, e) }

func (t *tunnel) flush() []effect {
	out := t.out
	t.out = nil
	return out
}

// adopted marks a tunnel that charon had when the agent started.
func (t *tunnel) adopted(now time.Time, path wire.Path) {
	t.standing, t.path, t.since, t.reason = true, path, now, ""
}

// wanted tells that the rendezvous (still) asks for the tunnel.
func (t *tunnel) wanted(now time.Time, peer wire.Peer, storeID string, next func() runID) []effect {
	changed := !samePeer(t.peer, peer)
	if len(peer.Relay) == 0 && len(t.peer.Relay) > 0 && t.relayFrom != storeID {
		// As with the tunnels themselves, another store's rendezvous does not end
		// what its predecessor's asked for.
		peer.Relay = t.peer.Relay
	} else {
		t.relayFrom = storeID
	}
	widened := !slices.Equal(t.peer.Relay, peer.Relay)
	if t.storeID != storeID && t.standing && t.monitored {
		// A rendezvous with another store had not known the pair when the
		// session began.
		r := t.report(wire.OutcomeDirect, t.note)
		r.Attempt, r.Path, r.Relay, r.ElapsedMs = "", t.path, t.relay, t.timeToDirect.Milliseconds()
		t.do(tell{report: r})
	}
	t.peer, t.storeID = peer, storeID
	switch {
	case peer.Plan != wire.PlanPublic:
		t.retryAt = time.Time{} // the rendezvous says when
	case t.run == 0 && t.retryAt.IsZero() || changed:
		t.start(now, next(), nil)
	case widened && t.run != 0:
		t.do(renew{peer})
	}
	return t.flush()
}

func samePeer(a, b wire.Peer) bool {
	return a.Plan == b.Plan && a.Role == b.Role && fmt.Sprint(a.Endpoint) == fmt.Sprint(b.Endpoint)
}

func (t *tunnel) start(now time.Time, run runID, order *wire.Punch) {
	if t.run != 0 {
		t.do(stop{})
	}
	t.run, t.order, t.started, t.packets, t.steps, t.retryAt = run, order, now, 0, nil, time.Time{}
	t.monitored, t.own = false, false
	if !t.standing {
		t.reason = "connecting"
		if order != nil {
			t.reason = "punching"
		}
		if t.failure != "" {
			t.reason += " again; before: " + t.failure
		}
	}
	t.do(begin{run: run, peer: t.peer, order: order, storeID: t.storeID, encap: t.plainFailed, fresh: t.doubt, standing: t.standing})
}

// ordered begins the attempt the rendezvous coordinates.
func (t *tunnel) ordered(now time.Time, order *wire.Punch, run runID) []effect {
	t.peer = order.Peer
	t.start(now, run, order)
	return t.flush()
}

// cancelled ends an attempt that the rendezvous gave up, unless it has already
// led to a tunnel here: that is for charon to end. What this side has seen of it is
// told all the same, for people who look at it later.
func (t *tunnel) cancelled(now time.Time, id wire.AttemptID, reason string) []effect {
	if t.order == nil || t.own || t.order.Attempt != id || t.monitored {
		return nil
	}
	t.tell(wire.OutcomeFailed, wire.Path{}, reason, now.Sub(t.started))
	t.do(stop{})
	t.run, t.order = 0, nil
	if !t.standing {
		t.down(now, reason)
	}
	return t.flush()
}

// unwatched reports whether a tunnel stands whose path no run checks: one from
// before an attempt, or of an agent before this one. That with a connector is not
// meant, since there is nothing to take its place.
func (t *tunnel) unwatched() bool {
	return t.standing && !t.monitored && !t.relay && t.peer.Plan != wire.PlanPublic
}

// sent notes how many packets the run has sent so far, and what else it did.
func (t *tunnel) sent(run runID, packets int, steps []wire.Step) {
	if run == t.run {
		t.packets, t.steps = packets, steps
	}
}

// nominated: ICE has found a path.
func (t *tunnel) nominated(run runID, path wire.Path) []effect {
	if run != t.run {
		return nil
	}
	if !t.standing {
		t.reason = "path found, strongSwan is connecting"
		t.path = path
	}
	t.tell(wire.OutcomeNominated, path, "", 0)
	return t.flush()
}

// direct: bytes came through the tunnel.
func (t *tunnel) direct(now time.Time, run runID, path wire.Path, elapsed time.Duration) []effect {
	if run != t.run {
		return nil
	}
	if !t.standing {
		t.since = now
	}
	if t.doubt {
		t.renewed = now
	}
	t.standing, t.monitored, t.path, t.reason, t.failure, t.doubt = true, true, path, "", "", false
	t.tries, t.timeToDirect = 0, elapsed
	t.remember()
	t.tell(wire.OutcomeDirect, path, t.note, elapsed)
	return t.flush()
}

// relays notes, before direct does, whether the tunnel with the connector relays.
func (t *tunnel) relays(run runID, relay bool, note string) {
	if run == t.run {
		t.relay, t.note = relay, note
	}
}

// demoted: the other end has left the tunnel, or an operator wants it left. What
// is left of it here would swallow what the relay could carry.
func (t *tunnel) demoted(now time.Time, run runID, after time.Duration, reason string) []effect {
	if t.peer.Plan == wire.PlanPublic || !t.standing && !t.monitored {
		return nil
	}
	t.standing = false
	if t.run != 0 && !t.monitored {
		// An attempt is on its way to a better one; a report in its name would
		// end that.
		t.do(tell{report: &wire.Report{Peer: t.name(), Outcome: wire.OutcomeLost, Reason: reason}})
		t.down(now, reason)
		return t.flush()
	}
	if t.run != 0 {
		t.do(stop{})
	}
	t.run, t.order, t.own, t.monitored = run, nil, false, false
	t.retryAt = time.Time{}
	t.down(now, reason)
	t.do(begin{run: run, peer: t.peer, storeID: t.storeID, leave: true, at: now.Add(after)})
	return t.flush()
}

// left: the run that leaves the tunnel has done so.
func (t *tunnel) left(now time.Time, run runID) []effect {
	if run != t.run {
		return nil
	}
	t.do(tell{report: t.report(wire.OutcomeLost, t.reason)})
	t.ended(now, t.reason)
	return t.flush()
}

// failed: the run ended without a tunnel. A tunnel that stood before it is left
// as it is.
func (t *tunnel) failed(now time.Time, run runID, reason string, plainESP bool) []effect {
	if run != t.run {
		return nil
	}
	t.plainFailed = t.plainFailed || plainESP
	t.tell(wire.OutcomeFailed, wire.Path{}, reason, now.Sub(t.started))
	t.ended(now, reason)
	return t.flush()
}

// lost: the run's tunnel is no longer good.
func (t *tunnel) lost(now time.Time, run runID, reason string) []effect {
	if run != t.run {
		return nil
	}
	t.standing = false
	t.relay, t.note = false, ""
	r := t.report(wire.OutcomeLost, reason)
	r.Silent = true
	t.do(tell{report: r})
	// Whether what went silent has come back is not tried: another tunnel is made.
	t.doubt = true
	t.ended(now, reason)
	return t.flush()
}

// gone: charon has no SA of this tunnel any more, or charon itself has gone.
func (t *tunnel) gone(now time.Time, reason string) []effect {
	if !t.standing {
		if t.run != 0 && t.order == nil {
			// A run that waits for the peer has lost the connection it loaded.
			t.do(stop{})
			t.ended(now, reason)
		}
		return t.flush()
	}
	t.standing = false
	t.relay, t.note = false, ""
	if !t.monitored && t.order != nil {
		// The run, if there is one, is still on its way to a tunnel of its
		// own: a report in its attempt's name would end that.
		t.do(tell{report: &wire.Report{Peer: t.name(), Outcome: wire.OutcomeLost, Reason: reason}})
		t.down(now, reason)
		return t.flush()
	}
	t.do(tell{report: t.report(wire.OutcomeLost, reason)})
	if t.run != 0 {
		t.do(stop{})
	}
	t.ended(now, reason)
	return t.flush()
}

// replaced: charon has no SA of this tunnel any more. It is no loss of what a run
// that makes another tunnel has ended itself.
func (t *tunnel) replaced(now time.Time, reason string) []effect {
	if !t.standing || !t.doubt || t.run == 0 || t.monitored {
		return t.gone(now, reason)
	}
	t.standing, t.relay, t.note = false, false, ""
	t.do(tell{report: &wire.Report{Peer: t.name(), Outcome: wire.OutcomeLost, Reason: reason}})
	t.down(now, reason)
	return t.flush()
}

// charonBack: what failed without charon need not wait any longer.
func (t *tunnel) charonBack(now time.Time) {
	if t.run == 0 && !t.retryAt.IsZero() {
		t.tries, t.retryAt = 0, now
	}
}

// doubted: the tunnel is no good to the other end, or by what this one knows. A new
// run makes another; bytes that still come prove nothing, since a charon that was
// killed leaves its SAs in the kernel.
func (t *tunnel) doubted(now time.Time, run runID) []effect {
	making := t.doubt && t.run != 0 && !t.monitored
	if t.peer.Plan == wire.PlanPublic && !making {
		t.doubt = true
		t.start(now, run, nil)
	}
	return t.flush()
}

// retried is doubted by the other end's word, which may be of the tunnel before
// the one that has just been made.
func (t *tunnel) retried(now time.Time, run runID) []effect {
	if !t.renewed.IsZero() && now.Sub(t.renewed) < retryIgnored {
		return nil
	}
	return t.doubted(now, run)
}

// ended closes the current run and plans the next one, where that is ours to
// plan.
func (t *tunnel) ended(now time.Time, reason string) {
	own := t.own
	t.run, t.order, t.own, t.monitored = 0, nil, false, false
	if !t.standing {
		t.down(now, reason)
	}
	switch {
	case t.peer.Plan == wire.PlanPublic:
		t.retryAt = now
		if first := t.tries == 0 && (t.doubt || t.peer.Role == wire.Controlled); !first {
			t.retryAt = now.Add(min(publicRetryMax, publicRetryMin<<min(t.tries, 10)))
		}
		t.tries++
	case t.away && !t.standing:
		t.knockAgain(now, own)
	}
}

func (t *tunnel) down(now time.Time, reason string) {
	t.since, t.reason, t.failure, t.path = now, reason, reason, wire.Path{}
	t.relay, t.note = false, ""
}

// due starts what is to be tried again.
func (t *tunnel) due(now time.Time, next func() runID) []effect {
	if t.run == 0 && !t.retryAt.IsZero() && !now.Before(t.retryAt) {
		own := t.peer.Plan != wire.PlanPublic
		if own {
			t.start(now, next(), t.known)
		} else {
			t.start(now, next(), nil)
		}
		t.own = own
	}
	return t.flush()
}
