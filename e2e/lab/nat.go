package lab

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Behavior is how a NAT maps or filters (RFC 4787 sections 4.1 and 5).
type Behavior string

// The behaviours of RFC 4787. NoNAT stands for a router that does neither,
// Blocked for one that passes no UDP.
const (
	NoNAT                   Behavior = "none"
	EndpointIndependent     Behavior = "EI"
	AddressDependent        Behavior = "AD"
	AddressAndPortDependent Behavior = "APD"
	Blocked                 Behavior = "blocked"
)

// NATBehavior is what a peer can expect of a NAT.
type NATBehavior struct {
	Mapping   Behavior
	Filtering Behavior
}

// NATKind names a ruleset of the lab.
type NATKind int

const (
	// None is a plain router: no translation, no firewall.
	None NATKind = iota
	// FullCone maps every inside address and port to one outside port, and
	// lets anybody in through it while the mapping lives.
	FullCone
	// AddressRestricted maps as FullCone does, and lets in whom the inside
	// has sent to from that mapping, from any of their ports.
	AddressRestricted
	// PortRestricted is Linux masquerade behind a firewall that drops what
	// comes in unasked: the commonest home router.
	PortRestricted
	// PortRestrictedPoisoned is Linux masquerade that lets unasked packets
	// reach the router itself. Conntrack then remembers a peer's early packet
	// to the public address, and gives a local opener to the same peer another
	// port, since the tuple it wants is taken: the hole is missed.
	PortRestrictedPoisoned
	// Symmetric gives each destination another random port.
	Symmetric
	// SymmetricSequential gives each destination the next port.
	SymmetricSequential
	// UDPBlocked passes TCP and ICMP only.
	UDPBlocked
)

var natKinds = [...]struct {
	name     string
	behavior NATBehavior
}{
	None:                   {"none", NATBehavior{NoNAT, NoNAT}},
	FullCone:               {"full-cone", NATBehavior{EndpointIndependent, EndpointIndependent}},
	AddressRestricted:      {"address-restricted", NATBehavior{EndpointIndependent, AddressDependent}},
	PortRestricted:         {"port-restricted", NATBehavior{EndpointIndependent, AddressAndPortDependent}},
	PortRestrictedPoisoned: {"port-restricted-poisoned", NATBehavior{EndpointIndependent, AddressAndPortDependent}},
	Symmetric:              {"symmetric", NATBehavior{AddressAndPortDependent, AddressAndPortDependent}},
	SymmetricSequential:    {"symmetric-sequential", NATBehavior{AddressAndPortDependent, AddressAndPortDependent}},
	UDPBlocked:             {"udp-blocked", NATBehavior{Blocked, Blocked}},
}

// NATKinds lists all kinds.
func NATKinds() []NATKind {
	kinds := make([]NATKind, len(natKinds))
	for i := range kinds {
		kinds[i] = NATKind(i)
	}
	return kinds
}

func (k NATKind) String() string { return natKinds[k].name }

// Behavior is what the kind does by design, in the terms of RFC 4787.
func (k NATKind) Behavior() NATBehavior { return natKinds[k].behavior }

// tracksMappings tells the kinds that keep a table of their own.
func (k NATKind) tracksMappings() bool { return k == FullCone || k == AddressRestricted }

// defaultMappingTimeout is that of conntrack for a UDP flow used both ways.
const defaultMappingTimeout = 120 * time.Second

func mappingTimeout(set time.Duration) time.Duration {
	if set <= 0 {
		return defaultMappingTimeout
	}
	return max(set, time.Second)
}

type portForward struct {
	protocol string
	port     uint16
	to       netip.AddrPort
}

// natConfig is all a router's ruleset depends on.
type natConfig struct {
	kind     NATKind
	wan      netip.Addr
	lan      netip.Prefix
	lan6     netip.Prefix // zero: no IPv6
	hairpin  bool
	timeout  time.Duration
	forwards []portForward
}

// ruleset is the nftables text for the router, replacing what was loaded.
// Chains of a table run in the order they are written here.
func (c natConfig) ruleset() string {
	if c.kind == None {
		return "flush ruleset\n"
	}
	var b strings.Builder
	b.WriteString("flush ruleset\ntable ip nat {\n")
	if c.kind.tracksMappings() {
		b.WriteString(c.mappingTables())
	}
	chain(&b, "prerouting", "type nat hook prerouting priority dstnat; policy accept;", c.prerouting())
	chain(&b, "forward", "type filter hook forward priority filter; policy drop;", c.forward())
	chain(&b, "input", "type filter hook input priority filter; policy accept;", c.input())
	chain(&b, "postrouting", "type nat hook postrouting priority srcnat; policy accept;", c.postrouting())
	chain(&b, "learn", "type filter hook postrouting priority srcnat + 10; policy accept;", c.learn())
	b.WriteString("}\n")
	if c.lan6.IsValid() {
		b.WriteString("table ip6 firewall {\n")
		chain(&b, "forward", "type filter hook forward priority filter; policy drop;", c.firewall6())
		b.WriteString("}\n")
	}
	return b.String()
}

