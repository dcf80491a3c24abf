package rendezvous

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"github.com/bodkin-net/bodkin/rendezvous/enrol"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// Timing of a session.
const (
	// pingInterval keeps the TCP mapping of NATs and proxies alive, of which
	// the impatient forget after 30 s; its pong measures the round trip.
	pingInterval = 25 * time.Second
	// silentPings is how many ping intervals a session may be silent: two pings
	// lost and one late.
	silentPings = 3
	// pongTimeout bounds a round trip that is believed.
	pongTimeout = silentPings * pingInterval
	// meteredPingInterval is for who pays for each byte. NATs keep an idle TCP
	// connection for two hours and longer (RFC 5382, REQ-5); those that do not
	// cost the agent a new session.
	meteredPingInterval = 2 * time.Minute
	// helloTimeout bounds how long a connection may hold a session without
	// saying who it is.
	helloTimeout = 10 * time.Second
	// writeTimeout bounds one frame on a stalled connection.
	writeTimeout = 10 * time.Second
	// closeTimeout is how long an agent has to answer the close frame. To
	// close the connection with its data still unread would reset it, and the
	// reason might never arrive.
	closeTimeout = 2 * time.Second
	// outboxSize bounds what a slow agent may leave unread. Peers is complete
	// each time, so a new session loses nothing.
	outboxSize = 256
)

// session is one agent's websocket. serve reads, one goroutine writes; others
// only queue into the outbox.
type session struct {
	node wire.NodeName
	// username and password are the session's STUN credential.
	username, password string
	presented          enrol.Presented
	identity           string
	fingerprint        string
	// answers: the agent takes Ask and Revocations. It belongs to the hub's goroutine.
	answers bool
	// questions wait for an answer.
	questions questions
	since     time.Time
	conn      *websocket.Conn
	log       *slog.Logger

	// observations are the STUN requests seen before the hello, observed tells
	// that one was taken in; both belong to the hub's goroutine.
	observations []Observation
	observed     bool

	out  chan wire.Message
	once sync.Once
	// pace tells the writer to ping at another interval.
	pace chan time.Duration
	// bye is written last; closing is closed when it is set, ended when
	// nothing more can be read.
	bye            *wire.Bye
	closing, ended chan struct{}
}

func newSession(conn *websocket.Conn, node wire.NodeName, log *slog.Logger, now time.Time) *session {
	return &session{
		node: node, username: token(8), password: token(16), since: now,
		conn: conn, log: log, out: make(chan wire.Message, outboxSize), pace: make(chan time.Duration, 1),
		closing: make(chan struct{}), ended: make(chan struct{}),
	}
}

func token(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails since Go 1.24
	return hex.EncodeToString(b)
}

// send queues m, which nobody may change any more: the writer encodes it, since
// the hub's time is everybody's. A full outbox ends the session: the agent is not
// reading.
func (s *session) send(m wire.Message) {
	select {
	case s.out <- m:
	default:
		s.close(&wire.Bye{Reason: fmt.Sprintf("%d messages unread: the connection is too slow", outboxSize)})
	}
}

// close ends the session with a reason; the first reason counts.
func (s *session) close(bye *wire.Bye) {
	s.once.Do(func() {
		s.bye = bye
		close(s.closing)
	})
}

// write is the only writer of the connection. It ends when the session is
// closed, and closes the connection, which ends the reader.
func (s *session) write() {
	defer s.conn.Close()
	ping := time.NewTicker(pingInterval)
	defer ping.Stop()
	if s.ping() != nil {
		return
	}
	for {
		select {
		case m := <-s.out:
			if s.frame(m) != nil {
				return
			}
		case <-ping.C:
			if s.ping() != nil {
				return
			}
		case interval := <-s.pace:
			ping.Reset(interval)
		case <-s.closing:
			s.drain()
			bye := &wire.Bye{Reason: wire.Clip(s.bye.Reason), Final: s.bye.Final}
			if bye.Reason != "" {
				_ = s.frame(bye)
			}
			_ = s.conn.WriteControl(websocket.CloseMessage,
				websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(writeTimeout))
			select {
			case <-s.ended:
			case <-time.After(closeTimeout):
			}
			return
		}
	}
}

// drain writes what was queued before the session was closed.
func (s *session) drain() {
	for {
		select {
		case m := <-s.out:
			if s.frame(m) != nil {
				return
			}
		default:
			return
		}
	}
}

