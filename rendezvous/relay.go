package rendezvous

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// What a member's subnet is widened to: a cluster hands out its nodes' subnets
// from one network of about this size, so that the range rarely changes when a
// node joins, and each change is a new CHILD SA at every node.
const (
	rangeBits4 = 16
	rangeBits6 = 48
)

// The widest prefixes that wire lets a relay have.
const (
	widestRange4 = 8
	widestRange6 = 32
)

// relaying is RelayConfig, parsed.
type relaying struct {
	enabled bool
	// ranges take the place of those that follow from the members' subnets.
	ranges []netip.Prefix
}

// berth is an edge's place at the connector that relays for it.
type berth struct {
	// connector is empty for none, and missing says why then.
	connector wire.NodeName
	missing   string
	// ranges is what the edge's relay CHILD SA covers.
	ranges []netip.Prefix
}

// assignBerths decides which connector relays for which edge of some clusters,
// all if they are nil. An edge needs a relay if it has a pair with another edge
// of its cluster; it is the first connector of that cluster, by name. Moved are
// the nodes that go to another connector, or to none; told are all whom that, or
// another range, concerns.
func (c *coordinator) assignBerths(clusters map[string]bool) (moved, told []wire.NodeName) {
	nodes := map[string][]wire.NodeName{}
	for name := range c.nodes {
		if cluster := name.Cluster(); clusters == nil || clusters[cluster] {
			nodes[cluster] = append(nodes[cluster], name)
		}
	}
	for cluster, names := range nodes {
		slices.Sort(names)
		berths := c.berthsIn(cluster, names)
		for _, name := range names {
			n, b := c.nodes[name], berths[name]
			was := n.berth
			n.berth = b
			n.relayed = b.connector != "" && c.relays(c.uplink(name))
			if was.connector != b.connector || was.missing != b.missing {
				moved = append(moved, name)
			}
			if was.connector != b.connector || !slices.Equal(was.ranges, b.ranges) {
				told = append(told, name, was.connector, b.connector)
			}
		}
	}
	return moved, told
}

// berthsIn are the places of a cluster's edges that need a relay, by name.
func (c *coordinator) berthsIn(cluster string, names []wire.NodeName) map[wire.NodeName]berth {
	if !c.relaying.enabled {
		return nil
	}
	subnets := map[wire.NodeName][]netip.Prefix{}
	for _, name := range names {
		near := func(p *pair) bool {
			return p.other(name).Cluster() == cluster && c.plan(p) == wire.PlanICE
		}
		if slices.ContainsFunc(c.byNode[name], near) {
			subnets[name] = c.nodes[name].endpoint.Subnets
		}
	}
	serves := func(name wire.NodeName) bool { return c.isConnector(name) && !c.barred[name] }
	if i := slices.IndexFunc(names, serves); i >= 0 {
		return berthsAt(names[i], subnets, c.relaying.ranges)
	}
	berths := map[wire.NodeName]berth{}
	for name := range subnets {
		berths[name] = berth{missing: "there is no connector in cluster " + cluster}
	}
	return berths
}

// berthsAt gives the edges that a connector serves their places, by name. The
// range is the same for all; an edge whose subnets have no place in it has none.
func berthsAt(connector wire.NodeName, subnets map[wire.NodeName][]netip.Prefix, configured []netip.Prefix) map[wire.NodeName]berth {
	berths := map[wire.NodeName]berth{}
	ranges := outermost(configured)
	for _, name := range slices.Sorted(maps.Keys(subnets)) {
		var missing string
		switch {
		case len(subnets[name]) == 0:
			missing = string(name) + " has no subnets"
		case len(configured) > 0:
			missing = outside(name, subnets[name], ranges)
		default:
			ranges, missing = extend(ranges, name, subnets[name])
		}
		berths[name] = berth{missing: missing}
	}
	for name, b := range berths {
		if b.missing == "" {
			berths[name] = berth{connector: connector, ranges: ranges}
		}
	}
	return berths
}

// outside says which of a node's subnets lies in no range that is wider, nothing
// if each does.
func outside(name wire.NodeName, subnets, ranges []netip.Prefix) string {
	for _, s := range subnets {
		if !slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Overlaps(s) && r.Bits() < s.Bits() }) {
			return fmt.Sprintf("relay.ranges has no range around subnet %s of %s that is wider", s, name)
		}
	}
	return ""
}

// extend takes a node's subnets into the ranges, or says why it cannot.
func extend(ranges []netip.Prefix, name wire.NodeName, subnets []netip.Prefix) ([]netip.Prefix, string) {
	var more []netip.Prefix
	for _, s := range subnets {
		r, ok := widen(s)
		if !ok {
			return ranges, fmt.Sprintf("subnet %s of %s is too wide: no range around it could be relayed", s, name)
		}
		if !slices.ContainsFunc(ranges, func(has netip.Prefix) bool { return has.Bits() <= r.Bits() && has.Overlaps(r) }) {
			more = append(more, r)
		}
	}
	if len(more) == 0 {
		return ranges, ""
	}
	if more = outermost(slices.Concat(ranges, more)); len(more) > wire.MaxSubnets {
		return ranges, fmt.Sprintf("the subnets of %s and others lie in more than %d networks of /%d or /%d: set relay.ranges", name, wire.MaxSubnets, rangeBits4, rangeBits6)
	}
	return more, ""
}

