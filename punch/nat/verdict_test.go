package nat

import (
	"net/netip"
	"strings"
	"testing"
)

// What the sites of the e2e matrix look like once they have been measured.
func measured(mapping, filtering Behaviour, change func(*Site)) Site {
	s := Site{V4: true, NAT: NAT{
		Present: true, Mapping: mapping, Filtering: filtering, Allocation: Preserving, Poisoned: No, Hops: 2,
	}}
	if change != nil {
		change(&s)
	}
	return s
}

const ei, ad, apd = EndpointIndependent, AddressDependent, AddressAndPortDependent

func allocates(a Allocation) func(*Site) {
	return func(s *Site) { s.NAT.Allocation, s.NAT.Step = a, 1 }
}

func mapped(s *Site) { s.NAT.Allocation, s.Mapped = Random, true }

var sites = map[string]Site{
	"none":              {V4: true, NAT: NAT{Mapping: ei, Filtering: ei}},
	"firewall":          {V4: true, NAT: NAT{Mapping: ei, Filtering: apd}},
	"full cone":         measured(ei, ei, nil),
	"address":           measured(ei, ad, nil),
	"port":              measured(ei, apd, nil),
	"poisoned":          measured(ei, apd, func(s *Site) { s.NAT.Poisoned = Yes }),
	"perhaps poisoned":  measured(ei, apd, func(s *Site) { s.NAT.Poisoned = "" }),
	"random":            measured(apd, apd, allocates(Random)),
	"random, open":      measured(apd, ei, allocates(Random)),
	"counting":          measured(apd, apd, allocates(Sequential)),
	"port, mapped":      measured(ei, apd, func(s *Site) { s.Mapped = true }),
	"random, mapped":    measured(apd, apd, mapped),
	"random, no probe":  measured(apd, apd, func(s *Site) { s.NAT.Allocation, s.NoProbe = Random, "nftables is not there" }),
	"random, ice-only":  measured(apd, apd, func(s *Site) { s.NAT.Allocation, s.Policy = Random, ICEOnly }),
	"counting, careful": measured(apd, apd, func(s *Site) { s.NAT.Allocation, s.Policy = Sequential, ICEOnly }),
	"never":             measured(ei, ei, func(s *Site) { s.Policy = Never }),
	"IPv6":              {V6: true, NAT: NAT{Mapping: ei, Filtering: apd}},
	"dual stack":        measured(apd, apd, func(s *Site) { s.NAT.Allocation, s.V6 = Random, true }),
	"blocked":           {V4: true, NAT: NAT{Blocked: "no answer from 203.0.113.1:3478"}},
	"unknown":           {V4: true},
	"never seen":        {},
}

func TestJudge(t *testing.T) {
	for _, test := range []struct {
		a, b   string
		want   string // "direct: strategy", or "relay"
		reason string // a part of it
	}{
		{"none", "none", "direct: ice", "both ports are known"},
		{"none", "port", "direct: ice", ""},
		{"none", "poisoned", "direct: openers", "remembers"},
		{"none", "random", "direct: ice", "symmetric"},
		{"none", "counting", "direct: ice", "symmetric"},
		{"firewall", "firewall", "direct: ice", ""},
		{"firewall", "random", "direct: probe", "firewall looks for one of many"},
		{"full cone", "random", "direct: ice", "symmetric"},
		{"full cone", "full cone", "direct: ice", ""},
		{"address", "random", "direct: ice", "any of its ports"},
		{"port", "port", "direct: ice", ""},
		{"port", "poisoned", "direct: openers", "the router of poisoned remembers"},
		{"poisoned", "poisoned", "direct: openers", "remembers"},
		{"port", "perhaps poisoned", "direct: openers", "may remember"},
		{"port", "random", "direct: probe", "port looks for one of many"},
		{"poisoned", "random", "direct: probe", ""},
		{"port", "random, open", "direct: probe", ""},
		{"port", "counting", "direct: predict", "counts"},
		{"counting", "counting", "direct: predict", "both"},
		{"counting", "random", "relay", "random's ports are random"},
		{"random", "random", "relay", "both NATs are symmetric with random ports"},
		{"random, open", "random", "relay", "both NATs are symmetric"},
		{"port, mapped", "random", "direct: ice", "symmetric"},
		{"random, mapped", "random", "direct: ice", "symmetric"},
		{"random, mapped", "random, mapped", "direct: ice", ""},
		{"random, mapped", "port", "direct: ice", ""},
		{"random, mapped", "poisoned", "direct: openers", "the router of poisoned"},
		{"random, no probe", "port", "relay", "nftables is not there"},
		{"random, no probe", "address", "direct: ice", ""},
		{"random, ice-only", "port", "relay", "forbidden (ice-only) for random, ice-only"},
		{"random, ice-only", "full cone", "direct: ice", ""},
		{"counting, careful", "counting", "relay", "forbidden (ice-only)"},
		{"counting, careful", "port", "relay", "forbidden (ice-only)"},
		{"never", "none", "relay", "forbidden (never) for never"},
		{"IPv6", "IPv6", "direct: ice", "IPv6"},
		{"IPv6", "dual stack", "direct: ice", "IPv6"},
		{"dual stack", "dual stack", "direct: ice", "IPv6"},
		{"dual stack", "random", "relay", "both NATs are symmetric"},
		{"IPv6", "none", "relay", "no common address family: IPv6 has IPv6 only, none has IPv4 only"},
		{"IPv6", "blocked", "relay", "no common address family"},
		{"blocked", "none", "relay", "UDP does not leave the network of blocked: no answer from 203.0.113.1:3478"},
		{"blocked", "blocked", "relay", "UDP does not leave"},
		{"unknown", "none", "direct: openers", "not known yet"},
		{"unknown", "random", "direct: openers", "the NAT of unknown is not known yet"},
		{"unknown", "never seen", "direct: openers", "not known yet"},
		{"never seen", "IPv6", "direct: openers", "not known yet"},
	} {
		for _, order := range [][2]string{{test.a, test.b}, {test.b, test.a}} {
			v := Judge(named(order[0]), named(order[1]))
			kind, _, _ := strings.Cut(v.String(), ": ")
			if v.Expect == Direct {
				kind = v.String()
			}
			// Of two that are both to blame, the order decides who is named.
			if kind != test.want || test.a != test.b && order[0] == test.a && !strings.Contains(v.Reason, test.reason) {
				t.Errorf("%s × %s: %q (%s), want %q with %q", order[0], order[1], v, v.Reason, test.want, test.reason)
			}
			if v.Reason == "" {
				t.Errorf("%s × %s: no reason", order[0], order[1])
			}
		}
	}
}

