package punch

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/pion/stun/v4"

	"github.com/bodkin-net/bodkin/punch/nat"
)

const (
	// hairpinTries packets go out hairpinGap apart. They come back from the
	// node's own routers, the farthest of which is its carrier's.
	hairpinTries = 4
	hairpinGap   = 100 * time.Millisecond
	// hairpinWait is for the last of them.
	hairpinWait = 300 * time.Millisecond
	// maxHops ends the search for the first router of the internet: a home
	// router, a carrier's NAT, and some private routers between them.
	maxHops = 6
	// hopWait is for one router's answer, hopsWait for all: routers that do not
	// answer are common, and the result is worth no more than that.
	hopWait  = 500 * time.Millisecond
	hopsWait = 1500 * time.Millisecond
)

// Network is what Discover found.
type Network struct {
	NAT nat.NAT
	// Mapped is the server-reflexive address, zero when UDP is blocked.
	Mapped netip.AddrPort
}

// Mapped returns the mapped address of the base from as server sees it.
// This alone makes a node reachable, so it is asked before Discover; it leaves
// alone what must be silent for Discover's filtering test.
func Mapped(ctx context.Context, p *Port, from, server netip.AddrPort, cred STUNCredential) (netip.AddrPort, error) {
	res, err := p.Bind(ctx, from, server, BindOptions{Credential: cred})
	return res.Mapped, err
}

// DiscoverOptions say what to ask from where.
type DiscoverOptions struct {
	// From is the base whose NAT is wanted.
	From netip.AddrPort
	// Servers are two ports to ask, and behind each, in the same order, the one
	// its answers to CHANGE-REQUEST come from. Of the latter, zero ones are
	// learnt from OTHER-ADDRESS, if the server sends it.
	Servers    [4]netip.AddrPort
	Credential STUNCredential
	// Fresh opens a UDP socket on another port of From's address, one that no
	// NAT has seen. Nil leaves unknown whether the NAT is poisoned.
	Fresh func() (net.PacketConn, error)
	// Hop sends a packet with a TTL towards Servers[0], from any port, and
	// returns which router reports its end. Nil leaves the hops unmeasured.
	Hop func(ctx context.Context, ttl int) (netip.Addr, error)
}

// Discover finds out what the NATs before a base do, RFC 5780 section 4 and
// more, within four seconds where the server answers, and in twice the time
// where the base's mapping changes meanwhile. A network that lets no UDP through
// is a result (Blocked), not an error. Errors are those of Bind.
func Discover(ctx context.Context, p *Port, o DiscoverOptions) (Network, error) {
	o.From = unmap(o.From)
	for i := range o.Servers {
		o.Servers[i] = unmap(o.Servers[i])
	}
	d := discovery{DiscoverOptions: o, port: p}
	err := d.run(ctx)
	if errors.Is(err, errChanged) {
		d.seen, d.again = observations{}, true
		err = d.run(ctx)
	}
	if err != nil {
		return Network{}, fmt.Errorf("NAT discovery: %w", err)
	}
	return decide(o.From, d.seen), nil
}

// discovery is one run of Discover; its methods are called one after the other.
type discovery struct {
	DiscoverOptions
	port *Port
	seen observations
	// again: a first run has met errChanged. A mapping that changes in the second
	// one as well is what this NAT does.
	again bool
}

// errChanged means that the NAT has started anew, or has got another address,
// while it was looked at.
var errChanged = errors.New("the mapping changed meanwhile")

// run orders the tests. The filtering test's answers must come from where the
// base has not sent to, and in case they were remembered the base must not send
// there afterwards either: Linux gives later flows of the same port the mapping
// that came of it. So another port finds out whether they are remembered, and
// the base asks the alternates only if its mapping differs in any case, or
// cannot be told otherwise.
func (d *discovery) run(ctx context.Context) error {
	d.seen.servers = [2]netip.AddrPort(d.Servers[:2])
	first, err := d.ask(ctx, d.Servers[0], patient)
	if err != nil {
		return err
	}
	alt := alternatesOf(d.Servers, first.Other)
	near, far := alt.fresh(d.Servers)
	if err := d.askAll(ctx, patient, near...); err != nil {
		return err
	}
	d.beside(ctx, alt, first.Mapped)
	if err := d.askAll(ctx, patient, far...); err != nil {
		return err
	}
	if mappingOf(d.seen.mappings) == nat.EndpointIndependent || d.seen.poisoned == nat.Yes {
		return nil
	}
	if err := d.unchanged(ctx); err != nil {
		return err
	}
	return d.askAll(ctx, insistent, alt.port, alt.both)
}

