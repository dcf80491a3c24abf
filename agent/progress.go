package agent

import (
	"net/netip"
	"slices"

	"github.com/bodkin-net/bodkin/agent/charon"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// progress is how far a handoff has come.
type progress struct {
	ike, installed, bytes bool
	// plain: the CHILD SA that lets nothing in is ESP without UDP.
	plain bool
}

// checking reports whether a CHILD SA is there only for a path to prove itself.
func checking(sa charon.SA, c charon.ChildSA) bool { return c.Name == sa.Name+checkChild }

// carrying reports whether a CHILD SA is the tunnel's proper.
func carrying(sa charon.SA, c charon.ChildSA) bool { return !checking(sa, c) }

// relaying reports whether an SA with a connector has a relay that works: one that
// leads further than the other children do, to the connector's own subnets. (A
// connector that had not loaded its side narrows it to those.)
func relaying(sa charon.SA) bool {
	var near []netip.Prefix
	for _, c := range sa.Children {
		if c.Name != sa.Name+relayChild {
			near = append(near, prefixesOf(c.RemoteTS)...)
		}
	}
	return slices.ContainsFunc(sa.Children, func(c charon.ChildSA) bool {
		return c.Name == sa.Name+relayChild && installed(c) && slices.ContainsFunc(prefixesOf(c.RemoteTS), func(p netip.Prefix) bool {
			return !slices.ContainsFunc(near, func(n netip.Prefix) bool { return n.Bits() <= p.Bits() && n.Contains(p.Addr()) })
		})
	})
}

func prefixesOf(selectors []charon.Selector) (out []netip.Prefix) {
	for _, s := range selectors {
		if p, ok := s.Prefix(); ok {
			out = append(out, p)
		}
	}
	return out
}

// provesOnly reports whether an SA has come no further than to prove its path.
func provesOnly(sa charon.SA) bool {
	return !slices.ContainsFunc(sa.Children, func(c charon.ChildSA) bool { return carrying(sa, c) })
}

// missing are the children without an installed CHILD SA of their selectors on
// path. A tunnel whose node has gained or lost a subnet since is not complete.
func missing(sas []charon.SA, path wire.Path, want []charon.Child) []charon.Child {
	return slices.DeleteFunc(slices.Clone(want), func(c charon.Child) bool {
		return slices.ContainsFunc(sas, func(sa charon.SA) bool {
			return usable(sa) && sameEnds(sa, path) && slices.ContainsFunc(sa.Children, func(is charon.ChildSA) bool {
				return is.Name == c.Name && installed(is) && matches(is, c)
			})
		})
	})
}

// completed is what a tunnel lacks of the children it shall have, and whether it can
// be completed by them: not one that has none of them yet, nor one with other
// selectors than today's under one of their names.
func completed(sas []charon.SA, path wire.Path, want []charon.Child) (lacks []charon.Child, may bool) {
	lacks = missing(sas, path, want)
	if len(lacks) == 0 {
		return nil, true
	}
	return lacks, len(lacks) < len(want) && !slices.ContainsFunc(lacks, func(c charon.Child) bool {
		return slices.ContainsFunc(sas, func(sa charon.SA) bool {
			return usable(sa) && sameEnds(sa, path) && slices.ContainsFunc(sa.Children, func(is charon.ChildSA) bool {
				return is.Name == c.Name && installed(is)
			})
		})
	})
}

// installed reports whether a CHILD SA works.
func installed(c charon.ChildSA) bool {
	return c.State == charon.StateInstalled || c.State == charon.StateRekeying || c.State == charon.StateRekeyed
}

// matches reports whether a CHILD SA has the selectors it shall have.
func matches(is charon.ChildSA, want charon.Child) bool {
	return sameSelectors(is.LocalTS, want.Local()) && sameSelectors(is.RemoteTS, want.Remote())
}

// sameSelectors compares sets: charon keeps no order.
func sameSelectors(is, want []charon.Selector) bool {
	return len(is) == len(want) && !slices.ContainsFunc(is, func(s charon.Selector) bool { return !slices.Contains(want, s) })
}

// measure reads a tunnel's progress off charon's SAs.
func measure(sas []charon.SA, path wire.Path, seen map[charon.ChildID]uint64) progress {
	return measureOf(sas, path, seen, carrying)
}

// measureOf is measure for those CHILD SAs that which picks.
func measureOf(sas []charon.SA, path wire.Path, seen map[charon.ChildID]uint64, which func(charon.SA, charon.ChildSA) bool) progress {
	var p progress
	for _, sa := range sas {
		if !usable(sa) || !sameEnds(sa, path) {
			continue
		}
		p.ike = true
		for _, c := range sa.Children {
			if !installed(c) || !which(sa, c) {
				continue
			}
			p.installed = true
			p.plain = !c.Encap
			p.bytes = p.bytes || c.BytesIn > seen[c.ID]
		}
	}
	return p
}

// reason says what is missing, for a person.
func (p progress) reason(role wire.Role) string {
	switch {
	case p.installed && p.plain:
		return "the tunnel is installed, but no bytes came through it: something on the network drops ESP (IP protocol 50)"
	case p.installed:
		return "the tunnel is installed, but no bytes came through it: a firewall on the way, or no address inside the peer's subnets to probe from"
	case p.ike:
		return "IKE is established, but no CHILD SA: traffic selectors or ESP proposals differ (see charon's log)"
	case role == wire.Controlling:
		return "the path is open, but IKE got no answer on it: is charon running at the peer, and do both trust one CA (see charon's log)?"
	}
	return "the path is open, but the peer's charon did not initiate on it (see its log)"
}
