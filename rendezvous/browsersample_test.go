package rendezvous

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/punch/nat"
	"github.com/bodkin-net/bodkin/rendezvous/access"
	"github.com/bodkin-net/bodkin/rendezvous/page"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

// sampleCluster is 300 nodes that serve the page with what a long life would have
// to show: answers of the API in its own types, made up.
type sampleCluster struct {
	*httptest.Server
	mu       sync.Mutex
	now      time.Time
	overview Overview
	nodes    []NodeHistory
	pairs    []PairView
	matrix   Matrix
	events   []EventView // newest first
	detail   map[wire.PairID]PairDetail
	identity Identity
	follow   chan EventView
	punched  chan wire.PairID
}

// send adds an event and streams it.
func (s *sampleCluster) send(e EventView) {
	s.mu.Lock()
	e.ID, e.At = s.events[0].ID+1, time.Now().UTC()
	s.events = append([]EventView{e}, s.events...)
	s.mu.Unlock()
	s.follow <- e
}

func newSampleCluster(t *testing.T, edges int) *sampleCluster {
	t.Helper()
	s := &sampleCluster{now: time.Now().UTC().Truncate(time.Second), identity: Identity{Who: "loopback", Role: access.Viewer},
		detail: map[wire.PairID]PairDetail{}, follow: make(chan EventView, 100), punched: make(chan wire.PairID, 10)}
	random := rand.New(rand.NewPCG(1, 2))
	s.addNodes(edges)
	s.addPairs(random)
	s.addHistory(random)
	s.Server = httptest.NewServer(s.routes())
	t.Cleanup(s.Close)
	return s
}

// routes are the API's, as far as the page reads it.
func (s *sampleCluster) routes() http.Handler {
	mux := http.NewServeMux()
	get := func(path string, answer func(r *http.Request) any) {
		mux.HandleFunc("GET /api/v1/"+path, func(w http.ResponseWriter, r *http.Request) {
			s.mu.Lock()
			defer s.mu.Unlock()
			w.Header().Set("Content-Type", "application/json")
			v := answer(r)
			if v == nil {
				w.WriteHeader(http.StatusNotFound)
				v = apiError{Error: r.URL.Path + ": not found"}
			}
			_, _ = w.Write(mustJSON(v))
		})
	}
	get("overview", func(*http.Request) any { return s.overview })
	get("whoami", func(*http.Request) any { return s.identity })
	get("nodes", func(*http.Request) any { return NodeList{At: time.Now().UTC(), Nodes: s.nodes} })
	get("nodes/{name}", func(r *http.Request) any { return s.node(r.PathValue("name")) })
	get("pairs", func(r *http.Request) any { return s.list(r) })
	get("pairs/{a}/{b}", func(r *http.Request) any {
		id := wire.NewPairID(r.PathValue("a"), r.PathValue("b"))
		if d, ok := s.detail[id]; ok {
			return d
		}
		for _, p := range s.pairs {
			if p.ID == id {
				return PairDetail{At: time.Now().UTC(), Pair: p, Attempts: []AttemptView{}}
			}
		}
		return nil
	})
	get("matrix", func(*http.Request) any { return s.matrix })
	get("events", func(*http.Request) any { return EventList{At: time.Now().UTC(), Events: s.events} })
	get("communities", func(*http.Request) any {
		members := []string{"beijing.spare-7"}
		for _, n := range s.nodes {
			members = append(members, string(n.Name))
		}
		return CommunityList{At: time.Now().UTC(), Communities: []CommunityView{
			{Name: "all-edges", Members: members, Punch: wire.PolicyAuto, Source: "all-edges.yaml"},
			{Name: "tills", Members: members[1:4], Punch: wire.PolicyICEOnly, Source: "tills.yaml"},
		}}
	})
	mux.HandleFunc("POST /api/v1/pairs/{a}/{b}/punch", func(w http.ResponseWriter, r *http.Request) {
		id := wire.NewPairID(r.PathValue("a"), r.PathValue("b"))
		s.mu.Lock()
		after := s.events[0].ID
		s.mu.Unlock()
		_, _ = w.Write(mustJSON(PunchOrder{Pair: s.detail[id].Pair, After: after}))
		s.punched <- id
	})
	mux.HandleFunc("GET /api/v1/events/stream", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for {
			fmt.Fprint(w, ":\n\n")
			w.(http.Flusher).Flush()
			select {
			case <-r.Context().Done():
				return
			case e := <-s.follow:
				fmt.Fprintf(w, "id: %d\ndata: %s\n\n", e.ID, mustJSON(e))
			}
		}
	})
	mux.Handle("GET /", page.Handler())
	return harden(mux)
}

