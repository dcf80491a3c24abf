package rendezvous

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/bodkin-net/bodkin/punch/nat"
	"github.com/bodkin-net/bodkin/rendezvous/access"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// sampleViews are the views, by the name of their picture, and what they say when
// they have been drawn.
func sampleViews(s *sampleCluster) [][3]string {
	tried := s.tried()
	return [][3]string{
		{"overview", "", "Why pairs are not direct"},
		{"nodes", "nodes", "300 of 300 nodes"},
		{"node", "nodes/" + string(s.nodes[5].Name), "Observed mappings"},
		{"matrix", "matrix", "44,850 pairs"},
		{"matrix-cluster", "matrix?q=beijing.edge+beijing.edge", "1,225 pairs"},
		{"pairs", "pairs", "The first 200"},
		{"pair", fmt.Sprintf("pairs/%s/%s", tried.Nodes[0], tried.Nodes[1]), "order received"},
		{"communities", "communities", "tills"},
		{"events", "events", "of the last 60 events"},
	}
}

// Every view at the width of a desk and of a phone; BODKIN_SCREENSHOTS names the
// folder that takes pictures of them.
func TestPageViews(t *testing.T) {
	s := newSampleCluster(t, 300)
	b := newBrowser(t)
	for _, v := range sampleViews(s) {
		name, hash, want := v[0], v[1], v[2]
		b.size(1280, 900, 1)
		if name == "pair" {
			b.size(1280, 1320, 1) // a diagram that is cut says nothing
		}
		b.visit(s.URL + "/#/" + hash)
		b.waitText("main", want)
		b.screenshot(name)
		b.dark(true)
		if name == "overview" {
			b.screenshot(name + "-dark")
		}
		b.dark(false)
		b.size(390, 844, 2)
		b.waitText("main", want)
		eval[chromedp.Void](b, `document.querySelector(".attempt")?.scrollIntoView(), undefined`)
		if name == "overview" || name == "matrix" || name == "pair" {
			b.screenshot(name + "-phone")
		}
		if over := eval[int](b, `document.documentElement.scrollWidth`) - 390; over > 0 {
			t.Errorf("%s on a phone: %d px wider than the screen", name, over)
		}
	}
}

// module is an expression that calls a function of one of the page's modules.
func module(name, function string, arguments ...any) string {
	texts := make([]string, len(arguments))
	for i, a := range arguments {
		texts[i] = string(mustJSON(a))
	}
	return fmt.Sprintf(`import("/page/%s.js").then((m) => m.%s(%s))`, name, function, strings.Join(texts, ", "))
}

func TestPageWordsOfNAT(t *testing.T) {
	s := newSampleCluster(t, 24)
	b := newBrowser(t)
	b.visit(s.URL + "/")
	const ei, ad, apd = wire.EndpointIndependent, wire.AddressDependent, wire.AddressAndPortDependent
	for _, tt := range []struct {
		nat       wire.NAT
		gloss     string
		behaviour string
	}{
		{wire.NAT{}, "not known yet", ""},
		{wire.NAT{Mapping: ei}, "no NAT", ""},
		{wire.NAT{Mapping: ei, Filtering: ei}, "no NAT", "endpoint-independent filtering"},
		{wire.NAT{Mapping: ei, Filtering: apd}, "no NAT, stateful firewall", "address-and-port-dependent filtering"},
		{wire.NAT{Present: true, Mapping: ei}, "cone of unknown filtering", "endpoint-independent mapping"},
		{wire.NAT{Present: true, Mapping: ei, Filtering: ei}, "full or address-restricted cone", "endpoint-independent mapping, endpoint-independent filtering"},
		{wire.NAT{Present: true, Mapping: ei, Filtering: ad}, "address-restricted cone", "endpoint-independent mapping, address-dependent filtering"},
		{wire.NAT{Present: true, Mapping: ei, Filtering: apd}, "port-restricted cone", "endpoint-independent mapping, address-and-port-dependent filtering"},
		{wire.NAT{Present: true, Mapping: apd}, "symmetric", "address-and-port-dependent mapping"},
		{wire.NAT{Present: true, Mapping: ad, Filtering: ei}, "symmetric", "address-dependent mapping, endpoint-independent filtering"},
		{wire.NAT{Present: true, Filtering: apd}, "NAT of unknown mapping", "address-and-port-dependent filtering"},
		{wire.NAT{Present: true, Mapping: apd, Filtering: apd, Allocation: wire.Sequential, Step: 2, Poisoned: wire.Yes, LifetimeSeconds: 100, Hops: 3},
			"symmetric", "address-and-port-dependent mapping, address-and-port-dependent filtering, sequential ports in steps of 2, " +
				"remembers unasked packets (poisoned), mappings live 100 s or longer, TTL 3 leaves it"},
		{wire.NAT{Present: true, Mapping: ei, Filtering: ei, Allocation: wire.Preserving}, "full or address-restricted cone",
			"endpoint-independent mapping, endpoint-independent filtering, preserves ports"},
		{wire.NAT{Blocked: "no answer over UDP"}, "UDP blocked", "no answer over UDP"},
	} {
		got := eval[struct{ Gloss, Behaviour string }](b, module("words", "natWords", tt.nat))
		if got.Gloss != tt.gloss || got.Behaviour != tt.behaviour {
			t.Errorf("%+v: %+v, want %q, %q", tt.nat, got, tt.gloss, tt.behaviour)
		}
	}
}

