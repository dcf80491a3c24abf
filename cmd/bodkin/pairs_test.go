package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/punch/nat"
	"github.com/bodkin-net/bodkin/rendezvous"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

const (
	edge1 = wire.NodeName("beijing.edge1")
	edge2 = wire.NodeName("beijing.edge2")
	edge3 = wire.NodeName("shanghai.edge3")
)

func at(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func directPair() rendezvous.PairView {
	return rendezvous.PairView{
		ID: "beijing.edge1|beijing.edge2", Nodes: [2]wire.NodeName{edge1, edge2}, Communities: []string{"all-edges"},
		State: rendezvous.Direct, Since: statusNow.Add(-time.Hour), TimeToDirectMs: 640, Attempts: 1, Strategy: "openers",
		Verdict: rendezvous.VerdictView{Expect: nat.Direct, Strategy: "openers", Reason: "both NATs keep one mapping"},
		Paths: map[wire.NodeName]wire.Path{
			edge1: {Kind: wire.PathServerReflexive, Local: at("192.168.1.2:4500"), Remote: at("203.0.113.9:4500")},
			edge2: {Kind: wire.PathPeerReflexive, Local: at("192.168.2.2:4500"), Remote: at("203.0.113.7:41000")},
		},
		LastDirect: statusNow.Add(-time.Hour),
	}
}

func relayedPair() rendezvous.PairView {
	return rendezvous.PairView{
		ID: "beijing.edge1|shanghai.edge3", Nodes: [2]wire.NodeName{edge1, edge3}, Communities: []string{"all-edges"},
		State: rendezvous.Relayed, Relay: "beijing.connector", Since: statusNow.Add(-time.Minute), Attempts: 4, RetryAt: statusNow.Add(42 * time.Second),
		Reason:  "both NATs give each peer another random port",
		Verdict: rendezvous.VerdictView{Expect: nat.Relay, Strategy: "none", Reason: "both NATs give each peer another random port"},
	}
}

func TestPrintPairs(t *testing.T) {
	pairs := []rendezvous.PairView{directPair(), relayedPair()}
	const want = `NODE           NODE            STATE    OVER               SINCE       TIME TO DIRECT  REASON
beijing.edge1  beijing.edge2   direct   srflx/prflx        1h0m0s ago  640 ms          -
beijing.edge1  shanghai.edge3  relayed  beijing.connector  1m0s ago    -               both NATs give each peer another random port

2 pairs: 1 direct, 1 relayed, 0 down
`
	if got := printed(func(p *printer) { printPairs(p, pairs) }); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	if got := printed(func(p *printer) { printPairs(p, nil) }); got != "no pairs\n" {
		t.Errorf("without pairs: %q", got)
	}
	wide := printed(func(p *printer) { p.wide = true; printPairs(p, pairs[:1]) })
	for _, word := range []string{"ATTEMPTS", "STRATEGY", "openers", "EXPECTED", "COMMUNITIES", "all-edges"} {
		if !strings.Contains(wide, word) {
			t.Errorf("wide lacks %q:\n%s", word, wide)
		}
	}
}

// failedAttempt is one that the second side has not told all of.
func failedAttempt() rendezvous.AttemptView {
	return rendezvous.AttemptView{
		ID: "9f2c", Pair: "beijing.edge1|shanghai.edge3", At: statusNow.Add(-time.Minute), Strategy: "openers", Outcome: rendezvous.AttemptFailed,
		Reason: "no packet of shanghai.edge3 came in", ElapsedMs: 10_213,
		Verdict: rendezvous.VerdictView{Expect: nat.Direct, Strategy: "openers", Reason: "one NAT is symmetric, the other a full cone"},
		Sides: map[wire.NodeName]*rendezvous.AttemptSide{
			edge1: {
				Role: wire.Controlling, NAT: wire.NAT{Present: true, Mapping: wire.EndpointIndependent, Filtering: wire.AddressAndPortDependent},
				Candidates: []wire.Candidate{{Kind: wire.Host, Addr: at("192.168.1.2:4500")}, {Kind: wire.ServerReflexive, Addr: at("203.0.113.7:41000")}},
				OffsetMs:   12, Outcome: wire.OutcomeFailed, Reason: "no packet of shanghai.edge3 came in", ElapsedMs: 10_200, Packets: 71,
				Steps: []wire.Step{
					{AtMs: 20, Kind: wire.StepStart}, {AtMs: 21, Kind: wire.StepOpeners, Remote: at("203.0.113.9:4500"), Count: 2},
					{AtMs: 121, Kind: wire.StepCheck, Remote: at("203.0.113.9:4500")}, {AtMs: 10_200, Kind: wire.StepFailed, Text: "no packet came in"},
				},
			},
			edge3: {
				Role: wire.Controlled, Part: wire.PartOpen, NAT: wire.NAT{Present: true, Mapping: wire.AddressAndPortDependent, Allocation: wire.Random},
				Candidates: []wire.Candidate{{Kind: wire.ServerReflexive, Addr: at("203.0.113.9:4500")}}, OffsetMs: 30,
				Steps: []wire.Step{{AtMs: 3, Kind: wire.StepStart}, {AtMs: 60, Kind: "levitates", Text: "of a newer agent"}},
			},
		},
	}
}

func TestPrintPairDetail(t *testing.T) {
	d := rendezvous.PairDetail{Pair: relayedPair(), Attempts: []rendezvous.AttemptView{failedAttempt(), {
		ID: "77aa", Pair: "beijing.edge1|shanghai.edge3", At: statusNow.Add(-time.Hour), Outcome: rendezvous.AttemptCancelled, Hopeless: "two random NATs",
		Reason: "shanghai.edge3 went away",
	}}}
	const want = `pair        beijing.edge1 and shanghai.edge3
state       relayed through beijing.connector, since 1m0s ago
reason      both NATs give each peer another random port
expected    relay: both NATs give each peer another random port
communities all-edges
next        in 42s (bodkin punch beijing.edge1 shanghai.edge3 does it now)

attempt 9f2c  2024-02-01T07:59:00Z  openers: failed after 10213 ms
  no packet of shanghai.edge3 came in
  expected: direct, one NAT is symmetric, the other a full cone
  beijing.edge1: controlling, NAT port-restricted, 71 packets sent
    candidates  host 192.168.1.2[4500], srflx 203.0.113.7[41000]
    result      failed after 10200 ms: no packet of shanghai.edge3 came in
  shanghai.edge3: controlled, opens ports, NAT symmetric random
    candidates  srflx 203.0.113.9[4500]
    result      has not told
    MS  beijing.edge1                     shanghai.edge3
    32  starts
    33  2 × openers to 203.0.113.9[4500]
    33                                    starts
    90                                    levitates: of a newer agent
   133  first check to 203.0.113.9[4500]
 10212  gives up: no packet came in

1 attempt before: --attempts 0
`
	if got := printed(func(p *printer) { printPairDetail(p, d, 1) }); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	all := printed(func(p *printer) { printPairDetail(p, d, 0) })
	if !strings.Contains(all, "attempt 77aa  2024-02-01T07:00:00Z  no path expected: cancelled after 0 ms\n  shanghai.edge3 went away\n  cut short, for it was not expected to succeed: two random NATs\n") ||
		strings.Contains(all, "--attempts 0") {
		t.Errorf("all attempts:\n%s", all)
	}
	direct := printed(func(p *printer) { printPairDetail(p, rendezvous.PairDetail{Pair: directPair()}, 0) })
	if !strings.Contains(direct, "path        beijing.edge1: srflx 203.0.113.9[4500], from 192.168.1.2[4500]\n") || !strings.Contains(direct, "took        640 ms\n") {
		t.Errorf("direct:\n%s", direct)
	}
}

// A port found here has no remote address; attempts without hope name no strategy.
func TestStepText(t *testing.T) {
	for _, tt := range []struct {
		step wire.Step
		want string
	}{
		{wire.Step{Kind: wire.StepHit, Text: "port 48931 of this node"}, "found port 48931 of this node"},
		{wire.Step{Kind: wire.StepHit, Remote: at("203.0.113.9:48931")}, "found 203.0.113.9[48931]"},
		{wire.Step{Kind: wire.StepFailed, Text: "no packet came in"}, "gives up: no packet came in"},
	} {
		if got := stepText(tt.step); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}

// A name without its cluster is good if one node has it.
func TestNameInFull(t *testing.T) {
	var known []rendezvous.NodeHistory
	for _, name := range []wire.NodeName{edge1, edge2, "shanghai.edge2", edge3, "edge3"} {
		known = append(known, rendezvous.NodeHistory{NodeView: rendezvous.NodeView{Name: name}})
	}
	for name, want := range map[string]string{"edge1": string(edge1), "edge3": "edge3", string(edge2): string(edge2), "edge9": "edge9", "dge1": "dge1", "beijing.edge9": "beijing.edge9"} {
		if got, err := nameInFull(name, known); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, want)
		}
	}
	if got, err := nameInFull("edge2", known); err == nil || !strings.Contains(err.Error(), "want beijing.edge2 or shanghai.edge2") {
		t.Errorf("edge2: %q, %v", got, err)
	}
	socket := daemon(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/api/v1/nodes" {
			_ = json.NewEncoder(w).Encode(rendezvous.NodeList{Nodes: known})
			return
		}
		http.Error(w, `{"error":"asked for `+r.URL.Path+`"}`, http.StatusNotFound)
	})
	if _, err := run(t, "", "pair", "show", "edge1", string(edge3), "--socket", socket); err == nil || !strings.Contains(err.Error(), "/beijing.edge1/shanghai.edge3") {
		t.Errorf("%v", err)
	}
}