func named(name string) Site {
	s := sites[name]
	s.Name = name
	return s
}

// Two sites from one public address.
func TestJudgeNeighbours(t *testing.T) {
	at := func(host string, hops int, change func(*Site)) Site {
		return measured(apd, apd, func(s *Site) {
			s.Name, s.NAT.Allocation, s.NAT.Hops = host, Random, hops
			s.Public, s.Hosts = netip.MustParseAddr("203.0.113.7"), []netip.Addr{netip.MustParseAddr(host)}
			if change != nil {
				change(s)
			}
		})
	}
	hairpins := func(a Answer) func(*Site) {
		return func(s *Site) { s.NAT.Mapping, s.NAT.Hairpin = ei, a }
	}
	remembersAnd := func(change func(*Site)) func(*Site) {
		return func(s *Site) { change(s); s.NAT.Poisoned = Yes }
	}
	lax := func(s *Site) { s.NAT.Filtering, s.NAT.Hairpin = ei, Yes } // it hairpins to a port that is of no use to another
	for _, test := range []struct {
		name   string
		a, b   Site
		want   string
		reason string
	}{
		{"one LAN", at("192.168.1.2", 2, nil), at("192.168.1.3", 2, nil), "direct: ice", "behind one NAT (203.0.113.7)"},
		{"two networks of one router", at("192.168.1.2", 2, nil), at("192.168.2.3", 2, nil), "direct: ice", "behind one NAT"},
		{"hops not measured, one LAN", at("192.168.1.2", 0, nil), at("192.168.1.3", 0, nil), "direct: ice", "behind one NAT"},
		{"hops not measured", at("192.168.1.2", 0, nil), at("192.168.2.3", 0, nil), "direct: openers", "not known whether from one network"},
		{"one home behind a carrier", at("192.168.1.2", 3, nil), at("192.168.1.3", 3, nil), "direct: ice", "behind one NAT"},
		{"two homes, the carrier hairpins", at("192.168.1.2", 3, hairpins(Yes)), at("192.168.2.3", 3, hairpins(Yes)), "direct: ice", "both ports are known"},
		{"two homes whose routers remember, it hairpins", at("192.168.1.2", 3, remembersAnd(hairpins(Yes))), at("192.168.2.3", 3, remembersAnd(hairpins(Yes))), "direct: openers", "remembers"},
		{"two homes with random ports, it hairpins", at("192.168.1.2", 3, lax), at("192.168.2.3", 3, lax), "relay", "both NATs are symmetric"},
		{"two homes, it does not", at("192.168.1.2", 3, hairpins(No)), at("192.168.2.3", 3, hairpins(No)), "relay", "it does not hairpin"},
		{"two homes, one with a mapped port", at("192.168.1.2", 3, func(s *Site) { hairpins(No)(s); s.Mapped = true }), at("192.168.2.3", 3, hairpins(No)), "direct: ice", "both ports are known"},
		{"two homes with the same first address", at("192.168.1.2", 3, hairpins(No)), at("192.168.1.2", 3, hairpins(No)), "relay", "it does not hairpin"},
		{"two homes, never asked", at("192.168.1.2", 3, hairpins("")), at("192.168.2.3", 3, hairpins("")), "direct: openers", "both ports are known"},
	} {
		v := Judge(test.a, test.b)
		kind, _, _ := strings.Cut(v.String(), ": ")
		if v.Expect == Direct {
			kind = v.String()
		}
		if test.name == "two homes, never asked" {
			test.a.NAT.Poisoned, test.b.NAT.Poisoned = "", ""
			v = Judge(test.a, test.b)
			kind = v.String()
		}
		if kind != test.want || !strings.Contains(v.Reason, test.reason) {
			t.Errorf("%s: %q (%s), want %q with %q", test.name, v, v.Reason, test.want, test.reason)
		}
	}
}

// A verdict does not depend on the order but for who is named first.
func TestJudgeSymmetric(t *testing.T) {
	for a := range sites {
		for b := range sites {
			x, y := Judge(named(a), named(b)), Judge(named(b), named(a))
			if x.Expect != y.Expect || x.Strategy != y.Strategy {
				t.Errorf("%s × %s is %v, the other way round %v", a, b, x, y)
			}
		}
	}
}

func TestPrivate(t *testing.T) {
	for addr, want := range map[string]bool{
		"10.0.0.1": true, "172.31.255.1": true, "192.168.1.1": true, "100.64.0.1": true, "100.127.255.254": true, "fd00::1": true,
		"100.128.0.1": false, "203.0.113.1": false, "2001:db8::1": false, "169.254.1.1": false,
	} {
		if got := Private(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %t, want %t", addr, got, want)
		}
	}
}
