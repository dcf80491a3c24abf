package rendezvous

import (
	"crypto/tls"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// footprint is what a process holds.
type footprint struct {
	goroutines, descriptors int
	heap                    uint64 // bytes
}

// footprintNow is that of this process, without garbage.
func footprintNow(t *testing.T) footprint {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	runtime.GC() // what finalizers have let go of
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return footprint{runtime.NumGoroutine(), len(fds), m.HeapAlloc}
}

// What one cycle too many would hold is far more than these.
const (
	slack     = 4       // goroutines or descriptors that are about to end
	slackHeap = 2 << 20 // bytes
)

// settled waits until the footprint is no larger than before, or fails the test.
func settled(t *testing.T, what string, before footprint) {
	t.Helper()
	for deadline := time.Now().Add(testWait); ; time.Sleep(20 * time.Millisecond) {
		now := footprintNow(t)
		if now.goroutines <= before.goroutines+slack && now.descriptors <= before.descriptors+slack && now.heap <= before.heap+slackHeap {
			t.Logf("%s: before %+v, after %+v", what, before, now)
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: before %+v, after %+v: something is kept", what, before, now)
		}
	}
}

// TestCommunitiesLeaveNothing: nodes join a community and leave it, dozens of
// times, in the middle of attempts.
func TestCommunitiesLeaveNothing(t *testing.T) {
	const warm, cycles = 10, 40
	r := newSite(t).start()
	peers := []*peer{r.join(edge1), r.join(edge2)}
	for _, p := range peers {
		p.askSTUN()
		p.expectPeers()
	}
	var before footprint
	for i := range warm + cycles {
		if i == warm {
			before = footprintNow(t)
		}
		r.apply(Community{Name: "come-and-go", Members: []string{string(edge1), string(edge2), "beijing.absent"}})
		peers[0].expectPeers(edge2)
		peers[1].expectPeers(edge1)
		if err := r.server.deleteCommunity(t.Context(), "come-and-go"); err != nil {
			t.Fatal(err)
		}
		peers[0].expectPeers()
		peers[1].expectPeers()
	}
	if snap := r.snapshot(); len(snap.Pairs) != 0 || len(snap.Nodes) != len(peers) {
		t.Errorf("%d pairs and %d nodes are left; want none and %d", len(snap.Pairs), len(snap.Nodes), len(peers))
	}
	settled(t, "communities", before)
}

// TestSessionsLeaveNothing: an agent that comes and goes, and one whose line is
// cut.
func TestSessionsLeaveNothing(t *testing.T) {
	const warm, cycles = 10, 50
	r := newSite(t).start()
	other := r.join(edge2)
	other.askSTUN()
	r.apply(Community{Name: "pair", Members: []string{string(edge1), string(edge2)}})
	cert := r.ca.issue(string(edge1))
	var reading sync.WaitGroup
	reading.Go(func() { drain(other.conn) })
	defer reading.Wait()
	defer other.conn.Close()
	var before footprint
	for i := range warm + cycles {
		if i == warm {
			before = footprintNow(t)
		}
		r.visit(cert, i%2 == 0)
		r.until("the agent is gone", func(s Snapshot) bool { return !nodeIn(s, edge1).Online })
	}
	settled(t, "sessions", before)
}

// drain reads until the connection ends.
func drain(conn *websocket.Conn) {
	for {
		if _, _, err := conn.ReadMessage(); err != nil {
			return
		}
	}
}

// visit is a session that ends in order, or by a line that is cut.
func (r *running) visit(cert tls.Certificate, orderly bool) {
	r.t.Helper()
	conn, err := r.dialTLS(cert)
	if err != nil {
		r.t.Fatal(err)
	}
	defer conn.Close()
	p := &peer{t: r.t, name: edge1, conn: conn}
	p.welcome = expect[*wire.Welcome](p)
	p.send(&wire.Hello{AgentVersion: "test", Endpoint: endpointOf(edge1), Candidates: []wire.Candidate{}})
	p.expectPeers(edge2)
	if orderly {
		message := websocket.FormatCloseMessage(websocket.CloseGoingAway, "")
		if err := conn.WriteControl(websocket.CloseMessage, message, time.Now().Add(testWait)); err != nil {
			r.t.Error(err)
		}
	}
}
