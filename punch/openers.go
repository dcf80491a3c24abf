package punch

import (
	"errors"
	"net/netip"
	"time"

	"github.com/pion/stun/v4"

	"github.com/bodkin-net/bodkin/punch/nat"
)

const (
	// Barrier is the wait between the openers and the first check. It covers
	// what the two start moments differ by, half the change of a round trip
	// since it was measured, and the way of an opener to its own outermost NAT;
	// a check needs its time on the way, too, before it can do harm.
	Barrier = 40 * time.Millisecond
	// unknownHops leaves a home router and a carrier's NAT behind it, and is
	// below the number of routers between two networks.
	unknownHops = 3
	// noNATHops: nothing has to be opened, the opener only must not arrive.
	noNATHops = 1
)

// OpenerTTL is the time to live of a node's openers: enough to leave its own
// NATs, too little to reach the peer's.
func OpenerTTL(own nat.NAT) int {
	switch {
	case own.Hops > 0:
		return own.Hops
	case own.Known() && !own.Present:
		return noNATHops
	default:
		return unknownHops
	}
}

// OpenerTargets picks the addresses that openers are sent to, in order: those
// that the peer's checks can come from through a NAT of this side's, which are a
// NAT's of the peer or, where it has none, its own public ones. Where ports are
// predicted, they come first, since a NAT here that counts gives its next port to
// the first new destination; the peer's mapping towards somebody else is then of
// no use.
func OpenerTargets(remotes []Candidate) []netip.AddrPort {
	var out []netip.AddrPort
	pick := func(k Kind, which func(netip.Addr) bool) {
		for _, c := range remotes {
			if a := unmap(c.Addr); c.Kind == k && which(a.Addr()) {
				out = append(out, a)
			}
		}
	}
	all := func(netip.Addr) bool { return true }
	pick(Predicted, all)
	predicted := len(out) > 0
	pick(PortMapped, all)
	if !predicted {
		pick(ServerReflexive, all)
		pick(Host, func(a netip.Addr) bool { return a.Is4() && !nat.Private(a) }) // nobody translates IPv6
	}
	return out
}

// Open sends an opener to each target: a STUN Binding indication, so that no
// answer can be taken for success, whose TTL ends it between the two nodes'
// NATs. Every NAT of this side then has a mapping and a filter entry for the
// target before a packet of the peer's can come from there. Openers leave in
// the order of the targets, from each base of their address family. Targets
// that may not be checked get none. The error is ErrNoTTL when a socket cannot
// send openers, or the network's; the checks can be started all the same.
func (s *Session) Open(ttl int, targets []netip.AddrPort) error {
	var errs []error
	for _, to := range targets {
		if !s.mayCheck(to) {
			continue
		}
		for _, local := range s.port.Local() {
			if local.Addr().Is4() != to.Addr().Is4() || s.goesAstray(pair{local, to}) {
				continue
			}
			opener, err := newOpener()
			if err == nil {
				err = s.port.sendTTL(local, to, opener, ttl)
			}
			if err != nil {
				errs = append(errs, err)
				continue
			}
			s.note(func(st *Stats) { st.Openers++ })
		}
	}
	return errors.Join(errs...)
}

// mayCheck reports whether an address is among the peer's accepted candidates.
func (s *Session) mayCheck(a netip.AddrPort) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.kinds[a]
	return ok
}

func newOpener() ([]byte, error) {
	msg, err := stun.Build(stun.TransactionID, stun.NewType(stun.MethodBinding, stun.ClassIndication), stun.Fingerprint)
	if err != nil {
		return nil, err
	}
	return msg.Raw, nil
}
