package agent

import (
	"time"

	"github.com/bodkin-net/bodkin/punch/nat"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

func natOf(n wire.NAT) nat.NAT {
	return nat.NAT{
		Present: n.Present, Mapping: nat.Behaviour(n.Mapping), Filtering: nat.Behaviour(n.Filtering),
		Allocation: nat.Allocation(n.Allocation), Step: n.Step,
		Hairpin: nat.Answer(n.Hairpin), Poisoned: nat.Answer(n.Poisoned),
		Lifetime: time.Duration(n.LifetimeSeconds) * time.Second, Hops: n.Hops, Blocked: n.Blocked,
	}
}

func wireNAT(n nat.NAT) wire.NAT {
	return wire.NAT{
		Present: n.Present, Mapping: wire.Behaviour(n.Mapping), Filtering: wire.Behaviour(n.Filtering),
		Allocation: wire.Allocation(n.Allocation), Step: n.Step,
		Hairpin: wire.Answer(n.Hairpin), Poisoned: wire.Answer(n.Poisoned),
		LifetimeSeconds: int(n.Lifetime / time.Second), Hops: n.Hops, Blocked: wire.Clip(n.Blocked),
	}
}
