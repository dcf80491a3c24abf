package agent

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/bodkin-net/bodkin/internal/unixsock"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// Status is what `bodkin status` shows; its JSON is stable.
type Status struct {
	Node       wire.NodeName    `json:"node"`
	Identity   string           `json:"identity"`
	Version    string           `json:"version"`
	Rendezvous ConnectionStatus `json:"rendezvous"`
	Charon     ConnectionStatus `json:"charon"`
	Local      []netip.AddrPort `json:"local"`
	// Mapped is where the rendezvous sees this node: over IPv4, or over IPv6
	// where there is no IPv4. Mapped6 is the latter where there are both.
	Mapped  netip.AddrPort `json:"mapped,omitzero"`
	Mapped6 netip.AddrPort `json:"mapped6,omitzero"`
	NAT     wire.NAT       `json:"nat"`
	// PortMapping is absent where no router made one.
	PortMapping *PortMappingStatus `json:"portMapping,omitempty"`
	// Listed: the rendezvous has said who the peers are since the agent started.
	Listed bool `json:"listed"`
	// Certificate is this node's own.
	Certificate CertificateStatus `json:"certificate"`
	// StateProblem is why the list of our connections cannot be written, empty
	// if it can.
	StateProblem string         `json:"stateProblem,omitempty"`
	Tunnels      []TunnelStatus `json:"tunnels"`
	// Forwarding is absent but on a connector that relays.
	Forwarding *ForwardingStatus `json:"forwarding,omitempty"`
}

// ConnectionStatus is whether something the agent depends on is there.
type ConnectionStatus struct {
	Address   string    `json:"address"`
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since,omitzero"`
	Error     string    `json:"error,omitempty"`
}

// PortMappingStatus is a port of this node's router that leads to its IKE port.
type PortMappingStatus struct {
	Protocol string         `json:"protocol"`
	Outside  netip.AddrPort `json:"outside"`
}

// TunnelStatus is one peer's tunnel.
type TunnelStatus struct {
	Peer      wire.NodeName `json:"peer"`
	State     string        `json:"state"` // direct, relayed or down
	Plan      wire.Plan     `json:"plan"`
	Path      wire.Path     `json:"path,omitzero"`
	Monitored bool          `json:"monitored"`
	Reason    string        `json:"reason,omitempty"`
	Since     time.Time     `json:"since"`
	// Relay is the connector through which a relayed tunnel's traffic goes, by
	// what this end knows; Relays says that this tunnel is such a connector's.
	Relay  wire.NodeName `json:"relay,omitempty"`
	Relays bool          `json:"relays,omitempty"`
	// TimeToDirectMs is that of the last success, in milliseconds.
	TimeToDirectMs int64 `json:"timeToDirectMs,omitempty"`
	// IdleBytesPerDay is what keeping the tunnel costs while nothing uses it, in IP
	// bytes both ways, as last told to the rendezvous.
	IdleBytesPerDay int64    `json:"idleBytesPerDay,omitempty"`
	Communities     []string `json:"communities,omitempty"`
}

// status is made on the daemon's goroutine.
func (d *Daemon) status() Status {
	now := time.Now()
	s := Status{
		Node: d.id.endpoint.Name, Identity: d.id.endpoint.ID, Version: d.version,
		Rendezvous: ConnectionStatus{Address: d.id.url, Connected: d.link != nil, Since: onClock(now, d.linkSince)},
		Charon:     ConnectionStatus{Address: d.cfg.VICISocket, Connected: d.charonUp},
		Mapped:     d.net.mapped(), Listed: d.listed, Tunnels: []TunnelStatus{},
	}
	s.Certificate = d.renewal.status(d.id.credentials(), now)
	if err := d.owned.problem(); err != nil {
		s.StateProblem = err.Error()
	}
	s.NAT, _ = d.net.nat()
	if m := d.net[ipv6].mapped; m != s.Mapped {
		s.Mapped6 = m
	}
	if m := d.mapping; m.Outside.IsValid() {
		s.PortMapping = &PortMappingStatus{Protocol: m.Protocol, Outside: m.Outside}
	}
	if d.linkErr != nil {
		s.Rendezvous.Error = d.linkErr.Error()
	}
	if d.charonErr != nil {
		s.Charon.Error = d.charonErr.Error()
	}
	if d.port != nil {
		s.Local = d.port.Local()
	}
	s.Forwarding = d.filter.status()
	relay := d.relay()
	for _, t := range d.sorted() {
		ts := t.status(relay)
		ts.Since, ts.IdleBytesPerDay = onClock(now, ts.Since), d.usage.perDay(t.name())
		s.Tunnels = append(s.Tunnels, ts)
	}
	return s
}

// onClock is a past moment by the wall clock of now, which may have been set
// since: how long ago it was stays true.
func onClock(now, t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return now.Add(t.Sub(now))
}

// status is the tunnel as `bodkin status` shows it, on a node that can be
// reached through relay, too.
func (t *tunnel) status(relay wire.NodeName) TunnelStatus {
	s := TunnelStatus{
		Peer: t.name(), State: "down", Plan: t.peer.Plan, Path: t.path, Monitored: t.monitored,
		Reason: t.reason, Since: t.since, TimeToDirectMs: t.timeToDirect.Milliseconds(),
		Communities: t.peer.Communities, Relays: t.relay,
	}
	switch {
	case t.standing:
		s.State, s.Reason = "direct", t.note
	case t.peer.Plan == wire.PlanICE && relay != "":
		s.State, s.Relay = "relayed", relay
	}
	return s
}

const apiTimeout = 5 * time.Second

// serveAPI answers on the unix socket until ctx is done. Who may connect is the
// socket's file permission.
func (d *Daemon) serveAPI(ctx context.Context) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		q := make(chan Status, 1)
		select {
		case d.queries <- q:
			w.Header().Set("Content-Type", "application/json")
			if err := json.NewEncoder(w).Encode(<-q); err != nil {
				d.log.Debug("status not sent", "err", err)
			}
		case <-r.Context().Done():
		case <-time.After(apiTimeout):
			http.Error(w, "the agent is busy", http.StatusServiceUnavailable)
		}
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: apiTimeout, ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelDebug)}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(d.api); err != nil && ctx.Err() == nil {
		d.log.Error("status socket", "err", err)
	}
}

// listenAPI opens the status socket, and its directory if there is none.
func listenAPI(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	return unixsock.Listen(path)
}
