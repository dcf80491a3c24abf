package rawudp

import "golang.org/x/net/bpf"

// filter returns the classic BPF program that passes STUN to the given UDP
// port and nothing else. It runs on what the raw socket would deliver: IPv4
// packets from the IP header on, IPv6 packets from the UDP header on. A load
// past the end of a packet ends the program with "drop", which is how short
// packets go.
func filter(port uint16, v6 bool) []bpf.Instruction {
	if v6 {
		return []bpf.Instruction{
			bpf.LoadAbsolute{Off: 2, Size: 2}, // destination port
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(port), SkipTrue: 3},
			bpf.LoadAbsolute{Off: udpHeaderLen + magicCookieOffset, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: magicCookie, SkipTrue: 1},
			accept,
			drop,
		}
	}
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: 9, Size: 1}, // protocol
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: protoUDP, SkipTrue: 8},
		bpf.LoadAbsolute{Off: 6, Size: 2}, // MF and fragment offset
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0x3fff, SkipTrue: 6},
		bpf.LoadMemShift{Off: 0},          // X = 4*(IHL): the header may carry options
		bpf.LoadIndirect{Off: 2, Size: 2}, // destination port
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(port), SkipTrue: 3},
		bpf.LoadIndirect{Off: udpHeaderLen + magicCookieOffset, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: magicCookie, SkipTrue: 1},
		accept,
		drop,
	}
}

var (
	accept = bpf.RetConstant{Val: 0xffffffff}
	drop   = bpf.RetConstant{Val: 0}
)
