package agent

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// tunnelWorld plays the daemon for a tunnel: it executes effects and checks
// them against what must hold always.
type tunnelWorld struct {
	*testing.T
	tun     *tunnel
	peer    wire.Peer
	ids     counter
	now     time.Time
	running *begin // the run under way
	direct  bool   // its last word
	own     bool   // the run is a try without an order
	away    bool   // the rendezvous is
	attempt int
}

func (w *tunnelWorld) perform(event string, effects []effect) {
	for _, e := range effects {
		switch e := e.(type) {
		case stop:
			if w.running == nil {
				w.Fatalf("%s: stop without a run", event)
			}
			w.running = nil
		case begin:
			if w.running != nil {
				w.Fatalf("%s: run %d begins while %d runs", event, e.run, w.running.run)
			}
			if e.leave && (e.peer.Plan == wire.PlanPublic || w.tun.standing) {
				w.Fatalf("%s: a tunnel is left that is no direct one, or still counts: %s", event, summary(w.tun))
			}
			if !e.leave && (e.order == nil) != (e.peer.Plan == wire.PlanPublic) {
				w.Fatalf("%s: plan %q with order %v", event, e.peer.Plan, e.order)
			}
			w.running, w.direct, w.own = &e, false, event == "due" && e.order != nil
		case tell:
			w.checkReport(event, e.report)
		}
	}
	w.checkState(event)
}

func (w *tunnelWorld) checkReport(event string, r *wire.Report) {
	if err := r.Validate(); err != nil {
		w.Fatalf("%s: %v", event, err)
	}
	if (r.Outcome == wire.OutcomeFailed || r.Outcome == wire.OutcomeLost) && r.Reason == "" {
		w.Fatalf("%s: %s without a reason", event, r.Outcome)
	}
	want := wire.AttemptID("")
	// The loss of an older tunnel is not the attempt's.
	if w.running != nil && w.running.order != nil && !w.own && (r.Outcome != wire.OutcomeLost || w.direct) {
		want = w.running.order.Attempt
	}
	if r.Attempt != want {
		w.Fatalf("%s: %s for attempt %q; want %q", event, r.Outcome, r.Attempt, want)
	}
	if r.Outcome == wire.OutcomeLost && event != "lost" && event != "gone" && event != "left" && event != "demoted" {
		w.Fatalf("a tunnel was reported lost by %s", event)
	}
}

func (w *tunnelWorld) checkState(event string) {
	t := w.tun
	switch {
	case (t.run != 0) != (w.running != nil) || t.run != 0 && t.run != w.running.run:
		w.Fatalf("%s: the tunnel thinks run %d is under way, the daemon %+v", event, t.run, w.running)
	case t.peer.Plan == wire.PlanPublic && t.run == 0 && t.retryAt.IsZero():
		w.Fatalf("%s: nobody works on the tunnel to the connector, now or later", event)
	case t.peer.Plan != wire.PlanPublic && !t.retryAt.IsZero() && !t.away:
		w.Fatalf("%s: a punch is planned without an order", event)
	case t.peer.Plan != wire.PlanPublic && t.away && t.known != nil && !t.standing && t.run == 0 && t.retryAt.IsZero():
		w.Fatalf("%s: nobody works on the tunnel while the rendezvous is away", event)
	case t.own && (t.run == 0 || t.known == nil):
		w.Fatalf("%s: a try of its own with run %d, order %v", event, t.run, t.known)
	case t.relay && !t.standing:
		w.Fatalf("%s: a tunnel that is down relays", event)
	case t.monitored && (!t.standing || t.run == 0):
		w.Fatalf("%s: monitored, but %s", event, summary(t))
	case t.standing == (t.reason != ""):
		w.Fatalf("%s: standing %v with reason %q", event, t.standing, t.reason)
	case t.standing && !t.path.Remote.IsValid():
		w.Fatalf("%s: standing on no path", event)
	}
}

