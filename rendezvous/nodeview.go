package rendezvous

import (
	"net/netip"
	"slices"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

// NodeView is a node as the API, the page and the store see it.
type NodeView struct {
	Name   wire.NodeName `json:"name"`
	Online bool          `json:"online"`
	// Admission is what operators say of it, empty for a node of an existing CA
	// that nobody has said anything of and that has not come yet.
	Admission    store.AdmissionState `json:"admission,omitempty"`
	Since        time.Time            `json:"since"`
	LastSeen     time.Time            `json:"lastSeen"`
	Endpoint     wire.Endpoint        `json:"endpoint"`
	AgentVersion string               `json:"agentVersion"`
	Fingerprint  string               `json:"certificateSHA256"`
	NAT          wire.NAT             `json:"nat"`
	// Punch is how far the node's operator lets punching go; NoProbe is why it
	// cannot open many ports.
	Punch   wire.Policy `json:"punch,omitempty"`
	NoProbe string      `json:"noProbe,omitempty"`
	// Metered: somebody pays for each byte, so that the session is pinged rarely.
	Metered bool `json:"metered,omitempty"`
	// Usage is what the node's standing still costs, nil until its agent says.
	Usage *UsageView `json:"usage,omitempty"`
	// RefusedReports counts reports about pairs and attempts that were not the
	// node's, RefusedSessions sessions in which it claimed another's subnets;
	// Refusal is why the last one was refused, unless one has been let in since.
	RefusedReports  int    `json:"refusedReports,omitempty"`
	RefusedSessions int    `json:"refusedSessions,omitempty"`
	Refusal         string `json:"refusal,omitempty"`
	// Observed is its IPv4 address if it was seen over IPv4, Observed6 the other
	// one if it was seen over both.
	Observed   netip.AddrPort `json:"observed,omitzero"`
	ObservedAt time.Time      `json:"observedAt,omitzero"`
	ObservedBy string         `json:"observedBy,omitempty"`
	Observed6  netip.AddrPort `json:"observed6,omitzero"`
}

// observedIn is where the node was seen last in the family of a.
func (v *NodeView) observedIn(a netip.AddrPort) netip.AddrPort {
	if v.Observed.Addr().Is4() == a.Addr().Is4() {
		return v.Observed
	}
	return v.Observed6
}

// sameStay is how much older the address of one family may be than that of the
// other to be of the same network.
const sameStay = time.Hour

// restore takes the newest of the stored observations, which are newest first.
func (v *NodeView) restore(seen []store.Observation) {
	for _, family := range []func(netip.Addr) bool{netip.Addr.Is4, netip.Addr.Is6} {
		i := slices.IndexFunc(seen, func(o store.Observation) bool { return family(o.Addr.Addr()) })
		if i >= 0 && seen[0].Last.Sub(seen[i].Last) < sameStay {
			v.observe(Observation{Addr: seen[i].Addr, At: seen[i].Last, Means: seen[i].Means})
		}
	}
}

// observe takes an observation in.
func (v *NodeView) observe(o Observation) {
	switch {
	case o.Addr.Addr().Is6() && v.Observed.Addr().Is4():
		v.Observed6 = o.Addr
		return
	case o.Addr.Addr().Is4() && v.Observed.Addr().Is6():
		v.Observed6 = v.Observed
	}
	v.Observed, v.ObservedAt, v.ObservedBy = o.Addr, o.At, o.Means
}
