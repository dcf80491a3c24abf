package agent

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"

	"github.com/bodkin-net/bodkin/agent/charon"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

var probeText = []byte("bodkin")

// probeAddrs picks the ends of a probe that the selectors of one of the children
// match: an address of this node, and the first one of the peer's.
func probeAddrs(children []charon.Child, locals []netip.Prefix) (from, to netip.Addr, ok bool) {
	for _, c := range children {
		for _, remote := range c.RemoteTS {
			first := remote.Addr()
			if !remote.IsSingleIP() {
				first = first.Next()
			}
			for _, l := range locals {
				if l.Addr().Is4() == first.Is4() && slices.ContainsFunc(c.LocalTS, func(p netip.Prefix) bool { return p.Contains(l.Addr()) }) {
					return l.Addr(), first, true
				}
			}
		}
	}
	return from, to, false
}

// probe sends a few bytes through the tunnel: an ICMP echo request, which almost
// every host answers, as often as it is asked. Errors do not matter: what counts
// is what comes back, be it an answer of the peer's agent to unanswered traffic.
func probe(self, peer wire.Endpoint) {
	from, to, ok := probeAddrs(carriers(self, peer), localPrefixes())
	if !ok {
		return
	}
	network, echo := "ip4:icmp", byte(8)
	if from.Is6() {
		network, echo = "ip6:ipv6-icmp", 128
	}
	conn, err := net.DialIP(network, &net.IPAddr{IP: from.AsSlice()}, &net.IPAddr{IP: to.AsSlice()})
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = conn.Write(echoMessage(echo, 0))
}

// echoMessage is an echo request, RFC 792's, or RFC 4443's, whose checksum the
// kernel fills in.
func echoMessage(kind byte, id uint16) []byte {
	m := append([]byte{kind, 0, 0, 0, byte(id >> 8), byte(id), 0, 0}, probeText...) // of an even length
	var sum uint32
	for i := 0; i < len(m); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(m[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(m[2:], ^uint16(sum+sum>>16))
	return m
}

// probeCheck is probe for the CHILD SA of a path that is still to prove itself,
// with a socket mark or 0.
func probeCheck(self, peer wire.Endpoint, mark uint32) {
	from, to, ok := probeAddrs(check(self, peer), localPrefixes())
	if !ok {
		return
	}
	network := "ip4"
	if from.Is6() {
		network = "ip6"
	}
	d := net.Dialer{LocalAddr: &net.IPAddr{IP: from.AsSlice()}, Control: func(_, _ string, c syscall.RawConn) error {
		return onDescriptor(c, func(fd int) error { return setMark(fd, mark) })
	}}
	conn, err := d.Dial(fmt.Sprintf("%s:%d", network, checkProtocol), to.String())
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = conn.Write(probeText)
}
