package agent

import (
	"errors"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/bodkin-net/bodkin/agent/forward"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

func TestPolicyOf(t *testing.T) {
	whole := prefixList("10.233.0.0/16")
	edges := []wire.Peer{{Endpoint: articleEdge1, Relay: whole}, {Endpoint: articleEdge2, Relay: whole}}
	groups := []wire.Group{{Community: "both", Nodes: []wire.NodeName{articleEdge1.Name, articleEdge2.Name, "beijing.elsewhere"}}, {Community: "nobody"}}
	got := policyOf(groups, articleConnector, edges)
	want := forward.Policy{
		Groups: [][]netip.Prefix{append(prefixList("10.233.66.0/24"), articleEdge2.Subnets...), nil},
		Edges:  append(prefixList("10.233.66.0/24"), articleEdge2.Subnets...),
		Own:    append(append([]netip.Prefix{}, articleConnector.Subnets...), articleConnector.NodeSubnets...),
		Range:  whole,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// An edge that joins does not have the runs of all others look at their relays.
func TestConcerned(t *testing.T) {
	edges := []wire.Peer{{Endpoint: articleEdge1}, {Endpoint: articleEdge2}}
	one := map[wire.NodeName][]netip.Prefix{articleEdge1.Name: articleEdge1.Subnets}
	both := map[wire.NodeName][]netip.Prefix{articleEdge1.Name: articleEdge1.Subnets, articleEdge2.Name: articleEdge2.Subnets}
	moved := map[wire.NodeName][]netip.Prefix{articleEdge1.Name: prefixList("10.9.0.0/24"), articleEdge2.Name: articleEdge2.Subnets}
	for name, tt := range map[string]struct {
		before, now map[wire.NodeName][]netip.Prefix
		all         bool
		want        []wire.NodeName
	}{
		"the first":     {nil, one, false, []wire.NodeName{articleEdge1.Name}},
		"another":       {one, both, false, []wire.NodeName{articleEdge2.Name}},
		"other subnets": {moved, both, false, []wire.NodeName{articleEdge1.Name}},
		"none":          {both, both, false, nil},
		"it works now":  {both, both, true, []wire.NodeName{articleEdge1.Name, articleEdge2.Name}},
	} {
		if got := concerned(edges, tt.before, tt.now, tt.all); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v; want %v", name, got, tt.want)
		}
	}
}

// A connector relays for nobody before it has been told between whom.
func TestFilterHolds(t *testing.T) {
	f := newForwardFilter(slog.New(slog.DiscardHandler))
	edge := wire.Peer{Endpoint: articleEdge1, Relay: prefixList("10.233.0.0/16")}
	if err := f.holds(edge); !errors.Is(err, errNotTold) {
		t.Errorf("at first: %v, want %v", err, errNotTold)
	}
	f.set(nil, "store", articleConnector, []wire.Peer{edge})
	if err := f.holds(edge); !errors.Is(err, errNotTold) {
		t.Errorf("with peers, but not told: %v, want %v", err, errNotTold)
	}
	if s := f.status(); s != nil {
		t.Errorf("status %+v of a filter that filters nothing, want none", s)
	}
	f.remove() // there is nothing
	f.close()
}
