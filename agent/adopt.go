package agent

import (
	"context"
	"errors"
	"time"

	"github.com/bodkin-net/bodkin/agent/charon"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// unload takes a connection of ours out of charon, SAs and all.
func (d *Daemon) unload(ctx context.Context, name string) {
	for _, err := range []error{d.vici.Unload(ctx, name), d.vici.Terminate(ctx, name)} {
		if err != nil && !errors.Is(err, charon.ErrNotFound) {
			d.log.Error("connection not removed; trying again when charon is back", "connection", name, "err", err)
			return
		}
	}
	if err := d.owned.drop(name); err != nil {
		d.log.Error("state not written", "err", err)
	}
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
	case charon.EventDown:
		d.charonUp, d.charonErr = false, e.Err
		d.charonReady.set(false)
		d.log.Warn("charon not reachable", "err", e.Err)
		for _, t := range d.sorted() {
			d.perform(ctx, t, t.gone(now, "charon stopped or restarted"))
		}
	case charon.EventIKEDown, charon.EventChildDown, charon.EventOverflow:
		d.checkGone(ctx, now, e.Name)
	}
	for name, r := range d.runs {
		if e.Name == "" || e.Name == string(name) {
			select {
			case r.wake <- struct{}{}:
			default:
			}
		}
	}
}

// adopt loads the credentials into a charon that has just appeared, and takes
// up the tunnels in it that are ours.
func (d *Daemon) adopt(ctx context.Context, now time.Time) {
	if d.cfg.LoadCredentials {
		if err := d.vici.LoadCredentials(ctx, d.id.credentials); err != nil {
			d.log.Error("credentials not loaded into charon", "err", err)
		}
	}
	sas, err := d.vici.SAs(ctx, "")
	if err != nil {
		d.log.Error("SAs not listed", "err", err)
		return
	}
	for _, name := range d.owned.names() {
		node := wire.NodeName(name)
		if d.tunnels[node] == nil && d.listed {
			d.unload(ctx, name) // removed while charon was away
			continue
		}
		if d.tunnels[node] == nil {
			d.tunnels[node] = newTunnel(wire.Peer{Endpoint: wire.Endpoint{Name: node}}, d.owned.storeID(name), now)
		}
		for _, sa := range sas {
			if t := d.tunnels[node]; sa.Name == name && !t.standing && measure([]charon.SA{sa}, wire.Path{}, nil).installed {
				t.adopted(now, wire.Path{Local: sa.Local, Remote: sa.Remote})
				d.log.Info("tunnel adopted from charon", "peer", name, "remote", sa.Remote)
			}
		}
	}
}

// checkGone asks charon whether a tunnel it reported on is still there.
func (d *Daemon) checkGone(ctx context.Context, now time.Time, name string) {
	for _, t := range d.sorted() {
		if !t.standing || name != "" && name != string(t.name()) {
			continue
		}
		sas, err := d.vici.SAs(ctx, string(t.name()))
		if err == nil && !measure(sas, wire.Path{}, nil).installed {
			d.perform(ctx, t, t.gone(now, "charon ended the tunnel: the peer deleted it or stopped answering"))
		}
	}
}
