package rendezvous

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

const (
	// writeRetry is between tries of a store that does not take a record: a disk
	// that is full stays so for a while.
	writeRetry = 5 * time.Second
	// historyEvery is how often history is written, which nothing depends on: some
	// hundred kilobytes and a flush of the disk each time, whether it is one attempt
	// or those of a second.
	historyEvery = time.Second
	// maxObservations bounds the observations, and the attempts, that wait for such a
	// disk, 20 MB at the most. Beyond it the oldest are given up: they are history.
	// Other records are as many as there are nodes and pairs.
	maxObservations = 4096
)

// recorder writes to the store what the hub decided, on a goroutine of its
// own: a slow disk must not delay a punch. Of a record that changes again
// before it is written, only the newest is.
type recorder struct {
	store *store.Store
	log   *slog.Logger

	mu sync.Mutex
	// records, observations and history wait in this order.
	records, observations, history []string

	pending map[string]func() error
	// attempts are what the next write of them takes, the oldest first.
	attempts []AttemptView
	wake     chan struct{}
	// failing is the last write's error, for /readyz; given are the
	// observations given up since writes began to fail.
	failing error
	given   int
}

func newRecorder(s *store.Store, log *slog.Logger) *recorder {
	return &recorder{store: s, log: log, pending: map[string]func() error{}, wake: make(chan struct{}, 1)}
}

// put queues one write; key names the record.
func (r *recorder) put(key string, write func() error) {
	r.mu.Lock()
	if _, ok := r.pending[key]; !ok {
		r.records = append(r.records, key)
	}
	r.pending[key] = write
	r.mu.Unlock()
	r.look()
}

// putObservation queues a write that may be given up for want of room.
func (r *recorder) putObservation(key string, write func() error) {
	r.mu.Lock()
	if _, ok := r.pending[key]; !ok {
		r.observations = append(r.observations, key)
	}
	r.pending[key] = write
	if len(r.observations) > maxObservations {
		delete(r.pending, r.observations[0])
		r.observations = r.observations[1:]
		r.given++
	}
	r.mu.Unlock()
	r.look()
}

// putHistory queues a write that has time until the next of its kind.
func (r *recorder) putHistory(key string, write func() error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.pending[key]; !ok {
		r.history = append(r.history, key)
	}
	r.pending[key] = write
}

func (r *recorder) look() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// run writes until ctx is done, and then what is left. What could not be
// written is kept and tried again.
func (r *recorder) run(ctx context.Context) {
	history := time.NewTicker(historyEvery)
	defer history.Stop()
	for {
		// A disk that fails is not asked more often for being asked for more.
		wake, again := r.wake, history.C
		if r.err() != nil {
			wake, again = nil, time.After(writeRetry)
		}
		select {
		case <-wake:
			r.write(false)
		case <-again:
			r.flush()
		case <-ctx.Done():
			r.flush()
			if err := r.err(); err != nil {
				r.log.Error("store: what was not written is lost", "records", len(r.pending), "err", err)
			}
			return
		}
	}
}

// flush writes all that is pending, in order, up to the first failure.
func (r *recorder) flush() { r.write(true) }

// write is flush, with history or without.
func (r *recorder) write(history bool) {
	for {
		key, write := r.next(history)
		if write == nil {
			return
		}
		if err := write(); err != nil {
			r.keep(key, write, err)
			return
		}
	}
}

// next takes the oldest write off the queue. With none left the store works.
func (r *recorder) next(history bool) (key string, write func() error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	queue := &r.records
	if len(*queue) == 0 {
		queue = &r.observations
	}
	if len(*queue) == 0 && history {
		queue = &r.history
	}
	if len(*queue) == 0 {
		if r.failing != nil {
			r.log.Info("store: takes writes again, all is written", "observations_given_up", r.given)
		}
		r.failing, r.given = nil, 0
		return "", nil
	}
	key = (*queue)[0]
	*queue = (*queue)[1:]
	write = r.pending[key]
	delete(r.pending, key)
	return key, write
}

// keep puts a write that failed back to the front, unless a newer one of its
// record has come meanwhile. It logs an error once.
func (r *recorder) keep(key string, write func() error, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.pending[key]; !ok {
		// Also an observation: it is the first again that is tried.
		r.records = append([]string{key}, r.records...)
		r.pending[key] = write
	}
	if r.failing == nil || !sameTrouble(r.failing, err) {
		r.log.Error("store: record not written; all goes on from memory, and writing is tried again",
			"record", key, "waiting", len(r.pending), "err", err)
	}
	r.failing = err
}

