package nat

import (
	"fmt"
	"net/netip"
	"slices"
)

// Strategy is how two nodes are brought together.
type Strategy string

// Strategies, from the cheapest on. Each includes the ones before it.
const (
	// ICE: both sides check the addresses they were told of.
	ICE Strategy = "ice"
	// Openers: before the first check each side sends packets that leave its
	// own NATs and die on the way, so that no NAT sees the other's packet
	// before it has a mapping of its own.
	Openers Strategy = "openers"
	// Predict: the port of a NAT that counts is computed.
	Predict Strategy = "predict"
	// Probe: the symmetric side opens many ports, the other one looks for one
	// of them.
	Probe Strategy = "probe"
	// None: nothing is tried.
	None Strategy = "none"
)

// Expectation is what will come of a pair.
type Expectation string

// Expectations.
const (
	// Direct: a path between the two.
	Direct Expectation = "direct"
	// Relay: no direct path can be had; traffic needs a relay.
	Relay Expectation = "relay"
)

// Verdict is the judgement on a pair before it is tried.
type Verdict struct {
	Expect   Expectation
	Strategy Strategy
	// Reason is a sentence a person can act on.
	Reason string
}

func (v Verdict) String() string {
	if v.Expect == Relay {
		return "relay: " + v.Reason
	}
	return "direct: " + string(v.Strategy)
}

// Judge says how a and b are to be brought together and what to expect. It is
// symmetric but for the order of the names in the reason. What is not known
// counts as passable: only trying tells.
func Judge(a, b Site) Verdict {
	for _, rule := range []func(a, b Site) (Verdict, bool){
		forbidden, families, blocked, sixth, neighbours, unknown,
	} {
		if v, ok := rule(a, b); ok {
			return v
		}
	}
	switch {
	case a.hidden() && b.hidden():
		return bothHidden(a, b)
	case a.hidden():
		return oneHidden(a, b)
	case b.hidden():
		return oneHidden(b, a)
	}
	return aimed(a, b)
}

func relay(format string, args ...any) (Verdict, bool) {
	return Verdict{Expect: Relay, Strategy: ICE, Reason: fmt.Sprintf(format, args...)}, true
}

func direct(s Strategy, format string, args ...any) (Verdict, bool) {
	return Verdict{Expect: Direct, Strategy: s, Reason: fmt.Sprintf(format, args...)}, true
}

// hidden: nobody can be told where the node's packets will come from.
func (s Site) hidden() bool { return s.NAT.Symmetric() && !s.Mapped }

// open: unasked packets reach the node.
func (s Site) open() bool { return s.Mapped || s.NAT.Filtering == EndpointIndependent }

func forbidden(a, b Site) (Verdict, bool) {
	for _, s := range []Site{a, b} {
		if s.Policy == Never {
			return Verdict{Expect: Relay, Strategy: None, Reason: "punching is forbidden (never) for " + s.Name}, true
		}
	}
	return Verdict{}, false
}

func families(a, b Site) (Verdict, bool) {
	if a.V4 && b.V4 || a.V6 && b.V6 || !a.V4 && !a.V6 || !b.V4 && !b.V6 {
		return Verdict{}, false
	}
	return relay("no common address family: %s has %s only, %s has %s only", a.Name, a.family(), b.Name, b.family())
}

func (s Site) family() string {
	if s.V6 {
		return "IPv6"
	}
	return "IPv4"
}

func blocked(a, b Site) (Verdict, bool) {
	for _, s := range []Site{a, b} {
		if s.NAT.Blocked != "" {
			return relay("UDP does not leave the network of %s: %s", s.Name, s.NAT.Blocked)
		}
	}
	return Verdict{}, false
}

// sixth: firewalls before IPv6 addresses translate nothing (RFC 6092), so two
// checks that leave at once open both.
func sixth(a, b Site) (Verdict, bool) {
	if a.V6 && b.V6 {
		return direct(ICE, "both have IPv6, which is not translated")
	}
	return Verdict{}, false
}

// oneNAT is the TTL that leaves a single NAT: one for its router, one to die of.
const oneNAT = 2

