package rendezvous

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/bodkin-net/bodkin/punch/nat"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// Bounds on the candidates of one node. With both server-reflexive ones they
// stay below wire.MaxCandidates.
const (
	maxHosts  = 8
	maxMapped = 4
	// maxElsewhere is how many public IPv4 addresses a node may claim as its own
	// without having been observed there: its peers will send checks to them,
	// whoever they belong to. Some hosts do have two lines.
	maxElsewhere = 2
	// maxPredicted is how far other traffic through a counting NAT may have
	// moved it on between the prediction and the attempt.
	maxPredicted = 8
)

// node is a node the rendezvous knows, online or not.
type node struct {
	endpoint wire.Endpoint
	online   bool
	// delay is half the session's last measured round trip.
	delay time.Duration
	// told are the candidates the agent names; hosts and mapped are those of
	// them that are passed on, refused says why others are not.
	told          []wire.Candidate
	hosts, mapped []wire.Candidate
	refused       map[wire.Candidate]refusalCause
	// observed4 and observed6 are where the STUN service sees the IKE port.
	observed4, observed6 netip.AddrPort
	// public is the IPv4 address seen last, in whatever session.
	public  netip.Addr
	nat     wire.NAT
	policy  wire.Policy
	noProbe string
	metered bool
	// site is what verdicts rest on, made by sift; inner says that a router of
	// the node forwards a port that only its carrier's network reaches.
	site  nat.Site
	inner bool
	// gathered is set once a STUN request of the session was observed or the
	// agent said that none can be: from then on a punch makes sense.
	gathered bool
	// standing are the tunnels of the session's hello with nodes that it has no
	// pair with, yet: after the store was lost, members come back before their
	// connector or their community does.
	standing map[wire.NodeName]wire.Tunnel
	// moved is when the node was last seen at another address than before.
	moved time.Time
	// berth is who relays for it, if it is an edge; relayed says that its tunnel
	// there does. Both are made by assignBerths and kept by carry.
	berth   berth
	relayed bool
	// sentPeers and sentForwarding are the last of this session, nil for none;
	// listedAt is when the later of them was sent.
	sentPeers      *wire.Peers
	sentForwarding *wire.Forwarding
	listedAt       time.Time
}

func (n *node) ready() bool { return n != nil && n.online && n.gathered }

// observed is the place for an address of that family.
func (n *node) observed(a netip.Addr) *netip.AddrPort {
	if a.Is4() {
		return &n.observed4
	}
	return &n.observed6
}

// candidates are what a peer of n shall try. Predicted ports stand before the
// observed one, which is of no use behind a NAT that counts: the peer sends to
// them in this order.
func (n *node) candidates(predicted []wire.Candidate) []wire.Candidate {
	cs := slices.Concat(n.hosts, n.mapped, predicted)
	for _, at := range []netip.AddrPort{n.observed4, n.observed6} {
		srflx := wire.Candidate{Kind: wire.ServerReflexive, Addr: at}
		// The peer would refuse a message with what is no node's address, such
		// as the loopback address of an agent beside the rendezvous.
		if srflx.Validate() == nil && !slices.ContainsFunc(cs, func(c wire.Candidate) bool { return c.Addr == at }) {
			cs = append(cs, srflx)
		}
	}
	return cs
}

// refusalCause is why a candidate is passed on to nobody, as metrics name it.
type refusalCause string

const (
	causeSubnet  refusalCause = "tunnel_subnet"
	causeMapping refusalCause = "foreign_mapping"
	causeMany    refusalCause = "too_many"
)

// refuse tells that a candidate is passed on to nobody.
type refuse struct {
	node      wire.NodeName
	candidate wire.Candidate
	cause     refusalCause
	reason    string
}

func (refuse) isAction() {}

// refuseReport tells of a report that changes nothing, since it was not its
// sender's to make.
type refuseReport struct {
	node   wire.NodeName
	report *wire.Report
	reason string
}

func (refuseReport) isAction() {}

// sift decides which of the candidates a node named are passed on, and sums up
// what verdicts on the node rest on.
func (c *coordinator) sift(n *node) {
	n.hosts, n.mapped = nil, nil
	refused := map[wire.Candidate]refusalCause{}
	for _, candidate := range n.told {
		cause, reason := c.wrong(n, candidate)
		if cause != "" {
			if n.refused[candidate] != cause {
				c.do(refuse{n.endpoint.Name, candidate, cause, reason})
			}
			refused[candidate] = cause
			continue
		}
		switch addr := candidate.Addr.Addr(); {
		case candidate.Kind == wire.Host:
			n.hosts = append(n.hosts, candidate)
		case carriers(addr) || n.observed(addr).IsValid(): // else it waits for the observation
			n.mapped = append(n.mapped, candidate)
		}
	}
	n.refused = refused
	n.resite()
}

