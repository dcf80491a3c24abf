package agent

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

func TestDemoted(t *testing.T) {
	for _, tt := range []struct {
		state, want string
		standing    bool
	}{
		{"idle", "", false},
		{"punching", "", false},
		{"direct", "stop; leave 3 at 1m1s", false},
		{"adopted", "leave 3 at 1m1s", false},
		{"re-punching", `lost "" "beijing.edge2: the path went silent"`, false}, // the attempt brings a better one
	} {
		t.Run(tt.state, func(t *testing.T) {
			tun := iceIn(tt.state)
			got := brief(tun.demoted(t0.Add(time.Minute), 3, time.Second, "beijing.edge2: the path went silent"))
			if got != tt.want || tun.standing != tt.standing {
				t.Errorf("effects %q, standing %v; want %q, %v", got, tun.standing, tt.want, tt.standing)
			}
			if run := tun.run; strings.Contains(tt.want, "leave") {
				if got := brief(tun.left(t0, run)); got != `lost "" "beijing.edge2: the path went silent"` {
					t.Errorf("reported %s", got)
				}
				if tun.run != 0 || tun.reason == "" {
					t.Errorf("after leaving: %s", summary(tun))
				}
			}
		})
	}
}

// TestKnocks: while the rendezvous is away a tunnel that breaks is tried again by
// its two ends alone, with what led to it.
func TestKnocks(t *testing.T) {
	ids := counter(9)
	tun := iceIn("idle")
	order := orderFor(icePeer, "a2")
	order.Strategy, order.Part, order.StartAfterMs, order.Hopeless = wire.StrategyProbe, wire.PartOpen, 40, "no hope"
	order.Candidates = []wire.Candidate{{Kind: wire.Predicted, Addr: path1.Remote}, {Kind: wire.Host, Addr: path1.Local}}
	tun.ordered(t0, order, 2)
	tun.direct(t0, 2, path1, time.Second)
	tun.leftAlone(t0, true)
	if got := brief(tun.due(t0, ids.next)); got != "" {
		t.Fatalf("a tunnel that stands is tried again: %s", got)
	}
	tun.lost(t0, 2, "silence")
	effects := tun.due(t0, ids.next)
	if len(effects) != 1 {
		t.Fatalf("effects %q; want a try at once", brief(effects))
	}
	got := effects[0].(begin).order
	want := []wire.Candidate{{Kind: wire.ServerReflexive, Addr: path1.Remote}, {Kind: wire.Host, Addr: path1.Local}}
	if got.Strategy != wire.StrategyOpeners || got.Part != "" || got.StartAfterMs != 0 || got.Hopeless != "" || !reflect.DeepEqual(got.Candidates, want) {
		t.Errorf("tries %+v", got)
	}
	for _, e := range tun.failed(t0, 10, "no answer", false) {
		if r, ok := e.(tell); ok && r.report.Attempt != "" {
			t.Errorf("its own try is reported as attempt %s", r.report.Attempt)
		}
	}
	if pause := tun.retryAt.Sub(t0); pause < 0 || pause >= knockPause {
		t.Errorf("tries again after %s; want less than %s", pause, knockPause)
	}
	tun.leftAlone(t0, false)
	if got := brief(tun.due(t0.Add(time.Hour), ids.next)); got != "" {
		t.Errorf("tried while the rendezvous is there: %s", got)
	}
}

// TestRelayRange: a connector's tunnel is told of another range, and stays.
func TestRelayRange(t *testing.T) {
	ids := counter(0)
	peer := publicPeer
	peer.Relay = prefixList("10.233.0.0/16")
	tun := newTunnel(peer, "store", t0)
	tun.wanted(t0, peer, "store", ids.next)
	tun.relays(1, true, "")
	tun.direct(t0, 1, path1, time.Second)
	if got := tun.status(""); !got.Relays || got.State != "direct" {
		t.Errorf("status %+v", got)
	}
	peer.Relay = prefixList("10.233.0.0/16", "10.22.0.0/16")
	if got := brief(tun.wanted(t0, peer, "store", ids.next)); got != "renew" {
		t.Errorf("effects %q; want the run told", got)
	}
	peer.Relay = nil
	if got := brief(tun.wanted(t0, peer, "another", ids.next)); strings.Contains(got, "renew") || len(tun.peer.Relay) != 2 {
		t.Errorf("a rendezvous that knows no community yet: %s, relay %v", got, tun.peer.Relay)
	}
	if got := brief(tun.wanted(t0, peer, "store", ids.next)); !strings.Contains(got, "renew") || len(tun.peer.Relay) != 0 {
		t.Errorf("the one that had asked for the relay: %s, relay %v", got, tun.peer.Relay)
	}
	tun.gone(t0, "charon stopped")
	if tun.relay {
		t.Error("a tunnel that is down relays")
	}
}