func (s *sampleCluster) list(r *http.Request) PairList {
	q := r.URL.Query()
	limit, _ := strconv.Atoi(q.Get("limit"))
	list := PairList{At: time.Now().UTC(), Pairs: []PairView{}}
	for _, p := range s.pairs {
		state := q.Get("state") == "" || q.Get("state") == string(p.State) || q.Get("state") == "punching" && p.Punching
		node := q.Get("node") == "" || slices.Contains(p.Nodes[:], wire.NodeName(q.Get("node")))
		if reason := q.Get("reason"); state && node && (reason == "" || reason == p.Reason) && (limit == 0 || len(list.Pairs) < limit) {
			list.Pairs = append(list.Pairs, p)
		}
	}
	return list
}

func (s *sampleCluster) node(name string) any {
	for _, n := range s.nodes {
		if string(n.Name) == name {
			d := NodeDetail{NodeHistory: n, Admission: AdmissionView{State: store.Approved, Since: s.now.Add(-90 * 24 * time.Hour), By: "unix socket", Note: "till in the west wing"},
				Certificates: []store.Certificate{{Serial: "3f0a77c1d2", Node: name, NotBefore: s.now.Add(-30 * 24 * time.Hour), NotAfter: s.now.Add(60 * 24 * time.Hour)}}}
			for _, p := range s.pairs {
				if slices.Contains(p.Nodes[:], n.Name) {
					count(&d.Pairs, p)
				}
			}
			return d
		}
	}
	return nil
}

func count(c *PairCounts, p PairView) {
	c.Total++
	switch p.State {
	case Direct:
		c.Direct++
	case Relayed:
		c.Relayed++
	default:
		c.Down++
	}
	if p.Punching {
		c.Punching++
	}
}

var sampleClusters = []string{"beijing", "chengdu", "guangzhou", "hangzhou", "shanghai", "shenzhen"}

func (s *sampleCluster) addNodes(edges int) {
	nats := []wire.NAT{
		{Present: true, Mapping: wire.EndpointIndependent, Filtering: wire.AddressAndPortDependent, Allocation: wire.Preserving, Poisoned: wire.No, LifetimeSeconds: 120, Hops: 2},
		{Present: true, Mapping: wire.EndpointIndependent, Filtering: wire.EndpointIndependent, Hairpin: wire.Yes},
		{Present: true, Mapping: wire.AddressAndPortDependent, Filtering: wire.AddressAndPortDependent, Allocation: wire.Random},
		{Present: true, Mapping: wire.AddressAndPortDependent, Filtering: wire.AddressAndPortDependent, Allocation: wire.Sequential, Step: 2},
		{Mapping: wire.EndpointIndependent, Filtering: wire.AddressAndPortDependent},
		{Blocked: "no answer over UDP from any port"},
	}
	for i := range edges {
		name := fmt.Sprintf("%s.edge%02d", sampleClusters[i*len(sampleClusters)/edges], i%((edges+5)/6)+1)
		n := NodeView{
			Name: wire.NodeName(name), Online: i%43 != 7, Since: s.now.Add(-time.Duration(i*i%4000) * time.Minute),
			Endpoint:     wire.Endpoint{Name: wire.NodeName(name), Type: wire.Edge, ID: "O=bodkin, CN=" + name, Subnets: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)}},
			AgentVersion: "0.5.0", Fingerprint: "5f1c8d20aa41", NAT: nats[[]int{0, 0, 0, 1, 0, 2, 0, 3, 4, 0, 1, 0}[i%12]],
			Observed: netip.AddrPortFrom(sampleAddr(i), 4500), ObservedAt: s.now.Add(-20 * time.Second), ObservedBy: "stun:3478",
		}
		if i == 11 {
			n.NAT = nats[5]
		}
		if i%29 == 3 {
			n.Metered, n.Usage = true, &UsageView{At: s.now, Seconds: 3600, Signalling: 812_345, STUN: 9000, Peers: map[wire.NodeName]int64{"a.b": 600_000}}
		}
		h := []store.Observation{{Addr: n.Observed, At: s.now.Add(-9 * time.Hour), Last: s.now.Add(-20 * time.Second), Means: "stun:3478"},
			{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 31744), At: s.now.Add(-50 * time.Hour), Last: s.now.Add(-9 * time.Hour), Means: "stun:3478"}}
		s.nodes = append(s.nodes, NodeHistory{n, h})
		s.overview.Nodes.Total++
		if n.Online {
			s.overview.Nodes.Online++
		}
	}
}

