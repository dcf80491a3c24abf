package main

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

const (
	// statusPause is between looks at a daemon whose unit sets no watchdog: the
	// line that `systemctl status` shows may be that old.
	statusPause = 10 * time.Second
	// beatsPerWatchdog is how many looks fall into the time after which systemd
	// takes a daemon for hung: one or two may be late.
	beatsPerWatchdog = 4
)

// service tells systemd how a daemon is (sd_notify(3)). A daemon that systemd did
// not start has nobody to tell.
type service struct {
	log *slog.Logger
	// look asks the daemon's own goroutine for a line of status, and returns an
	// error when that does not answer before ctx is done.
	look func(ctx context.Context) (string, error)
	// pause is between looks; no look may take longer.
	pause time.Duration
	// beats: systemd waits for a sign of life.
	beats bool
}

func newService(log *slog.Logger, look func(ctx context.Context) (string, error)) *service {
	s := &service{log: log, look: look, pause: statusPause}
	watchdog, err := systemd.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("no watchdog", "err", err)
	}
	if watchdog > 0 {
		s.pause, s.beats = watchdog/beatsPerWatchdog, true
	}
	return s
}

// start follows the daemon until stop is called, which says that it is stopping.
func (s *service) start(ctx context.Context) (stop func()) {
	if told, _ := systemd.SdNotify(false, "STATUS=starting"); !told {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var following sync.WaitGroup
	following.Go(func() { s.follow(ctx) })
	return func() {
		cancel()
		following.Wait()
	}
}

// follow looks until ctx is done. Ready is whose goroutine has answered once; who
// does not answer does not beat, and is started anew.
func (s *service) follow(ctx context.Context) {
	defer s.tell(systemd.SdNotifyStopping + "\nSTATUS=stopping")
	ready := false
	for {
		started := time.Now()
		status, err := s.ask(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			s.log.Error("the daemon does not answer itself", "for", time.Since(started).Round(time.Millisecond), "err", err)
			s.tell("STATUS=hangs: does not answer itself")
		default:
			s.tell(s.wellbeing(status, !ready))
			ready = true
		}
		select {
		case <-time.After(time.Until(started.Add(s.pause))):
		case <-ctx.Done():
			return
		}
	}
}

func (s *service) ask(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, s.pause)
	defer cancel()
	return s.look(ctx)
}

func (s *service) wellbeing(status string, first bool) string {
	message := "STATUS=" + status
	if s.beats {
		message = systemd.SdNotifyWatchdog + "\n" + message
	}
	if first {
		message = systemd.SdNotifyReady + "\n" + message
	}
	return message
}

// reload tells systemd that f reads the configuration again.
func (s *service) reload(f func()) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err == nil {
		s.tell(fmt.Sprintf("%s\nMONOTONIC_USEC=%d", systemd.SdNotifyReloading, now.Nano()/int64(time.Microsecond)))
	}
	f()
	s.tell(systemd.SdNotifyReady)
}

func (s *service) tell(message string) {
	if _, err := systemd.SdNotify(false, message); err != nil {
		s.log.Debug("systemd not told", "err", err)
	}
}
