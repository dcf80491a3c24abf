package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"github.com/bodkin-net/bodkin/e2e/lab"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

var (
	testWelcome = &wire.Welcome{Node: "beijing.edge1", StoreID: "store", STUNPorts: []uint16{3478, 3479},
		STUNUsername: "u", STUNPassword: "p"}
	// goodbye is what ending a session takes at most: crypto/tls allows itself
	// 5 s for its own close message.
	goodbye    = closeTimeout + 5*time.Second
	serverAddr = netip.MustParseAddr("203.0.113.1")
)

// linkIdentity is edge1's identity and the server's side of TLS, with clocks
// that stand still: a synctest bubble lives in another year than certificates.
func linkIdentity(t *testing.T, url string) (*identity, *tls.Config) {
	t.Helper()
	pki := newPKI(t)
	values := goodConfig(t, pki, t.TempDir())
	values["rendezvous"] = url
	cfg, err := LoadConfig(writeConfig(t, values))
	if err != nil {
		t.Fatal(err)
	}
	id, err := newIdentity(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := pki.Issue("rendezvous", lab.CertOptions{Addrs: []netip.Addr{serverAddr, netip.MustParseAddr("127.0.0.1")}})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(pki.CAPath())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	now := time.Now()
	clock := func() time.Time { return now }
	id.credentials().tls.Time = clock
	return id, &tls.Config{
		Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
		Time: clock,
		// Tickets are written before the client's first request is read, which
		// a pipe without a buffer does not allow.
		SessionTicketsDisabled: true,
	}
}

// startLink runs a link; stop ends it and waits.
func startLink(t *testing.T, id *identity, dial func(context.Context, string, string) (net.Conn, error)) (events <-chan linkEvent, stop func()) {
	ch := make(chan linkEvent)
	return ch, runLink(t, &link{id: id, dial: dial, log: discardLog, events: ch})
}

// runLink runs a link; the function it returns ends it and waits.
func runLink(t *testing.T, l *link) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { l.run(ctx) })
	return func() { cancel(); running.Wait() }
}

// A session as it should be, over TCP: welcome, both directions, a rendezvous
// that dies, the next session, and a goodbye.
func TestLinkSession(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	id, conf := linkIdentity(t, "https://"+listener.Addr().String())
	r := serve(t, listener, conf)
	defer r.stop()
	events, stop := startLink(t, id, new(net.Dialer).DialContext)
	defer stop()

	conn := receive(t, r.sessions, "first session")
	sendMessage(t, conn, testWelcome)
	up := receive(t, events, "welcome").up
	if up == nil || up.welcome.Node != "beijing.edge1" || up.server != netip.MustParseAddr("127.0.0.1") {
		t.Fatalf("first event %+v; want the welcome", up)
	}
	up.send(&wire.Network{})
	_, b, err := conn.ReadMessage()
	if err != nil {
		t.Fatal(err)
	}
	if m, err := wire.Decode(b); err != nil || m.Type() != "network" {
		t.Errorf("the rendezvous got %v, %v", m, err)
	}
	sendMessage(t, conn, &wire.Cancel{Attempt: "a1", Reason: "r"})
	if e := receive(t, events, "message"); e.message == nil || e.message.Type() != "cancel" {
		t.Errorf("event %+v; want the cancel", e)
	}
	conn.Close() // as when the rendezvous is killed
	if e := receive(t, events, "down"); e.down == nil {
		t.Errorf("event %+v; want down", e)
	}

	conn = receive(t, r.sessions, "second session")
	defer conn.Close()
	sendMessage(t, conn, testWelcome)
	if e := receive(t, events, "second welcome"); e.up == nil {
		t.Errorf("event %+v; want up", e)
	}
	stop()
	if _, _, err := conn.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseGoingAway) {
		t.Errorf("the agent's end reads as %v; want a close frame, going away", err)
	}
}

