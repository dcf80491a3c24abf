package rendezvous

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"go.etcd.io/bbolt"

	"github.com/bodkin-net/bodkin/rendezvous/access"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

func (r *running) statusURL() string {
	at := r.server.status.Addr().(*net.TCPAddr)
	if !at.IP.IsLoopback() {
		return fmt.Sprintf("https://127.0.0.1:%d", at.Port)
	}
	return "http://" + at.String()
}

// api reads a path of the API in the browser, as whoever is logged in there.
func api[T any](b *browser, path string) T {
	b.t.Helper()
	var v T
	text := eval[string](b, fmt.Sprintf(`fetch("api/v1/%s").then((r) => r.text())`, path))
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		b.t.Fatalf("%s: %v in %.200s", path, err, text)
	}
	return v
}

// What the page says is what the API says, and follows it without being loaded
// anew: agents come, punch, become direct, fail and go.
func TestPageFollowsTheRendezvous(t *testing.T) {
	const edge1, edge2, edge3 = wire.NodeName("beijing.edge1"), wire.NodeName("beijing.edge2"), wire.NodeName("shanghai.edge3")
	r := newSite(t).start()
	r.apply(Community{Name: "all-edges", Members: []string{string(edge1), string(edge2), string(edge3)}})
	b := newBrowser(t)
	b.visit(r.statusURL() + "/")
	b.waitText("#tile-direct", "0 of 3")
	b.waitText("#stream", "live")
	loaded := eval[float64](b, `performance.timeOrigin`)

	one, two := r.join(edge1), r.join(edge2)
	b.waitText("#tile-nodes", "2 of 2")
	for _, p := range []*peer{one, two} {
		p.askSTUN()
		p.send(&wire.Network{Candidates: []wire.Candidate{{Kind: wire.Host, Addr: netip.MustParseAddrPort("192.0.2.1:4500")}},
			NAT: wire.NAT{Mapping: wire.EndpointIndependent, Filtering: wire.EndpointIndependent}})
	}
	order := expect[*wire.Punch](one)
	expect[*wire.Punch](two)
	b.waitText("#tile-punching", "1")
	path := wire.Path{Kind: wire.PathServerReflexive, Local: netip.MustParseAddrPort("192.0.2.1:4500"), Remote: netip.MustParseAddrPort("203.0.113.9:4500")}
	steps := []wire.Step{{AtMs: 5, Kind: wire.StepStart}, {AtMs: 9, Kind: wire.StepCheck, Remote: path.Remote}, {AtMs: 300, Kind: wire.StepBytes}}
	one.send(&wire.Report{Peer: edge2, Attempt: order.Attempt, Outcome: wire.OutcomeDirect, Path: path, ElapsedMs: 300, Steps: steps})
	two.send(&wire.Report{Peer: edge1, Attempt: order.Attempt, Outcome: wire.OutcomeDirect, Path: path, ElapsedMs: 310, Steps: steps})
	changed := time.Now()
	b.waitText("#tile-direct", "1 of 3")
	t.Logf("a change was on the page after %v", time.Since(changed).Round(time.Millisecond))
	b.waitText(".events", "direct")

	o := api[Overview](b, "overview")
	for tile, want := range map[string]string{
		"nodes": fmt.Sprintf("%d of %d", o.Nodes.Online, o.Nodes.Total), "direct": fmt.Sprintf("%d of %d", o.Pairs.Direct, o.Pairs.Total),
		"relayed": fmt.Sprint(o.Pairs.Relayed), "down": fmt.Sprint(o.Pairs.Down), "success": "100 %",
	} {
		if got := b.text("#tile-" + tile); !strings.Contains(got, want) {
			t.Errorf("tile %s says %q, the API %s", tile, got, want)
		}
	}
	for _, reason := range o.Reasons {
		b.waitText(".reasons", reason.Reason)
	}

	// The pair, by its link.
	b.visit(r.statusURL() + "/#/pairs?state=direct")
	b.waitText("tbody", "beijing.edge1 ↔ beijing.edge2")
	b.do(chromedp.Click(chromedp.CSS("tbody th a")))
	b.waitText("h1", "beijing.edge1 ↔ beijing.edge2 direct")
	detail := api[PairDetail](b, "pairs/beijing.edge1/beijing.edge2")
	b.waitText(".attempt", "direct "+eval[string](b, module("words", "strategyWords", detail.Attempts[0].Strategy)))
	b.waitText("main", detail.Pair.Verdict.Reason)
	b.waitText("main", "203.0.113.9[4500]")
	for name, side := range detail.Attempts[0].Sides {
		if len(side.Steps) != len(steps) {
			t.Errorf("%s: %d steps of %d", name, len(side.Steps), len(steps))
		}
	}

	one.send(&wire.Report{Peer: edge2, Attempt: order.Attempt, Outcome: wire.OutcomeLost, Reason: "consent lost"})
	b.waitText("h1", "beijing.edge1 ↔ beijing.edge2 down")
	b.waitText(".lead", "consent lost")

	b.visit(r.statusURL() + "/#/nodes")
	b.waitText("tbody", "no NAT")
	_ = two.conn.Close()
	b.waitText("#row-beijing\\.edge2", "offline")
	b.visit(r.statusURL() + "/#/nodes/beijing.edge1")
	b.waitText("main", "Observed mappings")
	node := api[NodeDetail](b, "nodes/beijing.edge1")
	b.waitText("main", fmt.Sprintf("%s[%d]", node.Observed.Addr(), node.Observed.Port()))
	b.visit(r.statusURL() + "/#/communities")
	b.waitText("tbody", "shanghai.edge3 (never joined)")
	if eval[float64](b, `performance.timeOrigin`) != loaded {
		t.Error("the page was loaded anew meanwhile")
	}
}

