package store

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/bbolt"
)

var (
	eventsBucket       = []byte("events")
	attemptsBucket     = []byte("attempts")
	attemptOrderBucket = []byte("attemptOrder")
	hoursBucket        = []byte("hours")
)

const (
	// eventLimit is how many events are kept: a busy day of a large cluster.
	eventLimit = 5000
	// attemptsPerPair is how many attempts of one pair are kept, and attemptLimit
	// of all pairs together: of some kilobytes each, so a community of 300 nodes
	// stays below 150 MB.
	attemptsPerPair = 8
	attemptLimit    = 20_000
	// hourLimit is a week.
	hourLimit = 7 * 24
)

// Event is something that happened, as the page lists it.
type Event struct {
	ID   uint64    `json:"id"` // grows
	At   time.Time `json:"at"`
	Kind string    `json:"kind"`           // rendezvous.EventKind
	Pair string    `json:"pair,omitempty"` // PairID
	Node string    `json:"node,omitempty"`
	// State is the pair's or node's new state.
	State string `json:"state,omitempty"`
	Text  string `json:"text,omitempty"`
}

// Attempt is one punch of a pair, in the rendezvous' own encoding.
type Attempt struct {
	ID     string          `json:"id"`
	Pair   string          `json:"pair"`
	At     time.Time       `json:"at"`
	Record json.RawMessage `json:"record"`
}

// Hour is what came of the attempts that ended in one hour.
type Hour struct {
	Start  time.Time `json:"start"` // on the hour, UTC
	Direct int       `json:"direct"`
	Failed int       `json:"failed"`
	// TimeToDirect counts the direct ones by the rendezvous' buckets.
	TimeToDirect []int `json:"timeToDirect,omitempty"`
}

// AddEvents appends events, whose IDs must grow, and forgets the oldest.
func (s *Store) AddEvents(events []Event) error {
	return s.update("add events", func(tx *bbolt.Tx) error {
		b := tx.Bucket(eventsBucket)
		for _, e := range events {
			e.At = e.At.UTC()
			if err := putIn(b, sequenceKey(e.ID), e); err != nil {
				return err
			}
		}
		if len(events) == 0 {
			return nil
		}
		last := events[len(events)-1].ID
		c := b.Cursor()
		for k, _ := c.First(); k != nil && binary.BigEndian.Uint64(k)+eventLimit <= last; k, _ = c.First() {
			if err := c.Delete(); err != nil {
				return err
			}
		}
		return nil
	})
}

// Events returns the newest limit events, newest first; all of them if limit is 0.
func (s *Store) Events(limit int) ([]Event, error) { return newest[Event](s, eventsBucket, limit) }

// AddAttempts stores attempts, in place of those that had their IDs, and forgets the
// pairs', or everybody's, oldest.
func (s *Store) AddAttempts(all ...Attempt) error {
	return s.update("add attempts", func(tx *bbolt.Tx) error {
		for _, a := range all {
			if err := addAttempt(tx.Bucket(attemptsBucket), tx.Bucket(attemptOrderBucket), a); err != nil {
				return fmt.Errorf("pair %q: %w", a.Pair, err)
			}
		}
		return nil
	})
}

func addAttempt(attempts, order *bbolt.Bucket, a Attempt) error {
	a.At = a.At.UTC()
	key := attemptKey(a.Pair, a.At, a.ID)
	known := attempts.Get(key) != nil
	if err := putIn(attempts, key, a); err != nil || known {
		return err
	}
	seq, err := order.NextSequence()
	if err != nil {
		return err
	}
	quoted, err := json.Marshal(string(key)) // every bucket's values are JSON
	if err != nil {
		return err
	}
	if err := order.Put(sequenceKey(seq), quoted); err != nil {
		return err
	}
	if err := trimPair(attempts, a.Pair); err != nil {
		return err
	}
	return trimAttempts(attempts, order, seq)
}

// attemptKey sorts a pair's attempts by time.
func attemptKey(pair string, at time.Time, id string) []byte {
	return fmt.Appendf(nil, "%s\x00%020d\x00%s", pair, at.UnixNano(), id)
}

func trimPair(attempts *bbolt.Bucket, pair string) error {
	prefix := []byte(pair + "\x00")
	var keys [][]byte
	c := attempts.Cursor()
	for k, _ := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, _ = c.Next() {
		keys = append(keys, bytes.Clone(k))
	}
	for len(keys) > attemptsPerPair {
		if err := attempts.Delete(keys[0]); err != nil {
			return err
		}
		keys = keys[1:]
	}
	return nil
}

// trimAttempts forgets the oldest of all; those that trimPair has removed
// already are none the worse for it.
func trimAttempts(attempts, order *bbolt.Bucket, seq uint64) error {
	if seq <= attemptLimit {
		return nil
	}
	c := order.Cursor()
	for k, v := c.First(); k != nil && binary.BigEndian.Uint64(k) <= seq-attemptLimit; k, v = c.First() {
		var key string
		if err := decode(v, &key); err != nil {
			return err
		}
		if err := attempts.Delete([]byte(key)); err != nil {
			return err
		}
		if err := c.Delete(); err != nil {
			return err
		}
	}
	return nil
}

// Attempts returns the attempts of a pair that are kept, newest first.
func (s *Store) Attempts(pair string) (out []Attempt, err error) {
	prefix := []byte(pair + "\x00")
	err = s.view(fmt.Sprintf("attempts of %q", pair), func(tx *bbolt.Tx) error {
		c := tx.Bucket(attemptsBucket).Cursor()
		for k, v := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, v = c.Next() {
			var a Attempt
			if err := decode(v, &a); err != nil {
				return err
			}
			out = append(out, a)
		}
		return nil
	})
	slices.Reverse(out)
	return out, err
}

// PutHour stores an hour in place of what was there and forgets those older than
// a week.
func (s *Store) PutHour(h Hour) error {
	h.Start = h.Start.UTC()
	return s.update("put hour", func(tx *bbolt.Tx) error {
		b := tx.Bucket(hoursBucket)
		if err := putIn(b, []byte(h.Start.Format(time.RFC3339)), h); err != nil {
			return err
		}
		oldest := []byte(h.Start.Add(-hourLimit * time.Hour).Format(time.RFC3339))
		c := b.Cursor()
		for k, _ := c.First(); k != nil && bytes.Compare(k, oldest) <= 0; k, _ = c.First() {
			if err := c.Delete(); err != nil {
				return err
			}
		}
		return nil
	})
}

// Hours returns the hours that are kept, oldest first. Hours in which nothing
// ended are absent.
func (s *Store) Hours() ([]Hour, error) { return list[Hour](s, hoursBucket) }
