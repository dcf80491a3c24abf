package rendezvous

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/netip"
	"sync"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

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

// run writes until ctx is done, and then what is left.
func (r *recorder) run(ctx context.Context) {
	for {
		select {
		case <-r.wake:
			r.flush()
		case <-ctx.Done():
			r.flush()
			return
		}
	}
}

func (r *recorder) flush() {
	for {
		r.mu.Lock()
		if len(r.order) == 0 {
			r.mu.Unlock()
			return
		}
		key := r.order[0]
		write := r.pending[key]
		r.order = r.order[1:]
		delete(r.pending, key)
		r.mu.Unlock()

		err := write()
		if err != nil {
			r.log.Error("store: record not written", "record", key, "err", err)
		}
		r.mu.Lock()
		r.failing = err
		r.mu.Unlock()
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
			Name: string(v.Name), Endpoint: endpoint, NAT: nat,
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
			TimeToDirect: v.TimeToDirect, Changed: v.Since, LastDirect: v.LastDirect,
			Endpoints: map[string]netip.AddrPort{},
		}
		for node, path := range v.Paths {
			rec.PathKind = string(path.Kind)
			rec.Endpoints[string(node)] = path.Remote
		}
		return r.store.PutPair(rec)
	})
}

func (r *recorder) forget(id PairID) {
	r.put("pair "+string(id), func() error { return r.store.DeletePair(string(id)) })
}
