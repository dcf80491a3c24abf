package rendezvous

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/bodkin-net/bodkin/punch/nat"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// pageMaxPairs bounds the page: a community of 300 nodes has 45,000 pairs,
// more than a browser can show every two seconds. Those that are not direct
// come first; the API has all of them.
const pageMaxPairs = 500

//go:embed page.html.tmpl page/page.css page/page.js page/icon.svg
var pageFiles embed.FS

var pageTemplate = template.Must(template.ParseFS(pageFiles, "page.html.tmpl"))

// page is what the template shows: everything is decided, nothing formatted
// twice.
type page struct {
	At      moment
	Problem string // why the rendezvous is not ready, empty when it is
	Trouble string // what it should not be left with, empty when nothing

	NodesOnline                                    int
	PairsAll, PairsDirect, PairsRelayed, PairsDown int
	PairsPunching, PairsHidden, PairsShow          int

	Nodes       []nodeRow
	Communities []communityRow
	Pairs       []pairRow
}

// moment is a time in the three forms the page needs; the zero moment is never.
type moment struct{ ISO, UTC, Ago string }

type nodeRow struct {
	Name     string
	Online   bool
	Type     string
	Since    moment
	Observed []string // addr[port], none when never observed
	History  []historyRow
	NAT      natWords
	// Limits say what keeps the node from being punched to in every way.
	Limits []string
	// Idle is what the node costs standing still.
	Idle idleWords
	// Refused says what was refused of the node, nothing if nothing was.
	Refused []string
	Agent   string
}

// idleWords is a usage in words, empty when the agent has not said.
type idleWords struct{ PerPeer, Rest, Counted string }

type historyRow struct {
	Address, Means string
	First, Last    moment
}

// natWords is a NAT in the name people use and in the words of RFC 4787.
type natWords struct{ Gloss, Behaviour string }

type communityRow struct {
	Name, Source string
	Punch        string // empty when everything is permitted
	Members      []memberRow
}

type memberRow struct{ Name, State string }

type pairRow struct {
	ID       string
	Nodes    [2]string
	State    State
	Direct   bool
	Relay    string // the connector a relayed pair goes through
	Punching bool
	Expected expectation
	// Kinds is the kind of path of each end, or one if they agree.
	Kinds []string
	// Ends is what each node of the pair uses to reach the other.
	Ends         []endRow
	Reason       string
	NextTry      string // in how long, empty when none is due
	TimeToDirect string
	Attempts     int
	Changed      moment
}

// expectation is a verdict in words.
type expectation struct{ Expect, Strategy, Reason string }

type endRow struct{ From, To, Address string }

func addPage(mux *http.ServeMux, src source) {
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) { servePage(w, r, src) })
	for _, name := range []string{"page.css", "page.js", "icon.svg"} {
		content, err := pageFiles.ReadFile("page/" + name)
		if err != nil {
			panic(err) // embedded: the build would have failed
		}
		sum := sha256.Sum256(content)
		tag := `"` + hex.EncodeToString(sum[:8]) + `"`
		mux.HandleFunc("GET /"+name, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "no-cache") // asked for each time, sent when changed
			w.Header().Set("ETag", tag)
			http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(content))
		})
	}
}

func servePage(w http.ResponseWriter, r *http.Request, src source) {
	p, err := readPage(r, src)
	if err != nil {
		http.Error(w, err.Error(), statusOf(err))
		return
	}
	var body bytes.Buffer
	if err := pageTemplate.Execute(&body, p); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = body.WriteTo(w) // a client that is gone needs no answer
}

func readPage(r *http.Request, src source) (page, error) {
	snap, err := src.snapshot(r.Context())
	if err != nil {
		return page{}, err
	}
	sources, err := src.communitySources(r.Context())
	if err != nil {
		return page{}, err
	}
	nodes, err := withHistory(src, snap.Nodes)
	if err != nil {
		return page{}, err
	}
	p := newPage(snap.At, nodes, withSource(snap.Communities, sources), snap.Pairs)
	p.Trouble = src.trouble()
	if err := src.ready(); err != nil {
		p.Problem = err.Error()
	}
	return p, nil
}

