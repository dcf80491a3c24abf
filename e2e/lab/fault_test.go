package lab

import (
	"net/netip"
	"testing"
	"time"
)

// TestSetPath: what is broken is the way between two, and nothing else.
func TestSetPath(t *testing.T) {
	l := newLab(t, Options{})
	r := addRouter(t, l, "router", RouterOptions{NAT: PortRestricted})
	inside := addHost(t, l, "inside", HostOptions{Router: r})
	near, far := addHost(t, l, "near", HostOptions{}), addHost(t, l, "far", HostOptions{})
	answered := func(from, to *Host) bool { return ping(t, from, to.Addr(), 1).Received == 1 }
	for _, open := range []bool{false, true} {
		if err := l.SetPath(far, inside, open); err != nil {
			t.Fatal(err)
		}
		if got := answered(inside, far); got != open {
			t.Errorf("path open %v, ping answered %v", open, got)
		}
		if !answered(inside, near) || !answered(near, far) {
			t.Errorf("path open %v: another path is broken", open)
		}
	}
	if err := l.SetPath(inside, r.Host, false); err == nil {
		t.Error("a path inside one router's network was broken")
	}
}

// TestPowerOff: nothing runs and nothing answers, until it is connected again.
func TestPowerOff(t *testing.T) {
	l := newLab(t, Options{})
	a, b := addHost(t, l, "a", HostOptions{}), addHost(t, l, "b", HostOptions{})
	onB, err := b.Start(t.Context(), "sleeper", nil, "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	onA, err := a.Start(t.Context(), "sleeper", nil, "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	if err := b.PowerOff(); err != nil {
		t.Fatal(err)
	}
	if !onB.ended() || onA.ended() {
		t.Errorf("process on it ended: %v, elsewhere: %v; want true, false", onB.ended(), onA.ended())
	}
	if ping(t, a, b.Addr(), 1).Received != 0 {
		t.Error("a host without power answers")
	}
	if err := b.SetUp(true); err != nil {
		t.Fatal(err)
	}
	if ping(t, a, b.Addr(), 1).Received != 1 {
		t.Error("connected again, it does not answer")
	}
}

// TestForgetFlows: a router that keeps no table but conntrack's forgets whom it
// may let in.
func TestForgetFlows(t *testing.T) {
	l := newLab(t, Options{})
	server := addHost(t, l, "server", HostOptions{})
	r := addRouter(t, l, "router", RouterOptions{NAT: Symmetric})
	inside := addHost(t, l, "inside", HostOptions{Router: r})
	from, to := listen(t, inside, 1000), listen(t, server, 1000)
	mapped := func() netip.AddrPort {
		from.send(to.addr, "x")
		_, src := to.receive()
		return src
	}
	first := mapped()
	if again := mapped(); again != first {
		t.Fatalf("a standing flow moved from %v to %v", first, again)
	}
	until(t, "the flow has another port", func() bool { // the same one comes again once in 64,512 times
		if err := r.ForgetFlows(); err != nil {
			t.Fatal(err)
		}
		return mapped() != first
	})
	if result, err := inside.Ping(t.Context(), server.Addr(), 1, time.Second, netip.Addr{}); err != nil || result.Received != 1 {
		t.Errorf("after forgetting, a new flow: %+v, %v", result, err)
	}
}
