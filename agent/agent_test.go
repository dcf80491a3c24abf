package agent

import (
	"slices"
	"testing"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// testDaemon is a daemon of a session with the store given, without charon.
func testDaemon(t *testing.T, storeID string) *Daemon {
	t.Helper()
	return &Daemon{
		log: discardLog, owned: mustOpenOwned(t, t.TempDir()),
		id:      &identity{},
		tunnels: map[wire.NodeName]*tunnel{}, runs: map[wire.NodeName]*running{},
		link: &linkUp{welcome: &wire.Welcome{StoreID: storeID}, send: func(wire.Message) {}},
	}
}

func (d *Daemon) tunnelNames() []wire.NodeName {
	var names []wire.NodeName
	for _, t := range d.sorted() {
		names = append(names, t.name())
	}
	return names
}

// The list of peers is complete, but only for the store it comes from: a
// rendezvous that was set up anew and knows no community yet must not end what
// its predecessor asked for.
func TestPeersEndOnlyTheirOwnStoresTunnels(t *testing.T) {
	edge := func(name wire.NodeName) wire.Peer {
		return wire.Peer{Endpoint: wire.Endpoint{Name: name}, Plan: wire.PlanICE, Role: wire.Controlled}
	}
	d := testDaemon(t, "new")
	d.tunnels["a.old"] = newTunnel(edge("a.old"), "old", t0)
	d.tunnels["a.moved"] = newTunnel(edge("a.moved"), "old", t0)
	d.tunnels["a.leaves"] = newTunnel(edge("a.leaves"), "new", t0)
	d.tunnels["a.unasked"] = newTunnel(edge("a.unasked"), "", t0)

	d.peers(t.Context(), t0, &wire.Peers{Peers: []wire.Peer{edge("a.moved"), edge("a.joins")}})
	if got, want := d.tunnelNames(), []wire.NodeName{"a.joins", "a.moved", "a.old"}; !slices.Equal(got, want) {
		t.Errorf("tunnels %v; want %v", got, want)
	}
	d.peers(t.Context(), t0, &wire.Peers{})
	if got, want := d.tunnelNames(), []wire.NodeName{"a.old"}; !slices.Equal(got, want) {
		t.Errorf("after an empty list: tunnels %v; want %v", got, want)
	}
}

// The file follows when a tunnel of ours is asked for by another store.
func TestPeersRecordTheirStore(t *testing.T) {
	d := testDaemon(t, "new")
	d.owned.set("a.peer", "old")
	peer := func(name wire.NodeName) wire.Peer {
		return wire.Peer{Endpoint: wire.Endpoint{Name: name}, Plan: wire.PlanICE, Role: wire.Controlled}
	}
	d.peers(t.Context(), t0, &wire.Peers{Peers: []wire.Peer{peer("a.peer"), peer("a.other")}})
	if got := d.owned.storeID("a.peer"); got != "new" {
		t.Errorf("store of our connection: %q; want new", got)
	}
	if d.owned.has("a.other") {
		t.Error("a connection that was never loaded is ours")
	}
}

// An order for a node that shares no community with us is not obeyed.
func TestOrderForNoPeer(t *testing.T) {
	d := testDaemon(t, "store")
	d.message(t.Context(), orderFor(icePeer, "a1"))
	if len(d.runs) > 0 || len(d.tunnels) > 0 {
		t.Errorf("runs %v, tunnels %v; want none", d.runs, d.tunnelNames())
	}
}

// An address inside a peer's subnets leads into a tunnel and cannot carry one.
func TestInTunnel(t *testing.T) {
	d := testDaemon(t, "store")
	d.tunnels[icePeer.Endpoint.Name] = newTunnel(icePeer, "store", t0)
	inside, outside := prefixList("10.233.67.9/32")[0].Addr(), prefixList("10.233.66.9/32")[0].Addr()
	if !d.inTunnel(inside) || d.inTunnel(outside) {
		t.Errorf("inTunnel(%s) = %v, inTunnel(%s) = %v; want true, false", inside, d.inTunnel(inside), outside, d.inTunnel(outside))
	}
}
