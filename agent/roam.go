package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

const (
	// settleTime is between the kernel's first word of a change and our look at
	// it: an interface that comes up makes a dozen changes in some milliseconds.
	settleTime = 100 * time.Millisecond
	// sleepPoll is between looks whether the machine has slept.
	sleepPoll = time.Second
	// sleptFor is how far the one clock must be ahead of the other to have been
	// asleep, rather than read at two moments.
	sleptFor = 2 * time.Second
	// justMade is how long a tunnel is from after a change that is noticed now: the
	// time that it takes at most to notice one under traffic.
	justMade = 3 * time.Second
	// watchRetry is between tries to hear of changes, if the kernel refuses.
	watchRetry = 10 * time.Second
)

// roamEvent says that this host's addresses or routes may have changed.
type roamEvent struct {
	// slept is how long the machine was asleep, 0 if it was not.
	slept time.Duration
}

// startRoaming begins to watch for changes; stop ends it and waits.
func (d *Daemon) startRoaming(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	changes := make(chan struct{}, 1)
	var watching sync.WaitGroup
	watching.Go(func() {
		for ctx.Err() == nil {
			if err := watchKernel(ctx, changes); err != nil {
				d.log.Warn("changes of addresses and routes are noticed late", "err", err)
			}
			select {
			case <-time.After(watchRetry):
			case <-ctx.Done():
			}
		}
	})
	watching.Go(func() { roam(ctx, changes, asleep, d.roamEvents) })
	return func() { cancel(); watching.Wait() }
}

// roam passes changes on once they have settled, and wakings from sleep. slept
// is the time spent asleep since boot.
func roam(ctx context.Context, changes <-chan struct{}, slept func() time.Duration, out chan<- roamEvent) {
	ticker := time.NewTicker(sleepPoll)
	defer ticker.Stop()
	settled := time.NewTimer(0)
	settled.Stop()
	defer settled.Stop()
	before, pending := slept(), false
	for {
		var e roamEvent
		select {
		case <-changes:
			if !pending {
				pending = true
				settled.Reset(settleTime)
			}
			continue
		case <-settled.C:
			pending = false
		case <-ticker.C:
			now := slept()
			if now-before < sleptFor {
				continue
			}
			e.slept, before = now-before, now
		case <-ctx.Done():
			return
		}
		select {
		case out <- e:
		case <-ctx.Done():
			return
		}
	}
}

// asleep is how long the machine has slept since it was booted: CLOCK_BOOTTIME
// goes on then, CLOCK_MONOTONIC does not.
func asleep() time.Duration {
	var boot, awake unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &awake) != nil || unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot) != nil {
		return 0
	}
	return time.Duration(boot.Nano() - awake.Nano())
}

// watchKernel tells of each change of an address or a route, until ctx ends. What
// has changed it does not say: that is looked up when things have settled.
func watchKernel(ctx context.Context, changes chan<- struct{}) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink socket: %w", err)
	}
	socket := os.NewFile(uintptr(fd), "netlink")
	defer socket.Close()
	groups := uint32(unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_IFADDR | unix.RTMGRP_IPV6_ROUTE)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		return fmt.Errorf("netlink groups: %w", err)
	}
	defer context.AfterFunc(ctx, func() { socket.Close() })()
	buf := make([]byte, 4096) // longer messages are cut: they are not read
	for {
		_, err := socket.Read(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && !errors.Is(err, unix.ENOBUFS) { // that is many changes at once
			return fmt.Errorf("netlink: %w", err)
		}
		select {
		case changes <- struct{}{}:
		default:
		}
	}
}

// way is how packets to an address leave this host.
type way struct {
	source, gateway netip.Addr
	device          int
}

// wayTo asks the routing table, as for charon's own packets. The zero way leads
// nowhere.
func wayTo(mark uint32, to netip.Addr) way {
	routes, err := netlink.RouteGetWithOptions(to.AsSlice(), &netlink.RouteGetOptions{Mark: mark})
	if err != nil || len(routes) == 0 {
		return way{}
	}
	w := way{device: routes[0].LinkIndex}
	if a, ok := netip.AddrFromSlice(routes[0].Src); ok {
		w.source = a.Unmap()
	}
	if a, ok := netip.AddrFromSlice(routes[0].Gw); ok {
		w.gateway = a.Unmap()
	}
	return w
}

