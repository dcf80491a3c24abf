// Package charon drives strongSwan's IKE daemon over VICI, its control socket:
// it loads connections and credentials, initiates and terminates SAs, lists
// them, and reports what happens to them. It knows nothing of NATs or of
// Bodkin's rendezvous.
//
// Written against strongSwan 5.9.8; needs 5.9.2 or later.
package charon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// DefaultSocket is where strongSwan puts VICI unless told otherwise.
	DefaultSocket = "/var/run/charon.vici"

	// DefaultTimeout bounds one command. Every command sent here is answered
	// without waiting for the network, in milliseconds; ten seconds is a charon
	// that is stuck and not one that is busy.
	DefaultTimeout = 10 * time.Second

	// redialInterval is how long a vanished charon may be back unnoticed.
	// Trying costs one connect on a local socket.
	redialInterval = 250 * time.Millisecond
)

// Options of a Client; the zero value is usable.
type Options struct {
	Socket  string        // path of the VICI socket; DefaultSocket when empty
	Timeout time.Duration // per command; DefaultTimeout when zero
	Log     *slog.Logger  // nothing is logged when nil
}

// Client talks to one charon. Its methods may be called from any goroutine,
// before Run too; they wait for their turn until their context ends.
//
// Owners: the goroutine of Run owns the command session, one command at a
// time; a second goroutine, started and awaited by Run, owns the event session
// and is the only sender on events. Both dial again after any transport error.
type Client struct {
	socket  string
	timeout time.Duration
	log     *slog.Logger

	started atomic.Bool
	calls   chan call
	events  chan Event
	done    chan struct{} // closed when Run has returned
	errors  errorCounts
}

// call is one queued method call. The owner always sends exactly one result.
type call struct {
	ctx    context.Context
	do     func(*exchange) error
	result chan<- error
}

// New returns a client that does nothing until Run is called.
func New(o Options) *Client {
	c := &Client{
		socket:  o.Socket,
		timeout: o.Timeout,
		log:     o.Log,
		calls:   make(chan call),
		events:  make(chan Event, eventBuffer),
		done:    make(chan struct{}),
	}
	if c.socket == "" {
		c.socket = DefaultSocket
	}
	if c.timeout == 0 {
		c.timeout = DefaultTimeout
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	return c
}

// Run serves calls and events until ctx ends, then returns its error; all
// goroutines have ended and Events is closed by then. It may be called once. A
// charon that is absent is no reason to return: it is redialled.
func (c *Client) Run(ctx context.Context) error {
	if !c.started.CompareAndSwap(false, true) {
		return errors.New("charon client: Run may be called only once")
	}
	var watcher sync.WaitGroup
	watcher.Go(func() { c.watch(ctx) })
	c.serve(ctx)
	watcher.Wait()
	close(c.events)
	close(c.done)
	return ctx.Err()
}

// serve is the owner of the command session.
func (c *Client) serve(ctx context.Context) {
	var s *session
	for {
		select {
		case <-ctx.Done():
			if s != nil {
				s.close()
			}
			return
		case call := <-c.calls:
			var err error
			s, err = c.perform(ctx, s, call)
			call.result <- err
		}
	}
}

// perform runs a call on s, or on a new session when there is none, and
// returns the session to use next: nil when it is dead.
func (c *Client) perform(run context.Context, s *session, call call) (*session, error) {
	ctx, cancel := context.WithCancelCause(call.ctx)
	defer cancel(nil)
	defer context.AfterFunc(run, func() { cancel(ErrClosed) })()

	reused := s != nil
	s, err := c.attempt(ctx, s, call.do)
	if reused && errors.Is(err, syscall.EPIPE) {
		// charon went away while the session was idle. The broken pipe says
		// that the command was not delivered, so it is safe to send it again.
		s, err = c.attempt(ctx, nil, call.do)
	}
	return s, err
}

func (c *Client) attempt(ctx context.Context, s *session, do func(*exchange) error) (*session, error) {
	if s == nil {
		var err error
		if s, err = dialSession(ctx, c.socket, c.timeout); err != nil {
			return nil, err
		}
	}
	err := do(&exchange{ctx: ctx, session: s, timeout: c.timeout, errors: &c.errors})
	if s.dead {
		s.close()
		s = nil
	}
	return s, err
}

// do queues a call and waits for its result. It does not return before the
// owner is done with it, so do's closure may write to its caller's variables.
func (c *Client) do(ctx context.Context, do func(*exchange) error) error {
	result := make(chan error, 1)
	select {
	case c.calls <- call{ctx, do, result}:
		return <-result
	case <-ctx.Done():
		return fmt.Errorf("waiting for charon: %w", context.Cause(ctx))
	case <-c.done:
		return ErrClosed
	}
}
