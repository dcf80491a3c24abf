package agent

import (
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/bodkin-net/bodkin/agent/charon"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// Dead peer detection by charon (RFC 7296 section 2.4).
const (
	// dpdPunched: ICE consent watches a punched path; DPD is left for the time
	// when no agent runs, and each costs some 220 bytes of somebody's SIM card.
	dpdPunched = 2 * time.Minute
	// dpdPublic: nothing else watches the tunnel to the connector, and both
	// ends ask.
	dpdPublic = time.Minute
)

// connection is the tunnel from self to peer as charon shall know it. The
// shape is FabEdge's: children -p2p, -p2n and -n2p between pods and nodes.
// A path without a remote address is not known yet: charon can then answer,
// but not initiate.
func connection(self, peer wire.Endpoint, plan wire.Plan, role wire.Role, path wire.Path, encap bool) charon.Connection {
	c := charon.Connection{
		Name:    string(peer.Name),
		LocalID: self.ID, RemoteID: peer.ID,
		LocalPort: charon.DefaultPort, RemotePort: charon.DefaultPort,
		RemoteAddrs: []string{"%any"},
		Encap:       encap,
		DPDDelay:    dpdPunched,
		Children:    children(self, peer),
	}
	switch {
	case plan == wire.PlanPublic:
		c.DPDDelay = dpdPublic
		if role == wire.Controlling {
			c.RemoteAddrs = peer.PublicAddresses
			if peer.Port != 0 {
				c.RemotePort = peer.Port
			}
		}
	case path.Remote.IsValid():
		c.LocalAddrs = []string{path.Local.Addr().String()}
		c.RemoteAddrs = []string{path.Remote.Addr().String()}
		c.RemotePort = path.Remote.Port()
	}
	return c
}

// routed are those of a connector's addresses that there is a route to, in their
// order: charon tries the first one only. Host names are for charon to resolve.
// All are kept when none has a route, for charon to say so.
func routed(addrs []string, hasRoute func(netip.Addr) bool) []string {
	out := slices.DeleteFunc(slices.Clone(addrs), func(s string) bool {
		ip, err := netip.ParseAddr(s)
		return err == nil && !hasRoute(ip)
	})
	if len(out) == 0 {
		return addrs
	}
	return out
}

// children leaves out what has no selectors, and the node selectors of two
// nodes with the same private address in different networks: there such a
// selector would catch the node's own traffic. Selectors only go together with
// those of their address family.
func children(self, peer wire.Endpoint) []charon.Child {
	name := string(peer.Name)
	all := []charon.Child{{Name: name + "-p2p", LocalTS: self.Subnets, RemoteTS: peer.Subnets}}
	if !overlap(self.NodeSubnets, peer.NodeSubnets) {
		all = append(all,
			charon.Child{Name: name + "-p2n", LocalTS: self.Subnets, RemoteTS: peer.NodeSubnets},
			charon.Child{Name: name + "-n2p", LocalTS: self.NodeSubnets, RemoteTS: peer.Subnets})
	}
	for i, c := range all {
		all[i].LocalTS, all[i].RemoteTS = sameFamilies(c.LocalTS, c.RemoteTS), sameFamilies(c.RemoteTS, c.LocalTS)
	}
	return slices.DeleteFunc(all, func(c charon.Child) bool { return len(c.LocalTS) == 0 || len(c.RemoteTS) == 0 })
}

// sameFamilies are those of ps that one of others shares an address family with.
func sameFamilies(ps, others []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(ps), func(p netip.Prefix) bool {
		return !slices.ContainsFunc(others, func(o netip.Prefix) bool { return o.Addr().Is4() == p.Addr().Is4() })
	})
}

func overlap(a, b []netip.Prefix) bool {
	return slices.ContainsFunc(a, func(p netip.Prefix) bool {
		return slices.ContainsFunc(b, p.Overlaps)
	})
}

// encapFor decides whether ESP goes inside UDP. Only two hosts on one network
// do without: everywhere else a NAT or a firewall would drop protocol 50. As
// long as the path is not known the answer is no, since either side's yes makes
// both encapsulate, and the initiator knows the path.
func encapFor(path wire.Path, locals []netip.Prefix) bool {
	if path.Kind != wire.PathHost {
		return path.Kind != ""
	}
	return !slices.ContainsFunc(locals, func(p netip.Prefix) bool {
		return p.Addr() == path.Local.Addr() && p.Contains(path.Remote.Addr())
	})
}

// localPrefixes are this node's addresses with their networks.
func localPrefixes() []netip.Prefix {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var out []netip.Prefix
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				ones, _ := n.Mask.Size()
				out = append(out, netip.PrefixFrom(ip.Unmap(), ones))
			}
		}
	}
	return out
}

// probePort is the discard service's (RFC 863): nobody has to listen, since the
// peer counts the bytes when it decrypts them.
const probePort = 9

// probeAddrs picks the ends of a probe that the selectors of one of the tunnel's
// children match: an address of this node, and the first one of the peer's.
func probeAddrs(self, peer wire.Endpoint, locals []netip.Prefix) (from netip.Addr, to netip.AddrPort, ok bool) {
	for _, c := range children(self, peer) {
		for _, remote := range c.RemoteTS {
			first := remote.Addr()
			if !remote.IsSingleIP() {
				first = first.Next()
			}
			for _, l := range locals {
				if l.Addr().Is4() == first.Is4() && slices.ContainsFunc(c.LocalTS, func(p netip.Prefix) bool { return p.Contains(l.Addr()) }) {
					return l.Addr(), netip.AddrPortFrom(first, probePort), true
				}
			}
		}
	}
	return from, to, false
}

// probe sends a few bytes through the tunnel. Errors do not matter: what counts
// is what arrives.
func probe(self, peer wire.Endpoint) {
	from, to, ok := probeAddrs(self, peer, localPrefixes())
	if !ok {
		return
	}
	conn, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), net.UDPAddrFromAddrPort(to))
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = conn.Write([]byte("bodkin"))
}
