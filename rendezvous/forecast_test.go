package rendezvous

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"github.com/bodkin-net/bodkin/punch/nat"
	"github.com/bodkin-net/bodkin/rendezvous/access"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// registry is what four nodes are known by: one that is open, two behind
// symmetric NATs, and one of them offline.
func registry(t *testing.T) map[wire.NodeName]*known {
	t.Helper()
	m := newMachine(t)
	m.join(edge1, edge2, edge3, connector)
	for name, n := range map[wire.NodeName]wire.NAT{edge1: portRestricted, edge2: symmetric, edge3: symmetric} {
		m.tell(name, n)
	}
	m.Offline(m.now, edge3)
	nodes := map[wire.NodeName]*known{}
	for name, n := range m.nodes {
		nodes[name] = n.known()
	}
	return nodes
}

func TestForecast(t *testing.T) {
	asked := community("new", connector, edge1, edge2, edge3, edge4)
	pairs := newForecast([]Community{asked}, nil, registry(t))
	got := map[wire.PairID]string{}
	for _, p := range pairs {
		got[wire.NewPairID(string(p.Nodes[0]), string(p.Nodes[1]))] = fmt.Sprint(p.Verdict.Expect, " ", p.Verdict.Strategy, " ", p.Offline)
	}
	id := func(a, b wire.NodeName) wire.PairID { return wire.NewPairID(string(a), string(b)) }
	want := map[wire.PairID]string{
		id(connector, edge1): "direct public []", id(connector, edge2): "direct public []", id(connector, edge3): "direct public [beijing.edge3]",
		id(connector, edge4): "unknown  []",
		id(edge1, edge2):     "direct probe []", id(edge1, edge3): "direct probe [beijing.edge3]", id(edge2, edge3): "relay ice [beijing.edge3]",
		id(edge1, edge4): "unknown  []", id(edge2, edge4): "unknown  []", id(edge3, edge4): "unknown  [beijing.edge3]",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v\nwant %v", got, want)
	}
	wantSummary := ForecastSummary{Pairs: 10, Direct: 5, Relay: 1, Unknown: 4, Reasons: []ForecastReason{
		{nat.Relay, "both NATs are symmetric with random ports: neither side's port can be known or found", 1},
		{expectUnknown, "shanghai.edge4 has never been online, or was deleted: nothing is known of its NAT", 4},
	}}
	if got := summarise(pairs); !reflect.DeepEqual(got, wantSummary) {
		t.Errorf("%+v\nwant %+v", got, wantSummary)
	}
}

// A forecast counts the policies of all communities the two would share.
func TestForecastPolicies(t *testing.T) {
	quiet, other := community("quiet", edge1, edge2), community("other", edge1, edge2)
	quiet.Punch = wire.PolicyNever
	lifted := community("quiet", edge1, edge2)
	for _, tt := range []struct {
		name           string
		asked, inForce []Community
		want           nat.Strategy
	}{
		{"of the file", []Community{quiet}, nil, nat.None},
		{"of another in force", []Community{other}, []Community{quiet}, nat.None},
		{"of the one it replaces", []Community{lifted}, []Community{quiet}, nat.Probe},
		{"of none", []Community{other}, nil, nat.Probe},
	} {
		if got := newForecast(tt.asked, tt.inForce, registry(t)); len(got) != 1 || got[0].Verdict.Strategy != tt.want {
			t.Errorf("%s: %+v, want %s", tt.name, got, tt.want)
		}
	}
}

func TestForecastRoutes(t *testing.T) {
	src := sampleSource()
	src.known = registry(t)
	status, admin := asViewer(src), as(access.Socket, src, newMetrics())
	body := func(text string, header ...string) func(*http.Request) {
		return func(r *http.Request) {
			r.Body = io.NopCloser(strings.NewReader(text))
			for i := 0; i < len(header); i += 2 {
				r.Header.Set(header[i], header[i+1])
			}
		}
	}
	good := communityFileOf("east", "beijing.edge1", "beijing.edge2")
	for _, tt := range []struct {
		name, method, path string
		change             func(*http.Request)
		code               int
		text               string // in the answer
	}{
		{"a file", "POST", "/api/v1/forecast?file=a.yaml", body(good), 200, `"strategy": "probe"`},
		{"a file that is wrong", "POST", "/api/v1/forecast?file=a.yaml", body("kind: Community"), 422, "a.yaml: document 1"},
		{"a file that is too large", "POST", "/api/v1/forecast", body(strings.Repeat("#", maxCommunityFile+1)), 422, "larger than"},
		{"sent by another site's page", "POST", "/api/v1/forecast", body(good, "Sec-Fetch-Site", "cross-site"), 403, ""},
		{"sent by another origin", "POST", "/api/v1/forecast", body(good, "Origin", "http://attacker.example"), 403, ""},
		{"sent by the page itself", "POST", "/api/v1/forecast", body(good, "Sec-Fetch-Site", "same-origin"), 200, `"relay": 0`},
		{"in force", "GET", "/api/v1/forecast/all-edges", nil, 200, `"pairs": 6`},
		{"of no community", "GET", "/api/v1/forecast/west", nil, 404, "community west"},
	} {
		for i, h := range []http.Handler{status, admin} {
			w := apiCall(t, h, tt.method, tt.path, tt.change)
			if w.Code != tt.code || !strings.Contains(w.Body.String(), tt.text) {
				t.Errorf("%s, handler %d: %d %s, want %d, %s", tt.name, i, w.Code, w.Body, tt.code, tt.text)
			}
			if w.Code == 200 && json.Unmarshal(w.Body.Bytes(), new(Forecast)) != nil {
				t.Errorf("%s: %s", tt.name, w.Body)
			}
		}
	}
}

// One file may hold many communities; the answer is bounded all the same.
func TestForecastIsBounded(t *testing.T) {
	r := newSite(t).start()
	many := Community{Name: "many"}
	for i := range maxMembers {
		many.Members = append(many.Members, fmt.Sprintf("beijing.edge%d", i))
	}
	if f, err := r.server.forecast(t.Context(), []Community{many}); err != nil || f.Summary.Unknown != maxForecast {
		t.Errorf("the largest community: %+v, %v", f.Summary, err)
	}
	if _, err := r.server.forecast(t.Context(), []Community{many, community("two", edge1, edge2)}); statusOf(err) != http.StatusUnprocessableEntity {
		t.Errorf("one more: %v", err)
	}
}