// sampleAddr is a public address of a node's own.
func sampleAddr(i int) netip.Addr {
	if i < 250 {
		return netip.AddrFrom4([4]byte{203, 0, 113, byte(i + 1)})
	}
	return netip.AddrFrom4([4]byte{198, 51, 100, byte(i - 249)})
}

func (s *sampleCluster) addPairs(random *rand.Rand) {
	reasons := map[string]int{}
	m := Matrix{At: s.now}
	for i, a := range s.nodes {
		m.Nodes = append(m.Nodes, a.Name)
		m.Online += map[bool]string{true: "1", false: "0"}[a.Online]
		var row strings.Builder
		for _, b := range s.nodes[:i] {
			p, cell := samplePair(random, s.now, b.NodeView, a.NodeView)
			row.WriteByte(cell)
			s.pairs = append(s.pairs, p)
			count(&s.overview.Pairs, p)
			if p.State != Direct {
				reasons[string(p.State)+"|"+p.Reason]++
			}
		}
		m.Rows = append(m.Rows, row.String())
	}
	s.matrix = m
	for key, n := range reasons {
		state, reason, _ := strings.Cut(key, "|")
		s.overview.Reasons = append(s.overview.Reasons, ReasonCount{State(state), reason, n})
	}
	slices.SortFunc(s.overview.Reasons, func(a, b ReasonCount) int {
		if a.Pairs != b.Pairs {
			return b.Pairs - a.Pairs
		}
		return strings.Compare(a.Reason, b.Reason)
	})
	s.overview.Reasons = s.overview.Reasons[:min(len(s.overview.Reasons), overviewReasons)]
}

// sampleVerdict is what the rendezvous would expect of two nodes.
func sampleVerdict(a, b NodeView) VerdictView {
	site := func(n NodeView) nat.Site {
		return nat.Site{Name: string(n.Name), NAT: natOf(n.NAT), V4: true, Public: n.Observed.Addr()}
	}
	return viewOf(nat.Judge(site(a), site(b)))
}

// samplePathTo is how others reach a node directly.
func samplePathTo(n NodeView) wire.Path {
	if natOf(n.NAT).Symmetric() {
		return wire.Path{Kind: wire.PathPeerReflexive, Remote: netip.AddrPortFrom(n.Observed.Addr(), 61804)}
	}
	return wire.Path{Kind: wire.PathServerReflexive, Remote: n.Observed}
}

