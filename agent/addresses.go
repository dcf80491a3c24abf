package agent

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/bodkin-net/bodkin/punch"
	"github.com/bodkin-net/bodkin/punch/rawudp"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// addressInterval is between looks at this host's addresses and routes without
// word from the kernel, in case that was lost.
const addressInterval = 30 * time.Second

// errMoved is why tunnels and the session end when this host loses the address
// they are at.
var errMoved = errors.New("this node's addresses have changed")

// moves compares the addresses this host has with those the shared port is open
// on.
func moves(open, hosts []netip.AddrPort) (come, gone []netip.AddrPort) {
	for _, h := range hosts {
		if !slices.Contains(open, h) {
			come = append(come, h)
		}
	}
	for _, o := range open {
		if !slices.Contains(hosts, o) {
			gone = append(gone, o)
		}
	}
	return come, gone
}

// hostAddresses are the addresses at which a peer could reach this node.
func (d *Daemon) hostAddresses() ([]netip.AddrPort, error) {
	ifaces, err := punch.Interfaces()
	if err != nil {
		return nil, err
	}
	return punch.HostCandidates(ifaces, d.id.endpoint.Subnets, d.cfg.IKEPort), nil
}

// followAddresses opens the shared port on addresses that have come, and closes
// it on those that have gone. Tunnels from other addresses do not notice.
func (d *Daemon) followAddresses(ctx context.Context, now time.Time) {
	hosts, err := d.hostAddresses()
	if err != nil {
		d.log.Error("network interfaces not listed", "err", err)
		return
	}
	come, gone := moves(d.port.Local(), hosts)
	come = d.openBases(come)
	if len(come) == 0 && len(gone) == 0 {
		return
	}
	d.log.Info("this node's addresses have changed", "come", come, "gone", gone)
	for _, t := range d.sorted() {
		if slices.ContainsFunc(gone, func(g netip.AddrPort) bool { return t.path.Local.Addr() == g.Addr() }) {
			d.uprooted(ctx, now, t)
		}
	}
	if len(gone) > 0 && d.relayUp.Load() {
		d.leaveDead(ctx) // what charon still sends from there the relay can carry
	}
	for _, g := range gone {
		if err := d.port.Remove(g); err != nil {
			d.log.Warn("shared port not closed", "local", g, "err", err)
		}
	}
	if d.link != nil {
		if base := d.net[familyOf(d.link.server)].base; slices.Contains(gone, base) {
			d.link.restart(errMoved) // TCP would take minutes to say so
		}
	}
	d.signalling.redial()
	d.tellNetwork()
	d.lookAgain()
}

// openBases opens the shared port on more addresses and returns those where that
// worked. IPv6 may still be making sure that it is alone with one (RFC 4862
// section 5.4); the kernel tells when it is.
func (d *Daemon) openBases(addrs []netip.AddrPort) (opened []netip.AddrPort) {
	for _, a := range addrs {
		conn, err := rawudp.Listen(rawudp.Options{Addr: a.Addr(), Port: a.Port(), Mark: d.cfg.Mark})
		switch {
		case errors.Is(err, rawudp.ErrNotLocal):
			d.log.Debug("address not usable yet", "addr", a)
			continue
		case err != nil:
			d.log.Error("shared port not opened", "addr", a, "err", err)
			continue
		}
		if err := d.port.Add(conn); err != nil {
			conn.Close()
			d.log.Error("shared port not opened", "addr", a, "err", err)
			continue
		}
		opened = append(opened, a)
	}
	return opened
}

// uprooted: this host has lost the address that the tunnel is at.
func (d *Daemon) uprooted(ctx context.Context, now time.Time, t *tunnel) {
	if t.peer.Plan != wire.PlanPublic {
		d.perform(ctx, t, t.gone(now, errMoved.Error()))
		d.dropUnused(t)
		return
	}
	if t.peer.Role == wire.Controlling {
		d.perform(ctx, t, t.doubted(now, d.nextRun()))
	}
}
