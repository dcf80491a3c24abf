package agent

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// Retrying a punched tunnel while the rendezvous is away. Nobody brings the two
// ends together then, so each has to knock for long enough that their attempts
// (see punchTimeout) overlap in most rounds.
const knockPause = 20 * time.Second

// remember keeps what led to the tunnel. No rendezvous computes the next port of
// a NAT that counts, nor which side of a search does what.
func (t *tunnel) remember() {
	if t.order == nil {
		return
	}
	known := *t.order
	known.StartAfterMs, known.Hopeless = 0, ""
	if known.Strategy != wire.StrategyICE {
		known.Strategy, known.Part = wire.StrategyOpeners, ""
	}
	known.Candidates = slices.DeleteFunc(slices.Clone(known.Candidates), func(c wire.Candidate) bool {
		return c.Kind == wire.Predicted || c.Addr == t.path.Remote
	})
	if c := (wire.Candidate{Kind: wire.ServerReflexive, Addr: t.path.Remote}); c.Validate() == nil {
		known.Candidates = append([]wire.Candidate{c}, known.Candidates...)
	}
	t.known = &known
}

// leftAlone tells whether the rendezvous is away. A tunnel that is down while it
// is has to be made by its two ends alone.
func (t *tunnel) leftAlone(now time.Time, away bool) {
	if t.away == away || t.peer.Plan == wire.PlanPublic {
		return
	}
	t.away = away
	t.retryAt = time.Time{}
	if away && t.run == 0 && !t.standing {
		t.knockAt(now)
	}
}

// knockAt plans a try of the tunnel's own.
func (t *tunnel) knockAt(at time.Time) {
	if t.known != nil {
		t.retryAt = at
	}
}

// knockAgain plans the next try after one that failed: at once if that was still
// the rendezvous', else after a pause of random length, so that the ends do not
// keep missing each other.
func (t *tunnel) knockAgain(now time.Time, own bool) {
	if own {
		now = now.Add(rand.N(knockPause))
	}
	t.knockAt(now)
}
