package rendezvous

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

func TestPageSaysWhatIsKnown(t *testing.T) {
	src := sampleSource()
	src.snap.Communities[0].Punch = wire.PolicyICEOnly
	src.troubled = "certificate not renewed: no such file"
	w := apiCall(t, newStatusHandler(src, newMetrics(), ""), "GET", "/", nil)
	if got := w.Header().Get("Content-Type"); w.Code != 200 || got != "text/html; charset=utf-8" {
		t.Fatalf("%d, %s", w.Code, got)
	}
	body := w.Body.String()
	for _, want := range []string{
		`<p class="problem" id="trouble">certificate not renewed: no such file</p>`,
		`<dd><b>3</b> of 4</dd>`,
		`<dd><b>2</b> of 5</dd>`,
		`<a href="#pairs">Pairs relayed</a></dt><dd><b>1</b></dd>`,
		`<span class="state relayed">relayed</span><span class="line note">through beijing.connector</span>`,
		`next attempt in 12 s`,
		`class="num" title="counted over 60 min, 2 peers">600 kB<span class="line note">signalling 812 kB, STUN 9000 B</span>`,
		`<span class="line problem">endpoint.subnets: 10.1.0.0/24 overlaps 10.1.0.0/24 of beijing.edge1</span><span class="line problem">3 reports refused</span>`,
		`<time datetime="2024-05-17T12:30:00Z">2024-05-17 12:30:00 UTC</time>`,
		`<span class="state direct">direct</span>`,
		`<span class="state down">down</span>`,
		`<td data-label="Path" class="path"><span class="line">peer-reflexive</span><span class="line">server-reflexive</span></td>`,
		`<td data-label="Path" class="path"><span class="line">public address</span></td>`,
		`<span class="sr">beijing.edge1 reaches beijing.edge2 at </span>203.0.113.77[1721]</span>`,
		`<td data-label="Time to direct" class="num">412 ms</td>`,
		`<td data-label="Last change"><time datetime="2024-05-17T12:28:26Z" title="2024-05-17 12:28:26 UTC">94 s ago</time></td>`,
		`shanghai.edge3 is offline`,
		`next attempt in 48 s`,
		`symmetric<span class="line note">address-and-port-dependent mapping, address-and-port-dependent filtering, random ports, hairpins, TTL 2 leaves it</span>` +
			`<span class="line note">punch: ice-only</span><span class="line note">cannot open many ports: nftables is missing</span><span class="line note">metered: pinged rarely</span>`,
		`<span class="line">203.0.113.77[61804]</span><span class="line">2001:db8:7::20[4500]</span>`,
		`<td data-label="Expected"><span class="expected" title="no common address family">relay</span></td>`,
		`by a search for ports</span></td>`,
		`<td data-label="Expected"><span class="expected" title="shanghai.edge4 has never been online: nothing is known of its NAT">unknown</span></td>`,
		`all-edges<span class="line note">punch: ice-only</span></th>`,
		`2001:db8:5::17[4500]`,
		`<summary>history (2)</summary>`,
		`<li>shanghai.edge4 <span class="note">(never joined)</span></li>`,
		`<td data-label="Source">all-edges.yaml</td>`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("not on the page: %s", want)
		}
	}
	if down, direct := strings.Index(body, `id="pair-beijing.edge1|shanghai.edge3"`), strings.Index(body, `id="pair-beijing.connector|beijing.edge1"`); down < 0 || direct < down {
		t.Errorf("a pair that is down does not stand before one that is direct: %d, %d", down, direct)
	}
	if strings.Contains(body, "Not ready") {
		t.Error("the page calls a rendezvous that is ready not ready")
	}
}

// The policy forbids inline code and styles: what broke it would not be run.
func TestPageKeepsItsPolicy(t *testing.T) {
	w := apiCall(t, newStatusHandler(sampleSource(), newMetrics(), ""), "GET", "/", nil)
	body := w.Body.String()
	for _, forbidden := range []string{"<style", " style=", "<script>", " onclick=", "http://", "https://", "javascript:"} {
		if strings.Contains(body, forbidden) {
			t.Errorf("the page contains %q", forbidden)
		}
	}
	policy := w.Header().Get("Content-Security-Policy")
	for _, want := range []string{"default-src 'none'", "frame-ancestors 'none'"} {
		if !strings.Contains(policy, want) {
			t.Errorf("policy %q lacks %s", policy, want)
		}
	}
	if strings.Contains(policy, "unsafe") {
		t.Errorf("policy %q", policy)
	}
}

func TestPageEscapes(t *testing.T) {
	const evil = `"><script>alert(1)</script>`
	src := sampleSource()
	src.snap.Nodes[0].Name = evil
	src.snap.Nodes[0].AgentVersion = evil
	src.snap.Nodes[0].NAT = wire.NAT{Blocked: evil}
	src.snap.Communities[0].Members[0] = evil
	src.sources["all-edges"] = evil
	src.snap.Pairs[2].Reason = evil
	src.snap.Pairs[2].State = evil
	src.snap.Pairs[2].Nodes[0] = evil
	src.snap.Pairs[2].ID = evil
	src.snap.Pairs[3].Relay = evil
	src.snap.Nodes[2].Refusal = evil
	src.notReady = fmt.Errorf("store: %s", evil)
	body := apiCall(t, newStatusHandler(src, newMetrics(), ""), "GET", "/", nil).Body.String()
	if strings.Contains(body, "<script>alert") {
		t.Error("a name became a script")
	}
	if got := strings.Count(body, "&lt;script&gt;alert(1)&lt;/script&gt;"); got < 12 {
		t.Errorf("%d escaped values on the page, want all of 12", got)
	}
}

