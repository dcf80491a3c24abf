package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gorilla/websocket"
)

// checkTimeout is how long a session may take to answer a ping when the network
// may have changed: TCP repeats it four times in that.
const checkTimeout = 3 * time.Second

// errChecked ends what began before the network changed.
var errChecked = errors.New("the network has changed")

// check tells that something on the way may have broken: a session has to show
// that it still works. A dial under way goes on: it will see for itself, and would
// never succeed on a slow network if each doubt began it anew.
func (l *link) check() { signal(l.checks) }

// redial tells that this node's network has changed: who waits dials at once, who
// dials begins anew, and a session has to show that it still works.
func (l *link) redial() {
	signal(l.redials)
	signal(l.checks)
}

// signal does not wait: a signal that is not taken yet says the same.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// drain takes back what was signalled before.
func drain(c <-chan struct{}) {
	select {
	case <-c:
	default:
	}
}

// pause waits, and reports whether redial has cut it short.
func (l *link) pause(ctx context.Context, d time.Duration) (cut bool) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-l.redials:
		return true
	case <-ctx.Done():
	}
	return false
}

func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// guard pings after each check, and ends a session of which nothing is heard
// then.
func (l *link) guard(ctx context.Context, conn *websocket.Conn, heard <-chan struct{}, end func(error)) {
	for {
		select {
		case <-l.checks:
		case <-ctx.Done():
			return
		}
		drain(l.redials) // a session is there, whose end is another story
		drain(heard)     // what came before the ping
		if err := conn.WriteControl(websocket.PingMessage, nil, time.Now().Add(checkTimeout)); err != nil {
			end(fmt.Errorf("ping to the rendezvous: %w: %w", err, errChecked))
			return
		}
		timer := time.NewTimer(checkTimeout)
		select {
		case <-heard:
		case <-timer.C:
			end(fmt.Errorf("the rendezvous does not answer on this session any more: %w", errChecked))
		case <-ctx.Done():
		}
		timer.Stop()
	}
}
