package rawudp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

const (
	protoUDP = 17

	ipv4MinHeader = 20
	udpHeaderLen  = 8

	// magicCookie is what tells STUN from IKE and ESP on the shared port
	// (RFC 8489 Section 5). It stands at payload offset 4, where UDP-encapsulated
	// ESP has its sequence number and IKE behind the non-ESP marker its SPI.
	magicCookie       = 0x2112A442
	magicCookieOffset = 4
)

// errNotUDP is the reason parse gives for bytes that are not one whole,
// undamaged UDP datagram.
var errNotUDP = errors.New("rawudp: not a valid UDP datagram")

// datagram is one UDP datagram as a raw socket delivers it. The addresses are
// zero for IPv6, whose raw sockets deliver the packet without its IP header.
type datagram struct {
	src, dst netip.AddrPort
	payload  []byte // aliases the bytes given to parse
}

// isSTUN tells whether the payload carries the STUN magic cookie.
func (d datagram) isSTUN() bool {
	return len(d.payload) >= magicCookieOffset+4 &&
		binary.BigEndian.Uint32(d.payload[magicCookieOffset:]) == magicCookie
}

// parse reads what a raw UDP socket delivered: for IPv4 the packet from its IP
// header on, for IPv6 from its UDP header on. It verifies the UDP checksum of
// IPv4 packets, which the kernel leaves to the reader of a raw socket; that of
// IPv6 packets the kernel has verified (IPV6_CHECKSUM).
func parse(b []byte, v6 bool) (datagram, error) {
	if v6 {
		return parseUDP(b, netip.Addr{}, netip.Addr{})
	}
	if len(b) < ipv4MinHeader || b[0]>>4 != 4 {
		return datagram{}, fmt.Errorf("%w: no IPv4 header", errNotUDP)
	}
	header := int(b[0]&0xf) * 4
	total := int(binary.BigEndian.Uint16(b[2:]))
	switch {
	case header < ipv4MinHeader || total < header || len(b) < total:
		return datagram{}, fmt.Errorf("%w: IPv4 header length %d, total length %d, received %d", errNotUDP, header, total, len(b))
	case b[9] != protoUDP:
		return datagram{}, fmt.Errorf("%w: IP protocol %d", errNotUDP, b[9])
	case binary.BigEndian.Uint16(b[6:])&0x3fff != 0: // MF and the offset
		return datagram{}, fmt.Errorf("%w: a fragment", errNotUDP)
	}
	src := netip.AddrFrom4([4]byte(b[12:16]))
	dst := netip.AddrFrom4([4]byte(b[16:20]))
	return parseUDP(b[header:total], src, dst)
}

// parseUDP reads a UDP header and payload (RFC 768); valid addresses ask for
// the checksum to be verified.
func parseUDP(b []byte, src, dst netip.Addr) (datagram, error) {
	if len(b) < udpHeaderLen {
		return datagram{}, fmt.Errorf("%w: %d bytes of UDP", errNotUDP, len(b))
	}
	length := int(binary.BigEndian.Uint16(b[4:]))
	if length < udpHeaderLen || length > len(b) {
		return datagram{}, fmt.Errorf("%w: UDP length %d of %d received", errNotUDP, length, len(b))
	}
	b = b[:length]
	if src.IsValid() && !checksumOK(b, src, dst) {
		return datagram{}, fmt.Errorf("%w: wrong checksum", errNotUDP)
	}
	return datagram{
		src:     netip.AddrPortFrom(src, binary.BigEndian.Uint16(b[0:])),
		dst:     netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[2:])),
		payload: b[udpHeaderLen:],
	}, nil
}

// checksumOK verifies the checksum of the UDP datagram b. Besides none (zero)
// and a right one it accepts the bare pseudo-header sum: that is what a sender
// on the same machine (loopback, veth, a guest's virtio) leaves in the field
// for a network card that the packet never reaches.
func checksumOK(b []byte, src, dst netip.Addr) bool {
	field := binary.BigEndian.Uint16(b[6:])
	pseudo := pseudoHeaderSum(src, dst, len(b))
	return field == 0 || fold(sum(b, pseudo)) == 0xffff || field == fold(pseudo)
}

// appendUDP appends to buf a UDP datagram from src to dst with its checksum.
// The payload must fit a UDP datagram.
func appendUDP(buf []byte, src, dst netip.AddrPort, payload []byte) []byte {
	start := len(buf)
	length := udpHeaderLen + len(payload)
	buf = binary.BigEndian.AppendUint16(buf, src.Port())
	buf = binary.BigEndian.AppendUint16(buf, dst.Port())
	buf = binary.BigEndian.AppendUint16(buf, uint16(length))
	buf = append(buf, 0, 0)
	buf = append(buf, payload...)

	checksum := ^fold(sum(buf[start:], pseudoHeaderSum(src.Addr(), dst.Addr(), length)))
	if checksum == 0 {
		checksum = 0xffff // zero would say "no checksum" (RFC 768)
	}
	binary.BigEndian.PutUint16(buf[start+6:], checksum)
	return buf
}

// pseudoHeaderSum is the unfolded sum of the pseudo-header of a UDP datagram of
// the given length (RFC 768 for IPv4, RFC 8200 Section 8.1 for IPv6).
func pseudoHeaderSum(src, dst netip.Addr, length int) uint32 {
	return sum(dst.AsSlice(), sum(src.AsSlice(), protoUDP+uint32(length)))
}

// sum adds the big-endian 16-bit words of b to acc, padding an odd byte with
// zero. The result overflows for no b of at most 64 KiB.
func sum(b []byte, acc uint32) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		acc += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		acc += uint32(b[0]) << 8
	}
	return acc
}

// fold brings a sum to 16 bits by end-around carry (RFC 1071).
func fold(acc uint32) uint16 {
	for acc > 0xffff {
		acc = acc>>16 + acc&0xffff
	}
	return uint16(acc)
}
