package wire

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// Bounds on what one message may carry. They keep a hostile peer from turning
// a punch into a scan and a frame into a memory problem.
const (
	MaxCandidates = 24
	MaxSubnets    = 64
	MaxPeers      = 2048
	MaxText       = 1024
	MaxGroups     = 2048
	// MaxStep is the widest step at which a NAT is said to count, in ports.
	MaxStep = 64
)

// A DNS-1123 subdomain (FabEdge's names are cluster.node).
var nodeName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrInvalid}, args...)...)
}

// Validate reports whether n can be a node's name.
func (n NodeName) Validate() error {
	if len(n) == 0 || len(n) > 253 || !nodeName.MatchString(string(n)) {
		return invalid("node name %.64q is not a lower-case DNS name such as beijing.edge1", string(n))
	}
	return nil
}

// Cluster is the part of the name before the first dot, FabEdge's cluster.
func (n NodeName) Cluster() string {
	cluster, _, _ := strings.Cut(string(n), ".")
	return cluster
}

// Validate checks an endpoint's fields by themselves.
func (e *Endpoint) Validate() error {
	if err := e.Name.Validate(); err != nil {
		return err
	}
	if e.ID == "" || len(e.ID) > MaxText {
		return invalid("endpoint.id of %s is empty or longer than %d bytes", e.Name, MaxText)
	}
	if e.Type != Edge && e.Type != Connector {
		return invalid("endpoint.type %.32q of %s: want Edge or Connector", e.Type, e.Name)
	}
	if err := validatePrefixes("endpoint.subnets", e.Subnets); err != nil {
		return err
	}
	if err := validatePrefixes("endpoint.nodeSubnets", e.NodeSubnets); err != nil {
		return err
	}
	if len(e.PublicAddresses) > MaxCandidates {
		return invalid("endpoint.publicAddresses has %d entries, limit %d", len(e.PublicAddresses), MaxCandidates)
	}
	for _, a := range e.PublicAddresses {
		ip, notIP := netip.ParseAddr(a)
		if (notIP != nil || ip.Zone() != "") && NodeName(strings.ToLower(strings.TrimSuffix(a, "."))).Validate() != nil {
			return invalid("endpoint.publicAddresses: %.64q is neither an IP address nor a host name", a)
		}
	}
	return nil
}

// minBits is the shortest prefix a node may claim: a shorter one would draw its
// peers' traffic to half the world into its tunnel.
func minBits(a netip.Addr) int {
	if a.Is4() {
		return 8
	}
	return 32
}

func validatePrefixes(field string, ps []netip.Prefix) error {
	if len(ps) > MaxSubnets {
		return invalid("%s has %d entries, limit %d", field, len(ps), MaxSubnets)
	}
	for _, p := range ps {
		// IPv4 in IPv6's clothes would overlap with nobody's IPv4.
		if !p.IsValid() || p.Masked() != p || p.Addr().Is4In6() {
			return invalid("%s: %s is no network prefix", field, p)
		}
		if p.Bits() < minBits(p.Addr()) {
			return invalid("%s: %s would claim too many addresses: want /%d or longer", field, p, minBits(p.Addr()))
		}
	}
	return nil
}

// Validate refuses candidates nobody should be sent to.
func (c Candidate) Validate() error {
	if !slices.Contains([]CandidateKind{Host, ServerReflexive, Mapped, Predicted}, c.Kind) {
		return invalid("candidate kind %.32q", c.Kind)
	}
	a := c.Addr.Addr()
	if !a.IsValid() || c.Addr.Port() == 0 || !plainZone(a) {
		return invalid("candidate address %s", c.Addr)
	}
	if a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() || a.Is4In6() ||
		a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return invalid("candidate address %s is not a unicast address of a node", c.Addr)
	}
	return nil
}

func validateCandidates(cs []Candidate) error {
	if len(cs) > MaxCandidates {
		return invalid("%d candidates, limit %d", len(cs), MaxCandidates)
	}
	for _, c := range cs {
		if err := c.Validate(); err != nil {
			return err
		}
	}
	return nil
}

// validateOwn checks what an agent says of itself: what the world outside sees
// of it is for the rendezvous to observe.
func validateOwn(cs []Candidate) error {
	for _, c := range cs {
		if c.Kind != Host && c.Kind != Mapped {
			return invalid("candidate %s is %s: an agent sends host and mapped candidates only", c.Addr, c.Kind)
		}
	}
	return validateCandidates(cs)
}

