package agent

import (
	"context"
	"crypto/sha256"
	"net/netip"
	"time"

	"github.com/bodkin-net/bodkin/punch/portmap"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// routerEvery is between questions to the router for which a path that may have
// died is the reason: each can be a search of the whole network for one.
const routerEvery = 10 * time.Second

// portMapping is the router's mapping of the IKE port, as long as the agent
// runs. A goroutine of its own keeps it; the daemon reads found.
type portMapping struct {
	// found brings each new mapping, and the zero Mapping when it is lost. It
	// is nil, and brings nothing, where no mapping is wanted.
	found chan portmap.Mapping
	look  chan struct{}
	// looked is when the router was last asked out of turn.
	looked time.Time
	// stop gives the mapping back, which takes a second at most, and waits for
	// it.
	stop func()
}

// watchPortMapping starts keeping a mapping, for an edge whose operator has not
// turned it off. A connector is reached at addresses its operator has mapped.
func (d *Daemon) watchPortMapping(ctx context.Context) *portMapping {
	if !d.cfg.PortMapping || d.id.endpoint.Type != wire.Edge {
		return &portMapping{stop: func() {}}
	}
	// Made of the private key, the secret is known to nobody else, and the same
	// after a restart.
	secret := sha256.Sum256(d.id.credentials().charon.KeyPEM)
	p := &portMapping{found: make(chan portmap.Mapping), look: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		portmap.Keep(ctx, portmap.Options{
			Inside: netip.AddrPortFrom(netip.IPv4Unspecified(), d.cfg.IKEPort),
			Mark:   d.cfg.Mark, Secret: secret[:], Look: p.look, Log: d.log,
		}, func(m portmap.Mapping) {
			select {
			case p.found <- m:
			case <-ctx.Done():
			}
		})
	}()
	p.stop = func() { cancel(); <-done }
	return p
}

// lookAgain has the router asked at once whether it still has the mapping, if that
// was not done just now. It is for the daemon's goroutine.
func (p *portMapping) lookAgain() {
	if now := time.Now(); now.Sub(p.looked) >= routerEvery {
		p.looked = now
		signal(p.look) // nil where nothing is kept
	}
}
