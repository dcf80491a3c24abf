package doctor

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"

	"github.com/bodkin-net/bodkin/agent/doctor/ruleset"
)

const protocolUDP = 17

// passage is a packet of the IKE port at a hook.
type passage struct {
	hook   *nftables.ChainHook
	packet ruleset.Packet
	what   string
	// harmless: that it is dropped is no obstacle.
	harmless bool
}

// stranger is a peer that nobody has told of (RFC 5737).
var stranger = netip.MustParseAddr("198.51.100.1")

// passages are what has to come through between this node and the others.
func passages(f *Facts) []passage {
	own := netip.AddrPortFrom(f.Kernel.Source, ikePort)
	device, mark := f.Kernel.Marked.Interface, f.Config.Config.Mark
	peer := netip.AddrPortFrom(stranger, ikePort)
	if own.Addr().Is6() {
		peer = netip.AddrPortFrom(nowhere6, ikePort)
	}
	in := func(from netip.AddrPort, state ruleset.CTState) ruleset.Packet {
		return ruleset.Packet{Src: from, Dst: own, Protocol: protocolUDP, In: &device, State: state, Local: true}
	}
	out := ruleset.Packet{Src: own, Dst: peer, Protocol: protocolUDP, Out: &device, State: ruleset.New, Mark: mark}
	list := []passage{
		{nftables.ChainHookOutput, out, "packets from UDP 4500 to peers", false},
		{nftables.ChainHookPostrouting, out, "packets from UDP 4500 to peers", false},
	}
	add := func(from netip.AddrPort, state ruleset.CTState, what string, harmless bool) {
		list = append(list, passage{nftables.ChainHookPrerouting, in(from, state), what, harmless},
			passage{nftables.ChainHookInput, in(from, state), what, harmless})
	}
	if to := f.Target.addr(); to.IsValid() && !f.Target.Here && to.Is4() == own.Addr().Is4() {
		add(netip.AddrPortFrom(to, stunPorts[0]), ruleset.Established, "the rendezvous' answers to UDP 4500", false)
	}
	add(peer, ruleset.Established, "peers' answers to UDP 4500", false)
	// A connector is reached unasked; an edge opens its firewall by its own packets.
	add(peer, ruleset.New, "peers' first packets to UDP 4500", !f.Config.connector())
	return list
}

func judgeFirewall(f *Facts) Finding {
	switch {
	case f.Netfilter.Err != nil:
		return skipped("%s", f.Netfilter.Err)
	case !f.Kernel.Source.IsValid():
		return skipped("this node has no address that leads out")
	}
	var unsure, closed string
	for _, p := range passages(f) {
		at := f.Netfilter.Rules.At(p.hook, p.packet)
		translated := at.Fate == ruleset.Rewritten && p.hook != nftables.ChainHookPostrouting
		switch {
		case at.Fate == ruleset.Perhaps && unsure == "":
			unsure = fmt.Sprintf("; %s may drop %s", at.Place, p.what)
		case at.Fate == ruleset.Dropped && p.harmless:
			closed = "; unasked packets are dropped, which is no obstacle to an edge"
		case at.Fate == ruleset.Dropped:
			return dropped(p, at.Place)
		case translated:
			return problem(Fail, "%s are sent elsewhere by %s", p.what, at.Place).
				meaning("charon does not get them: no path can be found").
				mend("%s   # shows the rule", listChain(at.Place)).
				mend("%s", deleteRule(at.Place))
		}
	}
	found := "no rule drops packets of UDP 4500"
	if len(f.Netfilter.Legacy) > 0 {
		unsure += "; rules of the old iptables are not looked into (iptables-legacy-save)"
	}
	return ok("%s%s%s", found, closed, unsure)
}

func dropped(p passage, at ruleset.Place) Finding {
	side := "udp dport"
	if p.hook == nftables.ChainHookOutput || p.hook == nftables.ChainHookPostrouting {
		side = "udp sport"
	}
	x := problem(Fail, "%s are dropped by %s", p.what, at).
		meaning("strongSwan and the checks share that port: no path can be found, or no answer comes").
		mend("nft insert rule %s %s %s %s %d accept   # and in what makes these rules: firewalld, ufw, /etc/nftables.conf",
			at.Family, at.Table, at.Chain, side, ikePort)
	if at.Handle != 0 {
		x = x.mend("%s   # shows the rule; or: %s", listChain(at), deleteRule(at))
	}
	return x
}

