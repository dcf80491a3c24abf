// Package rendezvous is the public side of Bodkin: it knows where each edge is
// seen from and brings pairs of edges together.
//
//	agents ──websocket──▶ session ─▶ hub ─▶ coordinator (pure)
//	agents ──UDP───────▶ STUN service ─▶ hub
//	operators ─────────▶ API, page ─▶ hub (snapshot), store
//	                                  hub ─▶ recorder ─▶ store
//
// Everything that happens passes through the hub's one goroutine; the
// coordinator decides, the hub does.
package rendezvous

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"github.com/bodkin-net/bodkin/internal/unixsock"
	"github.com/bodkin-net/bodkin/punch/nat"
	"github.com/bodkin-net/bodkin/rendezvous/access"
	"github.com/bodkin-net/bodkin/rendezvous/enrol"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

// ErrConflict says that a community is kept elsewhere.
var ErrConflict = errors.New("conflict")

const (
	// headerTimeout bounds a client that connects and says nothing, requestTimeout
	// one that sends its request a byte at a time, and answerTime one that does not
	// read the answer: megabytes of pairs, on a slow line. Anybody may connect.
	headerTimeout  = 10 * time.Second
	requestTimeout = 30 * time.Second
	answerTime     = 2 * time.Minute
	// maxHeader bounds the memory that a stranger's request takes, in bytes.
	maxHeader = 32 << 10
	// idleTimeout ends connections that a browser or a stranger leaves open.
	idleTimeout = 2 * time.Minute
	// shutdownTimeout bounds waiting for requests when stopping; sessions are
	// told at once and need only one frame.
	shutdownTimeout = 3 * time.Second
)

// Server is a rendezvous.
type Server struct {
	cfg      Config
	log      *slog.Logger
	store    *store.Store
	stun     *STUNServer
	hub      *hub
	recorder *recorder
	certs    *certificates
	// authority says who is a node; joins bounds how often one source may try
	// join tokens that are none.
	authority *enrol.Authority
	joins     access.Limiter
	// forgotten is what a store that is new does not know, empty if nothing.
	forgotten string

	// Version is the program's, as overviews show it. It is set before Run.
	Version string
	since   time.Time
	gate    *access.Gate // of the status listener
	limiter access.Limiter
	events  *eventLog // the hub's
	streams *streamer

	agents, status, admin net.Listener
	statusURL             string
	handlers              map[net.Listener]http.Handler

	// running is cfg with what was taken on since. It belongs to the hub's goroutine.
	running Config

	// applied are the communities of the store, files those of
	// communitiesDir; both belong to the hub's goroutine. loaded is what New
	// read of that directory.
	applied, files []Community
	loaded         communityFiles
	ctx            context.Context // of Run: sessions end with it
	sessions       sync.WaitGroup
}

// New opens the store and all listeners, so that what cannot work is said at
// once. Run must follow, or Close.
func New(cfg Config, log *slog.Logger) (_ *Server, err error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	certs, err := newCertificates(cfg, log)
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, running: cfg, log: log, certs: certs, since: time.Now()}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if s.store, err = store.Open(cfg.Store, store.Options{}); err != nil {
		return nil, err
	}
	if s.authority, err = newAuthority(cfg, s.store, log); err != nil {
		return nil, err
	}
	if s.forgotten = s.authority.Forgotten(time.Now()); s.forgotten != "" {
		log.Warn("the store is new", "problem", s.forgotten, "store", cfg.Store)
	}
	s.recorder = newRecorder(s.store, log)
	s.hub = newHub(log, newCoordinator(mathrand.New(newSeed())), s.recorder, newMetrics(), s.store.ID())
	if err = s.remember(); err != nil {
		return nil, err
	}
	s.hub.mayConnect = cfg.mayConnect
	s.hub.admit, s.hub.revocations = s.authority.Admit, s.authority.CRL
	if s.hub.coordinator.relaying, err = cfg.Relay.parse(); err != nil {
		return nil, err
	}
	if cfg.CommunitiesDir != "" {
		// Before the first session: its Peers must not lack anybody.
		if s.loaded, s.files, err = loadCommunities(cfg.CommunitiesDir); err != nil {
			return nil, fmt.Errorf("%w: communitiesDir: %w", ErrConfig, err)
		}
	}
	if err = s.restore(); err != nil {
		return nil, err
	}
	if err = s.listen(); err != nil {
		return nil, err
	}
	s.collect()
	s.handlers = map[net.Listener]http.Handler{
		s.agents: s.agentHandler(),
		s.status: s.statusHandler(),
		s.admin:  s.adminHandler(),
	}
	return s, nil
}