// inBubble runs f in fake time with a link and its rendezvous.
func inBubble(t *testing.T, f func(t *testing.T, l *memoryListener, r *fakeRendezvous, events <-chan linkEvent, stop func())) {
	id, conf := linkIdentity(t, "https://"+serverAddr.String())
	synctest.Test(t, func(t *testing.T) {
		l := newMemoryListener()
		r := serve(t, l, conf)
		events, stop := startLink(t, id, l.dial)
		f(t, l, r, events, stop)
		stop()
		r.stop()
	})
}

// opened welcomes the agent to its next session.
func opened(t *testing.T, r *fakeRendezvous, events <-chan linkEvent) (*websocket.Conn, *linkUp) {
	t.Helper()
	conn := <-r.sessions
	sendMessage(t, conn, testWelcome)
	e := <-events
	if e.up == nil {
		t.Fatalf("event %+v; want up", e)
	}
	return conn, e.up
}

func TestLinkSilence(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *memoryListener, r *fakeRendezvous, events <-chan linkEvent, _ func()) {
		conn, _ := opened(t, r, events)
		defer conn.Close()
		pongs := 0
		conn.SetPongHandler(func(string) error { pongs++; return nil })
		var reader sync.WaitGroup
		reader.Go(func() { _, _, _ = conn.ReadMessage() }) // handles the pongs
		for range 24 {
			time.Sleep(25 * time.Second)
			if err := conn.WriteControl(websocket.PingMessage, nil, time.Now().Add(time.Second)); err != nil {
				t.Fatalf("ping: %v", err)
			}
		}
		silent := time.Now()
		e := <-events
		if took := time.Since(silent); e.down == nil || took < silenceTimeout || took > silenceTimeout+goodbye {
			t.Errorf("event %+v %v after the last ping; want down after %v and a goodbye", e, took, silenceTimeout)
		}
		reader.Wait()
		if pongs != 24 {
			t.Errorf("%d pongs; want 24", pongs)
		}
	})
}

func TestBackOff(t *testing.T) {
	tests := []struct {
		outage  time.Duration
		refused bool
		want    time.Duration
	}{
		{0, false, reconnectMin},
		{4 * time.Second, false, 500 * time.Millisecond},
		{8 * time.Second, false, time.Second},
		{20 * time.Second, false, 2500 * time.Millisecond},
		{4 * time.Minute, false, 30 * time.Second},
		{24 * time.Hour, false, reconnectMax},
		{0, true, reconnectMax},
		{-time.Second, false, reconnectMin},
	}
	for _, tt := range tests {
		if got := BackOff(tt.outage, tt.refused); got != tt.want {
			t.Errorf("BackOff(%v, %v) = %v; want %v", tt.outage, tt.refused, got, tt.want)
		}
	}
}

// The pause grows with the outage, with jitter, and a session that lived long
// starts it over.
func TestLinkBackOff(t *testing.T) {
	inBubble(t, func(t *testing.T, l *memoryListener, r *fakeRendezvous, events <-chan linkEvent, _ func()) {
		conn, _ := opened(t, r, events)
		time.Sleep(linkSettled + time.Second)
		dialled := make(chan time.Time, 1)
		l.refuse = func() error { dialled <- time.Now(); return errors.New("refused") }
		conn.Close()
		lost, last := time.Now(), time.Duration(0)
		const outage = 10 * time.Minute
		for time.Since(lost) < outage {
			if e := <-events; e.down == nil {
				t.Fatalf("event %+v; want down", e)
			}
			down := time.Now()
			last = (<-dialled).Sub(down)
			if limit := BackOff(down.Sub(lost), false) + goodbye; last > limit {
				t.Errorf("retry after %v, %v into the outage; want at most %v", last, down.Sub(lost), limit)
			}
		}
		// What doubles or draws from half the range would come to less.
		if last == 0 {
			t.Error("no pause after ten minutes")
		}
		l.refuse = func() error { return nil }
		<-events // the last refusal
		conn, _ = opened(t, r, events)
		time.Sleep(linkSettled + time.Second)
		conn.Close()
		<-events
		down := time.Now()
		conn, _ = opened(t, r, events)
		if pause := time.Since(down); pause > reconnectMin {
			t.Errorf("reconnected %v after a long session; want at most %v", pause, reconnectMin)
		}
		conn.Close()
		<-events
	})
}

