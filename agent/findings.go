package agent

import (
	"net/netip"
	"time"

	"github.com/bodkin-net/bodkin/punch"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// rediscover is the least time between two looks at what seems to be the same
// NAT: a mapping that changes with each observation is no news.
const rediscover = 5 * time.Minute

// findings are what is known of the NATs before this node in one address family.
type findings struct {
	nat wire.NAT
	// mapped is the mapping that nat was found behind, zero when nothing was.
	mapped netip.AddrPort
	at     time.Time
	// life is what is known of the lifetime of mappings.
	life punch.LifetimeTest
}

// holdFor reports whether the findings hold for a mapping. Another port of the
// same address is another mapping of the same NAT.
func (f findings) holdFor(mapped netip.AddrPort) bool {
	return f.mapped.IsValid() && f.mapped.Addr() == mapped.Addr()
}

// due reports whether a mapping is to be looked into: nothing is known of its
// NAT, or that has a new one and was last looked at a while ago.
func (f findings) due(mapped netip.AddrPort, now time.Time) bool {
	return !f.holdFor(mapped) || f.mapped != mapped && now.Sub(f.at) >= rediscover
}

// discovered is what is known after another discovery. Lifetimes are learnt too
// slowly to forget them for a new port.
func (f findings) discovered(n punch.Network, now time.Time) findings {
	r := findings{nat: wireNAT(n.NAT), mapped: n.Mapped, at: now}
	if f.holdFor(n.Mapped) {
		r.learnt(f.life)
	}
	return r
}

func (f *findings) learnt(life punch.LifetimeTest) {
	f.life = life
	f.nat.LifetimeSeconds = int(life.Lifetime() / time.Second)
}