func samplePair(random *rand.Rand, now time.Time, a, b NodeView) (PairView, byte) {
	verdict := sampleVerdict(a, b)
	p := PairView{
		ID: wire.NewPairID(string(a.Name), string(b.Name)), Nodes: [2]wire.NodeName{min(a.Name, b.Name), max(a.Name, b.Name)}, Communities: []string{"all-edges"},
		State: Direct, Since: now.Add(-time.Duration(random.IntN(90_000)) * time.Second), Attempts: 1, TimeToDirectMs: 412, LastDirect: now,
		Verdict: verdict, Strategy: verdict.Strategy,
		Paths: map[wire.NodeName]wire.Path{a.Name: samplePathTo(b), b.Name: samplePathTo(a)},
	}
	switch {
	case !a.Online || !b.Online:
		offline := a.Name
		if a.Online {
			offline = b.Name
		}
		p.State, p.Reason, p.Paths, p.LastDirect = Down, string(offline)+" is offline", nil, p.Since
		return p, 'x'
	case verdict.Expect == nat.Relay:
		p.State, p.Reason, p.LastDirect = Relayed, verdict.Reason, time.Time{}
	case random.IntN(400) == 0:
		p.State, p.Reason, p.LastDirect, p.RetryAt = Relayed, "consent lost", p.Since, now.Add(40*time.Second)
		if random.IntN(3) == 0 {
			p.Punching, p.Relay = true, "beijing.connector"
			return p, 'R'
		}
	default:
		return p, 'd'
	}
	p.Relay, p.Paths, p.TimeToDirectMs = "beijing.connector", nil, 0
	return p, 'r'
}

func (s *sampleCluster) addHistory(random *rand.Rand) {
	o := &s.overview
	o.At, o.Version, o.Since = s.now, "0.5.0", s.now.Add(-73*time.Hour)
	direct, failed := 0, 0
	for i := range 24 {
		h := HourView{Start: s.now.Truncate(time.Hour).Add(time.Duration(i-23) * time.Hour), Direct: 30 + random.IntN(90), Failed: random.IntN(14)}
		if i == 9 {
			h.Direct, h.Failed = 520, 61
		}
		direct, failed = direct+h.Direct, failed+h.Failed
		o.Hours = append(o.Hours, h)
	}
	rate := float64(direct) / float64(direct+failed)
	o.SuccessRate = &rate
	o.TimeToDirect = Distribution{LeMs: []int{100, 250, 500, 1000, 2000, 5000, 10000}, Counts: []int{12, 160, 940, 610, 220, 66, 20, 4}, MedianMs: 500, P95Ms: 2000}
	texts := []EventView{
		{Kind: EventPair, Pair: s.pairs[40].ID, State: "direct", Cell: "d", Text: "direct after 412 ms, by ICE checks"},
		{Kind: EventAttempt, Pair: s.pairs[40].ID, State: "running", Text: "attempt ordered, by ICE checks"},
		{Kind: EventNode, Node: s.nodes[17].Name, State: "online", Text: "came online"},
		{Kind: EventAddress, Node: s.nodes[17].Name, Text: "seen at 203.0.113.18:4500, before at 192.0.2.17:31744"},
		{Kind: EventPair, Pair: s.pairs[41].ID, State: "relayed", Cell: "r", Text: "relayed through beijing.connector: consent lost"},
		{Kind: EventRefused, Node: s.nodes[3].Name, Text: "endpoint.subnets: 10.0.3.0/24 overlaps 10.0.3.0/24 of beijing.edge02"},
		{Kind: EventNode, Node: s.nodes[7].Name, State: "offline", Text: "went offline"},
		{Kind: EventCommunity, Text: "communities applied from all-edges.yaml: all-edges, tills"},
		{Kind: EventPair, Pair: s.pairs[50].ID, State: "down", Cell: "x", Text: "down: shanghai.edge07 is offline"},
	}
	for i := range 60 {
		e := texts[i%len(texts)]
		e.ID, e.At = uint64(1060-i), s.now.Add(-time.Duration(i*7)*time.Second)
		s.events = append(s.events, e)
	}
	s.addAttempts()
}

// triedPair is the place of the pair of nodes 0 and 5.
const triedPair = 10

// tried is the pair that the sample has attempts of: a search, since the one node
// is behind a symmetric NAT.
func (s *sampleCluster) tried() PairView { return s.pairs[triedPair] }

