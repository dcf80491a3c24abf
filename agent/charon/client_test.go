package charon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/strongswan/govici/vici"
)

// listen answers connections to a VICI socket until the test ends.
func listen(t *testing.T, serve func(net.Conn)) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "charon.vici")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer conn.Close()
				serve(conn)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		all.Wait()
	})
	return socket
}

// silent reads and never answers, as a charon that is stuck.
func silent(conn net.Conn) { io.Copy(io.Discard, conn) }

// hangUp closes as soon as something is asked, as a charon that crashes.
func hangUp(conn net.Conn) { conn.Read(make([]byte, 1)) }

func TestDialError(t *testing.T) {
	for _, tt := range []struct {
		cause error
		want  string
	}{
		{syscall.ENOENT, "charon is not reachable: VICI socket /run/charon.vici: no such file or directory: is strongSwan running and its vici plugin loaded?"},
		{syscall.ECONNREFUSED, "charon is not reachable: VICI socket /run/charon.vici: connection refused: the socket is left over, charon is not running"},
		{syscall.EACCES, "charon is not reachable: VICI socket /run/charon.vici: permission denied: it belongs to root unless charon.plugins.vici and charon.group say otherwise"},
		{io.EOF, "charon is not reachable: VICI socket /run/charon.vici: EOF"},
	} {
		err := dialError("/run/charon.vici", &net.OpError{Op: "dial", Net: "unix", Err: os.NewSyscallError("connect", tt.cause)})
		got := strings.ReplaceAll(err.Error(), "connect: ", "")
		if got != tt.want || !errors.Is(err, ErrUnreachable) || !errors.Is(err, tt.cause) {
			t.Errorf("got  %q\nwant %q, ErrUnreachable and its cause", got, tt.want)
		}
	}
}

func TestCommandErrors(t *testing.T) {
	absent := filepath.Join(t.TempDir(), "absent")
	for _, tt := range []struct {
		name   string
		socket string
		want   error
	}{
		{"absent", absent, fs.ErrNotExist},
		{"absent is unreachable", absent, ErrUnreachable},
		{"silent", listen(t, silent), ErrTimeout},
		{"hangs up", listen(t, hangUp), ErrUnreachable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := startClient(t, Options{Socket: tt.socket, Timeout: 50 * time.Millisecond})
			// Twice: the client has to survive the session.
			for range 2 {
				if _, err := c.Version(testContext(t)); !errors.Is(err, tt.want) {
					t.Errorf("error %v, want %v", err, tt.want)
				}
			}
		})
	}
}

func TestCallEndsWithItsContext(t *testing.T) {
	asked := make(chan struct{}, 16)
	socket := listen(t, func(conn net.Conn) {
		if n, _ := conn.Read(make([]byte, 1)); n > 0 {
			asked <- struct{}{}
		}
		silent(conn)
	})
	c := startClient(t, Options{Socket: socket, Timeout: patience})
	<-asked // by the event session
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-asked
		cancel()
	}()
	if _, err := c.Version(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
}

// TestCloseWaitsOnlyForWhatRuns: the context can end between dialling and
// subscribing, when there is no reader that could end.
func TestCloseWaitsOnlyForWhatRuns(t *testing.T) {
	s, err := dialSession(t.Context(), listen(t, silent), patience)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	x := &exchange{ctx: ctx, session: s, timeout: patience}
	if _, err := x.subscribe(1, subscriptions...); !errors.Is(err, context.Canceled) {
		t.Errorf("subscribe: %v, want context.Canceled", err)
	}
	s.close() // does not return if it waits for the reader
}

func TestCallsAroundRun(t *testing.T) {
	c := New(Options{Socket: listen(t, silent), Timeout: patience})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Version(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("call before Run: %v, want its context's error", err)
	}

	running, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- c.Run(running) }()
	interrupted := make(chan error)
	go func() {
		_, err := c.Version(t.Context())
		interrupted <- err
	}()
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v, want context.Canceled", err)
	}
	if err := <-interrupted; !errors.Is(err, ErrClosed) {
		t.Errorf("call while Run ends: %v, want ErrClosed", err)
	}
	if err := c.Run(t.Context()); err == nil {
		t.Error("Run a second time: no error")
	}
	if _, err := c.SAs(t.Context(), ""); !errors.Is(err, ErrClosed) {
		t.Errorf("call after Run: %v, want ErrClosed", err)
	}
	for range c.Events() { // closed, or this does not end
	}
}

