package agent

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/agent/charon"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

func TestSameEnds(t *testing.T) {
	sa := charon.SA{Local: path1.Local, Remote: path1.Remote}
	from := func(s string) wire.Path { return wire.Path{Local: netip.MustParseAddrPort(s), Remote: path1.Remote} }
	tests := []struct {
		name string
		path wire.Path
		want bool
	}{
		{"the same", path1, true},
		{"another port of the peer's", path2, false},
		{"anywhere", wire.Path{Kind: wire.PathPublic}, true},
		{"any local address", wire.Path{Remote: path1.Remote}, true},
		{"another local address", from("10.22.46.31:4500"), false},
		// ICE's base and charon's socket are one port here, whatever it is called.
		{"another local port", from("10.22.46.30:500"), true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := sameEnds(sa, tt.path); got != tt.want {
				t.Errorf("sameEnds(%v) = %v; want %v", tt.path, got, tt.want)
			}
		})
	}
}

func TestMeasure(t *testing.T) {
	child := func(id charon.ChildID, state charon.State, bytes uint64, encap bool) charon.ChildSA {
		return charon.ChildSA{ID: id, State: state, BytesIn: bytes, Encap: encap}
	}
	sa := func(state charon.State, path wire.Path, children ...charon.ChildSA) charon.SA {
		return charon.SA{State: state, Local: path.Local, Remote: path.Remote, Children: children}
	}
	const (
		established = charon.StateEstablished
		installed   = charon.StateInstalled
	)
	tests := []struct {
		name string
		sas  []charon.SA
		seen map[charon.ChildID]uint64
		want progress
	}{
		{"nothing", nil, nil, progress{}},
		{"IKE on its way", []charon.SA{sa(charon.StateConnecting, path1)}, nil, progress{}},
		{"IKE", []charon.SA{sa(established, path1)}, nil, progress{ike: true}},
		{"IKE being rekeyed", []charon.SA{sa(charon.StateRekeying, path1)}, nil, progress{ike: true}},
		{"on another path", []charon.SA{sa(established, path2, child(1, installed, 100, true))}, nil, progress{}},
		{"being deleted", []charon.SA{sa(charon.StateDeleting, path1, child(1, installed, 100, true))}, nil, progress{}},
		{"CHILD SA not installed", []charon.SA{sa(established, path1, child(1, "INSTALLING", 0, true))}, nil, progress{ike: true}},
		{"installed", []charon.SA{sa(established, path1, child(1, installed, 0, true))}, nil, progress{ike: true, installed: true}},
		{"installed, plain ESP", []charon.SA{sa(established, path1, child(1, installed, 0, false))}, nil,
			progress{ike: true, installed: true, plain: true}},
		{"bytes", []charon.SA{sa(established, path1, child(1, installed, 84, true))}, nil,
			progress{ike: true, installed: true, bytes: true}},
		{"bytes of a CHILD SA being rekeyed", []charon.SA{sa(established, path1, child(1, charon.StateRekeying, 84, true))}, nil,
			progress{ike: true, installed: true, bytes: true}},
		{"bytes of a CHILD SA that has been rekeyed", []charon.SA{sa(established, path1, child(1, charon.StateRekeyed, 84, true))}, nil,
			progress{ike: true, installed: true, bytes: true}},
		{"a check", []charon.SA{sa(established, path1, charon.ChildSA{Name: checkChild, State: installed, BytesIn: 84, Encap: true})}, nil,
			progress{ike: true}},
		{"only bytes seen before", []charon.SA{sa(established, path1, child(1, installed, 84, true))},
			map[charon.ChildID]uint64{1: 84}, progress{ike: true, installed: true}},
		{"bytes of one of two", []charon.SA{sa(established, path1, child(1, installed, 84, true), child(2, installed, 0, true))}, nil,
			progress{ike: true, installed: true, bytes: true}},
		{"new beside old", []charon.SA{
			sa(established, path2, child(1, installed, 84, true)), sa(established, path1, child(2, installed, 0, true)),
		}, map[charon.ChildID]uint64{1: 42}, progress{ike: true, installed: true}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := measure(tt.sas, path1, tt.seen); got != tt.want {
				t.Errorf("measure = %+v; want %+v", got, tt.want)
			}
		})
	}
}

