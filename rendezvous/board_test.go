package rendezvous

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/punch/nat"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// largeCluster is a connector and edges that share one community, as the store
// remembers them: half of the pairs direct, the others for many reasons not.
func largeCluster(edges int) (nodes []NodeView, cs []Community, pairs []PairView) {
	now := time.Now()
	all := Community{Name: "all"}
	for i := range edges + 1 {
		e := wire.Endpoint{
			Name: wire.NodeName(fmt.Sprintf("berlin.edge%03d", i)), Type: wire.Edge,
			Subnets: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(128 + i>>8), byte(i), 0}), 24)},
		}
		if i == edges {
			e.Name, e.Type = "berlin.connector", wire.Connector
			e.PublicAddresses, e.Port = []string{"198.51.100.1"}, 45000
		} else {
			all.Members = append(all.Members, string(e.Name))
		}
		e.ID = "CN=" + string(e.Name)
		v := NodeView{Name: e.Name, Endpoint: e, Online: i%5 != 0, Since: now, LastSeen: now,
			NAT: []wire.NAT{portRestricted, symmetric}[i%2], Observed: netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}), 4500)}
		nodes = append(nodes, v)
	}
	for i, a := range all.Members {
		for _, b := range all.Members[i+1:] {
			v := PairView{ID: wire.NewPairID(a, b), State: []State{Direct, Down}[i%2], Since: now, Strategy: nat.ICE, Attempts: 3}
			pairs = append(pairs, v)
		}
	}
	return nodes, []Community{all}, pairs
}

