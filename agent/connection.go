package agent

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/bodkin-net/bodkin/agent/charon"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// Dead peer detection by charon (RFC 7296 section 2.4).
const (
	// dpdPunched: ICE consent watches a punched path; DPD is left for the time
	// when no agent runs, and each costs some 220 bytes of somebody's SIM card.
	dpdPunched = 2 * time.Minute
	// dpdPublic: the edge's agent watches what flows through the tunnel to the
	// connector. DPD tells the connector that an edge is gone for good, and is all
	// there is where no agent runs.
	dpdPublic = time.Minute
)

// connection is the tunnel from self to peer as charon shall know it. A path
// without a remote address is not known yet: charon can then answer, but not
// initiate.
func connection(self wire.Endpoint, peer wire.Peer, path wire.Path, encap bool) charon.Connection {
	there := peer.Endpoint
	c := charon.Connection{
		Name:    string(there.Name),
		LocalID: self.ID, RemoteID: there.ID,
		LocalPort: charon.DefaultPort, RemotePort: charon.DefaultPort,
		RemoteAddrs: []string{"%any"},
		Encap:       encap,
		DPDDelay:    dpdPunched,
		Children:    children(self, peer),
	}
	switch {
	case peer.Plan == wire.PlanPublic:
		c.DPDDelay = dpdPublic
		if peer.Role == wire.Controlling {
			c.RemoteAddrs = there.PublicAddresses
			if there.Port != 0 {
				c.RemotePort = there.Port
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

// What follows the connection's name in its children's.
const (
	podToPod   = "-p2p"
	podToNode  = "-p2n"
	nodeToPod  = "-n2p"
	checkChild = "-check"
	relayChild = "-relay"
	ownChild   = "-own"
)

// checkProtocol is for experimentation and testing (RFC 3692): no traffic but our
// own has it, so its CHILD SA can be tried out while the relay carries the rest.
const checkProtocol = 253

// children are all that charon shall know of a connection: FabEdge's, and beside
// them what the relay needs.
func children(self wire.Endpoint, peer wire.Peer) []charon.Child {
	all := carriers(self, peer.Endpoint)
	if peer.Plan != wire.PlanPublic {
		return append(all, check(self, peer.Endpoint)...)
	}
	return slices.Concat(all, relay(self, peer), own(self, peer))
}

// carriers are FabEdge's children, between pods and nodes. It leaves out what has
// no selectors, and the node selectors of two nodes with the same private address
// in different networks: there such a selector would catch the node's own traffic.
func carriers(self, peer wire.Endpoint) []charon.Child {
	name := string(peer.Name)
	all := []charon.Child{{Name: name + podToPod, LocalTS: self.Subnets, RemoteTS: peer.Subnets}}
	if !overlap(self.NodeSubnets, peer.NodeSubnets) {
		all = append(all,
			charon.Child{Name: name + podToNode, LocalTS: self.Subnets, RemoteTS: peer.NodeSubnets},
			charon.Child{Name: name + nodeToPod, LocalTS: self.NodeSubnets, RemoteTS: peer.Subnets})
	}
	return matched(all...)
}

// check is the child through which a direct path proves itself before it takes
// over from the relay; none where there are no pods to take over for.
func check(self, peer wire.Endpoint) []charon.Child {
	return matched(charon.Child{
		Name: string(peer.Name) + checkChild, LocalTS: self.Subnets, RemoteTS: peer.Subnets, Protocol: checkProtocol,
	})
}

// relay is the child through which an edge reaches the others by way of its
// connector. Its range is wider than any direct tunnel's selectors, which win
// where they are installed.
func relay(self wire.Endpoint, peer wire.Peer) []charon.Child {
	c := charon.Child{Name: string(peer.Endpoint.Name) + relayChild, LocalTS: self.Subnets, RemoteTS: peer.Relay}
	if self.Type == wire.Connector {
		c.LocalTS, c.RemoteTS = peer.Relay, peer.Endpoint.Subnets
	}
	return matched(c)
}

// own keeps an edge's traffic with itself, e.g. from the node to its pods, out of
// a relay whose range contains its own subnets.
func own(self wire.Endpoint, peer wire.Peer) []charon.Child {
	if self.Type == wire.Connector || !overlap(self.Subnets, peer.Relay) {
		return nil
	}
	return matched(charon.Child{
		Name: string(peer.Endpoint.Name) + ownChild, LocalTS: self.Subnets, RemoteTS: self.Subnets, Pass: true,
	})
}

// marked are the children of a direct tunnel where the kernel does ESP. Without
// the mark it would hold what still comes through the relay against the policy of
// the direct tunnel, which is the more specific one, and drop it. What goes to or
// from a node address is never relayed.
func marked(all []charon.Child, mark DirectMark) []charon.Child {
	for i, c := range all {
		if strings.HasSuffix(c.Name, podToPod) {
			all[i].MarkIn = charon.Mark(mark)
		}
	}
	return all
}

// matched are the children whose selectors go together: only those of one address
// family do.
func matched(all ...charon.Child) []charon.Child {
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
			out = append(out, prefixOf(n))
		}
	}
	return out
}