// neighbours: two nodes that come from one public address are behind the same
// NAT. If it is the only one before each, they stand on its network.
func neighbours(a, b Site) (Verdict, bool) {
	if !a.Public.IsValid() || a.Public != b.Public || !a.NAT.Present || !b.NAT.Present {
		return Verdict{}, false
	}
	counted := a.NAT.Hops > 0 && b.NAT.Hops > 0
	switch {
	case counted && a.NAT.Hops <= oneNAT && b.NAT.Hops <= oneNAT, a.NAT.Hops == b.NAT.Hops && sameNetwork(a, b):
		return direct(ICE, "both are behind one NAT (%s): they reach each other at their own addresses", a.Public)
	case !counted:
		return direct(Openers, "both come from one public address (%s); it is not known whether from one network", a.Public)
	case a.NAT.Hairpin == Yes && b.NAT.Hairpin == Yes: // as if they came from two addresses
		return Verdict{}, false
	case a.Mapped || b.Mapped: // within the carrier's network
		return Verdict{}, false
	case a.NAT.Hairpin == "" || b.NAT.Hairpin == "":
		return Verdict{}, false
	}
	return relay("both are behind one carrier NAT (%s) with different routers of their own, and it does not hairpin", a.Public)
}

// networkBits is the size of a LAN as most routers make them.
const networkBits = 24

// sameNetwork guesses: many homes use the same few private networks.
func sameNetwork(a, b Site) bool {
	return slices.ContainsFunc(a.Hosts, func(x netip.Addr) bool {
		p, err := x.Prefix(networkBits)
		return err == nil && x.Is4() && slices.ContainsFunc(b.Hosts, func(y netip.Addr) bool { return x != y && p.Contains(y) })
	})
}

func unknown(a, b Site) (Verdict, bool) {
	for _, s := range []Site{a, b} {
		if !s.NAT.Known() && !s.Mapped {
			return direct(Openers, "the NAT of %s is not known yet", s.Name)
		}
	}
	return Verdict{}, false
}

// aimed: both ports are known beforehand.
func aimed(a, b Site) Verdict {
	for _, s := range []Site{a, b} {
		if s.remembers() {
			v, _ := direct(Openers, "both ports are known; the router of %s %s a packet that comes before its own", s.Name, s.how())
			return v
		}
	}
	v, _ := direct(ICE, "both ports are known")
	return v
}

// remembers: the router could take an early packet of the peer amiss.
func (s Site) remembers() bool {
	return s.NAT.Present && !s.open() && s.NAT.Poisoned != No
}

func (s Site) how() string {
	if s.NAT.Poisoned == Yes {
		return "remembers"
	}
	return "may remember"
}

// oneHidden: h's port is not known beforehand, o's is.
func oneHidden(h, o Site) Verdict {
	var v Verdict
	switch {
	case o.open() || o.NAT.Filtering == AddressDependent:
		v, _ = direct(ICE, "%s is behind a symmetric NAT, and %s admits packets from any of its ports", h.Name, o.Name)
	case searchForbidden(h, o) != "":
		v, _ = relay("%s is behind a symmetric NAT and %s admits no packet from a port it has not sent to; %s", h.Name, o.Name, searchForbidden(h, o))
	case h.NAT.Allocation == Sequential:
		v, _ = direct(Predict, "%s is behind a symmetric NAT that counts: its next port is computed", h.Name)
	case h.NoProbe != "":
		v, _ = relay("%s is behind a symmetric NAT and %s admits no packet from a port it has not sent to; ports cannot be searched for: %s", h.Name, o.Name, h.NoProbe)
	default:
		v, _ = direct(Probe, "%s is behind a symmetric NAT with random ports: %s looks for one of many it opens", h.Name, o.Name)
	}
	return v
}

// bothHidden: a mapping of the one side admits packets from one port of the
// other. Where that is random, one packet in 64,512 comes from it, and each
// packet is a mapping of its own in the sender's router, which forgets it after
// half a minute. Knowing the port to aim at, as of a NAT that counts, does not
// help. Only two that count can be computed.
func bothHidden(a, b Site) Verdict {
	ac, bc := a.NAT.Allocation == Sequential, b.NAT.Allocation == Sequential
	var v Verdict
	switch {
	case ac && bc && searchForbidden(a, b) == "":
		v, _ = direct(Predict, "both are behind symmetric NATs that count: the next ports are computed")
	case ac && bc:
		v, _ = relay("both NATs are symmetric; %s", searchForbidden(a, b))
	case ac:
		v, _ = relay("both NATs are symmetric, and %s's ports are random: %s", b.Name, tooMany)
	case bc:
		v, _ = relay("both NATs are symmetric, and %s's ports are random: %s", a.Name, tooMany)
	default:
		v, _ = relay("both NATs are symmetric with random ports: neither side's port can be known or found")
	}
	return v
}

const tooMany = "hitting the right one would take some 64,512 mappings in its router"

// searchForbidden says who forbids packets to ports that nobody has named.
func searchForbidden(a, b Site) string {
	for _, s := range []Site{a, b} {
		if s.Policy == ICEOnly {
			return "prediction and search are forbidden (ice-only) for " + s.Name
		}
	}
	return ""
}