func listChain(at ruleset.Place) string {
	return fmt.Sprintf("nft -a list chain %s %s %s", at.Family, at.Table, at.Chain)
}

func deleteRule(at ruleset.Place) string {
	return fmt.Sprintf("nft delete rule %s %s %s handle %d", at.Family, at.Table, at.Chain, at.Handle)
}

// within is an address inside a prefix that is neither the network's nor likely
// to be a router's.
func within(p netip.Prefix) netip.Addr {
	a := p.Addr()
	for range 5 {
		if next := a.Next(); p.Contains(next) {
			a = next
		}
	}
	return a
}

func judgeTunnelFirewall(f *Facts) Finding {
	tunnels := f.tunnels()
	switch {
	case !f.Config.readable():
		return unconfigured(f)
	case f.Netfilter.Err != nil:
		return skipped("%s", f.Netfilter.Err)
	case len(tunnels) == 0:
		return skipped("charon has no tunnels to look at")
	}
	for _, t := range tunnels {
		for _, local := range f.Config.Subnets {
			for _, remote := range t.subnets {
				if local.Addr().Is4() != remote.Addr().Is4() {
					continue
				}
				if x, found := tunnelDrops(f, t.peer, local, remote); found {
					return x
				}
			}
		}
	}
	return ok("no rule drops or rewrites what goes between own and peers' subnets")
}

// tunnelDrops looks for rules on the way of pods' packets to a peer's, and back.
func tunnelDrops(f *Facts, peer string, local, remote netip.Prefix) (Finding, bool) {
	out := ruleset.Packet{
		Src: netip.AddrPortFrom(within(local), 0), Dst: netip.AddrPortFrom(within(remote), 0),
		Protocol: 1, Out: tunnelInterface(f), State: ruleset.New,
	}
	rules := f.Netfilter.Rules
	if at := rules.At(nftables.ChainHookPostrouting, out); at.Fate == ruleset.Rewritten {
		return problem(Fail, "what goes from %s to %s of %s is masqueraded by %s", local, remote, peer, at.Place).
			meaning("with another source address it does not fit the tunnel: it leaves in the clear, or not at all").
			mend("nft insert rule %s %s %s %s accept   # and in what makes these rules, such as the CNI: ip-masq-agent, natOutgoing",
				at.Place.Family, at.Place.Table, at.Place.Chain, intoTunnel(f)).
			mend("%s   # shows the rule", listChain(at.Place)), true
	}
	inside := behind(f.Kernel.Networks, []netip.Prefix{local})
	if len(inside) == 0 {
		return Finding{}, false // no pods but on this host itself
	}
	out.In = &ruleset.Interface{Name: inside[0]}
	back := ruleset.Packet{
		Src: out.Dst, Dst: out.Src, Protocol: out.Protocol, In: out.Out, Out: out.In, State: ruleset.New,
	}
	for _, p := range []struct {
		ruleset.Packet
		from, to netip.Prefix
		verdict  Verdict
	}{{out, local, remote, Fail}, {back, remote, local, Warn}} {
		if at := rules.At(nftables.ChainHookForward, p.Packet); at.Fate == ruleset.Dropped {
			return problem(p.verdict, "what goes from %s to %s (%s) is dropped by %s", p.from, p.to, peer, at.Place).
				meaning("the tunnel stands and carries nothing between pods in that direction").
				mend("nft insert rule %s %s %s ip saddr %s ip daddr %s accept   # Docker's policy: chain DOCKER-USER",
					at.Place.Family, at.Place.Table, at.Place.Chain, p.from, p.to).
				mend("%s   # shows the rules", listChain(at.Place)), true
		}
	}
	return Finding{}, false
}

// intoTunnel is what nft matches packets by that will go into a tunnel.
func intoTunnel(f *Facts) string {
	if f.Charon.libipsec() {
		return `oifname "` + libipsecDevice + `*"`
	}
	return "rt ipsec exists"
}

// tunnelInterface is where packets into a tunnel leave, nil where it is not known.
func tunnelInterface(f *Facts) *ruleset.Interface {
	if !f.Charon.libipsec() {
		return &f.Kernel.Marked.Interface
	}
	if f.Kernel.Plain.Tunnel {
		return &f.Kernel.Plain.Interface
	}
	return &ruleset.Interface{Name: libipsecDevice + "0"}
}
