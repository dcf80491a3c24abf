package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/agent/charon"
	"github.com/bodkin-net/bodkin/e2e"
)

func planOf(seed uint64) []soakStep {
	return soakPlan(rand.New(rand.NewPCG(seed, 0)), time.Hour, 4)
}

func TestSoakPlan(t *testing.T) {
	plan := planOf(1)
	if got := fmt.Sprint(plan); got != fmt.Sprint(planOf(1)) {
		t.Error("the same seed draws other faults")
	}
	if fmt.Sprint(plan) == fmt.Sprint(planOf(2)) {
		t.Error("two seeds draw the same faults")
	}
	drawn := map[string]bool{}
	for i, s := range plan {
		drawn[s.kind.name] = true
		switch k := s.kind; {
		case s.until-s.at < k.least || s.until-s.at > k.most || s.until > time.Hour:
			t.Errorf("%v lasts from %v to %v", s, s.at, s.until)
		case k.at == atEdge && (s.node < 1 || s.node > 4), k.at == atConnector && s.node != 0:
			t.Errorf("%v at node %d", s, s.node)
		case k.at == betweenEdges && (s.node == s.other || min(s.node, s.other) < 1 || max(s.node, s.other) > 4):
			t.Errorf("%v between nodes %d and %d", s, s.node, s.other)
		}
		if n := overlapping(plan[:i], s); n >= soakAtATime {
			t.Errorf("%d faults last when %v begins", n, s)
		}
		for _, o := range plan[:i] {
			if o.conflicts(s) || s.conflicts(o) {
				t.Errorf("%v at %v and %v at %v", o, o.at, s, s.at)
			}
		}
	}
	for _, k := range soakKinds {
		if !drawn[k.name] {
			t.Errorf("an hour without %q", k.name)
		}
	}
}

func TestSoakConflicts(t *testing.T) {
	kind := func(name string) *soakKind {
		return &soakKinds[slices.IndexFunc(soakKinds, func(k soakKind) bool { return k.name == name })]
	}
	step := func(name string, node int, from, to time.Duration) soakStep {
		return soakStep{kind: kind(name), node: node, at: from * time.Second, until: to * time.Second}
	}
	tests := []struct {
		name string
		a, b soakStep
		want bool
	}{
		{"one line", step(lineCut, 1, 0, 10), step(natRebooted, 1, 5, 5), true},
		{"two lines", step(lineCut, 1, 0, 10), step(natRebooted, 2, 5, 5), false},
		{"one after the other", step(lineCut, 1, 0, 10), step(natRebooted, 1, 11, 11), false},
		{"one rendezvous", step(rendezvousKilled, 0, 0, 10), step(memberLeft, 2, 5, 15), true},
		{"agent and line of one node", step(agentKilled, 1, 0, 10), step(natRebooted, 1, 5, 5), false},
		{"no pings, no NAT faults", step(memberLeft, 1, 0, 10), step(natRebooted, 1, 5, 5), true},
		{"another node's", step(memberLeft, 1, 0, 10), step(natRebooted, 2, 5, 5), false},
		{"nothing beside the connector's charon", step(hubCharonKilled, 0, 0, 3), step(rekeyed, 2, 2, 2), true},
		{"nor just after", step(hubCharonKilled, 0, 0, 3), step(natRebooted, 2, 9, 9), true},
		{"later", step(hubCharonKilled, 0, 0, 3), step(natRebooted, 2, 14, 14), false},
	}
	for _, tt := range tests {
		if tt.a.conflicts(tt.b) != tt.want || tt.b.conflicts(tt.a) != tt.want {
			t.Errorf("%s: %v and %v, want %v", tt.name, tt.a.conflicts(tt.b), tt.b.conflicts(tt.a), tt.want)
		}
	}
}

var (
	oneTwo   = nodePair{"edge1", "edge2"}
	soakZero = time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)
)

// timelineOf has a ping each StreamEvery, from zero on: '.' was answered.
func timelineOf(pings string) e2e.Timeline {
	var t e2e.Timeline
	for i, c := range pings {
		sent := soakZero.Add(time.Duration(i) * e2e.StreamEvery)
		e := e2e.Echo{Sent: sent}
		if c == '.' {
			e.Answered = sent.Add(time.Millisecond)
		}
		t = append(t, e)
	}
	return t
}

