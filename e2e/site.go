package e2e

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

// Site is a kind of place an edge stands in: what is between it and the
// internet.
type Site struct {
	Name string
	// NAT is what its router does; None leaves the router out.
	NAT lab.NATKind
	// Carrier puts a carrier's NAT, a port-restricted one, before the router.
	Carrier bool
	// PortMapping has the router map ports when asked (PCP, NAT-PMP, UPnP).
	PortMapping bool
	// IPv6 gives the edge IPv6 alone, behind the router's stateful firewall.
	// All other sites have IPv4 alone.
	IPv6 bool
}

// Sites are all that every pair of sites is tried with.
func Sites() []Site {
	return []Site{
		{Name: "none", NAT: lab.None},
		{Name: "full-cone", NAT: lab.FullCone},
		{Name: "address-restricted", NAT: lab.AddressRestricted},
		{Name: "port-restricted", NAT: lab.PortRestricted},
		{Name: "port-restricted-poisoned", NAT: lab.PortRestrictedPoisoned},
		{Name: "symmetric", NAT: lab.Symmetric},
		{Name: "symmetric-sequential", NAT: lab.SymmetricSequential},
		{Name: "carrier", NAT: lab.PortRestricted, Carrier: true},
		{Name: "port-restricted+portmap", NAT: lab.PortRestricted, PortMapping: true},
		{Name: "symmetric+portmap", NAT: lab.Symmetric, PortMapping: true},
		{Name: "ipv6-firewall", NAT: lab.PortRestricted, IPv6: true},
		{Name: "udp-blocked", NAT: lab.UDPBlocked},
	}
}

// FindSite is the site of that name.
func FindSite(name string) (Site, error) {
	var names []string
	for _, s := range Sites() {
		if s.Name == name {
			return s, nil
		}
		names = append(names, s.Name)
	}
	return Site{}, fmt.Errorf("site %q: want one of %v", name, names)
}

func (s Site) String() string { return s.Name }

// Obstacle is why two sites cannot have a direct path, in the word that its
// reason must hold.
type Obstacle string

// Obstacles.
const (
	BothSymmetric  Obstacle = "symmetric"
	UDPBlocked     Obstacle = "UDP"
	NoCommonFamily Obstacle = "address family"
)

// Obstacles are all that stands between two sites, none for most. A port that
// nobody can know beforehand can be computed when its NAT counts, and searched
// for when the other side's is known. With two unknown ones, one of them
// random, a search needs some 64,512 mappings in a router at once.
func Obstacles(a, b Site) []Obstacle {
	var all []Obstacle
	if a.IPv6 != b.IPv6 {
		all = append(all, NoCommonFamily)
	}
	if a.NAT == lab.UDPBlocked || b.NAT == lab.UDPBlocked {
		all = append(all, UDPBlocked)
	}
	if a.hidden() && b.hidden() && (a.NAT == lab.Symmetric || b.NAT == lab.Symmetric) {
		all = append(all, BothSymmetric)
	}
	return all
}

// hidden: nobody can be told which port the edge will be seen from.
func (s Site) hidden() bool {
	return s.NAT.Behavior().Mapping == lab.AddressAndPortDependent && !s.PortMapping
}

// lan6 is the IPv6 prefix of the nth node's LAN.
func lan6(n int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0, byte(n)}), 64)
}

// carrierLAN is what the nth node's carrier gives out, of 100.64.0.0/10
// (RFC 6598).
func carrierLAN(n int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, byte(n), 0}), 24)
}

// AddSite adds an edge in a place of its own of the given kind. Its router is
// named after it with an x, its carrier with a y.
func (c *Cluster) AddSite(ctx context.Context, name string, s Site) (*Node, error) {
	if s.NAT == lab.None {
		return c.AddEdgeAt(ctx, name, lab.HostOptions{})
	}
	o := lab.RouterOptions{NAT: s.NAT}
	if s.Carrier {
		carrier, err := c.Router(name+"y", lab.RouterOptions{NAT: lab.PortRestricted, LAN: carrierLAN(c.next)})
		if err != nil {
			return nil, err
		}
		o.Carrier = carrier
	}
	if s.IPv6 {
		o.LAN6 = lan6(c.next)
	}
	r, err := c.Router(name+"x", o)
	if err != nil {
		return nil, err
	}
	if s.PortMapping {
		if _, err := r.StartMiniupnpd(ctx, lab.MiniupnpdOptions{PCP: true, UPnP: true}); err != nil {
			return nil, err
		}
	}
	return c.AddEdgeAt(ctx, name, lab.HostOptions{Router: r, IPv6Only: s.IPv6})
}