// step makes one event that can happen now.
func (w *tunnelWorld) step(rng *rand.Rand) {
	w.now = w.now.Add(time.Duration(rng.IntN(3000)) * time.Millisecond)
	run := runID(0)
	if w.running != nil {
		run = w.running.run
	}
	switch t := w.tun; rng.IntN(16) {
	case 13:
		w.perform("doubted", t.doubted(w.now, w.ids.next()))
	case 14:
		if !w.away {
			w.perform("retried", t.retried(w.now, w.ids.next()))
		}
	case 15:
		w.perform("gone", t.replaced(w.now, "replaced"))
	case 11:
		w.perform("demoted", t.demoted(w.now, w.ids.next(), time.Second, "demoted"))
	case 12:
		if w.running != nil && w.running.leave {
			w.running = nil
			w.perform("left", t.left(w.now, run))
		}
	case 10:
		w.away = !w.away && w.peer.Plan == wire.PlanICE
		t.leftAlone(w.now, w.away)
		w.checkState("left alone")
	case 0:
		if w.away {
			return // only the rendezvous wants
		}
		w.perform("wanted", t.wanted(w.now, w.peer, "store", w.ids.next))
	case 1:
		if w.away {
			return
		}
		w.peer.Plan = []wire.Plan{wire.PlanICE, wire.PlanPublic}[rng.IntN(2)]
		w.perform("wanted", t.wanted(w.now, w.peer, "store", w.ids.next))
	case 2:
		if w.peer.Plan == wire.PlanICE && !w.away {
			w.attempt++
			w.perform("ordered", t.ordered(w.now, orderFor(w.peer, wire.AttemptID(fmt.Sprint("a", w.attempt))), w.ids.next()))
		}
	case 3:
		if w.peer.Plan == wire.PlanICE && !w.away {
			id := wire.AttemptID(fmt.Sprint("a", max(0, w.attempt-rng.IntN(2))))
			w.perform("cancelled", t.cancelled(w.now, id, "cancelled"))
		}
	case 4:
		w.stale(rng)
	case 5:
		w.perform("gone", t.gone(w.now, "gone"))
	case 6:
		w.perform("due", t.due(w.now, w.ids.next))
	case 7:
		if w.running != nil && !w.running.leave {
			w.perform("nominated", t.nominated(run, path1))
		}
	case 8:
		if w.running != nil && !w.running.leave {
			w.direct = true
			t.relays(run, w.peer.Plan == wire.PlanPublic && rng.IntN(2) == 0, "")
			w.perform("direct", t.direct(w.now, run, path2, time.Second))
		}
	case 9:
		w.end(rng, run)
	}
}

// end is the run's own end: as a failure only before it was direct.
func (w *tunnelWorld) end(rng *rand.Rand, run runID) {
	if w.running == nil || w.running.leave {
		return
	}
	event, standing := "failed", w.tun.standing
	var effects []effect
	if w.direct {
		event, effects = "lost", w.tun.lost(w.now, run, "lost")
	} else {
		effects = w.tun.failed(w.now, run, "failed", rng.IntN(2) == 0)
	}
	for _, e := range effects {
		if r, ok := e.(tell); ok {
			w.checkReport(event, r.report)
		}
	}
	w.running = nil
	if event == "failed" && w.tun.standing != standing {
		w.Fatal("a failed attempt changed a tunnel that stood before it")
	}
	w.checkState(event)
}

// stale is the late word of a run that was replaced.
func (w *tunnelWorld) stale(rng *rand.Rand) {
	if w.running == nil || w.ids < 2 {
		return
	}
	before, old := *w.tun, w.running.run-1
	effects := [][]effect{
		w.tun.nominated(old, path1), w.tun.direct(w.now, old, path1, 0),
		w.tun.failed(w.now, old, "stale", true), w.tun.lost(w.now, old, "stale"),
	}[rng.IntN(4)]
	if len(effects) > 0 || !reflect.DeepEqual(before, *w.tun) {
		w.Fatalf("a stale run changed %+v to %+v, effects %s", before, *w.tun, brief(effects))
	}
}

func TestTunnelInvariants(t *testing.T) {
	for seed := range uint64(200) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 0))
			peer := []wire.Peer{icePeer, publicPeer}[seed%2]
			w := &tunnelWorld{T: t, tun: newTunnel(peer, "store", t0), peer: peer, now: t0}
			if rng.IntN(2) == 0 {
				w.tun.adopted(t0, path1)
			}
			w.perform("wanted", w.tun.wanted(t0, peer, "store", w.ids.next))
			for range 400 {
				w.step(rng)
			}
		})
	}
}
