package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// Timing of the link to the rendezvous.
const (
	// The pause before a dial is drawn from the whole of [0, BackOff): an eighth
	// of the outage so far, within these bounds. So a thousand agents that lost
	// the rendezvous at one moment are back within an eighth of the time it was
	// gone, and spread over all of that.
	reconnectMin   = 500 * time.Millisecond
	reconnectMax   = 30 * time.Second
	reconnectShare = 8
	// linkSettled is how long a session must have lived for the outage before
	// it to be over: a rendezvous that dies again at each start is still away.
	linkSettled = 30 * time.Second
	dialTimeout = 10 * time.Second
	// silenceTimeout: the rendezvous pings every 25 s; three missed pings are
	// a dead path. To a node whose bytes somebody pays for it pings every two
	// minutes.
	silenceTimeout        = 80 * time.Second
	meteredSilenceTimeout = 365 * time.Second
	linkWriteTimeout      = 10 * time.Second
	// closeTimeout is for the close frame when a session is ended from here; a
	// connection that is stalled does not hold up the end for longer.
	closeTimeout = time.Second
	// linkOutbox bounds what waits for a stalled connection: above what a node
	// with a thousand peers has to say at one moment. A new session starts with
	// everything that counts.
	linkOutbox = 2048
)

// linkEvent is what the link tells the daemon: exactly one field is set.
type linkEvent struct {
	up      *linkUp
	message wire.Message
	down    error
}

// linkUp opens a session.
type linkUp struct {
	welcome *wire.Welcome
	// server is the rendezvous' address as dialled: the STUN service is there
	// too.
	server netip.Addr
	send   func(wire.Message)
	// restart ends the session, for a new one to begin.
	restart func(why error)
}

// link keeps one session to the rendezvous, for as long as run runs. check, redial
// and bytes may be called from any goroutine.
type link struct {
	id     *identity
	dial   func(ctx context.Context, network, addr string) (net.Conn, error)
	log    *slog.Logger
	events chan<- linkEvent
	// metered is Config.Metered, of sessions from now on.
	metered atomic.Bool
	// stunAnswers asks a STUN service over UDP, to tell a firewall from a
	// rendezvous that is not there; nil never asks.
	stunAnswers func(ctx context.Context, server netip.AddrPort) bool

	checks, redials chan struct{} // of capacity 1
	meter           linkMeter

	// stun is the STUN service of the last session, run's own.
	stun netip.AddrPort
}

func newLink(cfg Config, id *identity, log *slog.Logger, events chan<- linkEvent) *link {
	l := &link{
		id: id, dial: outsideDialer(cfg.Mark, id.endpoint.Subnets).DialContext, log: log, events: events,
		stunAnswers: outsideSTUN(cfg.Mark, id.endpoint.Subnets), checks: make(chan struct{}, 1), redials: make(chan struct{}, 1),
	}
	l.metered.Store(cfg.Metered)
	return l
}

// bytes is how many IP bytes all sessions have cost so far, in both directions.
func (l *link) bytes() uint64 { return l.meter.bytes() }

// BackOff is the longest pause before the next dial, after an outage of that
// length so far.
func BackOff(outage time.Duration, refused bool) time.Duration {
	if refused {
		return reconnectMax
	}
	return min(max(outage/reconnectShare, reconnectMin), reconnectMax)
}

// run dials, serves, and dials again until ctx is done.
func (l *link) run(ctx context.Context) {
	lost := time.Now()
	for ctx.Err() == nil {
		started := time.Now()
		err := l.session(ctx)
		if ctx.Err() != nil {
			return
		}
		l.emit(ctx, linkEvent{down: err})
		now := time.Now()
		if now.Sub(started) > linkSettled {
			lost = now
		}
		if errors.Is(err, errChecked) {
			l.log.Warn("rendezvous not connected", "err", err)
		} else {
			pause := rand.N(pauseAfter(err, now.Sub(lost)))
			l.log.Warn("rendezvous not connected", "err", err, "retry", pause.Round(time.Millisecond))
			if !l.pause(ctx, pause) {
				continue
			}
		}
		// A network that changes all the time does not have us dial all the time.
		sleep(ctx, time.Until(started.Add(reconnectMin)))
	}
}

// pauseAfter is the longest pause before the next dial. Whom the rendezvous does not
// let in waits until it does, as long as that says: an operator has to approve the
// node, or to let it join anew.
func pauseAfter(err error, outage time.Duration) time.Duration {
	refused, ok := errors.AsType[*RefusedError](err)
	notIn := ok && (refused.Status == http.StatusForbidden || refused.Status == http.StatusUnauthorized)
	if notIn && refused.RetryAfter > 0 {
		return min(max(refused.RetryAfter, reconnectMin), reconnectMax)
	}
	bye, ok := errors.AsType[*byeError](err)
	return BackOff(outage, notIn || ok && bye.final)
}

func (l *link) emit(ctx context.Context, e linkEvent) {
	select {
	case l.events <- e:
	case <-ctx.Done():
	}
}

// byeError is the rendezvous' own reason for ending the session.
type byeError struct {
	reason string
	final  bool
}

