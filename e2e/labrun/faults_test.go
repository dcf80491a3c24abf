package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/e2e"
)

// TestFaultRow: the worst of all runs counts, and one that is not within its
// limits spoils the row.
func TestFaultRow(t *testing.T) {
	row := newFaultRow("cut", 2*time.Second, -1)
	row.add(e2e.Cost{Interrupted: 900 * time.Millisecond, Lost: 45, Sent: 500, Direct: -1}, true)
	row.add(e2e.Cost{Interrupted: 300 * time.Millisecond, Lost: 15, Sent: 500, Direct: 1200 * time.Millisecond}, true)
	if !row.OK || row.LostMs != 900 || row.DirectMs == nil || *row.DirectMs != 1200 || row.PacketsLost != 60 || row.Of != 1000 || row.Runs != 2 {
		t.Errorf("%+v", row)
	}
	row.add(e2e.Cost{Interrupted: 3 * time.Second, Direct: -1, Problem: "it fell over"}, false)
	if row.OK || row.LostMs != 3000 || len(row.Problems) != 1 {
		t.Errorf("%+v; want it not OK", row)
	}
	if err := checkFaults([]*faultRow{row}); err == nil || !strings.Contains(err.Error(), "cut") {
		t.Errorf("checked: %v; want the row named", err)
	}
	text, err := json.Marshal(row)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"fault":"cut"`, `"lost_ms":3000`, `"direct_again_ms":1200`, `"limit_lost_ms":2000`, `"limit_direct_ms":null`, `"ok":false`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %s in %s", want, text)
		}
	}
}

func TestFaultsMarkdown(t *testing.T) {
	ms := func(v float64) *float64 { return &v }
	got := faultsMarkdown([]*faultRow{
		{Fault: "a", LostMs: 12.4, DirectMs: ms(250), LimitLostMs: ms(2000), LimitDirectMs: ms(5000), OK: true, PacketsLost: 1, Of: 9, Runs: 3,
			AnchorLostMs: ms(199_600), AnchorDirectMs: ms(199_700)},
		{Fault: "b", LimitLostMs: ms(0)},
	})
	for _, want := range []string{
		"| a | 12 ms | 2000 ms | 250 ms | 5000 ms | 1 of 9 | 3 | met | 200 s, 200 s |\n",
		"| b | 0 ms | 0 ms | – | – | 0 of 0 | 0 | MISSED | – |\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no line %q in\n%s", want, got)
		}
	}
}
