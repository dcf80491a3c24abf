package e2e

import (
	"testing"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

// What strongSwan's own mediation connects, 13 of 16, is expected of us.
func TestExpected(t *testing.T) {
	down := map[[2]lab.NATKind]bool{
		{lab.PortRestricted, lab.Symmetric}: true,
		{lab.Symmetric, lab.PortRestricted}: true,
		{lab.Symmetric, lab.Symmetric}:      true,
	}
	for _, a := range MatrixKinds() {
		for _, b := range MatrixKinds() {
			want := Direct
			if down[[2]lab.NATKind{a, b}] {
				want = Down
			}
			if got := Expected(a, b); got != want {
				t.Errorf("%s × %s: expected %s, want %s", a, b, got, want)
			}
		}
	}
}

func TestCellProblem(t *testing.T) {
	good := Cell{Expected: Direct, Got: Direct, Ms: 80, PingsSent: 20}
	down := Cell{Expected: Down, Got: Down, Ms: 10_000, Reason: "both NATs are symmetric"}
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
		{"down with the reason", down, ""},
		{"direct although not expected", with(good, func(c *Cell) { c.Expected = Down }), "is direct, not down: "},
		{"down although not expected", with(down, func(c *Cell) { c.Expected = Direct }), "is down, not direct: both NATs are symmetric"},
		{"no verdict", with(down, func(c *Cell) { c.Got, c.Reason = Undecided, "punching" }), "is undecided, not down: punching"},
		{"a lost ping", with(good, func(c *Cell) { c.PingsLost = 1 }), "lost 1 of 20 pings"},
		{"no ping", with(good, func(c *Cell) { c.PingsSent = 0 }), "no ping was sent"},
		{"another reason", with(down, func(c *Cell) { c.Reason = "b is offline" }), `the reason names no symmetric NAT: "b is offline"`},
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

func TestFailed(t *testing.T) {
	for _, test := range []struct {
		name string
		pair Pair
		want bool
	}{
		{"not tried yet", Pair{State: "down"}, false},
		{"first attempt runs", Pair{State: "down", Attempts: 1, Punching: true}, false},
		{"first attempt is over", Pair{State: "down", Attempts: 1}, true},
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
