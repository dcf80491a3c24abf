package agent

import (
	"log/slog"
	"testing"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// Where no mapping is wanted nothing is asked, and nothing waits for an answer.
func TestNoPortMapping(t *testing.T) {
	for name, tt := range map[string]struct {
		on  bool
		typ wire.EndpointType
	}{
		"turned off": {false, wire.Edge},
		"connector":  {true, wire.Connector},
	} {
		d := &Daemon{
			cfg: Config{PortMapping: tt.on, IKEPort: 4500}, log: slog.New(slog.DiscardHandler),
			id: &identity{endpoint: wire.Endpoint{Type: tt.typ}},
		}
		p := d.watchPortMapping(t.Context())
		p.lookAgain()
		select {
		case m := <-p.found:
			t.Errorf("%s: found %+v", name, m)
		default:
		}
		if p.found != nil {
			t.Errorf("%s: a mapping is being looked for", name)
		}
		p.stop()
	}
}

// However many paths seem to have died, the router is not asked each time.
func TestPortMappingLooks(t *testing.T) {
	p := &portMapping{look: make(chan struct{}, 1)}
	for i := range 3 {
		p.lookAgain()
		if got := len(p.look) > 0; got != (i == 0) {
			t.Errorf("look %d: router asked: %v", i, got)
		}
		drain(p.look)
	}
}