func TestPageWords(t *testing.T) {
	s := newSampleCluster(t, 24)
	b := newBrowser(t)
	b.visit(s.URL + "/")
	now := time.Date(2024, 5, 17, 12, 30, 0, 0, time.UTC)
	for _, tt := range []struct {
		expression string
		want       string
	}{
		{module("words", "ago", now.UnixMilli(), now.Add(time.Second)), "just now"},
		{module("words", "ago", now.UnixMilli(), now), "just now"},
		{module("words", "ago", now.UnixMilli(), now.Add(-time.Second)), "1 s ago"},
		{module("words", "ago", now.UnixMilli(), now.Add(-119*time.Second)), "119 s ago"},
		{module("words", "ago", now.UnixMilli(), now.Add(-2*time.Minute)), "2 min ago"},
		{module("words", "ago", now.UnixMilli(), now.Add(-119*time.Minute)), "119 min ago"},
		{module("words", "ago", now.UnixMilli(), now.Add(-47*time.Hour)), "47 h ago"},
		{module("words", "ago", now.UnixMilli(), now.Add(-49*time.Hour)), "2 days ago"},
		{module("words", "ago", now.UnixMilli(), time.Time{}), "never"},
		{module("words", "utc", now.In(time.FixedZone("CEST", 7200))), "2024-05-17 12:30:00 UTC"},
		{module("words", "endpoint", netip.MustParseAddrPort("203.0.113.20:4500")), "203.0.113.20[4500]"},
		{module("words", "endpoint", netip.MustParseAddrPort("[::ffff:203.0.113.20]:4500")), "203.0.113.20[4500]"},
		{module("words", "endpoint", netip.MustParseAddrPort("[2001:db8::1]:1")), "2001:db8::1[1]"},
		{module("words", "endpoint", netip.AddrPort{}), ""},
		{module("words", "bytes", 9000), "9000 B"},
		{module("words", "bytes", 812_345), "812 kB"},
		{module("words", "bytes", 12_345_678), "12 MB"},
		{module("words", "percent", 44_849, 44_850), "99.9 %"},
		{module("words", "percent", 44_850, 44_850), "100 %"},
		{module("words", "percent", 1, 44_850), "0.1 %"},
		{module("words", "percent", 0, 0), "–"},
		{module("words", "strategyWords", nat.Probe), "by a search for ports"},
		{module("words", "kindWords", wire.PathPeerReflexive), "peer-reflexive"},
		{module("words", "stepWords", wire.Step{Kind: wire.StepPorts, Count: 256}), "ports opened"},
	} {
		if got := eval[string](b, tt.expression); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.expression, got, tt.want)
		}
	}
}

