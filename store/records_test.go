package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
)

var noon = time.Date(2022, 7, 1, 12, 0, 0, 123456789, time.UTC)

func edge(name string) Node {
	return Node{
		Name:         name,
		Endpoint:     json.RawMessage(`{"id":"C=CN, O=fabedge.io, CN=` + name + `","subnets":["2.2.0.0/24"]}`),
		NAT:          json.RawMessage(`{"mapping":"endpoint-independent"}`),
		AgentVersion: "0.1.0",
		Fingerprint:  "ab12",
		LastSeen:     noon.Add(time.Hour),
	}
}

// applyCommunities stores communities in one change.
func applyCommunities(s *Store, cs ...Community) error {
	return s.Change(&Audit{Action: "apply", Object: "communities"}, func(tx *Tx) error {
		for _, c := range cs {
			if err := tx.PutCommunity(c); err != nil {
				return err
			}
		}
		return nil
	})
}

func deleteCommunity(s *Store, name string) error {
	return s.Change(&Audit{Action: "delete", Object: "community"}, func(tx *Tx) error { return tx.DeleteCommunity(name) })
}

func TestReopenKeepsEverything(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rendezvous.db")
	nodes := []Node{edge("beijing.edge1"), edge("beijing.edge2"), {Name: "fabedge.connector", LastSeen: noon}}
	communities := []Community{
		{Name: "all-edges", Members: []string{"beijing.edge1", "beijing.edge2"}, Source: "all-edges.yaml", Updated: noon},
		{Name: "connectors", Members: []string{"fabedge.connector"}, Source: "api", Updated: noon},
	}
	pairs := []Pair{
		{
			ID: "beijing.edge1|beijing.edge2", State: "direct", PathKind: "server-reflexive",
			Endpoints: map[string]netip.AddrPort{
				"beijing.edge1": netip.MustParseAddrPort("10.22.45.30:4500"),
				"beijing.edge2": netip.MustParseAddrPort("[2001:db8::1]:45001"),
			},
			Attempts: 3, TimeToDirect: 640 * time.Millisecond, Changed: noon, LastDirect: noon,
		},
		{ID: "beijing.edge1|fabedge.connector", State: "down", Reason: "no answer", Changed: noon},
	}
	seen := Observation{Addr: netip.MustParseAddrPort("10.22.45.30:4500"), At: noon, Last: noon, Means: "stun:3478"}

	s := mustOpen(t, path, Options{})
	for i := range nodes {
		// Backwards, so that sorted listings are the store's doing.
		if err := s.PutNode(nodes[len(nodes)-1-i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := applyCommunities(s, communities[1], communities[0]); err != nil {
		t.Fatal(err)
	}
	for _, p := range pairs {
		if err := s.PutPair(p); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Observe("beijing.edge1", seen); err != nil {
		t.Fatal(err)
	}
	mustClose(t, s)

	s = mustOpen(t, path, Options{})
	wantList(t, "nodes", s.Nodes, nodes)
	wantList(t, "communities", s.Communities, communities)
	wantList(t, "pairs", s.Pairs, pairs)
	wantList(t, "observations", func() ([]Observation, error) { return s.Observations("beijing.edge1") }, []Observation{seen})
	n, err := s.Node("beijing.edge2")
	if err != nil || !reflect.DeepEqual(n, nodes[1]) {
		t.Errorf("node: %+v, %v, want %+v", n, err, nodes[1])
	}
}

func wantList[T any](t *testing.T, what string, list func() ([]T, error), want []T) {
	t.Helper()
	got, err := list()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s:\n got %+v\nwant %+v", what, got, want)
	}
}

func TestPutReplaces(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "rendezvous.db"), Options{})
	n := edge("beijing.edge1")
	for _, version := range []string{"0.1.0", "0.2.0"} {
		n.AgentVersion = version
		if err := s.PutNode(n); err != nil {
			t.Fatal(err)
		}
	}
	wantList(t, "nodes", s.Nodes, []Node{n})
}

func TestTimesComeBackInUTC(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "rendezvous.db"), Options{})
	n := edge("beijing.edge1")
	n.LastSeen = noon.In(time.FixedZone("CST", 8*60*60))
	if err := s.PutNode(n); err != nil {
		t.Fatal(err)
	}
	got, err := s.Node(n.Name)
	if err != nil || got.LastSeen != noon {
		t.Errorf("LastSeen %v, %v, want %v", got.LastSeen, err, noon)
	}
}