// rawEvent is what govici delivers for a CHILD_SA that came up.
func rawEvent(t *testing.T, id int) vici.Event {
	t.Helper()
	m, err := section{{"up", "yes"}, {"beijing.edge2", section{
		{"uniqueid", "7"},
		{"child-sas", section{{"beijing.edge2-p2p-9", section{{"name", "beijing.edge2-p2p"}, {"uniqueid", fmt.Sprint(id)}}}}},
	}}}.message()
	if err != nil {
		t.Fatal(err)
	}
	return vici.Event{Name: "child-updown", Message: m}
}

func TestEventOverflow(t *testing.T) {
	for _, tt := range []struct {
		name      string
		rawBuffer int
		sent      int
		kept      int // before the overflow is reported
	}{
		{"the reader is slow", 2 * eventBuffer, eventBuffer + 20, eventBuffer},
		// One event is handed on, and govici may have dropped others.
		{"govici's buffer is full", 2, 2, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := New(Options{})
				raw := make(chan vici.Event, tt.rawBuffer)
				for i := range tt.sent {
					raw <- rawEvent(t, i)
				}
				ended := make(chan error)
				go func() { ended <- c.pump(t.Context(), raw) }()
				synctest.Wait()

				var events, overflows int
				count := func() {
					for {
						select {
						case e := <-c.events:
							if e.Kind == EventOverflow {
								overflows++
							} else {
								events++
							}
							synctest.Wait()
						default:
							return
						}
					}
				}
				count()
				if events != tt.kept || overflows != 1 {
					t.Errorf("%d events and %d overflows, want %d and 1", events, overflows, tt.kept)
				}
				close(raw)
				if err := <-ended; !errors.Is(err, ErrUnreachable) {
					t.Errorf("pump ended with %v, want ErrUnreachable", err)
				}
			})
		})
	}
}

func TestParseEvent(t *testing.T) {
	child := func(id string) section {
		return section{{"name", "edge-p2p"}, {"uniqueid", id}}
	}
	for _, tt := range []struct {
		name string
		body section
		want []string
	}{
		{"ike-updown", section{{"up", "yes"}, {"edge", section{{"uniqueid", "1"}}}}, []string{"ike-up edge #1"}},
		{"ike-updown", section{{"edge", section{{"uniqueid", "1"}}}}, []string{"ike-down edge #1"}},
		{"ike-rekey", section{{"edge", section{{"old", section{{"uniqueid", "1"}}}, {"new", section{{"uniqueid", "2"}}}}}}, []string{"ike-rekey edge #2"}},
		{"child-updown", section{{"up", "yes"}, {"edge", section{{"uniqueid", "1"}, {"child-sas", section{
			{"edge-p2p-4", child("4")}, {"edge-p2p-5", child("5")},
		}}}}}, []string{"child-up edge #1 edge-p2p #4", "child-up edge #1 edge-p2p #5"}},
		{"ike-update", section{
			{"local-host", "192.0.2.1"}, {"local-port", "4500"}, {"remote-host", "192.0.2.2"}, {"remote-port", "61234"},
			{"edge", section{{"uniqueid", "1"}, {"remote-host", "192.0.2.9"}, {"remote-port", "4500"}}},
		}, []string{"ike-update edge #1 with 192.0.2.2:61234"}},
		{"child-rekey", section{{"edge", section{{"uniqueid", "1"}, {"child-sas", section{
			{"edge-p2p", section{{"old", child("4")}, {"new", child("6")}}},
		}}}}}, []string{"child-rekey edge #1 edge-p2p #6"}},
	} {
		m, err := tt.body.message()
		if err != nil {
			t.Fatal(err)
		}
		events, err := parseEvent(vici.Event{Name: tt.name, Message: m})
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		var got []string
		for _, e := range events {
			s := fmt.Sprintf("%s %s #%d", e.Kind, e.Name, e.ID)
			if e.Child != "" {
				s += fmt.Sprintf(" %s #%d", e.Child, e.ChildID)
			}
			if e.SA.Remote.IsValid() {
				s += " with " + e.SA.Remote.String()
			}
			got = append(got, s)
		}
		if fmt.Sprint(got) != fmt.Sprint(tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}
