package rendezvous

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/punch/nat"
	"github.com/bodkin-net/bodkin/rendezvous/access"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

// fakeSource holds what a test wants the server to say.
type fakeSource struct {
	snap     Snapshot
	history  map[string][]store.Observation
	sources  map[string]string
	admitted map[store.AdmissionState]int
	notReady error
	failing  error // of every call that can fail
	known    map[wire.NodeName]*known
}

func (f *fakeSource) ready() error { return f.notReady }

func (f *fakeSource) board(context.Context) (*board, error) {
	b := &board{at: f.snap.At}
	for _, n := range f.snap.Nodes {
		b.nodes = append(b.nodes, nodeBrief{n.Name, n.Online})
	}
	for _, p := range f.snap.Pairs {
		b.pairs = append(b.pairs, pairBrief{p.ID, p.Nodes, p.State, p.Punching, p.Reason, p.Verdict})
	}
	return b, f.failing
}

func (f *fakeSource) nodeViews(context.Context) (time.Time, []NodeView, error) {
	return f.snap.At, f.snap.Nodes, f.failing
}

func (f *fakeSource) pairViews(_ context.Context, filter pairFilter) (at time.Time, out []PairView, err error) {
	for _, p := range f.snap.Pairs {
		if len(out) < filter.limit && filter.lets(p.State, p.Punching, p.Nodes, func() string { return p.Reason }) {
			out = append(out, p)
		}
	}
	return f.snap.At, out, f.failing
}

func (f *fakeSource) inForce(context.Context) (time.Time, []Community, error) {
	return f.snap.At, f.snap.Communities, f.failing
}

func (f *fakeSource) observations(node string) ([]store.Observation, error) {
	return f.history[node], f.failing
}

func (f *fakeSource) communitySources(context.Context) (map[string]string, error) {
	return f.sources, f.failing
}

func (f *fakeSource) admissionStates() (map[store.AdmissionState]int, error) {
	return f.admitted, f.failing
}

func (f *fakeSource) forecast(_ context.Context, cs []Community) (Forecast, error) {
	pairs := newForecast(cs, f.snap.Communities, f.known)
	return Forecast{At: f.snap.At, Pairs: pairs, Summary: summarise(pairs)}, f.failing
}

// as serves the routes of a source to one caller.
func as(caller access.Caller, src source, m *metrics) http.Handler {
	f := &front{metrics: m, identify: func(*http.Request) (access.Caller, error) { return caller, nil }}
	return f.handler(slices.Concat(listRoutes(src), plainRoutes(src, m)))
}

// asViewer serves them to somebody who may read.
func asViewer(src source) http.Handler {
	return as(access.Caller{Who: "test", Role: access.Viewer}, src, newMetrics())
}

// sampleNow is in another zone than UTC on purpose: what is shown is UTC.
var sampleNow = time.Date(2024, 5, 17, 14, 30, 0, 0, time.FixedZone("CEST", 2*60*60))

