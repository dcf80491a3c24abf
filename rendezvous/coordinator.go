package rendezvous

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/bodkin-net/bodkin/punch/nat"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// State of a pair.
type State string

// States. A pair that is not direct carries a reason.
const (
	Direct  State = "direct"
	Relayed State = "relayed"
	Down    State = "down"
)

// action is what the coordinator wants done; the hub does it.
type action interface{ isAction() }

// send queues a message for a node's session.
type send struct {
	to  wire.NodeName
	msg wire.Message
}

// record stores and logs a pair that changed.
type record struct{ pair PairView }

// forget drops a pair that no longer exists.
type forget struct{ id wire.PairID }

// ordered tells of an attempt what both sides are about to be told.
type ordered struct {
	pair     wire.PairID
	attempt  wire.AttemptID
	names    [2]wire.NodeName
	strategy nat.Strategy
	verdict  VerdictView
	// orders and delays, half of the sessions' round trips, are by name.
	orders [2]*wire.Punch
	delays [2]time.Duration
}

// ended tells of an attempt that was ordered how it ended; took is what the slower
// side says of one that led to a tunnel.
type ended struct {
	pair     wire.PairID
	attempt  wire.AttemptID
	strategy nat.Strategy
	outcome  AttemptOutcome
	reason   string
	took     time.Duration
}

func (send) isAction()    {}
func (record) isAction()  {}
func (forget) isAction()  {}
func (ordered) isAction() {}
func (ended) isAction()   {}

// coordinator decides which pair punches when and how. It is a pure state
// machine: it owns no socket, clock, logger or store; every method takes the
// time and returns what is to be done. The hub's goroutine is its only caller.
type coordinator struct {
	rand        *rand.Rand
	nodes       map[wire.NodeName]*node
	relaying    relaying
	communities []Community
	policies    map[string]nat.Policy    // of communities
	shared      map[wire.PairID][]string // Pairs of communities
	pairs       map[wire.PairID]*pair
	// sorted is all pairs by ID, so that two runs do things in one order;
	// byNode is the same by member.
	sorted []*pair
	byNode map[wire.NodeName][]*pair
	// barred are nodes that are not let in.
	barred map[wire.NodeName]bool
	agenda agenda
	lists  lists
	// running counts each node's attempts, strained those of them that its NAT
	// bears only one of at a time.
	running, strained map[wire.NodeName]int
	out               []action
}

// pair is two nodes that shall have a tunnel.
type pair struct {
	id          wire.PairID
	names       [2]wire.NodeName
	communities []string
	limit       limit
	// verdict is what is expected, by what is known now.
	verdict nat.Verdict
	// sides holds what each end last told.
	sides [2]side
	// listed: that end has been told of the other one, in this session. It
	// cannot follow an order before.
	listed [2]bool
	state  State
	reason string
	since  time.Time
	// attempt is the one that runs, last the one that was ordered before it.
	attempt, last *attempt
	// remembered is the state before the rendezvous was restarted: if it turns
	// out to hold, nothing has changed since.
	remembered State
	// failure is why the last attempt or tunnel ended, until something happens
	// that it says nothing about.
	failure string
	// succeeded is the attempt that led to the tunnel that stands.
	succeeded wire.AttemptID
	damping   damping
	// sixFailed: an attempt has failed, so that IPv6 at both ends is no reason
	// to expect a path.
	sixFailed bool
	// tries counts attempts since the last success or reset, total all.
	tries, total int
	// latest is when the last attempt started, started the same by the rank of
	// its strategy; retryAt is when the next one may.
	latest  time.Time
	started [ranks]time.Time
	retryAt time.Time
	// at is when something is due, place where that stands in the agenda, from
	// 1 on.
	at    time.Time
	place int

	timeToDirect time.Duration
	lastDirect   time.Time
}

// side is what one end last told of its tunnel.
type side struct {
	told      bool
	direct    bool
	monitored bool
	path      wire.Path
	// attempt is the one that led to the tunnel, if the end named one.
	attempt wire.AttemptID
	// stale says why what the end believes in is no tunnel any more: the other
	// end has lost it since.
	stale string
	// demoted: the end has been told to leave its tunnel.
	demoted bool
	// relay: the tunnel, which is one with the connector, relays; note says why
	// it does not.
	relay bool
	note  string
}

// stands reports whether the end has a tunnel, as far as is known.
func (s side) stands() bool { return s.direct && s.stale == "" }

func (p *pair) index(n wire.NodeName) int {
	if p.names[0] == n {
		return 0
	}
	return 1
}

