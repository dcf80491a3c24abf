package e2e

import (
	"reflect"
	"slices"
	"testing"
)

// The cells that cannot be direct, each with what its reason may name. All
// others are.
func TestObstacles(t *testing.T) {
	hidden := map[string]bool{"symmetric": true, "symmetric-sequential": true}
	for _, a := range Sites() {
		for _, b := range Sites() {
			var want []Obstacle
			if (a.Name == "ipv6-firewall") != (b.Name == "ipv6-firewall") {
				want = append(want, NoCommonFamily)
			}
			if a.Name == "udp-blocked" || b.Name == "udp-blocked" {
				want = append(want, UDPBlocked)
			}
			if hidden[a.Name] && hidden[b.Name] && (a.Name == "symmetric" || b.Name == "symmetric") {
				want = append(want, BothSymmetric)
			}
			if got := Obstacles(a, b); !reflect.DeepEqual(got, want) {
				t.Errorf("%s × %s: obstacles %q, want %q", a, b, got, want)
			}
			blocked := slices.Contains(want, UDPBlocked)
			if got := Expected(a, b); (got == Direct) != (want == nil) || (got == Down) != blocked {
				t.Errorf("%s × %s: expected %s with obstacles %q", a, b, got, want)
			}
		}
	}
}

func TestFindSite(t *testing.T) {
	for _, want := range Sites() {
		if got, err := FindSite(want.Name); err != nil || got != want {
			t.Errorf("%s: %+v, %v", want, got, err)
		}
	}
	if _, err := FindSite("purple"); err == nil {
		t.Error("a site that is not was found")
	}
}

func TestCellProblem(t *testing.T) {
	ice := Verdict{Expect: "direct", Strategy: "ice", Reason: "both ports are known"}
	relay := Verdict{Expect: "relay", Strategy: "ice", Reason: "both NATs are symmetric"}
	good := Cell{Expected: Direct, Got: Direct, Ms: 80, PingsSent: 20, Strategy: "ice", Verdict: ice, After: ice}
	relayed := Cell{
		Expected: Relayed, Got: Relayed, Ms: 3000, PingsSent: 20, Reason: "both NATs are symmetric", Obstacles: []Obstacle{BothSymmetric},
		Strategy: "ice", Verdict: relay, After: relay,
	}
	down := Cell{
		Expected: Down, Got: Down, Ms: 3000, Reason: "UDP blocked", Obstacles: []Obstacle{UDPBlocked},
		Strategy: "ice", Verdict: relay, After: relay,
	}
	with := func(c Cell, change func(*Cell)) Cell {
		change(&c)
		return c
	}
	for _, test := range []struct {
		name string
		cell Cell
		want string
	}{
		{"direct", good, ""},
		{"relayed with the reason", relayed, ""},
		{"relayed, no ping", with(relayed, func(c *Cell) { c.PingsSent = 0 }), "no ping was sent"},
		{"down with the reason", down, ""},
		{"direct although not expected", with(good, func(c *Cell) { c.Expected = Relayed }), "is direct, not relayed: "},
		{"relayed although not expected", with(relayed, func(c *Cell) { c.Expected = Direct }), "is relayed, not direct: both NATs are symmetric"},
		{"down although not expected", with(relayed, func(c *Cell) { c.Got = Down }), "is down, not relayed: both NATs are symmetric"},
		{"no outcome", with(down, func(c *Cell) { c.Got, c.Reason = Undecided, "punching" }), "is undecided, not down: punching"},
		{"a lost ping", with(good, func(c *Cell) { c.PingsLost = 1 }), "lost 1 of 20 pings"},
		{"no ping", with(good, func(c *Cell) { c.PingsSent = 0 }), "no ping was sent"},
		{"another reason", with(relayed, func(c *Cell) { c.Reason = "b is offline" }), `the reason names none of ["symmetric"]: "b is offline"`},
		{"one of two reasons", with(relayed, func(c *Cell) { c.Obstacles = []Obstacle{UDPBlocked, BothSymmetric} }), ""},
		{"direct against the forecast", with(good, func(c *Cell) { c.Verdict = relay }), `the forecast was "relay: ice: both NATs are symmetric"`},
		{"no forecast", with(good, func(c *Cell) { c.Verdict = Verdict{} }), `the forecast was ""`},
		{
			"another verdict afterwards", with(good, func(c *Cell) { c.After.Strategy = "probe" }),
			`the verdict changed from "direct: ice: both ports are known" to "direct: probe: both ports are known"`,
		},
		{
			"another strategy than judged", with(good, func(c *Cell) { c.Strategy = "probe" }),
			`was made by "probe"; the verdict was "direct: ice: both ports are known"`,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := test.cell.Problem(); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestCellLate(t *testing.T) {
	for ms, want := range map[int64]string{80: "", 15_000: "", 15_001: "took 15001 ms, longer than 15s"} {
		if got := (Cell{Ms: ms}).Late(); got != want {
			t.Errorf("%d ms: got %q, want %q", ms, got, want)
		}
	}
}

func TestCellNamesSites(t *testing.T) {
	c := Cell{Reason: "beijing.r2 counts", Verdict: Verdict{Reason: "beijing.l1 is open"}}
	c.rename("beijing.l1", "a", "beijing.r2", "b")
	if c.Reason != "b counts" || c.Verdict.Reason != "a is open" {
		t.Errorf("%+v", c)
	}
}

func TestFailed(t *testing.T) {
	for _, test := range []struct {
		name string
		pair Pair
		want bool
	}{
		{"not tried yet", Pair{State: "down"}, false},
		{"first attempt runs", Pair{State: "down", Attempts: 1, Punching: true}, false},
		{"first attempt is over", Pair{State: "down", Attempts: 1}, true},
		{"relayed", Pair{State: "relayed", Attempts: 1}, true},
		{"second attempt runs", Pair{State: "down", Attempts: 2, Punching: true}, true},
		{"direct", Pair{State: "direct", Attempts: 1}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := test.pair.Failed(); got != test.want {
				t.Errorf("got %t, want %t", got, test.want)
			}
		})
	}
}
