package ruleset

import (
	"bytes"
	"encoding/binary"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
)

// answered is the status of a flow that was answered: seen reply, assured,
// confirmed, and not translated.
const answered = 1<<1 | 1<<2 | 1<<3

// invertDest is XT_ADDRTYPE_INVERT_DEST.
const invertDest = 1 << 1

// local is RTN_LOCAL, the type of an address of this host.
const local = 2

// match executes an expression that loads, computes or compares. Those that only
// count or write always match.
func (w *walk) match(regs *registers, e expr.Any) answer {
	switch e := e.(type) {
	case *expr.Counter, *expr.Log, *expr.Notrack, *expr.Objref, *expr.Dynset, *expr.FlowOffload, *expr.SecMark, *expr.Dup:
		return yes
	case *expr.Meta:
		if !e.SourceRegister {
			regs.set(e.Register, w.packet.meta(e.Key))
		}
		return yes
	case *expr.Payload:
		if e.OperationType == expr.PayloadLoad {
			regs.set(e.DestRegister, w.payload(e))
		}
		return yes
	case *expr.Ct:
		w.conntrack(regs, e)
		return yes
	case *expr.Fib:
		w.fib(regs, e)
		return yes
	case *expr.Immediate:
		regs.set(e.Register, e.Data)
		return yes
	case *expr.Bitwise:
		bitwise(regs, e)
		return yes
	case *expr.Byteorder:
		byteorder(regs, e)
		return yes
	case *expr.Cmp:
		return compare(regs, e)
	case *expr.Range:
		return inRange(regs, e)
	case *expr.Match:
		return w.extension(e)
	}
	return w.unknown(regs, e)
}

// unknown forgets what an expression may have loaded.
func (w *walk) unknown(regs *registers, e expr.Any) answer {
	switch e := e.(type) {
	case *expr.Exthdr:
		regs.set(e.DestRegister, nil)
	case *expr.Rt:
		regs.set(e.Register, nil)
	case *expr.Socket:
		regs.set(e.Register, nil)
	case *expr.Numgen:
		regs.set(e.Register, nil)
	case *expr.Hash:
		regs.set(e.DestRegister, nil)
	}
	return perhaps
}

func (w *walk) payload(e *expr.Payload) []byte {
	var header []byte
	switch e.Base {
	case expr.PayloadBaseNetworkHeader:
		header = w.packet.network()
	case expr.PayloadBaseTransportHeader:
		header = w.packet.transport()
	}
	if int(e.Offset+e.Len) > len(header) {
		return nil
	}
	return header[e.Offset : e.Offset+e.Len]
}

func (w *walk) conntrack(regs *registers, e *expr.Ct) {
	native := func(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
	known := w.packet.State == Established
	switch {
	case e.SourceRegister:
	case e.Key == expr.CtKeySTATE:
		regs.set(e.Register, native(uint32(w.packet.State)))
	case e.Key == expr.CtKeySTATUS && known:
		regs.set(e.Register, native(answered))
	case e.Key == expr.CtKeySTATUS:
		regs.set(e.Register, native(0))
	default:
		regs.set(e.Register, nil)
	}
}

func (w *walk) fib(regs *registers, e *expr.Fib) {
	if e.ResultADDRTYPE && e.FlagDADDR && w.packet.Local {
		regs.set(e.Register, binary.NativeEndian.AppendUint32(nil, local))
		return
	}
	regs.set(e.Register, nil)
}

func bitwise(regs *registers, e *expr.Bitwise) {
	n := int(e.Len)
	if !regs.known(e.SourceRegister, n) || len(e.Mask) != n || len(e.Xor) != n {
		regs.set(e.DestRegister, nil)
		return
	}
	out := bytes.Clone(regs.get(e.SourceRegister, n))
	for i := range out {
		out[i] = out[i]&e.Mask[i] ^ e.Xor[i]
	}
	regs.set(e.DestRegister, out)
}

// byteorder swaps each word, on machines whose order is not the network's.
func byteorder(regs *registers, e *expr.Byteorder) {
	n, size := int(e.Len), int(e.Size)
	if !regs.known(e.SourceRegister, n) || size == 0 {
		regs.set(e.DestRegister, nil)
		return
	}
	out := bytes.Clone(regs.get(e.SourceRegister, n))
	if binary.NativeEndian.Uint16([]byte{0, 1}) != 1 {
		for word := 0; word+size <= n; word += size {
			for i := range size / 2 {
				out[word+i], out[word+size-1-i] = out[word+size-1-i], out[word+i]
			}
		}
	}
	regs.set(e.DestRegister, out)
}

func compare(regs *registers, e *expr.Cmp) answer {
	if !regs.known(e.Register, len(e.Data)) {
		return perhaps
	}
	order := bytes.Compare(regs.get(e.Register, len(e.Data)), e.Data)
	switch e.Op {
	case expr.CmpOpEq:
		return is(order == 0)
	case expr.CmpOpNeq:
		return is(order != 0)
	case expr.CmpOpLt:
		return is(order < 0)
	case expr.CmpOpLte:
		return is(order <= 0)
	case expr.CmpOpGt:
		return is(order > 0)
	case expr.CmpOpGte:
		return is(order >= 0)
	}
	return perhaps
}

func inRange(regs *registers, e *expr.Range) answer {
	if !regs.known(e.Register, len(e.FromData)) {
		return perhaps
	}
	v := regs.get(e.Register, len(e.FromData))
	inside := bytes.Compare(e.FromData, v) <= 0 && bytes.Compare(v, e.ToData) <= 0
	return is(inside == (e.Op == expr.CmpOpEq))
}

// extension is a match of iptables-nft.
func (w *walk) extension(e *expr.Match) answer {
	switch info := e.Info.(type) {
	case *xt.Comment:
		return yes
	case *xt.Udp:
		return w.ports(17, info.SrcPorts, info.DstPorts, info.InvFlags&xt.UdpInvSrcPorts != 0, info.InvFlags&xt.UdpInvDestPorts != 0)
	case *xt.Tcp:
		if w.packet.Protocol != 6 {
			return no
		}
		return perhaps
	case *xt.AddrTypeV1:
		if !w.packet.Local || info.Source != 0 || info.Dest == 0 {
			return perhaps
		}
		inverted := info.Flags&invertDest != 0
		return is((info.Dest&(1<<local) != 0) != inverted)
	case *xt.ConntrackMtinfo3:
		if xt.ConntrackFlags(info.MatchFlags) != xt.ConntrackState {
			return perhaps
		}
		// The same bits as nftables'.
		hit := uint32(info.StateMask)&uint32(w.packet.State) != 0
		return is(hit == (xt.ConntrackFlags(info.InvertFlags)&xt.ConntrackState == 0))
	}
	return perhaps
}

func (w *walk) ports(protocol byte, src, dst [2]uint16, notSrc, notDst bool) answer {
	within := func(port uint16, r [2]uint16, not bool) bool { return (r[0] <= port && port <= r[1]) != not }
	return is(w.packet.Protocol == protocol && within(w.packet.Src.Port(), src, notSrc) && within(w.packet.Dst.Port(), dst, notDst))
}
