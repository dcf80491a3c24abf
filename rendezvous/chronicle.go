package rendezvous

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

const (
	// lateReport is how long after its end an attempt still takes what a side has
	// to say of it: the reports of both ends cross with the end.
	lateReport = 30 * time.Second
	// maxLate bounds the attempts kept for that, about 10 MB.
	maxLate = 1024
	// maxChronicled bounds the candidates kept of one side: what it had at first and
	// what a few changes of its network brought.
	maxChronicled = 2 * wire.MaxCandidates
)

// chronicle puts together what is ordered of attempts and what both sides report
// of them. It is a pure state machine; it belongs to the hub's goroutine. Those
// that run are as many as the coordinator lets run.
type chronicle struct {
	attempts map[wire.AttemptID]*AttemptView
	// ended are those that are over, the oldest first.
	ended []endedAttempt
}

type endedAttempt struct {
	id wire.AttemptID
	at time.Time
}

func newChronicle() *chronicle { return &chronicle{attempts: map[wire.AttemptID]*AttemptView{}} }

// order begins an attempt. What one side is given of the other is the other's.
func (c *chronicle) order(now time.Time, o ordered) *AttemptView {
	v := &AttemptView{
		ID: o.attempt, Pair: o.pair, At: now.UTC(), Strategy: o.strategy, Verdict: o.verdict,
		Outcome: AttemptRunning, Sides: map[wire.NodeName]*AttemptSide{},
	}
	for i, name := range o.names {
		mine, peers := o.orders[i], o.orders[1-i]
		v.Hopeless = cmp.Or(v.Hopeless, mine.Hopeless)
		v.Sides[name] = &AttemptSide{
			Role: mine.Peer.Role, Part: mine.Part, StartAfterMs: mine.StartAfterMs, OffsetMs: o.delays[i].Milliseconds(),
			Candidates: append([]wire.Candidate{}, peers.Candidates...), NAT: peers.RemoteNAT,
		}
	}
	c.attempts[o.attempt] = v
	return v
}

// trickle adds what became known of a side after the order.
func (c *chronicle) trickle(to wire.NodeName, m *wire.Trickle) {
	v := c.attempts[m.Attempt]
	if v == nil {
		return
	}
	for name, s := range v.Sides {
		if name == to {
			continue
		}
		for _, candidate := range m.Candidates {
			if len(s.Candidates) < maxChronicled && !slices.Contains(s.Candidates, candidate) {
				s.Candidates = append(s.Candidates, candidate)
			}
		}
		if m.RemoteNAT != nil {
			s.NAT = *m.RemoteNAT
		}
	}
}

// report takes a side's word, and returns the attempt if it has ended before: it
// is to be stored anew. What a side says once is not unsaid by what it says later
// of the tunnel.
func (c *chronicle) report(now time.Time, from wire.NodeName, r *wire.Report) *AttemptView {
	c.forget(now)
	v := c.attempts[r.Attempt]
	if v == nil || v.Sides[from] == nil || r.Outcome == wire.OutcomeLost {
		return nil
	}
	s := v.Sides[from]
	if s.Outcome == wire.OutcomeDirect || s.Outcome == wire.OutcomeFailed {
		return nil
	}
	s.Outcome, s.Reason, s.ElapsedMs, s.Packets = r.Outcome, wire.Clip(r.Reason), r.ElapsedMs, min(r.Packets, maxPackets)
	if r.Path.Remote.IsValid() {
		s.Path = r.Path
	}
	if len(r.Steps) > 0 {
		s.Steps = printable(r.Steps)
	}
	if v.Outcome == AttemptRunning {
		return nil
	}
	return v
}

// printable is steps as terminals may show them: a node can put anything there.
func printable(steps []wire.Step) []wire.Step {
	out := slices.Clone(steps)
	for i, s := range out {
		out[i].Kind, out[i].Text = wire.StepKind(wire.Clip(string(s.Kind))), wire.Clip(s.Text)
	}
	return out
}

// end ends an attempt and returns it.
func (c *chronicle) end(now time.Time, e ended) *AttemptView {
	c.forget(now)
	v := c.attempts[e.attempt]
	if v == nil {
		return nil
	}
	v.Outcome, v.Reason, v.ElapsedMs = e.outcome, e.reason, now.Sub(v.At).Milliseconds()
	c.ended = append(c.ended, endedAttempt{e.attempt, now})
	return v
}

// forget drops those that nobody will say anything of any more.
func (c *chronicle) forget(now time.Time) {
	n := 0
	for n < len(c.ended) && (now.Sub(c.ended[n].at) > lateReport || len(c.ended)-n > maxLate) {
		delete(c.attempts, c.ended[n].id)
		n++
	}
	c.ended = slices.Delete(c.ended, 0, n)
}

// of are a pair's attempts that are at hand, for the caller to keep.
func (c *chronicle) of(id wire.PairID) (out []AttemptView) {
	for _, v := range c.attempts {
		if v.Pair == id {
			out = append(out, v.clone())
		}
	}
	return out
}

// clone is the attempt as it is now. Steps are never changed in place.
func (v *AttemptView) clone() AttemptView {
	c := *v
	c.Sides = maps.Clone(v.Sides)
	for name, s := range c.Sides {
		side := *s
		side.Candidates = slices.Clone(s.Candidates)
		c.Sides[name] = &side
	}
	return c
}

// withStored joins the attempts at hand, which are newer, with those of the store,
// newest first.
func withStored(at []AttemptView, stored []store.Attempt) ([]AttemptView, error) {
	out := append([]AttemptView{}, at...) // [], not null
	for _, s := range stored {
		if slices.ContainsFunc(at, func(v AttemptView) bool { return string(v.ID) == s.ID }) {
			continue
		}
		var v AttemptView
		if err := json.Unmarshal(s.Record, &v); err != nil {
			return nil, fmt.Errorf("attempt %s of %s: %w", s.ID, s.Pair, err)
		}
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b AttemptView) int { return b.At.Compare(a.At) })
	return out, nil
}