func TestSilences(t *testing.T) {
	const ms = time.Millisecond
	got := silences(oneTwo, timelineOf("..xx.x.xxx"), soakZero)
	want := []silence{{oneTwo, 40 * ms, 80 * ms}, {oneTwo, 100 * ms, 120 * ms}, {oneTwo, 140 * ms, 200 * ms}}
	if !slices.Equal(got, want) {
		t.Errorf("%v; want %v", got, want)
	}
	if got := silences(oneTwo, timelineOf("..."), soakZero); len(got) > 0 {
		t.Errorf("%v where nothing was lost", got)
	}
}

func TestWithout(t *testing.T) {
	s := span{10, 20}
	tests := []struct {
		out  []span
		want time.Duration
	}{
		{nil, 10}, {[]span{{0, 5}}, 10}, {[]span{{0, 12}}, 8}, {[]span{{15, stillLasts}}, 5}, {[]span{{12, 14}}, 8},
		{[]span{{12, 14}, {13, 16}}, 6}, {[]span{{0, 100}}, 0}, {[]span{{12, 13}, {14, 15}, {19, 30}}, 7},
	}
	for _, tt := range tests {
		var got time.Duration
		for _, left := range s.without(tt.out) {
			got += left.length()
		}
		if got != tt.want {
			t.Errorf("%v without %v: %d; want %d", s, tt.out, got, tt.want)
		}
	}
}

func TestJudgeSilence(t *testing.T) {
	const s = time.Second
	fault := func(k soakKind, begun, over time.Duration, pairs ...nodePair) soakFault {
		befallen := map[nodePair]bool{}
		for _, p := range pairs {
			befallen[p] = true
		}
		return soakFault{kind: &k, text: "f", begun: begun, over: over, pairs: befallen}
	}
	soft := soakKind{limit: 2 * s}
	hard := soakKind{limit: 5 * s, hard: true}
	agent := soakKind{limit: blink, impairs: true}
	rendezvous := soakKind{limit: blink, slows: 3 * s}
	tests := []struct {
		name   string
		quiet  span
		faults []soakFault
		wrong  bool
	}{
		{"a blink", span{100 * s, 100*s + blink}, nil, false},
		{"for no reason", span{100 * s, 101 * s}, nil, true},
		{"within the limit", span{100 * s, 102 * s}, []soakFault{fault(soft, 100*s, 100*s, oneTwo)}, false},
		{"beyond the limit", span{100 * s, 103 * s}, []soakFault{fault(soft, 100*s, 100*s, oneTwo)}, true},
		{"another pair's fault", span{100 * s, 102 * s}, []soakFault{fault(soft, 100*s, 100*s, nodePair{"edge1", "edge3"})}, true},
		{"long after", span{120 * s, 122 * s}, []soakFault{fault(soft, 100*s, 100*s, oneTwo)}, true},
		{"before the fault", span{97 * s, 99 * s}, []soakFault{fault(soft, 100*s, 100*s, oneTwo)}, true},
		{"two faults", span{100 * s, 104 * s}, []soakFault{fault(soft, 100*s, 100*s, oneTwo), fault(soft, 101*s, 101*s, oneTwo)}, false},
		{"nothing can pass", span{100 * s, 133 * s}, []soakFault{fault(hard, 100*s, 130*s, oneTwo)}, false},
		{"nor after that", span{100 * s, 136 * s}, []soakFault{fault(hard, 100*s, 130*s, oneTwo)}, true},
		{"twice, and too long after the second time", span{100 * s, 125 * s},
			[]soakFault{fault(hard, 100*s, 110*s, oneTwo), fault(hard, 111*s, 119*s, oneTwo)}, true},
		{"twice, and soon there again", span{100 * s, 124 * s},
			[]soakFault{fault(hard, 100*s, 110*s, oneTwo), fault(hard, 111*s, 119*s, oneTwo)}, false},
		{"still lasts", span{100 * s, 150 * s}, []soakFault{fault(hard, 100*s, stillLasts, oneTwo)}, false},
		{"no agent costs nothing", span{100 * s, 101 * s}, []soakFault{fault(agent, 99*s, 109*s, oneTwo)}, true},
		{"without an agent nothing is mended", span{100 * s, 110 * s}, []soakFault{fault(agent, 99*s, 109*s, oneTwo), fault(soft, 100*s, 100*s, oneTwo)}, false},
		{"then it has to be", span{100 * s, 112 * s}, []soakFault{fault(agent, 99*s, 109*s, oneTwo), fault(soft, 100*s, 100*s, oneTwo)}, true},
		{"no rendezvous costs nothing", span{100 * s, 101 * s}, []soakFault{fault(rendezvous, 90*s, 110*s, oneTwo)}, true},
		{"without a rendezvous it takes longer", span{100 * s, 105 * s}, []soakFault{fault(rendezvous, 90*s, 110*s, oneTwo), fault(soft, 100*s, 100*s, oneTwo)}, false},
		{"with one that is back it does not", span{100 * s, 105 * s}, []soakFault{fault(rendezvous, 90*s, 95*s, oneTwo), fault(soft, 100*s, 100*s, oneTwo)}, true},
		{"but not that long", span{100 * s, 106 * s}, []soakFault{fault(rendezvous, 90*s, 110*s, oneTwo), fault(soft, 100*s, 100*s, oneTwo)}, true},
	}
	for _, tt := range tests {
		v, wrong := judgeSilence(silence{oneTwo, tt.quiet.from, tt.quiet.to}, tt.faults)
		if wrong != tt.wrong {
			t.Errorf("%s: %v %q; want %v", tt.name, wrong, v.What, tt.wrong)
		}
		if wrong && (v.At < tt.quiet.from || v.At > tt.quiet.to || !strings.Contains(v.What, "edge1 and edge2")) {
			t.Errorf("%s: %+v does not say when and who", tt.name, v)
		}
	}
}

