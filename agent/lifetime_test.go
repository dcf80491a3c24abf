package agent

import (
	"net/netip"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/punch"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// Lifetimes are learnt of NATs that are there, with a server that can tell, and
// anew when another NAT takes the place of the last.
func TestLearnerFollows(t *testing.T) {
	first, second := netip.MustParseAddrPort("203.0.113.7:4500"), netip.MustParseAddrPort("203.0.113.8:4500")
	servers := [4]netip.AddrPort{first, first, first, first}
	nat := network{mapped: first, nat: wire.NAT{Present: true, Mapping: wire.EndpointIndependent, Poisoned: wire.No}, discovered: true}
	with := func(change func(*network)) network {
		n := nat
		change(&n)
		return n
	}
	tests := []struct {
		name       string
		learnAfter time.Duration
		servers    [4]netip.AddrPort
		n          network
		want       netip.Addr // of the NAT it learns of
	}{
		{"a NAT", time.Hour, servers, nat, first.Addr()},
		{"another NAT", time.Hour, servers, with(func(n *network) { n.mapped = second }), second.Addr()},
		{"no NAT", time.Hour, servers, with(func(n *network) { n.nat.Present = false }), netip.Addr{}},
		{"not discovered", time.Hour, servers, with(func(n *network) { n.discovered = false }), netip.Addr{}},
		{"no second alternate", time.Hour, [4]netip.AddrPort{first, first, first}, nat, netip.Addr{}},
		{"IPv6", 0, servers, nat, netip.Addr{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w, _ := newWatch(t, "127.0.0.1:0", ipv4)
			w.learnAfter = tt.learnAfter
			l := learner{watch: w, service: stunService{servers: tt.servers}, news: make(chan punch.LifetimeTest)}
			defer l.stop()
			l.follow(t.Context(), nat) // which may be the NAT before
			l.follow(t.Context(), tt.n)
			l.follow(t.Context(), network{}) // one look that fails ends nothing
			if tt.want.IsValid() && l.address != tt.want {
				t.Errorf("learns of %v; want %v", l.address, tt.want)
			}
			l.stop()
			l.follow(t.Context(), tt.n)
			if l.address != tt.want || (l.end != nil) != tt.want.IsValid() {
				t.Errorf("from the start: learns of %v; want %v", l.address, tt.want)
			}
		})
	}
}

func TestLearnable(t *testing.T) {
	ei, apd := wire.EndpointIndependent, wire.AddressAndPortDependent
	tests := []struct {
		name string
		nat  wire.NAT
		want bool
	}{
		{"port-restricted", wire.NAT{Present: true, Mapping: ei, Filtering: apd, Poisoned: wire.No}, true},
		{"poisoned", wire.NAT{Present: true, Mapping: ei, Filtering: apd, Poisoned: wire.Yes}, false},
		{"may be poisoned", wire.NAT{Present: true, Mapping: ei, Filtering: apd}, false},
		{"full cone", wire.NAT{Present: true, Mapping: ei, Filtering: ei}, true},
		{"symmetric", wire.NAT{Present: true, Mapping: apd, Filtering: apd}, true},
		{"no NAT", wire.NAT{Mapping: ei, Filtering: ei}, false},
	}
	for _, tt := range tests {
		if got := learnable(tt.nat); got != tt.want {
			t.Errorf("%s: %v; want %v", tt.name, got, tt.want)
		}
	}
}

// A server that refuses is not asked again and again.
func TestLearnerEndsWhenRefused(t *testing.T) {
	server := serveNATted(t, netip.MustParseAddrPort("203.0.113.7:41000"))
	server.refuse.Store(true)
	w, _ := newWatch(t, "127.0.0.1:0", ipv4)
	w.learnAfter = time.Millisecond
	service, err := stunServiceOf(server.up(), ipv4)
	if err != nil {
		t.Fatal(err)
	}
	l := learner{watch: w, service: service, news: make(chan punch.LifetimeTest)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		l.learn(t.Context(), punch.SilenceOptions{From: w.port.Local()[0], Server: service.servers[1], Alternate: service.servers[3]}, punch.LifetimeTest{})
	}()
	receiveClosed(t, ended)
}

func receiveClosed(t *testing.T, ch <-chan struct{}) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(testTimeout):
		t.Fatalf("not ended within %v", testTimeout)
	}
}

// What was learnt is told and kept: a later session goes on from there.
func TestNetworkWatchLifetime(t *testing.T) {
	mapped := netip.MustParseAddrPort("203.0.113.7:41000")
	w, _ := newWatch(t, "127.0.0.1:0", ipv4)
	w.found = findings{nat: wire.NAT{Present: true}, mapped: mapped}
	w.found.life.Result(true)
	w.found.learnt(w.found.life)
	n := w.known(netip.AddrPort{}, mapped)
	if want := int(w.found.life.Lifetime() / time.Second); want == 0 || n.nat.LifetimeSeconds != want {
		t.Errorf("lifetime %d s; want %d", n.nat.LifetimeSeconds, want)
	}
}
