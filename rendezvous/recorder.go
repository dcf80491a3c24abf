package rendezvous

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
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
	// maxObservations bounds the observations and attempts that wait for such a
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
	// records and observations wait in this order.
	records, observations []string
	pending               map[string]func() error
	wake                  chan struct{}
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

func (r *recorder) look() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// run writes until ctx is done, and then what is left. What could not be
// written is kept and tried again.
func (r *recorder) run(ctx context.Context) {
	for {
		// A disk that fails is not asked more often for being asked for more.
		wake, again := r.wake, (<-chan time.Time)(nil)
		if r.err() != nil {
			wake, again = nil, time.After(writeRetry)
		}
		select {
		case <-wake:
		case <-again:
		case <-ctx.Done():
			r.flush()
			if err := r.err(); err != nil {
				r.log.Error("store: what was not written is lost", "records", len(r.pending), "err", err)
			}
			return
		}
		r.flush()
	}
}

// flush writes all that is pending, in order, up to the first failure.
func (r *recorder) flush() {
	for {
		key, write := r.next()
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
func (r *recorder) next() (key string, write func() error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	queue := &r.records
	if len(*queue) == 0 {
		queue = &r.observations
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
	r.put("events", func() error { return l.write(r.store) })
}

func (r *recorder) hour(h store.Hour) {
	r.put("hour "+h.Start.Format(time.RFC3339), func() error { return r.store.PutHour(h) })
}

// attempt stores an attempt, which is history, too.
func (r *recorder) attempt(v AttemptView) {
	r.putObservation("attempt "+string(v.ID), func() error {
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		return r.store.AddAttempt(store.Attempt{ID: string(v.ID), Pair: string(v.Pair), At: v.At, Record: b})
	})
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