// widen is the network around a subnet that others of its cluster are expected
// in; it is wider than the subnet in any case.
func widen(p netip.Prefix) (netip.Prefix, bool) {
	bits, widest := rangeBits4, widestRange4
	if p.Addr().Is6() {
		bits, widest = rangeBits6, widestRange6
	}
	bits = min(bits, p.Bits()-1)
	if bits < widest {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(p.Addr(), bits).Masked(), true
}

// outermost are those of ps that no other one holds, sorted.
func outermost(ps []netip.Prefix) []netip.Prefix {
	sorted := slices.SortedFunc(slices.Values(ps), func(a, b netip.Prefix) int {
		return cmp.Or(cmp.Compare(a.Bits(), b.Bits()), a.Addr().Compare(b.Addr()))
	})
	var out []netip.Prefix
	for _, p := range sorted {
		if !slices.ContainsFunc(out, p.Overlaps) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	return out
}

// uplink is the pair of an edge and the connector that relays for it.
func (c *coordinator) uplink(edge wire.NodeName) *pair {
	return c.pairs[wire.NewPairID(string(edge), string(c.nodes[edge].berth.connector))]
}

// relays reports whether the tunnel of an edge with its connector relays: both
// ends say so. As with a direct tunnel, an end that has not spoken since this
// rendezvous started does not contradict the other.
func (c *coordinator) relays(uplink *pair) bool {
	if uplink == nil {
		return false
	}
	for i, s := range uplink.sides {
		o := uplink.sides[1-i]
		if s.relay && (o.relay || !o.told && !c.online(uplink.names[1-i])) {
			return true
		}
	}
	return false
}

// carry takes over what the tunnel of an edge with its connector has come to, and
// names the edge if that is another thing than before.
func (c *coordinator) carry(uplink *pair) (edge wire.NodeName, changed bool) {
	for i, name := range uplink.names {
		n := c.nodes[name]
		if n != nil && n.berth.connector == uplink.names[1-i] && n.relayed != c.relays(uplink) {
			n.relayed = !n.relayed
			for _, p := range c.byNode[name] {
				// Who could not leave its tunnel for want of a relay is told again.
				p.sides[0].demoted, p.sides[1].demoted = false, false
			}
			return name, true
		}
	}
	return "", false
}

// resettle: the relay of an edge has come or gone, which is news of all pairs of
// that edge, and of no others.
func (c *coordinator) resettle(now time.Time, edge wire.NodeName) {
	for _, p := range c.byNode[edge] {
		if c.plan(p) == wire.PlanICE {
			c.settle(now, p)
		}
	}
}

// paired reports whether two nodes shall have a tunnel.
func (c *coordinator) paired(a, b wire.NodeName) bool {
	return a != b && c.pairs[wire.NewPairID(string(a), string(b))] != nil
}

// relay is the connector that carries a pair while it is not direct, empty for
// none.
func (c *coordinator) relay(p *pair) wire.NodeName {
	a, b := c.nodes[p.names[0]], c.nodes[p.names[1]]
	if a == nil || b == nil || !a.relayed || !b.relayed || a.berth.connector != b.berth.connector {
		return ""
	}
	return a.berth.connector
}

// noRelay says why a pair has no relay, nothing where it has one, needs none, or
// its reason says it already.
func (c *coordinator) noRelay(p *pair) string {
	if !c.relaying.enabled || c.plan(p) != wire.PlanICE {
		return ""
	}
	for _, name := range p.names {
		if c.nodes[name] == nil {
			return ""
		}
	}
	if a, b := p.names[0].Cluster(), p.names[1].Cluster(); a != b {
		return fmt.Sprintf("connectors relay within their cluster, and these are of %s and %s", a, b)
	}
	for _, name := range p.names {
		if n := c.nodes[name]; n.berth.connector == "" {
			return n.berth.missing
		}
	}
	for _, name := range p.names {
		if n := c.nodes[name]; !n.relayed {
			if why := c.unrelayed(name, n); why != p.reason {
				return why
			}
			return ""
		}
	}
	return ""
}

// unrelayed says why an edge's tunnel with its connector does not relay.
func (c *coordinator) unrelayed(name wire.NodeName, n *node) string {
	connector := n.berth.connector
	switch {
	case n.nat.Blocked != "":
		return "strongSwan needs UDP to the connector, too, and it does not leave the network of " + string(name)
	case !n.online:
		return string(name) + " is offline"
	}
	uplink := c.uplink(name)
	if uplink == nil {
		return string(name) + " has no tunnel with " + string(connector)
	}
	for _, end := range []wire.NodeName{connector, name} {
		if s := uplink.sides[uplink.index(end)]; s.direct && !s.relay && s.note != "" {
			return string(end) + " says: " + s.note
		}
	}
	switch {
	case !c.online(connector):
		return string(connector) + " is offline"
	case uplink.state != Direct:
		return fmt.Sprintf("the tunnel of %s with %s is down: %s", name, connector, uplink.reason)
	}
	return fmt.Sprintf("the tunnel of %s with %s does not relay yet", name, connector)
}