func (e *byeError) Error() string { return "rendezvous: " + e.reason }

// connect dials once, unless the network changes meanwhile: packets of the dial may
// leave from an address that is gone.
func (l *link) connect(ctx context.Context) (*websocket.Conn, error) {
	drain(l.checks)
	drain(l.redials)
	ctx, cancel := context.WithCancelCause(ctx)
	var watching sync.WaitGroup
	watching.Go(func() {
		select {
		case <-l.redials:
			cancel(errChecked)
		case <-ctx.Done():
		}
	})
	defer watching.Wait()
	defer cancel(nil)

	var failed error // of TCP, not of what came after
	dialer := websocket.Dialer{
		NetDialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			var c net.Conn
			if c, failed = l.dial(ctx, network, addr); failed != nil {
				return nil, failed
			}
			return l.meter.watch(c), nil
		},
		TLSClientConfig: l.id.credentials().tls, HandshakeTimeout: dialTimeout,
	}
	conn, resp, err := dialer.DialContext(ctx, l.id.url, nil) //nolint:bodyclose // gorilla has read it
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errChecked):
		if err == nil {
			conn.Close()
		}
		return nil, cause
	case err == nil:
		return conn, nil
	case failed != nil:
		return nil, l.explain(ctx, failed)
	case resp != nil:
		body, _ := io.ReadAll(resp.Body) // gorilla keeps the beginning
		return nil, refusal(resp, body)
	}
	return nil, fmt.Errorf("%s: %w", l.id.url, err)
}

// session dials once and serves until the connection ends.
func (l *link) session(ctx context.Context) error {
	conn, err := l.connect(ctx)
	if err != nil {
		return err
	}
	remote, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok {
		conn.Close()
		return fmt.Errorf("%s: no TCP connection", l.id.url)
	}
	out := make(chan []byte, linkOutbox)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	written := make(chan struct{})
	wg.Go(func() {
		defer close(written)
		l.write(ctx, conn, out)
	})
	wg.Go(func() {
		<-ctx.Done()
		select {
		case <-written:
		case <-time.After(closeTimeout):
			conn.Close() // a write under way does not see ctx end
		}
	})
	heard := make(chan struct{}, 1)
	wg.Go(func() { l.guard(ctx, conn, heard, cancel) })
	defer wg.Wait()
	defer cancel(nil)

	send := func(m wire.Message) {
		b, err := wire.Encode(m)
		if err != nil {
			l.log.Error("message not sent", "type", m.Type(), "err", err)
			return
		}
		select {
		case out <- b:
		default:
			cancel(errors.New("the connection to the rendezvous is stalled"))
		}
	}
	err = l.read(ctx, conn, heard, linkUp{server: remote.AddrPort().Addr().Unmap(), send: send, restart: cancel})
	if cause := context.Cause(ctx); cause != nil && ctx.Err() != nil {
		return cause
	}
	return err
}

// write is the only writer; its end closes the connection, which ends read.
func (l *link) write(ctx context.Context, conn *websocket.Conn, out <-chan []byte) {
	defer conn.Close()
	for {
		select {
		case b := <-out:
			if conn.SetWriteDeadline(time.Now().Add(linkWriteTimeout)) != nil ||
				conn.WriteMessage(websocket.TextMessage, b) != nil {
				return
			}
		case <-ctx.Done():
			_ = conn.WriteControl(websocket.CloseMessage,
				websocket.FormatCloseMessage(websocket.CloseGoingAway, ""), time.Now().Add(closeTimeout))
			return
		}
	}
}

// read is the only reader.
func (l *link) read(ctx context.Context, conn *websocket.Conn, heard chan<- struct{}, up linkUp) error {
	conn.SetReadLimit(wire.MaxFrame)
	silence := silenceTimeout
	if l.metered.Load() {
		silence = meteredSilenceTimeout
	}
	alive := func() {
		_ = conn.SetReadDeadline(time.Now().Add(silence))
		select {
		case heard <- struct{}{}:
		default:
		}
	}
	alive()
	conn.SetPingHandler(func(data string) error {
		alive()
		return conn.WriteControl(websocket.PongMessage, []byte(data), time.Now().Add(linkWriteTimeout))
	})
	conn.SetPongHandler(func(string) error {
		alive()
		return nil
	})
	for {
		_, b, err := conn.ReadMessage()
		if err != nil {
			return err
		}
		alive()
		m, err := wire.Decode(b)
		if err != nil {
			return err
		}
		switch m := m.(type) {
		case *wire.Bye:
			return &byeError{reason: m.Reason, final: m.Final}
		case *wire.Welcome:
			if up.welcome != nil {
				return errors.New("rendezvous: a second welcome")
			}
			up.welcome = m
			if len(m.STUNPorts) > 0 {
				l.stun = netip.AddrPortFrom(up.server, m.STUNPorts[0])
			}
			l.emit(ctx, linkEvent{up: &up})
		default:
			if up.welcome == nil {
				return fmt.Errorf("rendezvous: %s before welcome", m.Type())
			}
			l.emit(ctx, linkEvent{message: m})
		}
	}
}
