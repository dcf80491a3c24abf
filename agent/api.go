package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
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

// States of a tunnel.
const (
	stateDirect  = "direct"
	stateRelayed = "relayed" // through the connector
	stateDown    = "down"
)

// TunnelStatus is one peer's tunnel.
type TunnelStatus struct {
	Peer      wire.NodeName `json:"peer"`
	State     string        `json:"state"` // stateDirect or one of the others
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
	s.Certificate.Problem = d.reissue.explain(s.Certificate.Problem)
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
		s.Rendezvous.Error = strings.TrimPrefix(d.linkErr.Error(), "rendezvous: ") // as the field's name says
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
		Peer: t.name(), State: stateDown, Plan: t.peer.Plan, Path: t.path, Monitored: t.monitored,
		Reason: t.reason, Since: t.since, TimeToDirectMs: t.timeToDirect.Milliseconds(),
		Communities: t.peer.Communities, Relays: t.relay,
	}
	switch {
	case t.standing:
		s.State, s.Reason = stateDirect, t.note
	case t.peer.Plan == wire.PlanICE && relay != "":
		s.State, s.Relay = stateRelayed, relay
	}
	return s
}

const (
	// apiTimeout bounds what a request waits for the daemon or for charon.
	apiTimeout = 5 * time.Second
	// apiPatience bounds a whole request, of which a ping is the longest, and how
	// long a connection may stay without one: it holds one of the process' files.
	apiPatience = 30 * time.Second
)

// errBusy: the daemon did not come to answer.
var errBusy = statusError{http.StatusServiceUnavailable, errors.New("the agent is busy")}

// inDaemon has the daemon's goroutine do something and waits until it is done.
func (d *Daemon) inDaemon(ctx context.Context, do func()) error {
	done := make(chan struct{})
	select {
	case d.queries <- func() { do(); close(done) }:
		<-done
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(apiTimeout):
		return errBusy
	}
}

// apiHandler answers on the unix socket. What charon is asked for is asked from
// the request's own goroutine, so that a charon that is slow holds up nobody.
func (d *Daemon) apiHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		var s Status
		err := d.inDaemon(r.Context(), func() { s = d.status() })
		d.reply(w, s, err)
	})
	mux.HandleFunc("GET /v1/sas", func(w http.ResponseWriter, r *http.Request) {
		sas, err := d.listSAs(r.Context())
		d.reply(w, sas, err)
	})
	mux.HandleFunc("POST /v1/ping", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		timeout, err := time.ParseDuration(cmp.Or(q.Get("timeout"), "2s"))
		if err != nil || timeout <= 0 || timeout > PingTimeoutMax {
			d.reply(w, nil, statusf(http.StatusUnprocessableEntity, "timeout %q: want some time up to %s", q.Get("timeout"), PingTimeoutMax))
			return
		}
		answer, err := d.ping(r.Context(), wire.NodeName(q.Get("peer")), timeout)
		d.reply(w, answer, err)
	})
	mux.HandleFunc("GET /metrics", d.serveMetrics)
	return mux
}

// listSAs are charon's SAs, all of them.
func (d *Daemon) listSAs(ctx context.Context) ([]SA, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	list, err := d.vici.SAs(ctx, "")
	if err != nil {
		return nil, statusError{http.StatusServiceUnavailable, fmt.Errorf("charon: %w", err)}
	}
	return sasOf(list), nil
}

// reply answers with v, or with err if there is one.
func (d *Daemon) reply(w http.ResponseWriter, v any, err error) {
	status := http.StatusOK
	if err != nil {
		status = http.StatusInternalServerError
		if s, ok := errors.AsType[statusError](err); ok {
			status = s.status
		}
		v = map[string]string{"error": err.Error()}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		d.log.Debug("answer not sent", "err", err)
	}
}

// serveAPI answers on the unix socket until ctx is done. Who may connect is the
// socket's file permission.
func (d *Daemon) serveAPI(ctx context.Context) { d.serve(ctx, d.api, d.apiHandler()) }

func (d *Daemon) serve(ctx context.Context, l net.Listener, h http.Handler) {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: apiTimeout, ReadTimeout: apiPatience, WriteTimeout: apiPatience, ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return ctx }}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); err != nil && ctx.Err() == nil {
		d.log.Error("listener ended", "address", l.Addr().String(), "err", err)
	}
}

// listenAPI opens the status socket, and its directory if there is none.
func listenAPI(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	return unixsock.Listen(path)
}
