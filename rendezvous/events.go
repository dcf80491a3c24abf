package rendezvous

import (
	"slices"
	"sync"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

// ringSize is how many events are at hand for the page and for streams that come
// back after an interruption: some minutes of a busy cluster, half a megabyte.
const ringSize = 1000

// eventLog holds the newest events and has them stored. It is safe for concurrent
// use.
type eventLog struct {
	save func() // has saved called, on a goroutine that may wait for a disk

	mu sync.Mutex
	// ring is in order of ID.
	ring []EventView
	last uint64
	// start is the last ID of the run before.
	start uint64
	// unsaved are the newest of ring that are not in the store.
	unsaved int
	// grown is closed, and another put in its place, at each event; closed is
	// when there will be no more.
	grown  chan struct{}
	closed chan struct{}
}

// newEventLog goes on from the events of former runs, newest first.
func newEventLog(stored []store.Event) *eventLog {
	l := &eventLog{save: func() {}, grown: make(chan struct{}), closed: make(chan struct{})}
	for _, e := range slices.Backward(stored[:min(len(stored), ringSize)]) {
		l.ring = append(l.ring, viewOfEvent(e))
		l.last = e.ID
	}
	l.start = l.last
	return l
}

func viewOfEvent(e store.Event) EventView {
	return EventView{ID: e.ID, At: e.At, Kind: EventKind(e.Kind), Pair: wire.PairID(e.Pair), Node: wire.NodeName(e.Node), State: e.State, Text: e.Text}
}

// add appends an event; its ID and time are set here.
func (l *eventLog) add(now time.Time, e EventView) {
	l.mu.Lock()
	l.last++
	e.ID, e.At = l.last, now.UTC()
	if len(l.ring) >= ringSize {
		// Moved down in steps, or each event would move all.
		if cap(l.ring) == len(l.ring) {
			l.ring = append(make([]EventView, 0, 2*ringSize), l.ring[1:]...)
		} else {
			l.ring = l.ring[1:]
		}
	}
	l.ring = append(l.ring, e)
	l.unsaved = min(l.unsaved+1, len(l.ring))
	close(l.grown)
	l.grown = make(chan struct{})
	l.mu.Unlock()
	l.save()
}

// write stores what is not in the store yet. It is called by one goroutine.
func (l *eventLog) write(s *store.Store) error {
	l.mu.Lock()
	batch := make([]store.Event, 0, l.unsaved)
	for _, e := range l.ring[len(l.ring)-l.unsaved:] {
		batch = append(batch, store.Event{ID: e.ID, At: e.At, Kind: string(e.Kind), Pair: string(e.Pair), Node: string(e.Node), State: e.State, Text: e.Text})
	}
	l.mu.Unlock()
	if len(batch) == 0 {
		return nil
	}
	if err := s.AddEvents(batch); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unsaved = min(int(l.last-batch[len(batch)-1].ID), len(l.ring))
	return nil
}

// lastID is that of the newest event, 0 when there has never been one.
func (l *eventLog) lastID() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

// newest is the ring, newest first.
func (l *eventLog) newest() []EventView {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := slices.Clone(l.ring)
	slices.Reverse(out)
	return out
}

// since is what came after an ID, as far back as the ring goes, and a channel that
// is closed when there is more. An ID that is yet to be given is one of a former
// run that was not stored in time: all of this run is news then.
func (l *eventLog) since(after uint64) ([]EventView, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if after > l.last {
		after = l.start
	}
	i, found := slices.BinarySearchFunc(l.ring, after, func(e EventView, id uint64) int {
		if e.ID < id {
			return -1
		} else if e.ID > id {
			return 1
		}
		return 0
	})
	if found {
		i++
	}
	return slices.Clone(l.ring[i:]), l.grown
}

// close ends all streams.
func (l *eventLog) close() { close(l.closed) }

// eventFilter is what GET /api/v1/events asks for; the zero value is all.
type eventFilter struct {
	pair  wire.PairID
	node  wire.NodeName
	limit int
}

// lets reports whether an event is of what was asked for. A node's events are also
// those of its pairs.
func (f eventFilter) lets(e EventView) bool {
	if f.pair != "" && e.Pair != f.pair {
		return false
	}
	if f.node == "" || e.Node == f.node {
		return true
	}
	a, b := e.Pair.Nodes()
	return a == string(f.node) || b == string(f.node)
}

// find takes the newest from the ring and, if those are not enough, older ones
// from the store.
func (f eventFilter) find(ring []EventView, older func() ([]store.Event, error)) ([]EventView, error) {
	out := []EventView{}
	take := func(e EventView) {
		if len(out) < f.limit && f.lets(e) {
			out = append(out, e)
		}
	}
	for _, e := range ring {
		take(e)
	}
	if len(out) == f.limit || len(ring) < ringSize {
		return out, nil
	}
	stored, err := older()
	if err != nil {
		return nil, err
	}
	oldest := ring[len(ring)-1].ID
	for _, e := range stored {
		if e.ID < oldest {
			take(viewOfEvent(e))
		}
	}
	return out, nil
}
