package rendezvous

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// STUNConfig configures a STUNServer.
type STUNConfig struct {
	// Listen is two different addresses and ports: the mapping behaviour of a NAT
	// (RFC 5780 Section 4.3) shows when a client asks at both.
	Listen []netip.AddrPort
	// Credential gives the password of a username, which stands for an agent's
	// session. It is called per authenticated request, from several goroutines.
	// Without it every credential is wrong.
	Credential func(username string) (password string, ok bool)
	// Observe is told of each authenticated request before it is answered, from
	// several goroutines. It must not block: requests wait for it.
	Observe func(Observation)
	// Log may be nil.
	Log *slog.Logger
}

// STUNStats counts packets since the server was opened.
type STUNStats struct {
	Plain         uint64 // unauthenticated requests answered with an address
	Authenticated uint64 // authenticated requests answered with an address
	Malformed     uint64 // dropped: not one whole Binding request, wrong FINGERPRINT
	Refused       uint64 // answered with 400 or 420
	Unauthorised  uint64 // answered with 401
	RateLimited   uint64 // dropped
	Responses     uint64 // sent, errors among them
	SendFailures  uint64 // responses the system would not send
}

// STUNServer answers STUN Binding requests (RFC 8489) on two ports, and for
// authenticated clients from a third that nobody asks (CHANGE-REQUEST, RFC 5780
// Section 7.2): what arrives from there shows the filtering behaviour of a NAT.
//
// Stats, Addrs and Close may be called from any goroutine.
type STUNServer struct {
	log       *slog.Logger
	observe   func(Observation)
	answerer  stunAnswerer
	listeners []stunListener
	alternate map[netip.Addr]*stunSocket // by listening address

	mu      sync.Mutex
	limiter *stunLimiter // under mu

	outcomes     [stunOutcomes]atomic.Uint64
	responses    atomic.Uint64
	sendFailures atomic.Uint64
}

// stunListener is a socket that is asked, and the one beside it on the same
// address that only answers.
type stunListener struct {
	*stunSocket
	alternate *stunSocket
}

// ListenSTUN opens the sockets. The caller then calls Serve, or Close.
func ListenSTUN(cfg STUNConfig) (*STUNServer, error) {
	if len(cfg.Listen) != 2 {
		return nil, fmt.Errorf("%d listening addresses: want two, with different ports", len(cfg.Listen))
	}
	s := &STUNServer{
		log:       cfg.Log,
		observe:   cfg.Observe,
		answerer:  stunAnswerer{credential: cfg.Credential},
		alternate: make(map[netip.Addr]*stunSocket),
		limiter:   newSTUNLimiter(stunRate, stunBurst, stunSources),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.observe == nil {
		s.observe = func(Observation) {}
	}
	for _, at := range cfg.Listen {
		if err := s.listen(at); err != nil {
			_ = s.Close()
			return nil, err
		}
	}
	return s, nil
}

func (s *STUNServer) listen(at netip.AddrPort) error {
	socket, err := openSTUNSocket(at)
	if err != nil {
		return err
	}
	alternate, ok := s.alternate[at.Addr()]
	if !ok {
		if alternate, err = openSTUNSocket(netip.AddrPortFrom(at.Addr(), 0)); err != nil {
			return errors.Join(err, socket.conn.Close())
		}
		s.alternate[at.Addr()] = alternate
	}
	s.listeners = append(s.listeners, stunListener{socket, alternate})
	return nil
}

// Addrs returns where the server listens, in the order of STUNConfig.Listen.
func (s *STUNServer) Addrs() []netip.AddrPort {
	addrs := make([]netip.AddrPort, len(s.listeners))
	for i, l := range s.listeners {
		addrs[i] = l.addr()
	}
	return addrs
}

// Stats returns the counters as of now.
func (s *STUNServer) Stats() STUNStats {
	return STUNStats{
		Plain:         s.outcomes[stunPlain].Load(),
		Authenticated: s.outcomes[stunAuthenticated].Load(),
		Malformed:     s.outcomes[stunMalformed].Load(),
		Refused:       s.outcomes[stunRefused].Load(),
		Unauthorised:  s.outcomes[stunUnauthorised].Load(),
		RateLimited:   s.outcomes[stunRateLimited].Load(),
		Responses:     s.responses.Load(),
		SendFailures:  s.sendFailures.Load(),
	}
}

// Serve answers until ctx ends or Close is called, then returns nil, or until a
// socket fails, then returns why. When it returns its goroutines have ended and the sockets are
// closed. It is called once.
func (s *STUNServer) Serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var readers sync.WaitGroup
	failed := make([]error, len(s.listeners))
	for i, l := range s.listeners {
		readers.Go(func() {
			defer cancel() // one port alone is no service
			if err := s.answer(l); !errors.Is(err, net.ErrClosed) {
				failed[i] = fmt.Errorf("answer at %s: %w", l.addr(), err)
			}
		})
	}
	<-ctx.Done()
	_ = s.Close() // no error of a UDP socket's end matters
	readers.Wait()
	return errors.Join(failed...)
}

// Close closes the sockets; a Serve under way returns.
func (s *STUNServer) Close() error {
	var errs []error
	for _, l := range s.listeners {
		errs = append(errs, l.conn.Close())
	}
	for _, a := range s.alternate {
		errs = append(errs, a.conn.Close())
	}
	return errors.Join(errs...)
}

// answer reads and answers the requests to one socket until reading fails.
func (s *STUNServer) answer(l stunListener) error {
	buf := make([]byte, stunMaxRequest)
	oob := make([]byte, 128) // for one pktinfo message
	for {
		n, from, err := l.read(buf, oob)
		if err != nil {
			return err
		}
		v := s.decide(l, buf[:n], from)
		s.outcomes[v.outcome].Add(1)
		if v.observation != nil {
			s.observe(*v.observation)
		}
		if v.response == nil {
			continue
		}
		socket := l.stunSocket
		if v.fromAlternate {
			socket = l.alternate
		}
		if err := socket.write(v.response, from); err != nil {
			s.sendFailures.Add(1)
			s.log.Debug("STUN response not sent", "to", from.src, "err", err)
			continue
		}
		s.responses.Add(1)
	}
}

// decide is the limiter before the answerer: over the limit no work is done.
func (s *STUNServer) decide(l stunListener, raw []byte, from stunArrival) stunVerdict {
	now := time.Now()
	s.mu.Lock()
	allowed := s.limiter.allow(from.src.Addr(), now)
	s.mu.Unlock()
	if !allowed {
		return stunVerdict{outcome: stunRateLimited}
	}
	v := s.answerer.handle(stunRequest{
		raw: raw, src: from.src, local: from.local, alternatePort: l.alternate.addr().Port(), at: now,
	})
	if v.outcome == stunUnauthorised {
		s.log.Debug("STUN request with a wrong credential", "from", from.src)
	}
	return v
}
