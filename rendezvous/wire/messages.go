package wire

import "net/netip"

// NodeName is a node's name, cluster.node, as its certificate says it.
type NodeName string

// AttemptID names one coordinated punch of one pair.
type AttemptID string

// EndpointType is FabEdge's: an edge or the cluster's connector.
type EndpointType string

// The two endpoint types.
const (
	Edge      EndpointType = "Edge"
	Connector EndpointType = "Connector"
)

// Endpoint describes a node as FabEdge does.
type Endpoint struct {
	// ID is the IKE identity, e.g. "C=CN, O=fabedge.io, CN=beijing.edge1".
	ID          string         `json:"id"`
	Name        NodeName       `json:"name"`
	Subnets     []netip.Prefix `json:"subnets,omitempty"`
	NodeSubnets []netip.Prefix `json:"nodeSubnets,omitempty"`
	// PublicAddresses and Port are where others reach this node without a
	// punch: IP addresses or host names, and a UDP port.
	PublicAddresses []string     `json:"publicAddresses,omitempty"`
	Port            uint16       `json:"port,omitempty"`
	Type            EndpointType `json:"type"`
}

// CandidateKind is a candidate's type, in the words of RFC 8445 section 5.1.1.
type CandidateKind string

// Candidate kinds. Server-reflexive and predicted candidates are made by the
// rendezvous from what it observed itself, never taken from an agent's message.
const (
	Host            CandidateKind = "host"
	ServerReflexive CandidateKind = "srflx"
	// Mapped is a port of the node's own router that leads to its IKE port, as
	// PCP, NAT-PMP or UPnP told the agent.
	Mapped CandidateKind = "mapped"
	// Predicted is a port that a counting NAT is expected to give next, made by
	// the rendezvous from a Prepared message.
	Predicted CandidateKind = "predicted"
)

// Candidate is a transport address (UDP) a peer may be reached at.
type Candidate struct {
	Kind CandidateKind  `json:"kind"`
	Addr netip.AddrPort `json:"addr"`
}

// Behaviour is a NAT's mapping or filtering behaviour, RFC 4787 sections 4.1
// and 5. Empty means not known.
type Behaviour string

// Behaviours.
const (
	EndpointIndependent     Behaviour = "endpoint-independent"
	AddressDependent        Behaviour = "address-dependent"
	AddressAndPortDependent Behaviour = "address-and-port-dependent"
)

// Allocation is how a NAT chooses ports, RFC 4787 section 4.2. Empty means not
// known.
type Allocation string

// Allocations.
const (
	Preserving Allocation = "preserving"
	Sequential Allocation = "sequential"
	Random     Allocation = "random"
)

// Answer is "yes", "no", or empty for not known.
type Answer string

// Answers.
const (
	Yes Answer = "yes"
	No  Answer = "no"
)

// NAT is what an agent found out about the NATs before it; package punch/nat
// says what each field means.
type NAT struct {
	// Present is false when the observed address is the node's own.
	Present    bool       `json:"present"`
	Mapping    Behaviour  `json:"mapping,omitempty"`
	Filtering  Behaviour  `json:"filtering,omitempty"`
	Allocation Allocation `json:"allocation,omitempty"`
	// Step of sequential allocation, in ports.
	Step     int    `json:"step,omitempty"`
	Hairpin  Answer `json:"hairpin,omitempty"`
	Poisoned Answer `json:"poisoned,omitempty"`
	// LifetimeSeconds is how long a mapping is known to live without traffic.
	LifetimeSeconds int `json:"lifetimeSeconds,omitempty"`
	// Hops is the least TTL that leaves all of the node's NATs.
	Hops int `json:"hops,omitempty"`
	// Blocked says in words why UDP does not pass, empty when it does.
	Blocked string `json:"blocked,omitempty"`
}

// Policy is how far punching may go. Empty means PolicyAuto.
type Policy string

// Policies.
const (
	// PolicyAuto permits everything.
	PolicyAuto Policy = "auto"
	// PolicyICEOnly permits packets only to addresses that were named.
	PolicyICEOnly Policy = "ice-only"
	// PolicyNever permits no punching.
	PolicyNever Policy = "never"
)

// Credentials are one side's ICE credentials (RFC 8445 section 5.3).
type Credentials struct {
	Ufrag string `json:"ufrag"`
	Pwd   string `json:"pwd"`
}

// Welcome is the first message of a session.
type Welcome struct {
	// Node is the name the certificate carries; the session acts for it.
	Node NodeName `json:"node"`
	// StoreID names the rendezvous' store: a list of peers from another store
	// must not tear down what an earlier one asked for.
	StoreID string `json:"storeID"`
	// STUN are the ports of the STUN service on the rendezvous' own address,
	// with the session's short-term credential (RFC 8489 section 9.1).
	//
	// The first two are to be asked. Behind each stands another one, in the same
	// order, that its answers to CHANGE-REQUEST come from (RFC 5780 section
	// 7.2) and that may be asked, too.
	STUNPorts []uint16 `json:"stunPorts"`
	// STUNAddrs are the rendezvous' other addresses: an agent that came over
	// IPv6 learns its IPv4 mapping there, and the other way round.
	STUNAddrs    []netip.Addr `json:"stunAddrs,omitempty"`
	STUNUsername string       `json:"stunUsername"`
	STUNPassword string       `json:"stunPassword"`
}