func TestStatusOfRelayed(t *testing.T) {
	down := iceIn("punching")
	down.failed(t0, 2, "both NATs are symmetric", false)
	if got := down.status("beijing.connector"); got.State != "relayed" || got.Relay != "beijing.connector" || got.Reason == "" {
		t.Errorf("status %+v; want relayed, with the reason why it is not direct", got)
	}
	if got := down.status(""); got.State != "down" {
		t.Errorf("status without a relay %+v", got)
	}
	if got := iceIn("direct").status("beijing.connector"); got.State != "direct" || got.Relay != "" {
		t.Errorf("status of a direct tunnel %+v", got)
	}
}

// TestAnotherStore: a rendezvous that has lost its store is told again what stands.
func TestAnotherStore(t *testing.T) {
	ids := counter(9)
	tun := iceIn("direct")
	if got := brief(tun.wanted(t0, icePeer, "store", ids.next)); got != "" {
		t.Errorf("the same store is told %s", got)
	}
	effects := tun.wanted(t0, icePeer, "another", ids.next)
	if len(effects) != 1 {
		t.Fatalf("another store is told %q; want a report", brief(effects))
	}
	r := effects[0].(tell).report
	if r.Outcome != wire.OutcomeDirect || r.Attempt != "" || r.Path != path1 || r.ElapsedMs != 80 {
		t.Errorf("reported %+v", r)
	}
	if got := brief(iceIn("adopted").wanted(t0, icePeer, "another", ids.next)); got != "" {
		t.Errorf("a tunnel that nobody watches: %s", got)
	}
}

// TestRenewed: while a new tunnel with the connector is made, and for a moment
// after, nobody's word of the old one begins it anew.
func TestRenewed(t *testing.T) {
	ids := counter(0)
	tun := newTunnel(publicPeer, "store", t0)
	tun.wanted(t0, publicPeer, "store", ids.next)
	tun.direct(t0, 1, path1, time.Second)
	tun.doubted(t0, ids.next())
	making := tun.run
	if got := brief(tun.doubted(t0, ids.next())); got != "" {
		t.Errorf("doubted while another is made: %s", got)
	}
	if got := brief(tun.replaced(t0, "deleted")); got != `lost "" "deleted"` || tun.run != making || tun.standing {
		t.Errorf("the old one ended: %s, %s", got, summary(tun))
	}
	tun.direct(t0, making, path1, time.Second)
	if got := brief(tun.retried(t0.Add(retryIgnored-1), ids.next())); got != "" {
		t.Errorf("the other end's late word: %s", got)
	}
	if got := brief(tun.retried(t0.Add(retryIgnored), ids.next())); !strings.HasSuffix(got, "fresh") {
		t.Errorf("the other end's word: %s; want another tunnel", got)
	}
}

// TestWaitsAtOnce: the end that waits for the edge does so again at once.
func TestWaitsAtOnce(t *testing.T) {
	ids := counter(0)
	waiting := publicPeer
	waiting.Role = wire.Controlled
	tun := newTunnel(waiting, "store", t0)
	tun.wanted(t0, waiting, "store", ids.next)
	tun.direct(t0, 1, path1, time.Second)
	tun.gone(t0, "deleted")
	if got := brief(tun.due(t0, ids.next)); !strings.HasPrefix(got, "begin") {
		t.Errorf("after a loss: %q", got)
	}
	tun.failed(t0, tun.run, "no", false)
	if got := brief(tun.due(t0, ids.next)); got != "" {
		t.Errorf("after a failure: %q; want a pause", got)
	}
}
