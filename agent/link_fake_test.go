package agent

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"

	"github.com/gorilla/websocket"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// fakeRendezvous is a TLS websocket server whose side of each session is a
// function of the test.
type fakeRendezvous struct {
	*testing.T
	server   http.Server
	sessions chan *websocket.Conn
	upgrader websocket.Upgrader
	running  sync.WaitGroup
}

// serve starts the server; stop must be called.
func serve(t *testing.T, listener net.Listener, conf *tls.Config) *fakeRendezvous {
	r := &fakeRendezvous{T: t, sessions: make(chan *websocket.Conn, 16)}
	r.server.Handler = r
	r.server.ErrorLog = slog.NewLogLogger(discardLog.Handler(), slog.LevelError)
	r.running.Go(func() { _ = r.server.Serve(tls.NewListener(listener, conf)) })
	return r
}

func (r *fakeRendezvous) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.URL.Path != "/v1/agent" || req.TLS.PeerCertificates[0].Subject.CommonName != "beijing.edge1" {
		r.Errorf("request for %s by %v", req.URL.Path, req.TLS.PeerCertificates[0].Subject)
	}
	conn, err := r.upgrader.Upgrade(w, req, nil)
	if err != nil {
		r.Errorf("upgrade: %v", err)
		return
	}
	r.sessions <- conn
}

func (r *fakeRendezvous) stop() {
	r.server.Close()
	for {
		select {
		case conn := <-r.sessions:
			conn.Close()
		default:
			r.running.Wait()
			return
		}
	}
}

func sendMessage(t *testing.T, conn *websocket.Conn, m wire.Message) {
	t.Helper()
	b, err := wire.Encode(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.WriteMessage(websocket.TextMessage, b); err != nil {
		t.Error(err)
	}
}

// memoryListener is a network of one server, for bubbles of fake time.
type memoryListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
	refuse func() error // called for each dial
}

func newMemoryListener() *memoryListener {
	return &memoryListener{conns: make(chan net.Conn), closed: make(chan struct{}), refuse: func() error { return nil }}
}

// memoryConn looks like a TCP connection to the server.
type memoryConn struct{ net.Conn }

func (memoryConn) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(serverAddr, 7443))
}

func (l *memoryListener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	if err := l.refuse(); err != nil {
		return nil, err
	}
	client, server := net.Pipe()
	select {
	case l.conns <- server:
		return memoryConn{client}, nil
	case <-l.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *memoryListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *memoryListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *memoryListener) Addr() net.Addr { return memoryConn{}.RemoteAddr() }
