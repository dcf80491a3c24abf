package agent

import (
	"net/netip"
	"strings"
	"testing"

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