// leaves tells whether packets from a base to an address leave by the interface
// that the base is on. Where that is true of none of the bases, it is told of
// all: then this host's routing is not what it seems to be.
func leaves(mark uint32, bases []netip.AddrPort) func(base, remote netip.Addr) bool {
	if len(bases) == 1 {
		return nil
	}
	own := func(base, remote netip.Addr) bool {
		routes, err := netlink.RouteGetWithOptions(remote.AsSlice(), &netlink.RouteGetOptions{Mark: mark, SrcAddr: base.AsSlice()})
		return err == nil && len(routes) > 0 && deviceHas(routes[0].LinkIndex, base)
	}
	return func(base, remote netip.Addr) bool {
		return own(base, remote) || !slices.ContainsFunc(bases, func(b netip.AddrPort) bool {
			return b.Addr().Is4() == remote.Is4() && own(b.Addr(), remote)
		})
	}
}

func deviceHas(index int, a netip.Addr) bool {
	device, err := net.InterfaceByIndex(index)
	if err != nil {
		return false
	}
	addrs, err := device.Addrs()
	return err == nil && slices.ContainsFunc(addrs, func(n net.Addr) bool {
		ip, ok := n.(*net.IPNet)
		return ok && prefixOf(ip).Addr() == a
	})
}

// ways are the ways to the addresses that matter, as last looked up. It belongs
// to the daemon's goroutine.
type ways map[netip.Addr]way

// changed looks all addresses up and returns those to which the way is another
// one than before. One that is new has not changed.
func (w *ways) changed(addrs []netip.Addr, lookUp func(netip.Addr) way) map[netip.Addr]bool {
	before := *w
	*w = ways{}
	is := map[netip.Addr]bool{}
	for _, a := range addrs {
		(*w)[a] = lookUp(a)
		if old, known := before[a]; known && old != (*w)[a] {
			is[a] = true
		}
	}
	return is
}

// roamed looks at what has changed on this host, and has checked what that may
// have broken. Tunnels whose addresses and routes are as before are left alone.
func (d *Daemon) roamed(ctx context.Context, now time.Time, e roamEvent) {
	if e.slept > 0 {
		d.log.Info("awake again: checking all paths", "slept", e.slept.Round(time.Second))
		d.hurryRuns()
		d.lookAgain()
		d.signalling.redial()
	}
	d.followAddresses(ctx, now)
	d.followRoutes(ctx, now)
}

// followRoutes has the paths checked that packets take another way to.
func (d *Daemon) followRoutes(ctx context.Context, now time.Time) {
	var addrs []netip.Addr
	for _, t := range d.tunnels {
		if t.standing && t.path.Remote.IsValid() {
			addrs = append(addrs, t.path.Remote.Addr())
		}
	}
	if d.link != nil {
		addrs = append(addrs, d.link.server)
	}
	changed := d.ways.changed(addrs, func(a netip.Addr) way { return wayTo(d.cfg.Mark, a) })
	if len(changed) == 0 {
		return
	}
	d.log.Info("this node's routes have changed", "to", fmt.Sprint(len(changed)))
	for _, t := range d.sorted() {
		if t.standing && changed[t.path.Remote.Addr()] {
			d.rerouted(ctx, now, t)
		}
	}
	if d.link != nil && changed[d.link.server] {
		d.lookAgain()
		d.signalling.redial()
	}
}

// rerouted: packets to the tunnel's other end leave another way. A punched path
// may still be good, and its check says so. With the connector a new tunnel is
// made: nothing is lost by it that the old one still has.
func (d *Daemon) rerouted(ctx context.Context, now time.Time, t *tunnel) {
	if t.peer.Plan == wire.PlanPublic {
		if t.peer.Role == wire.Controlling && d.ways[t.path.Remote.Addr()] != (way{}) {
			d.perform(ctx, t, t.doubted(now, d.nextRun()))
		}
		return
	}
	if r := d.runs[t.name()]; r != nil {
		signal(r.hurry)
	}
}

// addressChanged: the NAT before this node gives it another address, or another
// mapping of the one it had. What was punched through the old one is probably
// dead, and the connector still sends there until it hears from the new one. A
// tunnel with it that has just been made is from after the change. Where the NAT
// is pooling, each path is checked before anything is ended.
func (d *Daemon) addressChanged(ctx context.Context, now time.Time, f family, pooling bool) {
	d.hurryRuns()
	if pooling {
		return
	}
	for _, t := range d.sorted() {
		if t.standing && t.peer.Plan == wire.PlanPublic && t.peer.Role == wire.Controlling &&
			familyOf(t.path.Remote.Addr()) == f && now.Sub(t.since) > justMade {
			d.perform(ctx, t, t.doubted(now, d.nextRun()))
		}
	}
	d.lookAgain()
}