// frame writes one message. One that cannot be encoded ends the session in words.
func (s *session) frame(m wire.Message) error {
	b, err := wire.Encode(m)
	if err != nil {
		s.close(&wire.Bye{Reason: err.Error()})
		return nil
	}
	if err := s.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	return s.conn.WriteMessage(websocket.TextMessage, b)
}

// ping carries the time it was sent, by our monotonic clock; the pong brings
// it back.
func (s *session) ping() error {
	b := binary.BigEndian.AppendUint64(nil, uint64(time.Since(s.since)))
	return s.conn.WriteControl(websocket.PingMessage, b, time.Now().Add(writeTimeout))
}

// serve runs the session until its connection ends or ctx is done.
func (s *session) serve(ctx context.Context, h *hub) {
	var wg sync.WaitGroup
	wg.Go(s.write)
	stop := context.AfterFunc(ctx, func() { s.close(&wire.Bye{Reason: "the rendezvous is stopping"}) })
	err := s.read(ctx, h)
	stop()
	h.leave(s)
	s.close(&wire.Bye{Reason: sayable(err)})
	s.discard()
	wg.Wait()
	s.log.Info("session ended", "reason", s.bye.Reason, "err", err)
}

// receive reads a message, or as much of it as Decode needs to refuse it. The
// connection's own limit would answer with a close frame, and no reason could
// follow that.
func (s *session) receive() ([]byte, error) {
	_, r, err := s.conn.NextReader()
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(r, wire.MaxFrame+1))
}

// discard reads what the agent still sends until it, or write, closes the
// connection.
func (s *session) discard() {
	defer close(s.ended)
	if s.conn.SetReadDeadline(time.Now().Add(closeTimeout)) == nil {
		_, _ = io.Copy(io.Discard, s.conn.NetConn())
	}
}

// sayable is the reason told to the agent: a protocol error in full, nothing
// for a connection that is gone anyway.
func sayable(err error) string {
	var closed *websocket.CloseError
	var netErr net.Error
	if err == nil || errors.As(err, &closed) || errors.As(err, &netErr) || errors.Is(err, net.ErrClosed) {
		return ""
	}
	return err.Error()
}

// pause waits, and reports whether the session goes on.
func (s *session) pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-s.closing:
	case <-ctx.Done():
	}
	return false
}

// read is the only reader of the connection.
func (s *session) read(ctx context.Context, h *hub) error {
	_ = s.conn.SetReadDeadline(time.Now().Add(helloTimeout))
	var delay time.Duration
	var rtts [3]time.Duration
	pongs := 0
	joined := false
	silence := pongTimeout
	s.conn.SetPongHandler(func(data string) error {
		if len(data) != 8 {
			return nil
		}
		rtt := time.Since(s.since) - time.Duration(binary.BigEndian.Uint64([]byte(data)))
		if rtt < 0 || rtt > pongTimeout {
			return nil
		}
		// The least of the last few: one pong that was held up says nothing
		// of the path.
		rtts[pongs%len(rtts)] = rtt
		pongs++
		delay = slices.Min(rtts[:min(pongs, len(rtts))]) / 2
		if joined {
			h.delay(s, delay)
			return s.conn.SetReadDeadline(time.Now().Add(silence))
		}
		return nil
	})
	h.welcome(s)
	var pace pace
	for {
		b, err := s.receive()
		if err != nil {
			return err
		}
		m, err := wire.Decode(b)
		if err != nil {
			return err
		}
		_ = s.conn.SetReadDeadline(time.Now().Add(silence))
		hello, isHello := m.(*wire.Hello)
		switch {
		case isHello == joined:
			return fmt.Errorf("%s out of order: hello comes first and once", m.Type())
		case isHello:
			if err := h.join(ctx, s, hello, delay); err != nil {
				s.close(&wire.Bye{Reason: err.Error(), Final: errors.Is(err, errRefused)})
				return err
			}
			joined = true
			if hello.Metered {
				silence = silentPings * meteredPingInterval
				s.pace <- meteredPingInterval // its only use
				_ = s.conn.SetReadDeadline(time.Now().Add(silence))
			}
		default:
			if wait := pace.take(time.Now(), costOf(m)); !s.pause(ctx, wait) {
				continue // to what the connection's end gives
			}
			if err := h.receive(ctx, s, m); err != nil {
				return err
			}
		}
	}
}
