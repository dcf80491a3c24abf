package rendezvous

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/bodkin-net/bodkin/rendezvous/access"
	"github.com/bodkin-net/bodkin/rendezvous/page"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

// source is what lists and metrics are made of.
type source interface {
	board(ctx context.Context) (*board, error)
	nodeViews(ctx context.Context) (time.Time, []NodeView, error)
	pairViews(ctx context.Context, f pairFilter) (time.Time, []PairView, error)
	inForce(ctx context.Context) (time.Time, []Community, error)
	observations(node string) ([]store.Observation, error)
	communitySources(ctx context.Context) (map[string]string, error)
	admissionStates() (map[store.AdmissionState]int, error)
	forecast(ctx context.Context, cs []Community) (Forecast, error)
	ready() error
}

// NodeList is the answer to GET /api/v1/nodes, by name.
type NodeList struct {
	At    time.Time     `json:"at"`
	Nodes []NodeHistory `json:"nodes"`
}

// NodeHistory is a node with the addresses it was observed at, newest first.
type NodeHistory struct {
	NodeView
	History []store.Observation `json:"history"`
}

// CommunityList is the answer to GET /api/v1/communities, by name.
type CommunityList struct {
	At          time.Time       `json:"at"`
	Communities []CommunityView `json:"communities"`
}

// CommunityView is a community as the API and the page show it.
type CommunityView struct {
	Name    string   `json:"name"`
	Members []string `json:"members"`
	// Punch is how far punching may go between its members.
	Punch wire.Policy `json:"punch"`
	// Source is the file it was applied from, or communitiesDir.
	Source string `json:"source"`
}

// PairList is the answer to GET /api/v1/pairs, by ID.
type PairList struct {
	At    time.Time  `json:"at"`
	Pairs []PairView `json:"pairs"`
}

// listRoutes are the lists, which everybody who may read has.
func listRoutes(src source) []route {
	return []route{
		{"GET", "/api/v1/nodes", access.Viewer, "All nodes, with where they were observed.",
			func(r *http.Request) (any, error) { return listNodes(r.Context(), src) }, nil, NodeList{}},
		{"GET", "/api/v1/pairs", access.Viewer, "Pairs by state, node and reason.",
			func(r *http.Request) (any, error) { return listPairs(r, src) }, nil, PairList{}},
		{"GET", "/api/v1/matrix", access.Viewer, "Every pair's state in one character.",
			func(r *http.Request) (any, error) {
				b, err := src.board(r.Context())
				if err != nil {
					return nil, err
				}
				return b.matrix(), nil
			}, nil, Matrix{}},
		{"GET", "/api/v1/communities", access.Viewer, "The communities in force.",
			func(r *http.Request) (any, error) { return listCommunities(r.Context(), src) }, nil, CommunityList{}},
		{"GET", "/api/v1/forecast/{community}", access.Viewer, "What is expected of the pairs of a community in force.",
			func(r *http.Request) (any, error) { return forecastInForce(r, src) }, nil, Forecast{}},
		{"POST", "/api/v1/forecast", access.Viewer, "What is expected of the pairs of the communities sent, as FabEdge's YAML. Nothing is stored.",
			func(r *http.Request) (any, error) { return forecastFile(r, src) }, communityBody{}, Forecast{}},
	}
}

// communityBody stands for a body that is a file of communities.
type communityBody struct{}

// plainRoutes are what is no API: health, metrics, and the page.
func plainRoutes(src source, m *metrics) []route {
	// One broken gauge must not hide the counters beside it.
	exposition := promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
	shell := page.Handler()
	return []route{
		{"GET", "/healthz", access.Nobody, "The process lives.",
			func(*http.Request) (any, error) { return plainText("ok\n"), nil }, nil, plainText("")},
		{"GET", "/readyz", access.Nobody, "The rendezvous does what it should; 503 and why if not.",
			func(*http.Request) (any, error) { return readiness(src.ready), nil }, nil, plainText("")},
		{"GET", "/metrics", access.Viewer, "Metrics for Prometheus.",
			func(*http.Request) (any, error) { return exposition, nil }, nil, plainText("")},
		// Only for GET: a pattern for all methods would hide "method not allowed".
		{"GET", "/api/", access.Viewer, "",
			func(r *http.Request) (any, error) {
				return nil, fmt.Errorf("%s: %w: docs/openapi.yaml lists what there is", clip(r.URL.Path), store.ErrNotFound)
			}, nil, nil},
		{"GET", "/", access.Nobody, "",
			func(*http.Request) (any, error) { return shell, nil }, nil, nil},
	}
}

