package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/punch"
	"github.com/bodkin-net/bodkin/punch/portmap"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

func TestKeepalive(t *testing.T) {
	tests := []struct{ interval, lifetime, want time.Duration }{
		{30 * time.Second, 0, 30 * time.Second}, // not known
		{30 * time.Second, 200 * time.Second, 30 * time.Second},
		{30 * time.Second, 30 * time.Second, 20 * time.Second},
		{30 * time.Second, 5 * time.Second, keepaliveMin},
		{time.Minute, 50 * time.Second, 100 * time.Second / 3},
	}
	for _, tt := range tests {
		if got := keepalive(tt.interval, tt.lifetime); got.Round(time.Millisecond) != tt.want.Round(time.Millisecond) {
			t.Errorf("keepalive(%v, %v) = %v; want %v", tt.interval, tt.lifetime, got, tt.want)
		}
	}
}

// The side whose mappings live shorter decides. A metered node goes nearer to
// what its NAT permits.
func TestConsentFor(t *testing.T) {
	short, long := wire.NAT{LifetimeSeconds: 24}, wire.NAT{LifetimeSeconds: 300}
	for _, tt := range []struct {
		local, remote wire.NAT
		metered       bool
		want          time.Duration
	}{
		{wire.NAT{}, wire.NAT{}, false, punch.DefaultConsent().Interval},
		{long, wire.NAT{}, false, punch.DefaultConsent().Interval},
		{short, long, false, 16 * time.Second},
		{long, short, false, 16 * time.Second},
		{wire.NAT{}, wire.NAT{}, true, meteredInterval},
		{long, long, true, 240 * time.Second},
		{wire.NAT{LifetimeSeconds: 50}, long, true, 40 * time.Second},
		{wire.NAT{LifetimeSeconds: 12}, long, true, keepaliveMin},
	} {
		if got := consentFor(tt.local, tt.remote, tt.metered).Interval; got != tt.want {
			t.Errorf("lifetimes %d and %d s, metered %v: consent every %v; want %v",
				tt.local.LifetimeSeconds, tt.remote.LifetimeSeconds, tt.metered, got, tt.want)
		}
	}
}

func seenAt(addr string) network { return network{mapped: netip.MustParseAddrPort(addr)} }

func TestNetworksNAT(t *testing.T) {
	passes := func(addr string, m wire.Behaviour) network {
		n := seenAt(addr)
		n.nat, n.discovered = wire.NAT{Mapping: m}, true
		return n
	}
	const a4, a6 = "203.0.113.7:4500", "[2001:db8::7]:4500"
	nat4, nat6 := wire.AddressAndPortDependent, wire.EndpointIndependent
	noRoute := network{err: fmt.Errorf("%w: unreachable", errNoWay)}
	silent := network{err: errors.New("no answer")}
	no := [2]bool{}
	tests := []struct {
		name    string
		v4, v6  network
		want    wire.NAT
		known   bool
		mapped  string
		blocked [2]bool
	}{
		{"nobody has looked", network{}, network{}, wire.NAT{}, false, "", no},
		{"IPv4 not yet discovered", seenAt(a4), passes(a6, nat6), wire.NAT{}, false, a4, no},
		{"IPv4 not yet looked at", network{}, passes(a6, nat6), wire.NAT{}, false, a6, no},
		{"both", passes(a4, nat4), passes(a6, nat6), wire.NAT{Mapping: nat4}, true, a4, no},
		{"IPv4 before IPv6", passes(a4, nat4), network{}, wire.NAT{Mapping: nat4}, true, a4, no},
		{"IPv6 alone", noRoute, passes(a6, nat6), wire.NAT{Mapping: nat6}, true, a6, no},
		{"IPv4 blocked, IPv6 passes", silent, passes(a6, nat6), wire.NAT{Mapping: nat6}, true, a6, [2]bool{ipv4: true}},
		{"IPv4 blocked, IPv6 not yet looked at", silent, network{}, wire.NAT{}, false, "", [2]bool{ipv4: true}},
		{"IPv4 alone, blocked", silent, noRoute, wire.NAT{Blocked: "no answer"}, true, "", [2]bool{ipv4: true}},
		{"IPv6 alone, blocked", noRoute, silent, wire.NAT{Blocked: "no answer"}, true, "", [2]bool{ipv6: true}},
		{"neither", noRoute, noRoute, wire.NAT{Blocked: "no way out: unreachable"}, true, "", no},
	}
	for _, tt := range tests {
		n := networks{tt.v4, tt.v6}
		if nat, known := n.nat(); nat != tt.want || known != tt.known {
			t.Errorf("%s: %+v, known %v; want %+v, %v", tt.name, nat, known, tt.want, tt.known)
		}
		if got := n.blocked(); got != tt.blocked {
			t.Errorf("%s: blocked %v; want %v", tt.name, got, tt.blocked)
		}
		mapped := ""
		if m := n.mapped(); m.IsValid() {
			mapped = m.String()
		}
		if mapped != tt.mapped {
			t.Errorf("%s: mapped %s; want %s", tt.name, mapped, tt.mapped)
		}
	}
}

