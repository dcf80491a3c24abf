package agent

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// linkEvent handles the rendezvous' messages.
func (d *Daemon) linkEvent(ctx context.Context, e linkEvent) {
	switch {
	case e.up != nil:
		d.linkOpened(ctx, e.up)
	case e.down != nil:
		if d.link != nil || d.linkErr == nil {
			d.linkSince = time.Now()
		}
		d.link, d.linkErr = nil, e.down
		d.stopNet()
		d.stopNet = func() {}
		d.leftAlone(true)
	default:
		d.message(ctx, e.message)
	}
}

// linkOpened says hello with what stands, and starts looking at the network.
func (d *Daemon) linkOpened(ctx context.Context, up *linkUp) {
	d.link, d.linkErr, d.linkSince = up, nil, time.Now()
	d.leftAlone(false)
	d.sessionAddr, d.told = netip.Addr{}, nil
	d.net.unsure()
	hello := &wire.Hello{
		AgentVersion: d.version, Endpoint: d.id.endpoint, Candidates: d.candidates(),
		Punch: d.cfg.Punch, NoProbe: d.rewrites.unavailable(), Metered: d.cfg.Metered,
		Answers: true,
	}
	for _, t := range d.sorted() {
		if t.standing {
			hello.Tunnels = append(hello.Tunnels, wire.Tunnel{Peer: t.name(), Path: t.path, Monitored: t.monitored, Relay: t.relay})
		}
	}
	d.send(hello)
	d.log.Info("connected to the rendezvous", "rendezvous", d.id.url, "as", up.welcome.Node)
	d.stopNet()
	d.stopNet = d.watchNetwork(ctx, up)
}

// leftAlone tells the tunnels whether the rendezvous is away.
func (d *Daemon) leftAlone(away bool) {
	now := time.Now()
	for _, t := range d.tunnels {
		t.leftAlone(now, away)
	}
}

func (d *Daemon) hosts() []wire.Candidate {
	var cs []wire.Candidate
	for _, a := range d.port.Local() {
		c := wire.Candidate{Kind: wire.Host, Addr: a}
		if c.Validate() == nil && !d.inTunnel(a.Addr()) {
			cs = append(cs, c)
		}
	}
	return cs
}

// inTunnel reports whether an address belongs to a peer's subnets: packets to
// it would go into a tunnel, so it cannot carry one.
func (d *Daemon) inTunnel(a netip.Addr) bool {
	for _, t := range d.tunnels {
		if slices.ContainsFunc(t.peer.Endpoint.Subnets, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return true
		}
	}
	return false
}

func (d *Daemon) message(ctx context.Context, m wire.Message) {
	now := time.Now()
	switch m := m.(type) {
	case *wire.Peers:
		d.peers(ctx, now, m)
	case *wire.Punch:
		t := d.tunnels[m.Peer.Endpoint.Name]
		if t == nil {
			d.log.Warn("order for a node that is no peer", "peer", m.Peer.Endpoint.Name)
			return
		}
		d.perform(ctx, t, t.ordered(now, m, d.nextRun()))
	case *wire.Prepare:
		d.predict(m)
	case *wire.Trickle:
		for _, r := range d.runs {
			if r.order != nil && r.order.Attempt == m.Attempt {
				select {
				case r.trickle <- m:
				default:
				}
			}
		}
	case *wire.Retry:
		if t := d.tunnels[m.Peer]; t != nil {
			d.log.Info("the peer has lost the tunnel", "peer", m.Peer, "reason", m.Reason)
			d.perform(ctx, t, t.retried(now, d.nextRun()))
		}
	case *wire.Forwarding:
		d.forwarding(m)
	case *wire.Revocations:
		d.revoked(ctx, m)
	case *wire.Ask:
		d.answer(ctx, m)
	case *wire.Demote:
		d.demote(ctx, now, m)
	case *wire.Cancel:
		for _, t := range d.tunnels {
			if r := d.runs[t.name()]; r != nil && r.order != nil && r.order.Attempt == m.Attempt {
				r.steps.once(wire.Step{Kind: wire.StepFailed, Text: "called off: " + m.Reason})
				t.sent(r.run.run, t.packets, r.steps.all())
			}
			if effects := t.cancelled(now, m.Attempt, m.Reason); len(effects) > 0 {
				d.perform(ctx, t, effects)
				d.dropUnused(t)
			}
		}
	default:
		d.log.Warn("unexpected message", "type", m.Type())
	}
}

// demote leaves a direct tunnel for the relay. Without a relay it stays: it may
// heal, and nothing would be won.
func (d *Daemon) demote(ctx context.Context, now time.Time, m *wire.Demote) {
	t := d.tunnels[m.Peer]
	if t == nil || !d.relayUp.Load() {
		return
	}
	d.log.Info("direct tunnel left for the relay", "peer", m.Peer, "reason", m.Reason)
	// The other end hears nothing from here: this node may be cut off, and where
	// nothing leaves it nothing else would tell.
	d.lookAround(now, false)
	d.perform(ctx, t, t.demoted(now, d.nextRun(), time.Duration(m.StartAfterMs)*time.Millisecond, m.Reason))
}

// peers brings the tunnels in line with the complete set.
func (d *Daemon) peers(ctx context.Context, now time.Time, m *wire.Peers) {
	storeID := d.link.welcome.StoreID
	d.listed = true
	listed := map[wire.NodeName]bool{}
	names := make([]string, 0, len(m.Peers))
	for _, p := range m.Peers {
		listed[p.Endpoint.Name] = true
		names = append(names, string(p.Endpoint.Name))
	}
	d.owned.asked(names, storeID)
	for _, p := range m.Peers {
		name := p.Endpoint.Name
		t := d.tunnels[name]
		if t == nil {
			t = newTunnel(p, storeID, now)
			d.tunnels[name] = t
		}
		d.perform(ctx, t, t.wanted(now, p, storeID, d.nextRun))
	}
	for _, t := range d.sorted() {
		switch {
		case listed[t.name()]:
		case t.storeID != "" && t.storeID != storeID:
			d.log.Warn("tunnel kept: the rendezvous has another store than the one that asked for it", "peer", t.name())
		default:
			d.remove(ctx, t)
		}
	}
	d.followRelay(ctx)
	d.forwarding(nil)
}

// remove ends a tunnel that is no longer wanted.
func (d *Daemon) remove(ctx context.Context, t *tunnel) {
	name := string(t.name())
	d.log.Info("tunnel removed: no community holds both nodes any more", "peer", name)
	d.stopRun(t.name())
	delete(d.tunnels, t.name())
	if d.owned.has(name) {
		d.unload(ctx, name)
	} else {
		d.rewrites.remove(name) // of a search that came before any connection
	}
	d.followRelay(ctx)
}
