package rendezvous

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"testing"

	"github.com/pion/stun/v4"
)

func stunTestPlaces(at ...string) stunPlaces {
	var p stunPlaces
	for i, a := range at {
		p[i] = netip.MustParseAddrPort(a)
	}
	return p
}

var (
	stunOneAddress   = stunTestPlaces("198.51.100.1:3478", "198.51.100.1:3479", "198.51.100.1:3480", "198.51.100.1:3481")
	stunTwoAddresses = stunTestPlaces("198.51.100.1:3478", "198.51.100.2:3478", "198.51.100.1:3480", "198.51.100.2:3480")
	stunAllAddresses = stunTestPlaces("[::]:3478", "[::]:3479", "[::]:3480", "[::]:3481")
)

// RFC 5780 Section 6.1, the table of where a response comes from.
func TestSTUNAnswersFrom(t *testing.T) {
	t.Parallel()
	const refused = ""
	tests := []struct {
		name    string
		places  stunPlaces
		asked   string
		sources [4]string // by flags: none, change-port, change-IP, both
		other   string
	}{
		{
			"one address, first port", stunOneAddress, "198.51.100.1:3478",
			[4]string{"198.51.100.1:3478", "198.51.100.1:3480", refused, refused}, "198.51.100.1:3480",
		},
		{
			"one address, second port", stunOneAddress, "198.51.100.1:3479",
			[4]string{"198.51.100.1:3479", "198.51.100.1:3481", refused, refused}, "198.51.100.1:3481",
		},
		{
			"one address, second alternate", stunOneAddress, "198.51.100.1:3481",
			[4]string{"198.51.100.1:3481", "198.51.100.1:3479", refused, refused}, "198.51.100.1:3479",
		},
		{
			"all addresses", stunAllAddresses, "203.0.113.9:3478",
			[4]string{"203.0.113.9:3478", "203.0.113.9:3480", refused, refused}, "203.0.113.9:3480",
		},
		{
			"two addresses, the first", stunTwoAddresses, "198.51.100.1:3478",
			[4]string{"198.51.100.1:3478", "198.51.100.1:3480", "198.51.100.2:3478", "198.51.100.2:3480"}, "198.51.100.2:3480",
		},
		{
			"two addresses, alternate of the second", stunTwoAddresses, "198.51.100.2:3480",
			[4]string{"198.51.100.2:3480", "198.51.100.2:3478", "198.51.100.1:3480", "198.51.100.1:3478"}, "198.51.100.1:3478",
		},
		{
			"two addresses with ports of their own",
			stunTestPlaces("198.51.100.1:3478", "198.51.100.2:3479", "198.51.100.1:3480", "198.51.100.2:3481"), "198.51.100.1:3478",
			[4]string{"198.51.100.1:3478", "198.51.100.1:3480", "198.51.100.2:3479", "198.51.100.2:3481"}, "198.51.100.2:3481",
		},
		{
			"an address of each family",
			stunTestPlaces("198.51.100.1:3478", "[2001:db8::2]:3478", "198.51.100.1:3480", "[2001:db8::2]:3480"), "[2001:db8::2]:3478",
			[4]string{"[2001:db8::2]:3478", "[2001:db8::2]:3480", refused, refused}, "[2001:db8::2]:3480",
		},
		{
			"one address beside all",
			stunTestPlaces("198.51.100.1:3478", "0.0.0.0:3479", "198.51.100.1:3480", "0.0.0.0:3481"), "198.51.100.3:3479",
			[4]string{"198.51.100.3:3479", "198.51.100.3:3481", refused, refused}, "198.51.100.3:3481",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			local := netip.MustParseAddrPort(tt.asked)
			asked := -1
			for i := range tt.places {
				if tt.places.source(i, local) == local {
					asked = i
				}
			}
			for i, want := range tt.sources {
				flags := []uint32{0, changePort, changeIP, changeIP | changePort}[i]
				got := refused
				if via, ok := tt.places.via(asked, flags); ok {
					got = tt.places.source(via, local).String()
				}
				if got != want {
					t.Errorf("flags %#x: from %q, want %q", flags, got, want)
				}
			}
			if got := tt.places.source(tt.places.other(asked), local).String(); got != tt.other {
				t.Errorf("OTHER-ADDRESS %s, want %s", got, tt.other)
			}
		})
	}
}