// A new public address means that the session's TCP connection is dead; a new
// port does not, nor does the family that the session is not in.
func TestNetworkEventRestartsSession(t *testing.T) {
	at := func(addr string) networkSeen {
		n := networkSeen{network: seenAt(addr)}
		if n.mapped.Addr().Is6() {
			n.family = ipv6
		}
		return n
	}
	unseen := networkSeen{network: network{err: errors.New("no answer")}}
	tests := []struct {
		name   string
		events []networkSeen // in one session
		want   bool
	}{
		{"first observation", []networkSeen{at("203.0.113.7:4500")}, false},
		{"the same", []networkSeen{at("203.0.113.7:4500"), at("203.0.113.7:4500")}, false},
		{"another port", []networkSeen{at("203.0.113.7:4500"), at("203.0.113.7:50000")}, false},
		{"another address", []networkSeen{at("203.0.113.7:4500"), at("203.0.113.8:4500")}, true},
		{"not seen", []networkSeen{at("203.0.113.7:4500"), unseen}, false},
		{"not seen for a while", []networkSeen{at("203.0.113.7:4500"), unseen, at("203.0.113.8:4500")}, true},
		{"other family", []networkSeen{at("203.0.113.7:4500"), at("[2001:db8::7]:4500"), at("[2001:db8::8]:4500")}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := netDaemon(t)
			var why error
			d.link.restart = func(err error) { why = err }
			// What an earlier session was seen at is no reason.
			d.net[ipv4] = seenAt("203.0.113.99:4500")
			for _, n := range tt.events {
				d.networkEvent(t.Context(), n)
			}
			if (why != nil) != tt.want {
				t.Errorf("restarted for %v; want a restart: %v", why, tt.want)
			}
			if why != nil && !strings.Contains(why.Error(), "from 203.0.113.7 to 203.0.113.8") {
				t.Errorf("restarted for %q; want both addresses named", why)
			}
		})
	}
}