// unchanged makes sure that mappings differ because their destinations do. If
// they do not, the alternates must not have been asked yet.
func (d *discovery) unchanged(ctx context.Context) error {
	if d.again || len(d.seen.mappings) < 2 {
		return nil
	}
	first := d.seen.mappings[0]
	res, err := d.port.Bind(ctx, d.From, first.towards, BindOptions{Credential: d.Credential, pace: insistent})
	if err == nil && res.Mapped != first.mapped {
		return fmt.Errorf("%w: %s, then %s", errChanged, first.mapped, res.Mapped)
	}
	return ctx.Err()
}

// askAll asks one after the other.
func (d *discovery) askAll(ctx context.Context, pace pace, to ...netip.AddrPort) error {
	for _, t := range to {
		if _, err := d.ask(ctx, t, pace); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// beside makes the tests that do not disturb each other.
func (d *discovery) beside(ctx context.Context, alt alternates, first netip.AddrPort) {
	mapped, mapping := d.seen.mapped(), mappingOf(d.seen.mappings)
	var tests sync.WaitGroup
	if first.IsValid() {
		tests.Go(func() { d.seen.answers = d.filtering(ctx, d.port, d.From, d.Credential, alt) })
	}
	if first.IsValid() && first != d.From && mapping != nat.AddressAndPortDependent {
		tests.Go(func() { d.seen.poisoned = d.remembers(ctx, alt) })
	}
	if mapped.IsValid() && mapped != d.From {
		tests.Go(func() { d.seen.hairpin = d.hairpin(ctx, mapped) })
		tests.Go(func() { d.seen.hops = hops(ctx, d.Hop, mapped.Addr()) })
	}
	tests.Wait()
}

// ask adds a mapping to what was seen. A server that does not answer is no
// error, nor is one that this host has no way to, once another has answered:
// servers name their alternates themselves. The result then is zero.
func (d *discovery) ask(ctx context.Context, to netip.AddrPort, pace pace) (BindResult, error) {
	if !to.IsValid() {
		return BindResult{}, nil
	}
	res, err := d.port.Bind(ctx, d.From, to, BindOptions{Credential: d.Credential, pace: pace})
	_, noWay := errors.AsType[syscall.Errno](err)
	switch {
	case err == nil:
		d.seen.mappings = append(d.seen.mappings, mappingSeen{to, res.Mapped})
		return res, nil
	case ctx.Err() == nil && (errors.Is(err, ErrTimeout) || noWay && len(d.seen.mappings) > 0):
		return BindResult{}, nil
	}
	return BindResult{}, err
}

// filtering asks for answers from the alternates, from all at once: each stands
// for itself.
func (d *discovery) filtering(ctx context.Context, p *Port, from netip.AddrPort, cred STUNCredential, alt alternates) answers {
	change := func(other netip.AddrPort, o BindOptions) answer {
		if !other.IsValid() {
			return notAsked
		}
		o.Credential, o.pace = cred, insistent
		res, err := p.Bind(ctx, from, d.Servers[0], o)
		switch {
		case err == nil && res.Origin != d.Servers[0] && !(o.ChangeAddr && res.Origin.Addr() == d.Servers[0].Addr()):
			return answered
		case errors.Is(err, ErrTimeout) && ctx.Err() == nil:
			return unanswered
		}
		// The server ignores or rejects CHANGE-REQUEST: nothing was learnt.
		return notAsked
	}
	var out answers
	var both sync.WaitGroup
	both.Go(func() { out.port = change(alt.port, BindOptions{ChangePort: true}) })
	both.Go(func() { out.addr = change(alt.both, BindOptions{ChangeAddr: true, ChangePort: true}) })
	both.Wait()
	return out
}

// remembers finds out, from a fresh port, whether a packet that comes in unasked
// changes the mapping towards its sender. It shows no credential: the server
// would take the fresh port for the base's.
func (d *discovery) remembers(ctx context.Context, alt alternates) nat.Answer {
	if d.Fresh == nil || !alt.port.IsValid() {
		return ""
	}
	conn, err := d.Fresh()
	if err != nil {
		return ""
	}
	p, err := NewPort([]net.PacketConn{conn}, d.port.log)
	if err != nil {
		conn.Close()
		return ""
	}
	defer p.Close()
	from := p.Local()[0]
	mapped := func(server netip.AddrPort) netip.AddrPort {
		res, err := p.Bind(ctx, from, server, BindOptions{pace: insistent})
		if err != nil {
			return netip.AddrPort{}
		}
		return res.Mapped
	}
	before := mapped(d.Servers[0])
	if !before.IsValid() || d.filtering(ctx, p, from, STUNCredential{}, alternates{port: alt.port}).port == notAsked {
		return ""
	}
	switch after := mapped(alt.port); {
	case !after.IsValid():
		return ""
	case after != before:
		return nat.Yes
	}
	return nat.No
}

// alternates are the other transport addresses of a server, RFC 5780 section
// 6.1; zero ones do not exist.
type alternates struct {
	port, addr, both netip.AddrPort // differing in the port, the address, both
}

// alternatesOf puts together what is known beforehand and what the first server
// has said.
func alternatesOf(servers [4]netip.AddrPort, other netip.AddrPort) alternates {
	server := servers[0]
	a := alternates{port: servers[2]}
	if other.IsValid() && other.Addr() != server.Addr() {
		a.addr, a.both = netip.AddrPortFrom(other.Addr(), server.Port()), other
	}
	if other.IsValid() && !a.port.IsValid() {
		a.port = netip.AddrPortFrom(server.Addr(), other.Port())
	}
	return a
}

// fresh lists what sends nothing unasked: mappings towards these are the NAT's
// own choice. Those near, at the first server's address, can be asked at any
// time; those far would open an address-dependent filter for the alternates.
func (a alternates) fresh(servers [4]netip.AddrPort) (near, far []netip.AddrPort) {
	for _, to := range []netip.AddrPort{servers[1], a.addr} {
		switch {
		case to == a.port || to == a.both:
		case to.Addr() == servers[0].Addr():
			near = append(near, to)
		default:
			far = append(far, to)
		}
	}
	return near, far
}

// hairpin sends requests to the base's own mapped address. No answer is
// expected: that they arrive is.
func (d *discovery) hairpin(ctx context.Context, mapped netip.AddrPort) nat.Answer {
	ufrag := rand.Text()
	req, err := stun.Build(stun.TransactionID, stun.BindingRequest, stun.NewUsername(ufrag+":hairpin"), stun.Fingerprint)
	if err != nil {
		return ""
	}
	arrived := make(chan struct{}, 1)
	err = d.port.attach(ufrag, func(packet) {
		select {
		case arrived <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return ""
	}
	defer d.port.detach(ufrag)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for sent := 0; ; {
		select {
		case <-arrived:
			return nat.Yes
		case <-ctx.Done():
			return ""
		case <-timer.C:
			if sent == hairpinTries {
				return nat.No
			}
			if err := d.port.send(d.From, mapped, req.Raw); err != nil {
				return "" // this host does not let it out
			}
			if sent++; sent < hairpinTries {
				timer.Reset(hairpinGap)
			} else {
				timer.Reset(hairpinWait)
			}
		}
	}
}

// hops is the least TTL with which a packet gets past all of the node's NATs: it
// then dies at a router of the internet. 0 when no such router answers.
func hops(ctx context.Context, hop func(context.Context, int) (netip.Addr, error), mapped netip.Addr) int {
	if hop == nil {
		return 0
	}
	ctx, cancel := context.WithTimeout(ctx, hopsWait)
	defer cancel()
	for ttl := 1; ttl <= maxHops && ctx.Err() == nil; ttl++ {
		within, done := context.WithTimeout(ctx, hopWait)
		router, err := hop(within, ttl)
		done()
		if err == nil && outside(router, mapped) {
			return ttl
		}
	}
	return 0
}

// outside reports whether a router stands beyond the NAT whose outside address
// is mapped.
func outside(router, mapped netip.Addr) bool {
	router = router.Unmap()
	return router != mapped && router.IsGlobalUnicast() && !nat.Private(router)
}