// newSeed makes the coordinator's source from the system's randomness.
func newSeed() *mathrand.ChaCha8 {
	var seed [32]byte
	rand.Read(seed[:]) // never fails since Go 1.24
	return mathrand.NewChaCha8(seed)
}

func (s *Server) listen() error {
	// Sessions have pings of their own; TCP's would double what they cost.
	lc := net.ListenConfig{KeepAlive: -1}
	agents, err := lc.Listen(context.Background(), "tcp", s.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	s.agents = tls.NewListener(agents, s.certs.tlsConfig())
	if s.status, err = net.Listen("tcp", s.cfg.Status); err != nil {
		return fmt.Errorf("status: %w", err)
	}
	scheme := "http"
	if config := s.statusTLS(); config != nil {
		s.status, scheme = tls.NewListener(s.status, config), "https"
	}
	s.statusURL = scheme + "://" + s.status.Addr().String() + "/"
	if s.admin, err = unixsock.Listen(s.cfg.AdminSocket); err != nil {
		return fmt.Errorf("adminSocket: %w", err)
	}
	stun, err := s.cfg.stun()
	if err != nil {
		return err
	}
	stun.Log, stun.Credential, stun.Observe = s.log, s.hub.credential, s.observe
	if s.stun, err = ListenSTUN(stun); err != nil {
		return fmt.Errorf("stun: %w", err)
	}
	addrs, err := s.cfg.publicAddrs()
	if err != nil {
		return err
	}
	s.hub.setSTUNAddrs(addrs)
	for _, a := range s.stun.Addrs() {
		s.hub.stunPorts = append(s.hub.stunPorts, a.Port())
	}
	return nil
}

// restore loads what the store remembers.
func (s *Server) restore() error {
	nodes, err := s.store.Nodes()
	if err != nil {
		return err
	}
	var views []NodeView
	for _, n := range nodes {
		v := NodeView{Name: wire.NodeName(n.Name), AgentVersion: n.AgentVersion, Fingerprint: n.Fingerprint, LastSeen: n.LastSeen, Since: n.LastSeen,
			Punch: wire.Policy(n.Punch), NoProbe: n.NoProbe, Metered: n.Metered}
		if err := errors.Join(json.Unmarshal(n.Endpoint, &v.Endpoint), json.Unmarshal(n.NAT, &v.NAT)); err != nil {
			return fmt.Errorf("store %s: node %s: %w", s.cfg.Store, n.Name, err)
		}
		seen, err := s.store.Observations(n.Name)
		if err != nil {
			return err
		}
		v.restore(seen)
		s.hub.details[v.Name] = &v
		views = append(views, v)
	}
	communities, err := s.store.Communities()
	if err != nil {
		return err
	}
	for _, c := range communities {
		s.applied = append(s.applied, Community{Name: c.Name, Members: c.Members, Punch: wire.Policy(c.Punch)})
	}
	pairs, err := s.store.Pairs()
	if err != nil {
		return err
	}
	var outcomes []PairView
	for _, p := range pairs {
		outcomes = append(outcomes, PairView{
			ID: wire.PairID(p.ID), State: State(p.State), Reason: p.Reason, Since: p.Changed,
			Strategy: nat.Strategy(p.Strategy), Packets: p.Packets,
			Attempts: p.Attempts, TimeToDirectMs: p.TimeToDirect.Milliseconds(), LastDirect: p.LastDirect,
		})
	}
	if err := s.restoreAdmissions(); err != nil {
		return err
	}
	s.hub.coordinator.Restore(time.Now(), views, s.communities(), outcomes)
	for _, v := range outcomes {
		if s.hub.coordinator.pairs[v.ID] != nil {
			s.hub.journal.remember(v)
		}
	}
	return nil
}

// Close releases what New opened. Run does it by itself.
func (s *Server) Close() {
	for _, l := range []net.Listener{s.agents, s.status, s.admin} {
		if l != nil {
			l.Close()
		}
	}
	if s.stun != nil {
		s.stun.Close()
	}
	if s.store != nil {
		if err := s.store.Close(); err != nil {
			s.log.Error("store not closed", "err", err)
		}
	}
}

// Run serves until ctx is done or a listener fails. All goroutines have ended
// when it returns.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.ctx = ctx
	// The hub ends after everything that calls it, the recorder after the hub.
	hubCtx, stopHub := context.WithCancel(context.WithoutCancel(ctx))
	recCtx, stopRecorder := context.WithCancel(context.WithoutCancel(ctx))
	defer stopHub()
	defer stopRecorder()
	var hub, rec, services sync.WaitGroup
	rec.Go(func() { s.recorder.run(recCtx) })
	hub.Go(func() { s.hub.run(hubCtx) })

	// A stream does not end by itself, and a server waits for what it serves.
	defer context.AfterFunc(ctx, s.events.close)()
	for l, h := range s.handlers {
		services.Go(func() {
			if err := serveHTTP(ctx, l, h, s.log); err != nil {
				cancel(fmt.Errorf("%s: %w", l.Addr(), err))
			}
		})
	}
	services.Go(func() { s.certs.run(ctx) })
	services.Go(func() { s.maintain(ctx) })
	services.Go(func() {
		if err := s.stun.Serve(ctx); err != nil && ctx.Err() == nil {
			cancel(fmt.Errorf("stun: %w", err))
		}
	})
	if s.cfg.CommunitiesDir != "" {
		services.Go(func() {
			err := watchCommunities(ctx, s.cfg.CommunitiesDir, s.loaded, s.log, func(cs []Community) { s.setFiles(ctx, cs) })
			if err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("communitiesDir: %w", err))
			}
		})
	}
	s.log.Info("rendezvous running", "listen", s.agents.Addr().String(), "stun", s.hub.stunPorts,
		"status", s.statusURL, "store", s.cfg.Store)
	<-ctx.Done()
	services.Wait()
	s.sessions.Wait()
	stopHub()
	hub.Wait()
	stopRecorder()
	rec.Wait()
	s.Close()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// serveHTTP serves until ctx is done.