// What nodes and operators call things, and what agents say, is text.
func TestPageEscapes(t *testing.T) {
	const evil = `<img src=x onerror=window.evil=1><script>window.evil=2</script>`
	s := newSite(t)
	s.inject(func(tx *bbolt.Tx) {
		put(t, tx, "nodes", "beijing.edge2", store.Node{Name: "beijing.edge2", AgentVersion: evil, NoProbe: evil, LastSeen: time.Now(),
			Endpoint: mustJSON(wire.Endpoint{ID: evil, Name: "beijing.edge2", Type: wire.Edge}), NAT: mustJSON(wire.NAT{Blocked: evil})})
		put(t, tx, "communities", evil, store.Community{Name: evil, Members: []string{"beijing.edge1", "beijing.edge2", evil}, Source: evil})
		put(t, tx, "nodes", evil, store.Node{Name: evil, LastSeen: time.Now(), Endpoint: mustJSON(wire.Endpoint{Name: evil}), NAT: mustJSON(wire.NAT{})})
	})
	r := s.start()
	one := r.join("beijing.edge1")
	one.send(&wire.Report{Peer: "beijing.edge2", Outcome: wire.OutcomeFailed, Reason: evil})
	b := newBrowser(t)
	for _, view := range []string{"", "nodes", "nodes/beijing.edge2", "nodes/" + url.PathEscape(evil), "matrix", "pairs", "pairs/beijing.edge1/" + url.PathEscape(evil), "communities", "events"} {
		b.visit(r.statusURL() + "/#/" + view)
		b.waitFor(`document.querySelector("main .view")?.childElementCount > 0 || document.querySelector("#view-error")`)
		if n := eval[int](b, `document.querySelectorAll("main img, main script").length`); n != 0 || eval[bool](b, `"evil" in window`) {
			t.Errorf("view %q: %d elements came out of texts", view, n)
		}
	}
	b.visit(r.statusURL() + "/#/communities")
	b.waitText("tbody", evil)
	b.visit(r.statusURL() + "/#/nodes")
	b.waitText("tbody", "cannot open many ports: "+evil)
}

