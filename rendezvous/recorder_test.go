package rendezvous

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
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
		ID: both12, Nodes: [2]wire.NodeName{edge1, edge2}, State: Direct, Attempts: 3, TimeToDirectMs: 1000, Since: at, LastDirect: at,
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

// A disk that fails is said once and asked at its own pace, however much there
// is to write; when it works again everything is written.
func TestRecorderOnFailingDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		r := newRecorder(nil, slog.New(slog.NewTextHandler(&log, nil)))
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { r.run(ctx) })
		var full atomic.Bool
		full.Store(true)
		tried, wrote := 0, 0
		write := func() error {
			tried++
			if full.Load() {
				return fmt.Errorf("store: put: %w", syscall.ENOSPC)
			}
			wrote++
			return nil
		}
		const records, tries = 200, 4
		for i := range records {
			r.put(fmt.Sprint("pair ", i), write)
			time.Sleep((tries - 1) * writeRetry / records)
		}
		synctest.Wait()
		if tried > tries || r.err() == nil {
			t.Errorf("tried %d times, error %v; want at most %d tries and an error", tried, r.err(), tries)
		}
		full.Store(false)
		time.Sleep(writeRetry)
		synctest.Wait()
		if wrote != records || r.err() != nil {
			t.Errorf("%d records written, error %v; want %d and none", wrote, r.err(), records)
		}
		if said := strings.Count(log.String(), "level=ERROR"); said != 1 || !strings.Contains(log.String(), "no space left on device") {
			t.Errorf("%d errors logged, want one that names the trouble:\n%s", said, log.String())
		}
		cancel()
		running.Wait()
	})
}

// Observations are history: of those only so many wait, and never instead of a
// record.
func TestRecorderGivesUpObservations(t *testing.T) {
	r, _ := newTestRecorder(t)
	var wrote []string
	put := func(queue func(string, func() error), key string) {
		queue(key, func() error { wrote = append(wrote, key); return nil })
	}
	put(r.put, "node")
	const extra = 3
	for i := range maxObservations + extra {
		put(r.putObservation, fmt.Sprint(i))
	}
	if got := len(r.pending); got != maxObservations+1 {
		t.Errorf("%d writes wait; want %d", got, maxObservations+1)
	}
	r.flush()
	if len(wrote) != maxObservations+1 || wrote[0] != "node" || wrote[1] != fmt.Sprint(extra) {
		t.Errorf("%d written, first %q; want the record and then the newest observations", len(wrote), wrote[:min(2, len(wrote))])
	}
}

// Attempts are written together, each as it was last; those that a store did not
// take, with what has come since. History waits for its time.
func TestRecorderGathersAttempts(t *testing.T) {
	r, full := newTestRecorder(t)
	if err := full.Close(); err != nil {
		t.Fatal(err)
	}
	_, db := newTestRecorder(t)
	put := func(id wire.AttemptID, o AttemptOutcome) {
		r.attempt(AttemptView{ID: id, Pair: both12, At: time.Unix(1_700_000_000, 0), Outcome: o})
	}
	put("a", AttemptRunning)
	put("b", AttemptFailed)
	r.flush()
	if r.err() == nil {
		t.Fatal("a closed store takes writes")
	}
	put("a", AttemptDirect)
	r.store = db
	written := func() (got []string) {
		t.Helper()
		stored, err := db.Attempts(string(both12))
		if err != nil {
			t.Fatal(err)
		}
		views, err := withStored(nil, stored)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range views {
			got = append(got, string(v.ID)+" "+string(v.Outcome))
		}
		slices.Sort(got)
		return got
	}
	r.flush()
	if got, want := written(), []string{"a direct", "b failed"}; !slices.Equal(got, want) || r.err() != nil {
		t.Errorf("%q, %v; want %q", got, r.err(), want)
	}
	put("c", AttemptFailed)
	r.write(false)
	if got := written(); len(got) != 2 {
		t.Errorf("before its time: %q", got)
	}
	r.flush()
	if got := written(); len(got) != 3 {
		t.Errorf("at its time: %q", got)
	}
	for i := range maxObservations + 1 {
		put(wire.AttemptID(fmt.Sprint(i)), AttemptFailed)
	}
	if len(r.attempts) != maxObservations || r.attempts[0].ID != "1" {
		t.Errorf("%d wait, the first %s", len(r.attempts), r.attempts[0].ID)
	}
}