// A NAT whose address changes at each look has several. Its first changes may be
// what they seem to be; for later ones nothing is ended unchecked.
func TestNetworkEventPooling(t *testing.T) {
	d := netDaemon(t)
	d.signalling = &link{checks: make(chan struct{}, 1)}
	restarts := 0
	d.link.restart = func(error) { restarts++ }
	public := newTunnel(publicPeer, "store", t0)
	public.run, public.standing, public.monitored = 1, true, true
	public.path = wire.Path{Kind: wire.PathPublic, Remote: netip.MustParseAddrPort("203.0.113.1:4500")}
	d.tunnels[public.name()] = public
	hurry := make(chan struct{}, 1)
	ended := make(chan struct{})
	close(ended)
	d.runs[public.name()] = &running{run: &run{hurry: hurry}, cancel: func() {}, done: ended}
	d.remapped[ipv4] = [2]time.Time{time.Now(), time.Now()}
	for i, addr := range []string{"203.0.113.7:4500", "203.0.113.8:4500", "203.0.113.7:4500"} {
		d.networkEvent(t.Context(), networkSeen{network: seenAt(addr)})
		if got := len(hurry) > 0; got != (i > 0) {
			t.Errorf("%s: path checked: %v", addr, got)
		}
		if got := len(d.signalling.checks) > 0; got != (i > 0) {
			t.Errorf("%s: session checked: %v", addr, got)
		}
		for len(hurry)+len(d.signalling.checks) > 0 {
			drain(hurry)
			drain(d.signalling.checks)
		}
	}
	if restarts > 0 || public.doubt {
		t.Errorf("%d sessions ended, the connector's tunnel doubted: %v; want none", restarts, public.doubt)
	}
}

// What was punched from an address that this node does not have any more is
// checked at once, also if there was no answer for a while in between; and when
// there is none any more, UDP may not pass at all.
func TestNetworkEventHurriesRuns(t *testing.T) {
	unseen := network{err: errors.New("no answer")}
	for name, tc := range map[string]struct {
		seen []network
		want bool
	}{
		"first observation": {[]network{seenAt("203.0.113.7:4500")}, false},
		"another port":      {[]network{seenAt("203.0.113.7:4500"), seenAt("203.0.113.7:50000")}, false},
		"no answer":         {[]network{seenAt("203.0.113.7:4500"), unseen}, true},
		"still none":        {[]network{seenAt("203.0.113.7:4500"), unseen, unseen}, false},
		"never one":         {[]network{unseen}, false},
		"the same again":    {[]network{seenAt("203.0.113.7:4500"), unseen, seenAt("203.0.113.7:4500")}, false},
		"another address":   {[]network{seenAt("203.0.113.7:4500"), seenAt("203.0.113.8:4500")}, true},
		"after an outage":   {[]network{seenAt("203.0.113.7:4500"), unseen, seenAt("203.0.113.8:4500")}, true},
	} {
		d := netDaemon(t)
		d.link.restart = func(error) {}
		hurry := make(chan struct{}, 1)
		d.runs["a.peer"] = &running{run: &run{hurry: hurry}}
		for _, n := range tc.seen {
			drain(hurry) // the last one counts
			d.networkEvent(t.Context(), networkSeen{network: n})
		}
		if got := len(hurry) > 0; got != tc.want {
			t.Errorf("%s: checks its paths: %v; want %v", name, got, tc.want)
		}
	}
}

// What an operator has to act on is a warning; what repeats itself is for those
// who look for it.
func TestLogNetwork(t *testing.T) {
	known := seenAt("203.0.113.7:4500")
	known.discovered = true
	symmetric := known
	symmetric.nat.Mapping = wire.AddressAndPortDependent
	otherPort := known
	otherPort.mapped = netip.MustParseAddrPort("203.0.113.7:50000")
	for name, tc := range map[string]struct {
		before, seen network
		want         slog.Level
	}{
		"first observation":    {network{}, seenAt("203.0.113.7:4500"), slog.LevelInfo},
		"NAT discovered":       {seenAt("203.0.113.7:4500"), known, slog.LevelInfo},
		"another address":      {known, seenAt("203.0.113.8:4500"), slog.LevelInfo},
		"another NAT":          {known, symmetric, slog.LevelInfo},
		"another port":         {known, otherPort, slog.LevelDebug},
		"another port, no NAT": {seenAt("203.0.113.7:4500"), seenAt("203.0.113.7:50000"), slog.LevelDebug},
		"back again":           {network{err: errors.New("no answer")}, known, slog.LevelInfo},
		"no answer":            {known, network{err: errors.New("no answer")}, slog.LevelWarn},
		"no route":             {network{}, network{err: errNoWay}, slog.LevelDebug},
		"a new local address":  {known, network{err: fmt.Errorf("%w: %w", errNoWay, punch.ErrNoBase)}, slog.LevelWarn},
	} {
		var levels levelRecorder
		d := &Daemon{log: slog.New(&levels)}
		d.logNetwork(tc.before, networkSeen{network: tc.seen})
		if want := (levelRecorder{tc.want}); !slices.Equal(levels, want) {
			t.Errorf("%s: logged at %v; want %v", name, levels, want)
		}
	}
}

