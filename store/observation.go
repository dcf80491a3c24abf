package store

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"go.etcd.io/bbolt"
)

var observationsBucket = []byte("observations")

// lastSeenGrain is how far Observation.Last may lag behind the truth on disk.
// A node refreshes its mapping every few tens of seconds, and a write waits
// for the disk: without the grain, idle nodes alone would keep it busy.
const lastSeenGrain = time.Minute

// Observation is an address that the rendezvous itself saw a node come from.
type Observation struct {
	Addr  netip.AddrPort `json:"addr"`
	At    time.Time      `json:"at"`    // first seen at this address
	Last  time.Time      `json:"last"`  // last seen there, within a minute; At if zero
	Means string         `json:"means"` // where it was seen, for example "stun:3478"
}

// Observe adds o to the node's history. Seeing the address again that o.Means
// showed last only moves that entry's Last; anything else is a new entry, and
// changed says so. Each means is compared with itself, because a NAT with
// address-and-port-dependent mapping (RFC 4787 Section 4.1) shows another
// address to every STUN port, and comparing across would record a change with
// every request. The same goes for the two address families.
func (s *Store) Observe(node string, o Observation) (changed bool, err error) {
	operation := fmt.Sprintf("observe node %q", node)
	if !o.Addr.IsValid() {
		return false, s.wrap(operation, fmt.Errorf("invalid address %q", o.Addr))
	}
	tx, err := s.db.Begin(true)
	if err != nil {
		return false, s.wrap(operation, err)
	}
	defer func() { _ = tx.Rollback() }() // refused, harmlessly, after Commit

	history, err := observations(tx, node)
	if err != nil {
		return false, s.wrap(operation, err)
	}
	history, verdict := record(history, o, s.history)
	if verdict == unchanged {
		return false, nil
	}
	if err := put(tx, observationsBucket, node, history); err != nil {
		return false, s.wrap(operation, err)
	}
	if err := tx.Commit(); err != nil {
		return false, s.wrap(operation, err)
	}
	return verdict == added, nil
}

// Observations returns the node's history, newest first; it is empty for a
// node that was never observed.
func (s *Store) Observations(node string) (history []Observation, err error) {
	err = s.view(fmt.Sprintf("observations of node %q", node), func(tx *bbolt.Tx) error {
		history, err = observations(tx, node)
		return err
	})
	return history, err
}

func observations(tx *bbolt.Tx, node string) (history []Observation, err error) {
	value := tx.Bucket(observationsBucket).Get([]byte(node))
	if value == nil {
		return nil, nil
	}
	return history, decode(value, &history)
}

// verdict says what an observation did to a history.
type verdict int

const (
	unchanged verdict = iota // not worth a write
	moved                    // an entry's Last moved
	added                    // a new entry
)

// record folds o into history, newest first and at most limit entries long.
func record(history []Observation, o Observation, limit int) ([]Observation, verdict) {
	o.At, o.Last = o.At.UTC(), o.Last.UTC()
	if o.Last.Before(o.At) {
		o.Last = o.At
	}
	i := slices.IndexFunc(history, func(h Observation) bool {
		return h.Means == o.Means && h.Addr.Addr().Is4() == o.Addr.Addr().Is4()
	})
	if i >= 0 && history[i].Addr == o.Addr {
		if o.Last.Sub(history[i].Last) < lastSeenGrain {
			return history, unchanged
		}
		history[i].Last = o.Last
		return history, moved
	}
	history = slices.Insert(history, 0, o)
	return history[:min(len(history), limit)], added
}
