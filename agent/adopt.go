package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/bodkin-net/bodkin/agent/charon"
	"github.com/bodkin-net/bodkin/punch/rewrite"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// unload takes a connection of ours out of charon, SAs and all.
func (d *Daemon) unload(ctx context.Context, name string) {
	for _, err := range []error{d.vici.Unload(ctx, name), d.vici.Terminate(ctx, name)} {
		if err != nil && !errors.Is(err, charon.ErrNotFound) {
			d.log.Error("connection not removed; trying again", "connection", name, "err", err)
			return
		}
	}
	if d.rewrites.has(name) {
		d.ending[name] = time.Now()
	}
	d.owned.drop(name)
}

// charonEvent keeps the tunnels in line with charon.
func (d *Daemon) charonEvent(ctx context.Context, e charon.Event) {
	now := time.Now()
	switch e.Kind {
	case charon.EventUp:
		d.charonUp, d.charonErr = true, nil
		d.log.Info("charon reachable", "version", e.Version.Version)
		d.adopt(ctx, now)
		d.charonReady.set(true)
		for _, t := range d.tunnels {
			t.charonBack(now)
		}
	case charon.EventDown:
		d.charonUp, d.charonErr = false, e.Err
		d.charonReady.set(false)
		d.log.Warn("charon not reachable", "err", e.Err)
		d.hasten(func(name wire.NodeName) bool { return d.tunnels[name] != nil && d.tunnels[name].monitored })
		for _, t := range d.sorted() {
			d.perform(ctx, t, t.gone(now, "charon stopped or restarted"))
		}
	case charon.EventIKEDown, charon.EventChildDown, charon.EventOverflow:
		d.checkGone(ctx, now, e.Name)
	}
	for name, r := range d.runs {
		if e.Name == "" || e.Name == string(name) {
			signal(r.wake)
		}
	}
}

// adopt loads the credentials into a charon that has just appeared, and takes
// up the tunnels in it that are ours.
func (d *Daemon) adopt(ctx context.Context, now time.Time) {
	if d.cfg.LoadCredentials {
		if err := d.vici.LoadCredentials(ctx, d.id.credentials().charon); err != nil {
			d.charonErr = fmt.Errorf("credentials not loaded: %w", err)
			d.log.Error("credentials not loaded into charon", "err", err)
		}
	}
	d.revocations.unload()
	d.loadRevocations(ctx, now)
	sas, err := d.vici.SAs(ctx, "")
	if err != nil {
		d.log.Error("SAs not listed", "err", err)
		return
	}
	for _, name := range d.owned.names() {
		node := wire.NodeName(name)
		if d.tunnels[node] == nil && d.listed {
			continue // sweep takes it away
		}
		if d.tunnels[node] == nil {
			d.tunnels[node] = newTunnel(wire.Peer{Endpoint: wire.Endpoint{Name: node}}, d.owned.storeID(name), now)
		}
		for _, sa := range sas {
			if t := d.tunnels[node]; sa.Name == name && !t.standing && measure([]charon.SA{sa}, wire.Path{}, nil).installed {
				t.adopted(now, wire.Path{Local: sa.Local, Remote: sa.Remote})
				// A connector relays again once it has been told between whom.
				t.relays(t.run, d.id.endpoint.Type == wire.Edge && relaying(sa), "")
				d.log.Info("tunnel adopted from charon", "peer", name, "remote", sa.Remote)
			}
		}
	}
	d.rewrites.keepOnly(d.inUse)
	d.followRelay(ctx)
}

// endRewrites removes the rewrites of connections that were taken out of charon,
// once it has no SA of them: the peer's answer to the deletion comes through
// the rewrite, and charon would wait minutes for it.
func (d *Daemon) endRewrites(ctx context.Context, now time.Time) {
	for name, since := range d.ending {
		sas, err := d.vici.SAs(ctx, name)
		switch {
		case d.tunnels[wire.NodeName(name)] != nil: // wanted again
		case err == nil && len(sas) == 0, now.Sub(since) >= endingTimeout:
			d.rewrites.remove(name)
		default:
			continue
		}
		delete(d.ending, name)
	}
}

// dropUnused removes the rewrite of a connection whose tunnel does not run
// through it.
func (d *Daemon) dropUnused(t *tunnel) {
	var path wire.Path
	if t.standing {
		path = t.path
	}
	d.rewrites.settle(string(t.name()), path)
}

// inUse reports whether a tunnel runs through a rewrite, or may soon.
func (d *Daemon) inUse(r rewrite.Rule) bool {
	name := wire.NodeName(r.Owner)
	t := d.tunnels[name]
	return d.runs[name] != nil || t != nil && t.standing && carriesPath(r, t.path)
}

// checkGone asks charon whether the tunnel it reported on is still there, or all
// are if it names none.
func (d *Daemon) checkGone(ctx context.Context, now time.Time, name string) {
	if name != "" && d.tunnels[wire.NodeName(name)] == nil {
		return
	}
	sas, err := d.vici.SAs(ctx, name)
	if err != nil {
		return
	}
	of := byConnection(sas)
	for _, t := range d.sorted() {
		if own := string(t.name()); t.standing && (name == "" || name == own) {
			d.checkTunnel(ctx, now, t, of[own])
		}
	}
}

func byConnection(sas []charon.SA) map[string][]charon.SA {
	of := map[string][]charon.SA{}
	for _, sa := range sas {
		of[sa.Name] = append(of[sa.Name], sa)
	}
	return of
}

// checkTunnel compares a tunnel that stands with the SAs that charon has of it.
func (d *Daemon) checkTunnel(ctx context.Context, now time.Time, t *tunnel, sas []charon.SA) {
	if !measure(sas, wire.Path{}, nil).installed {
		d.perform(ctx, t, t.replaced(now, "charon ended the tunnel: the peer deleted it or stopped answering"))
		return
	}
	d.complete(ctx, t, sas)
}

// complete asks for the CHILD SAs that a tunnel has lost while others stand,
// as by a failed rekeying. Asking for one that is there does nothing.
func (d *Daemon) complete(ctx context.Context, t *tunnel, sas []charon.SA) {
	if !t.monitored || t.peer.Role != wire.Controlling {
		return
	}
	for _, c := range missing(sas, wire.Path{}, carriers(d.id.endpoint, t.peer.Endpoint)) {
		d.log.Warn("CHILD SA gone: asking for it again", "peer", t.name(), "child", c.Name)
		if err := d.vici.Initiate(ctx, string(t.name()), c.Name); err != nil {
			d.log.Error("CHILD SA not initiated", "child", c.Name, "err", err)
		}
	}
}

// sweep takes out of charon what is ours and no longer wanted, and could not be
// removed when that was said.
func (d *Daemon) sweep(ctx context.Context) {
	if !d.listed || !d.charonUp {
		return
	}
	for _, name := range d.owned.names() {
		if d.tunnels[wire.NodeName(name)] == nil {
			d.unload(ctx, name)
		}
	}
}