// sampleSource is a connector, three edges that joined and one that never did.
func sampleSource() *fakeSource {
	before := func(d time.Duration) time.Time { return sampleNow.Add(-d) }
	addr := netip.MustParseAddrPort
	node := func(name string, typ wire.EndpointType, online bool, since time.Duration) NodeView {
		return NodeView{
			Name: wire.NodeName(name), Online: online, Since: before(since), LastSeen: before(since),
			Endpoint:     wire.Endpoint{Name: wire.NodeName(name), Type: typ, ID: "C=CN, O=fabedge.io, CN=" + name},
			AgentVersion: "0.1.0", Fingerprint: "5f1c",
		}
	}
	connector := node("beijing.connector", wire.Connector, true, 75*time.Hour)
	connector.NAT = wire.NAT{Mapping: wire.EndpointIndependent, Filtering: wire.AddressAndPortDependent}
	connector.Observed = addr("198.51.100.1:4500")
	edge1 := node("beijing.edge1", wire.Edge, true, 3*time.Hour)
	edge1.NAT = wire.NAT{Present: true, Mapping: wire.EndpointIndependent, Filtering: wire.AddressAndPortDependent}
	edge1.Observed, edge1.ObservedAt, edge1.ObservedBy = addr("203.0.113.20:4500"), before(14*time.Second), "stun:3478"
	edge2 := node("beijing.edge2", wire.Edge, true, 95*time.Second)
	edge2.NAT = wire.NAT{Present: true, Mapping: wire.AddressAndPortDependent, Filtering: wire.AddressAndPortDependent}
	edge2.Observed, edge2.Observed6 = addr("203.0.113.77:61804"), addr("[2001:db8:7::20]:4500")
	edge2.NAT.Allocation, edge2.NAT.Hairpin, edge2.NAT.Hops = wire.Random, wire.Yes, 2
	edge2.Punch, edge2.NoProbe = wire.PolicyICEOnly, "nftables is missing"
	edge2.Metered, edge2.RefusedReports = true, 3
	edge2.RefusedSessions, edge2.Refusal = 1, "endpoint.subnets: 10.1.0.0/24 overlaps 10.1.0.0/24 of beijing.edge1"
	edge2.Usage = &UsageView{At: before(time.Minute), Seconds: 3600, Signalling: 812_345, STUN: 9_000,
		Peers: map[wire.NodeName]int64{"beijing.edge1": 900_000, "beijing.connector": 300_000}}
	edge3 := node("shanghai.edge3", wire.Edge, false, 26*time.Hour)
	edge3.Observed = addr("[2001:db8:5::17]:4500")

	pair := func(a, b string, state State, since time.Duration) PairView {
		return PairView{
			ID: wire.NewPairID(a, b), Nodes: [2]wire.NodeName{wire.NodeName(a), wire.NodeName(b)},
			Communities: []string{"all-edges"}, State: state, Since: before(since),
		}
	}
	relay := pair("beijing.connector", "beijing.edge1", Direct, 3*time.Hour)
	relay.Paths = map[wire.NodeName]wire.Path{
		"beijing.connector": {Kind: wire.PathPublic, Remote: addr("203.0.113.20:4500")},
		"beijing.edge1":     {Kind: wire.PathPublic, Remote: addr("198.51.100.1:45000")},
	}
	relay.Verdict = VerdictView{nat.Direct, strategyPublic, "beijing.connector is a connector, reached at its public address"}
	relay.TimeToDirectMs = 87
	punched := pair("beijing.edge1", "beijing.edge2", Direct, 94*time.Second)
	punched.Paths = map[wire.NodeName]wire.Path{
		"beijing.edge1": {Kind: wire.PathPeerReflexive, Remote: addr("203.0.113.77:1721")},
		"beijing.edge2": {Kind: wire.PathServerReflexive, Remote: addr("203.0.113.20:4500")},
	}
	punched.Verdict = VerdictView{nat.Direct, nat.Probe,
		"beijing.edge2 is behind a symmetric NAT with random ports: beijing.edge1 looks for one of many it opens"}
	punched.Strategy, punched.Packets = nat.Probe, 437
	punched.Attempts, punched.TimeToDirectMs, punched.LastDirect = 2, 412, sampleNow
	offline := pair("beijing.edge1", "shanghai.edge3", Down, 26*time.Hour)
	offline.Verdict = VerdictView{nat.Relay, nat.ICE, "no common address family"}
	offline.Reason, offline.Attempts = "shanghai.edge3 is offline", 31
	relayed := pair("beijing.edge2", "beijing.edge8", Relayed, time.Minute)
	relayed.Verdict = VerdictView{nat.Direct, nat.ICE, "both ports are known"}
	relayed.Relay, relayed.Reason = "beijing.connector", "beijing.edge2: consent lost"
	relayed.Attempts, relayed.RetryAt = 3, sampleNow.Add(12*time.Second)
	retry := pair("beijing.edge2", "shanghai.edge4", Down, 10*time.Second)
	retry.Verdict = VerdictView{Expect: expectUnknown, Reason: "shanghai.edge4 has never been online, or was deleted: nothing is known of its NAT"}
	retry.Reason = "both NATs are symmetric (address-and-port-dependent mapping): the port to aim at changes per destination"
	retry.Attempts, retry.RetryAt = 7, sampleNow.Add(48*time.Second)

	return &fakeSource{
		snap: Snapshot{
			At:          sampleNow,
			Nodes:       []NodeView{connector, edge1, edge2, edge3},
			Communities: []Community{{Name: "all-edges", Members: []string{"beijing.edge1", "beijing.edge2", "shanghai.edge3", "shanghai.edge4"}}},
			Pairs:       []PairView{relay, punched, offline, relayed, retry},
		},
		history: map[string][]store.Observation{"beijing.edge1": {
			{Addr: addr("203.0.113.20:4500"), At: before(3 * time.Hour).UTC(), Last: before(14 * time.Second).UTC(), Means: "stun:3478"},
			{Addr: addr("203.0.113.9:4500"), At: before(50 * time.Hour).UTC(), Last: before(3 * time.Hour).UTC(), Means: "stun:3478"},
		}},
		sources:  map[string]string{"all-edges": "all-edges.yaml"},
		admitted: map[store.AdmissionState]int{store.Approved: 3, store.Pending: 1},
	}
}

