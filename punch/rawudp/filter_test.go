package rawudp

import (
	"encoding/binary"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

func TestFilter(t *testing.T) {
	t.Parallel()
	v4 := ipv4Packet(addrA, addrB, nil, stunPayload(""))
	v4Options := ipv4Packet(addrA, addrB, []byte{7, 7, 4, 0, 0, 0, 0, 0}, stunPayload(""))
	v6 := appendUDP(nil, addr6, addr7, stunPayload(""))
	// An IKE packet behind the non-ESP marker, and one of ESP in UDP.
	ike := append(make([]byte, 4), "SPIiSPIiSPIrSPIr........"...)
	esp := []byte{0xc0, 0x01, 0x02, 0x03, 0, 0, 0, 1, 9, 9, 9, 9, 9, 9, 9, 9}

	tests := []struct {
		name   string
		packet []byte
		v6     bool
		pass   bool
	}{
		{"STUN", v4, false, true},
		{"STUN behind IP options", v4Options, false, true},
		{"STUN, don't fragment", edited(v4, 6, 0x40), false, true},
		{"other port", edited(v4, 22, 0x11, 0x95), false, false},
		{"port swapped with the source's", ipv4Packet(addrB, addrA, nil, stunPayload("")), false, false},
		{"wrong cookie", edited(v4, 32, 0x22), false, false},
		{"IKE", ipv4Packet(addrA, addrB, nil, ike), false, false},
		{"ESP", ipv4Packet(addrA, addrB, nil, esp), false, false},
		{"NAT keepalive", ipv4Packet(addrA, addrB, nil, []byte{0xff}), false, false},
		{"no payload", ipv4Packet(addrA, addrB, nil, nil), false, false},
		{"cut inside the cookie", v4[:35], false, false},
		{"cut inside the IP header", v4[:8], false, false},
		{"more fragments", edited(v4, 6, 0x20), false, false},
		{"later fragment", edited(v4, 7, 1), false, false},
		{"TCP", edited(v4, 9, 6), false, false},
		{"IPv6 STUN", v6, true, true},
		{"IPv6 other port", edited(v6, 2, 0), true, false},
		{"IPv6 IKE", appendUDP(nil, addr6, addr7, ike), true, false},
		{"IPv6 cut inside the cookie", v6[:15], true, false},
		{"IPv6 no payload", v6[:8], true, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			vm, err := bpf.NewVM(filter(addrB.Port(), tt.v6))
			if err != nil {
				t.Fatalf("bpf.NewVM: %v", err)
			}
			n, err := vm.Run(tt.packet)
			if err != nil {
				t.Fatalf("vm.Run: %v", err)
			}
			if passed := n > 0; passed != tt.pass {
				t.Errorf("passed = %v, want %v", passed, tt.pass)
			}
		})
	}
}

func TestAllowPolicyLayout(t *testing.T) {
	t.Parallel()
	p := allowPolicy(unix.AF_INET6, xfrmPolicyOut)
	if len(p) != 168 || binary.NativeEndian.Uint16(p[40:]) != unix.AF_INET6 || p[160] != 1 {
		t.Fatalf("policy = %x", p)
	}
	for i, b := range p {
		if i != 40 && i != 41 && i != 160 && b != 0 {
			t.Errorf("byte %d is %#x, want 0", i, b)
		}
	}
}