func TestJudgeTrickle(t *testing.T) {
	second := strings.Repeat(".", int(time.Second/e2e.StreamEvery))
	rough := strings.Repeat("x.........", int(time.Second/e2e.StreamEvery)/10)
	gone := soakFault{kind: &soakKind{}, begun: 0, over: time.Hour, pairs: map[nodePair]bool{oneTwo: true}}
	tests := []struct {
		name, pings string
		faults      []soakFault
		wrong       bool
		lost        int
	}{
		{"one now and then", strings.Repeat(second+"x", 30), nil, false, 30},
		{"one of ten", strings.Repeat(rough, 10), nil, true, 50},
		{"one of ten of a lossy line", strings.Repeat(rough, 10), []soakFault{gone}, false, 0},
	}
	for _, tt := range tests {
		all := silences(oneTwo, timelineOf(tt.pings), soakZero)
		if v, wrong := judgeTrickle(all, tt.faults); wrong != tt.wrong {
			t.Errorf("%s: %v %q; want %v", tt.name, wrong, v.What, tt.wrong)
		}
		if got := unexplainedLoss(all, tt.faults); got < tt.lost-1 || got > tt.lost+1 {
			t.Errorf("%s: %d lost; want %d", tt.name, got, tt.lost)
		}
	}
}

func TestJudgeExpulsion(t *testing.T) {
	second := strings.Repeat(".", int(time.Second/e2e.StreamEvery))
	lost := strings.ReplaceAll(second, ".", "x")
	gone := soakFault{kind: &soakKind{name: memberLeft}, begun: time.Second, over: 9 * time.Second, pairs: map[nodePair]bool{oneTwo: true}}
	tests := []struct {
		name, pings string
		wrong       bool
	}{
		{"silent soon", strings.Repeat(second, 3) + strings.Repeat(lost, 6) + second, false},
		{"heard for too long", strings.Repeat(second, 5) + strings.Repeat(lost, 4) + second, true},
		{"heard again before its return", strings.Repeat(second, 2) + strings.Repeat(lost, 4) + second + strings.Repeat(lost, 3), true},
	}
	for _, tt := range tests {
		if v, wrong := judgeExpulsion(oneTwo, timelineOf(tt.pings), soakZero, []soakFault{gone}); wrong != tt.wrong {
			t.Errorf("%s: %v %q; want %v", tt.name, wrong, v.What, tt.wrong)
		}
	}
	if _, wrong := judgeExpulsion(nodePair{"edge3", "edge4"}, timelineOf(strings.Repeat(second, 9)), soakZero, []soakFault{gone}); wrong {
		t.Error("members are not to reach each other while a third one is away")
	}
}

// samplesOf repeats a sample each five seconds.
func samplesOf(n int, s soakSample) []soakSample {
	var all []soakSample
	for i := range n {
		s.at = time.Duration(i) * 5 * time.Second
		all = append(all, s)
	}
	return all
}

