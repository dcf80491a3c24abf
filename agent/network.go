package agent

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"github.com/bodkin-net/bodkin/punch"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

const (
	// observeInterval is between STUN requests that let the rendezvous notice
	// another mapping. At some 200 bytes each they cost 12 kB an hour.
	observeInterval = time.Minute
	// observeJitter spreads them.
	observeJitter = 0.2
)

// network is what is known of the NAT before this node.
type network struct {
	mapped netip.AddrPort
	nat    wire.NAT
	// discovered: nat holds a result, not just the mapped address.
	discovered bool
}

// watchNetwork keeps the rendezvous' observation fresh and finds out what the
// NAT does, until the function it returns is called, which waits for the end.
func (d *Daemon) watchNetwork(ctx context.Context, up *linkUp) (stop func()) {
	d.look = make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	w := &networkWatch{port: d.port, dialer: outsideDialer(d.cfg.Mark, d.id.endpoint.Subnets), out: d.netEvents, look: d.look}
	w.cred = punch.STUNCredential{Username: up.welcome.STUNUsername, Password: up.welcome.STUNPassword}
	for i := range w.servers {
		w.servers[i] = netip.AddrPortFrom(up.server, up.welcome.STUNPorts[i%len(up.welcome.STUNPorts)])
	}
	go func() {
		defer close(done)
		w.run(ctx)
	}()
	return func() { cancel(); <-done }
}

// networkWatch asks the STUN service; one goroutine.
type networkWatch struct {
	port    *punch.Port
	servers [2]netip.AddrPort
	cred    punch.STUNCredential
	dialer  *net.Dialer // for routing as the shared port is routed
	out     chan<- network
	look    <-chan struct{} // a reason not to wait for the next interval
}

func (w *networkWatch) run(ctx context.Context) {
	var known netip.AddrPort
	for {
		from, err := w.base(ctx)
		if err == nil {
			var mapped netip.AddrPort
			mapped, err = punch.Mapped(ctx, w.port, from, w.servers, w.cred)
			if err != nil {
				err = fmt.Errorf("the rendezvous' STUN service does not answer: %w", err)
			}
			if err == nil && mapped != known {
				known = mapped
				w.emit(ctx, network{mapped: mapped})
				if !w.discover(ctx, from) {
					known = netip.AddrPort{} // and again at the next look
				}
			}
		}
		if err != nil && ctx.Err() == nil {
			known = netip.AddrPort{}
			w.emit(ctx, network{
				nat:        wire.NAT{Blocked: err.Error()},
				discovered: true,
			})
		}
		pause := time.Duration(float64(observeInterval) * (1 - observeJitter + 2*observeJitter*rand.Float64()))
		select {
		case <-time.After(pause):
		case <-w.look:
		case <-ctx.Done():
			return
		}
	}
}

// discover finds out what the NAT does, and whether that worked.
func (w *networkWatch) discover(ctx context.Context, from netip.AddrPort) bool {
	n, err := punch.Discover(ctx, w.port, from, w.servers, w.cred)
	if err != nil {
		return false
	}
	w.emit(ctx, network{mapped: n.Mapped, nat: wireNAT(n), discovered: true})
	return true
}

func (w *networkWatch) emit(ctx context.Context, n network) {
	select {
	case w.out <- n:
	case <-ctx.Done():
	}
}

// base is the shared port's address on the route to the rendezvous.
func (w *networkWatch) base(ctx context.Context) (netip.AddrPort, error) {
	// Connecting a UDP socket sends nothing: it asks the routing table.
	c, err := w.dialer.DialContext(ctx, "udp", w.servers[0].String())
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer c.Close()
	local, ok := c.LocalAddr().(*net.UDPAddr)
	if ok {
		for _, l := range w.port.Local() {
			if l.Addr() == local.AddrPort().Addr().Unmap() {
				return l, nil
			}
		}
	}
	return netip.AddrPort{}, fmt.Errorf("the route to %s leaves from %s, where the shared port is not open", w.servers[0], c.LocalAddr())
}

// lookAgain asks for a fresh observation at once: a path that went silent often
// means another mapping.
func (d *Daemon) lookAgain() {
	select {
	case d.look <- struct{}{}:
	default:
	}
}

// networkEvent keeps what was found and tells the rendezvous once it is whole.
func (d *Daemon) networkEvent(n network) {
	if d.link != nil && n.mapped.IsValid() {
		if old := d.sessionAddr; old.IsValid() && old != n.mapped.Addr() {
			// The session's TCP connection came from the old address and is
			// dead; TCP itself would take minutes to say so.
			d.log.Warn("observed at another address: starting a new session", "old", old, "new", n.mapped)
			d.link.restart(fmt.Errorf("the public address changed from %s to %s", old, n.mapped.Addr()))
		}
		d.sessionAddr = n.mapped.Addr()
	}
	if old := d.net.mapped; old.IsValid() && n.mapped.IsValid() && old.Addr() != n.mapped.Addr() {
		// Whatever was punched from the old address is probably dead, too.
		for _, r := range d.runs {
			select {
			case r.hurry <- struct{}{}:
			default:
			}
		}
	}
	if !n.discovered {
		n.nat = d.net.nat
		d.log.Info("observed", "mapped", n.mapped)
	} else {
		d.log.Info("NAT seen", "present", n.nat.Present, "mapping", n.nat.Mapping, "filtering", n.nat.Filtering, "blocked", n.nat.Blocked)
		d.send(&wire.Network{Candidates: d.hosts(), NAT: n.nat})
	}
	d.net = n
	d.localNAT.Store(&n.nat)
}
