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
	// Listen is where to be asked: the mapping behaviour of a NAT (RFC 5780
	// Section 4.3) shows when a client asks at two ports. Port 0 is any port.
	// Where the two are different addresses of one family, neither of them
	// 0.0.0.0 or [::], clients may ask for an answer from the other one.
	Listen [2]netip.AddrPort
	// Alternates are other ports on those addresses, in the same order, which
	// answer for them (CHANGE-REQUEST, RFC 5780 Section 7.2). Port 0 is any port.
	Alternates [2]uint16
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

// STUNServer answers STUN Binding requests (RFC 8489) on two ports and on an
// alternate of each, with what a client needs to learn the behaviour of its NAT
// (RFC 5780): CHANGE-REQUEST, RESPONSE-ORIGIN, OTHER-ADDRESS, and RESPONSE-PORT
// for authenticated clients.
//
// Stats, Addrs and Close may be called from any goroutine.
type STUNServer struct {
	log      *slog.Logger
	observe  func(Observation)
	answerer stunAnswerer
	sockets  []*stunSocket // in the order of stunPlaces
	places   stunPlaces

	mu      sync.Mutex
	limiter *stunLimiter // under mu

	outcomes     [stunOutcomes]atomic.Uint64
	responses    atomic.Uint64
	sendFailures atomic.Uint64
}

// ListenSTUN opens the sockets. The caller then calls Serve, or Close.
func ListenSTUN(cfg STUNConfig) (*STUNServer, error) {
	s := &STUNServer{
		log:      cfg.Log,
		observe:  cfg.Observe,
		answerer: stunAnswerer{credential: cfg.Credential},
		limiter:  newSTUNLimiter(stunRate, stunBurst, stunSources),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.observe == nil {
		s.observe = func(Observation) {}
	}
	for i, at := range cfg.places() {
		socket, err := openSTUNSocket(at)
		if err != nil {
			_ = s.Close()
			return nil, err
		}
		s.sockets = append(s.sockets, socket)
		s.places[i] = socket.addr()
	}
	return s, nil
}

// places are the addresses to bind.
func (c STUNConfig) places() stunPlaces {
	p := stunPlaces{c.Listen[0], c.Listen[1]}
	for i, port := range c.Alternates {
		p[i|stunAlternate] = netip.AddrPortFrom(c.Listen[i].Addr(), port)
	}
	return p
}

// Addrs returns where the server listens: the two of STUNConfig.Listen, then
// the alternate of each.
func (s *STUNServer) Addrs() [4]netip.AddrPort { return s.places }

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
	failed := make([]error, len(s.sockets))
	for i := range s.sockets {
		readers.Go(func() {
			defer cancel() // a part of the ports is no service
			if err := s.answer(i); !errors.Is(err, net.ErrClosed) {
				failed[i] = fmt.Errorf("answer at %s: %w", s.places[i], err)
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
	for _, socket := range s.sockets {
		errs = append(errs, socket.conn.Close())
	}
	return errors.Join(errs...)
}

// answer reads and answers the requests to one socket until reading fails.
func (s *STUNServer) answer(socket int) error {
	buf := make([]byte, stunMaxRequest)
	oob := make([]byte, 128) // for one pktinfo message
	for {
		n, from, err := s.sockets[socket].read(buf, oob)
		if err != nil {
			return err
		}
		v := s.decide(socket, buf[:n], from)
		s.outcomes[v.outcome].Add(1)
		if v.observation != nil {
			s.observe(*v.observation)
		}
		if v.response == nil {
			continue
		}
		if err := s.sockets[v.via].write(v.response, v.to, from.control); err != nil {
			s.sendFailures.Add(1)
			s.log.Debug("STUN response not sent", "to", v.to, "err", err)
			continue
		}
		s.responses.Add(1)
	}
}

// decide is the limiter before the answerer: over the limit no work is done.
func (s *STUNServer) decide(socket int, raw []byte, from stunArrival) stunVerdict {
	now := time.Now()
	s.mu.Lock()
	allowed := s.limiter.allow(from.src.Addr(), now)
	s.mu.Unlock()
	if !allowed {
		return stunVerdict{outcome: stunRateLimited}
	}
	v := s.answerer.handle(stunRequest{
		raw: raw, src: from.src, local: from.local, places: s.places, socket: socket, at: now,
	})
	if v.outcome == stunUnauthorised {
		s.log.Debug("STUN request with a wrong credential", "from", from.src)
	}
	return v
}
