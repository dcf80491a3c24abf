package portmap

import (
	"encoding/hex"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	testClient  = netip.MustParseAddr("192.168.1.2")
	testOutside = netip.MustParseAddrPort("203.0.113.7:4501")
	testNonce   = nonce{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Packets as the RFCs draw them.
const (
	mappedClient = "00000000000000000000ffff c0a80102"
	// A MAP reply: success, 7200 s, epoch 100, inside 4500, outside 203.0.113.7:4501.
	pcpMapReply   = "02810000 00001c20 00000064 000000000000000000000000" + "0102030405060708090a0b0c 11000000 1194 1195 00000000000000000000ffff cb007107"
	pcpAnnReply   = "02800000 00000000 00000064 000000000000000000000000"
	natpmpReply12 = "0080 0000 00000064 cb007107"
	natpmpReply16 = "0081 0000 00000064 1194 1195 00001c20"
)

func TestRequests(t *testing.T) {
	tests := []struct {
		name string
		got  []byte
		want string
	}{
		{"PCP ANNOUNCE", pcpAnnounce(testClient), "02000000 00000000" + mappedClient},
		{"PCP MAP", pcpMapRequest(testClient, requestedLifetime, pcpMap{testNonce, 4500, testOutside}),
			"02010000 00001c20" + mappedClient + "0102030405060708090a0b0c 11000000 1194 1195 00000000000000000000ffff cb007107"},
		{"PCP MAP, no wish", pcpMapRequest(testClient, 0, pcpMap{nonce: testNonce, inside: 4500}),
			"02010000 00000000" + mappedClient + "0102030405060708090a0b0c 11000000 1194 0000 00000000000000000000ffff 00000000"},
		{"NAT-PMP address", natpmpAddressRequest(), "0000"},
		{"NAT-PMP map", natpmpMapRequest(4500, 4501, requestedLifetime), "00010000 1194 1195 00001c20"},
	}
	for _, tt := range tests {
		if want := unhex(t, tt.want); !slices.Equal(tt.got, want) {
			t.Errorf("%s:\n%x, want\n%x", tt.name, tt.got, want)
		}
	}
}

func TestParsePCP(t *testing.T) {
	got, err := parsePCP(unhex(t, pcpMapReply))
	want := pcpReply{opcode: opMap, lifetime: 2 * time.Hour, epoch: 100, pcpMap: pcpMap{testNonce, 4500, testOutside}}
	if err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	got, err = parsePCP(unhex(t, pcpAnnReply))
	if want := (pcpReply{opcode: opAnnounce, epoch: 100}); err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	refusal := unhex(t, pcpMapReply)
	refusal[3] = 11
	if got, err = parsePCP(refusal); err != nil || got.result != 11 {
		t.Errorf("got %+v, %v; want result 11", got, err)
	}
	if err := got.result.err("PCP"); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "CANNOT_PROVIDE_EXTERNAL") {
		t.Errorf("result 11 reads %v", err)
	}
	for name, text := range map[string]string{
		"NAT-PMP alone":   "0080 0001 00000064",
		"another version": "01800001" + strings.Repeat("00", 20),
	} {
		if _, err := parsePCP(unhex(t, text)); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v, want %v", name, err, ErrRefused)
		}
	}
	for name, b := range map[string][]byte{
		"nothing":     nil,
		"short":       unhex(t, pcpAnnReply)[:23],
		"no fourfold": append(unhex(t, pcpMapReply), 0),
		"too long":    make([]byte, maxReply+4),
		"a request":   pcpAnnounce(testClient),
		"half a map":  unhex(t, pcpMapReply)[:40],
		"TCP":         unhex(t, strings.Replace(pcpMapReply, "11000000", "06000000", 1)),
		"version 3":   unhex(t, "03"+pcpMapReply[2:]),
	} {
		if _, err := parsePCP(b); !errors.Is(err, errNonsense) {
			t.Errorf("%s: %v, want %v", name, err, errNonsense)
		}
	}
}

func TestParseNATPMP(t *testing.T) {
	tests := []struct {
		text string
		want natpmpReply
	}{
		{natpmpReply12, natpmpReply{opcode: opAddress, epoch: 100, addr: testOutside.Addr()}},
		{natpmpReply16, natpmpReply{opcode: opMapUDP, epoch: 100, inside: 4500, outside: 4501, lifetime: 2 * time.Hour}},
		{"0081 0002 00000064", natpmpReply{opcode: opMapUDP, result: 2, epoch: 100}},
	}
	for _, tt := range tests {
		if got, err := parseNATPMP(unhex(t, tt.text)); err != nil || got != tt.want {
			t.Errorf("%s: %+v, %v; want %+v", tt.text, got, err, tt.want)
		}
	}
	for name, text := range map[string]string{
		"nothing": "", "short": "0080 0000 000000", "a request": "0001 0000 1194 1195 00001c20",
		"PCP": pcpAnnReply, "address cut off": "0080 0000 00000064 cb0071", "map of an address": "0081 0000 00000064 cb007107",
		"unknown opcode": "0082 0000 00000064 1194 1195 00001c20",
	} {
		if _, err := parseNATPMP(unhex(t, text)); !errors.Is(err, errNonsense) {
			t.Errorf("%s: %v, want %v", name, err, errNonsense)
		}
	}
}