func TestPageWhenEmpty(t *testing.T) {
	w := apiCall(t, newStatusHandler(&fakeSource{snap: Snapshot{At: sampleNow}}, newMetrics(), ""), "GET", "/", nil)
	for _, want := range []string{"No node has joined yet", "No pairs yet", "No community yet"} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("an empty page does not say %q", want)
		}
	}
}

func TestPageIsBounded(t *testing.T) {
	var pairs []PairView
	for i := range pageMaxPairs + 50 {
		v := PairView{ID: wire.PairID(fmt.Sprintf("a|%04d", i)), State: Direct}
		if i == pageMaxPairs+49 {
			v.State = Down
		}
		pairs = append(pairs, v)
	}
	p := newPage(sampleNow, nil, nil, pairs)
	if p.PairsShow != pageMaxPairs || p.PairsHidden != 50 || len(p.Pairs) != pageMaxPairs || p.PairsAll != pageMaxPairs+50 {
		t.Errorf("shown %d (%d rows), hidden %d, all %d", p.PairsShow, len(p.Pairs), p.PairsHidden, p.PairsAll)
	}
	if p.Pairs[0].Direct || p.PairsDown != 1 {
		t.Errorf("first row %+v: the pair that is down is not shown", p.Pairs[0])
	}
}

func TestPairsDownAndPunching(t *testing.T) {
	p := newPage(sampleNow, nil, nil, []PairView{
		{ID: "a|b", State: Direct, Punching: true}, {ID: "a|c", State: Relayed, Punching: true}, {ID: "b|c", State: Down},
		{ID: "a|d", State: Down, Punching: true},
	})
	if p.PairsDirect != 1 || p.PairsRelayed != 1 || p.PairsDown != 2 || p.PairsPunching != 2 {
		t.Errorf("direct %d, relayed %d, down %d, punching %d, want 1, 1, 2, 2", p.PairsDirect, p.PairsRelayed, p.PairsDown, p.PairsPunching)
	}
	var order []State
	for _, row := range p.Pairs {
		order = append(order, row.State)
	}
	if want := []State{Down, Down, Relayed, Direct}; !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
}

func TestDescribeNAT(t *testing.T) {
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
		if got := describeNAT(tt.nat); got.Gloss != tt.gloss || got.Behaviour != tt.behaviour {
			t.Errorf("%+v: %+v, want %q, %q", tt.nat, got, tt.gloss, tt.behaviour)
		}
	}
}

func TestMoments(t *testing.T) {
	for _, tt := range []struct {
		before time.Duration
		want   string
	}{
		{-time.Second, "just now"},
		{0, "just now"},
		{time.Second, "1 s ago"},
		{119 * time.Second, "119 s ago"},
		{2 * time.Minute, "2 min ago"},
		{119 * time.Minute, "119 min ago"},
		{47 * time.Hour, "47 h ago"},
		{49 * time.Hour, "2 days ago"},
	} {
		if got := momentOf(sampleNow, sampleNow.Add(-tt.before)); got.Ago != tt.want {
			t.Errorf("%s before: %q, want %q", tt.before, got.Ago, tt.want)
		}
	}
	if got := momentOf(sampleNow, time.Time{}); got != (moment{}) {
		t.Errorf("never: %+v", got)
	}
}

func TestEndpointText(t *testing.T) {
	for addr, want := range map[string]string{
		"203.0.113.20:4500": "203.0.113.20[4500]", "[::ffff:203.0.113.20]:4500": "203.0.113.20[4500]", "[2001:db8::1]:1": "2001:db8::1[1]",
	} {
		if got := endpointText(netip.MustParseAddrPort(addr)); got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
	if got := endpointText(netip.AddrPort{}); got != "" {
		t.Errorf("no address: %q", got)
	}
}

func TestAssetsAreRevalidated(t *testing.T) {
	h := newStatusHandler(sampleSource(), newMetrics(), "")
	for path, contentType := range map[string]string{
		"/page.css": "text/css", "/page.js": "text/javascript", "/icon.svg": "image/svg+xml",
	} {
		first := apiCall(t, h, "GET", path, nil)
		if !strings.HasPrefix(first.Header().Get("Content-Type"), contentType) || first.Body.Len() == 0 {
			t.Errorf("%s: %s, %d bytes", path, first.Header().Get("Content-Type"), first.Body.Len())
		}
		again := apiCall(t, h, "GET", path, func(r *http.Request) { r.Header.Set("If-None-Match", first.Header().Get("ETag")) })
		if again.Code != http.StatusNotModified {
			t.Errorf("%s, unchanged: %d, want 304", path, again.Code)
		}
	}
}
