package rendezvous

import (
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

func TestUsageView(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	peers := func(wire.NodeName) bool { return true }
	u := newUsageView(now, &wire.Usage{Seconds: 300, Signalling: 1000, STUN: 0, Peers: map[wire.NodeName]int64{edge2: 100, connector: 50, edge4: 7}},
		func(n wire.NodeName) bool { return n != edge4 })
	want := &UsageView{At: now, Seconds: 300, Signalling: 288_000, Peers: map[wire.NodeName]int64{edge2: 28_800, connector: 14_400}}
	if !reflect.DeepEqual(u, want) || u.perPeer() != 21_600 {
		t.Errorf("%+v, %d a peer; want %+v", u, u.perPeer(), want)
	}
	if u := newUsageView(now, &wire.Usage{Seconds: 1}, peers); u.perPeer() != 0 || u.Peers == nil {
		t.Errorf("%+v", u)
	}
	// Whatever an agent claims is a number.
	huge := &wire.Usage{Seconds: 1, Signalling: math.MaxInt64, STUN: math.MaxInt64, Peers: map[wire.NodeName]int64{edge1: math.MaxInt64, edge2: math.MaxInt64}}
	if u := newUsageView(now, huge, peers); u.Signalling < 0 || u.Peers[edge1] < 0 || u.perPeer() < 0 {
		t.Errorf("%+v, %d a peer", u, u.perPeer())
	}
}

// What an agent says of its cost is shown; what it says that is not its to say
// is counted, and shown as well.
func TestUsageAndRefusals(t *testing.T) {
	r := newSite(t).start()
	r.apply(community("all", edge1, edge2))
	one := r.dial(edge1)
	one.send(&wire.Hello{Endpoint: endpointOf(edge1), Candidates: []wire.Candidate{}, Metered: true})
	one.expectPeers()
	one.send(&wire.Usage{Seconds: 86_400, Signalling: 600_000, STUN: 400_000, Peers: map[wire.NodeName]int64{edge2: 900_000, edge3: 1}})
	for _, peer := range []wire.NodeName{edge3, edge1} {
		one.send(&wire.Report{Peer: peer, Outcome: wire.OutcomeLost, Reason: "nothing of mine"})
	}
	thief := r.dial(edge2)
	stolen := endpointOf(edge2)
	stolen.Subnets = endpointOf(edge1).Subnets
	thief.send(&wire.Hello{Endpoint: stolen, Candidates: []wire.Candidate{}})
	if bye := thief.expectBye(); !bye.Final {
		t.Errorf("%+v", bye)
	}
	snap := r.until("all is told", func(s Snapshot) bool {
		return nodeIn(s, edge1).RefusedReports == 2 && nodeIn(s, edge2).RefusedSessions == 1
	})
	n := nodeIn(snap, edge1)
	if u := n.Usage; !n.Metered || u == nil || u.Signalling != 600_000 || u.STUN != 400_000 || len(u.Peers) != 1 || u.Peers[edge2] != 900_000 {
		t.Errorf("metered %v, usage %+v", n.Metered, u)
	}
	n = nodeIn(snap, edge2)
	if n.Online || !strings.Contains(n.Refusal, "overlaps") || !strings.Contains(n.Refusal, "of beijing.edge1") {
		t.Errorf("%+v", n)
	}
	// Once it is let in there is nothing to say but how often it was not.
	r.join(edge2).expectPeers(edge1)
	if n := nodeIn(r.snapshot(), edge2); !n.Online || n.Refusal != "" || n.RefusedSessions != 1 {
		t.Errorf("%+v", n)
	}
	r.stop()
	again := r.start()
	if n := nodeIn(again.snapshot(), edge1); !n.Metered || n.Usage != nil {
		t.Errorf("after a restart: %+v", n)
	}
}

// Two edges of one cluster reach each other through its connector as soon as
// their tunnels with it relay.
func TestFromHelloToRelayed(t *testing.T) {
	r := newSite(t).start()
	r.apply(community("all", edge1, edge2))
	gate := r.join(connector)
	expect[*wire.Forwarding](gate)
	edges := []*peer{r.join(edge1), r.join(edge2)}
	for {
		if m := expect[*wire.Forwarding](gate); len(m.Groups) == 1 && len(m.Groups[0].Nodes) == 2 {
			break
		}
	}
	for _, e := range edges {
		e.expectPeers(map[wire.NodeName][]wire.NodeName{edge1: {connector, edge2}, edge2: {connector, edge1}}[e.name]...)
		e.send(&wire.Report{Peer: connector, Outcome: wire.OutcomeDirect, Relay: true})
		gate.send(&wire.Report{Peer: e.name, Outcome: wire.OutcomeDirect, Relay: true})
	}
	snap := r.until("relayed", func(s Snapshot) bool { return pairIn(s, edge1, edge2).State == Relayed })
	if p := pairIn(snap, edge1, edge2); p.Relay != connector || p.Reason == "" {
		t.Errorf("%+v", p)
	}
}