// newPage decides what the page says of one moment.
func newPage(now time.Time, nodes []NodeHistory, communities []CommunityView, pairs []PairView) page {
	p := page{At: momentOf(now, now), PairsAll: len(pairs)}
	states := map[string]string{}
	for _, n := range nodes {
		row := newNodeRow(now, n)
		states[row.Name] = "offline"
		if n.Online {
			states[row.Name] = "online"
			p.NodesOnline++
		}
		p.Nodes = append(p.Nodes, row)
	}
	for _, c := range communities {
		row := communityRow{Name: c.Name, Source: c.Source}
		if c.Punch != wire.PolicyAuto {
			row.Punch = string(c.Punch)
		}
		for _, m := range c.Members {
			row.Members = append(row.Members, memberRow{Name: m, State: cmp.Or(states[m], "never joined")})
		}
		p.Communities = append(p.Communities, row)
	}
	for _, v := range pairs {
		switch v.State {
		case Direct:
			p.PairsDirect++
		case Relayed:
			p.PairsRelayed++
		default:
			p.PairsDown++
		}
		if v.Punching && v.State != Direct {
			p.PairsPunching++
		}
		p.Pairs = append(p.Pairs, newPairRow(now, v))
	}
	slices.SortStableFunc(p.Pairs, func(a, b pairRow) int {
		return cmp.Or(cmp.Compare(urgency(a.State), urgency(b.State)), cmp.Compare(a.ID, b.ID))
	})
	p.PairsShow = min(len(p.Pairs), pageMaxPairs)
	p.PairsHidden = len(p.Pairs) - p.PairsShow
	p.Pairs = p.Pairs[:p.PairsShow]
	return p
}

// urgency orders states by how much they ask to be looked at.
func urgency(s State) int {
	switch s {
	case Direct:
		return 2
	case Relayed:
		return 1
	}
	return 0
}

func newNodeRow(now time.Time, n NodeHistory) nodeRow {
	row := nodeRow{
		Name: string(n.Name), Online: n.Online, Type: string(n.Endpoint.Type), Since: momentOf(now, n.Since),
		NAT: describeNAT(n.NAT), Agent: n.AgentVersion,
	}
	for _, at := range []netip.AddrPort{n.Observed, n.Observed6} {
		if at.IsValid() {
			row.Observed = append(row.Observed, endpointText(at))
		}
	}
	if n.Punch != "" && n.Punch != wire.PolicyAuto {
		row.Limits = append(row.Limits, "punch: "+string(n.Punch))
	}
	if n.NoProbe != "" {
		row.Limits = append(row.Limits, "cannot open many ports: "+n.NoProbe)
	}
	if n.Metered {
		row.Limits = append(row.Limits, "metered: pinged rarely")
	}
	if n.RefusedSessions > 0 {
		row.Refused = append(row.Refused, cmp.Or(n.Refusal, fmt.Sprintf("%d sessions refused", n.RefusedSessions)))
	}
	if n.RefusedReports > 0 {
		row.Refused = append(row.Refused, fmt.Sprintf("%d reports refused", n.RefusedReports))
	}
	if u := n.Usage; u != nil {
		row.Idle = idleWords{
			PerPeer: byteText(u.perPeer()),
			Rest:    "signalling " + byteText(u.Signalling) + ", STUN " + byteText(u.STUN),
			Counted: fmt.Sprintf("counted over %s, %d peers", span(time.Duration(u.Seconds)*time.Second), len(u.Peers)),
		}
	}
	for _, o := range n.History {
		row.History = append(row.History, historyRow{
			Address: endpointText(o.Addr), Means: o.Means, First: momentOf(now, o.At), Last: momentOf(now, o.Last),
		})
	}
	return row
}

func newPairRow(now time.Time, v PairView) pairRow {
	row := pairRow{
		ID: string(v.ID), State: v.State, Direct: v.State == Direct, Punching: v.Punching,
		Reason: v.Reason, Attempts: v.Attempts, Changed: momentOf(now, v.Since),
		Expected: expectation{Expect: string(v.Verdict.Expect), Reason: v.Verdict.Reason},
	}
	if v.Verdict.Expect == nat.Direct || v.Verdict.Strategy == nat.None {
		row.Expected.Strategy = strategyText(v.Verdict.Strategy)
	}
	for i, name := range v.Nodes {
		row.Nodes[i] = string(name)
		path, ok := v.Paths[name]
		if !ok {
			continue
		}
		row.Kinds = append(row.Kinds, kindText(path.Kind))
		row.Ends = append(row.Ends, endRow{
			From: string(name), To: string(v.Nodes[1-i]), Address: endpointText(path.Remote),
		})
	}
	row.Kinds = slices.Compact(row.Kinds)
	if v.TimeToDirect > 0 {
		row.TimeToDirect = fmt.Sprintf("%d ms", v.TimeToDirect.Milliseconds())
	}
	if v.State == Relayed {
		row.Relay = string(v.Relay)
	}
	if !row.Direct && !v.Punching && v.RetryAt.After(now) {
		row.NextTry = span(v.RetryAt.Sub(now))
	}
	return row
}
