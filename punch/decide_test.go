package punch

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/punch/nat"
)

func TestDecide(t *testing.T) {
	at := netip.MustParseAddrPort
	base := at("192.168.1.10:4500")
	p1, p2, alt := at("203.0.113.1:3478"), at("203.0.113.1:3479"), at("203.0.113.1:3480")
	addr, both := at("203.0.113.2:3478"), at("203.0.113.2:3480") // of a second address
	const ei, ad, apd = nat.EndpointIndependent, nat.AddressDependent, nat.AddressAndPortDependent
	mapped := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr("203.0.113.10"), port) }
	// towards makes the mappings of a NAT that gives ports, in this order, to the destinations.
	towards := func(dsts []netip.AddrPort, ports ...uint16) (out []mappingSeen) {
		for i, port := range ports {
			out = append(out, mappingSeen{dsts[i], mapped(port)})
		}
		return out
	}
	three, five := []netip.AddrPort{p1, p2, alt}, []netip.AddrPort{p1, p2, addr, alt, both}
	for name, tc := range map[string]struct {
		seen observations
		want nat.NAT
	}{
		"no NAT, no firewall": {
			observations{mappings: []mappingSeen{{p1, base}, {p2, base}}, answers: answers{port: answered}},
			nat.NAT{Mapping: ei, Filtering: ei},
		},
		"firewall": {
			observations{mappings: []mappingSeen{{p1, base}, {p2, base}}, answers: answers{port: unanswered}},
			nat.NAT{Mapping: ei, Filtering: apd},
		},
		"only one answer, no NAT": {
			observations{mappings: []mappingSeen{{p1, base}}, answers: answers{port: answered}},
			nat.NAT{Mapping: ei, Filtering: ei},
		},
		"full cone": {
			observations{mappings: towards(three, 9000, 9000), answers: answers{port: answered}, poisoned: nat.No, hairpin: nat.Yes, hops: 2},
			nat.NAT{Present: true, Mapping: ei, Filtering: ei, Poisoned: nat.No, Hairpin: nat.Yes, Hops: 2},
		},
		"port-restricted, preserving": {
			observations{mappings: towards(three, 4500, 4500), answers: answers{port: unanswered}, poisoned: nat.No, hairpin: nat.No, hops: 3},
			nat.NAT{Present: true, Mapping: ei, Filtering: apd, Allocation: nat.Preserving, Poisoned: nat.No, Hairpin: nat.No, Hops: 3},
		},
		"poisoned": {
			observations{mappings: towards(three, 4500, 4500), answers: answers{port: unanswered}, poisoned: nat.Yes},
			nat.NAT{Present: true, Mapping: ei, Filtering: apd, Allocation: nat.Preserving, Poisoned: nat.Yes},
		},
		"memory not known": {
			observations{mappings: towards(three, 4500, 4500), answers: answers{port: unanswered}},
			nat.NAT{Present: true, Mapping: ei, Filtering: apd, Allocation: nat.Preserving},
		},
		"no alternates": {
			observations{mappings: towards(three, 4500, 4500)},
			nat.NAT{Present: true, Mapping: ei, Allocation: nat.Preserving},
		},
		"the second port is the alternate": {
			observations{mappings: []mappingSeen{{p1, mapped(4500)}, {alt, mapped(4500)}}, answers: answers{port: unanswered}, poisoned: nat.No},
			nat.NAT{Present: true, Mapping: ei, Filtering: apd, Allocation: nat.Preserving, Poisoned: nat.No},
		},
		"symmetric or poisoned, which cannot be told": {
			observations{mappings: []mappingSeen{{p1, mapped(4500)}, {alt, mapped(1721)}}, answers: answers{port: unanswered}},
			nat.NAT{Present: true, Mapping: apd, Filtering: apd, Allocation: nat.Random},
		},
		"address-restricted": {
			observations{mappings: towards(five, 9000, 9000, 9000), poisoned: nat.No, answers: answers{answered, unanswered}},
			nat.NAT{Present: true, Mapping: ei, Filtering: ad, Poisoned: nat.No},
		},
		"full cone, two addresses": {
			observations{mappings: towards(five, 9000, 9000, 9000), poisoned: nat.No, answers: answers{answered, answered}},
			nat.NAT{Present: true, Mapping: ei, Filtering: ei, Poisoned: nat.No},
		},
		"symmetric by address": {
			observations{mappings: towards(five, 9000, 9000, 31000, 9000, 31000), answers: answers{answered, unanswered}},
			nat.NAT{Present: true, Mapping: ad, Filtering: ad, Allocation: nat.Random},
		},
		"symmetric by address, counting or not": {
			observations{mappings: towards(five, 9000, 9000, 9001, 9000, 9001), answers: answers{answered, unanswered}},
			nat.NAT{Present: true, Mapping: ad, Filtering: ad},
		},
		"symmetric, two addresses": {
			observations{mappings: towards(five, 9000, 9002, 9004, 9006, 9008), answers: answers{unanswered, unanswered}},
			nat.NAT{Present: true, Mapping: apd, Filtering: apd, Allocation: nat.Sequential, Step: 2},
		},
		"symmetric, random": {
			observations{mappings: towards(three, 9000, 41234, 17), answers: answers{port: unanswered}},
			nat.NAT{Present: true, Mapping: apd, Filtering: apd, Allocation: nat.Random},
		},
		"symmetric, open": {
			observations{mappings: towards(three, 9000, 41234, 17), answers: answers{port: answered}},
			nat.NAT{Present: true, Mapping: apd, Filtering: ei, Allocation: nat.Random},
		},
		"symmetric, with neighbours that take ports": {
			observations{mappings: towards(three, 9000, 9001, 9008), answers: answers{port: unanswered}},
			nat.NAT{Present: true, Mapping: apd, Filtering: apd, Allocation: nat.Sequential, Step: 1},
		},
		"symmetric, counting down": {
			observations{mappings: towards(three, 9000, 8996, 8994), answers: answers{port: unanswered}},
			nat.NAT{Present: true, Mapping: apd, Filtering: apd, Allocation: nat.Sequential, Step: -2},
		},
		"symmetric, up and down": {
			observations{mappings: towards(three, 9000, 9004, 9001), answers: answers{port: unanswered}},
			nat.NAT{Present: true, Mapping: apd, Filtering: apd, Allocation: nat.Random},
		},
		"symmetric, two answers close to each other": {
			observations{mappings: towards(three, 9000, 9004), answers: answers{port: unanswered}},
			nat.NAT{Present: true, Mapping: apd, Filtering: apd},
		},
		"symmetric, of several public addresses": {
			observations{mappings: []mappingSeen{{p1, mapped(9000)}, {p2, at("203.0.113.11:9001")}}},
			nat.NAT{Present: true, Mapping: apd, Allocation: nat.Random},
		},
		"two servers that have nothing in common": {
			observations{mappings: []mappingSeen{{p1, mapped(9000)}, {addr, mapped(9700)}}},
			nat.NAT{Present: true, Mapping: apd, Allocation: nat.Random},
		},
		"second port silent": {
			observations{mappings: towards(three, 9000), answers: answers{port: unanswered}},
			nat.NAT{Present: true, Filtering: apd},
		},
		"nothing": {
			observations{servers: [2]netip.AddrPort{p1, p2}},
			nat.NAT{Blocked: "no answer from 203.0.113.1:3478 nor 203.0.113.1:3479 over UDP"},
		},
	} {
		got := decide(base, tc.seen)
		if got.NAT != tc.want {
			t.Errorf("%s:\ngot  %+v\nwant %+v", name, got.NAT, tc.want)
		}
		if got.Mapped != tc.seen.mapped() {
			t.Errorf("%s: mapped %s, want %s", name, got.Mapped, tc.seen.mapped())
		}
	}
}

