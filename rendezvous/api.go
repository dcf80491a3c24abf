package rendezvous

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

// errTooMany marks a question whose answer would be too large.
var errTooMany = errors.New("too many")

// source is what the page, the API and the metrics show.
type source interface {
	snapshot(ctx context.Context) (Snapshot, error)
	observations(node string) ([]store.Observation, error)
	communitySources(ctx context.Context) (map[string]string, error)
	forecast(ctx context.Context, cs []Community) (Forecast, error)
	ready() error
	trouble() string
}

// adminSource is a source that can be changed.
type adminSource interface {
	source
	applyCommunities(ctx context.Context, file string, r io.Reader) ([]string, error)
	deleteCommunity(ctx context.Context, name string) error
	deleteNode(ctx context.Context, name string) error
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

// AppliedCommunities is the answer to PUT /api/v1/communities.
type AppliedCommunities struct {
	Applied []string `json:"applied"`
}

// apiError is every answer of the API that is no success.
type apiError struct {
	Error string `json:"error"`
}

// statusHandler is what the status listener serves: it changes nothing. It
// adds the collector to the registry, so it is called once.
func (s *Server) statusHandler() http.Handler {
	s.hub.metrics.registry.MustRegister(newCollector(s, s.stun.Stats), newExpiry(s.certs))
	return newStatusHandler(s, s.hub.metrics, s.token)
}

// adminHandler is what the unix socket serves: everything of the status
// listener, and what changes something. Who may open the socket needs no token.
func (s *Server) adminHandler() http.Handler { return newAdminHandler(s, s.hub.metrics) }

// communitySources says of each community where it is kept.
func (s *Server) communitySources(ctx context.Context) (map[string]string, error) {
	applied, err := s.store.Communities()
	if err != nil {
		return nil, err
	}
	sources := make(map[string]string, len(applied))
	for _, c := range applied {
		sources[c.Name] = c.Source
	}
	err = s.hub.call(ctx, func(time.Time) []action {
		for _, c := range s.files {
			sources[c.Name] = s.cfg.CommunitiesDir
		}
		return nil
	})
	return sources, err
}

func newStatusHandler(src source, m *metrics, token string) http.Handler {
	routes := newRoutes(src, m)
	mux := http.NewServeMux()
	// A load balancer asks for this one and has no token.
	mux.Handle("GET /healthz", routes)
	mux.Handle("/", guard(token, routes))
	return harden(mux)
}

func newAdminHandler(src adminSource, m *metrics) http.Handler {
	mux := newRoutes(src, m)
	mux.HandleFunc("PUT /api/v1/communities", func(w http.ResponseWriter, r *http.Request) {
		file := r.URL.Query().Get("file")
		if file == "" {
			file = "api"
		}
		names, err := src.applyCommunities(r.Context(), file, r.Body)
		reply(w, AppliedCommunities{Applied: names}, err)
	})
	remove := func(f func(ctx context.Context, name string) error) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if err := f(r.Context(), r.PathValue("name")); err != nil {
				reply(w, nil, err)
				return
			}
			w.WriteHeader(http.StatusNoContent)
		}
	}
	mux.HandleFunc("DELETE /api/v1/communities/{name}", remove(src.deleteCommunity))
	mux.HandleFunc("DELETE /api/v1/nodes/{name}", remove(src.deleteNode))
	return harden(mux)
}

// newRoutes are the routes that only read.
func newRoutes(src source, m *metrics) *http.ServeMux {
	mux := http.NewServeMux()
	addPage(mux, src)
	mux.HandleFunc("GET /api/v1/nodes", func(w http.ResponseWriter, r *http.Request) {
		snap, err := src.snapshot(r.Context())
		if err != nil {
			reply(w, nil, err)
			return
		}
		nodes, err := withHistory(src, snap.Nodes)
		reply(w, NodeList{At: snap.At.UTC(), Nodes: nodes}, err)
	})
	mux.HandleFunc("GET /api/v1/communities", func(w http.ResponseWriter, r *http.Request) {
		snap, errSnap := src.snapshot(r.Context())
		sources, errSources := src.communitySources(r.Context())
		reply(w, CommunityList{At: snap.At.UTC(), Communities: withSource(snap.Communities, sources)},
			errors.Join(errSnap, errSources))
	})
	mux.HandleFunc("GET /api/v1/pairs", func(w http.ResponseWriter, r *http.Request) {
		snap, err := src.snapshot(r.Context())
		reply(w, PairList{At: snap.At.UTC(), Pairs: pairsUTC(snap.Pairs)}, err)
	})
	addForecast(mux, src)
	// Only for GET: a pattern for all methods would hide "method not allowed".
	mux.HandleFunc("GET /api/", func(w http.ResponseWriter, r *http.Request) {
		fail(w, r, http.StatusNotFound, r.URL.Path+" does not exist: there are /api/v1/nodes, communities, pairs and forecast")
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "ok\n")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if err := src.ready(); err != nil {
			fail(w, r, http.StatusServiceUnavailable, err.Error())
			return
		}
		_, _ = io.WriteString(w, "ok\n")
	})
	// One broken gauge must not hide the counters beside it.
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}))
	return mux
}