// enlarge has a running rendezvous remember a large cluster.
func (r *running) enlarge(edges int) {
	r.t.Helper()
	nodes, cs, pairs := largeCluster(edges)
	err := r.server.hub.call(r.t.Context(), func(now time.Time) []action {
		for _, v := range nodes {
			*r.server.hub.detail(v.Name) = v
		}
		r.server.applied = cs
		r.server.hub.coordinator.Restore(now, nodes, cs, pairs)
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

// What the page asks for first comes at once with 44,850 pairs; whole views of
// them all hold up nobody.
func TestLargeCluster(t *testing.T) {
	r := newSite(t).start()
	r.enlarge(300)
	base := "http://" + r.server.status.Addr().String()
	get := func(path string) (took time.Duration, size int) {
		t.Helper()
		begin := time.Now()
		resp, err := http.Get(base + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s, %v: %.200s", path, resp.Status, err, b)
		}
		return time.Since(begin), len(b)
	}
	defer http.DefaultClient.CloseIdleConnections()
	for _, path := range []string{"/", "/api/v1/overview", "/api/v1/matrix", "/api/v1/events", "/api/v1/nodes", "/metrics", "/api/v1/pairs?limit=200", "/api/v1/pairs?node=berlin.edge007"} {
		took, size := get(path)
		t.Logf("%-40s %8.1f ms %9d bytes", path, took.Seconds()*1000, size)
		if took > 5*time.Second { // on a slow machine, with the race detector
			t.Errorf("%s took %s", path, took)
		}
	}

	done := make(chan struct{})
	go func() {
		defer close(done)
		took, size := get("/api/v1/pairs")
		t.Logf("%-40s %8.1f ms %9d bytes", "/api/v1/pairs", took.Seconds()*1000, size)
	}()
	var waits []time.Duration
	for finished := false; !finished; {
		begin := time.Now()
		if err := r.server.hub.call(t.Context(), func(time.Time) []action { return nil }); err != nil {
			t.Fatal(err)
		}
		waits = append(waits, time.Since(begin))
		select {
		case <-done:
			finished = true
		case <-time.After(time.Millisecond):
		}
	}
	slices.Sort(waits)
	t.Logf("meanwhile the hub answered after %s at the most, %s in the median of %d", waits[len(waits)-1], waits[len(waits)/2], len(waits))
}

func BenchmarkBriefs(b *testing.B) {
	c := newCoordinator(rand.New(rand.NewPCG(1, 2)))
	nodes, cs, pairs := largeCluster(300)
	c.Restore(time.Now(), nodes, cs, pairs)
	b.Run("briefs", func(b *testing.B) {
		for b.Loop() {
			c.briefs()
		}
	})
	board := &board{pairs: c.briefs()}
	b.Run("matrix", func(b *testing.B) {
		for b.Loop() {
			board.matrix()
		}
	})
	b.Run("reasons", func(b *testing.B) {
		for b.Loop() {
			board.reasons(inFull)
		}
	})
	b.Run("general", func(b *testing.B) {
		for b.Loop() {
			board.reasons(inGeneral)
		}
	})
	b.Run("views", func(b *testing.B) {
		for b.Loop() {
			c.Views()
		}
	})
	b.Run("some", func(b *testing.B) {
		for b.Loop() {
			c.some(pairFilter{limit: 1 << 30}, "", 1<<30)
		}
	})
}

func TestMatrix(t *testing.T) {
	src := sampleSource()
	var m Matrix
	getJSON(t, asViewer(src), "/api/v1/matrix", &m)
	// connector, edge1, edge2, edge8, edge3, edge4 in order of name.
	want := Matrix{
		At:     sampleNow.UTC(),
		Nodes:  []wire.NodeName{"beijing.connector", "beijing.edge1", "beijing.edge2", "beijing.edge8", "shanghai.edge3", "shanghai.edge4"},
		Online: "111000",
		Rows:   []string{"", "d", ".d", "..r", ".x..", "..x.."},
	}
	if fmt.Sprint(m) != fmt.Sprint(want) {
		t.Errorf("%+v\nwant %+v", m, want)
	}
	cells := map[byte]string{'d': "direct", 'r': "relayed", 'R': "relayed, punching", 'x': "down", 'X': "down, punching"}
	for _, state := range []State{Direct, Relayed, Down} {
		for _, punching := range []bool{false, true} {
			words := string(state)
			if punching && state != Direct {
				words += ", punching"
			}
			if got := cells[cellOf(state, punching)]; got != words {
				t.Errorf("%s is drawn as %s", words, got)
			}
		}
	}
}

// Pairs are taken in several turns of the hub; none is lost or doubled between.
func TestPairsInTurns(t *testing.T) {
	c := newCoordinator(rand.New(rand.NewPCG(1, 2)))
	nodes, cs, pairs := largeCluster(100) // 4950 pairs, and 100 with the connector
	c.Restore(time.Now(), nodes, cs, pairs)
	collect := func(f pairFilter) (ids []wire.PairID, turns int) {
		next, done := wire.PairID(""), false
		for !done {
			var some []PairView
			some, next, done = c.some(f, next, f.limit-len(ids))
			for _, v := range some {
				ids = append(ids, v.ID)
			}
			turns++
		}
		return ids, turns
	}
	all, turns := collect(pairFilter{limit: 1 << 30})
	if len(all) != len(c.sorted) || turns < 5 || !slices.IsSorted(all) || len(slices.Compact(slices.Clone(all))) != len(all) {
		t.Errorf("%d pairs of %d in %d turns", len(all), len(c.sorted), turns)
	}
	for _, tt := range []struct {
		name string
		f    pairFilter
		want int
	}{
		{"limited", pairFilter{limit: 1234}, 1234},
		{"of a node", pairFilter{limit: 1 << 30, node: "berlin.edge007"}, 100},
		{"of a node, limited", pairFilter{limit: 3, node: "berlin.edge007"}, 3},
		{"of nobody", pairFilter{limit: 10, node: "berlin.nobody"}, 0},
		{"of a state nothing is in", pairFilter{limit: 10, state: Relayed}, 0},
		{"that punch", pairFilter{limit: 10, state: statePunching}, 0},
		{"for a reason", pairFilter{limit: 1 << 30, reason: "berlin.connector is offline"}, 100},
	} {
		if ids, _ := collect(tt.f); len(ids) != tt.want {
			t.Errorf("%s: %d pairs, want %d", tt.name, len(ids), tt.want)
		}
	}
}

func TestPairQuery(t *testing.T) {
	h := asViewer(sampleSource())
	for _, tt := range []struct {
		query string
		want  []string // in the answer's IDs, or the error
	}{
		{"", []string{"beijing.connector|beijing.edge1", "beijing.edge1|beijing.edge2", "beijing.edge1|shanghai.edge3", "beijing.edge2|beijing.edge8", "beijing.edge2|shanghai.edge4"}},
		{"?state=direct", []string{"beijing.connector|beijing.edge1", "beijing.edge1|beijing.edge2"}},
		{"?state=down&node=beijing.edge1", []string{"beijing.edge1|shanghai.edge3"}},
		{"?reason=shanghai.edge3+is+offline", []string{"beijing.edge1|shanghai.edge3"}},
		{"?limit=2", []string{"beijing.connector|beijing.edge1", "beijing.edge1|beijing.edge2"}},
		{"?state=punching", nil},
	} {
		var list PairList
		getJSON(t, h, "/api/v1/pairs"+tt.query, &list)
		var ids []string
		for _, p := range list.Pairs {
			ids = append(ids, string(p.ID))
		}
		if !slices.Equal(ids, tt.want) {
			t.Errorf("%s: %q, want %q", tt.query, ids, tt.want)
		}
	}
	for query, want := range map[string]string{
		"?state=broken": "want direct, relayed, down or punching", "?limit=0": "want a number above 0", "?limit=many": "want a number above 0",
	} {
		if w := apiCall(t, h, "GET", "/api/v1/pairs"+query, nil); w.Code != 422 || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %d %s, want %q", query, w.Code, w.Body, want)
		}
	}
}
