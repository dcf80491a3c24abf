package rendezvous

import (
	"cmp"
	"context"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

const (
	// overviewReasons bounds the reasons of an overview: more is for the list of
	// pairs.
	overviewReasons = 50
	// overviewHours is what an overview looks back.
	overviewHours = 24
)

// counts counts the pairs of a board.
func (b *board) counts() PairCounts {
	var n PairCounts
	for _, p := range b.pairs {
		n.add(p.state, p.punching)
	}
	return n
}

func (n *PairCounts) add(state State, punching bool) {
	n.Total++
	switch state {
	case Direct:
		n.Direct++
	case Relayed:
		n.Relayed++
	default:
		n.Down++
	}
	if punching && state != Direct {
		n.Punching++
	}
}

// reasons counts why pairs are not direct, the most frequent first, each put in
// other words by rephrase.
func (b *board) reasons(rephrase func(pairBrief) string) []ReasonCount {
	counted := map[ReasonCount]int{}
	for _, p := range b.pairs {
		if p.state != Direct {
			counted[ReasonCount{State: p.state, Reason: rephrase(p)}]++
		}
	}
	out := make([]ReasonCount, 0, len(counted))
	for r, n := range counted {
		r.Pairs = n
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b ReasonCount) int {
		return cmp.Or(cmp.Compare(b.Pairs, a.Pairs), cmp.Compare(a.State, b.State), cmp.Compare(a.Reason, b.Reason))
	})
	return out
}

// inFull is the reason as it stands.
func inFull(p pairBrief) string { return p.reason }

// clock is a time of day, address a UDP address, as reasons have them.
var (
	clock   = regexp.MustCompile(`\d\d:\d\d:\d\d UTC`)
	address = regexp.MustCompile(`(\d+\.\d+\.\d+\.\d+|\[[0-9a-fA-F:.]+\]):\d+`)
)

// inGeneral is the reason without what is this pair's own, for metrics: each of
// their labels is kept for weeks.
func inGeneral(p pairBrief) string {
	longer, shorter := p.names[0], p.names[1]
	if len(longer) < len(shorter) { // one name may begin with the other
		longer, shorter = shorter, longer
	}
	text := p.reason
	for _, name := range []wire.NodeName{longer, shorter} {
		text = strings.ReplaceAll(text, string(name), "NODE")
	}
	return address.ReplaceAllString(clock.ReplaceAllString(text, "TIME"), "ADDRESS")
}

// overview is the page's first view.
func (s *Server) overview(ctx context.Context) (Overview, error) {
	b, err := s.board(ctx)
	if err != nil {
		return Overview{}, err
	}
	o := Overview{
		At: b.at.UTC(), Version: s.Version, Since: s.since.UTC(), Trouble: s.trouble(),
		Pairs: b.counts(), Reasons: b.reasons(inFull),
	}
	o.Reasons = o.Reasons[:min(len(o.Reasons), overviewReasons)]
	if err := s.ready(); err != nil {
		o.Problem = err.Error()
	}
	o.Nodes.Total = len(b.nodes)
	for _, n := range b.nodes {
		if n.online {
			o.Nodes.Online++
		}
	}
	states, err := s.admissionStates()
	if err != nil {
		return Overview{}, err
	}
	o.Nodes.Pending, o.Nodes.Revoked = states[store.Pending], states[store.Revoked]
	s.hub.journal.hours.describe(&o, b.at)
	return o, nil
}

// admissionStates counts what operators have said about nodes.
func (s *Server) admissionStates() (map[store.AdmissionState]int, error) {
	states := map[store.AdmissionState]int{store.Approved: 0, store.Pending: 0, store.Revoked: 0}
	err := s.store.View("admissions", func(tx *store.Tx) error {
		all, err := tx.Admissions()
		for _, a := range all {
			states[a.State]++
		}
		return err
	})
	return states, err
}

// describe adds the last 24 hours to an overview.
func (h *hours) describe(o *Overview, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	o.TimeToDirect = newDistribution()
	var direct, all int
	for i := range overviewHours {
		at := now.UTC().Truncate(time.Hour).Add(time.Duration(i+1-overviewHours) * time.Hour)
		hour := h.byStart[at]
		o.Hours = append(o.Hours, HourView{Start: at, Direct: hour.Direct, Failed: hour.Failed})
		direct += hour.Direct
		all += hour.Direct + hour.Failed
		o.TimeToDirect.add(hour.TimeToDirect)
	}
	o.TimeToDirect.summarise()
	if all > 0 {
		rate := float64(direct) / float64(all)
		o.SuccessRate = &rate
	}
}
