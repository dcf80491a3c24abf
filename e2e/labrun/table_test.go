package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/e2e"
	"github.com/bodkin-net/bodkin/e2e/lab"
)

func answered(n int) lab.PingResult {
	r := lab.PingResult{Sent: 20, Received: n}
	for range n {
		r.RTTs = append(r.RTTs, 42*time.Millisecond)
	}
	return r
}

func TestFaults(t *testing.T) {
	direct, down := pair("direct", "", 1), pair("down", "no check was answered", 1)
	relayed := pair("relayed", "no check was answered", 1)
	for name, test := range map[string]struct {
		result result
		want   string // empty: none
	}{
		"direct, all answered":    {result{nodePair{"edge1", "edge3"}, &direct, answered(20)}, ""},
		"direct, one ping lost":   {result{nodePair{"edge1", "edge3"}, &direct, answered(19)}, "1 of 20 pings were lost"},
		"direct, never pinged":    {result{nodePair{"edge1", "edge3"}, &direct, lab.PingResult{}}, "0 of 0 pings"},
		"down":                    {result{nodePair{"edge1", "edge3"}, &down, answered(0)}, "is down: no check was answered"},
		"down, but pings through": {result{nodePair{"edge1", "edge3"}, &down, answered(20)}, "is down: no check was answered"},
		"relayed":                 {result{nodePair{"edge1", "edge3"}, &relayed, answered(20)}, "is relayed: no check was answered"},
		"unknown":                 {result{nodePair{"edge1", "edge3"}, nil, answered(0)}, "does not know this pair"},
	} {
		got := strings.Join(faults([]result{test.result}), "\n")
		if (got == "") != (test.want == "") || !strings.Contains(got, test.want) {
			t.Errorf("%s: %q, want %q in it", name, got, test.want)
		}
	}
}

func TestResultRowsShowBothEndsFromTheFirstNodesView(t *testing.T) {
	p := pair("direct", "", 1)
	for _, test := range []struct{ names, want nodePair }{
		{nodePair{"edge1", "edge3"}, nodePair{"203.0.113.4[4500]", "203.0.113.2[7953]"}},
		{nodePair{"edge3", "edge1"}, nodePair{"203.0.113.2[7953]", "203.0.113.4[4500]"}},
	} {
		row := resultRows([]result{{test.names, &p, answered(20)}})[1]
		if got := (nodePair{row[3].text, row[4].text}); got != test.want {
			t.Errorf("%v: addresses %v, want %v", test.names, got, test.want)
		}
	}
}

func TestTableLinesUpWithAndWithoutColours(t *testing.T) {
	rows := [][]cell{
		{{"PAIR", strong}, {"STATE", strong}, {"RTT", strong}},
		{{"edge1 – edge3", plain}, {"direct", good}, {"42 ms", plain}},
	}
	const want = "  PAIR           STATE   RTT\n  edge1 – edge3  direct  42 ms\n"
	var without, with bytes.Buffer
	screen{Writer: &without}.table(rows)
	screen{Writer: &with, colours: true}.table(rows)
	if without.String() != want {
		t.Errorf("got\n%swant\n%s", without.String(), want)
	}
	colourless := strings.NewReplacer("\x1b[0m", "", "\x1b[1m", "", "\x1b[32m", "").Replace(with.String())
	if colourless != want || colourless == with.String() {
		t.Errorf("with colours: %q", with.String())
	}
}

func TestKindsOfPathAreInWords(t *testing.T) {
	for kind, want := range map[string]string{"srflx": "punched (srflx)", "host": "same network (host)", "public": "public"} {
		if got := kindOf(e2e.Path{Kind: kind}); got != want {
			t.Errorf("%s: %q, want %q", kind, got, want)
		}
	}
}
