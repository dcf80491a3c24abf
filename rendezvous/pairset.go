package rendezvous

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// sameEndpoint reports whether nothing a pair is built from has changed.
func sameEndpoint(a, b wire.Endpoint) bool { return reflect.DeepEqual(a, b) }

// Admit refuses an endpoint whose subnets would take traffic from another node.
func (c *coordinator) Admit(e wire.Endpoint) error {
	for name, n := range c.nodes {
		if name == e.Name {
			continue
		}
		for _, mine := range e.Subnets {
			for _, theirs := range slices.Concat(n.endpoint.Subnets, n.endpoint.NodeSubnets) {
				if mine.Overlaps(theirs) {
					return fmt.Errorf("endpoint.subnets: %s overlaps %s of %s: give each node subnets of its own, or `bodkin node delete %s` if that one is gone", mine, theirs, name, name)
				}
			}
		}
		for _, mine := range e.NodeSubnets {
			for _, theirs := range n.endpoint.Subnets {
				if mine.Overlaps(theirs) {
					return fmt.Errorf("endpoint.nodeSubnets: %s overlaps subnet %s of %s", mine, theirs, name)
				}
			}
		}
	}
	return nil
}

// Forget drops a node for good: its pairs, and its claim to its subnets. An
// online node is not forgotten; it would be back at once.
func (c *coordinator) Forget(now time.Time, name wire.NodeName) []action {
	if n := c.nodes[name]; n == nil || n.online {
		return nil
	}
	was := c.nodes[name].endpoint
	delete(c.nodes, name)
	for _, p := range c.byNode[name] {
		p.sides = [2]side{}
	}
	c.rejoin(now, append(c.resift(was.Subnets), name))
	return c.flush()
}

// Bar keeps a node that is not let in out of all pairs, or has it back in those
// that its communities ask for.
func (c *coordinator) Bar(now time.Time, name wire.NodeName, barred bool) []action {
	if c.barred[name] == barred {
		return nil
	}
	if barred {
		c.barred[name] = true
	} else {
		delete(c.barred, name)
		for id := range c.shared {
			if a, b := nodesOf(id); (a == name || b == name) && c.pairs[id] == nil && c.wanted(a, b) {
				p := c.add(now, a, b)
				c.limit(p)
				c.insert(p)
			}
		}
	}
	c.rejoin(now, []wire.NodeName{name})
	return c.flush()
}

func nodesOf(id wire.PairID) (a, b wire.NodeName) {
	first, second := id.Nodes()
	return wire.NodeName(first), wire.NodeName(second)
}

// limit says what a pair's communities permit it.
func (c *coordinator) limit(p *pair) {
	p.communities = append([]string{}, c.shared[p.id]...)
	p.limit = limitOf(p.communities, c.policies)
}

// setCommunities replaces all communities: it makes the set of pairs anew, keeps
// what each has reached, and tells everybody whose peers changed.
func (c *coordinator) setCommunities(now time.Time, cs []Community) {
	c.communities, c.policies, c.shared = cs, policies(cs), Pairs(cs)
	for _, p := range c.sorted {
		if !c.wanted(p.names[0], p.names[1]) {
			c.drop(p)
		}
	}
	for id := range c.shared {
		if a, b := nodesOf(id); c.pairs[id] == nil && c.wanted(a, b) {
			c.add(now, a, b)
		}
	}
	for name := range c.nodes {
		if c.isConnector(name) {
			c.openGates(now, name)
		}
	}
	c.index()
	for _, p := range c.sorted {
		c.limit(p)
	}
	c.assignBerths(nil)
	c.tell(now, slices.Collect(maps.Keys(c.nodes)))
	for _, p := range c.sorted {
		c.settle(now, p)
	}
}

// rejoin brings the pairs of nodes in line with their endpoints, which are new or
// gone, and tells everybody whose peers changed by that. Nodes join by the
// hundred when an outage ends, so it looks at what can have changed, and at no
// other pair.
func (c *coordinator) rejoin(now time.Time, names []wire.NodeName) {
	told, settled := map[wire.NodeName]bool{}, map[wire.NodeName]bool{}
	clusters := map[string]bool{}
	for _, name := range names {
		clusters[name.Cluster()] = true
		told[name], settled[name] = true, true
		for _, p := range slices.Clone(c.byNode[name]) {
			told[p.other(name)] = true
			p.listed[1-p.index(name)] = false // not as it is now
			if !c.wanted(p.names[0], p.names[1]) {
				c.drop(p)
				c.unindex(p)
			}
		}
		for _, p := range c.openGates(now, name) {
			told[p.other(name)] = true
			c.insert(p)
		}
	}
	moved, retold := c.assignBerths(clusters)
	for _, name := range moved {
		settled[name] = true
	}
	for _, name := range retold {
		told[name] = true
	}
	c.tell(now, slices.Collect(maps.Keys(told)))
	c.settleAll(now, settled)
}

