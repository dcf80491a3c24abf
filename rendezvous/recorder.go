package rendezvous

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

// writeRetry is between tries of a store that does not take a record: a disk
// that is full stays so for a while.
const writeRetry = 5 * time.Second

// recorder writes to the store what the hub decided, on a goroutine of its
// own: a slow disk must not delay a punch. Of a record that changes again
// before it is written, only the newest is.
type recorder struct {
	store *store.Store
	log   *slog.Logger

	mu      sync.Mutex
	order   []string
	pending map[string]func() error
	wake    chan struct{}
	// failing is the last write's error, for /readyz.
	failing error
}

func newRecorder(s *store.Store, log *slog.Logger) *recorder {
	return &recorder{store: s, log: log, pending: map[string]func() error{}, wake: make(chan struct{}, 1)}
}

// put queues one write; key names the record.
func (r *recorder) put(key string, write func() error) {
	r.mu.Lock()
	if _, ok := r.pending[key]; !ok {
		r.order = append(r.order, key)
	}
	r.pending[key] = write
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// run writes until ctx is done, and then what is left. What could not be
// written is kept and tried again.
func (r *recorder) run(ctx context.Context) {
	for {
		var again <-chan time.Time
		if r.err() != nil {
			again = time.After(writeRetry)
		}
		select {
		case <-r.wake:
		case <-again:
		case <-ctx.Done():
			r.flush()
			return
		}
		r.flush()
	}
}

// flush writes all that is pending, in order, up to the first failure.
func (r *recorder) flush() {
	for {
		r.mu.Lock()
		if len(r.order) == 0 {
			r.failing = nil
			r.mu.Unlock()
			return
		}
		key := r.order[0]
		write := r.pending[key]
		r.order = r.order[1:]
		delete(r.pending, key)
		r.mu.Unlock()

		if err := write(); err != nil {
			r.log.Error("store: record not written; it is kept and tried again", "record", key, "err", err)
			r.keep(key, write, err)
			return
		}
	}
}

// keep puts a write that failed back to the front, unless a newer one of its
// record has come meanwhile.
func (r *recorder) keep(key string, write func() error, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failing = err
	if _, ok := r.pending[key]; !ok {
		r.order = append([]string{key}, r.order...)
		r.pending[key] = write
	}
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
			Name: string(v.Name), Endpoint: endpoint, NAT: nat, Punch: string(v.Punch), NoProbe: v.NoProbe,
			AgentVersion: v.AgentVersion, Fingerprint: v.Fingerprint, LastSeen: v.LastSeen,
		})
	})
}

func (r *recorder) observe(node wire.NodeName, o Observation) {
	r.put("observed "+string(node)+" "+o.Addr.String(), func() error {
		_, err := r.store.Observe(string(node), store.Observation{Addr: o.Addr, At: o.At, Last: o.At, Means: o.Means})
		return err
	})
}

func (r *recorder) pair(v PairView) {
	r.put("pair "+string(v.ID), func() error {
		rec := store.Pair{
			ID: string(v.ID), State: string(v.State), Reason: v.Reason, Attempts: v.Attempts,
			Strategy: string(v.Strategy), Packets: v.Packets,
			TimeToDirect: v.TimeToDirect, Changed: v.Since, LastDirect: v.LastDirect,
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

func (r *recorder) forgetNode(name wire.NodeName) {
	r.put("node "+string(name), func() error {
		if err := r.store.DeleteNode(string(name)); !errors.Is(err, store.ErrNotFound) {
			return err
		}
		return nil
	})
}

func (r *recorder) forget(id PairID) {
	r.put("pair "+string(id), func() error { return r.store.DeletePair(string(id)) })
}