func TestHostCandidates(t *testing.T) {
	ip := netip.MustParseAddr
	ifc := func(name string, addrs ...string) Interface {
		i := Interface{Name: name, Up: true}
		for _, a := range addrs {
			i.Addrs = append(i.Addrs, ip(a))
		}
		return i
	}
	ifaces := []Interface{
		{Name: "lo", Up: true, Loopback: true, Addrs: []netip.Addr{ip("10.9.9.9")}},
		{Name: "eth9", Up: false, Addrs: []netip.Addr{ip("10.8.8.8")}},
		ifc("eth0", "192.168.1.10", "fe80::1", "2001:db8::10", "169.254.7.7"),
		ifc("wan0", "198.51.100.4"),
		ifc("br0", "192.168.2.1", "192.168.1.10"),
		ifc("cni0", "10.10.1.1"), ifc("flannel.1", "10.10.1.0"), ifc("tunl0", "10.11.0.1"), ifc("docker0", "172.17.0.1"),
		ifc("br-0a1b2c3d4e5f", "172.18.0.1"), ifc("kube-ipvs0", "10.96.0.1"), ifc("ipsec0", "10.12.0.1"), ifc("wg0", "10.13.0.1"),
		ifc("wwan0", "10.10.5.5", "100.64.3.3"),
	}
	want := []netip.AddrPort{
		netip.MustParseAddrPort("192.168.1.10:4500"), netip.MustParseAddrPort("[2001:db8::10]:4500"),
		netip.MustParseAddrPort("198.51.100.4:4500"), netip.MustParseAddrPort("192.168.2.1:4500"),
		netip.MustParseAddrPort("100.64.3.3:4500"),
	}
	got := HostCandidates(ifaces, []netip.Prefix{netip.MustParsePrefix("10.10.0.0/16")}, 4500)
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}

	many := Interface{Name: "eth0", Up: true}
	for i := range 2 * MaxHosts {
		many.Addrs = append(many.Addrs, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))
	}
	if n := len(HostCandidates([]Interface{many}, nil, 4500)); n != MaxHosts {
		t.Errorf("%d candidates, want %d", n, MaxHosts)
	}
}

