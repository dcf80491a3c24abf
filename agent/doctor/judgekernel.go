package doctor

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// connector reports whether this node is one, as configured.
func (c ConfigFacts) connector() bool { return c.Config.Endpoint.Type == string(wire.Connector) }

func judgeCapture(f *Facts) Finding {
	k, to := f.Kernel, f.Target.addr()
	where := "the rendezvous"
	if !to.IsValid() || f.Target.Here {
		to, where = stranger, "the outside"
	}
	switch {
	case k.Err != nil:
		return skipped("%s", k.Err)
	case !k.Source.IsValid():
		return skipped("this node has no address that leads out")
	case k.Marked.Tunnel:
		return problem(Fail, "the route to %s, %s, leads into the tunnel device %s", where, to, k.Marked.Interface.Name).
			meaning("what shall make the tunnels goes into them: sessions and checks get no answer").
			mend("in agent.yaml: mark: 0x42, and in strongswan.conf what socket-mark says").
			mend("ip route get %s mark 0x42   # must not say dev %s", to, k.Marked.Interface.Name)
	}
	for _, out := range []bool{true, false} {
		p, found := policyOf(k.Policies, k.Source, to, out)
		if !found {
			continue
		}
		does := "demands IPsec for"
		if p.Block {
			does = "blocks"
		}
		direction, a, b := "out", k.Source, to
		if !out {
			direction, a, b = "in", to, k.Source
		}
		return problem(Fail, "an IPsec policy (%s, src %s dst %s) %s what goes from %s to %s", direction, p.Src, p.Dst, does, a, b).
			meaning("a plain send succeeds and nothing leaves, or what comes is dropped: no session, and charon's peers are out of reach").
			mend("ip xfrm policy delete src %s dst %s dir %s   # and remove whoever made it: swanctl --list-pols, ip xfrm policy", p.Src, p.Dst, direction).
			mend("in agent.yaml: nodeSubnets must not be such that both ends of a tunnel are node addresses")
	}
	return ok("none catches what goes to %s", where)
}

// policyOf is the policy that the kernel would take for packets between this node
// and another, if it does not let them be.
func policyOf(list []Policy, own, other netip.Addr, out bool) (Policy, bool) {
	src, dst := own, other
	if !out {
		src, dst = other, own
	}
	hits := slices.DeleteFunc(slices.Clone(list), func(p Policy) bool {
		return p.Out != out || p.Narrow || !p.Src.Contains(src) || !p.Dst.Contains(dst)
	})
	if len(hits) == 0 {
		return Policy{}, false
	}
	first := slices.MinFunc(hits, func(a, b Policy) int { return cmp.Compare(a.Priority, b.Priority) })
	return first, first.Transforms || first.Block
}

func judgeTable(f *Facts) Finding {
	switch {
	case f.Charon.Err != nil:
		return noCharon()
	case f.Kernel.Err != nil:
		return skipped("%s", f.Kernel.Err)
	case len(f.Kernel.Rules) > 0:
		return ok("a rule leads to table %d", charonTable)
	}
	verdict, effect := Warn, "packets from this node itself to peers' subnets get no source address inside a tunnel"
	if f.Charon.libipsec() {
		verdict, effect = Fail, "nothing is routed into the tunnels"
	}
	return problem(verdict, "no routing rule leads to charon's table %d", charonTable).meaning("%s", effect).
		mend("in strongswan.conf: charon { install_routes = yes }, without another charon.routing_table").
		mend("%s", f.Units.charon("restart")).mend("ip rule   # the rule is there after that, unless something flushes it")
}

// strictFilter is rp_filter's value for RFC 3704's strict mode.
const strictFilter = 1

func judgeRPFilter(f *Facts) Finding {
	k := f.Kernel
	device := k.Marked.Interface.Name
	if device == "" {
		return skipped("no route leads out")
	}
	// The larger of the two counts (ip-sysctl.rst): 2 is loose.
	value := max(k.setting("ipv4/conf/all/rp_filter"), k.setting("ipv4/conf/"+device+"/rp_filter"))
	mend := func(x Finding) Finding {
		return x.mend("sysctl -w net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.%s.rp_filter=2   # loose", device).
			mend("printf 'net.ipv4.conf.all.rp_filter = 2\\nnet.ipv4.conf.*.rp_filter = 2\\n' > /etc/sysctl.d/90-bodkin.conf")
	}
	ways := slices.Compact(slices.Sorted(slices.Values(k.Defaults)))
	switch {
	case value != strictFilter:
		return ok("%s: %d, not strict", device, value)
	case f.Charon.Err == nil && f.Charon.libipsec() && k.Plain.Tunnel:
		return mend(problem(Fail, "rp_filter is strict on %s, and the way back to the rendezvous leads into %s", device, k.Plain.Interface.Name).
			meaning("the kernel drops what comes from addresses inside the tunnels: IKE and ESP of those peers, too"))
	case f.Charon.Err == nil && f.Charon.libipsec():
		return mend(problem(Warn, "rp_filter is strict on %s, and ESP is done in user space", device).
			meaning("the kernel drops what comes from addresses inside the tunnels, as a peer's nodeSubnets, once they are up"))
	case len(ways) > 1:
		return mend(problem(Warn, "rp_filter is strict on %s, and default routes lead out of %s", device, strings.Join(ways, " and ")).
			meaning("packets that come in by the one way whose answers would leave by the other are dropped"))
	}
	return ok("strict on %s, the only way out", device)
}

