package agent

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/agent/charon"
)

// flowing is a tunnel whose packets a test makes up, looked at every so often.
type flowing struct {
	judge   traffic
	now     time.Time
	in, out float64 // counters; fractions of packets are kept for the next look
}

func (f *flowing) sas() []charon.SA {
	return []charon.SA{{Name: "a.peer", State: charon.StateEstablished, Children: []charon.ChildSA{
		{ID: 1, State: charon.StateInstalled, PacketsIn: uint64(f.in), PacketsOut: uint64(f.out)},
	}}}
}

// look lets packets pass at so many a second for d, and looks.
func (f *flowing) look(d time.Duration, in, out float64) sighting {
	f.now = f.now.Add(d)
	f.in += in * d.Seconds()
	f.out += out * d.Seconds()
	return f.judge.look(f.now, f.sas())
}

// phase lets packets pass at a rate for a while and returns when, counted from
// its start, something was seen that which picks.
func (f *flowing) phase(length, every time.Duration, in, out float64, which func(sighting) bool) (times []time.Duration) {
	for at := every; at <= length; at += every {
		if which(f.look(every, in, out)) {
			times = append(times, at)
		}
	}
	return times
}

func newFlowing() *flowing {
	f := &flowing{now: t0}
	f.judge.look(f.now, f.sas())
	return f
}

func suspects(s sighting) bool { return s.suspect }
func answers(s sighting) bool  { return s.answer }
func passes(s sighting) bool   { return s.bothWays }

func TestTrafficSuspects(t *testing.T) {
	type phase struct {
		length, every time.Duration
		in, out       float64 // packets a second
	}
	ms := time.Millisecond
	for name, tt := range map[string]struct {
		before, then phase
		// first is when the first look is due, at least and at most, counted from
		// then's start; zero for never. most is how many there may be.
		atLeast, atMost time.Duration
		most            int
	}{
		"nothing at all":               {phase{5 * time.Second, pollIdle, 0, 0}, phase{time.Minute, pollIdle, 0, 0}, 0, 0, 0},
		"both ways":                    {phase{5 * time.Second, pollFlowing, 50, 50}, phase{time.Minute, pollFlowing, 50, 50}, 0, 0, 0},
		"both ways, few come back":     {phase{5 * time.Second, pollFlowing, 3, 500}, phase{time.Minute, pollFlowing, 3, 500}, 0, 0, 0},
		"dies under dense traffic":     {phase{5 * time.Second, pollFlowing, 50, 50}, phase{time.Second, pollFlowing, 0, 50}, pollFlowing, pollFlowing, 1},
		"dies under sparse traffic":    {phase{5 * time.Second, pollFlowing, 10, 10}, phase{time.Second, pollFlowing, 0, 10}, 500 * ms, 800 * ms, 1},
		"dead when traffic begins":     {phase{5 * time.Second, pollIdle, 0, 0}, phase{2 * time.Second, pollFlowing, 0, 50}, 500 * ms, 800 * ms, 2},
		"one packet gets no answer":    {phase{5 * time.Second, pollIdle, 0, 0}, phase{time.Second, time.Second, 0, 1}, 0, 0, 0},
		"one way out, never an answer": {phase{5 * time.Second, pollIdle, 0, 0}, phase{20 * time.Second, pollFlowing, 0, 50}, 500 * ms, 800 * ms, 12},
		"one way in":                   {phase{5 * time.Second, pollFlowing, 50, 0}, phase{time.Minute, pollFlowing, 50, 0}, 0, 0, 0},
		"busy traffic stops":           {phase{5 * time.Second, pollFlowing, 50, 50}, phase{time.Minute, pollFlowing, 0, 0}, 600 * ms, 800 * ms, 1},
		"rare traffic stops":           {phase{5 * time.Second, pollFlowing, 1, 1}, phase{time.Minute, pollFlowing, 0, 0}, 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFlowing()
			if got := f.phase(tt.before.length, tt.before.every, tt.before.in, tt.before.out, suspects); len(got) > 0 {
				t.Fatalf("before: suspected at %v; want never", got)
			}
			got := f.phase(tt.then.length, tt.then.every, tt.then.in, tt.then.out, suspects)
			if len(got) > tt.most || len(got) == 0 && tt.most > 0 || len(got) > 0 && (got[0] < tt.atLeast || got[0] > tt.atMost) {
				t.Errorf("suspected at %v; want the first time from %v to %v, at most %d times", got, tt.atLeast, tt.atMost, tt.most)
			}
		})
	}
}

