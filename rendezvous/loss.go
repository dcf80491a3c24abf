package rendezvous

import (
	"time"

	"github.com/bodkin-net/bodkin/punch/nat"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// lost takes a side's word that its tunnel is none any more; silent says that
// nobody ended it.
func (c *coordinator) lost(now time.Time, p *pair, i int, silent bool, reason string, current bool) {
	stood, asked := p.state == Direct, p.sides[i].demoted
	if current {
		c.fail(now, p, reason, p.names[i])
	}
	p.sides[i] = side{told: true}
	// Who was told to leave adds nothing to why.
	if !asked || p.failure == "" {
		p.failure = reason
	}
	if stood && silent && !asked && !c.movedLately(now, p) {
		p.damping.lost(now)
	}
	c.gone(p, i, reason)
}

// movedLately reports whether one of the ends was seen at another address a
// moment ago.
func (c *coordinator) movedLately(now time.Time, p *pair) bool {
	for _, name := range p.names {
		if n := c.nodes[name]; n != nil && !n.moved.IsZero() && now.Sub(n.moved) < excuseWindow {
			return true
		}
	}
	return false
}

// gone: a side has no tunnel. What the other end believes in is none either; of
// a tunnel without attempts it has to see for itself.
func (c *coordinator) gone(p *pair, i int, reason string) {
	o := &p.sides[1-i]
	switch {
	case !o.direct:
	case c.plan(p) == wire.PlanICE:
		if o.stale == "" {
			o.stale = reason
		}
	case c.online(p.names[1-i]):
		c.do(send{p.names[1-i], &wire.Retry{Peer: p.names[i], Reason: wire.Clip(reason)}})
	}
}

// leaveLead is how long both ends have to get ready to leave a tunnel that works:
// to stop watching it takes an agent some 70 ms, and what one of them still sends
// after the other has left is lost.
const leaveLead = 250 * time.Millisecond

// demote tells an end to leave a tunnel that its other end has lost, and both to
// leave one that an operator does not want. Only where the relay takes over: what
// is lost without one may heal. While an attempt runs its outcome tells more.
func (c *coordinator) demote(p *pair) {
	if p.attempt != nil || c.relay(p) == "" {
		return
	}
	planned := p.state == Direct && p.verdict.Strategy == nat.None
	if planned && (!c.online(p.names[0]) || !c.online(p.names[1]) || p.sides[0].demoted || p.sides[1].demoted) {
		return // one end alone would leave the other's packets to nobody
	}
	var offsets [2]int64
	if planned {
		offsets = c.startOffsets(p)
		for i := range offsets {
			offsets[i] += leaveLead.Milliseconds()
		}
	}
	for i, name := range p.names {
		s := &p.sides[i]
		reason := s.stale
		if planned {
			reason = p.verdict.Reason
		}
		if s.direct && !s.demoted && reason != "" && c.online(name) {
			s.demoted = true
			c.do(send{name, &wire.Demote{Peer: p.names[1-i], Reason: wire.Clip(reason), StartAfterMs: offsets[i]}})
		}
	}
}
