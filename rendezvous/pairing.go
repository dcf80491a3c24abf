package rendezvous

import (
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/bodkin-net/bodkin/punch/nat"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// PairView is a pair as the API, the page and the store see it.
type PairView struct {
	ID          wire.PairID      `json:"id"`
	Nodes       [2]wire.NodeName `json:"nodes"`
	Communities []string         `json:"communities"`
	State       State            `json:"state"`
	// Relay is the connector that carries the pair while it is not direct.
	Relay  wire.NodeName `json:"relay,omitempty"`
	Reason string        `json:"reason,omitempty"`
	Since  time.Time     `json:"since"`
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
	// TimeToDirectMs of the last success, in milliseconds; 0 before it.
	TimeToDirectMs int64     `json:"timeToDirectMs"`
	LastDirect     time.Time `json:"lastDirect,omitzero"`
	RetryAt        time.Time `json:"retryAt,omitzero"`
}

func (c *coordinator) isConnector(n wire.NodeName) bool {
	return c.nodes[n] != nil && c.nodes[n].endpoint.Type == wire.Connector
}

// connectorOf is the connector of a pair, the first one if both are.
func (c *coordinator) connectorOf(p *pair) wire.NodeName {
	if c.isConnector(p.names[0]) {
		return p.names[0]
	}
	return p.names[1]
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
// punch and know of each other, and the tunnel is missing or nobody watches its path.
func (c *coordinator) wants(p *pair) bool {
	if p.attempt != nil || c.plan(p) != wire.PlanICE || p.verdict.Strategy == nat.None || p.listed != [2]bool{true, true} ||
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
		c.callOff(p, "", AttemptCancelled, "an operator forbids it now (punch: "+string(c.policy(p))+")")
	case p.verdict == was:
	case a != nil && !a.nominated && better(a.verdict, p.verdict):
		c.callOff(p, "", AttemptCancelled, "more is known now: "+p.verdict.String())
		p.tries, p.failure, p.retryAt = 0, "", now
	case a == nil && better(was, p.verdict):
		c.reset(now, p)
	}
}

// settle brings a pair's state in line with what is known, and starts an
// attempt where one is due.
func (c *coordinator) settle(now time.Time, p *pair) {
	before := c.outcome(p)
	c.rejudge(now, p)
	c.restate(now, p)
	c.demote(p)
	if c.wants(p) && c.free(p) && !now.Before(c.due(p)) {
		c.begin(now, p)
	}
	if p.state != Direct {
		p.reason = c.why(now, p)
	}
	c.schedule(p)
	if !sameOutcome(before, c.outcome(p)) {
		c.do(record{c.view(p)})
	}
	if edge, changed := c.carry(p); changed {
		c.resettle(now, edge)
	}
}

// stateOf is what the ends' words come to.
func (c *coordinator) stateOf(p *pair) State {
	for i, s := range p.sides {
		o := p.sides[1-i]
		// An end that has not spoken since this rendezvous started does not
		// contradict the one that has: its tunnel may well stand.
		if s.stands() && (o.stands() || !o.told && !c.online(p.names[1-i])) {
			return Direct
		}
	}
	if c.relay(p) != "" {
		return Relayed
	}
	return Down
}

func (c *coordinator) restate(now time.Time, p *pair) {
	state := c.stateOf(p)
	if state == Direct {
		p.reason, p.failure, p.lastDirect = "", "", now
	}
	if state == p.state {
		return
	}
	switch {
	case state == Direct:
		p.damping.rose(now)
	case p.state == Direct:
		p.damping.sank(now)
	}
	if state != p.remembered {
		p.since = now
	}
	p.state, p.remembered = state, ""
}

// sameOutcome ignores what changes without anything having happened.
func sameOutcome(a, b PairView) bool {
	a.LastDirect, b.LastDirect = time.Time{}, time.Time{}
	return reflect.DeepEqual(a, b)
}

// why is the reason of a pair that is not direct.
func (c *coordinator) why(now time.Time, p *pair) string {
	for _, name := range p.names {
		switch n := c.nodes[name]; {
		case n == nil:
			return string(name) + " has never been online, or was deleted"
		case p.verdict.Strategy == nat.None:
			return p.verdict.Reason
		case !n.online && p.state == Relayed:
			return fmt.Sprintf("%s is offline; its tunnel with %s stands, as far as is known", name, c.relay(p))
		case !n.online:
			return string(name) + " is offline"
		case c.plan(p) == wire.PlanICE && !n.gathered:
			return "waiting for " + string(name) + "'s first STUN request"
		}
	}
	if p.state == Relayed && p.damping.held(now) && p.attempt == nil {
		held := fmt.Sprintf("relayed until %s, since the direct path went silent %d times soon after it had come up",
			p.damping.until.UTC().Format("15:04:05 UTC"), p.damping.losses)
		if p.failure == "" {
			return held
		}
		return p.failure + "; " + held
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
	v := c.outcome(p)
	v.Reason = c.reasonOf(p)
	return v
}

// reasonOf is the reason as others see it. Why there is no relay is a matter of
// other pairs, which change without this one being looked at.
func (c *coordinator) reasonOf(p *pair) string {
	if p.state == Down {
		if why := c.noRelay(p); why != "" {
			return p.reason + "; no relay: " + why
		}
	}
	return p.reason
}

// outcome is the view without what is not the pair's own.
func (c *coordinator) outcome(p *pair) PairView {
	v := PairView{
		ID: p.id, Nodes: p.names, Communities: p.communities,
		State: p.state, Reason: p.reason, Since: p.since, Verdict: viewOf(p.verdict),
		Punching: p.attempt != nil, Attempts: p.total,
		TimeToDirectMs: p.timeToDirect.Milliseconds(), LastDirect: p.lastDirect,
	}
	if p.last != nil {
		v.Strategy, v.Packets = p.last.strategy, p.last.packets[0]+p.last.packets[1]
	}
	if c.wants(p) {
		v.RetryAt = c.due(p)
	}
	v.Relay = c.relay(p)
	if c.plan(p) == wire.PlanPublic && c.relays(p) {
		v.Relay = c.connectorOf(p)
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
