package store

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"go.etcd.io/bbolt"
)

var (
	nodesBucket       = []byte("nodes")
	communitiesBucket = []byte("communities")
	pairsBucket       = []byte("pairs")
)

// Node is what the rendezvous knows of a node that has joined at least once.
type Node struct {
	Name string `json:"name"`
	// Endpoint and NAT are in the rendezvous' own encoding: JSON, which comes
	// back equal as JSON though not byte for byte.
	Endpoint     json.RawMessage `json:"endpoint,omitempty"`
	NAT          json.RawMessage `json:"nat,omitempty"`
	Punch        string          `json:"punch,omitempty"`   // its operator's policy
	NoProbe      string          `json:"noProbe,omitempty"` // why it cannot open many ports
	Metered      bool            `json:"metered,omitempty"` // somebody pays for each byte
	AgentVersion string          `json:"agentVersion,omitempty"`
	Fingerprint  string          `json:"fingerprint,omitempty"` // SHA-256 of the node's certificate
	LastSeen     time.Time       `json:"lastSeen"`
}

// Community is a named list of nodes that may reach each other.
type Community struct {
	Name    string    `json:"name"`
	Members []string  `json:"members"`
	Punch   string    `json:"punch,omitempty"`  // policy; empty permits everything
	Source  string    `json:"source,omitempty"` // "api", or the file it came from
	Updated time.Time `json:"updated"`
}

// Pair is the last known outcome for two nodes that share a community.
type Pair struct {
	ID       string `json:"id"`
	State    string `json:"state"`
	Reason   string `json:"reason,omitempty"`
	PathKind string `json:"pathKind,omitempty"`
	// Endpoints holds each node's punched address as its peer sees it.
	Endpoints    map[string]netip.AddrPort `json:"endpoints,omitempty"`
	Attempts     int                       `json:"attempts,omitempty"`
	Strategy     string                    `json:"strategy,omitempty"`     // of the last attempt
	Packets      int                       `json:"packets,omitempty"`      // both sides' in the last attempt
	TimeToDirect time.Duration             `json:"timeToDirect,omitempty"` // nanoseconds
	Changed      time.Time                 `json:"changed"`
	LastDirect   time.Time                 `json:"lastDirect"`
}

// PutNode stores n under its name, in place of what was there.
func (s *Store) PutNode(n Node) error {
	n.LastSeen = n.LastSeen.UTC()
	return s.update(fmt.Sprintf("put node %q", n.Name), func(tx *bbolt.Tx) error {
		return put(tx, nodesBucket, n.Name, n)
	})
}

// Node returns the node of that name, or ErrNotFound.
func (s *Store) Node(name string) (n Node, err error) {
	err = s.view(fmt.Sprintf("node %q", name), func(tx *bbolt.Tx) error {
		value := tx.Bucket(nodesBucket).Get([]byte(name))
		if value == nil {
			return ErrNotFound
		}
		return decode(value, &n)
	})
	return n, err
}

// Nodes returns all nodes, sorted by name.
func (s *Store) Nodes() ([]Node, error) {
	return list[Node](s, nodesBucket)
}

// PutCommunity stores a community under its name.
func (t *Tx) PutCommunity(c Community) error {
	c.Updated = c.Updated.UTC()
	return put(t.tx, communitiesBucket, c.Name, c)
}

// DeleteCommunity removes a community, or returns ErrNotFound.
func (t *Tx) DeleteCommunity(name string) error { return t.remove(communitiesBucket, name) }

// DeleteNode forgets a node and where it was observed. ErrNotFound when there is
// no such node.
func (s *Store) DeleteNode(name string) error {
	return s.update(fmt.Sprintf("delete node %q", name), func(tx *bbolt.Tx) error {
		b := tx.Bucket(nodesBucket)
		if b.Get([]byte(name)) == nil {
			return ErrNotFound
		}
		if err := tx.Bucket(observationsBucket).Delete([]byte(name)); err != nil {
			return err
		}
		return b.Delete([]byte(name))
	})
}

// Communities returns all communities, sorted by name.
func (s *Store) Communities() ([]Community, error) {
	return list[Community](s, communitiesBucket)
}

// PutPair stores p under its ID, in place of what was there.
func (s *Store) PutPair(p Pair) error {
	p.Changed, p.LastDirect = p.Changed.UTC(), p.LastDirect.UTC()
	return s.update(fmt.Sprintf("put pair %q", p.ID), func(tx *bbolt.Tx) error {
		return put(tx, pairsBucket, p.ID, p)
	})
}

// DeletePair removes the pair of that ID. Removing one that is not there is no
// error: a pair may leave its communities before it had any outcome to store.
func (s *Store) DeletePair(id string) error {
	return s.update(fmt.Sprintf("delete pair %q", id), func(tx *bbolt.Tx) error {
		return tx.Bucket(pairsBucket).Delete([]byte(id))
	})
}

// Pairs returns all pairs, sorted by ID.
func (s *Store) Pairs() ([]Pair, error) {
	return list[Pair](s, pairsBucket)
}

func (s *Store) update(operation string, f func(*bbolt.Tx) error) error {
	if err := s.db.Update(f); err != nil {
		return s.wrap(operation, err)
	}
	return nil
}

func (s *Store) view(operation string, f func(*bbolt.Tx) error) error {
	if err := s.db.View(f); err != nil {
		return s.wrap(operation, err)
	}
	return nil
}

func put(tx *bbolt.Tx, bucket []byte, key string, record any) error {
	return putIn(tx.Bucket(bucket), []byte(key), record)
}

func putIn(b *bbolt.Bucket, key []byte, record any) error {
	value, err := json.Marshal(record)
	if err != nil {
		return err
	}
	return b.Put(key, value)
}

// list decodes every record of a bucket in key order.
func list[T any](s *Store, bucket []byte) (records []T, err error) {
	err = s.view("list "+string(bucket), func(tx *bbolt.Tx) error {
		return tx.Bucket(bucket).ForEach(func(_, value []byte) error {
			var record T
			if err := decode(value, &record); err != nil {
				return err
			}
			records = append(records, record)
			return nil
		})
	})
	return records, err
}

// decode reads a record that was readable at Open or written since: failing to
// decode it now means that the file changed underneath.
func decode(value []byte, record any) error {
	if err := json.Unmarshal(value, record); err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return nil
}