// The matrix of 300 nodes by keyboard: cells are read, walked, searched and opened.
func TestPageMatrixByKeyboard(t *testing.T) {
	s := newSampleCluster(t, 300)
	b := newBrowser(t)
	b.visit(s.URL + "/#/matrix")
	b.waitText("main", "44,850 pairs of 300 × 300 nodes")
	nodes := s.matrix.Nodes

	eval[chromedp.Void](b, `document.querySelector("canvas").focus(), undefined`)
	b.press(kb.ArrowDown, kb.ArrowDown, kb.ArrowDown, kb.ArrowLeft)
	b.waitText("#readout", fmt.Sprintf("%s ↔ %s: %s", nodes[3], nodes[0], cellName(s.matrix.Rows[3][0])))
	b.press(kb.End)
	b.waitText("#readout", fmt.Sprintf("%s ↔ %s:", nodes[3], nodes[299]))
	b.press(kb.Home, "n")
	// The next cell that is not direct, in reading order.
	next := slices.IndexFunc(nodes[1:], func(n wire.NodeName) bool { return n != nodes[3] && s.cell(nodes[3], n) != 'd' }) + 1
	offline := map[byte]string{'1': "", '0': " (offline)"}[s.matrix.Online[next]]
	b.waitText("#readout", fmt.Sprintf("%s ↔ %s%s: %s", nodes[3], nodes[next], offline, cellName(s.cell(nodes[3], nodes[next]))))

	b.do(chromedp.SendKeys(chromedp.CSS("#filter-q"), "beijing.edge03 shanghai"))
	b.waitText("main", "50 pairs of 1 × 50 nodes")
	eval[chromedp.Void](b, `document.querySelector("canvas").focus(), undefined`)
	b.press(kb.Home, kb.ArrowRight, kb.Enter)
	b.waitFor(`location.hash === "#/pairs/beijing.edge03/shanghai.edge02"`)
	b.waitText("h1", "beijing.edge03 ↔ shanghai.edge02")
}

func cellName(c byte) string {
	return map[byte]string{'d': "direct", 'r': "relayed", 'x': "down", 'R': "relayed, being punched", 'X': "down, being punched"}[c]
}

// cell is a pair's character, whichever way round it is named.
func (s *sampleCluster) cell(a, b wire.NodeName) byte {
	i, j := slices.Index(s.matrix.Nodes, a), slices.Index(s.matrix.Nodes, b)
	return s.matrix.Rows[max(i, j)][min(i, j)]
}

// One event changes one cell; the matrix is not fetched anew for it.
func TestPageMatrixIsLive(t *testing.T) {
	s := newSampleCluster(t, 300)
	b := newBrowser(t)
	b.visit(s.URL + "/#/matrix?state=down&q=beijing.edge01")
	b.waitText("main", "1 × ")
	b.waitText("#stream", "live")
	before := b.text("main p[role=status]")
	fetched := `performance.getEntriesByType("resource").filter((r) => r.name.endsWith("/matrix")).length`
	if n := eval[int](b, fetched); n != 1 {
		t.Fatalf("the matrix was fetched %d times", n)
	}
	s.send(EventView{Kind: EventPair, Pair: wire.NewPairID("beijing.edge01", "beijing.edge02"), State: "down", Cell: "x", Text: "down"})
	b.waitFor(fmt.Sprintf(`document.querySelector("main p[role=status]").innerText !== %q`, before))
	if n := eval[int](b, fetched); n != 1 {
		t.Errorf("the matrix was fetched %d times", n)
	}
}

// An admin punches from the pair's view and sees what happens.
func TestPagePunch(t *testing.T) {
	s := newSampleCluster(t, 24)
	b := newBrowser(t)
	p := s.tried()
	view := fmt.Sprintf("%s/#/pairs/%s/%s", s.URL, p.Nodes[0], p.Nodes[1])
	b.visit(view)
	b.waitText("main", "order received")
	if b.text("#punch") != "" {
		t.Error("a viewer is offered to punch")
	}
	s.mu.Lock()
	s.identity = Identity{Who: "unix socket", Role: access.Admin}
	s.mu.Unlock()
	b.do(chromedp.Reload())
	b.waitText("#punch", "Punch now")
	b.waitText("#stream", "live")
	b.do(chromedp.Click(chromedp.CSS("#punch")))
	select {
	case got := <-s.punched:
		if got != p.ID {
			t.Errorf("ordered for %s, want %s", got, p.ID)
		}
	case <-time.After(browserWait):
		t.Fatal("nothing was ordered")
	}
	b.waitText("#progress", "Ordered.")
	s.mu.Lock()
	d := s.detail[p.ID]
	running := AttemptView{ID: "at-3", Pair: p.ID, At: time.Now().UTC(), Strategy: nat.ICE, Outcome: AttemptRunning, Sides: map[wire.NodeName]*AttemptSide{}}
	d.Attempts = append([]AttemptView{running}, d.Attempts...)
	s.detail[p.ID] = d
	s.mu.Unlock()
	s.send(EventView{Kind: EventAttempt, Pair: p.ID, State: "running", Text: "attempt ordered, by ICE checks"})
	b.waitText("#progress", "attempt ordered, by ICE checks")
	b.waitText("#attempt-at-3", "running")
}