func serveHTTP(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: headerTimeout, ReadTimeout: requestTimeout, WriteTimeout: answerTime,
		IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug), // strangers' broken handshakes
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		if srv.Shutdown(sctx) != nil {
			srv.Close()
		}
	})
	err := srv.Serve(l)
	if !stop() {
		<-stopped
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// serveAgent is the signalling endpoint.
func (s *Server) serveAgent(w http.ResponseWriter, r *http.Request) {
	s.sessions.Add(1) // before Upgrade: from there on the HTTP server no longer waits for us
	defer s.sessions.Done()
	present, ok := s.presented(w, r)
	if !ok {
		return
	}
	identity, err := wire.IdentityOf(present.Certificate)
	if err != nil {
		answerError(w, http.StatusForbidden, err)
		return
	}
	if _, err := s.authority.Admit(time.Now(), present); err != nil {
		s.turnAway(w, r, present, err)
		return
	}
	// Agents are no browsers: an Origin is neither sent nor needed.
	up := websocket.Upgrader{HandshakeTimeout: headerTimeout, CheckOrigin: func(r *http.Request) bool { return r.Header.Get("Origin") == "" }}
	conn, err := up.Upgrade(w, r, nil)
	if err != nil {
		return // Upgrade has answered
	}
	s.hub.metrics.sessions.Inc()
	sess := newSession(conn, present.Name, s.log.With("node", present.Name), time.Now())
	sess.presented, sess.identity, sess.fingerprint = present, identity, fingerprintOf(present.Certificate)
	sess.serve(s.ctx, s.hub)
}

func fingerprintOf(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}

// observe is called by the STUN service for each authenticated request.
func (s *Server) observe(o Observation) { s.hub.observed(o) }

func (s *Server) observations(node string) ([]store.Observation, error) {
	return s.store.Observations(node)
}

// Reload has the rendezvous look at its certificate, key and CA now, instead of
// when it would do so by itself. It may be called from any goroutine.
func (s *Server) Reload() { s.certs.ask() }

// trouble is what an operator should know that keeps nobody from being served.
func (s *Server) trouble() string {
	said := []string{s.certs.trouble(time.Now()), s.forgotten}
	return strings.Join(slices.DeleteFunc(said, func(t string) bool { return t == "" }), "; ")
}

// ready is nil when the store takes writes.
func (s *Server) ready() error { return s.recorder.err() }
