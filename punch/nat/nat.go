// Package nat says in the words of RFC 4787 what the NATs and firewalls before
// a node do, and judges what follows for two nodes that want a direct path.
//
// It does no I/O: punch measures a NAT, the rendezvous judges a pair before it
// is tried, punch explains an attempt afterwards, all with the same rules.
package nat

import (
	"net/netip"
	"time"
)

// Behaviour is a NAT's mapping or filtering behaviour, RFC 4787 sections 4.1
// and 5. Empty means not known.
type Behaviour string

// Behaviours. With one server address the first two cannot be told apart:
// EndpointIndependent then means "does not depend on the port".
const (
	EndpointIndependent     Behaviour = "endpoint-independent"
	AddressDependent        Behaviour = "address-dependent"
	AddressAndPortDependent Behaviour = "address-and-port-dependent"
)

// Allocation is how a NAT chooses the outside port of a new mapping, RFC 4787
// section 4.2. Empty means not known.
type Allocation string

// Allocations.
const (
	Preserving Allocation = "preserving" // the inside port's number
	Sequential Allocation = "sequential" // the last one plus a constant step
	Random     Allocation = "random"
)

// Answer is yes, no, or empty for not known.
type Answer string

// Answers.
const (
	Yes Answer = "yes"
	No  Answer = "no"
)

// NAT is what is known of the NATs and firewalls before one node, as seen from
// its IKE port. The zero value means that nothing is known.
type NAT struct {
	// Present is false when the mapped address is the node's own.
	Present            bool
	Mapping, Filtering Behaviour
	Allocation         Allocation
	// Step is the difference of two mappings made one after the other, in
	// ports, negative when they count down; only of Sequential.
	Step int
	// Hairpin tells whether hosts behind the NAT reach each other at its
	// outside addresses, RFC 4787 section 6.
	Hairpin Answer
	// Poisoned tells whether a packet that came in unasked changes the mapping
	// used towards its sender. Linux does that where its firewall lets such a
	// packet reach the router itself.
	Poisoned Answer
	// Lifetime is how long a mapping was seen to live without traffic, a
	// lower bound; 0 when it was not measured.
	Lifetime time.Duration
	// Hops is the least TTL with which a packet leaves all of the node's NATs: 1
	// without any, 2 behind one; 0 when it was not measured.
	Hops int
	// Blocked says in words why UDP does not pass, empty when it does.
	Blocked string
}

// Known reports whether enough was measured to judge by.
func (n NAT) Known() bool { return n.Blocked != "" || n.Mapping != "" && n.Filtering != "" }

// Symmetric reports whether each destination gets a mapping of its own, so that
// nobody can be told the port beforehand.
func (n NAT) Symmetric() bool {
	return n.Present && (n.Mapping == AddressDependent || n.Mapping == AddressAndPortDependent)
}

// sharedSpace is what carriers number their customers' routers from, RFC 6598.
var sharedSpace = netip.MustParsePrefix("100.64.0.0/10")

// Private reports whether an address means another host on each network: RFC
// 1918, RFC 4193, RFC 6598.
func Private(a netip.Addr) bool { return a.IsPrivate() || sharedSpace.Contains(a) }

// Policy is how far an operator lets punching go.
type Policy string

// Policies, from the most to the least permissive. Empty means Auto.
const (
	// Auto permits everything.
	Auto Policy = "auto"
	// ICEOnly permits packets only to addresses that were named: openers and
	// checks, but no prediction and no search for ports.
	ICEOnly Policy = "ice-only"
	// Never permits no punching.
	Never Policy = "never"
)

// Site is all that a verdict rests on, for one of two nodes.
type Site struct {
	Name string
	NAT  NAT
	// V4 and V6 are the address families the node has a way to the internet in.
	V4, V6 bool
	// Public is where its IPv4 packets come from, zero when not known.
	Public netip.Addr
	// Hosts are its own addresses.
	Hosts []netip.Addr
	// Mapped: its router forwards a port to its IKE port, by PCP, NAT-PMP,
	// UPnP, or by hand.
	Mapped bool
	// NoProbe says why the node cannot be the symmetric side of a search, empty
	// when it can.
	NoProbe string
	Policy  Policy
}
