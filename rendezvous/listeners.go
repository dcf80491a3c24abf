package rendezvous

import (
	"crypto/tls"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/access"
)

// routes is everything that both listeners for operators serve.
func (s *Server) routes() []route {
	return slices.Concat(listRoutes(s), s.detailRoutes(), s.changeRoutes(), s.nodeRoutes(), plainRoutes(s, s.hub.metrics))
}

// statusHandler is what the status listener serves.
func (s *Server) statusHandler() http.Handler {
	f := &front{metrics: s.hub.metrics, identify: func(r *http.Request) (access.Caller, error) { return s.gate.Identify(r, time.Now()) }}
	return f.handler(append(s.routes(), loginRoutes(s.gate)...))
}

// adminHandler is what the unix socket serves. Who may open it needs no credential.
func (s *Server) adminHandler() http.Handler {
	f := &front{metrics: s.hub.metrics, identify: func(*http.Request) (access.Caller, error) { return access.Socket, nil }}
	return f.handler(s.routes())
}

// newGate decides on who comes in by the status listener.
func (s *Server) newGate() *access.Gate {
	return &access.Gate{
		Trusting:    s.cfg.statusIsLocal(),
		Credentials: s.credentials,
		Certificate: s.operator,
		Limiter:     &s.limiter,
		Failed: func(from netip.Addr) {
			s.hub.metrics.loginFailures.Inc()
			s.log.Warn("login failed: the credential is not known", "from", from)
		},
	}
}

// statusTLS is the status listener's, which speaks TLS unless it is on loopback.
func (s *Server) statusTLS() *tls.Config {
	if s.cfg.statusIsLocal() {
		return nil
	}
	return s.certs.tlsConfig()
}

// remember takes up the history that the store holds.
func (s *Server) remember() error {
	stored, err := s.store.Events(ringSize)
	if err != nil {
		return err
	}
	hours, err := s.store.Hours()
	if err != nil {
		return err
	}
	j := s.hub.journal
	j.hours = newHours(hours)
	j.events = newEventLog(stored)
	j.events.save = func() { s.recorder.events(j.events) }
	s.events, s.streams = j.events, &streamer{log: j.events, pause: streamPause}
	s.gate = s.newGate()
	return nil
}

// collect adds what is computed at scrape time to the metrics. It is done once.
func (s *Server) collect() {
	s.hub.metrics.registry.MustRegister(newCollector(s, s.stun.Stats), newExpiry(s.certs))
}
