package agent

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"
	"github.com/pion/stun/v4"
)

// checkBubble runs f in fake time with a link that dial connects, or with nil
// its listener.
func checkBubble(t *testing.T, dial func(l *memoryListener) dialFunc, f func(t *testing.T, link *link, r *fakeRendezvous, events <-chan linkEvent)) {
	id, conf := linkIdentity(t, "https://"+serverAddr.String())
	synctest.Test(t, func(t *testing.T) {
		l := newMemoryListener()
		r := serve(t, l, conf)
		events := make(chan linkEvent)
		link := &link{id: id, dial: l.dial, log: discardLog, events: events, checks: make(chan struct{}, 1), redials: make(chan struct{}, 1)}
		if dial != nil {
			link.dial = dial(l)
		}
		stop := runLink(t, link)
		f(t, link, r, events)
		stop()
		r.stop()
	})
}

type dialFunc = func(ctx context.Context, network, addr string) (net.Conn, error)

// Where half a minute of pause might follow a network that has changed is dialled
// on at once, but however often it changes, not in a loop.
func TestLinkRedialCutsThePause(t *testing.T) {
	var dialled chan time.Time
	refuse := func(*memoryListener) dialFunc {
		dialled = make(chan time.Time, 1) // the bubble's
		return func(context.Context, string, string) (net.Conn, error) {
			dialled <- time.Now()
			return nil, errors.New("refused")
		}
	}
	checkBubble(t, refuse, func(t *testing.T, link *link, _ *fakeRendezvous, events <-chan linkEvent) {
		began := time.Now()
		for time.Since(began) < 10*time.Minute {
			select {
			case <-events:
			case <-dialled:
			}
		}
		<-events
		for len(dialled) > 0 {
			<-dialled
		}
		link.redial()
		last := <-dialled
		for range 20 {
			<-events
			link.redial()
			now := <-dialled
			if gap := now.Sub(last); gap != reconnectMin {
				t.Errorf("dialled %v after the last time; want %v", gap, reconnectMin)
			}
			last = now
		}
		<-events
	})
}

// A dial that began on the former network is not waited for; doubts alone do not
// end one, or a slow network would see none succeed.
func TestLinkRedialDialsAnew(t *testing.T) {
	var began chan struct{}
	stuck := func(l *memoryListener) dialFunc {
		began = make(chan struct{}, 1) // the bubble's
		first := true
		return func(ctx context.Context, network, addr string) (net.Conn, error) {
			if !first {
				return l.dial(ctx, network, addr)
			}
			first = false
			began <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		}
	}
	checkBubble(t, stuck, func(t *testing.T, link *link, r *fakeRendezvous, events <-chan linkEvent) {
		<-began
		link.check()
		time.Sleep(time.Second)
		select {
		case e := <-events:
			t.Fatalf("event %+v after a check; want a dial that goes on", e)
		default:
		}
		changed := time.Now()
		link.redial()
		if e := <-events; !errors.Is(e.down, errChecked) {
			t.Fatalf("event %+v; want the end of the dial", e)
		}
		conn, _ := opened(t, r, events)
		if took := time.Since(changed); took > reconnectMin {
			t.Errorf("connected %v after the change; want at most %v", took, reconnectMin)
		}
		conn.Close()
		<-events
	})
}

// A session that works outlives a check, one that does not is replaced.
func TestLinkCheckOfASession(t *testing.T) {
	checkBubble(t, nil, func(t *testing.T, link *link, r *fakeRendezvous, events <-chan linkEvent) {
		conn, _ := opened(t, r, events)
		var reading sync.WaitGroup
		pings := make(chan struct{}, 8)
		conn.SetPingHandler(func(data string) error {
			pings <- struct{}{}
			if len(pings) == 4 {
				return errors.New("heard, and not answered")
			}
			return conn.WriteControl(websocket.PongMessage, []byte(data), time.Now().Add(time.Second))
		})
		reading.Go(func() { _, _, _ = conn.ReadMessage() })
		for range 3 {
			link.check()
			time.Sleep(2 * checkTimeout)
			select {
			case e := <-events:
				t.Fatalf("event %+v; want a session that goes on", e)
			default:
			}
		}
		checked := time.Now()
		link.check()
		e := <-events
		if took := time.Since(checked); !errors.Is(e.down, errChecked) || took > checkTimeout+goodbye {
			t.Errorf("event %+v after %v; want the session's end within %v", e, took, checkTimeout+goodbye)
		}
		reading.Wait()
		conn.Close()
		down := time.Now()
		conn, _ = opened(t, r, events)
		if took := time.Since(down); took > reconnectMin {
			t.Errorf("the next session came after %v; want %v at most", took, reconnectMin)
		}
		conn.Close()
		<-events
	})
}

