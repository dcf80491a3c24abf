package agent

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/punch"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

func candidate(kind wire.CandidateKind, addr string) wire.Candidate {
	return wire.Candidate{Kind: kind, Addr: netip.MustParseAddrPort(addr)}
}

// The rendezvous may ask for what this node's operator forbids, and does not get
// it.
func TestPermitted(t *testing.T) {
	all := []wire.Strategy{"", wire.StrategyICE, wire.StrategyOpeners, wire.StrategyPredict, wire.StrategyProbe}
	for policy, want := range map[wire.Policy][]wire.Strategy{
		"":                 all,
		wire.PolicyAuto:    all,
		wire.PolicyICEOnly: all[:3],
		wire.PolicyNever:   nil,
	} {
		for _, s := range all {
			err := permitted(policy, s)
			if (err == nil) != slices.Contains(want, s) {
				t.Errorf("punch %q, strategy %q: %v", policy, s, err)
			}
			if err != nil && (!strings.Contains(err.Error(), string(policy)) || !strings.Contains(err.Error(), string(strategyOf(s)))) {
				t.Errorf("punch %q, strategy %q: %q names not both", policy, s, err)
			}
		}
	}
}

func TestTimeoutFor(t *testing.T) {
	for name, tc := range map[string]struct {
		order wire.Punch
		want  time.Duration
	}{
		"ICE":      {wire.Punch{}, punchTimeout},
		"predict":  {wire.Punch{Strategy: wire.StrategyPredict}, punchTimeout},
		"probe":    {wire.Punch{Strategy: wire.StrategyProbe}, searchTimeout},
		"hopeless": {wire.Punch{Strategy: wire.StrategyProbe, Hopeless: "both random"}, hopelessTimeout},
	} {
		if got := timeoutFor(&tc.order); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
	if need := time.Second * probeMax / probeRate; searchTimeout < need+time.Second {
		t.Errorf("a search of %d probes at %d a second takes %s, and is cut off at %s", probeMax, probeRate, need, searchTimeout)
	}
}

func TestCandidatesFollowPolicy(t *testing.T) {
	cs := []wire.Candidate{candidate(wire.Host, "192.168.1.2:4500"), candidate(wire.Predicted, "203.0.113.2:5000")}
	for policy, want := range map[wire.Policy]int{wire.PolicyAuto: 2, wire.PolicyICEOnly: 1} {
		r := &run{shared: &shared{punch: policy}}
		if got := r.candidates(cs); len(got) != want || got[0].Kind != punch.Host {
			t.Errorf("punch %s: %v, want %d", policy, got, want)
		}
	}
}

func TestPublicOf(t *testing.T) {
	srflx := candidate(wire.ServerReflexive, "203.0.113.2:4500")
	for name, tc := range map[string]struct {
		cs   []wire.Candidate
		want netip.AddrPort
	}{
		"IPv4 after IPv6": {[]wire.Candidate{candidate(wire.ServerReflexive, "[2001:db8::2]:4500"), srflx}, srflx.Addr},
		"host only":       {[]wire.Candidate{candidate(wire.Host, "198.51.100.2:4500")}, netip.AddrPort{}},
		"claimed only":    {[]wire.Candidate{candidate(wire.Mapped, "198.51.100.2:4500")}, netip.AddrPort{}},
	} {
		if got := publicOf(tc.cs); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
}

// A peer must not lead this node to scan its own neighbours, nor into tunnels.
func TestForbidden(t *testing.T) {
	d := testDaemon(t, "store")
	d.id = &identity{endpoint: wire.Endpoint{Subnets: prefixList("10.233.66.0/24")}}
	d.tunnels[icePeer.Endpoint.Name] = newTunnel(icePeer, "store", t0)
	here := netip.MustParseAddrPort("203.0.113.9:4500")
	d.net[ipv4] = network{mapped: here}
	refused := func(public netip.Addr, a netip.Addr) string {
		for _, f := range d.forbidden(public) {
			if f.Prefix.Contains(a) {
				return f.Reason
			}
		}
		return ""
	}
	elsewhere := netip.MustParseAddr("203.0.113.2")
	for name, tc := range map[string]struct {
		public netip.Addr
		addr   string
		want   string
	}{
		"own subnet":         {elsewhere, "10.233.66.7", "inside this node's own subnets"},
		"a peer's subnet":    {elsewhere, "10.233.67.7", "inside the subnets of beijing.edge2: it leads into a tunnel"},
		"somewhere private":  {elsewhere, "10.99.99.99", ""},
		"somewhere public":   {elsewhere, "198.51.100.7", ""},
		"unknown whereabout": {netip.Addr{}, "10.99.99.99", ""},
	} {
		if got := refused(tc.public, netip.MustParseAddr(tc.addr)); !strings.Contains(got, tc.want) || (got == "") != (tc.want == "") {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
	// Whichever networks this machine is on: those that are private are refused
	// to a peer from elsewhere, and to no other.
	own := privateNetworks(localPrefixes())
	const reason = "comes from another public address"
	count := func(public netip.Addr) int {
		return len(slices.DeleteFunc(d.forbidden(public), func(f punch.Forbidden) bool { return !strings.Contains(f.Reason, reason) }))
	}
	if got := count(elsewhere); got != len(own) {
		t.Errorf("%d networks refused to a peer from elsewhere, want %v", got, own)
	}
	if got := count(here.Addr()); got != 0 {
		t.Errorf("%d networks refused to a peer behind the same NAT", got)
	}
}

func TestPrivateNetworks(t *testing.T) {
	got := privateNetworks(prefixList("192.168.1.10/24", "203.0.113.5/24", "127.0.0.1/8", "fd00::10/64", "100.64.3.3/10"))
	if want := prefixList("192.168.1.0/24", "fd00::/64", "100.64.0.0/10"); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// A question that cannot be asked is answered at once, so that the attempt does
// not wait for it.
func TestPredictWithoutService(t *testing.T) {
	var sent []wire.Message
	d := testDaemon(t, "store")
	d.predictor = newPredictor()
	d.link.send = func(m wire.Message) { sent = append(sent, m) }
	d.message(t.Context(), &wire.Prepare{Attempt: "a1"})
	if len(sent) != 1 || *sent[0].(*wire.Prepared) != (wire.Prepared{Attempt: "a1"}) {
		t.Errorf("sent %v, want an answer without a port", sent)
	}
}

func TestTunnelReportsPackets(t *testing.T) {
	tun := newTunnel(icePeer, "store", t0)
	tun.ordered(t0, orderFor(icePeer, "a1"), 1)
	tun.sent(7, 99, nil) // another run's
	tun.sent(1, 12, nil)
	packets := func(effects []effect) int {
		for _, e := range effects {
			if tell, ok := e.(tell); ok {
				return tell.report.Packets
			}
		}
		return -1
	}
	if got := packets(tun.direct(t0, 1, path1, time.Second)); got != 12 {
		t.Errorf("direct: %d packets, want 12", got)
	}
	if got := packets(tun.lost(t0, 1, "silent")); got != 0 {
		t.Errorf("lost: %d packets, want none: they were not sent to get through", got)
	}
	tun.ordered(t0, orderFor(icePeer, "a2"), 2)
	if got := packets(tun.failed(t0, 2, "no path", false)); got != 0 {
		t.Errorf("the next attempt: %d packets, want none yet", got)
	}
}
