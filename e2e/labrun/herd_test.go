package main

import (
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// A hundred agents lose their rendezvous: all are let in again, nobody punches
// what stands, and what broke meanwhile is punched once.
func TestHerd(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "bodkin")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", bin, "github.com/bodkin-net/bodkin/cmd/bodkin")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building bodkin: %v\n%s", err, out)
	}
	const agents, communities = 100, 10
	o := herdOptions{bin: bin, agents: agents, community: herdCommunity}
	results, err := runHerd(t.Context(), o, []scenario{
		{name: "join", join: true}, {name: "stand"}, {name: "broke", outage: 2 * time.Second, down: true}, {name: "empty", empty: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	const pairs = communities * herdCommunity * (herdCommunity - 1) / 2
	for i, orders := range []int{pairs, 0, pairs, 0} {
		r := results[i]
		if r.Refused > 0 || r.Broken > 0 || r.Pairs != pairs+agents {
			t.Errorf("%s: %+v; want no session refused or broken, %d pairs", r.Scenario, r, pairs+agents)
		}
		// An attempt during which an end comes back is called off and made anew.
		if r.Orders < orders || r.Orders > 2*orders {
			t.Errorf("%s: %d punch orders; want %d, few of them twice", r.Scenario, r.Orders, orders)
		}
		if r.SessionsPeak == 0 || r.CPUSeconds == 0 || r.MemoryMB == 0 {
			t.Errorf("%s: %+v: something was not measured", r.Scenario, r)
		}
	}
}

func TestHerdResult(t *testing.T) {
	t0 := time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)
	at := func(ms int) time.Time { return t0.Add(time.Duration(ms) * time.Millisecond) }
	killed, started := at(1000), at(2000)
	l := &herdLog{events: []herdEvent{
		{at: at(0), kind: ordered}, // of the last scenario
		{at: at(10), kind: finished},
		{at: at(1100), kind: dialled}, {at: at(1999), kind: dialled}, {at: at(2050), kind: dialled},
		{at: at(2060), kind: broken, dialled: at(1999)}, // with the one that died
		{at: at(2099), kind: dialled},
		{at: at(2100), kind: broken, dialled: at(2050), reason: "reset"},
		{at: at(2200), kind: joined},
		{at: at(2300), kind: ordered}, {at: at(2300), kind: ordered}, {at: at(2400), kind: finished}, {at: at(2500), kind: ordered},
		{at: at(3199), kind: joined}, {at: at(3200), kind: joined},
		{at: at(3300), kind: refusedSession, reason: "no"},
	}}
	got := l.result(killed, started)
	want := herdResult{DialsPeak: 4, SessionsPeak: 2, Orders: 3, OrdersPeak: 3, OrdersInFlight: 2, Refused: 1, Broken: 1, Example: "no"}
	if got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestHerdVerdict(t *testing.T) {
	good := herdResult{Scenario: "a", OK: true}
	if err := herdVerdict([]herdResult{good, good}); err != nil {
		t.Errorf("%v; want no complaint", err)
	}
	if err := herdVerdict([]herdResult{good, {Scenario: "b", Refused: 3}}); err == nil {
		t.Error("three sessions refused, and no complaint")
	}
}

func TestDirectPairs(t *testing.T) {
	const page = "# HELP bodkin_pairs Pairs.\n# TYPE bodkin_pairs gauge\nbodkin_pairs{state=\"direct\"} 4500\nbodkin_pairs{state=\"down\"} 1\n"
	if got := directPairs(page); got != 4500 {
		t.Errorf("%d; want 4500", got)
	}
	if got := directPairs("# nothing\n"); got != -1 {
		t.Errorf("%d of a page without pairs; want -1", got)
	}
}

func TestParseUsage(t *testing.T) {
	const stat = "12 (a) b) c) S 1 12 12 0 -1 4194560 100 0 0 0 250 150 0 0 20 0 9 0 100 1000 200"
	const status = "Name:\ta\nVmHWM:\t   20000 kB\nVmRSS:\t   10000 kB\nThreads:\t9\n"
	got, err := parseUsage(stat, status)
	want := usage{cpu: 4 * time.Second, rssMB: 10.2, peakMB: 20.5, threads: 9}
	if err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	if _, err := parseUsage("12 (a) S 1", status); err == nil {
		t.Error("a stat without times is taken")
	}
}