func (p *pair) other(n wire.NodeName) wire.NodeName { return p.names[1-p.index(n)] }

func (p *pair) has(n wire.NodeName) bool { return p.names[0] == n || p.names[1] == n }

func newCoordinator(r *rand.Rand) *coordinator {
	return &coordinator{
		rand: r, nodes: map[wire.NodeName]*node{}, pairs: map[wire.PairID]*pair{}, shared: map[wire.PairID][]string{},
		lists:   lists{untold: map[wire.NodeName]bool{}},
		running: map[wire.NodeName]int{}, strained: map[wire.NodeName]int{}, barred: map[wire.NodeName]bool{},
	}
}

func (c *coordinator) do(a action) { c.out = append(c.out, a) }

// flush returns the actions gathered and forgets them.
func (c *coordinator) flush() []action {
	out := c.out
	c.out = nil
	return out
}

// Restore tells what the store remembers, before any session exists. What it
// finds out by that is no news, so there is nothing to do.
func (c *coordinator) Restore(now time.Time, nodes []NodeView, cs []Community, pairs []PairView) {
	for _, v := range nodes {
		n := &node{endpoint: v.Endpoint, nat: v.NAT, policy: v.Punch, noProbe: v.NoProbe, metered: v.Metered}
		for _, at := range []netip.AddrPort{v.Observed, v.Observed6} {
			if at.IsValid() {
				*n.observed(at.Addr()) = at
			}
		}
		n.resite()
		c.nodes[v.Name] = n
	}
	c.setCommunities(now, cs)
	for _, v := range pairs {
		if p := c.pairs[v.ID]; p != nil {
			p.total, p.timeToDirect, p.lastDirect = v.Attempts, time.Duration(v.TimeToDirectMs)*time.Millisecond, v.LastDirect
			p.remembered, p.since = v.State, v.Since
			p.last = &attempt{strategy: v.Strategy, packets: [2]int{v.Packets}}
		}
	}
	c.out = nil
}

// Online starts a session of a node. Admit must have accepted the endpoint.
func (c *coordinator) Online(now time.Time, hello *wire.Hello, delay time.Duration) []action {
	name := hello.Endpoint.Name
	n := c.nodes[name]
	known := n != nil
	if !known {
		n = &node{}
		c.nodes[name] = n
	}
	changed := !known || n.metered != hello.Metered || !sameEndpoint(n.endpoint, hello.Endpoint)
	was := n.endpoint
	*n = node{
		endpoint: hello.Endpoint, online: true, delay: delay, told: hello.Candidates,
		public: n.public, moved: n.moved, nat: n.nat, policy: hello.Punch, noProbe: hello.NoProbe, metered: hello.Metered,
		berth: n.berth, relayed: n.relayed,
	}
	for _, p := range c.byNode[name] {
		p.listed[p.index(name)] = false
	}
	c.sift(n)
	if changed {
		c.rejoin(now, append(c.resift(was.Subnets, hello.Endpoint.Subnets), name))
	} else {
		c.tell(now, []wire.NodeName{name})
	}
	standing := map[wire.NodeName]wire.Tunnel{}
	for _, t := range hello.Tunnels {
		standing[t.Peer] = t
	}
	for _, p := range c.byNode[name] {
		i := p.index(name)
		t, ok := standing[p.other(name)]
		p.sides[i] = saidIn(t, ok)
		delete(standing, p.other(name))
		c.abandon(p, name, string(name)+" started a new session")
		if !ok {
			c.gone(p, i, string(name)+" has no tunnel")
		}
		c.reset(now, p)
	}
	n.standing = standing
	// What a connector says of all its edges comes first: no pair shall be
	// judged by the half of it.
	settled := map[wire.NodeName]bool{name: true}
	for _, p := range c.byNode[name] {
		if edge, changed := c.carry(p); changed {
			settled[edge] = true
		}
	}
	c.settleAll(now, settled)
	return c.flush()
}

// Offline ends the session of a node. Its tunnels live on, so a pair that was
// direct stays so until one end tells otherwise.
func (c *coordinator) Offline(now time.Time, name wire.NodeName) []action {
	n := c.nodes[name]
	if n == nil || !n.online {
		return nil
	}
	n.online, n.gathered = false, false
	for _, p := range c.byNode[name] {
		c.abandon(p, name, string(name)+" went offline")
		c.settle(now, p)
	}
	return c.flush()
}