func TestInterfaces(t *testing.T) {
	ifaces, err := Interfaces()
	must(t, err)
	if !slices.ContainsFunc(ifaces, func(i Interface) bool {
		return i.Loopback && i.Up && slices.Contains(i.Addrs, netip.MustParseAddr("127.0.0.1"))
	}) {
		t.Errorf("no loopback interface in %+v", ifaces)
	}
}

func TestPacing(t *testing.T) {
	start := time.Unix(1000, 0)
	var c checkState
	sentBy := map[time.Duration]int{}
	for at := time.Duration(0); at <= 10*time.Second; at += checkTick {
		c.mayCheck(start.Add(at), false)
		sentBy[at] = c.sent
	}
	for at, want := range map[time.Duration]int{time.Second: 50, 3 * time.Second: 70, 10 * time.Second: 84} {
		if got := sentBy[at]; got < want-1 || got > want+1 {
			t.Errorf("%d checks in %s, want %d ± 1", got, at, want)
		}
	}
	now := start.Add(10*time.Second + checkTick)
	if c.mayCheck(now, false) {
		t.Fatal("a late check came after one tick")
	}
	if !c.mayCheck(now, true) {
		t.Error("the first nomination was held back")
	}
	c.alive(now)
	if !c.mayCheck(now, false) || !c.mayCheck(now.Add(fastGap), false) {
		t.Error("still slow after the peer was heard")
	}
}

