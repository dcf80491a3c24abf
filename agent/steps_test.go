package agent

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bodkin-net/bodkin/punch"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

func TestSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := steps{began: time.Now()}
		remote := netip.MustParseAddrPort("203.0.113.9:4500")
		time.Sleep(20 * time.Millisecond)
		s.once(wire.Step{Kind: wire.StepStart})
		s.seen(punch.CheckSent, remote)
		time.Sleep(time.Millisecond)
		s.seen(punch.CheckHeard, remote)
		s.came(progress{ike: true})
		s.came(progress{ike: true, installed: true})
		time.Sleep(time.Second)
		s.came(progress{ike: true, installed: true, bytes: true})
		want := []wire.Step{
			{AtMs: 20, Kind: wire.StepStart}, {AtMs: 20, Kind: wire.StepCheck, Remote: remote}, {AtMs: 21, Kind: wire.StepHeard, Remote: remote},
			{AtMs: 21, Kind: wire.StepIKE}, {AtMs: 21, Kind: wire.StepChild}, {AtMs: 1021, Kind: wire.StepBytes},
		}
		if got := s.all(); !reflect.DeepEqual(got, want) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	})
}

// However much there is to tell, it fits into a report, and its end is in it.
func TestStepsBounded(t *testing.T) {
	s := steps{began: time.Now()}
	for _, kind := range []wire.StepKind{
		wire.StepStart, wire.StepOpeners, wire.StepPorts, wire.StepSearch, wire.StepCheck, wire.StepHeard, wire.StepHit, wire.StepNominated, wire.StepLoaded,
	} {
		for range 10 {
			s.add(wire.Step{Kind: kind})
		}
	}
	s.once(wire.Step{Kind: wire.StepFailed, Text: strings.Repeat("because ", 1000)})
	list := s.all()
	if last := list[len(list)-1]; len(list) != wire.MaxSteps || last.Kind != wire.StepFailed {
		t.Errorf("%d steps, the last is %+v", len(list), last)
	}
	r := wire.Report{Peer: "a.peer", Outcome: wire.OutcomeFailed, Reason: "because", Steps: list}
	if err := r.Validate(); err != nil {
		t.Error(err)
	}
}

// Steps go with what ends a coordinated attempt, and with nothing else.
func TestReportsWithSteps(t *testing.T) {
	list := []wire.Step{{Kind: wire.StepStart}}
	path := wire.Path{Kind: wire.PathHost, Remote: netip.MustParseAddrPort("10.0.0.1:4500")}
	reports := func(effects []effect) (out []*wire.Report) {
		for _, e := range effects {
			if e, ok := e.(tell); ok {
				out = append(out, e.report)
			}
		}
		return out
	}
	begun := func() *tunnel {
		tun := newTunnel(icePeer, "store", t0)
		tun.ordered(t0, orderFor(icePeer, "a1"), 1)
		tun.sent(1, 3, list)
		return tun
	}
	for name, tt := range map[string]struct {
		effects []effect
		want    []wire.Step
	}{
		"nominated": {begun().nominated(1, path), nil},
		"direct":    {begun().direct(t0, 1, path, time.Second), list},
		"failed":    {begun().failed(t0, 1, "no way", false), list},
		"lost":      {begun().lost(t0, 1, "silent"), nil},
	} {
		got := reports(tt.effects)
		if len(got) != 1 || !reflect.DeepEqual(got[0].Steps, tt.want) {
			t.Errorf("%s: %+v; want steps %v", name, got, tt.want)
		}
	}
	next := begun()
	next.ordered(t0, orderFor(icePeer, "a2"), 2)
	if next.steps != nil {
		t.Errorf("a new attempt begins with the steps of the one before: %v", next.steps)
	}
	public := newTunnel(wire.Peer{Endpoint: icePeer.Endpoint, Plan: wire.PlanPublic, Role: wire.Controlling}, "store", t0)
	public.wanted(t0, public.peer, "store", func() runID { return 1 })
	public.sent(1, 0, list)
	if got := reports(public.direct(t0, 1, path, time.Second)); len(got) != 1 || got[0].Steps != nil {
		t.Errorf("the connector's: %+v", got)
	}
}
