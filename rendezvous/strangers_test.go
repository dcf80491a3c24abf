package rendezvous

import (
	"bufio"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// Who keeps the CA's key in the CA's file does not hand it out.
func TestCAFileWithItsKey(t *testing.T) {
	s := newSite(t)
	text, err := os.ReadFile(s.config.CA)
	if err != nil {
		t.Fatal(err)
	}
	key := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("secret")}))
	write(t, s.config.CA, key+"# ours\n"+string(text)+key)
	a := s.start().ask("GET", wire.PathCA, nil)
	if a.status != http.StatusOK || string(a.body) != string(text) {
		t.Errorf("%d:\n%s", a.status, a.body)
	}
}

// pipes is a listener whose connections are in memory, so that time may be a test's.
type pipes struct{ accept, closed chan net.Conn }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.accept:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { close(p.closed); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// serveInMemory has a handler served as all listeners are.
func serveInMemory(t *testing.T, h http.Handler) (dial func() net.Conn) {
	t.Helper()
	l := &pipes{make(chan net.Conn), make(chan net.Conn)}
	ended := make(chan error, 1)
	go func() { ended <- serveHTTP(t.Context(), l, h, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return func() net.Conn {
		ours, theirs := net.Pipe()
		l.accept <- theirs
		return ours
	}
}

// A stranger who is slow at what does not need a credential holds a connection for
// some time, and not for ever.
func TestSlowStrangers(t *testing.T) {
	large := strings.Repeat("x", 1<<20)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/ca", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "CA") })
	mux.HandleFunc("GET /v1/crl", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, large) })
	for name, said := range map[string]string{
		"nothing":                     "",
		"half a header":               "GET /v1/ca HTTP/1.1\r\nHost:",
		"a body that does not come":   "GET /v1/ca HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n",
		"one for what is not there":   "POST /v1/nonesuch HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n",
		"an answer that is not read":  "GET /v1/crl HTTP/1.1\r\nHost: a\r\n\r\n",
		"a header that does not end":  "GET /v1/ca HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 2*maxHeader),
		"nothing after a good answer": "GET /v1/ca HTTP/1.1\r\nHost: a\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				conn := serveInMemory(t, mux)()
				defer conn.Close()
				began := time.Now()
				_ = conn.SetDeadline(began.Add(time.Hour))
				if _, err := io.WriteString(conn, said); err != nil {
					return // refused at once
				}
				if strings.Contains(name, "not read") {
					time.Sleep(answerTime + time.Minute)
					began = time.Now()
				}
				if n, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) > idleTimeout+requestTimeout || n > int64(len(large)) {
					t.Errorf("open for %s, read %d bytes, %v", time.Since(began), n, err)
				}
			})
		})
	}
}

// A stream of events outlives what bounds other requests.
func TestStreamIsNotCutShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &streamer{log: newEventLog(nil), pause: streamPause}
		conn := serveInMemory(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s.stream(w, r, eventFilter{}, 0, func() bool { return true })
		}))()
		defer s.log.close()
		defer conn.Close()
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		for lines := bufio.NewScanner(conn); time.Since(began) < 2*answerTime; {
			if !lines.Scan() {
				t.Fatalf("ended after %s: %v", time.Since(began), lines.Err())
			}
		}
	})
}
