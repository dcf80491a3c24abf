package rendezvous

import (
	"encoding/binary"
	"net/netip"

	"github.com/pion/stun/v4"
)

// Flags of CHANGE-REQUEST (RFC 5780 Section 7.2).
const (
	changeIP   = 0x4
	changePort = 0x2
)

// stunPlaces is where the four sockets are bound: two that clients are told to
// ask, then in the same order the alternate of each, another port on the same
// address. So in an index, stunAlternate tells the two kinds apart and
// stunSecond the two listening addresses. All four may be asked.
type stunPlaces [4]netip.AddrPort

const (
	stunSecond    = 1
	stunAlternate = 2
)

// via says which socket answers a request at socket asked, by the flags of its
// CHANGE-REQUEST (RFC 5780 Section 6.1); ok is false when none can. With the
// address the port may change unasked: no NAT filters by the port alone.
func (p stunPlaces) via(asked int, change uint32) (socket int, ok bool) {
	socket = asked
	if change&changePort != 0 {
		socket ^= stunAlternate
	}
	if change&changeIP != 0 {
		socket ^= stunSecond
		return socket, p.haveTwoAddresses()
	}
	return socket, true
}

// other is the socket OTHER-ADDRESS names: the one that answers when everything
// is to change that can (RFC 5780 Section 7.4). With one address that is
// another port of it, which goes beyond the RFC: a client sees by RESPONSE-ORIGIN
// that the address is the same.
func (p stunPlaces) other(asked int) int {
	if p.haveTwoAddresses() {
		return asked ^ stunAlternate ^ stunSecond
	}
	return asked ^ stunAlternate
}

// haveTwoAddresses reports whether change-IP works. Sockets that listen on all
// addresses do not count: which of those reach the client is not known.
func (p stunPlaces) haveTwoAddresses() bool {
	one, two := p[0].Addr(), p[stunSecond].Addr()
	return one != two && one.Is4() == two.Is4() && !one.IsUnspecified() && !two.IsUnspecified()
}

// source is where a packet from socket comes from, in answer to one that
// arrived at local.
func (p stunPlaces) source(socket int, local netip.AddrPort) netip.AddrPort {
	if p[socket].Addr().IsUnspecified() {
		return netip.AddrPortFrom(local.Addr(), p[socket].Port())
	}
	return p[socket]
}

// changeRequest returns the flags of CHANGE-REQUEST, none if it is absent; ok
// is false when it is malformed.
func changeRequest(req *stun.Message) (flags uint32, ok bool) {
	value, err := req.Get(stun.AttrChangeRequest)
	if err != nil {
		return 0, true
	}
	if len(value) != 4 {
		return 0, false
	}
	return binary.BigEndian.Uint32(value), true
}

// responsePort returns the value of RESPONSE-PORT (RFC 5780 Section 7.5), or
// source if it is absent; ok is false when it is malformed. The RFC does not
// say whether the attribute's two bytes of padding count in its length.
func responsePort(req *stun.Message, source uint16) (port uint16, ok bool) {
	value, err := req.Get(stun.AttrResponsePort)
	if err != nil {
		return source, true
	}
	if len(value) != 2 && len(value) != 4 {
		return 0, false
	}
	port = binary.BigEndian.Uint16(value)
	return port, port != 0
}
