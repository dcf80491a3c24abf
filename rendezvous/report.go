package rendezvous

import (
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// Report takes an agent's word on a pair. Words about pairs the node is not
// part of, or about attempts that are over, change nothing.
func (c *coordinator) Report(now time.Time, from wire.NodeName, r *wire.Report) []action {
	p := c.pairs[wire.NewPairID(string(from), string(r.Peer))]
	if p == nil || !p.has(from) || from == r.Peer {
		c.unpaired(from, r)
		return c.flush()
	}
	i := p.index(from)
	// "here" in an agent's reason is that agent's; the pair has two ends.
	reason := wire.Clip(string(from) + ": " + r.Reason)
	current := p.attempt != nil && p.attempt.id == r.Attempt
	for _, a := range []*attempt{p.attempt, p.last} {
		if a != nil && a.id == r.Attempt && r.Attempt != "" {
			a.packets[i] = max(a.packets[i], min(r.Packets, maxPackets))
		}
	}
	switch r.Outcome {
	case wire.OutcomeNominated:
		if current {
			p.attempt.nominated = true
			p.sides[i].path = r.Path
			c.do(record{c.view(p)})
		}
	case wire.OutcomeDirect:
		c.confirmed(p, i, r, current)
	case wire.OutcomeFailed:
		// What an agent has tried by itself is none of our attempts.
		if current || r.Attempt == "" && c.plan(p) == wire.PlanPublic {
			c.fail(now, p, reason, from)
		}
	case wire.OutcomeLost:
		switch {
		case current || p.owns(i, r.Attempt):
			c.lost(now, p, i, r.Silent, reason, current)
		case !p.ended(r.Attempt):
			c.do(refuseReport{from, r, "that attempt has led to no tunnel"})
		}
	}
	c.settle(now, p)
	return c.flush()
}

// confirmed takes a side's word that bytes have come through its tunnel.
func (c *coordinator) confirmed(p *pair, i int, r *wire.Report, current bool) {
	// The tunnel that stands may move to another path.
	moved := r.Attempt == p.succeeded && p.sides[i].direct
	if !current && !moved && r.Attempt != "" {
		if p.ended(r.Attempt) && !p.sides[i].stands() {
			// Its word and the end of the attempt crossed on the way.
			p.sides[i] = side{told: true, direct: true, attempt: r.Attempt, stale: string(p.names[1-i]) + " has given up that attempt"}
		}
		return
	}
	was := p.sides[i]
	p.sides[i] = side{told: true, direct: true, monitored: true, path: r.Path, attempt: r.Attempt}
	if moved && !current {
		// Another path does not bring back an end that has lost the tunnel.
		p.sides[i].stale, p.sides[i].demoted = was.stale, was.demoted
	}
	if c.plan(p) == wire.PlanPublic {
		p.sides[i].relay, p.sides[i].note = r.Relay, wire.Clip(r.Reason)
	}
	elapsed := time.Duration(r.ElapsedMs) * time.Millisecond
	if current {
		p.attempt.nominated, p.attempt.direct[i] = true, true
		p.attempt.elapsed = max(p.attempt.elapsed, elapsed)
		if p.attempt.direct[0] && p.attempt.direct[1] {
			elapsed, p.succeeded = p.attempt.elapsed, p.attempt.id
			c.end(p, AttemptDirect, "")
		}
	}
	if !moved && p.attempt == nil && p.sides[0].stands() && p.sides[1].stands() {
		p.tries, p.timeToDirect = 0, elapsed
	}
}

// owns reports whether a side's tunnel can be that of an attempt. Who found its
// tunnel in charon does not know of one, nor do we of what another rendezvous
// ordered.
func (p *pair) owns(i int, attempt wire.AttemptID) bool {
	s := p.sides[i]
	return attempt == "" || s.direct && (s.attempt == "" || s.attempt == attempt)
}

// ended reports whether an attempt is the last one that is over.
func (p *pair) ended(attempt wire.AttemptID) bool { return p.last != nil && p.last.id == attempt }

// unpaired takes a report of a tunnel that is none of a pair: one that stood
// before this rendezvous knew of the other end, or somebody else's.
func (c *coordinator) unpaired(from wire.NodeName, r *wire.Report) {
	n := c.nodes[from]
	if n == nil || r.Outcome == wire.OutcomeFailed && r.Attempt != "" {
		return // what has failed claims nothing: agents say so of what was called off with its pair
	}
	if _, ok := n.standing[r.Peer]; !ok {
		c.do(refuseReport{from, r, "it has no pair with that node"})
	} else if r.Outcome == wire.OutcomeLost {
		delete(n.standing, r.Peer)
	}
}