// A diagram says of both sides what the table below it says.
func TestPageTimeline(t *testing.T) {
	s := newSampleCluster(t, 24)
	b := newBrowser(t)
	p := s.tried()
	b.visit(fmt.Sprintf("%s/#/pairs/%s/%s", s.URL, p.Nodes[0], p.Nodes[1]))
	b.waitText("main", "order received")
	for _, attempt := range s.detail[p.ID].Attempts {
		rows := eval[[]string](b, fmt.Sprintf(`[...document.querySelectorAll("#attempt-%s tbody tr")].map((row) => [...row.cells].map((c) => c.textContent).join("|"))`, attempt.ID))
		var want int
		for name, side := range attempt.Sides {
			want += 1 + len(side.Steps)
			for _, step := range side.Steps {
				ms := fmt.Sprintf("%d ms|%s|", side.OffsetMs+step.AtMs, name)
				if side.OffsetMs+step.AtMs < 10_000 && !slices.ContainsFunc(rows, func(row string) bool { return strings.HasPrefix(row, ms) }) {
					t.Errorf("attempt %s: no row %s of step %s", attempt.ID, ms, step.Kind)
				}
			}
		}
		marks := eval[int](b, fmt.Sprintf(`document.querySelectorAll("#attempt-%s svg .dot").length`, attempt.ID))
		if len(rows) != want || marks != want {
			t.Errorf("attempt %s: %d rows, %d marks, want %d", attempt.ID, len(rows), marks, want)
		}
	}
}

// The list of pairs finds what is asked for, however far back it stands.
func TestPagePairsFilter(t *testing.T) {
	s := newSampleCluster(t, 300)
	b := newBrowser(t)
	shown := func(p func(PairView) bool) int {
		n := 0
		for _, v := range s.pairs {
			if p(v) {
				n++
			}
		}
		return n
	}
	last := string(s.nodes[299].Name)
	b.visit(s.URL + "/#/pairs?state=relayed&node=" + last)
	want := shown(func(p PairView) bool { return p.State == Relayed && slices.Contains(p.Nodes[:], wire.NodeName(last)) })
	b.waitText("main p[role=status]", fmt.Sprintf("%d pairs, of 44,850 in all", want))
	b.visit(s.URL + "/")
	b.waitText(".reasons", "consent lost")
	b.do(chromedp.Click(chromedp.CSS(".reasons li:last-child a")))
	b.waitFor(`location.hash === "#/pairs?state=relayed&reason=consent+lost"`)
	b.waitText("main p[role=status]", fmt.Sprintf("%d pairs", shown(func(p PairView) bool { return p.Reason == "consent lost" })))
	b.do(chromedp.Click(chromedp.CSS("#filter-reason")))
	eval[chromedp.Void](b, `document.querySelector("#filter-reason").select(), undefined`)
	b.do(chromedp.SendKeys(chromedp.CSS("#filter-reason"), "shenzhen.edge16"))
	eval[chromedp.Void](b, `(() => { const s = document.querySelector("#filter-state"); s.value = "down"; s.dispatchEvent(new Event("change")); })()`)
	b.waitText("tbody", "shenzhen.edge16 is offline")
	b.waitText("main p[role=status]", "The first 200")
}

// What the rendezvous itself lacks stands over every view.
func TestPageSaysProblems(t *testing.T) {
	s := newSampleCluster(t, 24)
	s.overview.Problem, s.overview.Trouble = "store: no space left on device", "certificate not renewed: no such file"
	b := newBrowser(t)
	b.visit(s.URL + "/#/communities")
	b.waitText("#problems", "Not ready: store: no space left on device")
	b.waitText("#problems", "certificate not renewed: no such file")
	s.mu.Lock()
	s.overview.Problem, s.overview.Trouble = "", ""
	s.mu.Unlock()
	b.waitText("#stream", "live")
	s.send(EventView{Kind: EventCommunity, Text: "communities applied"})
	b.waitFor(`document.querySelector("#problems").childElementCount === 0`)
}

// A search that matches nothing, a view and a node that do not exist say so.
func TestPageWhenThereIsNothing(t *testing.T) {
	s := newSampleCluster(t, 24)
	b := newBrowser(t)
	b.accept = []string{"404"} // the browser's own word on a node that is not there
	for view, want := range map[string]string{
		"matrix?q=none": "No pair matches.", "nodes?q=none": "No node matches.", "pairs?node=none": "No pair matches.",
		"events?q=none": "No event matches.", "elsewhere": "There is no such view", "nodes/beijing.none": "not found",
	} {
		b.visit(s.URL + "/#/" + view)
		b.waitText("main", want)
	}
}