// A peer answers one-way traffic each second: after a look or two that is no
// reason any more.
func TestTrafficOneWayWithAnswers(t *testing.T) {
	f := newFlowing()
	var looks []time.Duration
	for at := pollFlowing; at <= time.Minute; at += pollFlowing {
		in := 0.
		if at%answerEvery == 0 {
			in = 1 / pollFlowing.Seconds()
		}
		if f.look(pollFlowing, in, 50).suspect {
			looks = append(looks, at)
		}
	}
	// Now and then silence is tried for as long as at first.
	if len(looks) > 12 {
		t.Errorf("%d looks in a minute of healthy one-way traffic, at %v; want at most 12", len(looks), looks)
	}
	if f.judge.deaf(f.now) > answerEvery {
		t.Errorf("deaf for %v; want no more than the %v between answers", f.judge.deaf(f.now), answerEvery)
	}
}

// A tunnel that nobody watches is given up for the relay when it swallows what is
// sent, later where nobody probes; a lost packet or two are no reason.
func TestTrafficSwallows(t *testing.T) {
	for name, tt := range map[string]struct {
		in, out   float64
		attempted bool
		want      time.Duration // 0 for never within a minute
	}{
		"an attempt is on":  {0, 50, true, swallowsAfter},
		"nothing is on":     {0, 50, false, swallowsUnprobed},
		"bytes come back":   {5, 50, true, 0},
		"nothing is sent":   {0, 0, true, 0},
		"hardly any packet": {0, 0.05, true, 0},
	} {
		f := newFlowing()
		f.phase(5*time.Second, pollFlowing, 50, 50, suspects)
		var at time.Duration
		for passed := pollFlowing; passed <= time.Minute && at == 0; passed += pollFlowing {
			f.look(pollFlowing, tt.in, tt.out)
			if f.judge.swallows(f.now, tt.attempted) {
				at = passed
			}
		}
		if late := at - tt.want; late < 0 || late > 2*pollFlowing {
			t.Errorf("%s: after %v; want %v", name, at, tt.want)
		}
	}
}

func TestTrafficAnswers(t *testing.T) {
	f := newFlowing()
	if got := f.phase(10*time.Second, pollFlowing, 50, 0, answers); len(got) < 9 || len(got) > 10 {
		t.Errorf("one-way traffic answered at %v; want once a second", got)
	}
	f = newFlowing()
	if got := f.phase(10*time.Second, pollFlowing, 50, 50, answers); len(got) > 0 {
		t.Errorf("traffic both ways answered at %v; want never", got)
	}
}

// Two agents that answer each other's probes come to an end.
func TestTrafficAnswersAreNotAnsweredForEver(t *testing.T) {
	a, b := newFlowing(), newFlowing()
	sent, last := 0, 0
	fromA, fromB := 20., 0. // packets under way: what made the one answer first
	for i := range 600 {
		sa, sb := a.look(pollFlowing, fromB/pollFlowing.Seconds(), fromA/pollFlowing.Seconds()), b.look(pollFlowing, fromA/pollFlowing.Seconds(), fromB/pollFlowing.Seconds())
		fromA, fromB = 0, 0
		if sa.answer {
			fromA, sent, last = 1, sent+1, i
		}
		if sb.answer {
			fromB, sent, last = 1, sent+1, i
		}
	}
	if sent == 0 || last > 50 {
		t.Errorf("%d answers, the last at look %d of 600; want some at the beginning only", sent, last)
	}
}

func TestTrafficProof(t *testing.T) {
	for _, tt := range []struct {
		in, out float64
		want    bool
	}{{50, 50, true}, {50, 0, false}, {0, 50, false}, {0, 0, false}} {
		f := newFlowing()
		got := len(f.phase(5*time.Second, pollFlowing, tt.in, tt.out, passes)) > 0
		if got != tt.want {
			t.Errorf("in %v, out %v a second: proof that both ways work: %v; want %v", tt.in, tt.out, got, tt.want)
		}
	}
}

