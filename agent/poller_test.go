package agent

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bodkin-net/bodkin/agent/charon"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

func TestPauseFor(t *testing.T) {
	ms := time.Millisecond
	for _, tt := range []struct{ pause, needs, want time.Duration }{
		{pollFlowing, 2 * ms, pollFlowing},
		{pollFlowing, 15 * ms, 300 * ms},
		{pollFlowing, 100 * ms, pollSlow},
		{pollFlowing, 500 * ms, 2 * time.Second},
		{pollIdle, 100 * ms, pollIdle},
		{pollIdle, 500 * ms, 2 * time.Second},
	} {
		if got := pauseFor(tt.pause, tt.needs); got != tt.want {
			t.Errorf("pause %v, a listing of %v: %v; want %v", tt.pause, tt.needs, got, tt.want)
		}
	}
}

// One listing that waited for a busy machine does not make the next ones rare.
func TestCost(t *testing.T) {
	var c cost
	for range len(c) {
		c.note(2 * time.Millisecond)
	}
	if got := c.note(300 * time.Millisecond); got != 2*time.Millisecond {
		t.Errorf("after one slow listing: %v; want 2ms", got)
	}
	for range len(c) - 1 {
		c.note(300 * time.Millisecond)
	}
	if got := c.note(300 * time.Millisecond); got != 300*time.Millisecond {
		t.Errorf("after slow listings alone: %v; want 300ms", got)
	}
}

// charon is asked more often while something flows and for a moment after; while
// it is away, too, so that its return is seen.
func TestPollerPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		var asked int
		var packets uint64
		flowing, away := false, false
		p := &poller{out: make(chan []charon.SA, 1000), list: func(context.Context) ([]charon.SA, error) {
			mu.Lock()
			defer mu.Unlock()
			asked++
			if away {
				return nil, errors.New("no charon")
			}
			if flowing {
				packets++
			}
			return []charon.SA{{Children: []charon.ChildSA{{PacketsIn: packets}}}}, nil
		}}
		var running sync.WaitGroup
		running.Go(func() { p.run(ctx) })
		set := func(f, a bool) {
			mu.Lock()
			defer mu.Unlock()
			flowing, away, asked = f, a, 0
		}
		within := func(what string, d time.Duration, least, most int) {
			t.Helper()
			time.Sleep(d)
			mu.Lock()
			defer mu.Unlock()
			if asked < least || asked > most {
				t.Errorf("%s: asked %d times in %v; want %d to %d", what, asked, d, least, most)
			}
		}
		within("idle", 10*time.Second, 9, 11)
		set(true, false)
		within("flowing", 10*time.Second, 44, 51)
		set(false, false)
		within("just ended", pollLinger, 4, 6)
		set(false, false)
		within("idle again", 10*time.Second, 9, 12)
		set(false, true)
		within("charon away", 10*time.Second, 9, 11)
		cancel()
		running.Wait()
	})
}

// What stands and is not checked has to be noticed by its traffic alone; a tunnel
// with the connector has nothing to take its place.
func TestTunnelUnwatched(t *testing.T) {
	found := func(relay bool) *tunnel {
		tun := newTunnel(wire.Peer{Endpoint: wire.Endpoint{Name: "a.found"}}, "store", t0)
		tun.adopted(t0, path1)
		tun.relays(tun.run, relay, "")
		return tun
	}
	public := newTunnel(publicPeer, "store", t0)
	public.adopted(t0, path1)
	failed := iceIn("direct")
	failed.ordered(t0, orderFor(icePeer, "a2"), 8)
	failed.failed(t0, 8, "no path", false)
	for name, tt := range map[string]struct {
		tun  *tunnel
		want bool
	}{
		"down":                      {iceIn("punching"), false},
		"direct":                    {iceIn("direct"), false},
		"after an attempt":          {failed, true},
		"found in charon":           {found(false), true},
		"found in charon, relaying": {found(true), false},
		"the connector's":           {public, false},
	} {
		if got := tt.tun.unwatched(); got != tt.want {
			t.Errorf("%s: %v; want %v", name, got, tt.want)
		}
	}
}
