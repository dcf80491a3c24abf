package rendezvous

import (
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// What one agent may ask of the hub, whose goroutine serves all: what comes
// faster is read later, so that TCP holds the agent back.
const (
	// messageCost is the share of time of a message about one pair.
	messageCost = 10 * time.Millisecond
	// networkCost is that of a message by which all pairs of a node are judged
	// anew, and their peers told. An agent learns something new in seconds.
	networkCost = 500 * time.Millisecond
	// paceDepth is what may come at once: the loss of all tunnels of a node
	// with wire.MaxPeers peers, or what sixty changes of a network say.
	paceDepth = 30 * time.Second
)

// pace is how fast an agent's messages are taken, as the time at which nothing
// of what it may do at once would be used up (GCRA). The zero value is one that
// has done nothing; it belongs to the session's reader.
type pace struct{ unusedAt time.Time }

// take uses up a cost, and tells how long to wait before doing what costs it.
func (p *pace) take(now time.Time, cost time.Duration) time.Duration {
	if p.unusedAt.Before(now) {
		p.unusedAt = now
	}
	p.unusedAt = p.unusedAt.Add(cost)
	return max(0, p.unusedAt.Sub(now)-paceDepth)
}

func costOf(m wire.Message) time.Duration {
	if _, ok := m.(*wire.Network); ok {
		return networkCost
	}
	return messageCost
}
