package lab

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// Fate is what became of a packet on the internet.
type Fate string

// Fates.
const (
	Delivered Fate = "delivered"
	Lost      Fate = "lost"     // on one of the two links, the sender's is cut, or the path broken
	Expired   Fate = "expired"  // its TTL was too low to cross
	NoRoute   Fate = "no route" // nobody has the destination
)

// Packet is one packet that was sent to the internet, as it left its sender:
// behind the sender's NATs, if there are any.
type Packet struct {
	At time.Duration // since the trace began
	// From and To are the host or router that sent it and the one that has the
	// destination, empty when nobody has.
	From, To string
	// Src and Dst have port 0 in what is neither UDP nor TCP.
	Src, Dst netip.AddrPort
	TTL      uint8
	Length   int // bytes, headers included
	// What names the message, such as "STUN Binding request" or "IKE_SA_INIT
	// request".
	What string
	Fate Fate
}

// String is one line: when, from whom to whom, what, and what became of it.
func (p Packet) String() string {
	line := fmt.Sprintf("%9.3f ms  %v → %v  ttl %d  %s, %d bytes", float64(p.At)/float64(time.Millisecond), p.Src, p.Dst, p.TTL, p.What, p.Length)
	if p.Fate != Delivered {
		line += " (" + string(p.Fate) + ")"
	}
	return line
}

// Trace calls record with each packet sent to the internet from now on, one at
// a time and in order, until stop returns. record must be quick, for the packets
// wait. A second trace takes the first one's place.
func (l *Lab) Trace(record func(Packet)) (stop func()) {
	t := &tracer{begin: time.Now(), record: record}
	l.internet.tracer.Store(t)
	return func() {
		l.internet.tracer.CompareAndSwap(t, nil)
		t.mu.Lock()
		defer t.mu.Unlock()
		t.stopped = true
	}
}

// tracer hands packets to one who asked for them.
type tracer struct {
	begin  time.Time
	record func(Packet)

	mu      sync.Mutex // serialises packets, and with them record
	stopped bool
}

// pass sends a packet and records what became of it, before anything can
// answer it.
func (t *tracer) pass(p Packet, send func() Fate) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p.At = time.Since(t.begin)
	p.Fate = send()
	if !t.stopped {
		t.record(p)
	}
}

// describe is the trace of a packet before its fate is known.
func describe(h header, length int) Packet {
	p := Packet{Src: netip.AddrPortFrom(h.src, 0), Dst: netip.AddrPortFrom(h.dst, 0), TTL: h.ttl, Length: length}
	switch h.protocol {
	case protocolUDP:
		const udpHeader = 8
		if len(h.payload) >= udpHeader {
			p.Src, p.Dst = ports(h)
			p.What = udpMessage(p.Src.Port(), p.Dst.Port(), h.payload[udpHeader:])
		} else {
			p.What = "UDP fragment"
		}
	case protocolTCP:
		p.What = "TCP"
		if len(h.payload) >= 4 {
			p.Src, p.Dst = ports(h)
		}
	case protocolESP:
		p.What = "ESP"
	case protocolICMP, protocolICMPv6:
		p.What = icmpMessage(h)
	default:
		p.What = fmt.Sprintf("IP protocol %d", h.protocol)
	}
	return p
}

func ports(h header) (src, dst netip.AddrPort) {
	return netip.AddrPortFrom(h.src, binary.BigEndian.Uint16(h.payload)),
		netip.AddrPortFrom(h.dst, binary.BigEndian.Uint16(h.payload[2:]))
}

// ikeNATPort is where IKE and ESP share a port (RFC 3948); IKE proper has
// another one.
const (
	ikePort    = 500
	ikeNATPort = 4500
)

// udpMessage tells apart what shares one port: STUN by its magic cookie, IKE by
// the non-ESP marker, keepalives by their one byte, and ESP by being none of
// these (RFC 3948 section 2).
func udpMessage(src, dst uint16, data []byte) string {
	if what := stunMessage(data); what != "" {
		return what
	}
	if len(data) == 1 && data[0] == 0xff {
		return "NAT-T keepalive"
	}
	if src == ikePort || dst == ikePort {
		return ikeMessage(data)
	}
	const marker = 4
	if len(data) > marker && binary.BigEndian.Uint32(data) == 0 {
		return ikeMessage(data[marker:])
	}
	if src == ikeNATPort || dst == ikeNATPort {
		return "ESP in UDP"
	}
	return "UDP"
}

// stunMessage is empty for what is no STUN message (RFC 8489 section 5).
func stunMessage(data []byte) string {
	const headerLen, cookieAt, cookie = 20, 4, 0x2112A442
	if len(data) < headerLen || data[0]>>6 != 0 || binary.BigEndian.Uint32(data[cookieAt:]) != cookie {
		return ""
	}
	typ := binary.BigEndian.Uint16(data)
	class := [...]string{"request", "indication", "success response", "error response"}[typ>>7&2|typ>>4&1]
	method := typ&0xf | typ>>1&0x70 | typ>>2&0xf80
	if method == 1 {
		return "STUN Binding " + class
	}
	return fmt.Sprintf("STUN method %d %s", method, class)
}

var ikeExchanges = map[byte]string{34: "IKE_SA_INIT", 35: "IKE_AUTH", 36: "CREATE_CHILD_SA", 37: "INFORMATIONAL"}

// ikeMessage reads an IKEv2 header (RFC 7296 section 3.1).
func ikeMessage(data []byte) string {
	const headerLen, exchangeAt, flagsAt, response = 28, 18, 19, 0x20
	if len(data) < headerLen {
		return "IKE"
	}
	exchange := ikeExchanges[data[exchangeAt]]
	if exchange == "" {
		return fmt.Sprintf("IKE exchange %d", data[exchangeAt])
	}
	if data[flagsAt]&response != 0 {
		return exchange + " response"
	}
	return exchange + " request"
}

func icmpMessage(h header) string {
	if len(h.payload) == 0 {
		return "ICMP fragment"
	}
	if h.protocol == protocolICMPv6 {
		return "ICMPv6 " + ipv6.ICMPType(h.payload[0]).String()
	}
	return "ICMP " + ipv4.ICMPType(h.payload[0]).String()
}
