package ruleset

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables/expr"
)

// CTState is what connection tracking thinks of a packet, in nftables' own bits.
type CTState uint32

// States.
const (
	Established CTState = 2
	New         CTState = 8
)

// Packet is one that is followed through the rules. Interfaces that are not known
// are nil: what asks for them matches perhaps.
type Packet struct {
	Src, Dst netip.AddrPort // both of one family; ports 0 for none
	Protocol byte
	In, Out  *Interface
	State    CTState
	Mark     uint32
	// Local: it is for this host itself.
	Local bool
}

// Interface is a network interface.
type Interface struct {
	Index int
	Name  string
}

// payloadLen is that of a small packet, as IKE's and STUN's are.
const payloadLen = 100

// network is the packet's IP header.
func (p Packet) network() []byte {
	if p.Dst.Addr().Is4() {
		b := make([]byte, 20)
		b[0], b[8], b[9] = 0x45, 64, p.Protocol
		binary.BigEndian.PutUint16(b[2:], 20+8+payloadLen)
		copy(b[12:], p.Src.Addr().AsSlice())
		copy(b[16:], p.Dst.Addr().AsSlice())
		return b
	}
	b := make([]byte, 40)
	b[0], b[6], b[7] = 0x60, p.Protocol, 64
	binary.BigEndian.PutUint16(b[4:], 8+payloadLen)
	copy(b[8:], p.Src.Addr().AsSlice())
	copy(b[24:], p.Dst.Addr().AsSlice())
	return b
}

// transport is the UDP header; of other protocols, the ports that TCP has at the
// same place.
func (p Packet) transport() []byte {
	b := make([]byte, 8)
	binary.BigEndian.PutUint16(b, p.Src.Port())
	binary.BigEndian.PutUint16(b[2:], p.Dst.Port())
	binary.BigEndian.PutUint16(b[4:], 8+payloadLen)
	return b
}

// meta is a piece of what netfilter knows about a packet, nil if it is not known.
func (p Packet) meta(key expr.MetaKey) []byte {
	native := func(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
	v4 := p.Dst.Addr().Is4()
	switch key {
	case expr.MetaKeyIIF, expr.MetaKeyIIFNAME:
		return p.In.meta(key == expr.MetaKeyIIFNAME)
	case expr.MetaKeyOIF, expr.MetaKeyOIFNAME:
		return p.Out.meta(key == expr.MetaKeyOIFNAME)
	case expr.MetaKeyL4PROTO:
		return []byte{p.Protocol}
	case expr.MetaKeyMARK:
		return native(p.Mark)
	case expr.MetaKeyNFPROTO:
		if v4 {
			return []byte{2} // NFPROTO_IPV4
		}
		return []byte{10} // NFPROTO_IPV6
	case expr.MetaKeyPROTOCOL:
		if v4 {
			return []byte{0x08, 0x00}
		}
		return []byte{0x86, 0xdd}
	case expr.MetaKeyPKTTYPE:
		return []byte{0} // to us
	}
	return nil
}

// nameLen is IFNAMSIZ.
const nameLen = 16

func (i *Interface) meta(name bool) []byte {
	switch {
	case i == nil:
		return nil
	case name:
		b := make([]byte, nameLen)
		copy(b, i.Name)
		return b
	}
	return binary.NativeEndian.AppendUint32(nil, uint32(i.Index))
}