// Hello is the agent's answer to Welcome.
type Hello struct {
	AgentVersion string      `json:"agentVersion"`
	Endpoint     Endpoint    `json:"endpoint"`
	Candidates   []Candidate `json:"candidates"`
	// Tunnels that already stand, e.g. after the rendezvous came back.
	Tunnels []Tunnel `json:"tunnels,omitempty"`
	// Punch is how far this node's operator lets punching go.
	Punch Policy `json:"punch,omitempty"`
	// NoProbe says why the node cannot open many ports and rewrite the one that
	// was found, empty when it can.
	NoProbe string `json:"noProbe,omitempty"`
	// Metered: somebody pays for each byte. The rendezvous is silent for longer.
	Metered bool `json:"metered,omitempty"`
	// Answers: the agent understands Ask and Revocations.
	Answers bool `json:"answers,omitempty"`
}

// Tunnel is a standing tunnel as one of its ends sees it.
type Tunnel struct {
	Peer NodeName `json:"peer"`
	Path Path     `json:"path"`
	// Monitored is false for a tunnel whose path nobody watches, e.g. one that
	// an agent found in charon when it came back.
	Monitored bool `json:"monitored"`
	// Relay is as in Report.
	Relay bool `json:"relay,omitempty"`
}

// Network tells what gathering found; sent once it is finished and again when
// it changed.
type Network struct {
	Candidates []Candidate `json:"candidates"`
	NAT        NAT         `json:"nat"`
}

// PathKind says how two nodes reach each other.
type PathKind string

// Path kinds: the candidate kinds of the remote side, and Public for the
// connector's configured address.
const (
	PathHost            PathKind = "host"
	PathServerReflexive PathKind = "srflx"
	PathPeerReflexive   PathKind = "prflx"
	PathMapped          PathKind = "mapped"
	PathPredicted       PathKind = "predicted"
	PathPublic          PathKind = "public"
)

// Path is a nominated candidate pair as one side sees it.
type Path struct {
	Kind   PathKind       `json:"kind,omitempty"`
	Local  netip.AddrPort `json:"local,omitzero"`
	Remote netip.AddrPort `json:"remote,omitzero"`
}

// Plan says how a pair is to be connected.
type Plan string

// Plans.
const (
	// PlanICE punches: candidates of both sides, checked by ICE.
	PlanICE Plan = "ice"
	// PlanPublic needs no punch: the edge initiates to the connector's
	// public addresses and port, the connector answers.
	PlanPublic Plan = "public"
)

// Peer is one node the receiver shall have a tunnel with.
type Peer struct {
	Endpoint    Endpoint `json:"endpoint"`
	Plan        Plan     `json:"plan"`
	Role        Role     `json:"role"`
	Communities []string `json:"communities,omitempty"`
	// Relay is what the relay CHILD SA between an edge and its connector covers
	// beside the edge's subnets: the whole range in which its communities'
	// members have theirs. Each prefix is wider than any member's, so that the
	// selectors of a direct tunnel win. Empty where nothing is relayed.
	Relay []netip.Prefix `json:"relay,omitempty"`
	// Metered: the peer pays for each byte, so that a path to it is checked as
	// seldom as if this end did.
	Metered bool `json:"metered,omitempty"`
}

// Peers is the complete set of the receiver's peers: who is not in it, is none.
type Peers struct {
	Peers []Peer `json:"peers"`
}

// Role is the ICE role (RFC 8445 section 6.1.1); the controlling side also
// initiates IKE.
type Role string

// Roles.
const (
	Controlling Role = "controlling"
	Controlled  Role = "controlled"
)

// Prepare asks an agent whose NAT counts for the mapping it will get next. The
// answer is Prepared; the order follows it.
type Prepare struct {
	Attempt AttemptID `json:"attempt"`
}

// Prepared answers Prepare. Next is 0 when it could not be found out.
type Prepared struct {
	Attempt AttemptID `json:"attempt"`
	// Next is the port the NAT is expected to give to the next mapping, Step
	// the distance to the one after it, in ports.
	Next uint16 `json:"next"`
	Step int    `json:"step"`
}

// Strategy is how an attempt is made; package punch/nat says what each means.
type Strategy string

// Strategies. Empty means StrategyICE.
const (
	StrategyICE     Strategy = "ice"
	StrategyOpeners Strategy = "openers"
	StrategyPredict Strategy = "predict"
	StrategyProbe   Strategy = "probe"
)