func (s *sampleCluster) addAttempts() {
	p := &s.pairs[triedPair]
	p.Since, p.Attempts, p.TimeToDirectMs, p.Packets = s.now.Add(-93*time.Second), 2, 1240, 555
	one, two := s.nodes[0], s.nodes[5]
	a, b := one.Name, two.Name
	addr := netip.MustParseAddrPort
	host := addr("192.168.1.20:4500")
	hit := p.Paths[a].Remote
	candidates := []wire.Candidate{{Kind: wire.Host, Addr: host}, {Kind: wire.ServerReflexive, Addr: one.Observed}}
	theirs := []wire.Candidate{{Kind: wire.Host, Addr: addr("10.0.0.7:4500")}, {Kind: wire.ServerReflexive, Addr: two.Observed}}
	good := AttemptView{
		ID: "at-2", Pair: p.ID, At: s.now.Add(-94 * time.Second), Strategy: nat.Probe, Outcome: AttemptDirect, ElapsedMs: 1260,
		Verdict: p.Verdict,
		Sides: map[wire.NodeName]*AttemptSide{
			a: {Role: wire.Controlling, Part: wire.PartSearch, Candidates: candidates, NAT: one.NAT, OffsetMs: 12, StartAfterMs: 31, Outcome: wire.OutcomeDirect,
				Path: wire.Path{Kind: wire.PathPeerReflexive, Local: host, Remote: hit}, ElapsedMs: 1240, Packets: 293,
				Steps: []wire.Step{{AtMs: 31, Kind: wire.StepStart}, {AtMs: 32, Kind: wire.StepOpeners, Count: 2, Remote: two.Observed}, {AtMs: 133, Kind: wire.StepCheck, Remote: two.Observed},
					{AtMs: 140, Kind: wire.StepSearch, Remote: netip.AddrPortFrom(two.Observed.Addr(), 1024), Text: "400 packets/s"}, {AtMs: 872, Kind: wire.StepHit, Count: 293, Remote: hit},
					{AtMs: 884, Kind: wire.StepHeard, Remote: hit}, {AtMs: 905, Kind: wire.StepNominated, Remote: hit}, {AtMs: 931, Kind: wire.StepLoaded},
					{AtMs: 1102, Kind: wire.StepIKE}, {AtMs: 1140, Kind: wire.StepChild, Count: 3}, {AtMs: 1240, Kind: wire.StepBytes}}},
			b: {Role: wire.Controlled, Part: wire.PartOpen, Candidates: theirs, NAT: two.NAT, OffsetMs: 43, StartAfterMs: 0, Outcome: wire.OutcomeDirect,
				Path: wire.Path{Kind: wire.PathServerReflexive, Remote: one.Observed}, ElapsedMs: 1198, Packets: 262,
				Steps: []wire.Step{{AtMs: 0, Kind: wire.StepStart}, {AtMs: 4, Kind: wire.StepPorts, Count: 256, Remote: one.Observed}, {AtMs: 838, Kind: wire.StepHeard, Remote: one.Observed},
					{AtMs: 861, Kind: wire.StepNominated, Remote: one.Observed}, {AtMs: 880, Kind: wire.StepLoaded}, {AtMs: 1071, Kind: wire.StepIKE}, {AtMs: 1109, Kind: wire.StepChild, Count: 3}, {AtMs: 1198, Kind: wire.StepBytes}}},
		},
	}
	bad := AttemptView{
		ID: "at-1", Pair: p.ID, At: s.now.Add(-200 * time.Second), Strategy: nat.Openers, Outcome: AttemptFailed, ElapsedMs: 10_020, Reason: string(a) + ": no check was answered",
		Verdict: VerdictView{nat.Direct, nat.Openers, "the NAT of " + string(b) + " is not known yet"},
		Sides: map[wire.NodeName]*AttemptSide{
			a: {Role: wire.Controlling, Candidates: candidates, NAT: one.NAT, OffsetMs: 12, StartAfterMs: 31, Outcome: wire.OutcomeFailed, ElapsedMs: 10_000, Reason: "no check was answered",
				Steps: []wire.Step{{AtMs: 31, Kind: wire.StepStart}, {AtMs: 32, Kind: wire.StepOpeners, Remote: two.Observed}, {AtMs: 133, Kind: wire.StepCheck, Remote: two.Observed}, {AtMs: 10_000, Kind: wire.StepFailed, Text: "no check was answered"}}},
			b: {Role: wire.Controlled, Candidates: theirs, OffsetMs: 43},
		},
	}
	s.detail[p.ID] = PairDetail{At: s.now, Pair: *p, Attempts: []AttemptView{good, bad}}
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}
