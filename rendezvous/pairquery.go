package rendezvous

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// pairsAtATime is how many pairs the hub makes views of before it sees to
// others: it takes a few milliseconds, and a punch waits no longer.
const pairsAtATime = 1000

// statePunching asks for pairs that are being tried, whatever their state.
const statePunching State = "punching"

// pairFilter is what GET /api/v1/pairs asks for; with a zero limit it is nothing.
type pairFilter struct {
	state  State
	node   wire.NodeName
	reason string
	limit  int
}

// pairQuery is the filter of a request.
func pairQuery(r *http.Request) (f pairFilter, err error) {
	q := r.URL.Query()
	f = pairFilter{state: State(q.Get("state")), node: wire.NodeName(q.Get("node")), reason: q.Get("reason")}
	if !slices.Contains([]State{"", Direct, Relayed, Down, statePunching}, f.state) {
		return f, fmt.Errorf("%w: state: %.20q: want direct, relayed, down or punching", errInvalid, string(f.state))
	}
	f.limit, err = limitOfQuery(r, math.MaxInt)
	return f, err
}

// lets reports whether a pair is of what was asked for.
func (f pairFilter) lets(state State, punching bool, names [2]wire.NodeName, reason func() string) bool {
	switch {
	case f.state == statePunching && !punching,
		f.state != "" && f.state != statePunching && state != f.state,
		f.node != "" && names[0] != f.node && names[1] != f.node:
		return false
	}
	return f.reason == "" || reason() == f.reason
}

// pairViews are the pairs that a filter lets through, by ID. They are taken some
// at a time: each as it was at one moment, and not all at the same.
func (s *Server) pairViews(ctx context.Context, f pairFilter) (at time.Time, out []PairView, err error) {
	next := wire.PairID("")
	for done := false; !done; {
		err := s.hub.call(ctx, func(now time.Time) []action {
			at = now
			var some []PairView
			some, next, done = s.hub.coordinator.some(f, next, f.limit-len(out))
			out = append(out, some...)
			return nil
		})
		if err != nil {
			return at, nil, err
		}
	}
	return at, out, nil
}

// some are pairs from an ID on, and the ID to go on from; done when that would
// lead to no more.
func (c *coordinator) some(f pairFilter, from wire.PairID, limit int) (out []PairView, next wire.PairID, done bool) {
	pairs := c.sorted
	if f.node != "" {
		pairs = c.byNode[f.node]
	}
	first, _ := slices.BinarySearchFunc(pairs, from, func(p *pair, id wire.PairID) int { return strings.Compare(string(p.id), string(id)) })
	last := min(len(pairs), first+pairsAtATime)
	for _, p := range pairs[first:last] {
		if len(out) == limit {
			return out, "", true
		}
		if f.lets(p.state, p.attempt != nil, p.names, func() string { return c.reasonOf(p) }) {
			out = append(out, c.view(p))
		}
	}
	if last == len(pairs) {
		return out, "", true
	}
	return out, pairs[last].id, false
}
