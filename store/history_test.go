package store

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

func TestEvents(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rendezvous.db")
	s := mustOpen(t, path, Options{})
	if err := s.AddEvents(nil); err != nil {
		t.Error(err)
	}
	events := []Event{
		{ID: 1, At: noon, Kind: "node", Node: "beijing.edge1", State: "online", Text: "online"},
		{ID: 2, At: noon, Kind: "pair", Pair: "a.b|c.d", State: "down", Text: "down: c.d is offline"},
	}
	if err := s.AddEvents(events); err != nil {
		t.Fatal(err)
	}
	mustClose(t, s)
	s = mustOpen(t, path, Options{})
	slices.Reverse(events)
	if got, err := s.Events(0); err != nil || !reflect.DeepEqual(got, events) {
		t.Errorf("%+v, %v; want %+v", got, err, events)
	}
	if got, err := s.Events(1); err != nil || !reflect.DeepEqual(got, events[:1]) {
		t.Errorf("%+v, %v; want the newest", got, err)
	}
}

func TestEventsAreBounded(t *testing.T) {
	s := openTemp(t)
	var some []Event
	for id := uint64(1); id <= eventLimit+100; id++ {
		if some = append(some, Event{ID: id, At: noon}); len(some) == 1000 {
			if err := s.AddEvents(some); err != nil {
				t.Fatal(err)
			}
			some = nil
		}
	}
	if err := s.AddEvents(some); err != nil {
		t.Fatal(err)
	}
	got, err := s.Events(0)
	if err != nil || len(got) != eventLimit || got[0].ID != eventLimit+100 || got[eventLimit-1].ID != 101 {
		t.Errorf("%d events, %v", len(got), err)
	}
}

func attempt(pair string, n int) Attempt {
	return Attempt{
		ID: fmt.Sprintf("%s-%d", pair, n), Pair: pair, At: noon.Add(time.Duration(n) * time.Minute),
		Record: json.RawMessage(fmt.Sprintf(`{"n":%d}`, n)),
	}
}

func TestAttempts(t *testing.T) {
	s := openTemp(t)
	for n := range attemptsPerPair + 3 {
		for _, pair := range []string{"a.b|c.d", "a.b|c.d2"} { // one is the other's beginning
			if err := s.AddAttempts(attempt(pair, n)); err != nil {
				t.Fatal(err)
			}
		}
	}
	// What a side says late takes the place of what was there.
	last := attempt("a.b|c.d", attemptsPerPair+2)
	last.Record = json.RawMessage(`{"n":"late"}`)
	if err := s.AddAttempts(last); err != nil {
		t.Fatal(err)
	}
	var want []Attempt
	for n := attemptsPerPair + 2; n >= 3; n-- {
		want = append(want, attempt("a.b|c.d", n))
	}
	want[0] = last
	if got, err := s.Attempts("a.b|c.d"); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v\nwant %+v", got, err, want)
	}
	if got, err := s.Attempts("a.b|c.d2"); err != nil || len(got) != attemptsPerPair {
		t.Errorf("the other pair's: %d, %v", len(got), err)
	}
	if got, err := s.Attempts("a.b|nobody"); err != nil || len(got) != 0 {
		t.Errorf("of no pair: %+v, %v", got, err)
	}
}

// All pairs' attempts together are bounded, the oldest go first.
func TestAttemptsAreBounded(t *testing.T) {
	s := openTemp(t)
	const stored = 40
	for n := range stored {
		if err := s.AddAttempts(attempt(fmt.Sprintf("a.b|c.d%02d", n), n)); err != nil {
			t.Fatal(err)
		}
	}
	err := s.update("trim", func(tx *bbolt.Tx) error {
		// As if so many more had been stored since that ten of them are left.
		return trimAttempts(tx.Bucket(attemptsBucket), tx.Bucket(attemptOrderBucket), attemptLimit+stored-10)
	})
	if err != nil {
		t.Fatal(err)
	}
	for n := range stored {
		got, err := s.Attempts(fmt.Sprintf("a.b|c.d%02d", n))
		if kept := n >= stored-10; err != nil || kept != (len(got) == 1) {
			t.Errorf("attempt %d: %d kept, %v", n, len(got), err)
		}
	}
}

func TestHours(t *testing.T) {
	s := openTemp(t)
	start := noon.Truncate(time.Hour)
	put := func(h Hour) {
		t.Helper()
		if err := s.PutHour(h); err != nil {
			t.Fatal(err)
		}
	}
	for n := range hourLimit + 5 {
		put(Hour{Start: start.Add(time.Duration(n) * time.Hour), Direct: n})
	}
	newest := Hour{Start: start.Add((hourLimit + 4) * time.Hour), Direct: 7, Failed: 2, TimeToDirect: []int{0, 3, 4}}
	put(newest)
	got, err := s.Hours()
	if err != nil || len(got) != hourLimit || got[0].Direct != 5 || !reflect.DeepEqual(got[hourLimit-1], newest) {
		t.Errorf("%d hours, the first %+v, the last %+v, %v", len(got), got[0], got[len(got)-1], err)
	}
}