// Validate checks the kind: addresses of a path are shown, never used.
func (p Path) Validate() error {
	if !slices.Contains([]PathKind{"", PathHost, PathServerReflexive, PathPeerReflexive, PathMapped, PathPredicted, PathPublic}, p.Kind) {
		return invalid("path kind %.32q", p.Kind)
	}
	if !plainZone(p.Local.Addr()) || !plainZone(p.Remote.Addr()) {
		return invalid("path from %.64q to %.64q", p.Local, p.Remote)
	}
	return nil
}

// plainZone reports whether an address' zone can be an interface's name: netip
// takes whatever a peer writes, and what is shown goes to terminals.
func plainZone(a netip.Addr) bool {
	const longest = 15 // IFNAMSIZ of Linux, without its zero
	return len(a.Zone()) <= longest && Clip(a.Zone()) == a.Zone()
}

// Validate checks the values, which all are an agent's own words.
func (n NAT) Validate() error {
	known := []Behaviour{"", EndpointIndependent, AddressDependent, AddressAndPortDependent}
	answers := []Answer{"", Yes, No}
	switch {
	case !slices.Contains(known, n.Mapping) || !slices.Contains(known, n.Filtering):
		return invalid("NAT behaviour %.32q/%.32q", n.Mapping, n.Filtering)
	case !slices.Contains([]Allocation{"", Preserving, Sequential, Random}, n.Allocation):
		return invalid("NAT allocation %.32q", n.Allocation)
	case n.Step < -MaxStep || n.Step > MaxStep:
		return invalid("NAT step %d: want %d to %d", n.Step, -MaxStep, MaxStep)
	case !slices.Contains(answers, n.Hairpin) || !slices.Contains(answers, n.Poisoned):
		return invalid("NAT hairpin %.32q, poisoned %.32q: want yes, no or nothing", n.Hairpin, n.Poisoned)
	case n.LifetimeSeconds < 0 || n.LifetimeSeconds > 86_400:
		return invalid("NAT lifetimeSeconds %d: want 0 to 86400", n.LifetimeSeconds)
	case n.Hops < 0 || n.Hops > 255:
		return invalid("NAT hops %d: want 0 to 255", n.Hops)
	}
	return validateText("nat.blocked", n.Blocked)
}

// Validate checks the value.
func (p Policy) Validate() error {
	if !slices.Contains([]Policy{"", PolicyAuto, PolicyICEOnly, PolicyNever}, p) {
		return invalid("punch %.32q: want %s, %s or %s", p, PolicyAuto, PolicyICEOnly, PolicyNever)
	}
	return nil
}

// Clip makes a text one line of what a message may carry. Nothing that would
// steer the terminal it is shown on passes.
func Clip(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	if len(s) <= MaxText {
		return s
	}
	return strings.ToValidUTF8(s[:MaxText], "")
}

func validateText(field, s string) error {
	if len(s) > MaxText {
		return invalid("%s has %d bytes, limit %d", field, len(s), MaxText)
	}
	return nil
}

func validateStart(ms int64) error {
	if ms < 0 || ms > 60_000 {
		return invalid("startAfterMs %d: want 0 to 60000", ms)
	}
	return nil
}

func (a AttemptID) validate() error {
	if a == "" || len(a) > 64 {
		return invalid("attempt %.64q", string(a))
	}
	return nil
}

// Validate implements Message.
func (h *Hello) Validate() error {
	if err := h.Endpoint.Validate(); err != nil {
		return err
	}
	if len(h.AgentVersion) > 128 || len(h.Tunnels) > MaxPeers {
		return invalid("agentVersion or tunnels beyond their limits")
	}
	if err := h.Punch.Validate(); err != nil {
		return err
	}
	if err := validateText("noProbe", h.NoProbe); err != nil {
		return err
	}
	for _, t := range h.Tunnels {
		if err := t.Peer.Validate(); err != nil {
			return err
		}
		if err := t.Path.Validate(); err != nil {
			return err
		}
	}
	return validateOwn(h.Candidates)
}

// Validate implements Message.
func (n *Network) Validate() error {
	if err := n.NAT.Validate(); err != nil {
		return err
	}
	return validateOwn(n.Candidates)
}

