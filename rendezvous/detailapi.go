package rendezvous

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/access"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

// eventsListed is how many events GET /api/v1/events gives unless told otherwise.
const eventsListed = 100

// detailRoutes are overviews, details and events.
func (s *Server) detailRoutes() []route {
	return []route{
		{"GET", "/api/v1/overview", access.Viewer, "Everything in numbers, with the last 24 hours.",
			func(r *http.Request) (any, error) { return s.overview(r.Context()) }, nil, Overview{}},
		{"GET", "/api/v1/nodes/{name}", access.Viewer, "One node: where it was observed, what operators said of it, its certificates.",
			s.getNode, nil, NodeDetail{}},
		{"GET", "/api/v1/nodes/{name}/sas", access.Viewer, "The SAs that strongSwan has on a node, as its agent tells them now: a list of the agent's own type.",
			s.getSAs, nil, []map[string]any{}},
		{"GET", "/api/v1/pairs/{a}/{b}", access.Viewer, "One pair with its last attempts, as both sides told them.",
			s.getPair, nil, PairDetail{}},
		{"GET", "/api/v1/events", access.Viewer, "What happened, newest first.",
			s.getEvents, nil, EventList{}},
		{"GET", "/api/v1/events/stream", access.Viewer, "What happens, as server-sent events.",
			func(r *http.Request) (any, error) { return s.streams.handler(r) }, nil, EventView{}},
		{"GET", "/api/v1/whoami", access.Viewer, "Whom the request is from.",
			func(r *http.Request) (any, error) {
				c := access.CallerOf(r.Context())
				return Identity{Who: c.Who, Role: c.Role}, nil
			}, nil, Identity{}},
	}
}

func (s *Server) getNode(r *http.Request) (any, error) {
	name := nameIn(r)
	var view NodeView
	detail := NodeDetail{}
	err := s.hub.call(r.Context(), func(time.Time) []action {
		if d := s.hub.details[name]; d != nil {
			view = *d
		}
		for _, p := range s.hub.coordinator.byNode[name] {
			detail.Pairs.add(p.state, p.attempt != nil)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if view.Name == "" {
		return nil, fmt.Errorf("node %s: %w", clip(string(name)), store.ErrNotFound)
	}
	if detail.NodeHistory, err = withHistory(s, view); err != nil {
		return nil, err
	}
	if detail.Admission, err = s.admissionView(name); err != nil {
		return nil, err
	}
	detail.Certificates, err = s.authority.Certificates(string(name))
	detail.Certificates = append([]store.Certificate{}, detail.Certificates...) // [], not null
	return detail, err
}

func (s *Server) getPair(r *http.Request) (any, error) {
	id := wire.NewPairID(r.PathValue("a"), r.PathValue("b"))
	var detail PairDetail
	known := false
	err := s.hub.call(r.Context(), func(now time.Time) []action {
		p := s.hub.coordinator.pairs[id]
		if known = p != nil; known {
			detail = PairDetail{At: now.UTC(), Pair: s.hub.coordinator.view(p).inUTC(), Attempts: s.hub.journal.chronicle.of(id)}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if !known {
		return nil, s.noPair(id)
	}
	stored, err := s.store.Attempts(string(id))
	if err != nil {
		return nil, err
	}
	detail.Attempts, err = withStored(detail.Attempts, stored)
	return detail, err
}

// noPair is the error for two nodes that share nothing.
func (s *Server) noPair(id wire.PairID) error {
	a, b := id.Nodes()
	return fmt.Errorf("pair of %s and %s: %w: they share no community", clip(a), clip(b), store.ErrNotFound)
}

func (s *Server) getEvents(r *http.Request) (any, error) {
	f, err := eventQuery(r)
	if err != nil {
		return nil, err
	}
	list := EventList{At: time.Now().UTC()}
	list.Events, err = f.find(s.events.newest(), func() ([]store.Event, error) { return s.store.Events(0) })
	return list, err
}

// eventQuery is the filter of a request.
func eventQuery(r *http.Request) (f eventFilter, err error) {
	q := r.URL.Query()
	f.node = wire.NodeName(q.Get("node"))
	if pair := wire.PairID(q.Get("pair")); pair != "" {
		a, b := pair.Nodes()
		if a == "" || b == "" {
			return f, fmt.Errorf("%w: pair: %s: want two nodes as A|B", errInvalid, clip(string(pair)))
		}
		f.pair = wire.NewPairID(a, b)
	}
	f.limit, err = limitOfQuery(r, eventsListed)
	return f, err
}

// nodeViews are all nodes, by name.
func (s *Server) nodeViews(ctx context.Context) (at time.Time, views []NodeView, err error) {
	err = s.hub.call(ctx, func(now time.Time) []action {
		at = now
		for _, d := range s.hub.details {
			views = append(views, *d)
		}
		return nil
	})
	slices.SortFunc(views, byName)
	return at, views, err
}

func byName(a, b NodeView) int {
	if a.Name < b.Name {
		return -1
	}
	return 1
}

// inForce are all communities, by name.
func (s *Server) inForce(ctx context.Context) (at time.Time, cs []Community, err error) {
	err = s.hub.call(ctx, func(now time.Time) []action {
		at, cs = now, slices.Clone(s.hub.coordinator.communities)
		return nil
	})
	return at, cs, err
}