// sameTrouble compares what the system said: the rest names the record.
func sameTrouble(a, b error) bool {
	var ea, eb syscall.Errno
	return errors.As(a, &ea) && errors.As(b, &eb) && ea == eb || a.Error() == b.Error()
}

// err is the error of the last write, nil when the store works.
func (r *recorder) err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failing
}

func (r *recorder) node(v NodeView) {
	r.put("node "+string(v.Name), func() error {
		endpoint, err := json.Marshal(v.Endpoint)
		if err != nil {
			return err
		}
		nat, err := json.Marshal(v.NAT)
		if err != nil {
			return err
		}
		return r.store.PutNode(store.Node{
			Name: string(v.Name), Endpoint: endpoint, NAT: nat, Punch: string(v.Punch), NoProbe: v.NoProbe, Metered: v.Metered,
			AgentVersion: v.AgentVersion, Fingerprint: v.Fingerprint, LastSeen: v.LastSeen,
		})
	})
}

func (r *recorder) observe(node wire.NodeName, o Observation) {
	r.putObservation("observed "+string(node)+" "+o.Addr.String(), func() error {
		_, err := r.store.Observe(string(node), store.Observation{Addr: o.Addr, At: o.At, Last: o.At, Means: o.Means})
		return err
	})
}

func (r *recorder) pair(v PairView) {
	r.put("pair "+string(v.ID), func() error {
		rec := store.Pair{
			ID: string(v.ID), State: string(v.State), Reason: v.Reason, Attempts: v.Attempts,
			Strategy: string(v.Strategy), Packets: v.Packets,
			TimeToDirect: time.Duration(v.TimeToDirectMs) * time.Millisecond, Changed: v.Since, LastDirect: v.LastDirect,
			Endpoints: map[string]netip.AddrPort{},
		}
		for _, node := range v.Nodes {
			if path, ok := v.Paths[node]; ok {
				rec.PathKind = string(path.Kind)
				rec.Endpoints[string(node)] = path.Remote
			}
		}
		return r.store.PutPair(rec)
	})
}

// events has the events stored that are not yet.
func (r *recorder) events(l *eventLog) {
	r.putHistory("events", func() error { return l.write(r.store) })
}

func (r *recorder) hour(h store.Hour) {
	r.putHistory("hour "+h.Start.Format(time.RFC3339), func() error { return r.store.PutHour(h) })
}

// attempt has an attempt stored, in place of what was said of it before.
func (r *recorder) attempt(v AttemptView) {
	r.mu.Lock()
	r.gather(v)
	r.mu.Unlock()
	r.putHistory("attempts", r.writeAttempts)
}

// gather adds to the attempts that wait. r.mu is held.
func (r *recorder) gather(v AttemptView) {
	if i := slices.IndexFunc(r.attempts, func(is AttemptView) bool { return is.ID == v.ID }); i >= 0 {
		r.attempts[i] = v
		return
	}
	if r.attempts = append(r.attempts, v); len(r.attempts) > maxObservations {
		r.attempts = r.attempts[1:]
		r.given++
	}
}

func (r *recorder) writeAttempts() error {
	r.mu.Lock()
	batch := r.attempts
	r.attempts = nil
	r.mu.Unlock()
	var records []store.Attempt
	for _, v := range batch {
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		records = append(records, store.Attempt{ID: string(v.ID), Pair: string(v.Pair), At: v.At, Record: b})
	}
	err := r.store.AddAttempts(records...)
	if err != nil {
		r.mu.Lock()
		newer := r.attempts
		r.attempts = batch
		for _, v := range newer {
			r.gather(v)
		}
		r.mu.Unlock()
	}
	return err
}

func (r *recorder) forgetNode(name wire.NodeName) {
	r.put("node "+string(name), func() error {
		if err := r.store.DeleteNode(string(name)); !errors.Is(err, store.ErrNotFound) {
			return err
		}
		return nil
	})
}

func (r *recorder) forget(id wire.PairID) {
	r.put("pair "+string(id), func() error { return r.store.DeletePair(string(id)) })
}
