package lab

import (
	"encoding/binary"
	"net/netip"
)

// route reads the destination of an IP packet and takes hops off its TTL
// (RFC 791; hop limit in RFC 8200), in place. It reports false when the
// packet is malformed or would not survive that many routers: each takes one
// off and drops what reaches zero.
func route(packet []byte, hops uint8) (netip.Addr, bool) {
	if len(packet) == 0 {
		return netip.Addr{}, false
	}
	switch packet[0] >> 4 {
	case 4:
		return routeIPv4(packet, hops)
	case 6:
		return routeIPv6(packet, hops)
	}
	return netip.Addr{}, false
}

func routeIPv4(packet []byte, hops uint8) (netip.Addr, bool) {
	const headerLen, ttlAt, checksumAt, dstAt = 20, 8, 10, 16
	if len(packet) < headerLen || packet[ttlAt] <= hops {
		return netip.Addr{}, false
	}
	packet[ttlAt] -= hops
	// RFC 1624, equation 3: the TTL is the high byte of its 16-bit word, so
	// that word shrank by hops<<8.
	sum := uint32(^binary.BigEndian.Uint16(packet[checksumAt:])) + uint32(^(uint16(hops) << 8))
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(packet[checksumAt:], ^uint16(sum))
	return netip.AddrFrom4([4]byte(packet[dstAt : dstAt+4])), true
}

func routeIPv6(packet []byte, hops uint8) (netip.Addr, bool) {
	const headerLen, hopLimitAt, dstAt = 40, 7, 24
	if len(packet) < headerLen || packet[hopLimitAt] <= hops {
		return netip.Addr{}, false
	}
	packet[hopLimitAt] -= hops
	return netip.AddrFrom16([16]byte(packet[dstAt : dstAt+16])), true
}
