package agent

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/bodkin-net/bodkin/punch"
	"github.com/bodkin-net/bodkin/punch/rawudp"
)

const (
	// observeInterval is between STUN requests that let the rendezvous notice
	// another mapping. At some 200 bytes each they cost 12 kB an hour.
	observeInterval = time.Minute
	// observeJitter spreads them.
	observeJitter = 0.2
	// learnAfter keeps what is learnt slowly out of the first attempts' way: in a
	// NAT that counts, each new flow shifts the port that was computed.
	learnAfter = time.Minute
	// sameLink is the prefix that all of a host's IPv6 addresses on one link
	// share (RFC 4291 section 2.5.1).
	sameLink = 64
)

// stunService is where a session's STUN service is asked in one family: two
// ports, and behind each the one it answers from when it is told to; zero ones
// are not there.
type stunService struct {
	servers [4]netip.AddrPort
	cred    punch.STUNCredential
}

// stunServiceOf finds the service in what a session was told: in the address
// family that was dialled at the address that was, in the other at the first
// one that the rendezvous names.
func stunServiceOf(up *linkUp, f family) (stunService, error) {
	s := stunService{cred: punch.STUNCredential{Username: up.welcome.STUNUsername, Password: up.welcome.STUNPassword}}
	for _, a := range append([]netip.Addr{up.server}, up.welcome.STUNAddrs...) {
		if familyOf(a) != f {
			continue
		}
		for i := range s.servers {
			switch ports := up.welcome.STUNPorts; {
			case i < len(ports):
				s.servers[i] = netip.AddrPortFrom(a, ports[i])
			case i < 2:
				s.servers[i] = netip.AddrPortFrom(a, ports[0])
			}
		}
		return s, nil
	}
	return s, fmt.Errorf("%w: the rendezvous names no %s address", errNoWay, f)
}

// watchNetwork keeps the rendezvous' observation fresh and finds out what the
// NATs do, until the function it returns is called, which waits for the end.
func (d *Daemon) watchNetwork(ctx context.Context, up *linkUp) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	for _, w := range d.watches {
		watching.Go(func() { w.session(ctx, up) })
	}
	return func() { cancel(); watching.Wait() }
}

// newWatches are the networkWatches of both families.
func (d *Daemon) newWatches() []*networkWatch {
	var ws []*networkWatch
	for _, f := range []family{ipv4, ipv6} {
		w := &networkWatch{
			family: f, port: d.port, dialer: outsideDialer(d.cfg.Mark, d.id.endpoint.Subnets),
			out: d.netEvents, look: make(chan struct{}, 1),
			fresh: func(from netip.Addr) (net.PacketConn, error) {
				return rawudp.ListenPlain(rawudp.PlainOptions{Addr: from, Mark: d.cfg.Mark})
			},
		}
		if f == ipv4 { // the family that is translated
			w.learnAfter = learnAfter
			w.hop = func(ctx context.Context, from netip.Addr, to netip.AddrPort, ttl int) (netip.Addr, error) {
				return rawudp.Hop(ctx, rawudp.PlainOptions{Addr: from, Mark: d.cfg.Mark}, to, ttl)
			}
		}
		ws = append(ws, w)
	}
	return ws
}

// lookAgain asks for a fresh observation at once: a path that went silent often
// means another mapping, or a router that has forgotten its own.
func (d *Daemon) lookAgain() {
	if d.portMapping != nil {
		d.portMapping.lookAgain()
	}
	for _, w := range d.watches {
		select {
		case w.look <- struct{}{}:
		default:
		}
	}
}

// networkWatch asks the STUN service in one address family. It outlasts the
// sessions, because what it has found out does: one goroutine at a time runs
// session.
type networkWatch struct {
	family family
	port   *punch.Port
	dialer *net.Dialer // for routing as the shared port is routed
	// fresh opens a socket on another port of an address, hop is rawudp.Hop; nil
	// leaves unmeasured what needs them.
	fresh func(from netip.Addr) (net.PacketConn, error)
	hop   func(ctx context.Context, from netip.Addr, to netip.AddrPort, ttl int) (netip.Addr, error)
	out   chan<- networkSeen
	look  chan struct{} // a reason not to wait for the next interval

	// learnAfter is how long after a discovery mapping lifetimes are looked into.
	learnAfter time.Duration

	found findings
}

