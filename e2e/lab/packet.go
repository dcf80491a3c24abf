package lab

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// IP protocol numbers the lab knows.
const (
	protocolICMP   = 1
	protocolTCP    = 6
	protocolUDP    = 17
	protocolESP    = 50
	protocolICMPv6 = 58
)

// header is what the internet reads of an IP packet (RFC 791, RFC 8200).
type header struct {
	src, dst netip.Addr
	ttl      uint8 // hop limit in IPv6
	protocol uint8 // of the first header after the IPv6 header
	payload  []byte
}

// Where things stand in the two headers.
const (
	headerLen4, ttlAt4, protocolAt4, checksumAt4, srcAt4, dstAt4 = 20, 8, 9, 10, 12, 16
	headerLen6, protocolAt6, ttlAt6, srcAt6, dstAt6              = 40, 6, 7, 8, 24
)

// parse reports false for what is no IP packet.
func parse(packet []byte) (header, bool) {
	if len(packet) == 0 {
		return header{}, false
	}
	switch packet[0] >> 4 {
	case 4:
		size := int(packet[0]&0xf) * 4
		if size < headerLen4 || len(packet) < size {
			return header{}, false
		}
		return header{
			src: netip.AddrFrom4([4]byte(packet[srcAt4:])), dst: netip.AddrFrom4([4]byte(packet[dstAt4:])),
			ttl: packet[ttlAt4], protocol: packet[protocolAt4], payload: packet[size:],
		}, true
	case 6:
		if len(packet) < headerLen6 {
			return header{}, false
		}
		return header{
			src: netip.AddrFrom16([16]byte(packet[srcAt6:])), dst: netip.AddrFrom16([16]byte(packet[dstAt6:])),
			ttl: packet[ttlAt6], protocol: packet[protocolAt6], payload: packet[headerLen6:],
		}, true
	}
	return header{}, false
}

// spend takes hops off the TTL of a packet that has them, in place.
func spend(packet []byte, hops uint8) {
	if packet[0]>>4 == 6 {
		packet[ttlAt6] -= hops
		return
	}
	packet[ttlAt4] -= hops
	// RFC 1624, equation 3: the TTL is the high byte of its 16-bit word, so
	// that word shrank by hops<<8.
	sum := uint32(^binary.BigEndian.Uint16(packet[checksumAt4:])) + uint32(^(uint16(hops) << 8))
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(packet[checksumAt4:], ^uint16(sum))
}

// hopAddr is where the internet's nth router answers from, counted from the
// sender: in 198.18.0.0/15 (RFC 2544), which is nobody's, or the documentation's
// 2001:db8::/32.
func hopAddr(n uint8, like netip.Addr) netip.Addr {
	if like.Is4() {
		return netip.AddrFrom4([4]byte{198, 18, 0, n})
	}
	return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0xff, 0xff, 15: n})
}

// Of the packet it is about, an ICMP error quotes as much as fits these
// (RFC 1812 section 4.3.2.3, RFC 4443 section 3.3).
const (
	maxICMP4 = 576
	maxICMP6 = 1280
)

// timeExceeded is what a router sends back that took the last of a packet's
// TTL. It is nil for packets that no ICMP error may answer.
func timeExceeded(router netip.Addr, h header, packet []byte) []byte {
	if isICMPError(h) || h.src.IsMulticast() || h.src.IsUnspecified() || h.dst.IsMulticast() {
		return nil
	}
	size, limit := headerLen4, maxICMP4
	msg := icmp.Message{Type: ipv4.ICMPTypeTimeExceeded}
	var pseudo []byte
	if h.src.Is6() {
		size, limit = headerLen6, maxICMP6
		msg.Type = ipv6.ICMPTypeTimeExceeded
		pseudo = icmp.IPv6PseudoHeader(router.AsSlice(), h.src.AsSlice())
	}
	const icmpHeader = 8
	msg.Body = &icmp.TimeExceeded{Data: packet[:min(len(packet), limit-size-icmpHeader)]}
	body, err := msg.Marshal(pseudo)
	if err != nil {
		return nil
	}
	return append(ipHeader(router, h.src, len(body)), body...)
}

// isICMPError: no error answers an error (RFC 1122 section 3.2.2, RFC 4443
// section 2.4).
func isICMPError(h header) bool {
	if len(h.payload) == 0 {
		return false
	}
	switch h.protocol {
	case protocolICMP:
		switch ipv4.ICMPType(h.payload[0]) {
		case ipv4.ICMPTypeDestinationUnreachable, ipv4.ICMPTypeRedirect, ipv4.ICMPTypeTimeExceeded, ipv4.ICMPTypeParameterProblem:
			return true
		}
	case protocolICMPv6:
		const firstInformational = 128
		return h.payload[0] < firstInformational
	}
	return false
}

// ipHeader is that of an ICMP message of the given size.
func ipHeader(src, dst netip.Addr, size int) []byte {
	const ttl = 64
	if src.Is6() {
		b := make([]byte, headerLen6)
		b[0], b[protocolAt6], b[ttlAt6] = 0x60, protocolICMPv6, ttl
		binary.BigEndian.PutUint16(b[4:], uint16(size))
		copy(b[srcAt6:], src.AsSlice())
		copy(b[dstAt6:], dst.AsSlice())
		return b
	}
	b := make([]byte, headerLen4)
	b[0], b[protocolAt4], b[ttlAt4] = 0x45, protocolICMP, ttl
	binary.BigEndian.PutUint16(b[2:], uint16(headerLen4+size))
	copy(b[srcAt4:], src.AsSlice())
	copy(b[dstAt4:], dst.AsSlice())
	binary.BigEndian.PutUint16(b[checksumAt4:], checksum(b))
	return b
}

// checksum is that of RFC 1071 over an even number of bytes; zero over a header
// that holds a valid one.
func checksum(b []byte) uint16 {
	var sum uint32
	for pair := range slices.Chunk(b, 2) {
		sum += uint32(binary.BigEndian.Uint16(pair))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