// apiCall sends one request to h and returns the answer.
func apiCall(t *testing.T, h http.Handler, method, target string, change func(*http.Request)) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(method, "http://127.0.0.1:7480"+target, nil)
	if change != nil {
		change(r)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestAPILists(t *testing.T) {
	src := sampleSource()
	h := asViewer(src)

	var nodes NodeList
	getJSON(t, h, "/api/v1/nodes", &nodes)
	if u := nodes.Nodes[2].Usage; u == nil || u.Signalling != 812_345 || u.At.Location() != time.UTC {
		t.Errorf("usage: %+v", u)
	}
	if len(nodes.Nodes) != 4 || nodes.Nodes[1].Name != "beijing.edge1" || nodes.Nodes[1].Observed != src.snap.Nodes[1].Observed {
		t.Errorf("nodes: %+v", nodes.Nodes)
	}
	if got, want := nodes.Nodes[1].History, src.history["beijing.edge1"]; !reflect.DeepEqual(got, want) {
		t.Errorf("history %+v, want %+v", got, want)
	}

	var communities CommunityList
	getJSON(t, h, "/api/v1/communities", &communities)
	want := []CommunityView{{Name: "all-edges", Members: src.snap.Communities[0].Members, Punch: wire.PolicyAuto, Source: "all-edges.yaml"}}
	if !reflect.DeepEqual(communities.Communities, want) {
		t.Errorf("communities %+v, want %+v", communities.Communities, want)
	}

	var pairs PairList
	getJSON(t, h, "/api/v1/pairs", &pairs)
	if len(pairs.Pairs) != 5 || pairs.Pairs[3].Relay != "beijing.connector" || !reflect.DeepEqual(pairs.Pairs[1].Paths, src.snap.Pairs[1].Paths) {
		t.Errorf("pairs: %+v", pairs.Pairs)
	}
}

func getJSON(t *testing.T, h http.Handler, path string, into any) {
	t.Helper()
	w := apiCall(t, h, "GET", path, nil)
	if w.Code != http.StatusOK || w.Header().Get("Content-Type") != "application/json" {
		t.Fatalf("GET %s: %d, %s", path, w.Code, w.Header().Get("Content-Type"))
	}
	if err := json.Unmarshal(w.Body.Bytes(), into); err != nil {
		t.Fatalf("GET %s: %v", path, err)
	}
}

// The text of the answers is what scripts are written against.
func TestAPIGolden(t *testing.T) {
	h := asViewer(sampleSource())
	body := apiCall(t, h, "GET", "/api/v1/pairs", nil).Body.String()
	const want = `    {
      "id": "beijing.edge1|beijing.edge2",
      "nodes": [
        "beijing.edge1",
        "beijing.edge2"
      ],
      "communities": [
        "all-edges"
      ],
      "state": "direct",
      "since": "2024-05-17T12:28:26Z",
      "verdict": {
        "expect": "direct",
        "strategy": "probe",
        "reason": "beijing.edge2 is behind a symmetric NAT with random ports: beijing.edge1 looks for one of many it opens"
      },
      "paths": {
        "beijing.edge1": {
          "kind": "prflx",
          "remote": "203.0.113.77:1721"
        },
        "beijing.edge2": {
          "kind": "srflx",
          "remote": "203.0.113.20:4500"
        }
      },
      "punching": false,
      "attempts": 2,
      "strategy": "probe",
      "packets": 437,
      "timeToDirectMs": 412,
      "lastDirect": "2024-05-17T12:30:00Z"
    },
`
	if !strings.Contains(body, want) {
		t.Errorf("pairs:\n%s\nwant in it:\n%s", body, want)
	}
}

func TestAPIEmptyListsAreNoNull(t *testing.T) {
	h := asViewer(&fakeSource{})
	for _, list := range []string{"nodes", "communities", "pairs"} {
		body := apiCall(t, h, "GET", "/api/v1/"+list, nil).Body.String()
		if want := fmt.Sprintf("%q: []", list); !strings.Contains(body, want) {
			t.Errorf("%s: %s, want %s in it", list, body, want)
		}
	}
}

func TestRoutes(t *testing.T) {
	r := newSite(t).start()
	status, admin := r.server.statusHandler(), r.server.adminHandler()
	r.apply(community("all-edges", edge1, edge2))
	for _, tt := range []struct {
		handler      http.Handler
		method, path string
		code         int
		allow        string
	}{
		{status, "GET", "/", 200, ""},
		{status, "HEAD", "/", 200, ""},
		{status, "GET", "/login", 200, ""},
		{status, "GET", "/healthz", 200, ""},
		{status, "GET", "/readyz", 200, ""},
		{status, "GET", "/metrics", 200, ""},
		{status, "GET", "/nothing", 404, ""},
		{status, "GET", "/page/index.html", 404, ""},
		{status, "GET", "/api/v1/nothing", 404, ""},
		{status, "POST", "/", 405, "GET, HEAD"},
		{status, "POST", "/api/v1/nodes", 405, "GET, HEAD"},
		{status, "PUT", "/api/v1/communities", 403, ""},
		{status, "DELETE", "/api/v1/communities/all-edges", 403, ""},
		{admin, "GET", "/api/v1/communities", 200, ""},
		{admin, "PUT", "/api/v1/communities?file=a.yaml", 422, ""},
		{admin, "DELETE", "/api/v1/communities/all-edges", 204, ""},
		{admin, "POST", "/api/v1/communities", 405, "GET, HEAD, PUT"},
		{admin, "POST", "/login", 405, "GET, HEAD"},
	} {
		w := apiCall(t, tt.handler, tt.method, tt.path, nil)
		if w.Code != tt.code || w.Header().Get("Allow") != tt.allow {
			t.Errorf("%s %s: %d, Allow %q, want %d, %q", tt.method, tt.path, w.Code, w.Header().Get("Allow"), tt.code, tt.allow)
		}
		for _, header := range []string{"Content-Security-Policy", "X-Content-Type-Options", "Referrer-Policy", "Cache-Control"} {
			if w.Header().Get(header) == "" {
				t.Errorf("%s %s: no %s", tt.method, tt.path, header)
			}
		}
	}
}

func TestAPIErrors(t *testing.T) {
	for _, tt := range []struct {
		err  error
		code int
		text string
	}{
		{&CommunityError{File: "a.yaml", Document: 2, Field: "spec.members", Problem: "is empty"}, 422, "a.yaml: document 2: spec.members: is empty"},
		{fmt.Errorf("%w: limit", errInvalid), 422, "limit"},
		{fmt.Errorf("%w pairs", errTooMany), 422, "too many pairs"},
		{fmt.Errorf("community x: %w", store.ErrNotFound), 404, "community x: "},
		{fmt.Errorf("%w: kept in a file", ErrConflict), 409, "kept in a file"},
		{access.ErrUnauthenticated, 401, "bodkin access create"},
		{fmt.Errorf("%w: no", access.ErrForbidden), 403, "forbidden"},
		{&access.LimitedError{Wait: 11500 * time.Millisecond}, 429, "try again in 12s"},
		{fmt.Errorf("node x: %w", errNoAnswer), 504, "no answer"},
		{errStopped, 503, "stopping"},
		{errors.New("no space left on device"), 500, "no space left on device"},
	} {
		src := sampleSource()
		src.failing = tt.err
		h := asViewer(src)
		for _, path := range []string{"nodes", "pairs", "matrix", "communities", "forecast/all-edges"} {
			w := apiCall(t, h, "GET", "/api/v1/"+path, nil)
			var got apiError
			if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != tt.code || !strings.Contains(got.Error, tt.text) {
				t.Errorf("%s with %q: %d %s, want %d and that text", path, tt.err, w.Code, w.Body, tt.code)
			}
		}
	}
}

func TestReadiness(t *testing.T) {
	src := sampleSource()
	src.notReady = errors.New("store /var/lib/bodkin/rendezvous.db: no space left on device")
	h := asViewer(src)
	if w := apiCall(t, h, "GET", "/readyz", nil); w.Code != 503 || !strings.Contains(w.Body.String(), "no space left") {
		t.Errorf("readyz: %d %q", w.Code, w.Body)
	}
	if w := apiCall(t, h, "GET", "/healthz", nil); w.Code != 200 {
		t.Errorf("healthz of a process that lives: %d", w.Code)
	}
}

// A server answers what was applied and what is kept in files.
func TestHandlersOfServer(t *testing.T) {
	const document = "apiVersion: fabedge.io/v1alpha1\nkind: Community\nmetadata: {name: %s}\nspec: {members: [a.x, c.x]}\n"
	site := newSite(t)
	dir := t.TempDir()
	site.config.CommunitiesDir = dir
	write(t, filepath.Join(dir, "kept.yaml"), communityFileOf("kept", "a.x", "b.x"))
	r := site.start()
	admin, status := r.server.adminHandler(), r.server.statusHandler()
	put := func(name string) int {
		return apiCall(t, admin, "PUT", "/api/v1/communities?file=all%20mine.yaml", func(r *http.Request) {
			r.Body = io.NopCloser(strings.NewReader(fmt.Sprintf(document, name)))
		}).Code
	}
	for name, code := range map[string]int{"applied": 200, "kept": 409, "No-Name": 422} {
		if got := put(name); got != code {
			t.Errorf("PUT %s: %d, want %d", name, got, code)
		}
	}
	var list CommunityList
	getJSON(t, status, "/api/v1/communities", &list)
	want := []CommunityView{
		{Name: "applied", Members: []string{"a.x", "c.x"}, Punch: wire.PolicyAuto, Source: "all mine.yaml"},
		{Name: "kept", Members: []string{"a.x", "b.x"}, Punch: wire.PolicyAuto, Source: dir},
	}
	if !reflect.DeepEqual(list.Communities, want) {
		t.Errorf("communities %+v, want %+v", list.Communities, want)
	}
	var forecast Forecast
	getJSON(t, status, "/api/v1/forecast/kept", &forecast)
	if len(forecast.Pairs) != 1 || forecast.Summary.Unknown != 1 || forecast.At.IsZero() {
		t.Errorf("forecast %+v", forecast)
	}
	for name, code := range map[string]int{"applied": 204, "kept": 409, "unknown": 404} {
		if w := apiCall(t, admin, "DELETE", "/api/v1/communities/"+name, nil); w.Code != code {
			t.Errorf("DELETE %s: %d %s, want %d", name, w.Code, w.Body, code)
		}
	}
	if w := apiCall(t, status, "GET", "/metrics", nil); !strings.Contains(w.Body.String(), `bodkin_pairs{state="down"} 1`) {
		t.Errorf("metrics: %d\n%s", w.Code, w.Body)
	}
}
