package agent

import (
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// A link that has lost its session fifty times holds no more than one that has
// lost it once.
func TestLinkLeavesNothing(t *testing.T) {
	const warm, cycles = 5, 50
	inBubble(t, func(t *testing.T, _ *memoryListener, r *fakeRendezvous, events <-chan linkEvent, _ func()) {
		var before, after int
		for i := range warm + cycles {
			conn, up := opened(t, r, events)
			up.send(&wire.Network{})
			time.Sleep(time.Second)
			conn.Close()
			if e := <-events; e.down == nil {
				t.Fatalf("event %+v; want down", e)
			}
			synctest.Wait()
			if after = runtime.NumGoroutine(); i == warm {
				before = after
			}
		}
		if after > before+2 {
			t.Errorf("%d goroutines after %d sessions, %d after %d", after, warm+cycles, before, warm)
		}
	})
}

// Peers that come and go by the hundred leave no tunnel and no run, and nothing
// in the file.
func TestPeersLeaveNothing(t *testing.T) {
	const cycles = 200
	d := testDaemon(t, "store")
	for i := range cycles {
		peer := wire.Peer{Endpoint: wire.Endpoint{Name: wire.NodeName(fmt.Sprint("beijing.edge", i))}, Plan: wire.PlanICE, Role: wire.Controlled}
		d.peers(t.Context(), t0, &wire.Peers{Peers: []wire.Peer{peer}})
		if len(d.tunnels) != 1 {
			t.Fatalf("cycle %d: tunnels %v; want one", i, d.tunnelNames())
		}
		d.peers(t.Context(), t0, &wire.Peers{})
	}
	if len(d.tunnels)+len(d.runs)+len(d.ending)+len(d.owned.names()) > 0 {
		t.Errorf("left: tunnels %v, %d runs, %d endings, connections %v", d.tunnelNames(), len(d.runs), len(d.ending), d.owned.names())
	}
}
