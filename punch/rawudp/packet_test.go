package rawudp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"
)

var (
	addrA = netip.MustParseAddrPort("192.0.2.1:45000")
	addrB = netip.MustParseAddrPort("198.51.100.7:4500")
	addr6 = netip.MustParseAddrPort("[2001:db8::1]:45000")
	addr7 = netip.MustParseAddrPort("[2001:db8::2]:4500")
)

// stunPayload is a STUN Binding request without attributes, with extra bytes
// behind it that make packets distinguishable.
func stunPayload(extra string) []byte {
	b := []byte{0x00, 0x01, 0x00, 0x00, 0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}
	return append(b, extra...)
}

// ipv4Packet puts an IPv4 header, with options if given, before a UDP datagram.
func ipv4Packet(src, dst netip.AddrPort, options, payload []byte) []byte {
	header := make([]byte, ipv4MinHeader, ipv4MinHeader+len(options))
	header = append(header, options...)
	header[0] = 4<<4 | byte(len(header)/4)
	header[8], header[9] = 64, protoUDP
	copy(header[12:], src.Addr().AsSlice())
	copy(header[16:], dst.Addr().AsSlice())
	packet := appendUDP(header, src, dst, payload)
	binary.BigEndian.PutUint16(packet[2:], uint16(len(packet)))
	return packet
}

// edited returns a copy of b with its bytes from offset on overwritten.
func edited(b []byte, offset int, with ...byte) []byte {
	b = bytes.Clone(b)
	copy(b[offset:], with)
	return b
}

func TestParseIPv4(t *testing.T) {
	t.Parallel()
	payload := stunPayload("odd")
	good := ipv4Packet(addrA, addrB, nil, payload)
	options := ipv4Packet(addrA, addrB, []byte{7, 7, 4, 0, 0, 0, 0, 0}, payload)
	pseudo := fold(pseudoHeaderSum(addrA.Addr(), addrB.Addr(), udpHeaderLen+len(payload)))

	tests := []struct {
		name   string
		packet []byte
		ok     bool
	}{
		{"whole", good, true},
		{"IP options", options, true},
		{"link padding behind the packet", append(bytes.Clone(good), 0, 0, 0), true},
		{"don't fragment", edited(good, 6, 0x40), true},
		{"no checksum", edited(good, 26, 0, 0), true},
		{"checksum left to the network card", edited(good, 26, byte(pseudo>>8), byte(pseudo)), true},
		{"wrong checksum", edited(good, 26, good[26]^1), false},
		{"damaged payload", edited(good, 40, good[40]^0x80), false},
		{"other source than the checksum's", edited(good, 12, 10), false},
		{"empty", nil, false},
		{"header cut", good[:19], false},
		{"options cut", options[:24], false},
		{"UDP header cut", edited(good[:27], 2, 0, 27), false},
		{"payload cut", good[:len(good)-1], false},
		{"version 6", edited(good, 0, 0x65), false},
		{"IHL 4", edited(good, 0, 0x44), false},
		{"total length inside the header", edited(good, 2, 0, 19), false},
		{"TCP", edited(good, 9, 6), false},
		{"more fragments", edited(good, 6, 0x20), false},
		{"fragment offset", edited(good, 6, 0, 1), false},
		{"UDP length 7", edited(good, 24, 0, 7), false},
		{"UDP length beyond the packet", edited(good, 24, 0xff, 0xff), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d, err := parse(tt.packet, false)
			if !tt.ok {
				if !errors.Is(err, errNotUDP) {
					t.Fatalf("parse = %+v, %v; want errNotUDP", d, err)
				}
				return
			}
			if err != nil {
				t.Fatalf("parse: %v", err)
			}
			if d.src != addrA || d.dst != addrB || !bytes.Equal(d.payload, payload) || !d.isSTUN() {
				t.Errorf("parse = %v > %v %x", d.src, d.dst, d.payload)
			}
		})
	}
}

func TestParseIPv6(t *testing.T) {
	t.Parallel()
	good := appendUDP(nil, addr6, addr7, stunPayload(""))
	d, err := parse(good, true)
	if err != nil {
		t.Fatalf("parse: %v", err)
	}
	if d.src.Port() != 45000 || d.dst.Port() != 4500 || d.src.Addr().IsValid() || !bytes.Equal(d.payload, stunPayload("")) {
		t.Errorf("parse = %+v", d)
	}
	for _, n := range []int{0, 7, len(good) - 1} {
		if _, err := parse(good[:n], true); !errors.Is(err, errNotUDP) {
			t.Errorf("parse of %d bytes: %v; want errNotUDP", n, err)
		}
	}
}

func TestAppendUDPGolden(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name     string
		src, dst netip.AddrPort
		payload  []byte
		want     []byte
	}{
		{
			// c000+0201+c633+6407 + 0011+000a + afc8+1194+000a+6869 = 31625; ^(1625+3) = e9d7
			"IPv4", addrA, addrB, []byte("hi"),
			[]byte{0xaf, 0xc8, 0x11, 0x94, 0x00, 0x0a, 0xe9, 0xd7, 'h', 'i'},
		},
		{
			"a sum of zero is sent as ffff",
			netip.MustParseAddrPort("0.0.0.0:1"), netip.MustParseAddrPort("0.0.0.0:1"),
			[]byte{0xff, 0xd8},
			[]byte{0x00, 0x01, 0x00, 0x01, 0x00, 0x0a, 0xff, 0xff, 0xff, 0xd8},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := appendUDP(nil, tt.src, tt.dst, tt.payload)
			if !bytes.Equal(got, tt.want) {
				t.Errorf("got  %x\nwant %x", got, tt.want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add(ipv4Packet(addrA, addrB, nil, stunPayload("")), false)
	f.Add(ipv4Packet(addrA, addrB, []byte{7, 7, 4, 0, 0, 0, 0, 0}, stunPayload("x")), false)
	f.Add(appendUDP(nil, addr6, addr7, stunPayload("")), true)
	f.Fuzz(func(t *testing.T, b []byte, v6 bool) {
		before := bytes.Clone(b)
		d, err := parse(b, v6)
		if !bytes.Equal(b, before) {
			t.Fatal("parse changed its input")
		}
		if err != nil {
			if !errors.Is(err, errNotUDP) {
				t.Fatalf("error %v is not errNotUDP", err)
			}
			return
		}
		if len(d.payload)+udpHeaderLen > len(b) {
			t.Fatalf("payload of %d bytes out of %d", len(d.payload), len(b))
		}
		if !v6 {
			again, err := parse(ipv4Packet(d.src, d.dst, nil, d.payload), false)
			if err != nil || again.src != d.src || again.dst != d.dst || !bytes.Equal(again.payload, d.payload) {
				t.Fatalf("round trip: %+v, %v; want %+v", again, err, d)
			}
		}
	})
}
