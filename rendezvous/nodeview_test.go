package rendezvous

import (
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/bodkin-net/bodkin/punch/nat"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

func TestObservedInBothFamilies(t *testing.T) {
	v4, v6 := netip.MustParseAddrPort("203.0.113.1:4500"), netip.MustParseAddrPort("[2001:db8::1]:4500")
	none := netip.AddrPort{}
	for _, tt := range []struct {
		name          string
		seen          []netip.AddrPort
		observed, six netip.AddrPort
		inFour, inSix netip.AddrPort
	}{
		{"IPv4", []netip.AddrPort{v4}, v4, none, v4, none},
		{"IPv6", []netip.AddrPort{v6}, v6, none, none, v6},
		{"IPv4 first", []netip.AddrPort{v4, v6}, v4, v6, v4, v6},
		{"IPv6 first", []netip.AddrPort{v6, v4}, v4, v6, v4, v6},
	} {
		var v NodeView
		for _, at := range tt.seen {
			v.observe(Observation{Addr: at, At: time.Unix(1, 0), Means: at.String()})
		}
		if v.Observed != tt.observed || v.Observed6 != tt.six || v.ObservedBy != tt.observed.String() {
			t.Errorf("%s: %+v", tt.name, v)
		}
		if got4, got6 := v.observedIn(v4), v.observedIn(v6); got4 != tt.inFour || got6 != tt.inSix {
			t.Errorf("%s: in IPv4 %v, in IPv6 %v", tt.name, got4, got6)
		}
	}
}

func TestObservationsRestored(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	at := func(addr string, ago time.Duration) store.Observation {
		return store.Observation{Addr: netip.MustParseAddrPort(addr), Last: now.Add(-ago)}
	}
	for _, tt := range []struct {
		name          string
		seen          []store.Observation // newest first
		observed, six string
	}{
		{"nothing", nil, "", ""},
		{"the newest", []store.Observation{at("203.0.113.1:4500", 0), at("203.0.113.9:4500", time.Minute)}, "203.0.113.1:4500", ""},
		{"one of each", []store.Observation{at("[2001:db8::1]:4500", 0), at("203.0.113.1:4500", time.Minute)}, "203.0.113.1:4500", "[2001:db8::1]:4500"},
		{"one of another stay", []store.Observation{at("203.0.113.1:4500", 0), at("[2001:db8::1]:4500", 2*sameStay)}, "203.0.113.1:4500", ""},
		{"IPv4 of another stay", []store.Observation{at("[2001:db8::1]:4500", 0), at("203.0.113.1:4500", 2*sameStay)}, "[2001:db8::1]:4500", ""},
	} {
		var v NodeView
		v.restore(tt.seen)
		text := func(a netip.AddrPort) string {
			if !a.IsValid() {
				return ""
			}
			return a.String()
		}
		if text(v.Observed) != tt.observed || text(v.Observed6) != tt.six {
			t.Errorf("%s: %v and %v", tt.name, v.Observed, v.Observed6)
		}
	}
}

// What agents say of their NATs makes the orders, and verdicts that outlast the
// rendezvous.
func TestVerdictsOverTheWire(t *testing.T) {
	s := newSite(t)
	r := s.start()
	careful := strings.Replace(communityFileOf("all", string(edge1), string(edge2), string(edge3)), "metadata: {",
		"metadata: {annotations: {bodkin.net/punch: auto}, ", 1)
	if _, err := r.server.applyCommunities(t.Context(), "all.yaml", io.NopCloser(strings.NewReader(careful))); err != nil {
		t.Fatal(err)
	}
	one, two := r.join(edge1), r.dial(edge2)
	two.send(&wire.Hello{Endpoint: endpointOf(edge2), NoProbe: "nftables is missing", Candidates: []wire.Candidate{
		hostCandidate(endpointOf(edge1).Subnets[0].Addr().Next().String() + ":4500"),
	}})
	// Known before the first order, so that there is only one.
	one.send(&wire.Network{Candidates: []wire.Candidate{}, NAT: portRestricted})
	two.send(&wire.Network{Candidates: []wire.Candidate{}, NAT: sequential})
	id := expect[*wire.Prepare](two).Attempt
	two.send(&wire.Prepared{Attempt: id})
	if o := expect[*wire.Punch](one); o.Attempt != id || o.Strategy != wire.StrategyOpeners {
		t.Errorf("%+v", o)
	}
	two.send(&wire.Report{Peer: edge1, Attempt: id, Outcome: wire.OutcomeFailed, Reason: "no answer", Packets: 40})
	snap := r.until("failed", func(s Snapshot) bool { return pairIn(s, edge1, edge2).Packets == 40 })
	before := pairIn(snap, edge1, edge2)
	if before.Strategy != nat.Openers || before.Verdict.Strategy != nat.Predict || before.Verdict.Expect != nat.Direct {
		t.Errorf("%+v", before)
	}
	if got := testutil.ToFloat64(r.server.hub.metrics.refused.WithLabelValues(string(causeSubnet))); got != 1 {
		t.Errorf("%v candidates refused, want 1", got)
	}
	_, _ = one.conn.Close(), two.conn.Close()
	r.stop()

	r = s.start()
	snap = r.snapshot()
	after := pairIn(snap, edge1, edge2)
	if after.Verdict != before.Verdict || after.Strategy != nat.Openers || after.Packets != 40 {
		t.Errorf("after a restart: %+v, before: %+v", after, before)
	}
	if n := nodeIn(snap, edge2); n.NoProbe != "nftables is missing" {
		t.Errorf("%+v", n)
	}
	if len(snap.Communities) != 1 || snap.Communities[0].Punch != wire.PolicyAuto {
		t.Errorf("communities %+v", snap.Communities)
	}
}

// Where to join is a host that the farthest reach.
func TestJoinHosts(t *testing.T) {
	for _, order := range [][]string{
		{"203.0.113.1", "10.0.0.1", "127.0.0.1"}, {"connector.example", "localhost"}, {"2001:db8::1", "connector", "::1"}, {"192.168.1.1", "fe80::1"},
	} {
		for i := range order[1:] {
			if narrowness(order[i]) >= narrowness(order[i+1]) {
				t.Errorf("%s is not wider known than %s", order[i], order[i+1])
			}
		}
	}
}
