package agent

import (
	"fmt"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// Retrying a tunnel that needs no coordination. The far end is the connector,
// whose coming back should be noticed soon.
const (
	publicRetryMin = time.Second
	publicRetryMax = 30 * time.Second
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
	// started is when the run began, packets what it has sent to get through.
	started time.Time
	packets int

	standing  bool
	monitored bool
	path      wire.Path

	// plainFailed: ESP without UDP did not get through on the local network.
	plainFailed bool
	// doubt: the other end has lost the tunnel, and none has been made since.
	doubt bool

	reason string
	// failure is why the last run or tunnel ended, until one succeeds.
	failure      string
	since        time.Time
	timeToDirect time.Duration
	tries        int
	retryAt      time.Time // for PlanPublic; zero for never

	out []effect
}

// effect is something the daemon has to do.
type effect interface{ isEffect() }

// begin starts a run, after the one before it has ended.
type begin struct {
	run   runID
	peer  wire.Peer
	order *wire.Punch
	// storeID is the rendezvous' store that asked for the tunnel.
	storeID string
	// encap demands ESP in UDP where plain ESP would otherwise be used.
	encap bool
	// fresh demands another tunnel even where one seems to work.
	fresh bool
	// standing says that there is one that seems to.
	standing bool
}

// stop ends the current run. The tunnel stays.
type stop struct{}

// tell sends a report to the rendezvous.
type tell struct{ report *wire.Report }

func (begin) isEffect() {}
func (stop) isEffect()  {}
func (tell) isEffect()  {}

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
	t.peer, t.storeID = peer, storeID
	switch {
	case peer.Plan != wire.PlanPublic:
		t.retryAt = time.Time{} // the rendezvous says when
	case t.run == 0 && t.retryAt.IsZero() || changed:
		t.start(now, next(), nil)
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
	t.run, t.order, t.started, t.packets, t.retryAt = run, order, now, 0, time.Time{}
	t.monitored = false
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
// led to a tunnel here: that is for charon to end.
func (t *tunnel) cancelled(now time.Time, id wire.AttemptID, reason string) []effect {
	if t.order == nil || t.order.Attempt != id || t.monitored {
		return nil
	}
	t.do(stop{})
	t.run, t.order = 0, nil
	if !t.standing {
		t.down(now, reason)
	}
	return t.flush()
}

// sent notes how many packets the run has sent so far.
func (t *tunnel) sent(run runID, packets int) {
	if run == t.run {
		t.packets = packets
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
	t.standing, t.monitored, t.path, t.reason, t.failure, t.doubt = true, true, path, "", "", false
	t.tries, t.timeToDirect = 0, elapsed
	t.tell(wire.OutcomeDirect, path, "", elapsed)
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
	t.tell(wire.OutcomeLost, wire.Path{}, reason, 0)
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
	if !t.monitored && t.order != nil {
		// The run, if there is one, is still on its way to a tunnel of its
		// own: a report in its attempt's name would end that.
		t.do(tell{&wire.Report{Peer: t.name(), Outcome: wire.OutcomeLost, Reason: reason}})
		t.down(now, reason)
		return t.flush()
	}
	t.tell(wire.OutcomeLost, wire.Path{}, reason, 0)
	if t.run != 0 {
		t.do(stop{})
	}
	t.ended(now, reason)
	return t.flush()
}

// moved: this node has other addresses, and the sockets of a punched tunnel's run
// are closed; gone says that the tunnel's own address is no more. The session
// that begins now tells the rendezvous what stands. A tunnel to the connector
// needs no sockets of ours.
func (t *tunnel) moved(now time.Time, gone bool) []effect {
	if t.peer.Plan == wire.PlanPublic {
		return nil
	}
	ended := t.run != 0 || t.standing && gone
	if t.run != 0 {
		t.do(stop{})
	}
	t.run, t.order, t.monitored = 0, nil, false
	t.standing = t.standing && !gone
	if ended && !t.standing {
		t.down(now, errMoved.Error())
	}
	return t.flush()
}

// charonBack: what failed without charon need not wait any longer.
func (t *tunnel) charonBack(now time.Time) {
	if t.run == 0 && !t.retryAt.IsZero() {
		t.tries, t.retryAt = 0, now
	}
}

// doubted: the other end says that the tunnel is gone. A new run makes another;
// bytes that still come prove nothing, since a charon that was killed leaves its
// SAs in the kernel.
func (t *tunnel) doubted(now time.Time, run runID) []effect {
	if t.peer.Plan == wire.PlanPublic {
		t.doubt = true
		t.start(now, run, nil)
	}
	return t.flush()
}

// ended closes the current run and plans the next one, where that is ours to
// plan.
func (t *tunnel) ended(now time.Time, reason string) {
	t.run, t.order, t.monitored = 0, nil, false
	if !t.standing {
		t.down(now, reason)
	}
	if t.peer.Plan == wire.PlanPublic {
		t.retryAt = now.Add(min(publicRetryMax, publicRetryMin<<min(t.tries, 10)))
		t.tries++
	}
}

func (t *tunnel) down(now time.Time, reason string) {
	t.since, t.reason, t.failure, t.path = now, reason, reason, wire.Path{}
}

// due starts what is to be tried again.
func (t *tunnel) due(now time.Time, next func() runID) []effect {
	if t.run == 0 && !t.retryAt.IsZero() && !now.Before(t.retryAt) {
		t.start(now, next(), nil)
	}
	return t.flush()
}

func (t *tunnel) tell(o wire.Outcome, path wire.Path, reason string, elapsed time.Duration) {
	r := &wire.Report{Peer: t.name(), Outcome: o, Path: path, Reason: reason, ElapsedMs: max(0, elapsed.Milliseconds())}
	if t.order != nil {
		r.Attempt = t.order.Attempt
	}
	if o != wire.OutcomeLost {
		r.Packets = t.packets
	}
	t.do(tell{r})
}
