package wire

// Forwarding tells a connector between which of its edges it relays: the
// members of one group may talk to each other, and nobody else. Always the
// complete set.
type Forwarding struct {
	Groups []Group `json:"groups"`
}

// Group is the edges of one community that the receiver relays for.
type Group struct {
	Community string     `json:"community"`
	Nodes     []NodeName `json:"nodes"`
}

// Demote tells an end of a direct tunnel to leave it for the relay: the other
// end has found it dead, or an operator wants no direct tunnel. An end whose
// relay is not up keeps what it has.
type Demote struct {
	Peer NodeName `json:"peer"`
	// Reason is a sentence a person can act on.
	Reason string `json:"reason"`
	// StartAfterMs is as in Punch: where nothing is broken both ends leave at
	// one moment.
	StartAfterMs int64 `json:"startAfterMs,omitempty"`
}

// Usage is what a node's standing still costs, as its agent has counted it;
// sent some minutes after a session's start and every hour.
type Usage struct {
	// Seconds is how long was counted. All figures are IP bytes in both
	// directions in that time, without what the tunnels carry.
	Seconds int64 `json:"seconds"`
	// Signalling is the session with the rendezvous, STUN discovery and mapping
	// refreshes.
	Signalling int64 `json:"signalling"`
	STUN       int64 `json:"stun"`
	// Peers is consent checks, and what charon's keepalives and dead peer
	// detection are reckoned to cost.
	Peers map[NodeName]int64 `json:"peers,omitempty"`
}

// Type implements Message.
func (*Forwarding) Type() string { return "forwarding" }

// Type implements Message.
func (*Demote) Type() string { return "demote" }

// Type implements Message.
func (*Usage) Type() string { return "usage" }

// Validate implements Message.
func (f *Forwarding) Validate() error {
	if len(f.Groups) > MaxGroups {
		return invalid("%d groups, limit %d", len(f.Groups), MaxGroups)
	}
	for _, g := range f.Groups {
		if len(g.Nodes) > MaxPeers {
			return invalid("%d nodes in group %.64q, limit %d", len(g.Nodes), g.Community, MaxPeers)
		}
		for _, n := range g.Nodes {
			if err := n.Validate(); err != nil {
				return err
			}
		}
	}
	return nil
}

// Validate implements Message.
func (d *Demote) Validate() error {
	if err := d.Peer.Validate(); err != nil {
		return err
	}
	if err := validateStart(d.StartAfterMs); err != nil {
		return err
	}
	return validateText("reason", d.Reason)
}

// Validate implements Message.
func (u *Usage) Validate() error {
	if u.Seconds <= 0 || u.Signalling < 0 || u.STUN < 0 || len(u.Peers) > MaxPeers {
		return invalid("usage of %d s, signalling %d, STUN %d, %d peers", u.Seconds, u.Signalling, u.STUN, len(u.Peers))
	}
	for name, bytes := range u.Peers {
		if err := name.Validate(); err != nil {
			return err
		}
		if bytes < 0 {
			return invalid("usage of %s: %d bytes", name, bytes)
		}
	}
	return nil
}