func TestPrintNodes(t *testing.T) {
	nodes := []rendezvous.NodeHistory{
		{NodeView: rendezvous.NodeView{Name: "beijing.connector", Online: true, Since: statusNow.Add(-time.Hour), Endpoint: wire.Endpoint{Type: wire.Connector}, Observed: at("10.40.20.181:4500")}},
		{NodeView: rendezvous.NodeView{Name: edge1, Online: true, Since: statusNow.Add(-time.Minute), Observed: at("203.0.113.7:41000"), Metered: true,
			NAT: wire.NAT{Present: true, Mapping: wire.EndpointIndependent, Filtering: wire.AddressAndPortDependent}}},
		{NodeView: rendezvous.NodeView{Name: edge3, LastSeen: statusNow.Add(-2 * time.Hour), NAT: wire.NAT{Blocked: "no answer over UDP"}}},
		{NodeView: rendezvous.NodeView{Name: "beijing.edge4", LastSeen: statusNow.Add(-time.Hour), Admission: store.Revoked, Refusal: "subnets"}},
		{NodeView: rendezvous.NodeView{Name: "beijing.edge5", LastSeen: statusNow.Add(-time.Hour), Admission: store.Pending}},
	}
	const want = `NODE               STATE    SINCE       OBSERVED            NAT              NOTE
beijing.connector  online   1h0m0s ago  10.40.20.181[4500]  none             connector
beijing.edge1      online   1m0s ago    203.0.113.7[41000]  port-restricted  metered
shanghai.edge3     offline  2h0m0s ago  -                   blocked          UDP is blocked: no answer over UDP
beijing.edge4      offline  1h0m0s ago  -                   unknown          revoked: stays out until bodkin node delete
beijing.edge5      offline  1h0m0s ago  -                   unknown          waits for bodkin node approve

5 nodes, 2 online
`
	if got := printed(func(p *printer) { printNodes(p, nodes) }); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestNATShort(t *testing.T) {
	here := at("203.0.113.7:4500")
	for want, n := range map[string]wire.NAT{
		"unknown":              {Present: true},
		"none":                 {},
		"full cone":            {Present: true, Mapping: wire.EndpointIndependent, Filtering: wire.EndpointIndependent},
		"address-restricted":   {Present: true, Mapping: wire.EndpointIndependent, Filtering: wire.AddressDependent},
		"cone":                 {Present: true, Mapping: wire.EndpointIndependent},
		"symmetric sequential": {Present: true, Mapping: wire.AddressAndPortDependent, Allocation: wire.Sequential},
		"symmetric":            {Present: true, Mapping: wire.AddressDependent},
	} {
		if got := natShort(n, here); got != want {
			t.Errorf("%+v: %q; want %q", n, got, want)
		}
	}
}

// pairAPI is a rendezvous that punches a pair: the events come as a stream, and
// the pair is then as after says.
func pairAPI(t *testing.T, events []rendezvous.EventView, after rendezvous.PairView) (socket string) {
	t.Helper()
	return daemon(t, func(w http.ResponseWriter, r *http.Request) {
		answer := func(v any) {
			if err := json.NewEncoder(w).Encode(v); err != nil {
				t.Error(err)
			}
		}
		switch r.Method + " " + r.URL.RequestURI() {
		case "POST /api/v1/pairs/beijing.edge1/beijing.edge2/punch":
			answer(rendezvous.PunchOrder{Pair: after, After: 7})
		case "GET /api/v1/events/stream?after=7&pair=beijing.edge1%7Cbeijing.edge2":
			fmt.Fprint(w, ": here\n\n")
			for _, e := range events {
				b, err := json.Marshal(e)
				if err != nil {
					t.Error(err)
				}
				fmt.Fprintf(w, "id: %d\ndata: %s\n\n", e.ID, b)
			}
			if f, ok := w.(http.Flusher); ok {
				f.Flush()
			}
			<-r.Context().Done() // streams do not end by themselves
		case "GET /api/v1/pairs/beijing.edge1/beijing.edge2":
			answer(rendezvous.PairDetail{Pair: after, Attempts: []rendezvous.AttemptView{{ID: "2"}, {ID: "1"}}})
		default:
			t.Errorf("asked for %s %s", r.Method, r.URL.RequestURI())
			http.NotFound(w, r)
		}
	})
}

func TestPunch(t *testing.T) {
	const pair = "beijing.edge1|beijing.edge2"
	ordered := rendezvous.EventView{ID: 8, Kind: rendezvous.EventAttempt, Pair: pair, State: "running", Text: "punching by openers"}
	other := rendezvous.EventView{ID: 9, Kind: rendezvous.EventPair, Pair: pair, State: "relayed", Text: "relayed: punching"}
	failed := relayedPair()
	failed.ID, failed.Nodes = pair, [2]wire.NodeName{edge1, edge2}
	for _, tt := range []struct {
		name  string
		end   rendezvous.EventView
		after rendezvous.PairView
		code  int
		want  []string
	}{
		{"direct", rendezvous.EventView{ID: 10, Kind: rendezvous.EventPair, Pair: pair, State: "direct", Text: "direct in 640 ms"}, directPair(), exitOK,
			[]string{"s  punching by openers\n", "s  direct in 640 ms\n", "direct: beijing.edge1 and beijing.edge2 over srflx/prflx in 640 ms\n", "beijing.edge1  srflx 203.0.113.9[4500]\n"}},
		{"failed", rendezvous.EventView{ID: 10, Kind: rendezvous.EventAttempt, Pair: pair, State: "failed", Text: "failed after 10 s"}, failed, exitProblems,
			[]string{"s  failed after 10 s\n", "relayed: both NATs give each peer another random port\n"}},
	} {
		socket := pairAPI(t, []rendezvous.EventView{ordered, other, tt.end}, tt.after)
		out, err := run(t, "", "punch", "--socket", socket, "beijing.edge1", "beijing.edge2")
		if exitCode(err) != tt.code {
			t.Errorf("%s: %v, exit code %d; want %d", tt.name, err, exitCode(err), tt.code)
		}
		for _, want := range tt.want {
			if !strings.Contains(out, want) {
				t.Errorf("%s: the output lacks %q:\n%s", tt.name, want, out)
			}
		}
		out, err = run(t, "", "punch", "--socket", socket, "beijing.edge1", "beijing.edge2", "-o", "json")
		var d rendezvous.PairDetail
		if exitCode(err) != tt.code || json.Unmarshal([]byte(out), &d) != nil || d.Pair.State != tt.after.State || len(d.Attempts) != 1 {
			t.Errorf("%s as JSON: %v\n%s", tt.name, err, out)
		}
	}
}

func TestEvents(t *testing.T) {
	socket := daemon(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RequestURI() != "/api/v1/events?limit=2&node=beijing.edge1&pair=beijing.edge1%7Cbeijing.edge2" {
			t.Errorf("asked for %s", r.URL.RequestURI())
		}
		fmt.Fprint(w, `{"at": "2024-02-01T08:00:00Z", "events": [
			{"id": 9, "at": "2024-02-01T08:00:00Z", "kind": "pair", "pair": "beijing.edge1|beijing.edge2", "state": "direct", "text": "direct over srflx"},
			{"id": 8, "at": "2024-02-01T07:59:58Z", "kind": "node", "node": "beijing.edge1", "text": "came online"}]}`)
	})
	args := []string{"events", "--socket", socket, "--limit", "2", "--node", "beijing.edge1", "--pair", "beijing.edge2,beijing.edge1"}
	out, err := run(t, "", args...)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if err != nil || len(lines) != 2 || !strings.HasSuffix(lines[0], "  node       beijing.edge1  came online") ||
		!strings.HasSuffix(lines[1], "  pair       beijing.edge1 beijing.edge2  direct  direct over srflx") {
		t.Errorf("%v\n%s", err, out)
	}
	out, err = run(t, "", append(args, "-o", "json")...)
	var list rendezvous.EventList
	if err != nil || json.Unmarshal([]byte(out), &list) != nil || list.Events[0].ID != 9 {
		t.Errorf("JSON, newest first as the API has it: %v\n%s", err, out)
	}
	for args, want := range map[string]string{
		"events --pair beijing.edge1":       "want NODE,NODE",
		"events --limit 0":                  "want 1 or more",
		"pairs --state punched":             "want direct, relayed, down or punching",
		"ping beijing.edge2 -c 0":           "want at least one",
		"ping beijing.edge2 -W 1h":          "at most",
		"pair show beijing.edge1":           "bodkin pair show",
		"punch beijing.edge1":               "bodkin punch",
		"bundle --file /nonexistent/x.tar":  "/nonexistent",
		"completion elvish --no-such-thing": "unknown flag",
	} {
		if _, err := run(t, "", strings.Fields(args)...); exitCode(err) != exitConfig || !strings.Contains(err.Error(), want) {
			t.Errorf("bodkin %s: %v, exit code %d; want %q", args, err, exitCode(err), want)
		}
	}
}

