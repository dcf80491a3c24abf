package rendezvous

import (
	"bytes"
	"log/slog"
	"reflect"
	"strings"
	"testing"

	"github.com/bodkin-net/bodkin/punch/nat"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// The log has one line for each change of a pair's state, which its ID finds; the
// page is told of each change of what it draws, once.
func TestJournalOfPairs(t *testing.T) {
	var text bytes.Buffer
	j := newJournal(slog.New(slog.NewTextHandler(&text, nil)), newMetrics(), nil)
	v := PairView{ID: both12, Nodes: [2]wire.NodeName{edge1, edge2}, State: Down, Reason: "beijing.edge2 is offline"}
	path := srflxCandidate("203.0.113.2:4500").Addr
	for _, change := range []func(){
		func() {},
		func() { v.Attempts++ }, // nothing that anybody is told
		func() { v.Punching, v.Reason = true, "punching" },
		func() { v.Punching, v.Reason = false, "no check was answered" },
		func() {
			v.State, v.Reason = Direct, ""
			v.Paths = map[wire.NodeName]wire.Path{edge1: {Remote: path}}
		},
		func() { v.State, v.Relay, v.Reason = Relayed, connector, "consent lost" },
	} {
		change()
		j.pair(sampleNow, v)
	}
	var lines []string
	for line := range strings.Lines(text.String()) {
		_, line, _ = strings.Cut(line, "level=INFO ")
		line, _, _ = strings.Cut(line, " punching=")
		lines = append(lines, line)
	}
	want := []string{
		`msg=pair pair=beijing.edge1|beijing.edge2 state=down reason="beijing.edge2 is offline"`,
		`msg=pair pair=beijing.edge1|beijing.edge2 state=direct reason=""`,
		`msg=pair pair=beijing.edge1|beijing.edge2 state=relayed reason="consent lost"`,
	}
	if !reflect.DeepEqual(lines, want) {
		t.Errorf("%q\nwant %q", lines, want)
	}
	var told []string
	events, _ := j.events.since(0)
	for _, e := range events {
		told = append(told, e.Cell+" "+e.State+" "+e.Text)
	}
	wantTold := []string{
		"x down down: beijing.edge2 is offline", "X down down: punching", "x down down: no check was answered",
		"d direct direct: beijing.edge1 to 203.0.113.2:4500", "r relayed relayed: consent lost",
	}
	if !reflect.DeepEqual(told, wantTold) {
		t.Errorf("%q\nwant %q", told, wantTold)
	}
	j.forget(both12)
	if len(j.said) != 0 {
		t.Error("a pair that is gone is remembered")
	}
}

// Reasons become few for metrics: whose they are, and when, is left out.
func TestReasonsInGeneral(t *testing.T) {
	names := [2]wire.NodeName{edge1, "beijing.edge10"}
	for reason, want := range map[string]string{
		"beijing.edge1 is offline":                                                "NODE is offline",
		"beijing.edge10 is offline":                                               "NODE is offline",
		"beijing.edge1: beijing.edge10 does not answer":                           "NODE: NODE does not answer",
		"consent lost; relayed until 12:30:15 UTC, since then":                    "consent lost; relayed until TIME, since then",
		"the path to 203.0.113.3:4500 went silent, and so did [2001:db8::3]:4500": "the path to ADDRESS went silent, and so did ADDRESS",
		"punching": "punching",
	} {
		if got := inGeneral(pairBrief{names: names, reason: reason}); got != want {
			t.Errorf("%q: %q, want %q", reason, got, want)
		}
	}
	var many []ReasonCount
	for i := range reasonLabels + 5 {
		many = append(many, ReasonCount{State: []State{Down, Relayed}[i%2], Reason: string(rune('a' + i)), Pairs: 100 - i})
	}
	got := bounded(many)
	rest := map[State]int{}
	for _, r := range got[reasonLabels:] {
		rest[r.State] += r.Pairs
		if r.Reason != "other" {
			t.Errorf("%+v", r)
		}
	}
	if len(got) != reasonLabels+2 || !reflect.DeepEqual(rest, map[State]int{Down: 80 + 78 + 76, Relayed: 79 + 77}) {
		t.Errorf("%d reasons, the rest %v", len(got), rest)
	}
}

// An attempt that no path was expected of is told so, and is no failure; one that
// finds a path all the same is a success.
func TestJournalOfHopelessAttempts(t *testing.T) {
	for _, tt := range []struct {
		hopeless string
		outcome  AttemptOutcome
		want     HourView
		texts    []string
	}{
		{"", AttemptFailed, HourView{Failed: 1}, []string{"punch ordered, strategy ice", "punch failed, strategy ice: silence"}},
		{"two random NATs", AttemptFailed, HourView{}, []string{"punch ordered, though no path is expected: two random NATs", "punch failed, as no path was expected: silence"}},
		{"two random NATs", AttemptDirect, HourView{Direct: 1}, []string{"punch ordered, though no path is expected: two random NATs", "punch direct, strategy ice, after 0 ms"}},
	} {
		j := newJournal(slog.New(slog.DiscardHandler), newMetrics(), newRecorder(nil, nil))
		order := &wire.Punch{Hopeless: tt.hopeless}
		j.order(sampleNow, ordered{pair: both12, attempt: "a", names: [2]wire.NodeName{edge1, edge2}, strategy: nat.ICE, orders: [2]*wire.Punch{order, order}})
		e := ended{pair: both12, attempt: "a", strategy: nat.ICE, outcome: tt.outcome, reason: "silence"}
		j.end(sampleNow, e)
		var o Overview
		j.hours.describe(&o, sampleNow)
		if got := o.Hours[len(o.Hours)-1]; got.Direct != tt.want.Direct || got.Failed != tt.want.Failed {
			t.Errorf("%q %s: %+v, want %+v", tt.hopeless, tt.outcome, got, tt.want)
		}
		var told []string
		events, _ := j.events.since(0)
		for _, e := range events {
			told = append(told, e.Text)
		}
		if !reflect.DeepEqual(told, tt.texts) {
			t.Errorf("%q", told)
		}
	}
}