func judgeForwarding(f *Facts) Finding {
	if !f.Config.readable() {
		return unconfigured(f)
	}
	k := f.Kernel
	const mend, keep = "sysctl -w net.ipv4.ip_forward=1", "echo 'net.ipv4.ip_forward = 1' > /etc/sysctl.d/90-bodkin-forward.conf"
	inside := behind(k.Networks, f.Config.Subnets)
	if k.setting("ipv4/ip_forward") == 0 {
		switch {
		case f.Config.connector():
			return problem(Fail, "ip_forward is 0 on a connector").
				meaning("it relays nothing: pairs that are not direct are cut off").mend(mend).mend(keep)
		case len(inside) > 0:
			return problem(Fail, "ip_forward is 0, and %s has addresses of subnets %s", inside[0], prefixList(f.Config.Subnets)).
				meaning("pods behind this node reach no peer: tunnels stand and carry only this node's own packets").mend(mend).mend(keep)
		}
		return ok("off, and not needed: no interface leads to pods")
	}
	for _, device := range append(slices.Clone(inside), k.Marked.Interface.Name) {
		if on, there := k.Settings["ipv4/conf/"+device+"/forwarding"]; there && on == 0 {
			return problem(Warn, "forwarding is 0 on %s, though ip_forward is 1", device).
				meaning("what comes in there is not forwarded into the tunnels, or out of them").
				mend("sysctl -w net.ipv4.conf.%s.forwarding=1", device)
		}
	}
	if slices.ContainsFunc(f.Config.Subnets, func(p netip.Prefix) bool { return p.Addr().Is6() }) && k.setting("ipv6/conf/all/forwarding") == 0 {
		return problem(Warn, "IPv6 forwarding is off, and subnets has IPv6").
			meaning("pods behind this node reach no peer over IPv6").mend("sysctl -w net.ipv6.conf.all.forwarding=1")
	}
	return ok("on")
}

// behind are the interfaces that lead to subnets.
func behind(list []Network, subnets []netip.Prefix) (out []string) {
	for _, n := range list {
		if n.Loopback || n.Prefix.IsSingleIP() || slices.Contains(out, n.Interface) {
			continue
		}
		if slices.ContainsFunc(subnets, n.Prefix.Overlaps) {
			out = append(out, n.Interface)
		}
	}
	return out
}

func prefixList(list []netip.Prefix) string {
	var texts []string
	for _, p := range list {
		texts = append(texts, p.String())
	}
	return strings.Join(texts, ", ")
}

func judgeSubnets(f *Facts) Finding {
	if !f.Config.readable() {
		return unconfigured(f)
	}
	own, out := f.Config.Subnets, f.Kernel.Marked
	const renumber = "give one of the two other addresses"
	for _, n := range f.Kernel.Networks {
		if n.Loopback || out.Local || n.Interface != out.Interface.Name || n.Prefix.IsSingleIP() {
			continue
		}
		if _, p, clash := overlapping([]netip.Prefix{n.Prefix.Masked()}, own); clash {
			return problem(Fail, "subnets has %s, which meets %s, the network of %s that leads out", p, n.Prefix.Masked(), n.Interface).
				meaning("peers' packets for that network would come here through tunnels, and its neighbours' go astray").
				mend("in agent.yaml: subnets has the networks behind this node (pods), not the one that it is in").mend(renumber)
		}
	}
	tunnels := f.tunnels()
	for _, t := range tunnels {
		if p, q, clash := overlapping(own, t.subnets); clash {
			return problem(Fail, "own subnet %s and %s of %s overlap", p, q, t.peer).
				meaning("traffic for the one may go to the other").mend("in agent.yaml of one of the two: subnets").mend(renumber)
		}
		for _, n := range f.Kernel.Networks {
			if strings.HasPrefix(n.Interface, libipsecDevice) || !slices.ContainsFunc(t.subnets, n.Prefix.Overlaps) {
				continue
			}
			return problem(Fail, "%s of %s meets %s, an address of this node's %s", prefixList(t.subnets), t.peer, n.Prefix, n.Interface).
				meaning("what is meant for that network goes into the tunnel, its gateway and neighbours among it, or stays out of it").
				mend(renumber).mend("ip -br address; swanctl --list-conns   # who has what")
		}
	}
	if len(tunnels) == 0 {
		return ok("own subnets meet no network that leads out; no peers are known")
	}
	noun := "peers"
	if len(tunnels) == 1 {
		noun = "peer"
	}
	return ok("no overlap with %d %s or the networks of this machine", len(tunnels), noun)
}
