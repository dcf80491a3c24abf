package agent

import (
	"reflect"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/agent/charon"
	"github.com/bodkin-net/bodkin/punch"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// What is reported is what came between the settling of a session and the
// report, and hourly after that; a new session starts anew.
func TestUsageReports(t *testing.T) {
	var u usage
	m := u.meter("a.peer")
	port := punch.Traffic{}
	signalling := uint64(0)
	pass := func(checks, stun int, signal uint64) {
		for range checks {
			m.packet(100)
		}
		port.PacketsOut += uint64(checks + stun)
		port.BytesOut += uint64(100 * (checks + stun))
		signalling += signal
	}
	at := func(d time.Duration, session time.Time) *wire.Usage {
		return u.report(t0.Add(d), session, signalling, port)
	}
	pass(7, 7, 7) // punching
	for _, d := range []time.Duration{0, usageSettle - 1, usageSettle} {
		if got := at(d, t0); got != nil {
			t.Fatalf("after %v: %+v; want nothing yet", d, got)
		}
	}
	pass(2, 3, 1000)
	if got := at(usageFirst-1, t0); got != nil {
		t.Fatalf("before it is due: %+v", got)
	}
	want := &wire.Usage{Seconds: 240, Signalling: 1000, STUN: 3 * 128, Peers: map[wire.NodeName]int64{"a.peer": 2 * 128}}
	if got := at(usageFirst, t0); !reflect.DeepEqual(got, want) {
		t.Errorf("first report %+v; want %+v", got, want)
	}
	if got, want := u.perDay("a.peer"), int64(2*128*86400/240); got != want {
		t.Errorf("%d bytes a day; want %d", got, want)
	}
	pass(1, 0, 10)
	if got := at(usageFirst+usageEvery-1, t0); got != nil {
		t.Fatalf("within the hour: %+v", got)
	}
	want = &wire.Usage{Seconds: 3600, Signalling: 10, Peers: map[wire.NodeName]int64{"a.peer": 128}}
	if got := at(usageFirst+usageEvery, t0); !reflect.DeepEqual(got, want) {
		t.Errorf("second report %+v; want %+v", got, want)
	}
	u.forget(func(wire.NodeName) bool { return false })
	m = u.meter("a.peer")
	pass(1, 0, 0)
	if got := at(usageFirst+2*usageEvery, t0); got == nil || got.Validate() != nil || got.Peers["a.peer"] != 0 {
		t.Errorf("of a peer that was none for a while: %+v (%v)", got, got.Validate())
	}
	second := t0.Add(4 * time.Hour)
	for _, d := range []time.Duration{0, usageFirst - 1} {
		if got := at(4*time.Hour+d, second); got != nil {
			t.Errorf("%v into a new session: %+v; want nothing yet", d, got)
		}
	}
}

// What charon sends is reckoned for the time that nothing else passes.
func TestUsageIdle(t *testing.T) {
	for name, tt := range map[string]struct {
		sa         charon.SA
		rate       float64 // packets a second, both ways
		plan       wire.Plan
		wantPerDay float64
	}{
		"busy":               {charon.SA{LocalNAT: true, RemoteNAT: true}, 10, wire.PlanICE, 0},
		"idle":               {charon.SA{}, 0, wire.PlanICE, 720 * dpdBytes},
		"idle, public":       {charon.SA{}, 0, wire.PlanPublic, 1440 * dpdBytes},
		"idle, behind a NAT": {charon.SA{LocalNAT: true}, 0, wire.PlanICE, 720*dpdBytes + 4320*keepaliveBytes},
	} {
		t.Run(name, func(t *testing.T) {
			var u usage
			f := newFlowing()
			for range int(2 * time.Hour / pollIdle) {
				f.look(pollIdle, tt.rate, tt.rate)
				u.idle("a.peer", f.now, &f.judge, []charon.SA{tt.sa}, tt.plan)
			}
			_, all := u.meter("a.peer").total()
			if perDay := all * 12; perDay < 0.95*tt.wantPerDay || perDay > 1.05*tt.wantPerDay {
				t.Errorf("%.0f bytes a day; want about %.0f", perDay, tt.wantPerDay)
			}
		})
	}
}
