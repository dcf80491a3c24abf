package punch

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/pion/ice/v4"
)

const (
	// checkTimeout is how long an answer to a check is accepted; pion's own.
	checkTimeout = 4 * time.Second
	// maxChecks is above any attempt's length over checkTick: the caller ends
	// an attempt, not pion's count.
	maxChecks = 60_000
)

// Errors of a Session.
var (
	ErrNoPath      = errors.New("no path yet")
	ErrConsentLost = errors.New("consent lost")
)

// SessionConfig describes one ICE session.
type SessionConfig struct {
	Role          Role
	Local, Remote Credentials
	// Remotes are the peer's candidates known so far; AddRemote brings more.
	Remotes []Candidate
	// Forbidden are networks no candidate may be in.
	Forbidden []Forbidden
	// Leaves tells whether packets from a base to an address leave this host by
	// the interface that the base is on; nil for always. Those that do not would
	// come from another NAT than the peer is told of, or from no valid address.
	Leaves func(base, remote netip.Addr) bool
	// Count is told the size of each packet of the session, in both directions,
	// without UDP's and IP's headers; nil for nobody.
	Count func(bytes int)
	// Seen is told what happens to a candidate pair for the first time; nil for
	// nobody. It must return at once and not call the session.
	Seen func(m Moment, remote netip.AddrPort)
	Log  *slog.Logger
}

// Moment is what Seen is told of.
type Moment int

// Moments.
const (
	CheckSent  Moment = iota // a check of this side's leaves
	CheckHeard               // a check of the peer's came in, and is the peer's
)

// Path is a working candidate pair.
type Path struct {
	// Kind is the remote candidate's.
	Kind          Kind
	Local, Remote netip.AddrPort
	// RTT is that of the last answered check on this pair.
	RTT time.Duration
}

// Session is one ICE session with one peer on a Port: checks, the path that
// came of them, and consent on it. pion's agent decides what is checked and
// nominated; the session owns the packets, the counts and the current path.
// Methods may be called concurrently. Close ends it.
type Session struct {
	port          *Port
	role          Role
	local, remote Credentials
	forbidden     []Forbidden
	leaves        func(base, remote netip.Addr) bool
	count         func(bytes int)
	seen          func(Moment, netip.AddrPort)
	log           *slog.Logger
	agent         *ice.Agent
	conns         map[netip.AddrPort]*checkConn // read-only after NewSession
	done          chan struct{}
	closing       sync.Once
	checkNow      chan struct{}
	paths         chan Path

	mu        sync.Mutex
	closed    bool
	kinds     map[netip.AddrPort]Kind // the signalled candidates
	checks    checkList
	pending   []pendingCheck
	path      Path
	lastHeard time.Time     // last valid check from the peer on any pair
	patience  time.Duration // of Monitor with a hurried check
	sent      Stats         // Openers, Probes and Forged
	moved     bool          // see Moved
	// astray is what leaves has said no to, or yes, as first asked.
	astray map[[2]netip.Addr]bool
}

type pendingCheck struct {
	id   transactionID
	pair pair
	at   time.Time
}

// NewSession prepares a session; nothing is sent before Start. Checks that
// arrive earlier are kept and answered then. Remotes that may not be checked
// are logged and left out.
func (p *Port) NewSession(cfg SessionConfig) (*Session, error) {
	if cfg.Role != Controlling && cfg.Role != Controlled {
		return nil, fmt.Errorf("ICE role %q: want %s or %s", cfg.Role, Controlling, Controlled)
	}
	if err := errors.Join(cfg.Local.validate("local"), cfg.Remote.validate("remote")); err != nil {
		return nil, err
	}
	s := &Session{
		port: p, role: cfg.Role, local: cfg.Local, remote: cfg.Remote,
		forbidden: cfg.Forbidden, leaves: cfg.Leaves, count: cfg.Count, seen: cfg.Seen, log: cfg.Log,
		astray:   map[[2]netip.Addr]bool{},
		conns:    map[netip.AddrPort]*checkConn{},
		done:     make(chan struct{}),
		checkNow: make(chan struct{}, 1),
		paths:    make(chan Path, 1),
		kinds:    map[netip.AddrPort]Kind{},
		checks:   checkList{},
	}
	if s.count == nil {
		s.count = func(int) {}
	}
	if s.seen == nil {
		s.seen = func(Moment, netip.AddrPort) {}
	}
	if err := s.newAgent(acceptanceFor(p.Local(), cfg.Remotes)); err != nil {
		return nil, fmt.Errorf("ICE agent: %w", err)
	}
	for _, c := range cfg.Remotes {
		if err := s.AddRemote(c); err != nil {
			s.log.Warn("remote candidate left out", "err", err)
		}
	}
	if err := p.attach(s.local.Ufrag, s.request); err != nil {
		return nil, errors.Join(err, s.agent.GracefulClose())
	}
	return s, nil
}

