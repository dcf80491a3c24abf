package punch

import (
	"net/netip"
	"slices"
	"time"

	"github.com/pion/ice/v4"
)

const (
	// acceptanceWait is how long a path through a NAT waits for a better one:
	// two hosts of one LAN that also see each other through a hairpin must
	// choose the LAN. A LAN answers within it; a longer wait would be added to
	// every punch.
	acceptanceWait = 40 * time.Millisecond
	// familyWait takes its place where both sides have both address families:
	// IPv6 needs no mapping to be kept alive, and gets a lead (RFC 8421 section
	// 4) of one round trip, by RFC 8305 section 5 at most.
	familyWait = 250 * time.Millisecond
)

// acceptanceFor is how long a session's paths through NATs wait for better ones.
func acceptanceFor(own []netip.AddrPort, remotes []Candidate) time.Duration {
	theirs := make([]netip.AddrPort, 0, len(remotes))
	for _, r := range remotes {
		theirs = append(theirs, r.Addr)
	}
	if bothFamilies(own) && bothFamilies(theirs) {
		return familyWait
	}
	return acceptanceWait
}

func bothFamilies(addrs []netip.AddrPort) bool {
	is4 := func(a netip.AddrPort) bool { return a.Addr().Unmap().Is4() }
	return slices.ContainsFunc(addrs, is4) && slices.ContainsFunc(addrs, func(a netip.AddrPort) bool { return !is4(a) })
}

// Type preferences, RFC 8445 section 5.1.2.2, as pion has them.
const (
	hostPreference      = 126
	reflexivePreference = 100
)

// priority is a candidate's, RFC 8445 section 5.1.2.1, with the highest local
// preference for IPv6 and the next for IPv4.
func priority(typePreference uint32, a netip.Addr) uint32 {
	local := uint32(65535)
	if a.Unmap().Is4() {
		local--
	}
	return typePreference<<24 | local<<8 | (256 - uint32(ice.ComponentRTP))
}

func newHost(a netip.AddrPort) (ice.Candidate, error) {
	return ice.NewCandidateHost(&ice.CandidateHostConfig{
		Network: "udp", Address: a.Addr().String(), Port: int(a.Port()), Component: ice.ComponentRTP,
		Priority: priority(hostPreference, a.Addr()),
	})
}

func newServerReflexive(a netip.AddrPort) (ice.Candidate, error) {
	return ice.NewCandidateServerReflexive(&ice.CandidateServerReflexiveConfig{
		Network: "udp", Address: a.Addr().String(), Port: int(a.Port()), Component: ice.ComponentRTP,
		Priority: priority(reflexivePreference, a.Addr()),
	})
}
