package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/bodkin-net/bodkin/punch"
	"github.com/bodkin-net/bodkin/punch/nat"
	"github.com/bodkin-net/bodkin/punch/rawudp"
	"github.com/bodkin-net/bodkin/punch/rewrite"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// standingHeadStart is what ICE alone gets before a search where a tunnel stands
// already: its way is open, and a search would only repeat what led to it.
const standingHeadStart = time.Second

// whereabouts are this node's own addresses as an attempt needs them.
type whereabouts struct {
	// base is the shared port on the way to the IPv4 internet, public the
	// address it is seen at; both zero when not known.
	base   netip.AddrPort
	public netip.Addr
	// mapped: the router forwards a port to the shared port.
	mapped bool
	// blocked are the families over which nothing was heard of the rendezvous.
	blocked [2]bool
}

// whereabouts are what is known of them now.
func (d *Daemon) whereabouts() whereabouts {
	n := d.net[ipv4]
	return whereabouts{base: n.base, public: n.mapped.Addr(), mapped: d.mapping.Outside.IsValid(), blocked: d.net.blocked()}
}

// search is this side's part of a search for ports. Its methods are called by
// the run's goroutine; the work is another one.
type search struct {
	start chan struct{}
	stop  context.CancelFunc
	done  chan struct{}
	err   error // after done
}

// beginSearch makes the order's part ready; it starts with begin.
func (r *run) beginSearch(ctx context.Context, session *punch.Session) *search {
	ctx, cancel := context.WithCancel(ctx)
	s := &search{start: make(chan struct{}), stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		select {
		case <-s.start:
			s.err = r.search(ctx, session)
		case <-ctx.Done():
		}
	}()
	return s
}

func (s *search) begin() { close(s.start) }

// end stops the search and tells why this side could not do its part. It may be
// called again.
func (s *search) end() error {
	s.stop()
	<-s.done
	return s.err
}

// search does this side's part until ctx ends. That nothing was found is no
// error.
func (r *run) search(ctx context.Context, session *punch.Session) error {
	if r.standing && r.order.Part != "" && r.wait(ctx, standingHeadStart) != nil {
		return nil
	}
	switch r.order.Part {
	case wire.PartOpen:
		return r.scatter(ctx, session)
	case wire.PartSearch:
		if r.wait(ctx, punch.Barrier) != nil {
			return nil
		}
		r.steps.once(wire.Step{Kind: wire.StepSearch, Remote: publicOf(r.order.Candidates)})
		return session.Search(ctx, punch.SearchConfig{
			From: r.here.base, Target: publicOf(r.order.Candidates).Addr(),
			Rate: int(r.shared.probe.Rate), Max: int(r.shared.probe.Max),
		})
	}
	return nil
}

// scatter opens ports. A rule that no path came of is removed when the attempt
// fails.
func (r *run) scatter(ctx context.Context, session *punch.Session) error {
	peer := publicOf(r.order.Candidates)
	rewriter, err := r.shared.rewrites.flow(r.name, rewrite.Flow{Local: r.here.base, Peer: peer})
	if err != nil {
		return err
	}
	r.steps.once(wire.Step{Kind: wire.StepPorts, Remote: peer, Count: int(r.shared.probe.Ports)})
	ttl := punch.OpenerTTL(natOf(r.natHere()))
	port, err := session.Scatter(ctx, punch.ScatterConfig{
		Peer: peer, Ports: int(r.shared.probe.Ports), Rewrite: rewriter,
		Listen: func() (net.PacketConn, error) {
			return rawudp.ListenPlain(rawudp.PlainOptions{Addr: r.here.base.Addr(), Mark: r.shared.mark, TTL: ttl})
		},
	})
	if errors.Is(err, punch.ErrNoHit) {
		return nil
	}
	if err == nil {
		r.steps.once(wire.Step{Kind: wire.StepHit, Text: fmt.Sprintf("port %d of this node", port)})
	}
	return err
}

// publicOf is where the rendezvous has seen a node over IPv4, zero when it has
// not.
func publicOf(cs []wire.Candidate) netip.AddrPort {
	for _, c := range cs {
		if c.Kind == wire.ServerReflexive && c.Addr.Addr().Is4() {
			return c.Addr
		}
	}
	return netip.AddrPort{}
}

// forbidden are the networks that candidates of a node seen at public may not be
// in. Packets into a tunnel cannot carry one, and a private address means
// another host on each network: a node on another one would be led to scan its
// neighbours.
func (d *Daemon) forbidden(public netip.Addr) []punch.Forbidden {
	var out []punch.Forbidden
	add := func(reason string, ps ...netip.Prefix) {
		for _, p := range ps {
			out = append(out, punch.Forbidden{Prefix: p, Reason: reason})
		}
	}
	add("the address is inside this node's own subnets", d.id.endpoint.Subnets...)
	for _, t := range d.sorted() {
		add("the address is inside the subnets of "+string(t.name())+": it leads into a tunnel", t.peer.Endpoint.Subnets...)
	}
	if here := d.whereabouts().public; here.IsValid() && public.IsValid() && here != public {
		add("the address is on this node's network, but the peer is not: it comes from another public address",
			privateNetworks(localPrefixes())...)
	}
	return out
}

// privateNetworks are the networks of those addresses that many networks use.
func privateNetworks(addrs []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range addrs {
		if nat.Private(a.Addr()) {
			out = append(out, a.Masked())
		}
	}
	return out
}