func TestSTUNBehaviourGolden(t *testing.T) {
	t.Parallel()
	const (
		header       = " 2112a442 0102030405060708090a0b0c "
		user         = "0006 0002 73310000"
		mapped       = "0020 0008 0001 a147 e112a643"
		mapped6      = "0020 0014 0002 a147 0113a9fa 0102030405060708090a0b0d"
		fromAsked    = "802b 0008 0001 0d96 c6336401"
		from3480     = "802b 0008 0001 0d98 c6336401"
		from2        = "802b 0008 0001 0d98 c6336402"
		other3480    = "802c 0008 0001 0d98 c6336401"
		other2       = "802c 0008 0001 0d98 c6336402"
		software8    = "8022 0008 6e657463 6865636b"
		refuseChange = "0111 0010" + header + "0009 0004 00000414 000a 0002 00030000"
	)
	back := stunTestSrc
	tests := []struct {
		name          string
		places        stunPlaces
		src           netip.AddrPort
		request, want string
		via           int
		to            netip.AddrPort
	}{
		{
			"a stranger's CHANGE-REQUEST", stunOneAddress, stunTestSrc,
			"0001 0008" + header + "0003 0004 00000002",
			"0101 000c" + header + mapped, 2, back,
		},
		{
			"a stranger's CHANGE-REQUEST, padded", stunOneAddress, stunTestSrc,
			"0001 0014" + header + "0003 0004 00000002" + software8,
			"0101 0024" + header + mapped + from3480 + other3480, 2, back,
		},
		{
			"padded by as much as it takes", stunOneAddress, stunTestSrc,
			"0001 000c" + header + software8,
			"0101 0024" + header + mapped + fromAsked + other3480, 0, back,
		},
		{
			"padded by one word less", stunOneAddress, stunTestSrc,
			"0001 0008" + header + "8022 0004 6e657463",
			"0101 000c" + header + mapped, 0, back,
		},
		{
			"padded, IPv6", stunTestPlaces("[2001:db8::9]:3478", "[2001:db8::9]:3479", "[2001:db8::9]:3480", "[2001:db8::9]:3481"), stunTestSrc6,
			"0001 0030" + header + "8022 002c" + hex.EncodeToString(make([]byte, 44)),
			"0101 0048" + header + mapped6 + "802b 0014 0002 0d96 20010db8 00000000 00000000 00000009" +
				"802c 0014 0002 0d98 20010db8 00000000 00000000 00000009", 0, stunTestSrc6,
		},
		{
			"change IP, one address", stunOneAddress, stunTestSrc,
			"0001 0008" + header + "0003 0004 00000004",
			refuseChange, 0, back,
		},
		{
			"change both, one address", stunOneAddress, stunTestSrc,
			"0001 0008" + header + "0003 0004 00000006",
			refuseChange, 0, back,
		},
		{
			"change both, two addresses", stunTwoAddresses, stunTestSrc,
			"0001 0014" + header + "0003 0004 00000006" + software8,
			"0101 0024" + header + mapped + from2 + other2, 3, back,
		},
		{
			"malformed CHANGE-REQUEST", stunOneAddress, stunTestSrc,
			"0001 0008" + header + "0003 0002 00020000",
			"0111 0008" + header + "0009 0004 00000400", 0, back,
		},
		{
			"a stranger's RESPONSE-PORT", stunOneAddress, stunTestSrc,
			"0001 0008" + header + "0027 0004 9c400000",
			"0111 0010" + header + "0009 0004 00000414 000a 0002 00270000", 0, back,
		},
		{
			"RESPONSE-PORT 40000 from the alternate", stunOneAddress, stunTestSrc,
			"0001 0030" + header + user + "0003 0004 00000002" + "0027 0004 9c400000" +
				"0008 0014 05feacf9f80719dfe6cc98ab6e4f4a90356ca999",
			"0101 003c" + header + mapped + from3480 + other3480 +
				"0008 0014 609c244ecfbee4b50b29268d093623a1dcc2843c", 2, netip.MustParseAddrPort("192.0.2.1:40000"),
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			v := stunTestAnswerer.handle(stunRequest{
				raw: stunBytes(tt.request), src: tt.src, local: tt.places[0], places: tt.places, at: stunEpoch,
			})
			if !bytes.Equal(v.response, stunBytes(tt.want)) {
				t.Errorf("response %x\nwant     %x", v.response, stunBytes(tt.want))
			}
			if v.via != tt.via || v.to != tt.to {
				t.Errorf("from socket %d to %s, want %d to %s", v.via, v.to, tt.via, tt.to)
			}
		})
	}
}

func TestSTUNResponsePort(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		value []byte // nil: absent
		port  uint16
		ok    bool
	}{
		{"absent", nil, 5, true},
		{"padding counted", []byte{0x9c, 0x40, 0, 0}, 40000, true},
		{"padding not counted", []byte{0x9c, 0x40}, 40000, true},
		{"padding is not looked at", []byte{0, 1, 2, 3}, 1, true},
		{"port 0", []byte{0, 0, 0, 0}, 0, false},
		{"empty", []byte{}, 0, false},
		{"too long", []byte{0x9c, 0x40, 0, 0, 0}, 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			req := stun.MustBuild(testTransaction, stun.BindingRequest)
			if tt.value != nil {
				req.Add(stun.AttrResponsePort, tt.value)
			}
			port, ok := responsePort(req, 5)
			if ok != tt.ok || ok && port != tt.port {
				t.Errorf("%d, %v, want %d, %v", port, ok, tt.port, tt.ok)
			}
		})
	}
}
