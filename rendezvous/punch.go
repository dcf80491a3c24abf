package rendezvous

import (
	"fmt"
	"time"

	"github.com/bodkin-net/bodkin/punch/nat"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// cannotPunch says why an operator's order to try a pair now would come to
// nothing, empty if it would not.
func (c *coordinator) cannotPunch(p *pair) string {
	a, b := p.names[0], p.names[1]
	switch {
	case p.state == Direct:
		return fmt.Sprintf("the pair of %s and %s is direct already, since %s", a, b, p.since.UTC().Format("2006-01-02 15:04:05 UTC"))
	case !c.online(a):
		return string(a) + " is offline"
	case !c.online(b):
		return string(b) + " is offline"
	case c.plan(p) == wire.PlanPublic:
		return fmt.Sprintf("%s is a connector: its tunnels are not punched", c.connectorOf(p))
	case p.verdict.Strategy == nat.None:
		return p.verdict.Reason
	}
	return ""
}

// Retry has a pair tried at once that cannotPunch has nothing against: what was
// held against its path is let go. An attempt that runs goes on, and a pause that
// is the NATs' stays: RetryAt tells.
func (c *coordinator) Retry(now time.Time, id wire.PairID) []action {
	if p := c.pairs[id]; p != nil && p.attempt == nil {
		p.damping.excuse(now)
		c.reset(now, p)
		c.settle(now, p)
	}
	return c.flush()
}