func TestInitiatesAfter(t *testing.T) {
	tests := []struct {
		name string
		role wire.Role
		path wire.Path
		want time.Duration
		may  bool
	}{
		{"the initiator again", wire.Controlling, path1, initiateAgain, true},
		{"to the connector", wire.Controlling, wire.Path{Kind: wire.PathPublic}, initiateAgain, true},
		{"the responder, once it is clear that nobody calls", wire.Controlled, path1, takeOver, true},
		{"the connector, which does not know where the edge is", wire.Controlled, wire.Path{Kind: wire.PathPublic}, 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, may := initiatesAfter(tt.role, tt.path)
			if may != tt.may || may && got != tt.want {
				t.Errorf("initiatesAfter = %v, %v; want %v, %v", got, may, tt.want, tt.may)
			}
		})
	}
}

// A tunnel is complete when each child is installed with the selectors it shall
// have now: not with those of a subnet that has come or gone since.
func TestMissing(t *testing.T) {
	want := []charon.Child{
		{Name: "b-p2p", LocalTS: prefixList("10.1.0.0/24"), RemoteTS: prefixList("10.2.0.0/24", "10.3.0.0/24")},
		{Name: "b-n2p", LocalTS: prefixList("192.168.1.2/32"), RemoteTS: prefixList("10.2.0.0/24", "10.3.0.0/24")},
	}
	p2p := charon.ChildSA{Name: "b-p2p", State: charon.StateInstalled,
		LocalTS: []charon.Selector{"10.1.0.0/24"}, RemoteTS: []charon.Selector{"10.3.0.0/24", "10.2.0.0/24"}}
	n2p := p2p
	n2p.Name, n2p.LocalTS = "b-n2p", []charon.Selector{"192.168.1.2/32"}
	changed := func(change func(*charon.ChildSA)) charon.ChildSA { c := n2p; change(&c); return c }
	tests := []struct {
		name     string
		children []charon.ChildSA
		want     int
	}{
		{"all there, in another order", []charon.ChildSA{n2p, p2p}, 0},
		{"none", nil, 2},
		{"one gone", []charon.ChildSA{p2p}, 1},
		{"one being rekeyed", []charon.ChildSA{p2p, changed(func(c *charon.ChildSA) { c.State = charon.StateRekeying })}, 0},
		{"one being deleted", []charon.ChildSA{p2p, changed(func(c *charon.ChildSA) { c.State = charon.StateDeleting })}, 1},
		{"a subnet more since", []charon.ChildSA{p2p, changed(func(c *charon.ChildSA) { c.RemoteTS = c.RemoteTS[:1] })}, 1},
		{"a subnet less since", []charon.ChildSA{p2p, changed(func(c *charon.ChildSA) {
			c.RemoteTS = append(slices.Clone(c.RemoteTS), "10.4.0.0/24")
		})}, 1},
		{"another subnet since", []charon.ChildSA{p2p, changed(func(c *charon.ChildSA) {
			c.RemoteTS = []charon.Selector{"10.2.0.0/24", "10.4.0.0/24"}
		})}, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			sa := charon.SA{State: charon.StateEstablished, Remote: path1.Remote, Local: path1.Local, Children: tt.children}
			if got := missing([]charon.SA{sa}, path1, want); len(got) != tt.want {
				t.Errorf("missing %v, want %d", got, tt.want)
			}
			sa.Remote = netip.MustParseAddrPort("198.51.100.9:4500")
			if got := missing([]charon.SA{sa}, path1, want); len(got) != len(want) {
				t.Errorf("on another path: missing %v, want all", got)
			}
		})
	}
}