func TestNotFound(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rendezvous.db")
	s := mustOpen(t, path, Options{})
	_, nodeErr := s.Node("beijing.edge9")
	for what, err := range map[string]error{
		`node "beijing.edge9"`:        nodeErr,
		`delete community: "nowhere"`: deleteCommunity(s, "nowhere"),
	} {
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v, want ErrNotFound", what, err)
			continue
		}
		if want := "store " + path + ": " + what + ": not found"; err.Error() != want {
			t.Errorf("error %q, want %q", err, want)
		}
	}
}

func TestDelete(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "rendezvous.db"), Options{})
	kept := Community{Name: "kept", Members: []string{"beijing.edge1"}, Updated: noon}
	if err := applyCommunities(s, kept, Community{Name: "gone", Updated: noon}); err != nil {
		t.Fatal(err)
	}
	if err := deleteCommunity(s, "gone"); err != nil {
		t.Fatal(err)
	}
	wantList(t, "communities", s.Communities, []Community{kept})

	if err := s.PutPair(Pair{ID: "a.b|c.d"}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second finds nothing, which is no error
		if err := s.DeletePair("a.b|c.d"); err != nil {
			t.Fatal(err)
		}
	}
	wantList(t, "pairs", s.Pairs, nil)
}

func TestApplyCommunitiesIsAtomic(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rendezvous.db")
	s := mustOpen(t, path, Options{})
	before := Community{Name: "all-edges", Members: []string{"beijing.edge1", "beijing.edge2"}, Updated: noon}
	if err := applyCommunities(s, before); err != nil {
		t.Fatal(err)
	}
	// bbolt refuses an empty key, after the first two have been written.
	err := applyCommunities(s,
		Community{Name: "all-edges", Members: []string{"beijing.edge3"}},
		Community{Name: "new", Members: []string{"beijing.edge3"}},
		Community{Name: ""},
	)
	if err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v, want one that names %s", err, path)
	}
	wantList(t, "communities", s.Communities, []Community{before})
}

func TestInvalidRawMessageIsRefused(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "rendezvous.db"), Options{})
	if err := s.PutNode(Node{Name: "beijing.edge1", Endpoint: json.RawMessage(`{`)}); err == nil {
		t.Error("stored an endpoint that is no JSON")
	}
	wantList(t, "nodes", s.Nodes, nil)
}

func TestConcurrentUse(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "rendezvous.db"), Options{})
	const writers, rounds = 4, 5
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			name := fmt.Sprintf("beijing.edge%d", w)
			for r := range rounds {
				at := netip.AddrPortFrom(netip.MustParseAddr("10.22.45.30"), uint16(1000+r))
				if _, err := s.Observe(name, Observation{Addr: at, At: noon}); err != nil {
					t.Error(err)
				}
				if err := s.PutNode(edge(name)); err != nil {
					t.Error(err)
				}
				if _, err := s.Nodes(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for w := range writers {
		history, err := s.Observations(fmt.Sprintf("beijing.edge%d", w))
		if err != nil || len(history) != rounds {
			t.Errorf("writer %d left %d observations, %v, want %d", w, len(history), err, rounds)
		}
	}
}

func TestDeleteNode(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "s.db"), Options{})
	defer mustClose(t, s)
	if err := s.PutNode(Node{Name: "beijing.edge1"}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Observe("beijing.edge1", Observation{Addr: netip.MustParseAddrPort("198.51.100.1:4500"), Means: "stun:3478"}); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteNode("beijing.edge1"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Node("beijing.edge1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("the node is still there: %v", err)
	}
	if seen, err := s.Observations("beijing.edge1"); err != nil || len(seen) != 0 {
		t.Errorf("its history is still there: %v, %v", seen, err)
	}
	if err := s.DeleteNode("beijing.edge1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a node that is not there: %v, want ErrNotFound", err)
	}
}