// A rekeyed CHILD SA counts from zero, beside the old one and then alone.
func TestTrafficRekeyed(t *testing.T) {
	var judge traffic
	sa := func(cs ...charon.ChildSA) []charon.SA { return []charon.SA{{Children: cs}} }
	judge.look(t0, sa(charon.ChildSA{ID: 1, PacketsIn: 1000, PacketsOut: 900}))
	for i, tt := range []struct {
		sas     []charon.SA
		in, out uint64
	}{
		{sa(charon.ChildSA{ID: 1, PacketsIn: 1010, PacketsOut: 900}, charon.ChildSA{ID: 2, PacketsIn: 0, PacketsOut: 5}), 10, 5},
		{sa(charon.ChildSA{ID: 2, PacketsIn: 7, PacketsOut: 6}), 7, 1},
		{sa(), 0, 0},
		{sa(charon.ChildSA{ID: 2, PacketsIn: 3, PacketsOut: 2}), 3, 2}, // charon was restarted
	} {
		if in, out := judge.count(tt.sas); in != tt.in || out != tt.out {
			t.Errorf("step %d: %d in, %d out; want %d, %d", i, in, out, tt.in, tt.out)
		}
	}
}

// The last probes of a look that has found the path alive are no reason for
// another look.
func TestTrafficExcused(t *testing.T) {
	for _, excused := range []bool{true, false} {
		f := newFlowing()
		f.look(pollFlowing, 50, 50)
		if excused {
			f.judge.excuse(f.now)
		}
		f.look(pollFlowing, 0, 3/pollFlowing.Seconds())
		got := f.phase(5*time.Second, pollFlowing, 0, 0, suspects)
		if excused == (len(got) > 0) {
			t.Errorf("excused %v: suspected at %v", excused, got)
		}
		if excused && len(f.phase(time.Second, pollFlowing, 0, 50, suspects)) == 0 {
			t.Error("excused for ever")
		}
	}
}

// Traffic that stops again and again is looked at a few times at once, and then
// every few seconds; the look after the last stop is made up for.
func TestTrafficStopsAgainAndAgain(t *testing.T) {
	f := newFlowing()
	looks := 0
	for range 10 {
		f.phase(time.Second, pollFlowing, 50, 50, suspects)
		looks += len(f.phase(time.Second, pollFlowing, 0, 0, suspects))
	}
	if most := stoppedAtOnce + int(20*time.Second/stoppedEvery); looks < stoppedAtOnce || looks > most {
		t.Errorf("%d looks in 20 s; want %d to %d", looks, stoppedAtOnce, most)
	}
	f.phase(time.Second, pollFlowing, 50, 50, suspects)
	if got := f.phase(2*stoppedEvery, pollFlowing, 0, 0, suspects); len(got) != 1 || got[0] > stoppedEvery+stoppedAfter+pollFlowing {
		t.Errorf("after the last stop: looks at %v; want one within %v", got, stoppedEvery+stoppedAfter+pollFlowing)
	}
}

// Whatever passes: looks are bounded in number, a path that lets all or most
// packets through is not deaf for long, and one that dies under steady traffic is
// suspected in time.
func TestTrafficRandom(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 4))
		f := newFlowing()
		if why := f.live(r); why != "" {
			t.Fatalf("seed %d: %s", seed, why)
		}
		// A steady flow, then nothing comes any more.
		rate := 10 + 490*r.Float64()
		f.phase(20*time.Second, pollFlowing, rate, rate, suspects)
		dead := f.phase(3*time.Second, pollFlowing, 0, rate, suspects)
		if len(dead) == 0 || dead[0] > silentAfter+2*pollFlowing {
			t.Fatalf("seed %d: at %.0f packets a second a dead path is suspected at %v; want within %v", seed, rate, dead, silentAfter+2*pollFlowing)
		}
	}
}

// live lets packets pass for a minute, of which the path loses some and of which
// some are answered, and says what was wrong with the sightings.
func (f *flowing) live(r *rand.Rand) (wrong string) {
	rate, answered, loss := 50*r.Float64(), r.Float64(), 0.2*r.Float64()
	looks := 0
	for range int(time.Minute / pollFlowing) {
		in, out := 0., 0.
		for range int(rate * pollFlowing.Seconds() * 2 * r.Float64()) {
			out++
			if r.Float64() < answered*(1-loss)*(1-loss) {
				in++
			}
		}
		f.out += out
		f.in += in
		if f.look(pollFlowing, 0, 0).suspect {
			looks++
		}
	}
	if most := int(time.Minute/silentAfterMax) + 10; looks > most {
		return fmt.Sprintf("%d looks in a minute; want at most %d", looks, most)
	}
	if f.judge.inSinceOut > 0 && f.judge.outSinceIn > 0 {
		return "packets both since the last in and since the last out"
	}
	return ""
}
