package rendezvous

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

func newTestRecorder(t *testing.T) (*recorder, *store.Store) {
	t.Helper()
	db, err := store.Open(filepath.Join(t.TempDir(), "db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return newRecorder(db, slog.New(slog.DiscardHandler)), db
}

func TestRecorderWritesOnlyTheNewest(t *testing.T) {
	r, _ := newTestRecorder(t)
	var wrote []string
	put := func(key string, n int) {
		r.put(key, func() error { wrote = append(wrote, fmt.Sprint(key, n)); return nil })
	}
	for i := range 3 {
		put("a", i)
		put("b", i)
	}
	put("c", 0)
	r.flush()
	r.flush()
	if want := []string{"a2", "b2", "c0"}; !reflect.DeepEqual(wrote, want) {
		t.Errorf("wrote %q, want %q", wrote, want)
	}
}

// What was put before the end is written before run returns.
func TestRecorderFinishes(t *testing.T) {
	r, db := newTestRecorder(t)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { r.run(ctx) })
	const nodes = 50
	for i := range nodes {
		r.node(NodeView{Name: wire.NodeName(fmt.Sprintf("beijing.edge%d", i))})
	}
	cancel()
	running.Wait()
	got, err := db.Nodes()
	if err != nil || len(got) != nodes {
		t.Errorf("%d nodes, %v", len(got), err)
	}
}

func TestRecorderTellsOfFailure(t *testing.T) {
	r, _ := newTestRecorder(t)
	if err := r.err(); err != nil {
		t.Errorf("before anything was written: %v", err)
	}
	full := errors.New("no space left on device")
	r.put("a", func() error { return full })
	r.flush()
	if err := r.err(); !errors.Is(err, full) {
		t.Errorf("%v, want %v", err, full)
	}
	r.put("a", func() error { return nil })
	r.flush()
	if err := r.err(); err != nil {
		t.Errorf("after a write went well: %v", err)
	}
}

// What could not be written is kept, in order, unless something newer replaces it.
func TestRecorderKeepsWhatFailed(t *testing.T) {
	r, _ := newTestRecorder(t)
	var wrote []string
	full := true
	put := func(key string) {
		r.put(key, func() error {
			if full {
				return errors.New("no space left on device")
			}
			wrote = append(wrote, key)
			return nil
		})
	}
	put("a")
	put("b")
	r.flush()
	put("c")
	r.flush()
	if r.err() == nil || len(wrote) != 0 {
		t.Fatalf("wrote %q, %v; want nothing and an error", wrote, r.err())
	}
	full = false
	r.flush()
	if want := []string{"a", "b", "c"}; !reflect.DeepEqual(wrote, want) || r.err() != nil {
		t.Errorf("wrote %q, %v; want %q", wrote, r.err(), want)
	}
}

func TestRecords(t *testing.T) {
	r, db := newTestRecorder(t)
	at := time.Unix(1_700_000_000, 0).UTC()
	seen := netip.MustParseAddrPort("203.0.113.1:4500")
	r.node(NodeView{Name: edge1, Endpoint: endpointOf(edge1), AgentVersion: "0.1.0", Fingerprint: "5f1c", LastSeen: at, NAT: wire.NAT{Present: true}})
	r.observe(edge1, Observation{Addr: seen, At: at, Means: "stun:3478"})
	r.pair(PairView{
		ID: both12, Nodes: [2]wire.NodeName{edge1, edge2}, State: Direct, Attempts: 3, TimeToDirect: time.Second, Since: at, LastDirect: at,
		Paths: map[wire.NodeName]wire.Path{edge1: {Kind: wire.PathServerReflexive, Remote: seen}},
	})
	r.flush()
	nodes, err := db.Nodes()
	if err != nil || len(nodes) != 1 {
		t.Fatalf("%v, %v", nodes, err)
	}
	var endpoint wire.Endpoint
	if err := json.Unmarshal(nodes[0].Endpoint, &endpoint); err != nil || !reflect.DeepEqual(endpoint, endpointOf(edge1)) {
		t.Errorf("endpoint %s, %v", nodes[0].Endpoint, err)
	}
	if n := nodes[0]; n.AgentVersion != "0.1.0" || n.Fingerprint != "5f1c" || !n.LastSeen.Equal(at) {
		t.Errorf("%+v", n)
	}
	if got, err := db.Observations(string(edge1)); err != nil || len(got) != 1 || got[0].Addr != seen || got[0].Means != "stun:3478" {
		t.Errorf("%+v, %v", got, err)
	}
	pairs, err := db.Pairs()
	if err != nil || len(pairs) != 1 {
		t.Fatalf("%v, %v", pairs, err)
	}
	want := store.Pair{
		ID: string(both12), State: "direct", Attempts: 3, TimeToDirect: time.Second, Changed: at, LastDirect: at,
		PathKind: "srflx", Endpoints: map[string]netip.AddrPort{string(edge1): seen},
	}
	if !reflect.DeepEqual(pairs[0], want) {
		t.Errorf("%+v, want %+v", pairs[0], want)
	}
	r.forget(both12)
	r.flush()
	if got, err := db.Pairs(); err != nil || len(got) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
}
