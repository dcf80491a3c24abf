package e2e

import (
	"testing"
	"time"
)

func TestTimeline(t *testing.T) {
	begin := time.Unix(1000, 0)
	// A dot is an answered ping, an x a lost one.
	timeline := func(pings string) Timeline {
		var all Timeline
		for i, c := range pings {
			e := Echo{Sent: begin.Add(time.Duration(i) * StreamEvery)}
			if c == '.' {
				e.Answered = e.Sent.Add(time.Millisecond)
			}
			all = append(all, e)
		}
		return all
	}
	for _, tt := range []struct {
		pings                        string
		lost                         int
		longest, interrupted, mended int // in pings; mended from the begin, -1 for never broken
	}{
		{"", 0, 0, 0, -1},
		{".....", 0, 0, 0, -1},
		{"..x..", 1, 1, 1, 3},
		{"x..xx.", 3, 2, 3, 5},
		{".xx", 2, 2, 2, 3},
		{"xxx.x.", 4, 3, 4, 5},
	} {
		got := timeline(tt.pings)
		mended := time.Time{}
		if tt.mended >= 0 {
			mended = begin.Add(time.Duration(tt.mended) * StreamEvery)
		}
		if got.Lost() != tt.lost || got.Longest() != time.Duration(tt.longest)*StreamEvery ||
			got.Interrupted() != time.Duration(tt.interrupted)*StreamEvery || !got.Mended().Equal(mended) {
			t.Errorf("%q: lost %d, longest %v, interrupted %v, mended %v; want %+v",
				tt.pings, got.Lost(), got.Longest(), got.Interrupted(), got.Mended(), tt)
		}
	}
}

func TestStreamAnswerComesRound(t *testing.T) {
	s := &Stream{echos: make(Timeline, 70000)}
	for _, seq := range []int{0, 4463, 4464, 65535} {
		s.answered(seq, time.Unix(1, 0))
	}
	for _, i := range []int{65536, 69999, 4464, 65535} {
		if s.echos[i].Answered.IsZero() {
			t.Errorf("ping %d is taken for lost", i)
		}
	}
	if got := 70000 - s.echos.Lost(); got != 4 {
		t.Errorf("%d pings are taken for answered, want 4", got)
	}
	(&Stream{echos: make(Timeline, 3)}).answered(9, time.Unix(1, 0)) // of nobody
}
