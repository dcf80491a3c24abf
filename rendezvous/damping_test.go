package rendezvous

import (
	"testing"
	"time"
)

func TestDamping(t *testing.T) {
	const s, m = time.Second, time.Minute
	type step struct {
		after time.Duration // since the step before
		what  string        // rose, lost, sank, excuse
		hold  time.Duration // how long the pair is held from now on
	}
	tests := []struct {
		name  string
		steps []step
	}{
		{"the first loss costs nothing", []step{{0, "rose", 0}, {5 * s, "lost", 0}}},
		{"every further one doubles the hold, up to five minutes", []step{
			{0, "rose", 0}, {5 * s, "lost", 0},
			{1 * s, "rose", 0}, {5 * s, "lost", 15 * s},
			{15 * s, "rose", 0}, {5 * s, "lost", 30 * s},
			{30 * s, "rose", 0}, {5 * s, "lost", 60 * s},
			{60 * s, "rose", 0}, {5 * s, "lost", 2 * m},
			{2 * m, "rose", 0}, {9 * m, "lost", 4 * m},
			{4 * m, "rose", 0}, {5 * s, "lost", 5 * m},
			{5 * m, "rose", 0}, {5 * s, "lost", 5 * m},
		}},
		{"ten minutes clear the account", []step{
			{0, "rose", 0}, {5 * s, "lost", 0}, {s, "rose", 0}, {5 * s, "lost", 15 * s},
			{15 * s, "rose", 0}, {10 * m, "lost", 0}, {s, "rose", 0}, {s, "lost", 15 * s},
		}},
		{"just short of them do not", []step{
			{0, "rose", 0}, {5 * s, "lost", 0}, {s, "rose", 0}, {10*m - s, "lost", 15 * s},
		}},
		{"time on the relay clears nothing", []step{
			{0, "rose", 0}, {5 * s, "lost", 0}, {2 * time.Hour, "rose", 0}, {5 * s, "lost", 15 * s},
		}},
		{"what has another cause does not count", []step{
			{0, "rose", 0}, {s, "sank", 0}, {s, "rose", 0}, {s, "sank", 0}, {s, "rose", 0}, {s, "lost", 0},
		}},
		{"ten minutes that end for another cause clear it, too", []step{
			{0, "rose", 0}, {s, "lost", 0}, {s, "rose", 0}, {10 * m, "sank", 0}, {s, "rose", 0}, {s, "lost", 0},
		}},
		{"both ends lose the same tunnel", []step{{0, "rose", 0}, {s, "lost", 0}, {s, "lost", 0}, {s, "rose", 0}, {s, "lost", 15 * s}}},
		{"never direct", []step{{0, "lost", 0}, {s, "lost", 0}}},
		{"the cause becomes known afterwards", []step{
			{0, "rose", 0}, {s, "lost", 0}, {s, "rose", 0}, {s, "lost", 15 * s}, {s, "excuse", 0},
			{s, "rose", 0}, {s, "lost", 15 * s},
		}},
		{"another address lets go what is held for an old loss, which counts", []step{
			{0, "rose", 0}, {s, "lost", 0}, {s, "rose", 0}, {s, "lost", 15 * s}, {s, "rose", 0}, {s, "lost", 30 * s},
			{20 * s, "excuse", 0}, {s, "rose", 0}, {s, "lost", 60 * s},
		}},
		{"one loss is excused once", []step{
			{0, "rose", 0}, {s, "lost", 0}, {s, "rose", 0}, {s, "lost", 15 * s}, {s, "excuse", 0}, {s, "excuse", 0},
			{s, "rose", 0}, {s, "lost", 15 * s},
		}},
		{"nothing to excuse", []step{{0, "excuse", 0}, {s, "rose", 0}, {s, "lost", 0}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var d damping
			now := time.Unix(1_700_000_000, 0)
			for i, step := range tt.steps {
				now = now.Add(step.after)
				map[string]func(time.Time){"rose": d.rose, "lost": d.lost, "sank": d.sank, "excuse": d.excuse}[step.what](now)
				if step.hold > 0 && !d.held(now.Add(step.hold-1)) || d.held(now.Add(step.hold)) {
					t.Errorf("step %d, %s: held until %v, want for %v", i, step.what, d.until.Sub(now), step.hold)
				}
			}
		})
	}
}

func TestHoldIsBounded(t *testing.T) {
	for losses := range 200 {
		if got := holdOf(losses); got < 0 || got > holdMax || losses > 20 && got != holdMax {
			t.Errorf("%d losses: %v", losses, got)
		}
	}
}

// Causes are believed as often as they can be true.
func TestDampingDoubtsManyCauses(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	var d damping
	sink := func() { d.rose(now); d.sank(now) }
	const most = int(causeDepth / causePause)
	for range most {
		sink()
	}
	if d.losses != 0 || d.held(now) {
		t.Fatalf("%d causes are held against the path: %+v", most, d)
	}
	sink() // the first that counts is not held against it yet
	sink()
	if d.losses != 2 || !d.until.Equal(now.Add(holdMin)) {
		t.Errorf("%d more: %+v, want a hold of %v", 2, d, holdMin)
	}
	now = now.Add(causePause)
	sink()
	if d.losses != 2 || d.held(now) {
		t.Errorf("one a minute later: %+v, want it believed", d)
	}
}
