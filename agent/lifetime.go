package agent

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/bodkin-net/bodkin/punch"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// learner finds out, over minutes and beside all else, how long the NAT keeps a
// mapping that nothing passes through. It belongs to the goroutine of a
// networkWatch's session; one of its own makes one try after the other.
type learner struct {
	watch   *networkWatch
	service stunService
	// news are the states of the test after each try.
	news chan punch.LifetimeTest

	address netip.Addr // of the NAT it learns of, zero while it does not
	end     func()     // ends its goroutine and waits for it
}

// follow starts learning where there is something to learn, from the beginning
// for a NAT at another address.
func (l *learner) follow(ctx context.Context, n network) {
	alternate := l.service.servers[3] // a server without one cannot tell
	if l.watch.learnAfter == 0 || !n.discovered || !learnable(n.nat) || !alternate.IsValid() || n.mapped.Addr() == l.address {
		return
	}
	l.stop()
	l.address = n.mapped.Addr()
	o := punch.SilenceOptions{From: n.base, Server: l.service.servers[1], Alternate: alternate, Credential: l.service.cred}
	test := l.watch.found.life
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.learn(ctx, o, test)
	}()
	l.end = func() { cancel(); <-done }
}

// learnable tells whether a try can teach something and does no harm. It ends
// with a packet that comes in unasked when the mapping has gone, and a router that
// remembers such packets gives the shared port another mapping for it.
func learnable(n wire.NAT) bool {
	harmless := n.Poisoned == wire.No || n.Filtering == wire.EndpointIndependent || n.Mapping != wire.EndpointIndependent
	return n.Present && harmless && n.Poisoned != wire.Yes
}

// stop ends learning, and waits for the end.
func (l *learner) stop() {
	if l.end != nil {
		l.end()
	}
	l.end, l.address = nil, netip.Addr{}
}

// learn makes one try after the other until all is known, the server refuses, or
// ctx ends.
func (l *learner) learn(ctx context.Context, o punch.SilenceOptions, test punch.LifetimeTest) {
	for pause := l.watch.learnAfter; ; {
		var ok bool
		if o.Silence, ok = test.Next(); !ok {
			return
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		alive, err := punch.AwaitSilence(ctx, l.watch.port, o)
		switch {
		case errors.Is(err, punch.ErrRejected), errors.Is(err, punch.ErrUnauthorised):
			return
		case err != nil:
			pause = l.watch.learnAfter // nothing was learnt
			continue
		}
		pause = 0
		test.Result(alive)
		select {
		case l.news <- test:
		case <-ctx.Done():
			return
		}
	}
}