// What is lacking is asked for beside what stands, unless the tunnel has to be another.
func TestCompleted(t *testing.T) {
	child := func(name, local string) charon.Child {
		return charon.Child{Name: name, LocalTS: prefixList(local), RemoteTS: prefixList("10.2.0.0/24")}
	}
	p2p, n2p := child("b-p2p", "10.1.0.0/24"), child("b-n2p", "192.168.1.2/32")
	has := func(c charon.Child, state charon.State) charon.ChildSA {
		return charon.ChildSA{Name: c.Name, State: state, LocalTS: c.Local(), RemoteTS: c.Remote()}
	}
	const installed = charon.StateInstalled
	tests := []struct {
		name  string
		is    []charon.ChildSA
		lacks []string
		may   bool
	}{
		{"all there", []charon.ChildSA{has(p2p, installed), has(n2p, installed)}, nil, true},
		{"one never made", []charon.ChildSA{has(p2p, installed)}, []string{"b-n2p"}, true},
		{"one being deleted", []charon.ChildSA{has(p2p, installed), has(n2p, charon.StateDeleting)}, []string{"b-n2p"}, true},
		{"one of other selectors", []charon.ChildSA{has(p2p, installed), has(child("b-n2p", "192.168.1.3/32"), installed)}, []string{"b-n2p"}, false},
		{"none", nil, []string{"b-p2p", "b-n2p"}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			sa := charon.SA{State: charon.StateEstablished, Remote: path1.Remote, Local: path1.Local, Children: tt.is}
			lacks, may := completed([]charon.SA{sa}, path1, []charon.Child{p2p, n2p})
			var names []string
			for _, c := range lacks {
				names = append(names, c.Name)
			}
			if !slices.Equal(names, tt.lacks) || may != tt.may {
				t.Errorf("lacks %v, %v; want %v, %v", names, may, tt.lacks, tt.may)
			}
		})
	}
}

// A relay that a connector has narrowed to its own subnets leads to nobody else.
func TestRelaying(t *testing.T) {
	child := func(name string, state charon.State, remote ...charon.Selector) charon.ChildSA {
		return charon.ChildSA{Name: "a.connector" + name, State: state, RemoteTS: remote}
	}
	own := child(podToPod, charon.StateInstalled, "10.233.0.0/18")
	for name, tt := range map[string]struct {
		children []charon.ChildSA
		want     bool
	}{
		"none":        {[]charon.ChildSA{own}, false},
		"wide":        {[]charon.ChildSA{own, child(relayChild, charon.StateInstalled, "10.233.0.0/16")}, true},
		"narrowed":    {[]charon.ChildSA{own, child(relayChild, charon.StateInstalled, "10.233.0.0/18")}, false},
		"being ended": {[]charon.ChildSA{own, child(relayChild, charon.StateDeleting, "10.233.0.0/16")}, false},
	} {
		if got := relaying(charon.SA{Name: "a.connector", Children: tt.children}); got != tt.want {
			t.Errorf("%s: %v; want %v", name, got, tt.want)
		}
	}
}

// What a failed attempt has come no further with than a check is not a tunnel.
func TestProvesOnly(t *testing.T) {
	named := func(names ...string) (sa charon.SA) {
		sa.Name = "b"
		for _, n := range names {
			sa.Children = append(sa.Children, charon.ChildSA{Name: n})
		}
		return sa
	}
	for _, tt := range []struct {
		sa   charon.SA
		want bool
	}{
		{named(), true}, {named("b-check"), true}, {named("b-check", "b-p2p"), false}, {named("b-p2p"), false}, {named("b-check", "b-check"), true},
	} {
		if got := provesOnly(tt.sa); got != tt.want {
			t.Errorf("%+v: %v, want %v", tt.sa.Children, got, tt.want)
		}
	}
}

// Each thing that can be missing has words of its own.
func TestProgressReason(t *testing.T) {
	tests := []struct {
		progress progress
		role     wire.Role
		want     string
	}{
		{progress{}, wire.Controlling, "IKE got no answer"},
		{progress{}, wire.Controlled, "did not initiate"},
		{progress{ike: true}, wire.Controlling, "no CHILD SA"},
		{progress{ike: true}, wire.Controlled, "no CHILD SA"},
		{progress{ike: true, installed: true}, wire.Controlling, "a firewall on the way"},
		{progress{ike: true, installed: true, plain: true}, wire.Controlling, "drops ESP (IP protocol 50)"},
	}
	for _, tt := range tests {
		if got := tt.progress.reason(tt.role); !strings.Contains(got, tt.want) {
			t.Errorf("%+v as %s: %q; want it to say %q", tt.progress, tt.role, got, tt.want)
		}
	}
}

// Nothing is asked of charon (there is none here) about a connection that is not
// ours, whatever it has by that name.
func TestDropHalfOpenLeavesStrangersAlone(t *testing.T) {
	r := &run{name: "a.stranger", shared: &shared{owned: mustOpenOwned(t, t.TempDir())}}
	r.dropHalfOpen(t.Context())
}