// wrong says why a candidate is not to be passed on, nothing if it may be.
func (c *coordinator) wrong(n *node, candidate wire.Candidate) (refusalCause, string) {
	addr := candidate.Addr.Addr()
	if owner, subnet, ok := c.tunnelled(addr); ok {
		return causeSubnet, fmt.Sprintf("it is inside subnet %s of %s, which is for tunnels only", subnet, owner)
	}
	if candidate.Kind == wire.Host {
		if len(n.hosts) == maxHosts {
			return causeMany, fmt.Sprintf("more than %d host candidates", maxHosts)
		}
		if n.elsewhere(candidate) && countIf(n.hosts, n.elsewhere) == maxElsewhere {
			return causeMany, fmt.Sprintf("more than %d public host candidates at addresses where the node is not observed", maxElsewhere)
		}
		return "", ""
	}
	if seen := *n.observed(addr); seen.IsValid() && seen.Addr() != addr && !carriers(addr) {
		return causeMapping, fmt.Sprintf("the node is observed at %s: its router can forward no port of another public address", seen.Addr())
	}
	if len(n.mapped) == maxMapped {
		return causeMany, fmt.Sprintf("more than %d mapped candidates", maxMapped)
	}
	return "", ""
}

// elsewhere reports whether a candidate is a public IPv4 address that the node
// was not observed at.
func (n *node) elsewhere(c wire.Candidate) bool {
	a := c.Addr.Addr()
	return a.Is4() && !carriers(a) && a != n.observed4.Addr()
}

func countIf(cs []wire.Candidate, is func(wire.Candidate) bool) (n int) {
	for _, c := range cs {
		if is(c) {
			n++
		}
	}
	return n
}

// tunnelled finds the node that has an address in its subnets.
func (c *coordinator) tunnelled(a netip.Addr) (wire.NodeName, netip.Prefix, bool) {
	for name, n := range c.nodes {
		for _, subnet := range n.endpoint.Subnets {
			if subnet.Contains(a) {
				return name, subnet, true
			}
		}
	}
	return "", netip.Prefix{}, false
}

// carriers reports whether an address may be a router's towards a carrier's
// NAT: others behind that NAT may reach it, the world cannot.
func carriers(a netip.Addr) bool {
	return a.Is4() && nat.Private(a)
}

// resite sums up the node for verdicts.
func (n *node) resite() {
	n.site = nat.Site{
		Name: string(n.endpoint.Name), NAT: natOf(n.nat), NoProbe: n.noProbe, Policy: nat.Policy(n.policy),
		V4: n.observed4.IsValid(), V6: n.observed6.IsValid(), Public: n.observed4.Addr(),
	}
	for _, h := range n.hosts {
		a := h.Addr.Addr()
		n.site.Hosts = append(n.site.Hosts, a)
		n.site.V4 = n.site.V4 || a.Is4()
		n.site.V6 = n.site.V6 || a.Is6() && a.IsGlobalUnicast() && !a.IsPrivate()
	}
	n.inner = false
	for _, m := range n.mapped {
		a := m.Addr.Addr()
		n.site.Mapped = n.site.Mapped || a.Is4() && a == n.observed4.Addr() // an opening for IPv6 is none of the NAT's
		n.inner = n.inner || carriers(a)
	}
}

func natOf(n wire.NAT) nat.NAT {
	return nat.NAT{
		Present: n.Present, Mapping: nat.Behaviour(n.Mapping), Filtering: nat.Behaviour(n.Filtering),
		Allocation: nat.Allocation(n.Allocation), Step: n.Step,
		Hairpin: nat.Answer(n.Hairpin), Poisoned: nat.Answer(n.Poisoned),
		Lifetime: time.Duration(n.LifetimeSeconds) * time.Second, Hops: n.Hops, Blocked: n.Blocked,
	}
}

// predict lists the ports that a counting NAT is expected to give next, nothing
// if that cannot be said.
func (n *node) predict(m *wire.Prepared) []wire.Candidate {
	if m == nil || m.Next == 0 || !n.observed4.IsValid() {
		return nil
	}
	step := cmp.Or(m.Step, n.nat.Step, 1)
	var cs []wire.Candidate
	for k := range maxPredicted {
		port := int(m.Next) + k*step
		if port < 1 || port > 65535 {
			break
		}
		at := netip.AddrPortFrom(n.observed4.Addr(), uint16(port))
		cs = append(cs, wire.Candidate{Kind: wire.Predicted, Addr: at})
	}
	// An address that no node can have is no way to it.
	if cs[0].Validate() != nil {
		return nil
	}
	return cs
}
