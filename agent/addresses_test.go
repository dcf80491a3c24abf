package agent

import (
	"net/netip"
	"slices"
	"testing"
)

// The shared port moves with the host's addresses, in whichever order they are.
func TestMoves(t *testing.T) {
	a, b, c := netip.MustParseAddrPort("192.0.2.1:4500"), netip.MustParseAddrPort("192.0.2.2:4500"), netip.MustParseAddrPort("[2001:db8::1]:4500")
	type list = []netip.AddrPort
	for name, tt := range map[string]struct{ hosts, come, gone list }{
		"the same":         {list{a, b}, nil, nil},
		"in another order": {list{b, a}, nil, nil},
		"one has gone":     {list{a}, nil, list{b}},
		"all have gone":    {nil, nil, list{a, b}},
		"one has come":     {list{a, c, b}, list{c}, nil},
		"one for another":  {list{a, c}, list{c}, list{b}},
	} {
		come, gone := moves(list{a, b}, tt.hosts)
		if !slices.Equal(come, tt.come) || !slices.Equal(gone, tt.gone) {
			t.Errorf("%s: come %v, gone %v; want %v, %v", name, come, gone, tt.come, tt.gone)
		}
	}
}