// levelRecorder is a slog.Handler that keeps the level of each record.
type levelRecorder []slog.Level

func (l *levelRecorder) Enabled(context.Context, slog.Level) bool { return true }

func (l *levelRecorder) Handle(_ context.Context, r slog.Record) error {
	*l = append(*l, r.Level)
	return nil
}

func (l *levelRecorder) WithAttrs([]slog.Attr) slog.Handler { return l }
func (l *levelRecorder) WithGroup(string) slog.Handler      { return l }

// netDaemon is a daemon in a session over IPv4 with a shared port.
func netDaemon(t *testing.T) *Daemon {
	t.Helper()
	d := testDaemon(t, "store")
	d.link.server = netip.MustParseAddr("198.51.100.1")
	var err error
	if d.port, err = punch.NewPort([]net.PacketConn{listenUDP(t, "127.0.0.1:0")}, discardLog); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.port.Close() })
	return d
}

// The rendezvous hears of the network when it is known whole, and again when
// something has changed: the NAT or the router's port mapping.
func TestNetworkEventTells(t *testing.T) {
	d := netDaemon(t)
	var sent []wire.Message
	d.link.send = func(m wire.Message) { sent = append(sent, m) }
	told := func(what string, want ...*wire.Network) {
		t.Helper()
		if len(sent) != len(want) {
			t.Fatalf("%s: told %d messages; want %d", what, len(sent), len(want))
		}
		for i := range want {
			if !reflect.DeepEqual(sent[i], want[i]) {
				t.Errorf("%s: told %+v; want %+v", what, sent[i], want[i])
			}
		}
		sent = nil
	}
	nat := wire.NAT{Present: true, Mapping: wire.EndpointIndependent}
	seen := networkSeen{network: seenAt("203.0.113.7:4500")}
	mapping := portmap.Mapping{Protocol: "PCP", Outside: netip.MustParseAddrPort("203.0.113.7:4500")}
	candidate := []wire.Candidate{{Kind: wire.Mapped, Addr: mapping.Outside}}

	d.networkEvent(t.Context(), seen)
	told("mapped address alone")
	seen.nat, seen.discovered = nat, true
	d.networkEvent(t.Context(), seen)
	told("NAT", &wire.Network{NAT: nat})
	seen.mapped = netip.AddrPortFrom(seen.mapped.Addr(), 50000)
	d.networkEvent(t.Context(), seen)
	told("another port")
	d.mappingEvent(mapping)
	told("port mapping", &wire.Network{NAT: nat, Candidates: candidate})
	d.mappingEvent(mapping)
	told("the same again")
	nat.LifetimeSeconds, seen.nat.LifetimeSeconds = 50, 50
	d.networkEvent(t.Context(), seen)
	told("lifetime", &wire.Network{NAT: nat, Candidates: candidate})
	d.mappingEvent(portmap.Mapping{})
	told("port mapping lost", &wire.Network{NAT: nat})
	if local := d.localNAT.Load(); local == nil || *local != nat {
		t.Errorf("the runs see %+v; want %+v", local, nat)
	}

	d.net.unsure() // a new session
	d.told = nil
	d.mappingEvent(mapping)
	told("port mapping before a look at the network")
	d.networkEvent(t.Context(), seen)
	told("the look", &wire.Network{NAT: nat, Candidates: candidate})
}