// Observed records where the STUN service has seen a node's IKE port.
func (c *coordinator) Observed(now time.Time, name wire.NodeName, addr netip.AddrPort) []action {
	n := c.nodes[name]
	if n == nil || !n.online {
		return nil
	}
	seen := n.observed(addr.Addr())
	if n.gathered && *seen == addr {
		return nil
	}
	if !n.gathered && n.nat.Blocked != "" {
		n.nat = wire.NAT{} // of a former session: UDP has just passed
	}
	// Another port alone is no new chance: a NAT with short timeouts gives one
	// at every look.
	moved := n.gathered && seen.Addr() != addr.Addr()
	*seen, n.gathered = addr, true
	elsewhere := moved
	if addr.Addr().Is4() && n.public != addr.Addr() {
		elsewhere = n.public.IsValid()
		n.public = addr.Addr()
		for _, p := range c.byNode[name] {
			p.started[rank(nat.Probe)] = time.Time{} // what was searched is another NAT
		}
	}
	if elsewhere {
		n.moved = now
		for _, p := range c.byNode[name] {
			p.damping.excuse(now)
		}
	}
	c.networkChanged(now, name, moved)
	return c.flush()
}

// Network takes what an agent's own gathering found.
func (c *coordinator) Network(now time.Time, name wire.NodeName, m *wire.Network) []action {
	n := c.nodes[name]
	if n == nil || !n.online {
		return nil
	}
	first, moved := !n.gathered, !slices.Equal(n.told, m.Candidates)
	changed := first || moved || n.nat != m.NAT
	n.told, n.nat, n.gathered = m.Candidates, m.NAT, true
	if changed {
		c.networkChanged(now, name, moved && !first)
	}
	return c.flush()
}

// networkChanged trickles the candidates into running attempts and, if that is
// reason to hope, gives everything that is not direct another chance at once.
func (c *coordinator) networkChanged(now time.Time, name wire.NodeName, hope bool) {
	n := c.nodes[name]
	told := n.nat // messages are read when the node's may be another
	c.sift(n)
	for _, p := range c.byNode[name] {
		switch {
		case p.attempt == nil && hope:
			c.reset(now, p)
		case p.attempt != nil && !p.attempt.preparing: // else the order brings it
			c.do(send{p.other(name), &wire.Trickle{Attempt: p.attempt.id, Candidates: n.candidates(nil), RemoteNAT: &told}})
		}
		c.settle(now, p)
	}
}

// resift looks again at the candidates of all nodes that have one in a subnet
// that changed, and names those nodes.
func (c *coordinator) resift(changed ...[]netip.Prefix) (names []wire.NodeName) {
	subnets := slices.Concat(changed...)
	inside := func(candidate wire.Candidate) bool {
		return slices.ContainsFunc(subnets, func(p netip.Prefix) bool { return p.Contains(candidate.Addr.Addr()) })
	}
	for name, n := range c.nodes {
		if slices.ContainsFunc(n.told, inside) {
			c.sift(n)
			names = append(names, name)
		}
	}
	return names
}

// Delay updates half the round trip of a node's session.
func (c *coordinator) Delay(name wire.NodeName, delay time.Duration) {
	if n := c.nodes[name]; n != nil && n.online {
		n.delay = delay
	}
}

// Communities replaces all communities.
func (c *coordinator) Communities(now time.Time, cs []Community) []action {
	c.setCommunities(now, cs)
	return c.flush()
}

// Tick tells and starts what is due and ends what is overdue.
func (c *coordinator) Tick(now time.Time) []action {
	c.tellRest(now)
	for _, p := range c.agenda.due(now) {
		switch a := p.attempt; {
		case a != nil && now.Before(a.deadline): // begun a moment ago
		case a != nil && a.preparing:
			c.order(now, p)
		case a != nil:
			c.fail(now, p, "no report from "+p.silent()+" within "+attemptTimeout.String(), "")
			c.settle(now, p)
		default:
			c.settle(now, p)
		}
		c.schedule(p)
	}
	return c.flush()
}

// Next is when Tick has something to do, zero for never.
func (c *coordinator) Next() time.Time {
	if next := c.agenda.next(); !next.IsZero() {
		return earlier(c.lists.due, next)
	}
	return c.lists.due
}

// schedule puts a pair down for what is due next. What waits for a free slot is
// put down when there is one.
func (c *coordinator) schedule(p *pair) {
	var at time.Time
	switch {
	case c.pairs[p.id] != p: // it has been dropped
	case p.attempt != nil:
		at = p.attempt.deadline
	case c.wants(p) && c.free(p):
		at = c.due(p)
	}
	c.agenda.set(p, at)
}

func (c *coordinator) online(n wire.NodeName) bool { return c.nodes[n] != nil && c.nodes[n].online }
