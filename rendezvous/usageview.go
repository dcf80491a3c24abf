package rendezvous

import (
	"math"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// UsageView is what a node costs while nothing flows through its tunnels, as its
// agent counted it last: IP bytes in both directions, reckoned for a day.
type UsageView struct {
	At time.Time `json:"at"`
	// Seconds is how long was counted.
	Seconds    int64 `json:"seconds"`
	Signalling int64 `json:"signalling"`
	STUN       int64 `json:"stun"`
	// Peers is by peer: consent checks, keepalives, dead peer detection.
	Peers map[wire.NodeName]int64 `json:"peers"`
}

// newUsageView reckons what was counted for a day. Of what an agent says of
// peers, only those it has are kept.
func newUsageView(now time.Time, u *wire.Usage, paired func(wire.NodeName) bool) *UsageView {
	const day = 24 * time.Hour
	daily := func(bytes int64) int64 {
		return int64(min(float64(bytes)/float64(u.Seconds)*day.Seconds(), math.MaxInt64/2))
	}
	v := &UsageView{
		At: now, Seconds: u.Seconds, Signalling: daily(u.Signalling), STUN: daily(u.STUN),
		Peers: map[wire.NodeName]int64{},
	}
	for name, bytes := range u.Peers {
		if paired(name) {
			v.Peers[name] = daily(bytes)
		}
	}
	return v
}

// perPeer is the mean of Peers, in bytes a day.
func (v *UsageView) perPeer() int64 {
	if len(v.Peers) == 0 {
		return 0
	}
	var sum float64
	for _, bytes := range v.Peers {
		sum += float64(bytes)
	}
	return int64(sum / float64(len(v.Peers)))
}