// loginRoutes are those of the page's login.
func loginRoutes(g *access.Gate) []route {
	return []route{
		{"POST", "/login", access.Nobody, "Log in with a form's field `token`; sets a cookie.",
			func(r *http.Request) (any, error) {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if err := g.Login(w, r, time.Now()); err != nil {
						respond(w, r, nil, err)
					}
				}), nil
			}, nil, nil},
		{"POST", "/logout", access.Nobody, "End the login.",
			func(r *http.Request) (any, error) { return http.HandlerFunc(g.Logout), nil }, nil, nil},
	}
}

// plainText answers with itself.
type plainText string

// ServeHTTP implements http.Handler.
func (t plainText) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, string(t))
}

func readiness(ready func() error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		plainText("ok\n").ServeHTTP(w, r)
	})
}

func listNodes(ctx context.Context, src source) (any, error) {
	at, views, err := src.nodeViews(ctx)
	if err != nil {
		return nil, err
	}
	list := NodeList{At: at.UTC(), Nodes: make([]NodeHistory, 0, len(views))}
	for _, v := range views {
		n, err := withHistory(src, v)
		if err != nil {
			return nil, err
		}
		list.Nodes = append(list.Nodes, n)
	}
	return list, nil
}

func withHistory(src source, n NodeView) (NodeHistory, error) {
	history, err := src.observations(string(n.Name))
	if err != nil {
		return NodeHistory{}, err
	}
	if history == nil {
		history = []store.Observation{}
	}
	n.Since, n.LastSeen, n.ObservedAt = n.Since.UTC(), n.LastSeen.UTC(), n.ObservedAt.UTC()
	if n.Usage != nil {
		utc := *n.Usage // the hub's must not be written to
		utc.At = utc.At.UTC()
		n.Usage = &utc
	}
	return NodeHistory{NodeView: n, History: history}, nil
}

func listPairs(r *http.Request, src source) (any, error) {
	f, err := pairQuery(r)
	if err != nil {
		return nil, err
	}
	at, pairs, err := src.pairViews(r.Context(), f)
	if err != nil {
		return nil, err
	}
	list := PairList{At: at.UTC(), Pairs: make([]PairView, 0, len(pairs))}
	for _, p := range pairs {
		list.Pairs = append(list.Pairs, p.inUTC())
	}
	return list, nil
}

func (v PairView) inUTC() PairView {
	v.Since, v.LastDirect, v.RetryAt = v.Since.UTC(), v.LastDirect.UTC(), v.RetryAt.UTC()
	return v
}

func listCommunities(ctx context.Context, src source) (any, error) {
	at, cs, err := src.inForce(ctx)
	if err != nil {
		return nil, err
	}
	sources, err := src.communitySources(ctx)
	if err != nil {
		return nil, err
	}
	return CommunityList{At: at.UTC(), Communities: withSource(cs, sources)}, nil
}

func withSource(cs []Community, sources map[string]string) []CommunityView {
	out := make([]CommunityView, 0, len(cs))
	for _, c := range cs {
		out = append(out, CommunityView{Name: c.Name, Members: c.Members, Punch: cmp.Or(c.Punch, wire.PolicyAuto), Source: sources[c.Name]})
	}
	return out
}

// limitOfQuery is the query's limit, or otherwise.
func limitOfQuery(r *http.Request, otherwise int) (int, error) {
	text := r.URL.Query().Get("limit")
	if text == "" {
		return otherwise, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("%w: limit: %.20q: want a number above 0", errInvalid, text)
	}
	return n, nil
}
