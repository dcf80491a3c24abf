package store

import (
	"encoding/binary"
	"fmt"
	"time"

	"go.etcd.io/bbolt"
)

var auditBucket = []byte("audit")

// auditLimit is how many entries are kept; at a change a minute, a week.
const auditLimit = 10_000

// Audit is one change that somebody made.
type Audit struct {
	At time.Time `json:"at"`
	// Who is a credential's name, "unix socket", a node that joined, or "rendezvous".
	Who string `json:"who"`
	// From is the address the request came from, empty for the unix socket.
	From string `json:"from,omitempty"`
	// Action is a verb and a kind, such as "revoke node"; Object the thing's name.
	Action string `json:"action"`
	Object string `json:"object,omitempty"`
	// Detail is what was changed in words. It never holds a secret.
	Detail string `json:"detail,omitempty"`
}

// Tx is a transaction that reads several kinds of records as of one moment, and
// in Change writes them together. It is good until the function it was given to
// returns.
type Tx struct{ tx *bbolt.Tx }

// View runs f on a consistent snapshot. f must not write.
func (s *Store) View(operation string, f func(*Tx) error) error {
	return s.view(operation, func(tx *bbolt.Tx) error { return f(&Tx{tx}) })
}

// Change runs f and, if it succeeds, writes what f did together with the audit
// entry a, which f may still complete: all of it or nothing.
func (s *Store) Change(a *Audit, f func(*Tx) error) error {
	return s.update(a.Action+" "+a.Object, func(tx *bbolt.Tx) error {
		if err := f(&Tx{tx}); err != nil {
			return err
		}
		a.At = a.At.UTC()
		return appendBounded(tx.Bucket(auditBucket), *a, auditLimit)
	})
}

// Audits returns the newest limit entries, newest first; all of them if limit is 0.
func (s *Store) Audits(limit int) ([]Audit, error) { return newest[Audit](s, auditBucket, limit) }

// appendBounded adds a record under the next sequence number and removes what is
// older than the newest limit records.
func appendBounded(b *bbolt.Bucket, record any, limit uint64) error {
	seq, err := b.NextSequence()
	if err != nil {
		return err
	}
	if err := putIn(b, sequenceKey(seq), record); err != nil {
		return err
	}
	if seq <= limit {
		return nil
	}
	c := b.Cursor()
	for k, _ := c.First(); k != nil && binary.BigEndian.Uint64(k) <= seq-limit; k, _ = c.First() {
		if err := c.Delete(); err != nil {
			return err
		}
	}
	return nil
}

func sequenceKey(seq uint64) []byte { return binary.BigEndian.AppendUint64(nil, seq) }

// newest decodes records kept under sequence numbers, newest first.
func newest[T any](s *Store, bucket []byte, limit int) (records []T, err error) {
	err = s.view("list "+string(bucket), func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucket).Cursor()
		for k, value := c.Last(); k != nil && (limit == 0 || len(records) < limit); k, value = c.Prev() {
			var record T
			if err := decode(value, &record); err != nil {
				return fmt.Errorf("record %x: %w", k, err)
			}
			records = append(records, record)
		}
		return nil
	})
	return records, err
}

// get decodes the record under key, or returns ErrNotFound.
func get[T any](t *Tx, bucket []byte, key string) (record T, err error) {
	value := t.tx.Bucket(bucket).Get([]byte(key))
	if value == nil {
		return record, fmt.Errorf("%q: %w", key, ErrNotFound)
	}
	return record, decode(value, &record)
}

// all decodes every record of a bucket in key order.
func all[T any](t *Tx, bucket []byte) (records []T, err error) {
	err = t.tx.Bucket(bucket).ForEach(func(_, value []byte) error {
		var record T
		if err := decode(value, &record); err != nil {
			return err
		}
		records = append(records, record)
		return nil
	})
	return records, err
}

// remove deletes the record under key, or returns ErrNotFound.
func (t *Tx) remove(bucket []byte, key string) error {
	b := t.tx.Bucket(bucket)
	if b.Get([]byte(key)) == nil {
		return fmt.Errorf("%q: %w", key, ErrNotFound)
	}
	return b.Delete([]byte(key))
}
