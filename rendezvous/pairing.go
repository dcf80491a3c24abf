package rendezvous

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/bodkin-net/bodkin/punch/nat"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// PairView is a pair as the API, the page and the store see it.
type PairView struct {
	ID          PairID           `json:"id"`
	Nodes       [2]wire.NodeName `json:"nodes"`
	Communities []string         `json:"communities"`
	State       State            `json:"state"`
	Reason      string           `json:"reason,omitempty"`
	Since       time.Time        `json:"since"`
	// Verdict is what is expected, whatever has happened so far.
	Verdict VerdictView `json:"verdict"`
	// Paths holds, by node, the path that node uses to reach the other.
	Paths    map[wire.NodeName]wire.Path `json:"paths,omitempty"`
	Punching bool                        `json:"punching"`
	Attempts int                         `json:"attempts"`
	// Strategy and Packets are of the last attempt that ended: how it was made,
	// and how many packets both sides sent to get through.
	Strategy nat.Strategy `json:"strategy,omitempty"`
	Packets  int          `json:"packets,omitempty"`
	// TimeToDirect of the last success, in nanoseconds.
	TimeToDirect time.Duration `json:"timeToDirect"`
	LastDirect   time.Time     `json:"lastDirect,omitzero"`
	RetryAt      time.Time     `json:"retryAt,omitzero"`
}

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
	c.rebuild(now, append(c.resift(was.Subnets), name))
	return c.flush()
}

// wanted is every pair that shall have a tunnel: two members of a community,
// and, as in FabEdge, a connector with each edge of its cluster.
func (c *coordinator) wanted() map[PairID][]string {
	want := maps.Clone(c.shared)
	for a, n := range c.nodes {
		if n.endpoint.Type != wire.Connector {
			continue
		}
		for b, m := range c.nodes {
			id := NewPairID(string(a), string(b))
			if m.endpoint.Type == wire.Edge && a.Cluster() == b.Cluster() && want[id] == nil {
				want[id] = []string{}
			}
		}
	}
	return want
}

// setCommunities replaces all communities.
func (c *coordinator) setCommunities(now time.Time, cs []Community) {
	c.communities, c.policies, c.shared = cs, policies(cs), Pairs(cs)
	c.rebuild(now, slices.Collect(maps.Keys(c.nodes)))
}

// rebuild makes the set of pairs anew after communities or the endpoints of
// nodes changed, keeps what each pair has reached, and tells everybody whose
// peers changed.
func (c *coordinator) rebuild(now time.Time, changed []wire.NodeName) {
	want := c.wanted()
	same := len(want) == len(c.pairs)
	for _, p := range c.sorted {
		if _, ok := want[p.id]; ok {
			continue
		}
		if p.attempt != nil {
			c.callOff(p, "", "the nodes no longer share a community")
		}
		delete(c.pairs, p.id)
		c.schedule(p)
		c.do(forget{p.id})
		same = false
	}
	for id, communities := range want {
		p := c.pairs[id]
		if p == nil {
			a, b := id.Nodes()
			p = &pair{id: id, names: [2]wire.NodeName{wire.NodeName(a), wire.NodeName(b)}, state: Down, since: now, retryAt: now}
			c.pairs[id] = p
			same = false
		}
		p.communities, p.limit = communities, limitOf(communities, c.policies)
	}
	if !same {
		c.index()
	}
	for _, name := range slices.Sorted(maps.Keys(c.nodes)) {
		c.sendPeers(name)
	}
	touched := map[wire.NodeName]bool{}
	for _, name := range changed {
		touched[name] = true
	}
	for _, p := range c.sorted {
		if touched[p.names[0]] || touched[p.names[1]] || p.verdict == (nat.Verdict{}) {
			c.settle(now, p)
		}
	}
}

func (c *coordinator) index() {
	c.sorted = c.sorted[:0]
	c.byNode = map[wire.NodeName][]*pair{}
	for _, p := range c.pairs {
		c.sorted = append(c.sorted, p)
	}
	slices.SortFunc(c.sorted, func(a, b *pair) int { return strings.Compare(string(a.id), string(b.id)) })
	for _, p := range c.sorted {
		for _, n := range p.names {
			c.byNode[n] = append(c.byNode[n], p)
		}
	}
}

// sendPeers tells an online node its complete set of peers, if it changed.
func (c *coordinator) sendPeers(name wire.NodeName) {
	if !c.online(name) {
		return
	}
	m := &wire.Peers{Peers: []wire.Peer{}}
	for _, p := range c.byNode[name] {
		if c.nodes[p.other(name)] != nil {
			m.Peers = append(m.Peers, c.peer(p, name))
		}
	}
	if n := c.nodes[name]; n.sentPeers == nil || !reflect.DeepEqual(n.sentPeers, m) {
		n.sentPeers = m
		c.do(send{name, m})
	}
}

// peer is the pair's other end as told to name.
func (c *coordinator) peer(p *pair, name wire.NodeName) wire.Peer {
	return wire.Peer{
		Endpoint:    c.nodes[p.other(name)].endpoint,
		Plan:        c.plan(p),
		Role:        c.role(p, name),
		Communities: p.communities,
	}
}

func (c *coordinator) isConnector(n wire.NodeName) bool {
	return c.nodes[n] != nil && c.nodes[n].endpoint.Type == wire.Connector
}

