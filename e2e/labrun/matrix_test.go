package main

import (
	"strings"
	"testing"

	"github.com/bodkin-net/bodkin/e2e"
)

// twoByTwo is a grid of two sites, as measured.
func twoByTwo() []e2e.Cell {
	direct := func(a, b, strategy string) e2e.Cell {
		v := e2e.Verdict{Expect: "direct", Strategy: strategy}
		return e2e.Cell{
			A: a, B: b, Expected: e2e.Direct, Got: e2e.Direct, Ms: 62, Strategy: strategy, Verdict: v, After: v, PingsSent: 20,
		}
	}
	relay := e2e.Verdict{Expect: "relay", Strategy: "ice", Reason: "both NATs are symmetric"}
	return []e2e.Cell{
		direct("port-restricted", "port-restricted", "ice"), direct("port-restricted", "symmetric", "probe"),
		direct("symmetric", "port-restricted", "probe"),
		{
			A: "symmetric", B: "symmetric", Expected: e2e.Relayed, Got: e2e.Relayed, PingsSent: 20, Reason: "both NATs are symmetric; a: nothing came back",
			Obstacles: []e2e.Obstacle{e2e.BothSymmetric}, Verdict: relay, After: relay,
		},
	}
}

func TestMarkdown(t *testing.T) {
	const want = `| a \ b | port-restricted | symmetric |
|---|---|---|
| **port-restricted** | ice 62 ms | probe 62 ms |
| **symmetric** | probe 62 ms | relayed¹ |

3 of 4 pairs are direct, 1 relayed; 0 of 80 pings were lost.

¹ `
	if got := markdown(twoByTwo()); !strings.HasPrefix(got, want) || strings.Contains(got, "²") {
		t.Errorf("got\n%swant\n%s…", got, want)
	}
}

func TestPrintMatrix(t *testing.T) {
	cells := twoByTwo()
	cells[1].PingsLost = 1
	var out strings.Builder
	printMatrix(&out, cells)
	const want = `a \ b            port-restricted  symmetric
port-restricted  ice 62 ms        probe 62 ms (!)
symmetric        probe 62 ms      relayed
3 of 4 pairs are direct, 1 relayed; 1 of 80 pings were lost.
both NATs are symmetric (a × b: symmetric × symmetric)
`
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
	if got := markdown(cells); !strings.Contains(got, "probe 62 ms **(lost 1 of 20 pings)** |") {
		t.Errorf("the table hides a problem:\n%s", got)
	}
	if err := judge(cells); err == nil || !strings.Contains(err.Error(), "1 of 4 cells") {
		t.Errorf("judged %v", err)
	}
	if err := judge(twoByTwo()); err != nil {
		t.Error(err)
	}
}

func TestSummariseProbing(t *testing.T) {
	var runs []probeRun
	for i := range 30 {
		runs = append(runs, probeRun{Got: e2e.Direct, Ms: int64(100 * (i + 1)), Packets: 10 * (i + 1)})
	}
	if p := summarise(runs); p.Within10s != 30 || p.MedianMs != 1550 || p.P95Ms != 2900 || p.MedianPackets != 155 || p.P95Packets != 290 || p.problem() != nil {
		t.Errorf("%+v, problem %v", p, p.problem())
	}
	runs[0].Got = e2e.Down
	runs[1].Ms = 10_001
	if p := summarise(runs); p.Within10s != 28 || p.Rate != 0.933 || p.problem() == nil {
		t.Errorf("%+v, problem %v", p, p.problem())
	}
	if p := summarise([]probeRun{{Got: e2e.Down}}); p.MedianMs != 0 || p.problem() == nil {
		t.Errorf("%+v", p)
	}
}
