package agent

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/bodkin-net/bodkin/punch"
)

// addressInterval is between looks at this host's addresses, which cost some
// system calls. It is longer than IPv6 takes to make sure of an address
// (RFC 4862 section 5.4), which is usable then if it is there at two looks.
const addressInterval = 5 * time.Second

// errMoved is why runs and the session end when this host gets other addresses.
var errMoved = errors.New("this node's addresses have changed")

// addresses tells when the shared port has to move. It belongs to the daemon's
// goroutine.
type addresses struct {
	opened []netip.AddrPort // those that the shared port was opened for
	seen   []netip.AddrPort // at the last look
	next   time.Time        // of the next look
}

// changed takes what a look has shown, and reports whether an address has come
// to stay. One that has gone alone is no reason: its socket does no harm, and
// serves again when the address comes back.
func (a *addresses) changed(hosts []netip.AddrPort) bool {
	stay := slices.Equal(hosts, a.seen)
	a.seen = hosts
	return stay && slices.ContainsFunc(hosts, func(h netip.AddrPort) bool { return !slices.Contains(a.opened, h) })
}

// followAddresses moves the shared port when this host has other addresses than
// it was opened for.
func (d *Daemon) followAddresses(ctx context.Context, now time.Time) {
	if now.Before(d.addresses.next) {
		return
	}
	d.addresses.next = now.Add(addressInterval)
	hosts, err := d.hostAddresses()
	if err != nil {
		d.log.Error("network interfaces not listed", "err", err)
		return
	}
	if d.addresses.changed(hosts) {
		d.move(ctx, now, hosts)
	}
}

// hostAddresses are the addresses at which a peer could reach this node.
func (d *Daemon) hostAddresses() ([]netip.AddrPort, error) {
	ifaces, err := punch.Interfaces()
	if err != nil {
		return nil, err
	}
	return punch.HostCandidates(ifaces, d.id.endpoint.Subnets, d.cfg.IKEPort), nil
}

// move opens the shared port on hosts and begins a new session, which has
// everything punched or watched from there. Tunnels from addresses that are
// still here stay.
func (d *Daemon) move(ctx context.Context, now time.Time, hosts []netip.AddrPort) {
	old := d.port
	if err := d.listen(hosts, false); err != nil {
		d.port = old
		d.log.Error("shared port not opened on the addresses this node has now", "err", err)
		return
	}
	d.log.Info("shared port moved: this node has other addresses", "old", old.Local(), "local", d.port.Local())
	d.stopNet()
	d.stopNet = func() {}
	for _, t := range d.sorted() {
		gone := !slices.ContainsFunc(d.port.Local(), func(l netip.AddrPort) bool { return l.Addr() == t.path.Local.Addr() })
		d.perform(ctx, t, t.moved(now, gone))
		d.dropUnused(t)
	}
	if err := old.Close(); err != nil {
		d.log.Warn("shared port not closed on the old addresses", "err", err)
	}
	d.net = networks{}
	for _, w := range d.watches {
		w.port = d.port
	}
	if d.link != nil {
		d.link.restart(errMoved)
	}
	d.lookAgain()
}
