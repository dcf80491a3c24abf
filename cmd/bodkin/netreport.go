package main

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/bodkin-net/bodkin/punch/nat"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// netcheckReport is what `bodkin netcheck -o json` prints.
type netcheckReport struct {
	Local   netip.AddrPort   `json:"local"`
	Servers []netip.AddrPort `json:"servers"`
	// UDP tells whether it passes at all.
	UDP bool `json:"udp"`
	// Mapped is where the first server sees Local, left out when UDP does not
	// pass.
	Mapped netip.AddrPort `json:"mapped,omitzero"`
	// NAT has the fields that the API shows of a node.
	NAT wire.NAT `json:"nat"`
	// PortMapping are the protocols in which the router gives ports away.
	PortMapping []string `json:"portMapping"`
	// Meaning is a sentence: whom this node can have direct tunnels with.
	Meaning string `json:"meaning"`

	nat nat.NAT
}

// finish draws the conclusions.
func (r *netcheckReport) finish(portMapping []string) {
	n := r.nat
	r.UDP = n.Blocked == ""
	r.PortMapping = append([]string{}, portMapping...) // an empty list, not null
	r.NAT = wire.NAT{
		Present: n.Present, Mapping: wire.Behaviour(n.Mapping), Filtering: wire.Behaviour(n.Filtering),
		Allocation: wire.Allocation(n.Allocation), Step: n.Step,
		Hairpin: wire.Answer(n.Hairpin), Poisoned: wire.Answer(n.Poisoned), Hops: n.Hops, Blocked: n.Blocked,
	}
	r.Meaning = meaning(n, len(portMapping) > 0)
}

// peers are the kinds of NAT a peer may be behind, from the easiest to the most
// difficult.
var peers = []struct {
	behind string
	nat    nat.NAT
}{
	{"full-cone NATs", nat.NAT{Present: true, Mapping: nat.EndpointIndependent, Filtering: nat.EndpointIndependent}},
	{"address-restricted NATs", nat.NAT{Present: true, Mapping: nat.EndpointIndependent, Filtering: nat.AddressDependent}},
	{"port-restricted NATs", nat.NAT{Present: true, Mapping: nat.EndpointIndependent, Filtering: nat.AddressAndPortDependent}},
	{"symmetric NATs that count", nat.NAT{
		Present: true, Mapping: nat.AddressAndPortDependent, Filtering: nat.AddressAndPortDependent, Allocation: nat.Sequential, Step: 1,
	}},
	{"symmetric NATs with random ports", nat.NAT{
		Present: true, Mapping: nat.AddressAndPortDependent, Filtering: nat.AddressAndPortDependent, Allocation: nat.Random,
	}},
}

// meaning judges this node against each kind of peer. What is not known counts
// as the worst it may be.
func meaning(n nat.NAT, portMapping bool) string {
	if n.Blocked != "" {
		return "direct with nobody: UDP does not leave this network"
	}
	sure := ""
	if !n.Known() || n.Symmetric() && n.Allocation == "" {
		sure = "at least, "
		n = worst(n)
	}
	// A port of the router's is one of the internet's unless a carrier's NAT is
	// behind it.
	mapped := portMapping && n.Hops == oneNAT
	except := exceptions(nat.Site{Name: "this node", NAT: n, V4: true, Mapped: mapped})
	if len(except) == 0 {
		return sure + everybody
	}
	if portMapping && !mapped {
		sure = "at least, "
	}
	return sure + everybody + ", except behind " + strings.Join(except, " and ")
}

const everybody = "direct with everybody whose network lets UDP out"

// oneNAT is the TTL that leaves a single NAT.
const oneNAT = 2

// exceptions are the kinds of NAT that a peer of here's must not be behind.
func exceptions(here nat.Site) (behind []string) {
	for _, p := range peers {
		if nat.Judge(here, nat.Site{Name: "the peer", NAT: p.nat, V4: true}).Expect != nat.Direct {
			behind = append(behind, p.behind)
		}
	}
	return behind
}

func worst(n nat.NAT) nat.NAT {
	if n.Mapping == "" {
		n.Mapping = nat.AddressAndPortDependent
	}
	if n.Filtering == "" {
		n.Filtering = nat.AddressAndPortDependent
	}
	if n.Symmetric() && n.Allocation == "" {
		n.Allocation = nat.Random
	}
	return n
}

func printNetcheck(p *printer, r *netcheckReport) {
	t := p.list()
	line := func(name, value string) { t.row(name, value) }
	line("from", bracketed(r.Local))
	for _, s := range r.Servers {
		line("server", bracketed(s))
	}
	if r.UDP {
		t.row("UDP", cell{"passes", good})
		natLines(line, r)
	} else {
		t.row("UDP", cell{"does not pass: " + r.nat.Blocked, bad})
	}
	if r.Local.Addr().Is4() {
		line("port mapping", orElse(strings.Join(r.PortMapping, ", "), "none offered (PCP, NAT-PMP, UPnP)"))
	}
	t.end()
	p.printf("\n%s\n", r.Meaning)
}

func natLines(line func(name, value string), r *netcheckReport) {
	const noOtherPort = "not known: the server has no other port to answer from (RFC 5780)"
	n := r.nat
	if !n.Present {
		line("mapped", bracketed(r.Mapped)+", no NAT")
		line("filtering", orElse(string(n.Filtering), noOtherPort))
		return
	}
	line("mapped", bracketed(r.Mapped))
	line("mapping", orElse(string(n.Mapping), "not known: only one of the servers answered"))
	line("filtering", orElse(string(n.Filtering), noOtherPort))
	allocation := string(n.Allocation)
	if n.Allocation == nat.Sequential {
		allocation += fmt.Sprintf(", step %d", n.Step)
	}
	line("allocation", orElse(allocation, "not known"))
	line("hairpin", orElse(string(n.Hairpin), "not known"))
	if !n.Symmetric() {
		poisoned := string(n.Poisoned)
		if n.Poisoned == nat.Yes {
			poisoned += ": a packet that comes in unasked changes the mapping towards its sender"
		}
		line("poisoned", orElse(poisoned, noOtherPort))
	}
	hops := "not known: no router beyond the NAT answered"
	if n.Hops > 0 {
		hops = fmt.Sprintf("%d (the least TTL that leaves all NATs)", n.Hops)
	}
	line("hops", hops)
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
