package rendezvous

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/bodkin-net/bodkin/punch/nat"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

// maxForecast bounds the pairs of one forecast: those of the largest community.
const maxForecast = maxMembers * (maxMembers - 1) / 2

// Forecast is what is expected of every pair of some communities, whether they
// are in force or not.
type Forecast struct {
	At      time.Time       `json:"at"`
	Pairs   []ForecastPair  `json:"pairs"`
	Summary ForecastSummary `json:"summary"`
}

// ForecastPair is what is expected of one pair.
type ForecastPair struct {
	Nodes   [2]wire.NodeName `json:"nodes"`
	Verdict VerdictView      `json:"verdict"`
	// Offline are those of the two that are not online: the verdict rests on
	// what was known of them last.
	Offline []wire.NodeName `json:"offline,omitempty"`
}

// ForecastSummary counts the pairs.
type ForecastSummary struct {
	Pairs   int `json:"pairs"`
	Direct  int `json:"direct"`
	Relay   int `json:"relay"`
	Unknown int `json:"unknown"`
	// Reasons are those of all pairs that are not expected to be direct, the
	// most frequent first.
	Reasons []ForecastReason `json:"reasons"`
}

// ForecastReason is one reason, and how many pairs have it.
type ForecastReason struct {
	Expect nat.Expectation `json:"expect"`
	Reason string          `json:"reason"`
	Pairs  int             `json:"pairs"`
}

// newForecast judges all pairs of cs as if they were in force beside those that
// are, in place of what has their names.
func newForecast(cs, inForce []Community, nodes map[wire.NodeName]*known) []ForecastPair {
	all := slices.Clone(cs)
	for _, c := range inForce {
		if indexOf(cs, c.Name) < 0 {
			all = append(all, c)
		}
	}
	set, shared := policies(all), Pairs(all)
	pairs := []ForecastPair{}
	for _, id := range slices.Sorted(maps.Keys(Pairs(cs))) {
		a, b := id.Nodes()
		names := [2]wire.NodeName{wire.NodeName(a), wire.NodeName(b)}
		both := [2]*known{nodes[names[0]], nodes[names[1]]}
		p := ForecastPair{Nodes: names, Verdict: viewOf(judge(names, both, limitOf(shared[id], set)))}
		for i, n := range both {
			if n != nil && !n.online {
				p.Offline = append(p.Offline, names[i])
			}
		}
		pairs = append(pairs, p)
	}
	return pairs
}

// summarise counts pairs by what is expected of them.
func summarise(pairs []ForecastPair) ForecastSummary {
	s := ForecastSummary{Pairs: len(pairs), Reasons: []ForecastReason{}}
	reasons := map[ForecastReason]int{}
	for _, p := range pairs {
		switch p.Verdict.Expect {
		case nat.Direct:
			s.Direct++
			continue
		case nat.Relay:
			s.Relay++
		default:
			s.Unknown++
		}
		reasons[ForecastReason{Expect: p.Verdict.Expect, Reason: p.Verdict.Reason}]++
	}
	for r, n := range reasons {
		r.Pairs = n
		s.Reasons = append(s.Reasons, r)
	}
	slices.SortFunc(s.Reasons, func(a, b ForecastReason) int {
		return cmp.Or(cmp.Compare(a.Expect, b.Expect), cmp.Compare(b.Pairs, a.Pairs), cmp.Compare(a.Reason, b.Reason))
	})
	return s
}

// forecast judges on the caller's goroutine: a large community's pairs would
// hold up the hub.
func (s *Server) forecast(ctx context.Context, cs []Community) (Forecast, error) {
	members := 0
	for _, c := range cs {
		members += len(c.Members) * (len(c.Members) - 1) / 2
	}
	if members > maxForecast {
		return Forecast{}, fmt.Errorf("%w: %d pairs in these communities, the limit of a forecast is %d: ask for fewer at a time", errTooMany, members, maxForecast)
	}
	var at time.Time
	var inForce []Community
	nodes := map[wire.NodeName]*known{}
	err := s.hub.call(ctx, func(now time.Time) []action {
		at, inForce = now, slices.Clone(s.hub.coordinator.communities)
		for name, n := range s.hub.coordinator.nodes {
			nodes[name] = n.known()
		}
		return nil
	})
	pairs := newForecast(cs, inForce, nodes)
	return Forecast{At: at.UTC(), Pairs: pairs, Summary: summarise(pairs)}, err
}

// forecastFile judges the communities in a request's body. It stores nothing, so
// everybody who may read may use it.
func forecastFile(r *http.Request, src source) (any, error) {
	cs, err := ParseCommunities(cmp.Or(r.URL.Query().Get("file"), "api"), r.Body)
	if err != nil {
		return nil, err
	}
	return src.forecast(r.Context(), cs)
}

// forecastInForce judges a community that is in force.
func forecastInForce(r *http.Request, src source) (any, error) {
	_, cs, err := src.inForce(r.Context())
	if err != nil {
		return nil, err
	}
	name := r.PathValue("community")
	i := indexOf(cs, name)
	if i < 0 {
		return nil, fmt.Errorf("community %s: %w", clip(name), store.ErrNotFound)
	}
	return src.forecast(r.Context(), cs[i:i+1])
}
