package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// Timing of the link to the rendezvous.
const (
	// reconnectMin doubles up to reconnectMax, each with full jitter, so that
	// a thousand agents do not come back at one moment.
	reconnectMin = 500 * time.Millisecond
	reconnectMax = 30 * time.Second
	// linkSettled is how long a session must have lived for the next
	// reconnect to start at reconnectMin again.
	linkSettled = 30 * time.Second
	dialTimeout = 10 * time.Second
	// silenceTimeout: the rendezvous pings every 25 s; three missed pings are
	// a dead path.
	silenceTimeout   = 80 * time.Second
	linkWriteTimeout = 10 * time.Second
	// closeTimeout is for the close frame when a session is ended from here; a
	// connection that is stalled does not hold up the end for longer.
	closeTimeout = time.Second
	// linkOutbox bounds what waits for a stalled connection; a new session
	// starts with everything that counts.
	linkOutbox = 256
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

// link keeps one session to the rendezvous, for as long as run runs.
type link struct {
	id     *identity
	dial   func(ctx context.Context, network, addr string) (net.Conn, error)
	log    *slog.Logger
	events chan<- linkEvent
}

// run dials, serves, and dials again until ctx is done.
func (l *link) run(ctx context.Context) {
	wait := reconnectMin
	for ctx.Err() == nil {
		started := time.Now()
		err := l.session(ctx)
		if ctx.Err() != nil {
			return
		}
		l.emit(ctx, linkEvent{down: err})
		if time.Since(started) > linkSettled {
			wait = reconnectMin
		}
		var bye *byeError
		if errors.As(err, &bye) && bye.final {
			wait = reconnectMax
		}
		pause := rand.N(wait)
		l.log.Warn("rendezvous not connected", "err", err, "retry", pause.Round(time.Millisecond))
		wait = min(2*wait, reconnectMax)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
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

// session dials once and serves until the connection ends.
func (l *link) session(ctx context.Context) error {
	dialer := websocket.Dialer{NetDialContext: l.dial, TLSClientConfig: l.id.tls, HandshakeTimeout: dialTimeout}
	conn, resp, err := dialer.DialContext(ctx, l.id.url, nil) //nolint:bodyclose // gorilla has read it
	if err != nil {
		if resp != nil {
			return fmt.Errorf("%s: %w (%s)", l.id.url, err, resp.Status)
		}
		return fmt.Errorf("%s: %w", l.id.url, err)
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
	err = l.read(ctx, conn, linkUp{server: remote.AddrPort().Addr().Unmap(), send: send, restart: cancel})
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
func (l *link) read(ctx context.Context, conn *websocket.Conn, up linkUp) error {
	conn.SetReadLimit(wire.MaxFrame)
	alive := func() { _ = conn.SetReadDeadline(time.Now().Add(silenceTimeout)) }
	alive()
	conn.SetPingHandler(func(data string) error {
		alive()
		return conn.WriteControl(websocket.PongMessage, []byte(data), time.Now().Add(linkWriteTimeout))
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
			l.emit(ctx, linkEvent{up: &up})
		default:
			if up.welcome == nil {
				return fmt.Errorf("rendezvous: %s before welcome", m.Type())
			}
			l.emit(ctx, linkEvent{message: m})
		}
	}
}
