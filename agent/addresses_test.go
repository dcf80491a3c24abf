package agent

import (
	"net/netip"
	"testing"
)

// The shared port moves for an address that has come to stay.
func TestAddressesChanged(t *testing.T) {
	a, b, c := netip.MustParseAddrPort("192.0.2.1:4500"), netip.MustParseAddrPort("192.0.2.2:4500"), netip.MustParseAddrPort("[2001:db8::1]:4500")
	type look []netip.AddrPort
	for name, tc := range map[string]struct {
		looks []look
		want  bool // after the last
	}{
		"the same":            {[]look{{a, b}, {a, b}}, false},
		"in another order":    {[]look{{b, a}, {b, a}}, false},
		"one has gone":        {[]look{{a}, {a}}, false},
		"all have gone":       {[]look{{}, {}}, false},
		"one has come":        {[]look{{a, b, c}, {a, b, c}}, true},
		"one for another":     {[]look{{a, c}, {a, c}}, true},
		"just come":           {[]look{{a, b}, {a, b, c}}, false},
		"come and gone":       {[]look{{a, b, c}, {a, b}, {a, b}}, false},
		"not at two in a row": {[]look{{a, b, c}, {a, b}, {a, b, c}}, false},
	} {
		seen := addresses{opened: []netip.AddrPort{a, b}}
		got := false
		for _, hosts := range tc.looks {
			got = seen.changed(hosts)
		}
		if got != tc.want {
			t.Errorf("%s: the port moves: %v; want %v", name, got, tc.want)
		}
	}
}