// newAgent makes pion's agent. Its only local candidates are the port's bases:
// checks leave from the base in any case (RFC 8445 section 6.1.2.4), and the
// peer learns the mapped address from elsewhere. It never pings after
// nomination nor fails by itself: consent is Monitor's, the attempt's end the
// caller's.
func (s *Session) newAgent(acceptance time.Duration) error {
	var err error
	s.agent, err = ice.NewAgentWithOptions(
		ice.WithLocalCredentials(s.local.Ufrag, s.local.Pwd),
		ice.WithCandidateTypes([]ice.CandidateType{ice.CandidateTypeHost}),
		ice.WithNetworkTypes([]ice.NetworkType{ice.NetworkTypeUDP4, ice.NetworkTypeUDP6}),
		ice.WithMulticastDNSMode(ice.MulticastDNSModeDisabled),
		ice.WithDisableActiveTCP(),
		ice.WithKeepaliveInterval(0),
		ice.WithDisconnectedTimeout(0),
		ice.WithFailedTimeout(0),
		ice.WithCheckInterval(checkTick),
		ice.WithMaxBindingRequests(maxChecks),
		ice.WithHostAcceptanceMinWait(0),
		ice.WithSrflxAcceptanceMinWait(acceptance),
		ice.WithPrflxAcceptanceMinWait(acceptance),
		ice.WithBindingRequestHandler(s.checked),
		ice.WithLoggerFactory(pionLogs{s.log}),
	)
	if err != nil {
		return err
	}
	if err := s.agent.OnSelectedCandidatePairChange(s.selected); err != nil {
		return errors.Join(err, s.agent.GracefulClose())
	}
	for _, local := range s.port.Local() {
		cand, err := newHost(local)
		if err != nil {
			return errors.Join(err, s.agent.GracefulClose())
		}
		s.conns[local] = newCheckConn(s, local)
		if err := s.agent.AddVirtualCandidate(cand, s.conns[local]); err != nil {
			return errors.Join(err, s.agent.GracefulClose())
		}
	}
	return nil
}

// Start begins the checks. Both sides should start at the same moment.
func (s *Session) Start() error {
	start := s.agent.StartAccept
	if s.role == Controlling {
		start = s.agent.StartDial
	}
	if _, err := start(s.remote.Ufrag, s.remote.Pwd); err != nil {
		return fmt.Errorf("start ICE: %w", err)
	}
	return nil
}

// AddRemote adds a candidate of the peer, before or after Start (RFC 8838). It
// is refused with ErrRefused when it must not be checked; one that is known
// already is not an error.
func (s *Session) AddRemote(c Candidate) error {
	c.Addr = unmap(c.Addr)
	if err := refuse(c, s.port.Local(), s.forbidden); err != nil {
		return err
	}
	s.mu.Lock()
	_, known := s.kinds[c.Addr]
	full := len(s.kinds) >= MaxRemotes
	if !known && !full {
		s.kinds[c.Addr] = c.Kind
	}
	s.mu.Unlock()
	if known {
		return nil
	}
	if full {
		return fmt.Errorf("%w: %s: already %d candidates", ErrRefused, c.Addr, MaxRemotes)
	}
	newRemote := newHost
	if c.Kind != Host {
		newRemote = newServerReflexive
	}
	cand, err := newRemote(c.Addr)
	if err == nil {
		err = s.agent.AddRemoteCandidate(cand)
	}
	if err != nil {
		return fmt.Errorf("remote candidate %s: %w", c.Addr, err)
	}
	return nil
}

// Paths delivers the first path and every later change; only the latest is
// kept. The controlling side hears of a path when it nominates it: its check
// was answered, so packets pass both ways, and it need not wait for the
// nomination's own round trip. The controlled side hears of it when the
// nomination arrives. Closed by Close.
func (s *Session) Paths() <-chan Path { return s.paths }

// Checked tells what was tried so far. The numbers remain after Close.
func (s *Session) Checked() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.checks.stats(s.kind)
	st.Openers, st.Probes, st.Forged = s.sent.Openers, s.sent.Probes, s.sent.Forged
	return st
}

// note changes the counts of what is sent and received beside the checks.
func (s *Session) note(change func(*Stats)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.sent)
}

// hurry restarts the pacing of the checks to remote: a way to it has opened.
func (s *Session) hurry(remote netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p, c := range s.checks {
		if p.remote == remote {
			c.alive(time.Now())
		}
	}
}

// heardFrom reports whether a valid check has come from that address.
func (s *Session) heardFrom(a netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p, c := range s.checks {
		if p.remote.Addr() == a && c.heard > 0 {
			return true
		}
	}
	return false
}

// CheckNow makes Monitor check at once, for there is evidence of trouble, and
// returns how long it takes at most until Monitor knows.
func (s *Session) CheckNow() time.Duration {
	select {
	case s.checkNow <- struct{}{}:
	default:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.patience
}

// Close ends the session: checks are no longer sent nor answered, Monitor
// returns ErrClosed. It waits for what the session started.
func (s *Session) Close() error {
	var err error
	s.closing.Do(func() {
		close(s.done)
		s.port.detach(s.local.Ufrag)
		err = s.agent.GracefulClose()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.expire(time.Time{})
		s.closed = true
		close(s.paths)
	})
	return err
}

// selected is pion's report of the pair both sides agreed on.
func (s *Session) selected(local, remote ice.Candidate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setPath(pair{addrOf(local), addrOf(remote)})
}

// setPath makes p the current path and tells Paths, keeping only the latest.
func (s *Session) setPath(p pair) {
	if s.closed || s.path.Local == p.local && s.path.Remote == p.remote {
		return
	}
	s.moved = false
	s.path = Path{Kind: s.kind(p.remote), Local: p.local, Remote: p.remote, RTT: s.checks.at(p).rtt}
	select {
	case <-s.paths:
	default:
	}
	s.paths <- s.path
}

func (s *Session) kind(remote netip.AddrPort) Kind {
	if k, ok := s.kinds[remote]; ok {
		return k
	}
	return PeerReflexive
}

// addrOf is the transport address of a pion candidate; pion parsed it before,
// so it is always valid.
func addrOf(c ice.Candidate) netip.AddrPort {
	ip, err := netip.ParseAddr(c.Address())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ip.Unmap(), uint16(c.Port()))
}

var _ ice.AddrPortReaderWriter = (*checkConn)(nil)