func withHistory(src source, nodes []NodeView) ([]NodeHistory, error) {
	out := make([]NodeHistory, 0, len(nodes))
	for _, n := range nodes {
		history, err := src.observations(string(n.Name))
		if err != nil {
			return nil, err
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
		out = append(out, NodeHistory{NodeView: n, History: history})
	}
	return out, nil
}

func withSource(cs []Community, sources map[string]string) []CommunityView {
	out := make([]CommunityView, 0, len(cs))
	for _, c := range cs {
		out = append(out, CommunityView{Name: c.Name, Members: c.Members, Punch: cmp.Or(c.Punch, wire.PolicyAuto), Source: sources[c.Name]})
	}
	return out
}

func pairsUTC(pairs []PairView) []PairView {
	out := make([]PairView, 0, len(pairs))
	for _, p := range pairs {
		p.Since, p.LastDirect, p.RetryAt = p.Since.UTC(), p.LastDirect.UTC(), p.RetryAt.UTC()
		out = append(out, p)
	}
	return out
}

// reply answers an API request with v, or with err if there is one.
func reply(w http.ResponseWriter, v any, err error) {
	status := http.StatusOK
	if err != nil {
		status, v = statusOf(err), apiError{Error: err.Error()}
	}
	var body bytes.Buffer
	enc := json.NewEncoder(&body)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = body.WriteTo(w) // a client that is gone needs no answer
}

func statusOf(err error) int {
	var file *CommunityError
	switch {
	case errors.As(err, &file):
		return http.StatusUnprocessableEntity
	case errors.Is(err, store.ErrNotFound):
		return http.StatusNotFound
	case errors.Is(err, errTooMany):
		return http.StatusUnprocessableEntity
	case errors.Is(err, ErrConflict):
		return http.StatusConflict
	case errors.Is(err, errStopped), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// fail answers in the form that belongs to the path.
func fail(w http.ResponseWriter, r *http.Request, status int, message string) {
	if !strings.HasPrefix(r.URL.Path, "/api/") {
		http.Error(w, message, status)
		return
	}
	b, _ := json.Marshal(apiError{Error: message}) // a string always marshals
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n'))
}

// harden sets the headers that keep a browser from doing with these pages
// anything but showing them.
func harden(next http.Handler) http.Handler {
	const policy = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; " +
		"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

// guard lets through who knows the token, or without one who asks for this
// machine. A web site can give its own name this machine's address (DNS
// rebinding) and have a visitor's browser read what it finds; it cannot make
// the browser ask for localhost or for an IP address in its name.
func guard(token string, next http.Handler) http.Handler {
	want := sha256.Sum256([]byte(token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if token == "" {
			if !namesThisMachine(r.Host) {
				fail(w, r, http.StatusForbidden, fmt.Sprintf("asked for as %.100q: without statusTokenFile only localhost or an IP address is answered", r.Host))
				return
			}
			next.ServeHTTP(w, r)
			return
		}
		// Hashes are of one length, so the comparison tells nothing of the token's.
		got := sha256.Sum256([]byte(presentedToken(r)))
		if subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
			w.Header().Add("WWW-Authenticate", `Basic realm="bodkin rendezvous", charset="UTF-8"`)
			w.Header().Add("WWW-Authenticate", `Bearer realm="bodkin rendezvous"`)
			fail(w, r, http.StatusUnauthorized, "the token of statusTokenFile is required, as bearer token or as password with any user name")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// presentedToken is a bearer token (RFC 6750) or a Basic password (RFC 7617),
// which is what a browser can ask its user for.
func presentedToken(r *http.Request) string {
	if _, password, ok := r.BasicAuth(); ok {
		return password
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if strings.EqualFold(scheme, "Bearer") {
		return strings.TrimSpace(token)
	}
	return ""
}

func namesThisMachine(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.Trim(hostport, "[]")
	}
	_, err = netip.ParseAddr(host)
	return err == nil || host == "" || strings.EqualFold(host, "localhost")
}