// A rendezvous that dies again at each start is still away.
func TestLinkShortSessionsAreNoEndOfTheOutage(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *memoryListener, r *fakeRendezvous, events <-chan linkEvent, _ func()) {
		var longest time.Duration
		for began := time.Now(); time.Since(began) < time.Hour; {
			conn, _ := opened(t, r, events)
			conn.Close()
			<-events
			down := time.Now()
			next := <-r.sessions
			longest = max(longest, time.Since(down))
			r.sessions <- next
		}
		if longest < 10*reconnectMin || longest > reconnectMax {
			t.Errorf("the longest pause of an hour of short sessions is %v; want more than %v and at most %v", longest, 10*reconnectMin, reconnectMax)
		}
	})
}

// A final Bye is not hammered against, but the agent does come back: the
// operator may mend at the rendezvous what it complained of.
func TestLinkByeFinal(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *memoryListener, r *fakeRendezvous, events <-chan linkEvent, _ func()) {
		var total time.Duration
		const sessions = 10
		for range sessions {
			conn, _ := opened(t, r, events)
			time.Sleep(linkSettled + time.Second) // else the pauses would grow anyway
			sendMessage(t, conn, &wire.Bye{Reason: "subnet overlaps beijing.edge2's", Final: true})
			e := <-events
			var bye *byeError
			if !errors.As(e.down, &bye) || !bye.final || !strings.Contains(bye.Error(), "overlaps beijing.edge2's") {
				t.Fatalf("event %+v; want the rendezvous' own words", e)
			}
			conn.Close()
			down := time.Now()
			next := <-r.sessions
			pause := time.Since(down)
			if pause > reconnectMax {
				t.Errorf("back after %v; want at most %v", pause, reconnectMax)
			}
			total += pause
			r.sessions <- next
		}
		if total < sessions*reconnectMin {
			t.Errorf("%d final refusals within %v", sessions, total)
		}
	})
}

// A connection that takes no more ends in words, and soon.
func TestLinkStalled(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *memoryListener, r *fakeRendezvous, events <-chan linkEvent, stop func()) {
		conn, up := opened(t, r, events)
		defer conn.Close() // nobody reads
		for range linkOutbox + 2 {
			up.send(&wire.Network{})
		}
		began := time.Now()
		e := <-events
		if e.down == nil || !strings.Contains(e.down.Error(), "stalled") {
			t.Errorf("event %+v; want the stall in words", e)
		}
		if took := time.Since(began); took > goodbye {
			t.Errorf("the stalled session took %v to end", took)
		}
		up.send(&wire.Network{}) // late, must not block

		conn, up = opened(t, r, events)
		defer conn.Close()
		up.send(&wire.Network{})
		synctest.Wait() // the write is under way
		began = time.Now()
		stop()
		if took := time.Since(began); took > goodbye {
			t.Errorf("stopping on a stalled connection took %v", took)
		}
	})
}

