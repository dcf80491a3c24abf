package punch

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestDecide(t *testing.T) {
	var none netip.AddrPort
	base := netip.MustParseAddrPort("192.168.1.10:4500")
	one := netip.MustParseAddrPort("203.0.113.10:4500")
	two := netip.MustParseAddrPort("203.0.113.10:4501")
	const ei, apd = EndpointIndependent, AddressAndPortDependent
	for name, tc := range map[string]struct {
		mapped [2]netip.AddrPort
		other  answer
		want   NAT
	}{
		"no NAT, no firewall": {[2]netip.AddrPort{base, base}, answered, NAT{false, ei, ei, base, ""}},
		"firewall":            {[2]netip.AddrPort{base, base}, unanswered, NAT{false, ei, apd, base, ""}},
		"full cone":           {[2]netip.AddrPort{one, one}, answered, NAT{true, ei, ei, one, ""}},
		"port-restricted":     {[2]netip.AddrPort{one, one}, unanswered, NAT{true, ei, apd, one, ""}},
		"symmetric":           {[2]netip.AddrPort{one, two}, unanswered, NAT{true, apd, apd, one, ""}},
		"symmetric, open":     {[2]netip.AddrPort{one, two}, answered, NAT{true, apd, ei, one, ""}},
		"not asked":           {[2]netip.AddrPort{one, one}, notAsked, NAT{true, ei, "", one, ""}},
		"second port silent":  {[2]netip.AddrPort{one, none}, unanswered, NAT{true, "", apd, one, ""}},
		"first port silent":   {[2]netip.AddrPort{none, two}, notAsked, NAT{true, "", "", two, ""}},
		"only one, no NAT":    {[2]netip.AddrPort{base, none}, answered, NAT{false, ei, ei, base, ""}},
		"nothing":             {[2]netip.AddrPort{none, none}, notAsked, NAT{Blocked: "no answer from 203.0.113.1:3478 nor 203.0.113.1:3479 over UDP"}},
	} {
		o := observations{
			servers: [2]netip.AddrPort{netip.MustParseAddrPort("203.0.113.1:3478"), netip.MustParseAddrPort("203.0.113.1:3479")},
			mapped:  tc.mapped, otherPort: tc.other,
		}
		if got := decide(base, o); got != tc.want {
			t.Errorf("%s: %+v, want %+v", name, got, tc.want)
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

func TestExplainNATs(t *testing.T) {
	kinds := []struct {
		name string
		nat  NAT
	}{
		{"none", NAT{false, EndpointIndependent, EndpointIndependent, netip.AddrPort{}, ""}},
		{"full cone", NAT{true, EndpointIndependent, EndpointIndependent, netip.AddrPort{}, ""}},
		{"address-restricted", NAT{true, EndpointIndependent, AddressDependent, netip.AddrPort{}, ""}},
		{"port-restricted", NAT{true, EndpointIndependent, AddressAndPortDependent, netip.AddrPort{}, ""}},
		{"symmetric", NAT{true, AddressAndPortDependent, AddressAndPortDependent, netip.AddrPort{}, ""}},
		{"symmetric, open", NAT{true, AddressAndPortDependent, EndpointIndependent, netip.AddrPort{}, ""}},
		{"firewall", NAT{false, EndpointIndependent, AddressAndPortDependent, netip.AddrPort{}, ""}},
		{"unknown", NAT{}},
		{"mapping unknown", NAT{true, "", AddressAndPortDependent, netip.AddrPort{}, ""}},
	}
	const silent = "nothing came back"
	blamed := map[[2]string]string{
		{"symmetric", "symmetric"}:             "both NATs are symmetric",
		{"symmetric", "symmetric, open"}:       "both NATs are symmetric",
		{"symmetric, open", "symmetric"}:       "both NATs are symmetric",
		{"symmetric, open", "symmetric, open"}: "both NATs are symmetric",
	}
	for _, sym := range []string{"symmetric", "symmetric, open"} {
		for filter, words := range map[string]string{
			"port-restricted": "port-filtering NAT", "firewall": "port-filtering firewall", "mapping unknown": "port-filtering NAT",
		} {
			blamed[[2]string{sym, filter}] = "symmetric NAT (address-and-port-dependent mapping) here and " + words + " at the peer"
			blamed[[2]string{filter, sym}] = "symmetric NAT (address-and-port-dependent mapping) at the peer and " + words + " here"
		}
	}
	tried := Stats{Pairs: []PairStats{{RequestsSent: 84}}}
	for _, l := range kinds {
		for _, r := range kinds {
			want, ok := blamed[[2]string{l.name, r.name}]
			if !ok {
				want = silent
			}
			if got := Explain(l.nat, r.nat, tried); !strings.Contains(got, want) {
				t.Errorf("%s × %s: %q, want it to say %q", l.name, r.name, got, want)
			}
		}
	}
}

func TestExplainEvidence(t *testing.T) {
	sym := NAT{Present: true, Mapping: AddressAndPortDependent, Filtering: AddressAndPortDependent}
	to := func(addr string, p PairStats) PairStats {
		p.Remote.Addr = netip.MustParseAddrPort(addr)
		return p
	}
	for _, tc := range []struct {
		local, remote NAT
		stats         Stats
		want          string
	}{
		{NAT{Blocked: "no answer from X"}, sym, Stats{}, "UDP does not leave this network: no answer from X"},
		{sym, NAT{Blocked: "no answer from Y"}, Stats{}, "UDP does not leave the peer's network: no answer from Y"},
		{sym, sym, Stats{}, "no check could be sent: the peer named no address that may be tried"},
		{sym, sym, Stats{[]PairStats{{RequestsSent: 9, RequestsReceived: 3}}}, "the peer's checks arrive here, but neither our answers nor our checks reach it: something on the way to the peer drops them"},
		{NAT{}, NAT{}, Stats{[]PairStats{{RequestsSent: 9, RequestsReceived: 3, ResponsesReceived: 1}}}, "checks were answered, but the attempt ended before both sides agreed on a path"},
		{NAT{}, NAT{}, Stats{[]PairStats{to("192.0.2.1:1", PairStats{RequestsSent: 1})}}, "1 check sent to 1 address, nothing came back: a firewall drops UDP between the two, or the peer did not start"},
		{NAT{}, NAT{}, Stats{[]PairStats{to("192.0.2.1:1", PairStats{RequestsSent: 5}), to("192.0.2.1:2", PairStats{RequestsSent: 5}), to("192.0.2.1:2", PairStats{RequestsSent: 5})}}, "15 checks sent to 2 addresses, nothing came back: a firewall drops UDP between the two, or the peer did not start"},
	} {
		if got := Explain(tc.local, tc.remote, tc.stats); got != tc.want {
			t.Errorf("got  %q\nwant %q", got, tc.want)
		}
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
		c := newConsent(DefaultConsent(), r, start)
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
		c.hurry(at(1100 * time.Millisecond))
		if got := c.step(at(1100 * time.Millisecond)); got != consentWait {
			t.Errorf("step %v while a check is under way, want wait", got)
		}
	})
}
