package doctor

import (
	"crypto/x509"
	"io/fs"
	"net/netip"
	"time"

	"github.com/bodkin-net/bodkin/agent"
	"github.com/bodkin-net/bodkin/agent/charon"
	"github.com/bodkin-net/bodkin/agent/doctor/ruleset"
)

// Facts are what is known of this machine. Each group is written by its own
// source and not touched afterwards; a group that was not asked for is zero.
type Facts struct {
	Now     time.Time
	Version string // of this program
	Root    bool   // who runs it is root
	Config  ConfigFacts
	Cert    CertFacts
	Target  TargetFacts
	Units   UnitFacts

	Agent     AgentFacts
	Charon    CharonFacts
	Ports     PortFacts
	ICMP      ICMPFacts
	Raw       error // why the shared port cannot be opened
	Kernel    KernelFacts
	Netfilter NetfilterFacts
	TCP       TCPFacts
	UDP       UDPFacts
	MTU       MTUFacts
	Rewrite   error // why ports cannot be rewritten
	State     StateFacts
}

// ConfigFacts are what agent.yaml says. Without one, Config has the defaults.
type ConfigFacts struct {
	Path    string
	Missing bool
	// Err is why it cannot be read, Whole what the agent would say at its start.
	Err, Whole error
	Config     agent.Config
	// Subnets and NodeSubnets are the endpoint's, those that can be read.
	Subnets, NodeSubnets []netip.Prefix
}

// readable reports whether what Config says is the operator's word.
func (c ConfigFacts) readable() bool { return !c.Missing && c.Err == nil }

// UnitFacts are what starts this machine's daemons.
type UnitFacts struct {
	Systemd bool // is running
	// Charon is the unit of charon, without .service; empty if none is installed.
	Charon string
}

// charon is how to restart or enable charon.
func (u UnitFacts) charon(verb string) string {
	switch {
	case !u.Systemd:
		return "(re)start charon, as with: ipsec restart"
	case u.Charon == "":
		return "systemctl " + verb + " " + starterUnit + "   # with charon-systemd: " + strongswanUnit
	}
	return "systemctl " + verb + " " + u.Charon
}

// restartAgent is how to restart the agent, which costs no tunnel.
func (u UnitFacts) restartAgent() string {
	if !u.Systemd {
		return "end the agent and start it again: bodkin agent"
	}
	return "systemctl restart bodkin-agent"
}

// CertFacts are about certificate, key and CA.
type CertFacts struct {
	Err       error // a file cannot be read, or two do not fit
	Untrusted error // the CA did not sign the certificate
	Leaf      *x509.Certificate
	KeyMode   fs.FileMode
}

// TargetFacts are where the rendezvous is.
type TargetFacts struct {
	Host, Port string
	Err        error // the name leads nowhere, or there is none
	Addrs      []netip.Addr
	// Here: it is one of this machine's addresses.
	Here bool
}

// addr is the address to try, zero without one. IPv4 goes first: it is what NATs
// translate.
func (t TargetFacts) addr() netip.Addr {
	for _, a := range t.Addrs {
		if a.Is4() {
			return a
		}
	}
	if len(t.Addrs) > 0 {
		return t.Addrs[0]
	}
	return netip.Addr{}
}

// AgentFacts are about the running agent and its service.
type AgentFacts struct {
	Err    error // why it does not answer
	Status agent.Status
	PID    int
	// Lacks are the capabilities that the running agent needs and does not have.
	Lacks []string
	// Service is systemd's word on bodkin-agent.service, such as "active" or
	// "failed", empty without systemd or such a unit.
	Service string
}

// CharonFacts are what charon says over VICI.
type CharonFacts struct {
	Err     error
	Version charon.Version
	Plugins []string
	Conns   []charon.ConnectionInfo
	SAs     []charon.SA
}

// Process is one of this network namespace.
type Process struct {
	PID  int
	Name string
}