// settleAll settles all pairs of some nodes, each once.
func (c *coordinator) settleAll(now time.Time, nodes map[wire.NodeName]bool) {
	for _, name := range slices.Sorted(maps.Keys(nodes)) {
		for _, p := range c.byNode[name] {
			if other := p.other(name); !nodes[other] || name < other {
				c.settle(now, p)
			}
		}
	}
}

// wanted reports whether two nodes shall have a tunnel: members of a community,
// and, as in FabEdge, a connector with each edge of its cluster, if both are let in.
func (c *coordinator) wanted(a, b wire.NodeName) bool {
	if c.barred[a] || c.barred[b] {
		return false
	}
	return c.shared[wire.NewPairID(string(a), string(b))] != nil || c.gate(a, b)
}

// gate reports whether two nodes are a connector and an edge of its cluster.
func (c *coordinator) gate(a, b wire.NodeName) bool {
	n, m := c.nodes[a], c.nodes[b]
	return n != nil && m != nil && n.endpoint.Type != m.endpoint.Type && a.Cluster() == b.Cluster()
}

// openGates makes the pairs of a node that it lacks with connectors, or as one.
func (c *coordinator) openGates(now time.Time, name wire.NodeName) (made []*pair) {
	for other := range c.nodes {
		if c.gate(name, other) && c.wanted(name, other) && c.pairs[wire.NewPairID(string(name), string(other))] == nil {
			made = append(made, c.add(now, name, other))
		}
	}
	return made
}

// add makes a pair; whoever calls it puts it in order. An end that is online has
// said in its hello what it has.
func (c *coordinator) add(now time.Time, a, b wire.NodeName) *pair {
	id := wire.NewPairID(string(a), string(b))
	p := &pair{id: id, names: [2]wire.NodeName{min(a, b), max(a, b)}, communities: []string{}, state: Down, since: now, retryAt: now}
	c.pairs[id] = p
	for i, name := range p.names {
		if n := c.nodes[name]; n != nil && n.online {
			t, ok := n.standing[p.other(name)]
			p.sides[i] = saidIn(t, ok)
			delete(n.standing, p.other(name))
		}
	}
	return p
}

// saidIn is what an end says of a pair in its hello: that a tunnel stands, or by
// not naming one that none does. That it relays may be true of a pair whose other
// end is not known yet as a connector.
func saidIn(t wire.Tunnel, stands bool) side {
	if !stands {
		return side{told: true}
	}
	return side{told: true, direct: true, monitored: t.Monitored, path: t.Path, relay: t.Relay}
}

// drop ends a pair; whoever calls it takes it out of the order.
func (c *coordinator) drop(p *pair) {
	if p.attempt != nil {
		c.callOff(p, "", AttemptCancelled, "the nodes no longer share a community")
	}
	delete(c.pairs, p.id)
	c.schedule(p)
	c.do(forget{p.id})
}

// index puts all pairs in order.
func (c *coordinator) index() {
	c.sorted = c.sorted[:0]
	c.byNode = map[wire.NodeName][]*pair{}
	for _, p := range c.pairs {
		c.sorted = append(c.sorted, p)
	}
	slices.SortFunc(c.sorted, byID)
	for _, p := range c.sorted {
		for _, n := range p.names {
			c.byNode[n] = append(c.byNode[n], p)
		}
	}
}

// insert puts one pair in order, unindex takes one out.
func (c *coordinator) insert(p *pair) {
	c.sorted = insertPair(c.sorted, p)
	for _, n := range p.names {
		c.byNode[n] = insertPair(c.byNode[n], p)
	}
}

func (c *coordinator) unindex(p *pair) {
	c.sorted = removePair(c.sorted, p)
	for _, n := range p.names {
		c.byNode[n] = removePair(c.byNode[n], p)
	}
}

func insertPair(ps []*pair, p *pair) []*pair {
	i, _ := slices.BinarySearchFunc(ps, p, byID)
	return slices.Insert(ps, i, p)
}

func removePair(ps []*pair, p *pair) []*pair {
	if i, found := slices.BinarySearchFunc(ps, p, byID); found {
		return slices.Delete(ps, i, i+1)
	}
	return ps
}

func byID(a, b *pair) int { return strings.Compare(string(a.id), string(b.id)) }
