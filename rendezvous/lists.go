package rendezvous

import (
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// How often a node is told its lists, which are complete each time. Nodes come
// back by the hundred when an outage ends, and each of them is news to all its
// peers: what comes within a pause is told at its end, in one list.
const (
	// listPause is the least time between two lists: nobody notices it, and a
	// herd that returns within seconds is told in a few lists instead of
	// hundreds.
	listPause = 100 * time.Millisecond
	// peerPause is for each peer in an edge's last list. With 512 members, one
	// more is 100 kB of list for each of them; an edge shall not be sent more
	// than that in five seconds for others' sake. A connector has to hear of
	// an edge before that can initiate to it, so it does not wait for this.
	peerPause = 10 * time.Millisecond
)

// lists is who has yet to be told of a change, each in its time. It belongs to
// the coordinator.
type lists struct {
	untold map[wire.NodeName]bool
	// due is when the first of them may be told, zero for none.
	due time.Time
}

// tell sends nodes their lists, as far as those have changed: at once, or when
// their pause ends.
func (c *coordinator) tell(now time.Time, names []wire.NodeName) {
	slices.Sort(names)
	for _, connectors := range []bool{true, false} { // edges wait for these
		for _, name := range names {
			if c.isConnector(name) != connectors || !c.online(name) {
				continue
			}
			if at := c.tellable(now, name); at.After(now) {
				c.lists.untold[name] = true
				c.lists.due = earlier(c.lists.due, at)
				continue
			}
			delete(c.lists.untold, name)
			c.sendPeers(now, name)
			c.sendForwarding(now, name)
		}
	}
}

// tellRest tells those whose pause has ended.
func (c *coordinator) tellRest(now time.Time) {
	if c.lists.due.IsZero() || c.lists.due.After(now) {
		return
	}
	names := slices.Collect(maps.Keys(c.lists.untold))
	clear(c.lists.untold)
	c.lists.due = time.Time{}
	c.tell(now, names)
}

// tellable is when a node may be told its lists. An edge waits for the connectors
// that have yet to hear of it: they would refuse what it initiates.
func (c *coordinator) tellable(now time.Time, name wire.NodeName) time.Time {
	at := c.nodes[name].pauseEnds()
	if at.After(now) || c.isConnector(name) {
		return at
	}
	for _, p := range c.byNode[name] {
		other := p.other(name)
		if c.isConnector(other) && !p.listed[p.index(other)] && c.lists.untold[other] {
			if ready := c.nodes[other].pauseEnds(); ready.After(at) {
				at = ready
			}
		}
	}
	return at
}

// pauseEnds is when a node may be sent its next list.
func (n *node) pauseEnds() time.Time {
	switch {
	case n.listedAt.IsZero():
		return time.Time{}
	case n.endpoint.Type == wire.Connector:
		return n.listedAt.Add(listPause)
	}
	return n.listedAt.Add(max(listPause, time.Duration(len(n.sentPeers.Peers))*peerPause))
}

// earlier is the earlier of two times, of which the first may be zero for none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// sendPeers tells an online node its complete set of peers, if it changed. Pairs
// that have waited for it may begin then.
func (c *coordinator) sendPeers(now time.Time, name wire.NodeName) {
	m := &wire.Peers{Peers: []wire.Peer{}}
	for _, p := range c.byNode[name] {
		if c.nodes[p.other(name)] == nil {
			continue
		}
		m.Peers = append(m.Peers, c.peer(p, name))
		if i := p.index(name); !p.listed[i] {
			p.listed[i] = true
			c.schedule(p)
		}
	}
	if n := c.nodes[name]; n.sentPeers == nil || !reflect.DeepEqual(n.sentPeers, m) {
		n.sentPeers, n.listedAt = m, now
		c.do(send{name, m})
	}
}

// peer is the pair's other end as told to name.
func (c *coordinator) peer(p *pair, name wire.NodeName) wire.Peer {
	other := p.other(name)
	m := wire.Peer{
		Endpoint:    c.nodes[other].endpoint,
		Plan:        c.plan(p),
		Role:        c.role(p, name),
		Communities: p.communities,
		Metered:     c.nodes[other].metered,
	}
	for _, ends := range [2][2]wire.NodeName{{name, other}, {other, name}} {
		if b := c.nodes[ends[0]].berth; b.connector == ends[1] {
			m.Relay = b.ranges
		}
	}
	return m
}

// sendForwarding tells an online connector between whom it relays, if that
// changed.
func (c *coordinator) sendForwarding(now time.Time, name wire.NodeName) {
	if !c.isConnector(name) {
		return
	}
	m := &wire.Forwarding{Groups: []wire.Group{}}
	for _, community := range c.communities {
		g := wire.Group{Community: community.Name}
		for _, member := range community.Members {
			if n := c.nodes[wire.NodeName(member)]; n != nil && n.berth.connector == name {
				g.Nodes = append(g.Nodes, wire.NodeName(member))
			}
		}
		if len(g.Nodes) > 1 {
			m.Groups = append(m.Groups, g)
		}
	}
	if n := c.nodes[name]; n.sentForwarding == nil || !sameGroups(n.sentForwarding, m) {
		n.sentForwarding, n.listedAt = m, now
		c.do(send{name, m})
	}
}

func sameGroups(a, b *wire.Forwarding) bool {
	return slices.EqualFunc(a.Groups, b.Groups, func(g, h wire.Group) bool {
		return g.Community == h.Community && slices.Equal(g.Nodes, h.Nodes)
	})
}