// What the rendezvous may not say ends the session with the reason.
func TestLinkProtocolErrors(t *testing.T) {
	tests := []struct {
		name  string
		send  func(t *testing.T, conn *websocket.Conn)
		ups   int
		want  string
		errIs error
	}{
		{"order before welcome", func(t *testing.T, c *websocket.Conn) { sendMessage(t, c, &wire.Peers{}) }, 0, "peers before welcome", nil},
		{"second welcome", func(t *testing.T, c *websocket.Conn) {
			sendMessage(t, c, testWelcome)
			sendMessage(t, c, testWelcome)
		}, 1, "second welcome", nil},
		{"unknown type", func(_ *testing.T, c *websocket.Conn) {
			_ = c.WriteMessage(websocket.TextMessage, []byte(`{"v":1,"type":"dance","body":{}}`))
		}, 0, "dance", wire.ErrType},
		{"other version", func(_ *testing.T, c *websocket.Conn) {
			_ = c.WriteMessage(websocket.TextMessage, []byte(`{"v":9,"type":"welcome","body":{}}`))
		}, 0, "9", wire.ErrVersion},
		{"too large", func(_ *testing.T, c *websocket.Conn) {
			_ = c.WriteMessage(websocket.TextMessage, make([]byte, wire.MaxFrame+1))
		}, 0, "limit", websocket.ErrReadLimit},
		{"bye before welcome", func(t *testing.T, c *websocket.Conn) { sendMessage(t, c, &wire.Bye{Reason: "who are you"}) }, 0, "who are you", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, _ *memoryListener, r *fakeRendezvous, events <-chan linkEvent, _ func()) {
				conn := <-r.sessions
				var sender sync.WaitGroup
				sender.Go(func() { tt.send(t, conn) })
				for range tt.ups {
					if e := <-events; e.up == nil {
						t.Fatalf("event %+v; want up", e)
					}
				}
				e := <-events
				if e.down == nil || !strings.Contains(e.down.Error(), tt.want) {
					t.Errorf("event %+v; want down with %q", e, tt.want)
				}
				if tt.errIs != nil && !errors.Is(e.down, tt.errIs) {
					t.Errorf("down %v; want %v", e.down, tt.errIs)
				}
				sender.Wait()
				conn.Close()
			})
		})
	}
}

// Somebody else's rendezvous is not believed.
func TestLinkServerOfAnotherCA(t *testing.T) {
	id, _ := linkIdentity(t, "https://"+serverAddr.String())
	_, conf := linkIdentity(t, "https://"+serverAddr.String())
	synctest.Test(t, func(t *testing.T) {
		l := newMemoryListener()
		r := serve(t, l, conf)
		events, stop := startLink(t, id, l.dial)
		var unknown x509.UnknownAuthorityError
		if e := <-events; !errors.As(e.down, &unknown) {
			t.Errorf("event %+v; want an unknown authority", e)
		}
		stop()
		r.stop()
	})
}

func TestPauseAfter(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want time.Duration
	}{
		{errors.New("no route"), reconnectMin},
		{&byeError{reason: "restarting"}, reconnectMin},
		{&byeError{reason: "revoked", final: true}, reconnectMax},
		{&RefusedError{Status: 403, Words: "revoked"}, reconnectMax},
		{&RefusedError{Status: 403, Words: "waits for approval", RetryAfter: 10 * time.Second}, 10 * time.Second},
		{&RefusedError{Status: 403, RetryAfter: time.Hour}, reconnectMax},
		{&RefusedError{Status: 502, Words: "a proxy's"}, reconnectMin},
	} {
		if got := pauseAfter(tt.err, 0); got != tt.want {
			t.Errorf("after %v: %v, want %v", tt.err, got, tt.want)
		}
	}
}

// Whom the rendezvous does not let in hears its reason.
func TestNotLetIn(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	id, conf := linkIdentity(t, "https://"+listener.Addr().String())
	srv := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "10")
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, `{"error": "beijing.edge1 waits for approval"}`)
	})}
	var serving sync.WaitGroup
	serving.Go(func() { _ = srv.Serve(tls.NewListener(listener, conf)) })
	defer serving.Wait()
	defer srv.Close()
	events, stop := startLink(t, id, (&net.Dialer{}).DialContext)
	defer stop()
	e := <-events
	refused, ok := errors.AsType[*RefusedError](e.down)
	if !ok || refused.Words != "beijing.edge1 waits for approval" || refused.RetryAfter != 10*time.Second {
		t.Errorf("got %#v; want the rendezvous' words and pace", e.down)
	}
}