// inject writes into the store of a site that does not run yet.
func (s *site) inject(f func(tx *bbolt.Tx)) {
	s.t.Helper()
	made, err := store.Open(s.config.Store, store.Options{})
	if err != nil {
		s.t.Fatal(err)
	}
	if err := made.Close(); err != nil {
		s.t.Fatal(err)
	}
	db, err := bbolt.Open(s.config.Store, 0o600, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	defer db.Close()
	if err := db.Update(func(tx *bbolt.Tx) error { f(tx); return nil }); err != nil {
		s.t.Fatal(err)
	}
}

func put(t *testing.T, tx *bbolt.Tx, bucket, key string, v any) {
	t.Helper()
	if err := tx.Bucket([]byte(bucket)).Put([]byte(key), mustJSON(v)); err != nil {
		t.Fatal(err)
	}
}

// From another machine the page asks for a login: a wrong token is refused beside
// the form, the right one opens the view that was asked for.
func TestPageLogin(t *testing.T) {
	s := newSite(t)
	s.config.Status = "0.0.0.0:0" // more than loopback
	r := s.start()
	token, hash := access.NewToken()
	err := r.server.store.Change(&store.Audit{At: time.Now(), Who: "test", Action: "create credential"}, func(tx *store.Tx) error {
		return tx.PutCredential(store.Credential{Name: "alice", Role: string(access.Admin), SecretSHA256: hash, Created: time.Now()})
	})
	if err != nil {
		t.Fatal(err)
	}
	b := newBrowser(t)
	b.accept = []string{"401"} // the browser's own word on a refused request
	b.visit(r.statusURL() + "/#/nodes")
	b.waitFor(`location.pathname === "/login" && document.activeElement.id === "token"`)
	b.screenshot("login")

	b.do(chromedp.SendKeys(chromedp.CSS("#token"), "bodkin-access-wrong"+kb.Enter))
	b.waitFor(`!document.querySelector("#error").hidden`)
	if said := b.text("#error"); said == "" || strings.Contains(said, "answered") {
		t.Errorf("a wrong token is refused with %q", said)
	}
	b.do(chromedp.SendKeys(chromedp.CSS("#token"), token+kb.Enter)) // in place of what is selected
	b.waitFor(`location.pathname === "/" && location.hash === "#/nodes"`)
	b.waitText("main", "No node has joined yet.")
	b.waitText("#who", "alice (admin)")
	b.waitText("#stream", "live")

	b.do(chromedp.Click(chromedp.CSS("#logout button")))
	b.waitFor(`location.pathname === "/login"`)
	b.visit(r.statusURL() + "/")
	b.waitFor(`location.pathname === "/login"`)
}

// A rendezvous that is gone leaves the page standing, and says so; it is followed
// again as soon as it is back.
func TestPageWhenTheRendezvousIsGone(t *testing.T) {
	s := newSite(t)
	b := newBrowser(t) // before the rendezvous, which looks for what it left behind
	first := s.start()
	s.config.Status = first.server.status.Addr().String()
	b.accept = []string{"ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING"}
	b.visit(first.statusURL() + "/")
	b.waitText("#stream", "live")
	eval[chromedp.Void](b, `window.same = true, undefined`)
	first.stop()
	b.waitText("#stale", "Stale since")
	b.waitText("main", "No pairs yet")
	second := s.start()
	b.waitFor(`document.querySelector("#stale").hidden`)
	second.join("beijing.edge1")
	b.waitText("#tile-nodes", "1 of 1")
	if !eval[bool](b, `window.same`) {
		t.Error("the page was loaded anew")
	}
}

// The first view of 300 nodes and 44,850 pairs that are in the store: what it
// weighs and how long it takes until it stands. Times are for the log: what a
// machine that does other things needs says nothing.
func TestPageFirstView(t *testing.T) {
	const most = 150_000 // bytes
	s := newSite(t)
	var names []string
	for i := range 300 {
		names = append(names, fmt.Sprintf("%s.edge%02d", sampleClusters[i/50], i%50+1))
	}
	s.inject(func(tx *bbolt.Tx) {
		put(t, tx, "communities", "all-edges", store.Community{Name: "all-edges", Members: names})
		for i, a := range names {
			put(t, tx, "nodes", a, store.Node{Name: a, AgentVersion: "0.5.0", LastSeen: time.Now(),
				Endpoint: mustJSON(wire.Endpoint{Name: wire.NodeName(a), Type: wire.Edge}), NAT: mustJSON(wire.NAT{})})
			for _, c := range names[:i] {
				id := string(wire.NewPairID(a, c))
				put(t, tx, "pairs", id, store.Pair{ID: id, State: string(Down), Attempts: 1, Changed: time.Now()})
			}
		}
	})
	r := s.start()
	b := newBrowser(t)
	call(b, network.SetCacheDisabled, network.SetCacheDisabledParams{CacheDisabled: true})
	var took []float64
	for range 5 {
		b.visit("about:blank")
		b.visit(r.statusURL() + "/")
		b.waitFor(`performance.getEntriesByName("bodkin-rendered").length`)
		b.waitText("#tile-direct", "0 of 44,850")
		took = append(took, eval[float64](b, `performance.getEntriesByName("bodkin-rendered")[0].startTime`))
	}
	slices.Sort(took)
	weight := eval[int](b, `performance.getEntries().reduce((sum, e) => sum + (e.transferSize ?? 0), 0)`)
	t.Logf("first view: %d bytes, %.0f ms (median of %d; least %.0f, most %.0f)", weight, took[len(took)/2], len(took), took[0], took[len(took)-1])
	if weight == 0 || weight > most {
		t.Errorf("the first view is %d bytes, want at most %d", weight, most)
	}
}
