package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"time"

	"github.com/bodkin-net/bodkin/punch"
	"github.com/bodkin-net/bodkin/punch/portmap"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

const (
	// keepaliveShare of a mapping's proven lifetime passes at most between two
	// packets of ours: the rest is for one that is late.
	keepaliveShare = 2. / 3
	// meteredInterval is between checks of an idle path on a node whose bytes are
	// paid for, and meteredShare what takes keepaliveShare's place there. With
	// traffic a dead path is noticed all the same.
	meteredInterval = 5 * time.Minute
	meteredShare    = 0.8
	// keepaliveMin bounds what a short lifetime may cost: at 10 s an exchange
	// of 200 bytes comes to 72 kB an hour.
	keepaliveMin = 10 * time.Second
	// poolingWithin is how soon three changes of the mapping are taken for the habit
	// of a NAT with several addresses (RFC 4787 section 4.1, "arbitrary" pooling),
	// which says nothing of other mappings. Such a NAT shows at each look: it is
	// above two times observeInterval with its jitter.
	poolingWithin = 3 * time.Minute
)

// keepalive shortens an interval to what keeps a mapping of that lifetime alive;
// 0 is not known.
func keepalive(interval, lifetime time.Duration) time.Duration {
	return keepaliveWithin(interval, lifetime, keepaliveShare)
}

func keepaliveWithin(interval, lifetime time.Duration, share float64) time.Duration {
	if lifetime <= 0 {
		return interval
	}
	return min(interval, max(keepaliveMin, time.Duration(share*float64(lifetime))))
}

// consentFor is how a path is watched behind NATs whose mappings live at least
// as long as the two were seen to. If either end is metered it is watched as
// seldom as that permits, for each check costs both; where nothing was seen,
// charon's keepalives hold the mapping.
func consentFor(local, remote wire.NAT, metered bool) punch.Consent {
	c := punch.DefaultConsent()
	share := keepaliveShare
	if metered {
		c.Interval, share = meteredInterval, meteredShare
	}
	for _, n := range []wire.NAT{local, remote} {
		c.Interval = keepaliveWithin(c.Interval, time.Duration(n.LifetimeSeconds)*time.Second, share)
	}
	return c
}

// family is an address family.
type family int

const (
	ipv4 family = iota
	ipv6
)

func (f family) String() string { return [...]string{ipv4: "IPv4", ipv6: "IPv6"}[f] }

func familyOf(a netip.Addr) family {
	if a.Unmap().Is4() {
		return ipv4
	}
	return ipv6
}

// network is what is known of this node's way out in one address family. The
// zero value says that nobody has looked yet.
type network struct {
	// base is the shared port's address that was asked from, mapped where the
	// rendezvous sees it; both are zero when it does not.
	base, mapped netip.AddrPort
	// nat is what the NATs and firewalls on the way do, if discovered.
	nat        wire.NAT
	discovered bool
	// err is why mapped is zero. It is an errNoWay where the family cannot be
	// used at all, rather than being blocked.
	err error
}

// same reports whether there is no news in n to somebody who knows old.
func (n network) same(old network) bool {
	return n.base == old.base && n.mapped == old.mapped && n.nat == old.nat && n.discovered == old.discovered &&
		fmt.Sprint(n.err) == fmt.Sprint(old.err)
}

// errNoWay: nothing could be asked over an address family.
var errNoWay = errors.New("no way out")

// networks is what is known in each address family.
type networks [2]network

// mapped is the address to show where one is asked for.
func (n networks) mapped() netip.AddrPort {
	if m := n[ipv4].mapped; m.IsValid() {
		return m
	}
	return n[ipv6].mapped
}

// nat is what the rendezvous is to be told: IPv4's NAT where IPv4 passes, since
// that is the one to be got through, else IPv6's. ok is false as long as it is
// not known which.
func (n networks) nat() (nat wire.NAT, ok bool) {
	for _, f := range []family{ipv4, ipv6} {
		switch {
		case n[f].mapped.IsValid():
			return n[f].nat, n[f].discovered
		case n[f].err == nil:
			return wire.NAT{}, false
		}
	}
	why := n[ipv4].err
	if errors.Is(why, errNoWay) && !errors.Is(n[ipv6].err, errNoWay) {
		why = n[ipv6].err
	}
	return wire.NAT{Blocked: wire.Clip(why.Error())}, true
}

// blocked are the families that there is a way out in, but no answer from outside.
func (n networks) blocked() (is [2]bool) {
	for f := range n {
		is[f] = n[f].err != nil && !errors.Is(n[f].err, errNoWay)
	}
	return is
}

