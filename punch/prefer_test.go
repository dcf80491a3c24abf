package punch

import (
	"net/netip"
	"testing"
	"time"
)

func TestAcceptanceFor(t *testing.T) {
	at := netip.MustParseAddrPort
	v4, v6 := []netip.AddrPort{at("192.168.1.2:4500")}, []netip.AddrPort{at("[2001:db8::2]:4500")}
	both := append(append([]netip.AddrPort{}, v4...), v6...)
	tests := []struct {
		name        string
		own, theirs []netip.AddrPort
		want        time.Duration
	}{
		{"both on both", both, both, familyWait},
		{"IPv4", v4, v4, acceptanceWait},
		{"IPv6", v6, v6, acceptanceWait},
		{"both here", both, v4, acceptanceWait},
		{"both there", v6, both, acceptanceWait},
		{"nothing known", both, nil, acceptanceWait},
	}
	for _, tt := range tests {
		var remotes []Candidate
		for _, a := range tt.theirs {
			remotes = append(remotes, Candidate{Kind: Host, Addr: a})
		}
		if got := acceptanceFor(tt.own, remotes); got != tt.want {
			t.Errorf("%s: %v; want %v", tt.name, got, tt.want)
		}
	}
}

// IPv6 before IPv4, but a host candidate before any other.
func TestPriority(t *testing.T) {
	v4, v6 := netip.MustParseAddrPort("192.0.2.1:4500"), netip.MustParseAddrPort("[2001:db8::1]:4500")
	host4, err := newHost(v4)
	must(t, err)
	host6, err := newHost(v6)
	must(t, err)
	srflx4, err := newServerReflexive(v4)
	must(t, err)
	srflx6, err := newServerReflexive(v6)
	must(t, err)
	if !(host6.Priority() > host4.Priority() && host4.Priority() > srflx6.Priority() && srflx6.Priority() > srflx4.Priority()) {
		t.Errorf("host %d (IPv6), %d; server-reflexive %d (IPv6), %d; want them to fall",
			host6.Priority(), host4.Priority(), srflx6.Priority(), srflx4.Priority())
	}
	// What the formula of the RFC gives for IPv6 is what pion itself would use.
	if want := uint32(126<<24 | 65535<<8 | 255); host6.Priority() != want {
		t.Errorf("IPv6 host candidate: %d; want %d", host6.Priority(), want)
	}
}