func TestConsentSchedule(t *testing.T) {
	start := time.Unix(1000, 0)
	at := start.Add
	fresh := func(r Role) *consent {
		c := newConsent(DefaultConsent(), r, 0, start)
		c.rand = func() float64 { return 0.5 } // no jitter
		c.proven(start)
		return c
	}
	t.Run("unanswered checks end it", func(t *testing.T) {
		c := fresh(Controlling)
		var sent []time.Duration
		for {
			now := c.due
			switch c.step(now) {
			case consentSend:
				sent = append(sent, now.Sub(start))
				continue
			case consentLost:
				want := []time.Duration{30000, 30500, 31000, 32000, 34000, 38000}
				for i := range want {
					want[i] *= time.Millisecond
				}
				if !slices.Equal(sent, want) || now != at(40*time.Second) {
					t.Errorf("checks at %v, lost at %s, want %v and 40s", sent, now.Sub(start), want)
				}
				return
			case consentWait:
				t.Fatalf("nothing to do at %s, when a step is due", now.Sub(start))
			}
		}
	})
	t.Run("an answer starts anew", func(t *testing.T) {
		c := fresh(Controlling)
		c.step(at(30 * time.Second))
		c.step(at(30500 * time.Millisecond))
		c.proven(at(30600 * time.Millisecond))
		if got := c.step(at(60 * time.Second)); got != consentWait {
			t.Errorf("step %v before the interval is over, want wait", got)
		}
		if got := c.due; got != at(60600*time.Millisecond) {
			t.Errorf("next check at %s, want 60.6s", got.Sub(start))
		}
	})
	t.Run("jitter stays within its bounds", func(t *testing.T) {
		for rand, want := range map[float64]time.Duration{0: 24 * time.Second, 1: 36 * time.Second} {
			c := fresh(Controlling)
			c.rand = func() float64 { return rand }
			c.proven(start)
			if got := c.due.Sub(start).Round(time.Millisecond); got != want {
				t.Errorf("rand %v: next check in %s, want %s", rand, got, want)
			}
		}
	})
	t.Run("the controlled side is silent while it hears checks", func(t *testing.T) {
		c := fresh(Controlled)
		for s := 30; s <= 300; s += 30 {
			c.heard(at(time.Duration(s) * time.Second))
			if got := c.step(at(time.Duration(s)*time.Second + 44*time.Second)); got != consentWait {
				t.Fatalf("step %v at %ds, want wait", got, s+44)
			}
		}
		if got := c.step(at(345 * time.Second)); got != consentSend {
			t.Errorf("step %v after 45s of silence, want send", got)
		}
		c.heard(at(345 * time.Second))
		for c.due.Before(at(355 * time.Second)) {
			c.step(c.due)
		}
		if got := c.step(at(355 * time.Second)); got != consentLost {
			t.Errorf("step %v, want lost: hearing the peer answers no check of ours", got)
		}
	})
	t.Run("the controlling side checks all the same", func(t *testing.T) {
		c := fresh(Controlling)
		c.heard(at(29 * time.Second))
		if got := c.step(at(30 * time.Second)); got != consentSend {
			t.Errorf("step %v, want send", got)
		}
	})
	t.Run("hurry", func(t *testing.T) {
		c := fresh(Controlling)
		c.hurry(at(time.Second))
		if got := c.step(at(time.Second)); got != consentSend {
			t.Fatalf("step %v, want send", got)
		}
		c.hurry(at(1050 * time.Millisecond))
		if got := c.step(at(1050 * time.Millisecond)); got != consentWait {
			t.Errorf("step %v while a hurried check is under way, want wait", got)
		}
		if got, want := c.lost(), at(1800*time.Millisecond); got != want {
			t.Errorf("lost at %s, want %s", got.Sub(start), want.Sub(start))
		}
	})
	t.Run("hurry while a routine check is under way", func(t *testing.T) {
		c := fresh(Controlling)
		c.step(at(30 * time.Second))
		c.hurry(at(31 * time.Second))
		if got := c.step(at(31 * time.Second)); got != consentSend {
			t.Fatalf("step %v, want send", got)
		}
		if got, want := c.lost(), at(31800*time.Millisecond); got != want {
			t.Errorf("lost at %s, want %s", got.Sub(start), want.Sub(start))
		}
	})
	t.Run("a long round trip is waited for", func(t *testing.T) {
		c := fresh(Controlling)
		c.answered(start, 700*time.Millisecond)
		c.hurry(at(time.Second))
		for c.step(c.due) == consentSend {
		}
		if got, want := c.due, at(time.Second+3*700*time.Millisecond+300*time.Millisecond); got != want {
			t.Errorf("lost at %s, want %s", got.Sub(start), want.Sub(start))
		}
	})
	t.Run("a process that stood still loses nothing by that", func(t *testing.T) {
		c := fresh(Controlling)
		c.hurry(at(time.Second))
		c.step(at(time.Second))
		c.step(at(1100 * time.Millisecond))
		woken := at(time.Minute)
		if got := c.step(woken); got != consentSend {
			t.Fatalf("step %v after a minute's standstill, want send", got)
		}
		for c.step(c.due) == consentSend {
		}
		if got, want := c.due, woken.Add(c.Hurried.Lost); got != want {
			t.Errorf("lost at %s, want %s: all checks anew", got.Sub(start), want.Sub(start))
		}
	})
	t.Run("traffic both ways puts checks off", func(t *testing.T) {
		c := fresh(Controlling)
		for s := 10; s <= 300; s += 10 {
			c.carried(at(time.Duration(s) * time.Second))
			if got := c.step(at(time.Duration(s)*time.Second + 20*time.Second)); got != consentWait {
				t.Fatalf("step %v at %ds, want wait", got, s+20)
			}
		}
		if got := c.step(at(330 * time.Second)); got != consentSend {
			t.Errorf("step %v an interval after the last traffic, want send", got)
		}
	})
	t.Run("traffic both ways ends a hurried check, if it is later", func(t *testing.T) {
		c := fresh(Controlling)
		c.hurry(at(time.Second))
		c.step(at(time.Second))
		c.carried(at(900 * time.Millisecond))
		if got := c.step(at(1100 * time.Millisecond)); got != consentSend {
			t.Errorf("step %v after traffic from before the check, want send", got)
		}
		c.carried(at(1150 * time.Millisecond))
		if got := c.step(at(2 * time.Second)); got != consentWait {
			t.Errorf("step %v after traffic since the check began, want wait", got)
		}
	})
}