func TestJudgeSamples(t *testing.T) {
	clean := func() soakSample {
		return soakSample{
			members: []string{"edge1", "edge2"},
			nodes: map[string]nodeSample{
				connector: {asked: true, connections: []string{"beijing.edge1", "beijing.edge2", "beijing.edge3"}},
				"edge1":   {asked: true, connections: []string{"beijing.connector", "beijing.edge2"}, rewrites: []string{"beijing.edge2"}},
				"edge2":   {asked: true, connections: []string{"beijing.connector", "beijing.edge1"}, sas: []charon.SA{{Name: "beijing.edge1", ID: 1, State: charon.StateEstablished}}},
				"edge3":   {asked: true, connections: []string{"beijing.connector"}},
			},
			pairs: []e2e.Pair{{ID: "a|b", State: "direct"}, {ID: "a|c", State: "relayed", Reason: "punching"}},
		}
	}
	tests := []struct {
		name  string
		spoil func(*soakSample)
		found string // "" for nothing
	}{
		{"as it should be", func(*soakSample) {}, ""},
		{"a connection of one who left", func(s *soakSample) {
			s.members = []string{"edge2"}
			s.nodes["edge2"] = nodeSample{asked: true, connections: []string{"beijing.connector"}}
		}, "edge1: beijing.edge2"},
		{"a connection nobody knows", func(s *soakSample) {
			s.nodes["edge3"] = nodeSample{asked: true, connections: []string{"other.edge1"}}
		}, "edge3: other.edge1"},
		{"a rule without a connection", func(s *soakSample) {
			s.nodes["edge3"] = nodeSample{asked: true, rewrites: []string{"beijing.edge1"}}
		}, "edge3: beijing.edge1"},
		{"a charon that does not answer", func(s *soakSample) { s.nodes["edge1"] = nodeSample{rewrites: []string{"beijing.edge2"}} }, ""},
		{"half-open", func(s *soakSample) {
			s.nodes["edge3"] = nodeSample{asked: true, sas: []charon.SA{{Name: "beijing.connector", ID: 7, State: charon.StateConnecting}}}
		}, "#7 CONNECTING"},
		{"two SAs", func(s *soakSample) {
			s.nodes["edge3"] = nodeSample{asked: true, sas: []charon.SA{{Name: "beijing.connector", ID: 7}, {Name: "beijing.connector", ID: 8}}}
		}, "more than one"},
		{"no reason", func(s *soakSample) { s.pairs = []e2e.Pair{{ID: "a|b", State: "down"}} }, "gives no reason: a|b"},
	}
	for _, tt := range tests {
		s := clean()
		tt.spoil(&s)
		// Twenty samples are longer than anything may last.
		v := judgeSamples(samplesOf(20, s))
		switch {
		case tt.found == "" && len(v) > 0, tt.found != "" && len(v) != 1:
			t.Errorf("%s: %v; want %q", tt.name, v, tt.found)
		case tt.found != "" && !strings.Contains(v[0].What, tt.found):
			t.Errorf("%s: %q; want %q", tt.name, v[0].What, tt.found)
		}
		// What comes and goes is no violation.
		var blinking []soakSample
		for i, bad := range samplesOf(20, s) {
			if i%2 == 1 {
				at := bad.at
				bad = clean()
				bad.at = at
			}
			blinking = append(blinking, bad)
		}
		if v := judgeSamples(blinking); len(v) > 0 {
			t.Errorf("%s, every other time: %v", tt.name, v)
		}
	}
}

func TestGrowth(t *testing.T) {
	id, short := procID{"edge1", "agent", 7}, procID{"edge2", "agent", 8}
	var samples []soakSample
	for i := range 60 {
		s := soakSample{at: time.Duration(i) * 5 * time.Second, procs: map[procID]usage{
			id: {rssMB: 20 + float64(i)/3, threads: 9, fds: 30 + i%3},
		}}
		if i < 10 {
			s.procs[short] = usage{rssMB: float64(10 * i)}
		}
		samples = append(samples, s)
	}
	all := grown(samples)
	if len(all) != 1 || all[0].procID != id {
		t.Fatalf("%+v; want the process that lived long, alone", all)
	}
	got := judgeGrowth(all[0], 0)
	if len(got) != 1 || !strings.Contains(got[0].What, "agent of edge1 grew") || !strings.Contains(got[0].What, "MB of memory") {
		t.Errorf("%v; want its memory", got)
	}
	all[0].memoryMB = [2]float64{20, 21}
	if got := judgeGrowth(all[0], 0); len(got) > 0 {
		t.Errorf("%v; want nothing of a process that stays as it is", got)
	}
}

func TestRewritesIn(t *testing.T) {
	const table = `table ip bodkin {
	chain out {
		meta l4proto udp ip saddr 192.168.1.2 snat to :4711 comment "beijing.edge2"
		ip daddr 10.0.0.1 notrack comment "beijing.edge2"
		ip daddr 10.0.0.2 notrack comment "beijing.edge3"
	}
}`
	if got := rewritesIn(table); !slices.Equal(got, []string{"beijing.edge2", "beijing.edge3"}) {
		t.Errorf("%v", got)
	}
}