// Validate implements Message.
func (r *Report) Validate() error {
	if err := r.Peer.Validate(); err != nil {
		return err
	}
	switch r.Outcome {
	case OutcomeNominated, OutcomeDirect, OutcomeFailed, OutcomeLost:
	default:
		return invalid("outcome %.32q", r.Outcome)
	}
	if len(r.Attempt) > 64 {
		return invalid("attempt %.64q", r.Attempt)
	}
	if r.ElapsedMs < 0 || r.Packets < 0 {
		return invalid("elapsedMs %d or packets %d is negative", r.ElapsedMs, r.Packets)
	}
	if err := r.Path.Validate(); err != nil {
		return err
	}
	if err := validateSteps(r.Steps); err != nil {
		return err
	}
	return validateText("reason", r.Reason)
}

// Validate implements Message.
func (w *Welcome) Validate() error {
	if err := w.Node.Validate(); err != nil {
		return err
	}
	if len(w.STUNPorts) == 0 || len(w.STUNPorts) > 4 || slices.Contains(w.STUNPorts, 0) {
		return invalid("stunPorts %v", w.STUNPorts)
	}
	if len(w.STUNAddrs) > 4 || slices.ContainsFunc(w.STUNAddrs, func(a netip.Addr) bool { return !a.IsValid() || a.IsMulticast() || a.IsUnspecified() }) {
		return invalid("stunAddrs %v", w.STUNAddrs)
	}
	return nil
}

// Validate implements Message.
func (p *Peers) Validate() error {
	if len(p.Peers) > MaxPeers {
		return invalid("%d peers, limit %d", len(p.Peers), MaxPeers)
	}
	for i := range p.Peers {
		if err := p.Peers[i].validate(); err != nil {
			return err
		}
	}
	return nil
}

func (p *Peer) validate() error {
	if p.Plan != PlanICE && p.Plan != PlanPublic {
		return invalid("plan %.32q", p.Plan)
	}
	if p.Role != Controlling && p.Role != Controlled {
		return invalid("role %.32q", p.Role)
	}
	if err := validatePrefixes("relay", p.Relay); err != nil {
		return err
	}
	return p.Endpoint.Validate()
}

// Validate implements Message.
func (p *Punch) Validate() error {
	if err := p.Attempt.validate(); err != nil {
		return err
	}
	if err := p.Peer.validate(); err != nil {
		return err
	}
	if !slices.Contains([]Strategy{"", StrategyICE, StrategyOpeners, StrategyPredict, StrategyProbe}, p.Strategy) {
		return invalid("strategy %.32q", p.Strategy)
	}
	if p.Part != "" && p.Part != PartOpen && p.Part != PartSearch || (p.Part == "") == (p.Strategy == StrategyProbe) {
		return invalid("part %.32q in strategy %.32q", p.Part, p.Strategy)
	}
	if err := validateText("hopeless", p.Hopeless); err != nil {
		return err
	}
	if err := validateStart(p.StartAfterMs); err != nil {
		return err
	}
	for _, c := range []Credentials{p.Local, p.Remote} {
		// RFC 8839 section 5.4: at least 4 and 22 characters, at most 256.
		if len(c.Ufrag) < 4 || len(c.Ufrag) > 256 || len(c.Pwd) < 22 || len(c.Pwd) > 256 {
			return invalid("ICE credentials of wrong length")
		}
	}
	if err := p.RemoteNAT.Validate(); err != nil {
		return err
	}
	return validateCandidates(p.Candidates)
}

// Validate implements Message.
func (p *Prepare) Validate() error { return p.Attempt.validate() }

// Validate implements Message.
func (p *Prepared) Validate() error {
	if p.Step < -MaxStep || p.Step > MaxStep {
		return invalid("step %d: want %d to %d", p.Step, -MaxStep, MaxStep)
	}
	return p.Attempt.validate()
}

// Validate implements Message.
func (t *Trickle) Validate() error {
	if err := t.Attempt.validate(); err != nil {
		return err
	}
	if t.RemoteNAT != nil {
		if err := t.RemoteNAT.Validate(); err != nil {
			return err
		}
	}
	return validateCandidates(t.Candidates)
}

// Validate implements Message.
func (c *Cancel) Validate() error {
	if err := c.Attempt.validate(); err != nil {
		return err
	}
	return validateText("reason", c.Reason)
}

// Validate implements Message.
func (r *Retry) Validate() error {
	if err := r.Peer.Validate(); err != nil {
		return err
	}
	return validateText("reason", r.Reason)
}

// Validate implements Message.
func (b *Bye) Validate() error { return validateText("reason", b.Reason) }