// unsure makes what is known wait for a fresh look: a new session tells of
// nothing older.
func (n *networks) unsure() {
	for f := range n {
		n[f].discovered, n[f].err = false, nil
	}
}

// networkSeen is what a networkWatch tells the daemon.
type networkSeen struct {
	family family
	network
}

// networkEvent keeps what was found and tells the rendezvous once it is whole.
func (d *Daemon) networkEvent(ctx context.Context, seen networkSeen) {
	before := d.net[seen.family]
	d.net[seen.family] = seen.network
	if at := seen.mapped; at.IsValid() {
		now := time.Now()
		changes := &d.remapped[seen.family]
		pooling := now.Sub(changes[1]) < poolingWithin
		d.sessionSeen(at.Addr(), pooling)
		old := d.mappedAt[seen.family]
		d.mappedAt[seen.family] = at
		if anotherMapping(old, at, before.nat.Mapping) {
			changes[0], changes[1] = now, changes[0]
			d.addressChanged(ctx, now, seen.family, pooling)
		}
	}
	d.logNetwork(before, seen)
	if before.mapped.IsValid() && seen.err != nil && !errors.Is(seen.err, errNoWay) {
		// What does not hear the rendezvous may not hear the connector: where
		// nothing leaves, nothing else tells.
		d.hurryRuns()
	}
	if nat, known := d.net.nat(); known {
		d.localNAT.Store(&nat)
		d.tellNetwork()
	}
}

// anotherMapping tells whether what went through the old mapping of the shared
// port is probably dead. Another port of the same address says so only where the
// NAT gives one for all destinations.
func anotherMapping(old, now netip.AddrPort, mapping wire.Behaviour) bool {
	return old.IsValid() && (old.Addr() != now.Addr() || old.Port() != now.Port() && mapping == wire.EndpointIndependent)
}

// logNetwork says what was found. Another port alone is no news: some NATs give
// one for each observation.
func (d *Daemon) logNetwork(before network, seen networkSeen) {
	level := slog.LevelInfo
	if before.mapped.Addr() == seen.mapped.Addr() {
		before.base, before.mapped = seen.base, seen.mapped
		if seen.same(before) {
			level = slog.LevelDebug
		}
	}
	switch {
	case errors.Is(seen.err, punch.ErrNoBase):
		d.log.Warn("no way out", "family", seen.family, "err", seen.err)
	case errors.Is(seen.err, errNoWay):
		d.log.Debug("no way out", "family", seen.family, "err", seen.err)
	case seen.err != nil:
		d.log.Warn("not observed", "family", seen.family, "err", seen.err)
	case !seen.discovered:
		d.log.Log(context.Background(), level, "observed", "mapped", seen.mapped)
	default:
		d.log.Log(context.Background(), level, "NAT seen", "mapped", seen.mapped, "present", seen.nat.Present,
			"mapping", seen.nat.Mapping, "filtering", seen.nat.Filtering, "allocation", seen.nat.Allocation)
	}
}

// sessionSeen notes where the session's node was observed. Another address in
// the session's family means that its TCP connection came from the old one and
// is dead, unless the NAT is pooling; TCP itself would take minutes to say so.
func (d *Daemon) sessionSeen(a netip.Addr, pooling bool) {
	if d.link == nil || a.Is4() != d.link.server.Is4() {
		return
	}
	switch old := d.sessionAddr; {
	case !old.IsValid() || old == a:
	case pooling:
		d.signalling.check()
	default:
		d.log.Warn("observed at another address: starting a new session", "old", old, "new", a)
		d.link.restart(fmt.Errorf("the public address changed from %s to %s", old, a))
	}
	d.sessionAddr = a
}

// hurryRuns makes all runs check their paths now.
func (d *Daemon) hurryRuns() {
	for _, r := range d.runs {
		signal(r.hurry)
	}
}

// tellNetwork tells the rendezvous of the network, if it is known whole and the
// session has not heard so already.
func (d *Daemon) tellNetwork() {
	nat, known := d.net.nat()
	m := &wire.Network{Candidates: d.candidates(), NAT: nat}
	if d.link == nil || !known || reflect.DeepEqual(m, d.told) {
		return
	}
	d.told = m
	d.send(m)
}

// mappingEvent takes a port mapping of the router, or that there is none any
// more.
func (d *Daemon) mappingEvent(m portmap.Mapping) {
	d.mapping = m
	d.tellNetwork()
}

// candidates are the addresses of this node that only it knows.
func (d *Daemon) candidates() []wire.Candidate {
	cs := d.hosts()
	if c := (wire.Candidate{Kind: wire.Mapped, Addr: d.mapping.Outside}); c.Validate() == nil {
		cs = append(cs, c)
	}
	return cs
}
