package punch

import (
	"maps"
	"net/netip"
	"testing"
)

func TestPassingAddrs(t *testing.T) {
	const table = `fe8000000000000000fc00fffe000001 04 40 20 80     eth0
20010db8000000000000000000000010 04 40 00 80     eth0
20010db8000000000000000000000011 04 40 00 01     eth0
20010db8000000000000000000000012 04 40 00 21     eth0
20010db8000000000000000000000013 04 40 00 20     eth0
20010db8000000000000000000000014 04 40 00 800     eth0
00000000000000000000000000000001 01 80 10 80       lo
not a line
zz010db8000000000000000000000015 04 40 00 01     eth0
20010db800000000000000000000 04 40 00 01     eth0
`
	want := map[netip.Addr]bool{
		netip.MustParseAddr("2001:db8::11"): true, // temporary
		netip.MustParseAddr("2001:db8::12"): true, // temporary and deprecated
		netip.MustParseAddr("2001:db8::13"): true, // deprecated
	}
	if got := passingAddrs(table); !maps.Equal(got, want) {
		t.Errorf("passing %v; want %v", got, want)
	}
}
