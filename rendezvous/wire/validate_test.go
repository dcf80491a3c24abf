package wire

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func repeat[T any](n int, v T) []T { return slices.Repeat([]T{v}, n) }

func mapped(addr string) Candidate { return Candidate{Mapped, netip.MustParseAddrPort(addr)} }

func predicted(addr string) Candidate { return Candidate{Predicted, netip.MustParseAddrPort(addr)} }

func text(n int) string { return strings.Repeat("x", n) }

// changed is a sample message after one change.
func changed[T any](m *T, change func(*T)) *T {
	change(m)
	return m
}

func TestValidate(t *testing.T) {
	hello := func(change func(*Hello)) Message { return changed(sampleHello(), change) }
	endpoint := func(change func(*Endpoint)) Message { return hello(func(m *Hello) { change(&m.Endpoint) }) }
	report := func(change func(*Report)) Message { return changed(sampleReport(), change) }
	punch := func(change func(*Punch)) Message { return changed(samplePunch(), change) }
	welcome := func(change func(*Welcome)) Message { return changed(sampleWelcome(), change) }
	network := func(nat NAT, cs ...Candidate) Message { return &Network{cs, nat} }
	trickle := func(cs ...Candidate) Message { return &Trickle{Attempt: "a", Candidates: cs} }
	peers := func(ps ...Peer) Message { return &Peers{ps} }
	anybody := netip.MustParsePrefix("10.0.0.0/24")
	group := Group{"c", []NodeName{"a", "b"}}
	many := map[NodeName]int64{}
	for i := range MaxPeers + 1 {
		many[NodeName(fmt.Sprint("edge", i))] = 1
	}

	tests := []struct {
		name    string
		message Message
		wrong   string // part of the error; empty for none
	}{
		{"endpoint without a name", endpoint(func(e *Endpoint) { e.Name = "" }), "node name"},
		{"longest name", endpoint(func(e *Endpoint) { e.Name = NodeName(text(253)) }), ""},
		{"name too long", endpoint(func(e *Endpoint) { e.Name = NodeName(text(254)) }), "node name"},
		{"name in upper case", endpoint(func(e *Endpoint) { e.Name = "Beijing.edge1" }), "node name"},
		{"name with a bar", endpoint(func(e *Endpoint) { e.Name = "a|b" }), "node name"},
		{"name with an empty label", endpoint(func(e *Endpoint) { e.Name = "beijing..edge1" }), "node name"},
		{"name ending in a hyphen", endpoint(func(e *Endpoint) { e.Name = "edge-" }), "node name"},
		{"name with a line break", endpoint(func(e *Endpoint) { e.Name = "edge1\n" }), "node name"},
		{"endpoint without an ID", endpoint(func(e *Endpoint) { e.ID = "" }), "endpoint.id"},
		{"longest ID", endpoint(func(e *Endpoint) { e.ID = text(MaxText) }), ""},
		{"ID too long", endpoint(func(e *Endpoint) { e.ID = text(MaxText + 1) }), "endpoint.id"},
		{"endpoint type", endpoint(func(e *Endpoint) { e.Type = "edge" }), "want Edge or Connector"},
		{"most subnets", endpoint(func(e *Endpoint) { e.Subnets = repeat(MaxSubnets, anybody) }), ""},
		{"too many subnets", endpoint(func(e *Endpoint) { e.Subnets = repeat(MaxSubnets+1, anybody) }), "endpoint.subnets"},
		{"too many node subnets", endpoint(func(e *Endpoint) { e.NodeSubnets = repeat(MaxSubnets+1, anybody) }), "endpoint.nodeSubnets"},
		{"zero subnet", endpoint(func(e *Endpoint) { e.Subnets = []netip.Prefix{{}} }), "no network prefix"},
		{"subnet with host bits", endpoint(func(e *Endpoint) { e.Subnets = []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24")} }), "no network prefix"},
		{"every IPv4 address", endpoint(func(e *Endpoint) { e.Subnets = []netip.Prefix{netip.MustParsePrefix("128.0.0.0/7")} }), "too many addresses"},
		{"every IPv6 address", endpoint(func(e *Endpoint) { e.NodeSubnets = []netip.Prefix{netip.MustParsePrefix("::/0")} }), "too many addresses"},
		{"public addresses", endpoint(func(e *Endpoint) { e.PublicAddresses = []string{"198.51.100.1", "2001:db8::1", "vpn.example.com"} }), ""},
		{"too many public addresses", endpoint(func(e *Endpoint) { e.PublicAddresses = repeat(MaxCandidates+1, "a") }), "publicAddresses"},
		{"empty public address", endpoint(func(e *Endpoint) { e.PublicAddresses = []string{""} }), "publicAddresses"},
		{"two public addresses in one", endpoint(func(e *Endpoint) { e.PublicAddresses = []string{"a,b"} }), "publicAddresses"},
		{"a terminal's command for a public address", endpoint(func(e *Endpoint) { e.PublicAddresses = []string{"a\x1b[2J"} }), "publicAddresses"},
		{"one for its zone", endpoint(func(e *Endpoint) { e.PublicAddresses = []string{"2001:db8::1%\x1b[2J"} }), "publicAddresses"},
		{"all of IPv4 as IPv6", endpoint(func(e *Endpoint) { e.Subnets = []netip.Prefix{netip.MustParsePrefix("::ffff:0:0/96")} }), "no network prefix"},
		{"a terminal's command for a path's zone", &Report{Peer: "a.b", Outcome: OutcomeDirect, Path: Path{Remote: netip.MustParseAddrPort("[2001:db8::1%\x1b[2J]:1")}}, "path"},
		{"for a step's", &Report{Peer: "a.b", Outcome: OutcomeDirect, Steps: []Step{{Remote: netip.MustParseAddrPort("[2001:db8::1%\x1b[2J]:1")}}}, "step"},
		{"for a candidate's", trickle(host("[2001:db8::1%\x1b[2J]:4500")), "candidate address"},
		{"public address too long", endpoint(func(e *Endpoint) { e.PublicAddresses = []string{text(254)} }), "publicAddresses"},

		{"longest agent version", hello(func(m *Hello) { m.AgentVersion = text(128) }), ""},
		{"agent version too long", hello(func(m *Hello) { m.AgentVersion = text(129) }), "agentVersion"},
		{"every policy", hello(func(m *Hello) { m.Punch = PolicyNever }), ""},
		{"no policy", hello(func(m *Hello) { m.Punch = "" }), ""},
		{"policy", hello(func(m *Hello) { m.Punch = "maybe" }), "want auto, ice-only or never"},
		{"longest reason for no probe", hello(func(m *Hello) { m.NoProbe = text(MaxText) }), ""},
		{"reason for no probe too long", hello(func(m *Hello) { m.NoProbe = text(MaxText + 1) }), "noProbe"},
		{"most tunnels", hello(func(m *Hello) { m.Tunnels = repeat(MaxPeers, m.Tunnels[0]) }), ""},
		{"too many tunnels", hello(func(m *Hello) { m.Tunnels = repeat(MaxPeers+1, m.Tunnels[0]) }), "tunnels"},
		{"tunnel to nobody", hello(func(m *Hello) { m.Tunnels[0].Peer = "" }), "node name"},
		{"tunnel by an unknown path", hello(func(m *Hello) { m.Tunnels[0].Path.Kind = "carrier pigeon" }), "path kind"},
		{"tunnel by a path nobody knows", hello(func(m *Hello) { m.Tunnels[0].Path = Path{} }), ""},
		{"hello with a server-reflexive candidate", hello(func(m *Hello) { m.Candidates = []Candidate{srflx("203.0.113.7:4500")} }), "host and mapped candidates only"},
		{"hello with a predicted candidate", hello(func(m *Hello) { m.Candidates = []Candidate{predicted("203.0.113.7:4500")} }), "host and mapped candidates only"},
		{"hello with a mapped candidate", hello(func(m *Hello) { m.Candidates = []Candidate{mapped("203.0.113.7:4500")} }), ""},
		{"mapped to loopback", hello(func(m *Hello) { m.Candidates = []Candidate{mapped("127.0.0.1:4500")} }), "not a unicast address"},

		{"no candidates", network(NAT{}), ""},
		{"most candidates", network(NAT{}, repeat(MaxCandidates, host("192.0.2.1:1"))...), ""},
		{"too many candidates", network(NAT{}, repeat(MaxCandidates+1, host("192.0.2.1:1"))...), "25 candidates, limit 24"},
		{"network with a server-reflexive candidate", network(NAT{}, srflx("203.0.113.7:4500")), "host and mapped candidates only"},
		{"mapping behaviour", network(NAT{Mapping: "symmetric"}), "NAT behaviour"},
		{"filtering behaviour", network(NAT{Filtering: "full cone"}), "NAT behaviour"},
		{"allocation", network(NAT{Allocation: "lucky"}), "NAT allocation"},
		{"widest step", network(NAT{Allocation: Sequential, Step: -MaxStep}), ""},
		{"step too wide", network(NAT{Step: MaxStep + 1}), "want -64 to 64"},
		{"step too wide, downwards", network(NAT{Step: -MaxStep - 1}), "want -64 to 64"},
		{"hairpin", network(NAT{Hairpin: "maybe"}), "want yes, no or nothing"},
		{"poisoned", network(NAT{Poisoned: "maybe"}), "want yes, no or nothing"},
		{"longest lifetime", network(NAT{LifetimeSeconds: 86_400}), ""},
		{"lifetime too long", network(NAT{LifetimeSeconds: 86_401}), "lifetimeSeconds"},
		{"negative lifetime", network(NAT{LifetimeSeconds: -1}), "lifetimeSeconds"},
		{"most hops", network(NAT{Hops: 255}), ""},
		{"too many hops", network(NAT{Hops: 256}), "hops"},
		{"negative hops", network(NAT{Hops: -1}), "hops"},
		{"longest reason for blocked", network(NAT{Blocked: text(MaxText)}), ""},
		{"reason for blocked too long", network(NAT{Blocked: text(MaxText + 1)}), "nat.blocked"},

		{"candidate kind", trickle(Candidate{"relay", netip.MustParseAddrPort("192.0.2.1:1")}), "candidate kind"},
		{"candidate without an address", trickle(Candidate{Kind: Host}), "candidate address"},
		{"port 0", trickle(host("192.0.2.1:0")), "candidate address"},
		{"private address", trickle(host("192.168.1.1:4500")), ""},
		{"unique local address", trickle(host("[fd00::1]:4500")), ""},
		{"unspecified", trickle(host("0.0.0.0:4500")), "not a unicast address"},
		{"IPv6 unspecified", trickle(host("[::]:4500")), "not a unicast address"},
		{"loopback", trickle(host("127.0.0.2:4500")), "not a unicast address"},
		{"IPv6 loopback", trickle(srflx("[::1]:4500")), "not a unicast address"},
		{"multicast", trickle(host("224.0.0.251:4500")), "not a unicast address"},
		{"IPv6 multicast", trickle(host("[ff02::1]:4500")), "not a unicast address"},
		{"broadcast", trickle(host("255.255.255.255:4500")), "not a unicast address"},
		{"link-local", trickle(host("169.254.169.254:80")), "not a unicast address"},
		{"IPv6 link-local", trickle(host("[fe80::1%eth0]:4500")), "not a unicast address"},
		{"IPv4-mapped", trickle(host("[::ffff:127.0.0.1]:4500")), "not a unicast address"},

		{"report on nobody", report(func(m *Report) { m.Peer = "" }), "node name"},
		{"no outcome", report(func(m *Report) { m.Outcome = "" }), "outcome"},
		{"every outcome", report(func(m *Report) { m.Outcome = OutcomeNominated }), ""},
		{"report without an attempt", report(func(m *Report) { m.Attempt = "" }), ""},
		{"attempt too long", report(func(m *Report) { m.Attempt = AttemptID(text(65)) }), "attempt"},
		{"negative time", report(func(m *Report) { m.ElapsedMs = -1 }), "elapsedMs"},
		{"negative packets", report(func(m *Report) { m.Packets = -1 }), "packets"},
		{"path through a port mapping", report(func(m *Report) { m.Path.Kind = PathMapped }), ""},
		{"path to a predicted port", report(func(m *Report) { m.Path.Kind = PathPredicted }), ""},
		{"path kind", report(func(m *Report) { m.Path.Kind = "<b>" }), "path kind"},
		{"longest reason", report(func(m *Report) { m.Reason = text(MaxText) }), ""},
		{"reason too long", report(func(m *Report) { m.Reason = text(MaxText + 1) }), "reason"},

		{"welcome to nobody", welcome(func(m *Welcome) { m.Node = "" }), "node name"},
		{"no STUN port", welcome(func(m *Welcome) { m.STUNPorts = nil }), "stunPorts"},
		{"STUN port 0", welcome(func(m *Welcome) { m.STUNPorts = []uint16{3478, 0} }), "stunPorts"},
		{"most STUN ports", welcome(func(m *Welcome) { m.STUNPorts = []uint16{1, 2, 3, 4} }), ""},
		{"too many STUN ports", welcome(func(m *Welcome) { m.STUNPorts = []uint16{1, 2, 3, 4, 5} }), "stunPorts"},

		{"most STUN addresses", welcome(func(m *Welcome) { m.STUNAddrs = repeat(4, netip.MustParseAddr("2001:db8::1")) }), ""},
		{"too many STUN addresses", welcome(func(m *Welcome) { m.STUNAddrs = repeat(5, netip.MustParseAddr("2001:db8::1")) }), "stunAddrs"},
		{"STUN address unspecified", welcome(func(m *Welcome) { m.STUNAddrs = []netip.Addr{netip.IPv6Unspecified()} }), "stunAddrs"},
		{"STUN address multicast", welcome(func(m *Welcome) { m.STUNAddrs = []netip.Addr{netip.MustParseAddr("224.0.0.1")} }), "stunAddrs"},
		{"no STUN address", welcome(func(m *Welcome) { m.STUNAddrs = []netip.Addr{{}} }), "stunAddrs"},

		{"no peers", peers(), ""},
		{"most peers", peers(repeat(MaxPeers, samplePeer())...), ""},
		{"too many peers", peers(repeat(MaxPeers+1, samplePeer())...), "2049 peers"},
		{"plan", peers(Peer{Endpoint: sampleEndpoint(), Plan: "luck", Role: Controlled}), "plan"},
		{"role", peers(Peer{Endpoint: sampleEndpoint(), Plan: PlanPublic, Role: "boss"}), "role"},
		{"peer's endpoint", peers(Peer{Plan: PlanICE, Role: Controlled}), "node name"},

		{"relay", peers(relayPeer("10.0.0.0/8", "fd00::/32")), ""},
		{"relay of every IPv4 address", peers(relayPeer("0.0.0.0/0")), "relay: 0.0.0.0/0 would claim too many addresses"},
		{"relay with host bits", peers(relayPeer("10.0.0.1/16")), "relay: 10.0.0.1/16 is no network prefix"},
		{"relay of too many ranges", peers(Peer{Endpoint: sampleEndpoint(), Plan: PlanPublic, Role: Controlled, Relay: repeat(MaxSubnets+1, anybody)}), "relay has 65 entries"},

		{"no groups", &Forwarding{}, ""},
		{"most groups", &Forwarding{repeat(MaxGroups, group)}, ""},
		{"too many groups", &Forwarding{repeat(MaxGroups+1, group)}, "2049 groups"},
		{"largest group", &Forwarding{[]Group{{"c", repeat(MaxPeers, NodeName("a"))}}}, ""},
		{"too large a group", &Forwarding{[]Group{{"c", repeat(MaxPeers+1, NodeName("a"))}}}, "2049 nodes in group"},
		{"a group with nobody's name in it", &Forwarding{[]Group{{"c", []NodeName{"a", "B"}}}}, "node name"},

		{"demote", &Demote{Peer: "a", Reason: text(MaxText), StartAfterMs: 60_000}, ""},
		{"demote without a peer", &Demote{Reason: "r"}, "node name"},
		{"demote with a long reason", &Demote{Peer: "a", Reason: text(MaxText + 1)}, "reason"},
		{"demote before its receipt", &Demote{Peer: "a", StartAfterMs: -1}, "startAfterMs"},
		{"demote too late", &Demote{Peer: "a", StartAfterMs: 60_001}, "startAfterMs"},

		{"usage", &Usage{Seconds: 1, Peers: map[NodeName]int64{"a": 0}}, ""},
		{"usage of no time", &Usage{Signalling: 1}, "usage of 0 s"},
		{"usage of a time before", &Usage{Seconds: -1}, "usage of -1 s"},
		{"negative signalling", &Usage{Seconds: 1, Signalling: -1}, "signalling -1"},
		{"negative STUN", &Usage{Seconds: 1, STUN: -1}, "STUN -1"},
		{"usage of nobody", &Usage{Seconds: 1, Peers: map[NodeName]int64{"": 1}}, "node name"},
		{"negative usage of a peer", &Usage{Seconds: 1, Peers: map[NodeName]int64{"a": -1}}, "usage of a: -1 bytes"},
		{"usage of too many", &Usage{Seconds: 1, Peers: many}, "2049 peers"},

		{"punch without an attempt", punch(func(m *Punch) { m.Attempt = "" }), "attempt"},
		{"punch of a long attempt", punch(func(m *Punch) { m.Attempt = AttemptID(text(65)) }), "attempt"},
		{"punch to nobody", punch(func(m *Punch) { m.Peer = Peer{} }), "plan"},
		{"no strategy", punch(func(m *Punch) { m.Strategy = "" }), ""},
		{"openers", punch(func(m *Punch) { m.Strategy = StrategyOpeners }), ""},
		{"prediction", punch(func(m *Punch) { m.Strategy = StrategyPredict }), ""},
		{"strategy", punch(func(m *Punch) { m.Strategy = "luck" }), "strategy"},
		{"search", punch(func(m *Punch) { m.Strategy, m.Part = StrategyProbe, PartSearch }), ""},
		{"opening", punch(func(m *Punch) { m.Strategy, m.Part = StrategyProbe, PartOpen }), ""},
		{"search without a part", punch(func(m *Punch) { m.Strategy = StrategyProbe }), "part"},
		{"part", punch(func(m *Punch) { m.Strategy, m.Part = StrategyProbe, "watch" }), "part"},
		{"part without a search", punch(func(m *Punch) { m.Strategy, m.Part = StrategyICE, PartOpen }), "part"},
		{"longest reason for no hope", punch(func(m *Punch) { m.Hopeless = text(MaxText) }), ""},
		{"reason for no hope too long", punch(func(m *Punch) { m.Hopeless = text(MaxText + 1) }), "hopeless"},
		{"start before the order", punch(func(m *Punch) { m.StartAfterMs = -1 }), "startAfterMs"},
		{"latest start", punch(func(m *Punch) { m.StartAfterMs = 60_000 }), ""},
		{"start too late", punch(func(m *Punch) { m.StartAfterMs = 60_001 }), "startAfterMs"},
		{"ufrag too short", punch(func(m *Punch) { m.Local.Ufrag = "abc" }), "credentials"},
		{"ufrag too long", punch(func(m *Punch) { m.Remote.Ufrag = text(257) }), "credentials"},
		{"password too short", punch(func(m *Punch) { m.Remote.Pwd = text(21) }), "credentials"},
		{"password too long", punch(func(m *Punch) { m.Local.Pwd = text(257) }), "credentials"},
		{"longest credentials", punch(func(m *Punch) { m.Local = Credentials{text(256), text(256)} }), ""},
		{"peer's NAT", punch(func(m *Punch) { m.RemoteNAT.Mapping = "?" }), "NAT behaviour"},
		{"punch with too many candidates", punch(func(m *Punch) { m.Candidates = repeat(MaxCandidates+1, m.Candidates[0]) }), "25 candidates"},
		{"punch towards loopback", punch(func(m *Punch) { m.Candidates = []Candidate{host("127.0.0.1:22")} }), "not a unicast address"},

		{"trickle without an attempt", &Trickle{}, "attempt"},
		{"too much trickle", trickle(repeat(MaxCandidates+1, host("192.0.2.1:1"))...), "25 candidates"},
		{"prepare without an attempt", &Prepare{}, "attempt"},
		{"prepared without an attempt", &Prepared{Next: 1}, "attempt"},
		{"widest window", &Prepared{Attempt: "a", Next: 65535, Step: MaxStep}, ""},
		{"window of 60,000 ports", &Prepared{Attempt: "a", Next: 1024, Step: 7500}, "want -64 to 64"},
		{"window downwards", &Prepared{Attempt: "a", Next: 1024, Step: -MaxStep - 1}, "want -64 to 64"},
		{"cancel without an attempt", &Cancel{}, "attempt"},
		{"cancel with a long reason", &Cancel{Attempt: "a", Reason: text(MaxText + 1)}, "reason"},
		{"longest bye", &Bye{Reason: text(MaxText)}, ""},
		{"bye with a long reason", &Bye{Reason: text(MaxText + 1)}, "reason"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.message.Validate()
			switch {
			case tt.wrong == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tt.wrong != "" && err == nil:
				t.Errorf("let in, want an error with %q", tt.wrong)
			case tt.wrong != "" && (!errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tt.wrong)):
				t.Errorf("error %v, want %q", err, tt.wrong)
			}
		})
	}
}

func TestClip(t *testing.T) {
	for s, want := range map[string]string{
		"":                                    "",
		text(MaxText):                         text(MaxText),
		text(MaxText + 1):                     text(MaxText),
		text(MaxText-1) + "é":                 text(MaxText - 1),
		text(MaxText-2) + "é":                 text(MaxText-2) + "é",
		text(MaxText-2) + "éxx":               text(MaxText-2) + "é",
		"nft: not there\n\x1b[2Jzürich\u202e": "nft: not there  [2Jzürich ",
		"\xff":                                "\ufffd",
	} {
		if got := Clip(s); got != want {
			t.Errorf("%d bytes become %d, want %d: %.40q", len(s), len(got), len(want), got)
		}
		if err := (&Bye{Reason: Clip(s)}).Validate(); err != nil {
			t.Error(err)
		}
	}
}

func TestCluster(t *testing.T) {
	for name, want := range map[NodeName]string{"beijing.edge1": "beijing", "a.b.c": "a", "edge1": "edge1"} {
		if got := name.Cluster(); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}
