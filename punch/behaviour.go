package punch

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Behaviour is a NAT's mapping or filtering behaviour in the words of RFC 4787
// sections 4.1 and 5. Empty means not known.
type Behaviour string

// Behaviours. Discover asks one server address, so it cannot tell the first
// two apart: its EndpointIndependent means "does not depend on the port".
const (
	EndpointIndependent     Behaviour = "endpoint-independent"
	AddressDependent        Behaviour = "address-dependent"
	AddressAndPortDependent Behaviour = "address-and-port-dependent"
)

// NAT is what is known of the NATs and firewalls before one node.
type NAT struct {
	// Present is false when the mapped address is the node's own.
	Present            bool
	Mapping, Filtering Behaviour
	// Mapped is the server-reflexive address.
	Mapped netip.AddrPort
	// Blocked says in words why UDP does not pass; empty when it does.
	Blocked string
}

// filterWait is how long an answer from the other port may take. It covers
// five tries, since a lost answer looks exactly like a filtered one.
const filterWait = 1600 * time.Millisecond

// Mapped returns the mapped address of the base from as servers[0] sees it.
// This alone makes a node reachable, so it is asked before Discover; it leaves
// servers[1] alone, which Discover's filtering test needs.
func Mapped(ctx context.Context, p *Port, from netip.AddrPort, servers [2]netip.AddrPort, cred STUNCredential) (netip.AddrPort, error) {
	res, err := p.Bind(ctx, from, servers[0], BindOptions{Credential: cred})
	return res.Mapped, err
}

// Discover finds the NAT's behaviour, RFC 5780 section 4.3 and 4.4, with two
// ports of one server. Filtering comes first: its answer must come from a port
// this base has not sent to within the NAT's UDP timeout, so a repeated
// Discover can find filtering laxer than it is unless the server answers from
// a port of its own. A network that lets no UDP through is a result (Blocked),
// not an error.
func Discover(ctx context.Context, p *Port, from netip.AddrPort, servers [2]netip.AddrPort, cred STUNCredential) (NAT, error) {
	from = unmap(from)
	obs := observations{servers: [2]netip.AddrPort{unmap(servers[0]), unmap(servers[1])}}
	for i, server := range obs.servers {
		res, err := p.Bind(ctx, from, server, BindOptions{Credential: cred})
		switch {
		case ctx.Err() != nil || err != nil && !errors.Is(err, ErrTimeout):
			return NAT{}, fmt.Errorf("NAT discovery: %w", err)
		case err == nil:
			obs.mapped[i] = res.Mapped
		}
		if i == 0 && err == nil {
			if obs.otherPort, err = askOtherPort(ctx, p, from, server, cred); err != nil {
				return NAT{}, fmt.Errorf("NAT discovery: %w", err)
			}
		}
	}
	return decide(from, obs), nil
}

func askOtherPort(ctx context.Context, p *Port, from, server netip.AddrPort, cred STUNCredential) (answer, error) {
	within, cancel := context.WithTimeout(ctx, filterWait)
	defer cancel()
	res, err := p.Bind(within, from, server, BindOptions{Credential: cred, ChangePort: true})
	switch {
	case ctx.Err() != nil:
		return notAsked, err
	case err == nil && res.Origin != server:
		return answered, nil
	case errors.Is(err, ErrTimeout):
		return unanswered, nil
	default:
		// The server ignores or rejects CHANGE-REQUEST: nothing was learnt.
		return notAsked, nil
	}
}

// answer tells whether something came from the port that was never contacted.
type answer int

const (
	notAsked answer = iota
	answered
	unanswered
)

// observations are all Discover's decision rests on.
type observations struct {
	servers   [2]netip.AddrPort
	mapped    [2]netip.AddrPort // as each server port sees the base; zero: no answer
	otherPort answer
}

func decide(from netip.AddrPort, o observations) NAT {
	first, second := o.mapped[0], o.mapped[1]
	if !first.IsValid() && !second.IsValid() {
		return NAT{Blocked: fmt.Sprintf("no answer from %s nor %s over UDP", o.servers[0], o.servers[1])}
	}
	nat := NAT{Mapped: first}
	if !first.IsValid() {
		nat.Mapped = second
	}
	nat.Present = nat.Mapped != from
	switch {
	case first == second || !nat.Present:
		nat.Mapping = EndpointIndependent
	case first.IsValid() && second.IsValid():
		nat.Mapping = AddressAndPortDependent
	}
	switch o.otherPort {
	case answered:
		nat.Filtering = EndpointIndependent
	case unanswered:
		nat.Filtering = AddressAndPortDependent
	}
	return nat
}