// session watches until ctx ends.
func (w *networkWatch) session(ctx context.Context, up *linkUp) {
	service, err := stunServiceOf(up, w.family)
	if err != nil {
		w.emit(ctx, network{err: err})
		return
	}
	learner := learner{watch: w, service: service, news: make(chan punch.LifetimeTest)}
	defer learner.stop()
	var told network
	for ctx.Err() == nil {
		n := w.observe(ctx, service)
		if !n.same(told) {
			w.emit(ctx, n)
		}
		if n.err == nil && w.found.due(n.mapped, time.Now()) && w.discover(ctx, n.base, service) {
			n = w.known(n.base, w.found.mapped)
			w.emit(ctx, n)
		}
		learner.follow(ctx, n)
		told = n
		interval := keepalive(observeInterval, time.Duration(n.nat.LifetimeSeconds)*time.Second)
		pause := time.Duration(float64(interval) * (1 - observeJitter + 2*observeJitter*rand.Float64()))
		select {
		case <-time.After(pause):
		case <-w.look:
		case life := <-learner.news:
			w.found.learnt(life)
		case <-ctx.Done():
		}
	}
}

// observe lets the rendezvous see the shared port, and adds what is known.
func (w *networkWatch) observe(ctx context.Context, s stunService) network {
	base, err := w.base(ctx, s.servers[0])
	if err != nil {
		return network{err: err}
	}
	mapped, err := punch.Mapped(ctx, w.port, base, s.servers[0], s.cred)
	if err != nil {
		return network{err: fmt.Errorf("the rendezvous' STUN service does not answer: %w", err)}
	}
	return w.known(base, mapped)
}

// known puts an observation together with what was found out before.
func (w *networkWatch) known(base, mapped netip.AddrPort) network {
	n := network{base: base, mapped: mapped}
	if w.found.holdFor(mapped) {
		n.nat, n.discovered = w.found.nat, true
	}
	return n
}

// discover finds out what the NAT does, and whether that worked.
func (w *networkWatch) discover(ctx context.Context, base netip.AddrPort, s stunService) bool {
	o := punch.DiscoverOptions{From: base, Servers: s.servers, Credential: s.cred}
	if w.fresh != nil {
		o.Fresh = func() (net.PacketConn, error) { return w.fresh(base.Addr()) }
	}
	if w.hop != nil {
		o.Hop = func(ctx context.Context, ttl int) (netip.Addr, error) {
			return w.hop(ctx, base.Addr(), s.servers[0], ttl)
		}
	}
	n, err := punch.Discover(ctx, w.port, o)
	if err != nil || !n.Mapped.IsValid() {
		return false // and again at the next look
	}
	w.found = w.found.discovered(n, time.Now())
	return true
}

func (w *networkWatch) emit(ctx context.Context, n network) {
	select {
	case w.out <- networkSeen{w.family, n}:
	case <-ctx.Done():
	}
}

// base is the shared port's address on the route to the rendezvous.
func (w *networkWatch) base(ctx context.Context, server netip.AddrPort) (netip.AddrPort, error) {
	// Connecting a UDP socket sends nothing: it asks the routing table.
	c, err := w.dialer.DialContext(ctx, "udp", server.String())
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%w: %w", errNoWay, err)
	}
	defer c.Close()
	local, ok := c.LocalAddr().(*net.UDPAddr)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("%w: %s is no UDP address", errNoWay, c.LocalAddr())
	}
	source := local.AddrPort().Addr().Unmap()
	if base, ok := baseFor(source, w.port.Local()); ok {
		return base, nil
	}
	// Without the socket's port: the same reason twice has to be the same text.
	return netip.AddrPort{}, fmt.Errorf("%w: the route to %s leaves from %s: %w", errNoWay, server, source, punch.ErrNoBase)
}

// baseFor picks the base to use where the routing table prefers a source
// address. For IPv6 that can be a temporary one, which is no base: then one of
// the same link is.
func baseFor(source netip.Addr, bases []netip.AddrPort) (netip.AddrPort, bool) {
	for _, b := range bases {
		if b.Addr() == source {
			return b, true
		}
	}
	link, err := source.Prefix(sameLink)
	if err != nil || source.Is4() {
		return netip.AddrPort{}, false
	}
	for _, b := range bases {
		if link.Contains(b.Addr()) {
			return b, true
		}
	}
	return netip.AddrPort{}, false
}