// Holder is who has bound a UDP port. PID is 0 where it could not be found out,
// as without root, or when the process is in another PID namespace.
type Holder struct {
	Addr netip.AddrPort
	Process
}

// PortFacts are about the IKE ports of this network namespace.
type PortFacts struct {
	Err    error
	IKE    []Holder // of UDP 4500
	IKE500 []Holder // of UDP 500
	// Daemons are IKE daemons and those who manage them; Others are the ports that
	// charon has instead of 4500.
	Daemons []Process
	Others  []Holder
}

// ICMPFacts are what came back of a check sent to the IKE port on loopback.
type ICMPFacts struct {
	Err     error
	Refused bool // ICMP port unreachable
}

// StateFacts are about the agent's state directory.
type StateFacts struct {
	Dir     string // the directory, or what is there of the way to it
	Missing bool
	Err     error // it does not take writes
	Free    uint64
	// Owned are the connections in charon that are the agent's, OwnedErr why that is
	// not known.
	Owned    []string
	OwnedErr error
}

// NetfilterFacts are the nftables rules, without those of Bodkin's own.
type NetfilterFacts struct {
	Err   error
	Rules *ruleset.Ruleset
	// Legacy are the tables of the old iptables, which are not looked into.
	Legacy []string
}

// Network is an address of an interface, with its prefix.
type Network struct {
	Interface string
	Loopback  bool
	Prefix    netip.Prefix
}

// Route is a way to an address.
type Route struct {
	Err       error
	Interface ruleset.Interface
	Source    netip.Addr
	MTU       int // of the route, or of its interface
	// Tunnel: it leads into a TUN device.
	Tunnel bool
	// Local: to this machine itself.
	Local bool
}

// Policy is an XFRM policy.
type Policy struct {
	Src, Dst netip.Prefix
	Out      bool
	Priority int
	Block    bool
	// Transforms: it demands IPsec.
	Transforms bool
	// Narrow: it is for one protocol or port only.
	Narrow bool
}

// TableRule is a routing rule that leads to charon's table.
type TableRule struct {
	Mark   uint32
	Invert bool // for packets without the mark
}

// KernelFacts are about addresses, routes, policies and settings.
type KernelFacts struct {
	Err      error
	Networks []Network
	// Plain is the route to the rendezvous, Marked that of packets with the agent's
	// mark. Where there is no rendezvous, or it is this machine, both are those of the
	// default route.
	Plain, Marked Route
	// Source is the address of this node that its packets to the rendezvous have.
	Source   netip.Addr
	Defaults []string // interfaces that default routes lead out of
	Rules    []TableRule
	Policies []Policy
	// Settings are sysctls by their path below /proc/sys/net.
	Settings map[string]int
}

// setting is a sysctl, 0 if there is none.
func (k KernelFacts) setting(path string) int { return k.Settings[path] }

// TCPFacts are about the way to the rendezvous' signalling service. Of the errors
// only the first is set: what comes after it was not tried.
type TCPFacts struct {
	Connect, HTTP error
	TLS           error // its certificate is not acceptable
	Status        int
	Date, At      time.Time     // the rendezvous' clock, and this machine's when it was read
	Took          time.Duration // of the connection
	Server        *x509.Certificate
}

// STUNAnswer is a Binding transaction's outcome.
type STUNAnswer struct {
	Server netip.AddrPort
	Mapped netip.AddrPort
	Err    error
}

// UDPFacts are STUN answers on both ports of the rendezvous.
type UDPFacts struct {
	Err    error // nothing could be sent
	Shared []STUNAnswer
	Fresh  []STUNAnswer // to another port than the IKE port
}

// MTUFacts are what packets got to the rendezvous and were answered.
type MTUFacts struct {
	Err error
	// Answered is the size of the largest IP packet that was, Tried of the largest
	// that was sent.
	Answered, Tried int
	// Known is what the kernel believes of the path afterwards: routers that dropped
	// a packet as too large have told it, if their ICMP arrives.
	Known int
}
