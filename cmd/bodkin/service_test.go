package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// manager is who is told: the other end of NOTIFY_SOCKET.
type manager struct {
	t    *testing.T
	conn *net.UnixConn
}

func newManager(t *testing.T) *manager {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return &manager{t, conn}
}

// hears is the next message, in lines.
func (s *manager) hears() []string {
	s.t.Helper()
	if err := s.conn.SetReadDeadline(time.Now().Add(processTimeout)); err != nil {
		s.t.Fatal(err)
	}
	b := make([]byte, 4096)
	n, err := s.conn.Read(b)
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.Split(string(b[:n]), "\n")
}

// until skips messages up to the one that begins so.
func (s *manager) until(first string) []string {
	s.t.Helper()
	for {
		if m := s.hears(); m[0] == first {
			return m
		}
	}
}

func TestService(t *testing.T) {
	sd := newManager(t)
	var hangs atomic.Bool
	s := &service{log: slog.New(slog.DiscardHandler), pause: 20 * time.Millisecond, beats: true, look: func(ctx context.Context) (string, error) {
		if hangs.Load() {
			<-ctx.Done()
			return "", ctx.Err()
		}
		return "all is well", nil
	}}
	stop := s.start(t.Context())
	if got := sd.hears(); got[0] != "STATUS=starting" {
		t.Errorf("at first systemd hears %q", got)
	}
	if got := strings.Join(sd.hears(), " "); got != "READY=1 WATCHDOG=1 STATUS=all is well" {
		t.Errorf("once the daemon answers systemd hears %q", got)
	}
	if got := strings.Join(sd.hears(), " "); got != "WATCHDOG=1 STATUS=all is well" {
		t.Errorf("then systemd hears %q", got)
	}

	hangs.Store(true)
	sd.until("STATUS=hangs: does not answer itself")
	for range 3 { // pauses
		if got := sd.hears(); got[0] != "STATUS=hangs: does not answer itself" {
			t.Errorf("a daemon that hangs tells systemd %q", got)
		}
	}
	hangs.Store(false)
	sd.until("WATCHDOG=1")
	stop()
	sd.until("STOPPING=1")
}

func TestServiceWithoutSystemd(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	s := newService(slog.New(slog.DiscardHandler), func(context.Context) (string, error) {
		t.Error("asked though nobody wants to know")
		return "", nil
	})
	s.start(t.Context())()
	read := false
	s.reload(func() { read = true })
	if !read {
		t.Error("the configuration was not read again")
	}
}

func TestWatchdogSetsThePace(t *testing.T) {
	for usec, want := range map[string]time.Duration{"": statusPause, "60000000": 15 * time.Second} {
		t.Setenv("WATCHDOG_PID", "")
		t.Setenv("WATCHDOG_USEC", usec)
		if s := newService(slog.New(slog.DiscardHandler), nil); s.pause != want || s.beats != (usec != "") {
			t.Errorf("WATCHDOG_USEC=%q: a look every %s, beats %v; want every %s", usec, s.pause, s.beats, want)
		}
	}
}

func TestReloadIsTold(t *testing.T) {
	sd := newManager(t)
	s := &service{log: slog.New(slog.DiscardHandler)}
	s.reload(func() {
		if got := sd.hears(); got[0] != "RELOADING=1" || len(got) != 2 || !strings.HasPrefix(got[1], "MONOTONIC_USEC=") {
			t.Errorf("before the reload systemd hears %q", got)
		}
	})
	if got := sd.hears(); got[0] != "READY=1" {
		t.Errorf("after the reload systemd hears %q", got)
	}
}

// What cannot be read changes nothing, and is one line.
func TestReconfigureLevel(t *testing.T) {
	var logged strings.Builder
	level := new(slog.LevelVar)
	log := slog.New(slog.NewTextHandler(&logged, nil))
	reconfigure(log, level, func() (string, error) { return "debug", nil })
	if level.Level() != slog.LevelDebug || logged.Len() > 0 {
		t.Errorf("level %s, logged %q; want debug and nothing", level.Level(), logged.String())
	}
	reconfigure(log, level, func() (string, error) { return "", errors.New("agent.yaml: line 2: nme: unknown key") })
	if got := logged.String(); level.Level() != slog.LevelDebug || strings.Count(got, "\n") != 1 || !strings.Contains(got, "line 2: nme") {
		t.Errorf("level %s, logged %q; want debug still, and one line", level.Level(), got)
	}
}
