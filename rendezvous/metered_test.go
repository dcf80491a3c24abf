package rendezvous

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"github.com/bodkin-net/bodkin/rendezvous/enrol"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

// oneConn is a listener for a single connection.
type oneConn chan net.Conn

func (l oneConn) Accept() (net.Conn, error) {
	c, ok := <-l
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (l oneConn) Close() error   { return nil }
func (l oneConn) Addr() net.Addr { return &net.UnixAddr{} }

// TestPings: a session is pinged every 25 s, one that somebody pays for every two
// minutes; neither is taken for dead between two of them.
func TestPings(t *testing.T) {
	for _, tt := range []struct {
		name    string
		metered bool
		want    int // in ten minutes
	}{{"as usual", false, 25}, {"metered", true, 6}} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log := slog.New(slog.DiscardHandler)
				h := newHub(log, newCoordinator(rand.New(rand.NewPCG(1, 2))), newRecorder(nil, log), newMetrics(), "store")
				h.mayConnect = func(wire.NodeName) bool { return true }
				h.admit = func(time.Time, enrol.Presented) (store.Admission, error) { return store.Admission{}, nil }
				h.revocations = func() []byte { return nil }
				ctx, cancel := context.WithCancel(t.Context())
				go h.run(ctx)
				here, there := net.Pipe()
				listener := make(oneConn, 1)
				listener <- there
				served := make(chan struct{})
				srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					defer close(served)
					conn, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
					if err != nil {
						t.Error(err)
						return
					}
					s := newSession(conn, edge1, log, time.Now())
					s.identity = endpointOf(edge1).ID
					s.serve(ctx, h)
				})}
				go func() { _ = srv.Serve(listener) }()
				dialer := websocket.Dialer{NetDialContext: func(context.Context, string, string) (net.Conn, error) { return here, nil }}
				//nolint:bodyclose // gorilla: the body of a handshake needs no closing
				conn, _, err := dialer.Dial("ws://rendezvous/", nil)
				if err != nil {
					t.Fatal(err)
				}
				pings := 0
				answer := conn.PingHandler()
				conn.SetPingHandler(func(data string) error { pings++; return answer(data) })
				b, err := wire.Encode(&wire.Hello{Endpoint: endpointOf(edge1), Candidates: []wire.Candidate{}, Metered: tt.metered})
				if err != nil {
					t.Fatal(err)
				}
				if err := conn.WriteMessage(websocket.TextMessage, b); err != nil {
					t.Fatal(err)
				}
				if err := conn.SetReadDeadline(time.Now().Add(10*time.Minute + time.Second)); err != nil {
					t.Fatal(err)
				}
				for err == nil {
					_, _, err = conn.ReadMessage()
				}
				if !strings.Contains(err.Error(), "i/o timeout") {
					t.Errorf("the session ended: %v", err)
				}
				if pings != tt.want {
					t.Errorf("%d pings in ten minutes, want %d", pings, tt.want)
				}
				_ = conn.Close()
				<-served
				close(listener)
				_ = srv.Close()
				cancel()
				<-h.done
			})
		})
	}
}

// TestPeersAreMetered: who pays for its bytes saves them only if its peers spare
// it, too.
func TestPeersAreMetered(t *testing.T) {
	m := newMachine(t, community("all", edge1, edge2))
	m.hello(edge1)
	hello := &wire.Hello{Endpoint: endpointOf(edge2), Metered: true}
	metered := map[wire.NodeName]bool{}
	for _, a := range m.Online(m.now, hello, 0) {
		if s, ok := a.(send); ok {
			if list, ok := s.msg.(*wire.Peers); ok {
				for _, p := range list.Peers {
					metered[p.Endpoint.Name] = p.Metered
				}
			}
		}
	}
	if !metered[edge2] || metered[edge1] {
		t.Errorf("metered peers %v; want only %s", metered, edge2)
	}
}