func chain(b *strings.Builder, name, hook string, rules []string) {
	fmt.Fprintf(b, "  chain %s {\n    %s\n", name, hook)
	for _, rule := range rules {
		fmt.Fprintf(b, "    %s\n", rule)
	}
	b.WriteString("  }\n")
}

// mappingTables hold what conntrack does not: one outside port per inside
// address and port, whatever the destination, for any number of hosts.
// inward leads from the outside port in, outward is its inverse, taken are the
// outside ports in use, asked are the outside port and the address of each
// peer the inside has sent to.
func (c natConfig) mappingTables() string {
	table := func(kind, name, typ string) string {
		return fmt.Sprintf("  %s %s {\n    type %s\n    flags dynamic,timeout\n    timeout %ds\n    size 65535\n  }\n",
			kind, name, typ, int(c.timeout.Seconds()))
	}
	return table("map", "inward", "inet_service : ipv4_addr . inet_service") +
		table("map", "outward", "ipv4_addr . inet_service : inet_service") +
		table("set", "taken", "inet_service") +
		table("set", "asked", "inet_service . ipv4_addr")
}

// prerouting leads in what may come in unasked.
func (c natConfig) prerouting() []string {
	var rules []string
	for _, f := range c.forwards {
		rules = append(rules, fmt.Sprintf("ip daddr %s %s dport %d dnat to %s", c.wan, f.protocol, f.port, f.to))
	}
	from := `iifname "wan"`
	if c.hairpin {
		from = "ip daddr " + c.wan.String()
	}
	switch c.kind {
	case FullCone:
		rules = append(rules, from+" dnat ip to udp dport map @inward")
	case AddressRestricted:
		rules = append(rules, from+" udp dport . ip saddr @asked dnat ip to udp dport map @inward")
	}
	return rules
}

// firewall6 lets out everything and in what was asked for: home routers do
// not translate IPv6, they filter it (RFC 6092).
func (c natConfig) firewall6() []string {
	rules := []string{"ct state established,related accept", `iifname "lan" oifname "wan" accept`}
	if c.kind == UDPBlocked {
		return append([]string{"meta l4proto udp drop"}, rules...)
	}
	return rules
}

// forward is the firewall between inside and outside.
func (c natConfig) forward() []string {
	var rules []string
	if c.kind == UDPBlocked {
		rules = append(rules, `iifname "lan" oifname "wan" meta l4proto udp drop`)
	}
	return append(rules,
		"ct state established,related accept",
		"ct status dnat accept",
		`iifname "lan" oifname "wan" accept`)
}

// input drops what comes from outside for the router itself. A packet that is
// dropped leaves no trace in conntrack; without the drop it poisons the
// mapping a local opener needs.
func (c natConfig) input() []string {
	if c.kind == PortRestrictedPoisoned {
		return nil
	}
	return []string{
		`iifname "wan" ct state established,related accept`,
		`iifname "wan" drop`,
	}
}

// outgoing matches what is translated on its way out, or round the hairpin: what
// comes in from the internet keeps its source.
func (c natConfig) outgoing() []string {
	if c.hairpin {
		return []string{`oifname "wan"`, fmt.Sprintf(`oifname "lan" ip saddr %s ct status dnat`, c.lan)}
	}
	return []string{`oifname "wan"`}
}

// postrouting translates what goes out.
func (c natConfig) postrouting() []string {
	switch c.kind {
	case FullCone, AddressRestricted:
		// A known inside address and port keeps its outside port; a new one
		// keeps its own number unless another host has that.
		var rules []string
		for _, out := range c.outgoing() {
			rules = append(rules,
				fmt.Sprintf("%s meta l4proto udp snat ip to %s : ip saddr . udp sport map @outward", out, c.wan),
				fmt.Sprintf("%s udp sport @taken snat to %s fully-random", out, c.wan),
				fmt.Sprintf("%s snat to %s", out, c.wan))
		}
		return rules
	case Symmetric:
		return []string{`oifname "wan" masquerade fully-random`}
	case SymmetricSequential:
		return []string{
			fmt.Sprintf(`oifname "wan" meta l4proto udp snat ip to %s : numgen inc mod %d map { %s }`, c.wan, sequentialPorts, sequence()),
			`oifname "wan" masquerade`,
		}
	default:
		return []string{`oifname "wan" masquerade`}
	}
}

// learn runs after translation, where the packet carries its outside port and
// conntrack still knows the inside one.
func (c natConfig) learn() []string {
	if !c.kind.tracksMappings() {
		return nil
	}
	var rules []string
	for _, out := range c.outgoing() {
		out += " meta l4proto udp ct direction original update "
		rules = append(rules,
			out+"@inward { udp sport : ct original ip saddr . ct original proto-src }",
			out+"@outward { ct original ip saddr . ct original proto-src : udp sport }",
			out+"@taken { udp sport }",
			out+"@asked { udp sport . ct original ip daddr }")
	}
	return rules
}

// A counting NAT starts at firstSequentialPort and comes round after
// sequentialPorts.
const (
	firstSequentialPort = 20000
	sequentialPorts     = 1024
)

func sequence() string {
	elements := make([]string, sequentialPorts)
	for i := range elements {
		elements[i] = fmt.Sprintf("%d : %d", i, firstSequentialPort+i)
	}
	return strings.Join(elements, ", ")
}
