package main

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/bodkin-net/bodkin/e2e"
)

func node(name string, change func(*e2e.Observed)) e2e.Observed {
	n := e2e.Observed{Name: cluster + "." + name, Online: true}
	if change != nil {
		change(&n)
	}
	return n
}

func pair(state, reason string, attempts int) e2e.Pair {
	a, b := cluster+".edge1", cluster+".edge3"
	return e2e.Pair{
		ID: a + "+" + b, Nodes: [2]string{a, b}, State: state, Reason: reason, Attempts: attempts, Punching: reason == "punching",
		TimeToDirectMs: 84,
		Paths: map[string]e2e.Path{
			a: {Kind: "srflx", Remote: netip.MustParseAddrPort("203.0.113.4:4500")},
			b: {Kind: "srflx", Remote: netip.MustParseAddrPort("203.0.113.2:7953")},
		},
	}
}

func TestWatcherTellsEachChangeOnce(t *testing.T) {
	at := func(n *e2e.Observed) { n.Observed = netip.MustParseAddrPort("203.0.113.2:4500") }
	nat := func(n *e2e.Observed) {
		at(n)
		n.NAT.Present, n.NAT.Mapping, n.NAT.Filtering = true, "endpoint-independent", "address-dependent"
	}
	blocked := func(n *e2e.Observed) { n.NAT.Blocked = "no answer" }
	offline := func(n *e2e.Observed) { n.Online = false }
	type look struct {
		nodes []e2e.Observed
		pairs []e2e.Pair
		want  []string
	}
	tests := map[string][]look{
		"a node arrives step by step": {
			{nodes: []e2e.Observed{node("edge1", nil)}, want: []string{"edge1: joined"}},
			{nodes: []e2e.Observed{node("edge1", at)}, want: []string{"edge1: observed at 203.0.113.2[4500]"}},
			{nodes: []e2e.Observed{node("edge1", nat)}, want: []string{"edge1: NAT seen: endpoint-independent mapping, address-dependent filtering"}},
			{nodes: []e2e.Observed{node("edge1", nat)}},
		},
		"everything between two looks": {
			{nodes: []e2e.Observed{node("edge1", nat)}, want: []string{
				"edge1: joined", "edge1: observed at 203.0.113.2[4500]",
				"edge1: NAT seen: endpoint-independent mapping, address-dependent filtering",
			}},
		},
		"a node without UDP leaves": {
			{nodes: []e2e.Observed{node("edge1", blocked)}, want: []string{"edge1: joined", "edge1: NAT seen: UDP does not get through: no answer"}},
			{nodes: []e2e.Observed{node("edge1", func(n *e2e.Observed) { blocked(n); offline(n) })}, want: []string{"edge1: left"}},
		},
		"the connector's NAT is not between it and the rendezvous": {
			{nodes: []e2e.Observed{node(connector, nat)}, want: []string{"connector: joined"}},
		},
		"a pair becomes direct, is lost and comes back": {
			{pairs: []e2e.Pair{pair("down", "punching", 1)}, want: []string{"edge1 – edge3: punching"}},
			{pairs: []e2e.Pair{pair("direct", "", 1)}, want: []string{"edge1 – edge3: direct in 84 ms over 203.0.113.2[7953] ⇄ 203.0.113.4[4500]"}},
			{pairs: []e2e.Pair{pair("down", "no consent", 1)}, want: []string{"edge1 – edge3: down: no consent"}},
			{pairs: []e2e.Pair{pair("direct", "", 2)}, want: []string{
				"edge1 – edge3: punching again, attempt 2",
				"edge1 – edge3: direct in 84 ms over 203.0.113.2[7953] ⇄ 203.0.113.4[4500]",
			}},
		},
		"a pair is relayed first, and again": {
			{pairs: []e2e.Pair{relayed("punching")}, want: []string{"edge1 – edge3: punching", "edge1 – edge3: relayed through connector"}},
			{pairs: []e2e.Pair{pair("direct", "", 1)}, want: []string{"edge1 – edge3: direct in 84 ms over 203.0.113.2[7953] ⇄ 203.0.113.4[4500]"}},
			{pairs: []e2e.Pair{relayed("no consent")}, want: []string{"edge1 – edge3: relayed through connector: no consent"}},
		},
		"a pair that fails is told why once": {
			{pairs: []e2e.Pair{pair("down", "waiting for edge3", 0)}},
			{pairs: []e2e.Pair{pair("down", "both NATs are symmetric", 1)}, want: []string{
				"edge1 – edge3: punching", "edge1 – edge3: not direct: both NATs are symmetric",
			}},
			{pairs: []e2e.Pair{pair("down", "both NATs are symmetric", 1)}},
		},
	}
	for name, looks := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWatcher()
			for i, l := range looks {
				var got []string
				for _, e := range w.look(l.nodes, l.pairs) {
					got = append(got, e.who+": "+e.what)
				}
				if !reflect.DeepEqual(got, l.want) {
					t.Errorf("look %d:\n got %q\nwant %q", i, got, l.want)
				}
			}
		})
	}
}

func relayed(reason string) e2e.Pair {
	p := pair("relayed", reason, 1)
	p.Relay = "beijing.connector"
	return p
}

func TestCommunityFileNamesEveryEdgeOfTheDiagram(t *testing.T) {
	text := communityFile()
	for _, e := range edgeNames() {
		if !strings.Contains(text, "\n    - beijing."+e+"\n") {
			t.Errorf("%s is not a member in\n%s", e, text)
		}
		if !strings.Contains(diagram, e) {
			t.Errorf("%s is not in the diagram", e)
		}
	}
}