// ProbePart is what one side does in StrategyProbe.
type ProbePart string

// Parts.
const (
	// PartOpen: open many ports towards the peer and wait for a hit.
	PartOpen ProbePart = "open"
	// PartSearch: look for one of the peer's open ports.
	PartSearch ProbePart = "search"
)

// Punch orders one attempt. Both sides of the pair get one.
type Punch struct {
	Attempt  AttemptID `json:"attempt"`
	Peer     Peer      `json:"peer"`
	Strategy Strategy  `json:"strategy,omitempty"`
	// Part is set in StrategyProbe.
	Part ProbePart `json:"part,omitempty"`
	// Hopeless says why no path is expected, empty when one is: the attempt is
	// cut short.
	Hopeless string `json:"hopeless,omitempty"`
	// StartAfterMs is how long to wait after receipt, in milliseconds: it
	// cancels the difference of the two sessions' measured delays, so that
	// both sides start together without comparing clocks.
	StartAfterMs int64       `json:"startAfterMs"`
	Local        Credentials `json:"local"`
	Remote       Credentials `json:"remote"`
	Candidates   []Candidate `json:"candidates"`
	RemoteNAT    NAT         `json:"remoteNAT"`
}

// Trickle brings what became known of the peer after the order: candidates
// (RFC 8838), and what its NAT does.
type Trickle struct {
	Attempt    AttemptID   `json:"attempt"`
	Candidates []Candidate `json:"candidates"`
	RemoteNAT  *NAT        `json:"remoteNAT,omitempty"`
}

// Cancel ends an attempt from outside. A tunnel that stands is not touched.
type Cancel struct {
	Attempt AttemptID `json:"attempt"`
	Reason  string    `json:"reason"`
}

// Retry tells that the other end of a tunnel without attempts (PlanPublic) has
// lost it: this end has to see for itself, since its charon would take minutes
// to notice.
type Retry struct {
	Peer   NodeName `json:"peer"`
	Reason string   `json:"reason"`
}

// Outcome is what an agent reports of an attempt or of a tunnel.
type Outcome string

// Outcomes, in the order a successful attempt passes them.
const (
	// OutcomeNominated: ICE has found a path, charon has not used it yet.
	OutcomeNominated Outcome = "nominated"
	// OutcomeDirect: a CHILD SA is installed and bytes came through it.
	OutcomeDirect Outcome = "direct"
	// OutcomeFailed: the attempt ended without a tunnel.
	OutcomeFailed Outcome = "failed"
	// OutcomeLost: a tunnel that was direct no longer is.
	OutcomeLost Outcome = "lost"
)

// Report tells the rendezvous about one pair.
type Report struct {
	Peer NodeName `json:"peer"`
	// Attempt is empty for a tunnel that needs none (PlanPublic).
	Attempt AttemptID `json:"attempt,omitempty"`
	Outcome Outcome   `json:"outcome"`
	Path    Path      `json:"path,omitzero"`
	// Reason is a sentence a person can act on; set for failed and lost, and
	// for a tunnel with the connector that is direct and does not relay.
	Reason string `json:"reason,omitempty"`
	// Silent is of a loss: the path went silent, though nobody ended the tunnel.
	// Such losses are held against a path.
	Silent bool `json:"silent,omitempty"`
	// Relay: this tunnel with the connector relays. Its relay CHILD SA is
	// installed; at the connector, forwarding between members is in force, too.
	Relay bool `json:"relay,omitempty"`
	// ElapsedMs is the time since the order was received, in milliseconds.
	ElapsedMs int64 `json:"elapsedMs"`
	// Packets is how many packets this side has sent to get through: openers,
	// probes and checks.
	Packets int `json:"packets,omitempty"`
	// Steps are what this side did and saw, in order of time; with the outcomes
	// that end an attempt.
	Steps []Step `json:"steps,omitempty"`
}

// Bye is the last message before the rendezvous closes the session.
type Bye struct {
	Reason string `json:"reason"`
	// Final tells the agent that coming back unchanged cannot help.
	Final bool `json:"final,omitempty"`
}

// Type implements Message.
func (*Hello) Type() string { return "hello" }

// Type implements Message.
func (*Network) Type() string { return "network" }

// Type implements Message.
func (*Report) Type() string { return "report" }

// Type implements Message.
func (*Welcome) Type() string { return "welcome" }

// Type implements Message.
func (*Peers) Type() string { return "peers" }

// Type implements Message.
func (*Prepare) Type() string { return "prepare" }

// Type implements Message.
func (*Prepared) Type() string { return "prepared" }

// Type implements Message.
func (*Punch) Type() string { return "punch" }

// Type implements Message.
func (*Trickle) Type() string { return "trickle" }

// Type implements Message.
func (*Cancel) Type() string { return "cancel" }

// Type implements Message.
func (*Retry) Type() string { return "retry" }

// Type implements Message.
func (*Bye) Type() string { return "bye" }
