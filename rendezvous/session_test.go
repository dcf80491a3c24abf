package rendezvous

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// newUnconnected is a session without a connection: its outbox is not emptied.
func newUnconnected() *session {
	return newSession(nil, edge1, slog.New(slog.DiscardHandler), time.Now())
}

func TestFullOutboxEndsTheSession(t *testing.T) {
	s := newUnconnected()
	for range outboxSize {
		s.send(&wire.Bye{})
	}
	select {
	case <-s.closing:
		t.Fatalf("closed with room left: %+v", s.bye)
	default:
	}
	s.send(&wire.Bye{})
	select {
	case <-s.closing:
	default:
		t.Fatal("not closed")
	}
	if want := fmt.Sprint(outboxSize, " messages unread"); !strings.Contains(s.bye.Reason, want) || s.bye.Final {
		t.Errorf("%+v, want %q", s.bye, want)
	}
	s.send(&wire.Bye{}) // goes nowhere, and does not block
}

func TestFirstReasonCounts(t *testing.T) {
	s := newUnconnected()
	first := &wire.Bye{Reason: "first"}
	s.close(first)
	s.close(&wire.Bye{Reason: "second", Final: true})
	if s.bye != first {
		t.Errorf("%+v", s.bye)
	}
}

func TestMessageTooLargeForTheWireEndsTheSession(t *testing.T) {
	s := newUnconnected()
	if err := s.frame(&wire.Bye{Reason: strings.Repeat("x", wire.MaxFrame)}); err != nil {
		t.Errorf("%v: the connection is not at fault", err)
	}
	select {
	case <-s.closing:
	default:
		t.Fatal("not closed")
	}
	if !strings.Contains(s.bye.Reason, wire.ErrTooLarge.Error()) {
		t.Errorf("%+v", s.bye)
	}
}

func TestSayable(t *testing.T) {
	tests := []struct {
		name string
		err  error
		want string
	}{
		{"nothing", nil, ""},
		{"what the agent did", fmt.Errorf("%w %q", wire.ErrType, "hola"), `unknown message type "hola"`},
		{"the agent closed", &websocket.CloseError{Code: websocket.CloseGoingAway}, ""},
		{"wrapped", fmt.Errorf("read: %w", &websocket.CloseError{Code: websocket.CloseAbnormalClosure}), ""},
		{"the connection broke", &net.OpError{Op: "read", Err: io.ErrUnexpectedEOF}, ""},
		{"closed here", net.ErrClosed, ""},
	}
	for _, tt := range tests {
		if got := sayable(tt.err); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// Credentials of two sessions have nothing in common.
func TestSessionCredentials(t *testing.T) {
	a, b := newUnconnected(), newUnconnected()
	if a.username == b.username || a.password == b.password || a.username == a.password || len(a.password) < 22 {
		t.Errorf("%q %q and %q %q", a.username, a.password, b.username, b.password)
	}
}

// The pong measures half the round trip, which becomes the start offset.
func TestPongMeasuresTheDelay(t *testing.T) {
	const lag = 200 * time.Millisecond
	r := newSite(t).start()
	r.apply(community("all", edge1, edge2))
	fast := r.join(edge1)
	fast.expectPeers()
	fast.askSTUN()
	slow := r.connect(edge2)
	slow.conn.SetPingHandler(func(data string) error {
		time.Sleep(lag) // the path's delay
		return slow.conn.WriteControl(websocket.PongMessage, []byte(data), time.Now().Add(testWait))
	})
	slow.welcome = expect[*wire.Welcome](slow) // the ping comes before it
	slow.send(&wire.Hello{Endpoint: endpointOf(edge2), Candidates: []wire.Candidate{}})
	slow.expectPeers(edge1)

	delays := map[wire.NodeName]time.Duration{}
	err := r.server.hub.call(t.Context(), func(time.Time) []action {
		for name, n := range r.server.hub.coordinator.nodes {
			delays[name] = n.delay
		}
		return nil
	})
	if err != nil || delays[edge2] < lag/2 {
		t.Fatalf("delays %v, %v: want %v or more for edge2", delays, err, lag/2)
	}
	slow.askSTUN()
	last := max(delays[edge1], delays[edge2])
	for _, p := range []*peer{fast, slow} {
		if got, want := expect[*wire.Punch](p).StartAfterMs, (last - delays[p.name]).Milliseconds(); got != want {
			t.Errorf("%s starts after %d ms, want %d", p.name, got, want)
		}
	}
}

// Pongs that nobody asked for measure nothing.
func TestForgedPong(t *testing.T) {
	r := newSite(t).start()
	p := r.join(edge1)
	p.expectPeers()
	for _, data := range []string{"", "short", "far too long for a time", "\xff\xff\xff\xff\xff\xff\xff\xff", "\x7f\xff\xff\xff\xff\xff\xff\xff"} {
		if err := p.conn.WriteControl(websocket.PongMessage, []byte(data), time.Now().Add(testWait)); err != nil {
			t.Fatal(err)
		}
	}
	// What is handled shows that the pongs before it were.
	p.send(&wire.Network{Candidates: []wire.Candidate{}, NAT: wire.NAT{Present: true}})
	r.until("pongs read", func(s Snapshot) bool { return nodeIn(s, edge1).NAT.Present })
	err := r.server.hub.call(t.Context(), func(time.Time) []action {
		if d := r.server.hub.coordinator.nodes[edge1].delay; d < 0 || d > pongTimeout {
			t.Errorf("delay %v", d)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestHubCalls(t *testing.T) {
	h := newHub(slog.New(slog.DiscardHandler), nil, nil, newMetrics(), "store")
	nothing := func(time.Time) []action { return nil }
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.call(cancelled, nothing); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that has gone: %v", err)
	}
	close(h.done)
	if err := h.call(t.Context(), nothing); !errors.Is(err, errStopped) {
		t.Errorf("a hub that has ended: %v", err)
	}
}
