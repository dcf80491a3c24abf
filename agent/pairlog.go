package agent

import (
	"net/netip"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// pairState is what the log says of a pair: whatever does not change it is no
// news.
type pairState struct {
	state  string
	remote netip.AddrPort
	relay  wire.NodeName
}

// logStates logs the pairs that have changed since it was called last. The line
// has the pair's ID, which the peer and the rendezvous log, too.
func (d *Daemon) logStates() {
	relay := d.relay()
	for _, t := range d.tunnels {
		s := t.status(relay)
		is := pairState{s.State, s.Path.Remote, s.Relay}
		if s.State != stateDirect {
			is.remote = netip.AddrPort{} // of a path that is being tried
		}
		if is == t.logged || t.logged == (pairState{}) && s.State == stateDown {
			continue
		}
		t.logged = is
		args := []any{"pair", wire.NewPairID(string(d.id.endpoint.Name), string(t.name())), "state", s.State}
		if s.State == stateDirect {
			args = append(args, "path", s.Path.Kind, "remote", s.Path.Remote, "elapsed_ms", s.TimeToDirectMs)
		}
		if s.Relay != "" {
			args = append(args, "relay", s.Relay)
		}
		if s.Reason != "" {
			args = append(args, "reason", s.Reason)
		}
		d.log.Info("pair", args...)
	}
}