func TestParseSearchReply(t *testing.T) {
	at, err := parseSearchReply([]byte("HTTP/1.1 200 OK\r\nST: x\r\nlocation: http://192.168.1.1:5000/d.xml\r\n\r\n"))
	if err != nil || at.String() != "http://192.168.1.1:5000/d.xml" {
		t.Errorf("got %v, %v", at, err)
	}
	for _, text := range []string{
		"", "\r\n", "NOTIFY * HTTP/1.1\r\nLocation: http://192.168.1.1/\r\n\r\n",
		"HTTP/1.1 404 Not Found\r\nLocation: http://192.168.1.1/\r\n\r\n",
		"HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\nLocation: file:///etc/passwd\r\n\r\n",
		"HTTP/1.1 200 OK\r\nLocation: http:///x\r\n\r\n", "HTTP/1.1 200 OK\r\nLocation: ://\r\n\r\n",
	} {
		if at, err := parseSearchReply([]byte(text)); !errors.Is(err, errNonsense) {
			t.Errorf("%q: %v, %v; want %v", text, at, err, errNonsense)
		}
	}
}

func TestGranted(t *testing.T) {
	for text, ok := range map[string]bool{
		"203.0.113.7:4500": true, "100.64.0.9:4500": true, "10.0.0.1:1": true,
		"203.0.113.7:0": false, "0.0.0.0:4500": false, "127.0.0.1:4500": false, "224.0.0.1:4500": false,
		"255.255.255.255:4500": false, "169.254.1.1:4500": false, "[2001:db8::1]:4500": false,
	} {
		m, err := granted("PCP", netip.MustParseAddrPort(text), time.Hour)
		if ok != (err == nil) || !ok && !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %+v, %v; want it granted: %t", text, m, err, ok)
		}
	}
	if _, err := granted("PCP", testOutside, 0); !errors.Is(err, ErrRefused) {
		t.Errorf("a lifetime of zero: %v", err)
	}
	if m, err := granted("PCP", testOutside, seconds(1<<32-1)); err != nil || m.Lifetime != longestLifetime {
		t.Errorf("136 years: %+v, %v; want %s", m, err, longestLifetime)
	}
}

func TestEpoch(t *testing.T) {
	tests := []struct {
		name          string
		elapsed       time.Duration
		before, after uint32
		lost          bool
	}{
		{"same moment", 0, 100, 100, false},
		{"in step", time.Hour, 100, 3700, false},
		{"a second back", 0, 100, 99, false},
		{"two seconds back", 0, 100, 98, true},
		{"rebooted", time.Minute, 5000, 20, true},
		{"rebooted when it was young", time.Hour, 10, 300, true},
		{"slow by less than a sixteenth", 1600 * time.Second, 0, 1501, false},
		{"fast by less than a sixteenth", 1600 * time.Second, 0, 1700, false},
		{"far ahead", time.Minute, 100, 100000, true},
	}
	for _, tt := range tests {
		var e epoch
		start := time.Unix(1_000_000, 0)
		if err := e.observe(start, tt.before); err != nil {
			t.Errorf("%s: the first: %v", tt.name, err)
		}
		if err := e.observe(start.Add(tt.elapsed), tt.after); errors.Is(err, errLost) != tt.lost {
			t.Errorf("%s: %v, want lost: %t", tt.name, err, tt.lost)
		}
		if err := e.observe(start.Add(tt.elapsed), tt.after); err != nil {
			t.Errorf("%s: told twice: %v", tt.name, err)
		}
	}
}

func TestNonce(t *testing.T) {
	a, b := netip.MustParseAddr("192.168.1.1"), netip.MustParseAddr("192.168.2.1")
	first, again := newNonce([]byte("s"), a), newNonce([]byte("s"), a)
	if first != again {
		t.Error("one secret, one router, two nonces")
	}
	if first == newNonce([]byte("s"), b) || first == newNonce([]byte("r"), a) {
		t.Error("another router or another secret, the same nonce")
	}
	first, again = newNonce(nil, a), newNonce(nil, a)
	if first == again {
		t.Error("without a secret the nonce repeats")
	}
}

// What is accepted can be told from what was asked, and no input is worse than
// ignored. The corpus is in testdata.
func FuzzParsePCP(f *testing.F) {
	f.Add(unhex(f, pcpMapReply))
	f.Add(unhex(f, pcpAnnReply))
	f.Add(unhex(f, natpmpReply12))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parsePCP(b)
		if err != nil {
			if !errors.Is(err, errNonsense) && !errors.Is(err, ErrRefused) {
				t.Fatalf("error of no kind: %v", err)
			}
			return
		}
		if len(b) < pcpHeader || len(b) > maxReply || b[0] != pcpVersion || r.opcode == opMap && len(b) < pcpMapLength {
			t.Fatalf("accepted %x as %+v", b, r)
		}
	})
}

func FuzzParseNATPMP(f *testing.F) {
	f.Add(unhex(f, natpmpReply12))
	f.Add(unhex(f, natpmpReply16))
	f.Add(unhex(f, pcpAnnReply))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseNATPMP(b)
		if err != nil {
			if !errors.Is(err, errNonsense) {
				t.Fatalf("error of no kind: %v", err)
			}
			return
		}
		if b[0] != natpmpVersion || b[1]&replyBit == 0 || r.result == 0 && len(b) != addressReply && len(b) != mapReplyLength {
			t.Fatalf("accepted %x as %+v", b, r)
		}
	})
}

func FuzzParseSearchReply(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nST: x\r\nLOCATION: http://192.168.1.1:5000/d.xml\r\n\r\n"))
	f.Add([]byte("NOTIFY * HTTP/1.1\r\nLOCATION: http://192.168.1.1:5000/d.xml\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if at, err := parseSearchReply(b); err == nil && (at.Scheme != "http" || at.Host == "") {
			t.Fatalf("accepted %q, which leads to %v", b, at)
		}
	})
}