// A stream that breaks is opened again after the last event that came, and being
// interrupted is how following ends.
func TestFollowEvents(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	event := func(id int) string {
		return fmt.Sprintf(`{"id": %d, "at": "2024-02-01T08:00:00Z", "kind": "node", "node": "beijing.edge1", "text": "event %d"}`, id, id)
	}
	socket := daemon(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.RequestURI() {
		case "/api/v1/events?limit=50":
			fmt.Fprintf(w, `{"at": "2024-02-01T08:00:00Z", "events": [%s, %s]}`, event(2), event(1))
		case "/api/v1/events/stream?after=2":
			fmt.Fprintf(w, ": hello\n\nid: 3\ndata: %s\n\n", event(3)) // and ends
		case "/api/v1/events/stream?after=3":
			fmt.Fprintf(w, "id: 4\ndata: %s\n\n", event(4))
			if f, ok := w.(http.Flusher); ok {
				f.Flush()
			}
			<-r.Context().Done()
		default:
			t.Errorf("asked for %s", r.URL.RequestURI())
			interrupt()
		}
	})
	var out strings.Builder
	root := newRoot()
	root.SetArgs([]string{"events", "--follow", "--socket", socket, "-o", "json"})
	root.SetOut(writerFunc(func(b []byte) (int, error) {
		out.Write(b)
		if strings.Contains(out.String(), "event 4") {
			interrupt()
		}
		return len(b), nil
	}))
	if err := root.ExecuteContext(ctx); err != nil {
		t.Error(err)
	}
	var texts []string
	for line := range strings.SplitSeq(strings.TrimSpace(out.String()), "\n") {
		var e rendezvous.EventView
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Errorf("%q: %v", line, err)
		}
		texts = append(texts, e.Text)
	}
	if got := strings.Join(texts, ", "); got != "event 1, event 2, event 3, event 4" {
		t.Errorf("followed %s", got)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