func (c *coordinator) plan(p *pair) wire.Plan {
	if c.isConnector(p.names[0]) || c.isConnector(p.names[1]) {
		return wire.PlanPublic
	}
	return wire.PlanICE
}

// role: towards a connector the edge has to speak first, since it may be
// behind a NAT; between two nodes of a kind the order of the names decides.
func (c *coordinator) role(p *pair, name wire.NodeName) wire.Role {
	if a, b := c.isConnector(name), c.isConnector(p.other(name)); a != b {
		if a {
			return wire.Controlled
		}
		return wire.Controlling
	}
	if name < p.other(name) {
		return wire.Controlling
	}
	return wire.Controlled
}

// wants reports whether an attempt would be of use: both ends can and may
// punch, and the tunnel is missing or nobody watches its path.
func (c *coordinator) wants(p *pair) bool {
	if p.attempt != nil || c.plan(p) != wire.PlanICE || p.verdict.Strategy == nat.None ||
		!c.nodes[p.names[0]].ready() || !c.nodes[p.names[1]].ready() {
		return false
	}
	return p.state != Direct || !p.sides[0].monitored || !p.sides[1].monitored
}

// rejudge brings a pair's verdict in line with what is known. What runs on a
// verdict that knew less is begun anew; a tunnel that stands is not touched.
func (c *coordinator) rejudge(now time.Time, p *pair) {
	was := p.verdict
	p.verdict = c.verdict(p)
	switch a := p.attempt; {
	case a != nil && (p.verdict.Strategy == nat.None || !a.nominated && c.policy(p) == nat.ICEOnly && rank(a.strategy) > 0):
		c.callOff(p, "", "an operator forbids it now (punch: "+string(c.policy(p))+")")
	case p.verdict == was:
	case a != nil && !a.nominated && better(a.verdict, p.verdict):
		c.callOff(p, "", "more is known now: "+p.verdict.String())
		p.tries, p.failure, p.retryAt = 0, "", now
	case a == nil && better(was, p.verdict):
		c.reset(now, p)
	}
}

// settle brings a pair's state in line with what is known, and starts an
// attempt where one is due.
func (c *coordinator) settle(now time.Time, p *pair) {
	before := c.view(p)
	c.rejudge(now, p)
	state := Down
	for i, s := range p.sides {
		o := p.sides[1-i]
		// An end that has not spoken since this rendezvous started does not
		// contradict the one that has: its tunnel may well stand.
		if s.direct && (o.direct || !o.told && !c.online(p.names[1-i])) {
			state = Direct
		}
	}
	if state == Direct {
		p.reason, p.failure, p.lastDirect = "", "", now
	}
	if state != p.state {
		if state != p.remembered {
			p.since = now
		}
		p.state, p.remembered = state, ""
	}
	if c.wants(p) && c.free(p) && !now.Before(c.due(p)) {
		c.begin(now, p)
	}
	if p.state != Direct {
		p.reason = c.why(p)
	}
	c.schedule(p)
	if after := c.view(p); !sameOutcome(before, after) {
		c.do(record{after})
	}
}

// sameOutcome ignores what changes without anything having happened.
func sameOutcome(a, b PairView) bool {
	a.LastDirect, b.LastDirect = time.Time{}, time.Time{}
	return reflect.DeepEqual(a, b)
}

// why is the reason of a pair that is not direct.
func (c *coordinator) why(p *pair) string {
	for _, name := range p.names {
		switch n := c.nodes[name]; {
		case n == nil:
			return string(name) + " has never been online"
		case p.verdict.Strategy == nat.None:
			return p.verdict.Reason
		case !n.online:
			return string(name) + " is offline"
		case c.plan(p) == wire.PlanICE && !n.gathered:
			return "waiting for " + string(name) + "'s first STUN request"
		}
	}
	switch {
	case p.verdict.Expect == nat.Relay && strings.Contains(p.failure, p.verdict.Reason):
		return p.verdict.Reason // an agent that saw nothing else repeats it
	case p.failure != "" && p.verdict.Expect == nat.Relay:
		return p.verdict.Reason + "; " + p.failure
	case p.failure != "":
		return p.failure
	}
	if p.attempt != nil {
		return "punching"
	}
	return "waiting for the tunnel"
}

// view is the pair as others see it.
func (c *coordinator) view(p *pair) PairView {
	v := PairView{
		ID: p.id, Nodes: p.names, Communities: p.communities,
		State: p.state, Reason: p.reason, Since: p.since, Verdict: viewOf(p.verdict),
		Punching: p.attempt != nil, Attempts: p.total,
		TimeToDirect: p.timeToDirect, LastDirect: p.lastDirect,
	}
	if p.last != nil {
		v.Strategy, v.Packets = p.last.strategy, p.last.packets[0]+p.last.packets[1]
	}
	if c.wants(p) {
		v.RetryAt = c.due(p)
	}
	for i, s := range p.sides {
		if s.path.Remote.IsValid() {
			if v.Paths == nil {
				v.Paths = map[wire.NodeName]wire.Path{}
			}
			v.Paths[p.names[i]] = s.path
		}
	}
	return v
}

// Views are all pairs, by ID.
func (c *coordinator) Views() []PairView {
	vs := make([]PairView, 0, len(c.sorted))
	for _, p := range c.sorted {
		vs = append(vs, c.view(p))
	}
	return vs
}
