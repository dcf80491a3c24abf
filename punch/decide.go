package punch

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/bodkin-net/bodkin/punch/nat"
)

// maxStep is the widest step, in ports, that still counts as counting: hosts
// beside this one take ports between two of its own. Two random ports lie so
// close together once in a thousand times.
const maxStep = 32

// answer tells whether something came from where nothing had been sent to.
type answer int

const (
	notAsked answer = iota
	answered
	unanswered
)

// answers are what came from another port, and from another address and port,
// than the one that was asked.
type answers struct{ port, addr answer }

// filtering is RFC 5780 section 4.4.
func (a answers) filtering() nat.Behaviour {
	switch {
	case a.addr == answered:
		return nat.EndpointIndependent
	case a.port == unanswered:
		return nat.AddressAndPortDependent
	case a.port == answered && a.addr == unanswered:
		return nat.AddressDependent
	case a.port == answered:
		return nat.EndpointIndependent
	}
	return ""
}

// mappingSeen is the mapping used towards one destination.
type mappingSeen struct {
	towards, mapped netip.AddrPort
}

// observations are all Discover's decision rests on.
type observations struct {
	servers [2]netip.AddrPort
	// mappings are the base's in the order they were made. Destinations that
	// did not answer are left out.
	mappings []mappingSeen
	answers  answers
	poisoned nat.Answer // as a port beside has found out
	hairpin  nat.Answer
	hops     int
}

// mapped is the mapping that stands for the base, the first.
func (o observations) mapped() netip.AddrPort {
	if len(o.mappings) == 0 {
		return netip.AddrPort{}
	}
	return o.mappings[0].mapped
}

func decide(from netip.AddrPort, o observations) Network {
	if len(o.mappings) == 0 {
		return Network{NAT: nat.NAT{Blocked: fmt.Sprintf("no answer from %s nor %s over UDP", o.servers[0], o.servers[1])}}
	}
	net := Network{Mapped: o.mapped()}
	net.NAT = nat.NAT{
		Present:   net.Mapped != from,
		Mapping:   nat.EndpointIndependent,
		Filtering: o.answers.filtering(),
	}
	if !net.NAT.Present {
		return net
	}
	net.NAT.Hairpin, net.NAT.Hops = o.hairpin, o.hops
	net.NAT.Mapping = mappingOf(o.mappings)
	switch net.NAT.Mapping {
	case nat.EndpointIndependent:
		if net.Mapped.Port() == from.Port() {
			net.NAT.Allocation = nat.Preserving
		}
		net.NAT.Poisoned = o.poisoned
	case nat.AddressDependent, nat.AddressAndPortDependent:
		net.NAT.Allocation, net.NAT.Step = allocation(o.mappings)
	}
	return net
}

// mappingOf compares mappings, RFC 5780 section 4.3. Where no address was asked
// at two ports, a mapping that differs counts as the stricter kind.
func mappingOf(seen []mappingSeen) nat.Behaviour {
	differ, oneAddr := false, false
	for i, a := range seen {
		for _, b := range seen[:i] {
			sameAddr := a.towards.Addr() == b.towards.Addr()
			if sameAddr && a.mapped != b.mapped {
				return nat.AddressAndPortDependent
			}
			oneAddr = oneAddr || sameAddr
			differ = differ || a.mapped != b.mapped
		}
	}
	switch {
	case len(seen) < 2:
		return ""
	case differ && oneAddr:
		return nat.AddressDependent
	case differ:
		return nat.AddressAndPortDependent
	}
	return nat.EndpointIndependent
}

// allocation tells from mappings made one after the other how a NAT chooses
// their ports, and the step when it counts. One difference can rule counting
// out; it takes two to prove it.
func allocation(seen []mappingSeen) (nat.Allocation, int) {
	var ds []int
	made := seen[:1]
	for _, next := range seen[1:] {
		if slices.ContainsFunc(made, func(m mappingSeen) bool { return m.mapped == next.mapped }) {
			continue // not a new one: it depends on the address alone
		}
		last := made[len(made)-1].mapped
		d := int(next.mapped.Port()) - int(last.Port())
		if last.Addr() != next.mapped.Addr() || !counts(d) {
			return nat.Random, 0
		}
		ds, made = append(ds, d), append(slices.Clip(made), next)
	}
	if len(ds) < 2 {
		return "", 0
	}
	step := ds[0]
	for _, d := range ds[1:] {
		if (d > 0) != (step > 0) {
			return nat.Random, 0
		}
		step = nearer(step, d)
	}
	return nat.Sequential, step
}

// counts reports whether two ports taken one after the other can be d apart
// where ports are counted.
func counts(d int) bool { return d != 0 && -maxStep <= d && d <= maxStep }

// nearer is the one nearer to zero of two distances of one sign.
func nearer(a, b int) int {
	if a < 0 {
		return max(a, b)
	}
	return min(a, b)
}