// What a person is told when TCP fails: of a firewall only where UDP passes.
func TestLinkTellsABlockedTCP(t *testing.T) {
	refused := &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort("203.0.113.9:7443")), Err: errors.New("i/o timeout")}
	tests := []struct {
		name    string
		known   netip.AddrPort
		answers bool
		asked   string
		want    string
	}{
		{"never reached before", netip.AddrPort{}, true, "203.0.113.9:3478", "UDP passes, TCP 7443 does not: a firewall on this network blocks it"},
		{"service known", netip.MustParseAddrPort("203.0.113.1:9999"), true, "203.0.113.1:9999", "UDP passes, TCP 7443 does not"},
		{"nothing answers", netip.AddrPort{}, false, "203.0.113.9:3478", "i/o timeout"},
	}
	id, _ := linkIdentity(t, "https://rdv.example:7443")
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var asked netip.AddrPort
			l := &link{id: id, stun: tt.known}
			l.dial = func(context.Context, string, string) (net.Conn, error) { return nil, refused }
			l.stunAnswers = func(_ context.Context, server netip.AddrPort) bool { asked = server; return tt.answers }
			_, err := l.connect(t.Context())
			if err == nil || !strings.Contains(err.Error(), tt.want) || !errors.Is(err, refused) {
				t.Errorf("%v; want %q, and the network's own error", err, tt.want)
			}
			if errors.Is(err, errTCPBlocked) != tt.answers || asked.String() != tt.asked {
				t.Errorf("%v, asked %s; want %s", err, asked, tt.asked)
			}
		})
	}
}

// Any STUN server answers the question.
func TestOutsideSTUN(t *testing.T) {
	server, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	var answering sync.WaitGroup
	answering.Go(func() {
		b := make([]byte, 1500)
		for {
			n, from, err := server.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			req := &stun.Message{Raw: b[:n]}
			if req.Decode() != nil {
				continue
			}
			m, err := stun.Build(req, stun.BindingSuccess, &stun.XORMappedAddress{IP: from.Addr().AsSlice(), Port: int(from.Port())})
			if err == nil {
				_, _ = server.WriteToUDPAddrPort(m.Raw, from)
			}
		}
	})
	at := server.LocalAddr().(*net.UDPAddr).AddrPort()
	if !outsideSTUN(0, nil)(t.Context(), at) {
		t.Error("a STUN server that answers is not heard")
	}
	server.Close()
	answering.Wait()
	if outsideSTUN(0, nil)(t.Context(), at) {
		t.Error("nobody listens, and somebody is said to answer")
	}
}

// The meter counts what TCP costs, not what was written to it.
func TestLinkMeter(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	client, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	var m linkMeter
	c := m.watch(client)
	const frames, size = 10, 100
	for range frames {
		if _, err := c.Write(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		if _, err := server.Read(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
	}
	open := m.bytes()
	// At least a segment each, at most with an acknowledgement for each, the
	// handshake and a few more.
	const segment = ipv4Header + tcpHeader
	if least, most := uint64(frames*(size+segment)), uint64(frames*(size+2*segment)+10*segment); open < least || open > most {
		t.Errorf("%d bytes; want %d to %d", open, least, most)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if after := m.bytes(); after < open || after > open+2*segment {
		t.Errorf("%d bytes after the close, %d before", after, open)
	}
}
