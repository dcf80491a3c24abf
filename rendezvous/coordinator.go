package rendezvous

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// Timing of the coordinator. All of it is relative; no clock of an agent is
// ever compared with ours.
const (
	// attemptTimeout is the backstop behind the agents' own limits (10 s of
	// punching, 9 s for charon) and the start offset: past it a side is silent.
	attemptTimeout = 25 * time.Second
	// maxStartOffset bounds how long the nearer side waits for the farther: a
	// round trip measured during a stall must not cost the attempt.
	maxStartOffset = time.Second
	// maxParallel bounds the attempts of one node at a time: an edge that joins
	// a large community must not run hundreds of ICE sessions at once, nor its
	// session's outbox overflow.
	maxParallel = 32
	// retryMin doubles up to retryMax. Below a second a retry would meet the
	// same NAT state; above five minutes an operator would call it dead. No
	// event brings two attempts closer together than retryMin, or a node that
	// reconnects in a loop would keep all its peers punching.
	retryMin = time.Second
	retryMax = 5 * time.Minute
	// retryJitter spreads the retries of pairs that broke together.
	retryJitter = 0.2
)

// State of a pair.
type State string

// States. A pair that is not direct carries a reason.
const (
	Direct State = "direct"
	Down   State = "down"
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
type forget struct{ id PairID }

func (send) isAction()   {}
func (record) isAction() {}
func (forget) isAction() {}

// coordinator decides which pair punches when and how. It is a pure state
// machine: it owns no socket, clock, logger or store; every method takes the
// time and returns what is to be done. The hub's goroutine is its only caller.
type coordinator struct {
	rand        *rand.Rand
	nodes       map[wire.NodeName]*node
	communities []Community
	pairs       map[PairID]*pair
	// sorted is all pairs by ID, so that two runs do things in one order;
	// byNode is the same by member. Both are made by rebuild.
	sorted []*pair
	byNode map[wire.NodeName][]*pair
	// running counts each node's attempts.
	running map[wire.NodeName]int
	out     []action
}

// node is a node the rendezvous knows, online or not.
type node struct {
	endpoint wire.Endpoint
	online   bool
	// delay is half the session's last measured round trip.
	delay    time.Duration
	hosts    []wire.Candidate
	observed netip.AddrPort
	nat      wire.NAT
	// gathered is set once a STUN request of the session was observed or the
	// agent said that none can be: from then on a punch makes sense.
	gathered bool
	// sentPeers is the last Peers message of this session, nil for none.
	sentPeers *wire.Peers
}

func (n *node) ready() bool { return n != nil && n.online && n.gathered }

// candidates are what a peer of n shall try: the agent's host addresses and
// the mapped address the rendezvous has seen itself. The peer would refuse a
// message with a candidate too many, or with one that is no node's address,
// such as the loopback address of an agent beside the rendezvous.
func (n *node) candidates() []wire.Candidate {
	srflx := wire.Candidate{Kind: wire.ServerReflexive, Addr: n.observed}
	if srflx.Validate() != nil || slices.ContainsFunc(n.hosts, func(c wire.Candidate) bool { return c.Addr == n.observed }) {
		return slices.Clone(n.hosts)
	}
	return append(slices.Clone(n.hosts[:min(len(n.hosts), wire.MaxCandidates-1)]), srflx)
}

// pair is two nodes that shall have a tunnel.
type pair struct {
	id          PairID
	names       [2]wire.NodeName
	communities []string
	// sides holds what each end last told.
	sides   [2]side
	state   State
	reason  string
	since   time.Time
	attempt *attempt
	// remembered is the state before the rendezvous was restarted: if it turns
	// out to hold, nothing has changed since.
	remembered State
	// failure is why the last attempt or tunnel ended, until something happens
	// that it says nothing about.
	failure string
	// succeeded is the attempt that led to the tunnel that stands.
	succeeded wire.AttemptID
	// tries counts attempts since the last success or reset, total all.
	tries, total int
	// started is when the last attempt did, retryAt when the next one may.
	started, retryAt time.Time

	timeToDirect time.Duration
	lastDirect   time.Time
}

// side is what one end last told of its tunnel.
type side struct {
	told      bool
	direct    bool
	monitored bool
	path      wire.Path
}

type attempt struct {
	id       wire.AttemptID
	deadline time.Time
	elapsed  time.Duration
	// direct marks the sides that have confirmed *this* attempt.
	direct [2]bool
}

func (p *pair) index(n wire.NodeName) int {
	if p.names[0] == n {
		return 0
	}
	return 1
}

// silent names the ends that have not confirmed the running attempt.
func (p *pair) silent() string {
	switch p.attempt.direct {
	case [2]bool{true, false}:
		return string(p.names[1])
	case [2]bool{false, true}:
		return string(p.names[0])
	}
	return string(p.names[0]) + " and " + string(p.names[1])
}

func (p *pair) other(n wire.NodeName) wire.NodeName { return p.names[1-p.index(n)] }

func (p *pair) has(n wire.NodeName) bool { return p.names[0] == n || p.names[1] == n }

func newCoordinator(r *rand.Rand) *coordinator {
	return &coordinator{rand: r, nodes: map[wire.NodeName]*node{}, pairs: map[PairID]*pair{}, running: map[wire.NodeName]int{}}
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
func (c *coordinator) Restore(now time.Time, endpoints []wire.Endpoint, cs []Community, pairs []PairView) {
	for _, e := range endpoints {
		c.nodes[e.Name] = &node{endpoint: e}
	}
	c.communities = cs
	c.rebuild(now)
	for _, v := range pairs {
		if p := c.pairs[v.ID]; p != nil {
			p.total, p.timeToDirect, p.lastDirect = v.Attempts, v.TimeToDirect, v.LastDirect
			p.remembered, p.since = v.State, v.Since
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
	changed := !known || !sameEndpoint(n.endpoint, hello.Endpoint)
	*n = node{endpoint: hello.Endpoint, online: true, delay: delay, hosts: hello.Candidates, nat: n.nat}
	if changed {
		c.rebuild(now)
	}
	standing := map[wire.NodeName]wire.Tunnel{}
	for _, t := range hello.Tunnels {
		standing[t.Peer] = t
	}
	for _, p := range c.byNode[name] {
		t, ok := standing[p.other(name)]
		p.sides[p.index(name)] = side{told: true, direct: ok, monitored: ok && t.Monitored, path: t.Path}
		c.abandon(p, name, string(name)+" started a new session")
		if !ok {
			c.suggestRetry(p, 1-p.index(name), string(name)+" has no tunnel")
		}
		c.reset(now, p)
		c.settle(now, p)
	}
	c.sendPeers(name)
	return c.flush()
}

// Offline ends the session of a node. Its tunnels live on, so a pair that was
// direct stays so until one end tells otherwise.
func (c *coordinator) Offline(now time.Time, name wire.NodeName) []action {
	n := c.nodes[name]
	if n == nil || !n.online {
		return nil
	}
	*n = node{endpoint: n.endpoint, nat: n.nat, observed: n.observed}
	for _, p := range c.byNode[name] {
		c.abandon(p, name, string(name)+" went offline")
		c.settle(now, p)
	}
	return c.flush()
}

// Observed records where the STUN service has seen a node's IKE port.
func (c *coordinator) Observed(now time.Time, name wire.NodeName, addr netip.AddrPort) []action {
	n := c.nodes[name]
	if n == nil || !n.online || n.gathered && n.observed == addr {
		return nil
	}
	// Another port alone is no new chance: a NAT with short timeouts gives one
	// at every look.
	moved := n.gathered && n.observed.Addr() != addr.Addr()
	n.observed, n.gathered = addr, true
	c.networkChanged(now, name, moved)
	return c.flush()
}

// Network takes what an agent's own gathering found.
func (c *coordinator) Network(now time.Time, name wire.NodeName, m *wire.Network) []action {
	n := c.nodes[name]
	if n == nil || !n.online {
		return nil
	}
	first, moved := !n.gathered, !slices.Equal(n.hosts, m.Candidates)
	changed := first || moved || n.nat != m.NAT
	n.hosts, n.nat, n.gathered = m.Candidates, m.NAT, true
	if changed {
		c.networkChanged(now, name, moved && !first)
	}
	return c.flush()
}

// networkChanged trickles the candidates into running attempts and, if that is
// reason to hope, gives everything that is not direct another chance at once.
func (c *coordinator) networkChanged(now time.Time, name wire.NodeName, hope bool) {
	n := c.nodes[name]
	for _, p := range c.byNode[name] {
		if p.attempt != nil {
			c.do(send{p.other(name), &wire.Trickle{Attempt: p.attempt.id, Candidates: n.candidates(), RemoteNAT: &n.nat}})
			continue
		}
		if hope {
			c.reset(now, p)
		}
		c.settle(now, p)
	}
}

// Delay updates half the round trip of a node's session.
func (c *coordinator) Delay(name wire.NodeName, delay time.Duration) {
	if n := c.nodes[name]; n != nil && n.online {
		n.delay = delay
	}
}

// Communities replaces all communities.
func (c *coordinator) Communities(now time.Time, cs []Community) []action {
	c.communities = cs
	c.rebuild(now)
	return c.flush()
}

// Tick starts what is due and ends what is overdue.
func (c *coordinator) Tick(now time.Time) []action {
	for _, p := range c.sorted {
		switch {
		case p.attempt != nil && !now.Before(p.attempt.deadline):
			c.fail(now, p, "no report from "+p.silent()+" within "+attemptTimeout.String(), "")
			c.settle(now, p)
		case c.wants(p) && !now.Before(p.retryAt):
			c.settle(now, p)
		}
	}
	return c.flush()
}

// Next is when Tick has something to do, zero for never.
func (c *coordinator) Next() time.Time {
	var next time.Time
	for _, p := range c.pairs {
		at := p.retryAt
		if p.attempt != nil {
			at = p.attempt.deadline
		} else if !c.wants(p) || !c.free(p) {
			continue // what waits for a free slot comes up when one is
		}
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	return next
}

// Report takes an agent's word on a pair. Words about pairs the node is not
// part of, or about attempts that are over, change nothing.
func (c *coordinator) Report(now time.Time, from wire.NodeName, r *wire.Report) []action {
	p := c.pairs[NewPairID(string(from), string(r.Peer))]
	if p == nil || !p.has(from) || from == r.Peer {
		return nil
	}
	i := p.index(from)
	// "here" in an agent's reason is that agent's; the pair has two ends.
	reason := wire.Clip(string(from) + ": " + r.Reason)
	current := p.attempt != nil && p.attempt.id == r.Attempt
	switch r.Outcome {
	case wire.OutcomeNominated:
		if current {
			p.sides[i].path = r.Path
			c.do(record{c.view(p)})
		}
	case wire.OutcomeDirect:
		// The tunnel that stands may move to another path.
		moved := r.Attempt == p.succeeded && p.sides[i].direct
		if !current && !moved && r.Attempt != "" {
			return nil
		}
		p.sides[i] = side{told: true, direct: true, monitored: true, path: r.Path}
		elapsed := time.Duration(r.ElapsedMs) * time.Millisecond
		if current {
			p.attempt.direct[i] = true
			p.attempt.elapsed = max(p.attempt.elapsed, elapsed)
			if p.attempt.direct[0] && p.attempt.direct[1] {
				elapsed, p.succeeded = p.attempt.elapsed, p.attempt.id
				c.end(p)
			}
		}
		if !moved && p.attempt == nil && p.sides[0].direct && p.sides[1].direct {
			p.tries, p.timeToDirect = 0, elapsed
		}
	case wire.OutcomeFailed:
		if !current && r.Attempt != "" {
			return nil
		}
		c.fail(now, p, reason, from)
	case wire.OutcomeLost:
		if current {
			c.fail(now, p, reason, from)
		}
		p.sides[i] = side{told: true}
		p.failure = reason
		c.suggestRetry(p, 1-i, reason)
	}
	c.settle(now, p)
	return c.flush()
}

// suggestRetry tells an end that believes in a tunnel without attempts that the
// other end has none. Where there are attempts, the next one tells it.
func (c *coordinator) suggestRetry(p *pair, end int, reason string) {
	if name := p.names[end]; c.plan(p) == wire.PlanPublic && p.sides[end].direct && c.online(name) {
		c.do(send{name, &wire.Retry{Peer: p.names[1-end], Reason: wire.Clip(reason)}})
	}
}

// fail ends the running attempt, tells the sides other than from, and sets the
// time of the next one.
func (c *coordinator) fail(now time.Time, p *pair, reason string, from wire.NodeName) {
	if a := p.attempt; a != nil {
		c.end(p)
		for _, name := range p.names {
			if name != from && c.online(name) {
				c.do(send{name, &wire.Cancel{Attempt: a.id, Reason: reason}})
			}
		}
	}
	for i := range p.sides {
		if s := &p.sides[i]; !s.direct {
			s.path = wire.Path{} // nominated, and came to nothing
		}
	}
	p.failure, p.reason = reason, reason
	p.tries++
	p.retry(now.Add(c.backoff(p.tries)))
	if p.state != Direct {
		c.do(record{c.view(p)})
	}
}

// backoff is retryMin doubled for each try after the first, jittered, capped.
func (c *coordinator) backoff(tries int) time.Duration {
	d := retryMax
	if shift := tries - 1; shift < 16 {
		d = min(retryMax, retryMin<<shift)
	}
	return time.Duration(float64(d) * (1 - retryJitter + 2*retryJitter*c.rand.Float64()))
}

// reset lets the next attempt start at once: something happened that may
// change its outcome.
func (c *coordinator) reset(now time.Time, p *pair) {
	p.tries, p.failure = 0, ""
	p.retry(now)
}

// retry sets when the next attempt may start: at t, or retryMin after the last.
func (p *pair) retry(t time.Time) {
	p.retryAt = t
	if earliest := p.started.Add(retryMin); earliest.After(t) {
		p.retryAt = earliest
	}
}

// abandon ends an attempt because name's session ended; the other side is told.
func (c *coordinator) abandon(p *pair, name wire.NodeName, reason string) {
	if p.attempt == nil {
		return
	}
	if o := p.other(name); c.online(o) {
		c.do(send{o, &wire.Cancel{Attempt: p.attempt.id, Reason: reason}})
	}
	c.end(p)
}

// end takes an attempt off the books.
func (c *coordinator) end(p *pair) {
	p.attempt = nil
	for _, n := range p.names {
		c.running[n]--
	}
}

// free reports whether both ends may run one attempt more.
func (c *coordinator) free(p *pair) bool {
	return c.running[p.names[0]] < maxParallel && c.running[p.names[1]] < maxParallel
}

func (c *coordinator) online(n wire.NodeName) bool { return c.nodes[n] != nil && c.nodes[n].online }
