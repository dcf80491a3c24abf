package agent

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// Many changes at once are one event, when they have settled; a clock that ran
// ahead says how long the machine slept.
func TestRoam(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		changes, out := make(chan struct{}, 1), make(chan roamEvent)
		var mu sync.Mutex
		var slept time.Duration
		var roaming sync.WaitGroup
		roaming.Go(func() {
			roam(ctx, changes, func() time.Duration { mu.Lock(); defer mu.Unlock(); return slept }, out)
		})
		start := time.Now()
		for range 5 {
			changes <- struct{}{}
			time.Sleep(settleTime / 10)
		}
		if e := <-out; e.slept != 0 || time.Since(start) != settleTime {
			t.Errorf("after %v: %+v; want a change after %v", time.Since(start), e, settleTime)
		}
		time.Sleep(time.Minute)
		select {
		case e := <-out:
			t.Errorf("%+v a second time", e)
		default:
		}
		mu.Lock()
		slept = time.Hour
		mu.Unlock()
		if e := <-out; e.slept != time.Hour {
			t.Errorf("%+v; want an hour's sleep", e)
		}
		time.Sleep(time.Minute)
		select {
		case e := <-out:
			t.Errorf("%+v: want the same sleep told once", e)
		default:
		}
		cancel()
		roaming.Wait()
	})
}

func TestWaysChanged(t *testing.T) {
	a, b, c := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")
	table := map[netip.Addr]way{a: {device: 1}, b: {device: 1}, c: {device: 1}}
	var w ways
	changed := func(addrs ...netip.Addr) []netip.Addr {
		return slices.SortedFunc(maps.Keys(w.changed(addrs, func(x netip.Addr) way { return table[x] })), netip.Addr.Compare)
	}
	for _, step := range []struct {
		name   string
		change map[netip.Addr]way
		asked  []netip.Addr
		want   []netip.Addr
	}{
		{"first look", nil, []netip.Addr{a, b}, nil},
		{"nothing", nil, []netip.Addr{a, b}, nil},
		{"one has moved, one is new", map[netip.Addr]way{a: {device: 2}}, []netip.Addr{a, b, c}, []netip.Addr{a}},
		{"another gateway", map[netip.Addr]way{b: {device: 1, gateway: c}}, []netip.Addr{a, b, c}, []netip.Addr{b}},
		{"no way at all", map[netip.Addr]way{c: {}}, []netip.Addr{a, c}, []netip.Addr{c}},
		{"forgotten meanwhile", map[netip.Addr]way{b: {device: 3}}, []netip.Addr{a, b, c}, nil},
	} {
		maps.Copy(table, step.change)
		if got := changed(step.asked...); !slices.Equal(got, step.want) {
			t.Errorf("%s: changed %v; want %v", step.name, got, step.want)
		}
	}
}

// The kernel's own answers, on this machine.
func TestWayTo(t *testing.T) {
	if w := wayTo(0, netip.MustParseAddr("127.0.0.1")); w.device == 0 || w.source != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("way to loopback: %+v; want its device and address", w)
	}
	if asleep() < 0 {
		t.Errorf("slept for %v since boot", asleep())
	}
}

func TestAnotherMapping(t *testing.T) {
	at := netip.MustParseAddrPort("203.0.113.7:4500")
	port, addr := netip.MustParseAddrPort("203.0.113.7:1024"), netip.MustParseAddrPort("203.0.113.8:4500")
	for _, tt := range []struct {
		old, now netip.AddrPort
		mapping  wire.Behaviour
		want     bool
	}{
		{netip.AddrPort{}, at, wire.EndpointIndependent, false},
		{at, at, wire.EndpointIndependent, false},
		{at, addr, wire.EndpointIndependent, true},
		{at, addr, wire.AddressAndPortDependent, true},
		{at, port, wire.EndpointIndependent, true},
		{at, port, wire.AddressAndPortDependent, false},
		{at, port, "", false},
	} {
		if got := anotherMapping(tt.old, tt.now, tt.mapping); got != tt.want {
			t.Errorf("%s, then %s, mapping %q: %v; want %v", tt.old, tt.now, tt.mapping, got, tt.want)
		}
	}
}
