package charon

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

// articleSA is what charon lists for the tunnel of FabEdge's v0.8.0 article, of
// which articleListing is the printed form.
var articleSA = section{
	{"uniqueid", "2"}, {"version", "2"}, {"state", "ESTABLISHED"},
	{"local-host", "10.22.46.30"}, {"local-port", "4500"}, {"local-id", "C=CN, O=fabedge.io, CN=beijing.edge1"},
	{"remote-host", "10.40.20.181"}, {"remote-port", "45000"}, {"remote-id", "C=CN, O=fabedge.io, CN=beijing.connector"},
	{"initiator", "yes"}, {"initiator-spi", "aedd33719dd60b73"}, {"responder-spi", "1290e9570d67a570"},
	{"nat-remote", "yes"}, {"nat-any", "yes"},
	{"encr-alg", "AES_CBC"}, {"encr-keysize", "128"}, {"integ-alg", "HMAC_SHA2_256_128"},
	{"prf-alg", "PRF_HMAC_SHA2_256"}, {"dh-group", "CURVE_25519"},
	{"established", "2682"}, {"rekey-time", "10461"},
	{"child-sas", section{{"beijing.connector-p2p-1", section{
		{"name", "beijing.connector-p2p"}, {"uniqueid", "1"}, {"reqid", "1"}, {"state", "INSTALLED"},
		{"mode", "TUNNEL"}, {"protocol", "ESP"}, {"encap", "yes"},
		{"spi-in", "c056eddc"}, {"spi-out", "cba5947a"},
		{"encr-alg", "AES_GCM_16"}, {"encr-keysize", "128"},
		{"bytes-in", "0"}, {"packets-in", "0"}, {"bytes-out", "0"}, {"packets-out", "0"},
		{"rekey-time", "599"}, {"life-time", "1279"}, {"install-time", "2682"},
		{"local-ts", []string{"10.233.66.0/24"}},
		{"remote-ts", []string{"10.233.0.0/18", "10.233.64.0/24", "10.233.65.0/24"}},
	}}}},
}

const articleListing = `beijing.connector: #2, ESTABLISHED, IKEv2, aedd33719dd60b73_i* 1290e9570d67a570_r
  local  'C=CN, O=fabedge.io, CN=beijing.edge1' @ 10.22.46.30[4500]
  remote 'C=CN, O=fabedge.io, CN=beijing.connector' @ 10.40.20.181[45000]
  AES_CBC-128/HMAC_SHA2_256_128/PRF_HMAC_SHA2_256/CURVE_25519
  established 2682s ago, rekeying in 10461s
  beijing.connector-p2p: #1, reqid 1, INSTALLED, TUNNEL-in-UDP, ESP:AES_GCM_16-128
    installed 2682s ago, rekeying in 599s, expires in 1279s
    in  c056eddc,      0 bytes,     0 packets
    out cba5947a,      0 bytes,     0 packets
    local  10.233.66.0/24
    remote 10.233.0.0/18 10.233.64.0/24 10.233.65.0/24
`

func parse(t *testing.T, name string, s section) (SA, error) {
	t.Helper()
	m, err := s.message()
	if err != nil {
		t.Fatal(err)
	}
	return parseSA(name, m)
}

func TestParseSA(t *testing.T) {
	got, err := parse(t, "beijing.connector", articleSA)
	if err != nil {
		t.Fatal(err)
	}
	want := SA{
		Name: "beijing.connector", ID: 2, Version: "2", State: StateEstablished, Initiator: true,
		InitiatorSPI: 0xaedd33719dd60b73, ResponderSPI: 0x1290e9570d67a570,
		Local: netip.MustParseAddrPort("10.22.46.30:4500"), Remote: netip.MustParseAddrPort("10.40.20.181:45000"),
		LocalID: "C=CN, O=fabedge.io, CN=beijing.edge1", RemoteID: "C=CN, O=fabedge.io, CN=beijing.connector",
		RemoteNAT: true,
		Algorithms: Algorithms{Encryption: "AES_CBC", EncryptionBits: "128", Integrity: "HMAC_SHA2_256_128",
			PRF: "PRF_HMAC_SHA2_256", KeyExchange: "CURVE_25519"},
		EstablishedFor: 2682 * time.Second, RekeyIn: 10461 * time.Second, ReauthIn: Never, ExpiresIn: Never,
		Children: []ChildSA{{
			Name: "beijing.connector-p2p", ID: 1, ReqID: 1, State: StateInstalled, Mode: "TUNNEL", Protocol: "ESP", Encap: true,
			SPIIn: 0xc056eddc, SPIOut: 0xcba5947a, LastIn: Never, LastOut: Never,
			Algorithms:   Algorithms{Encryption: "AES_GCM_16", EncryptionBits: "128"},
			InstalledFor: 2682 * time.Second, RekeyIn: 599 * time.Second, ExpiresIn: 1279 * time.Second,
			LocalTS: []Selector{"10.233.66.0/24"}, RemoteTS: []Selector{"10.233.0.0/18", "10.233.64.0/24", "10.233.65.0/24"},
		}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// A clock that was set back makes charon write a time since the last packet that
// is negative, and unsigned.
func TestParseSAAfterClockStep(t *testing.T) {
	sa, err := parse(t, "edge", section{{"child-sas", section{{"c-1", section{{"use-out", "18446744073709533616"}, {"use-in", "7"}}}}}})
	if err != nil {
		t.Fatal(err)
	}
	if c := sa.Children[0]; c.LastOut != -18000*time.Second || c.LastIn != 7*time.Second {
		t.Errorf("last out %v, in %v; want -5h and 7s", c.LastOut, c.LastIn)
	}
}

func TestParseSARefusesNonsense(t *testing.T) {
	for _, bad := range []entry{
		{"uniqueid", "-1"}, {"initiator-spi", "xyz"}, {"remote-host", "nowhere"}, {"remote-port", "70000"},
		{"established", "soon"}, {"child-sas", section{{"c-1", section{{"bytes-in", "many"}}}}},
	} {
		_, err := parse(t, "edge", section{bad})
		key := bad.key
		if key == "child-sas" {
			key = "bytes-in"
		}
		if err == nil || !strings.Contains(err.Error(), key) || !strings.Contains(err.Error(), "edge") {
			t.Errorf("%s = %v: error %v, want one that names the SA and %s", bad.key, bad.value, err, key)
		}
	}
}

func TestFormat(t *testing.T) {
	article, err := parse(t, "beijing.connector", articleSA)
	if err != nil {
		t.Fatal(err)
	}
	connecting, err := parse(t, "beijing.edge2", section{
		{"uniqueid", "3"}, {"version", "2"}, {"state", "CONNECTING"},
		{"local-host", "%any"}, {"local-port", "4500"}, {"local-id", "%any"},
		{"remote-host", "2001:db8::2"}, {"remote-port", "4500"}, {"remote-id", "%any"},
		{"initiator-spi", "0a"}, {"responder-spi", "0"},
	})
	if err != nil {
		t.Fatal(err)
	}
	busy := article
	busy.Children = []ChildSA{article.Children[0]}
	c := &busy.Children[0]
	c.Encap, c.BytesIn, c.PacketsIn, c.LastIn = false, 1234567, 890, 0
	c.BytesOut, c.PacketsOut, c.LastOut = 84, 1, 12*time.Second

	busyListing := strings.NewReplacer(
		"TUNNEL-in-UDP", "TUNNEL",
		"in  c056eddc,      0 bytes,     0 packets", "in  c056eddc, 1234567 bytes,   890 packets,     0s ago",
		"out cba5947a,      0 bytes,     0 packets", "out cba5947a,     84 bytes,     1 packets,    12s ago",
	).Replace(articleListing)

	for _, tt := range []struct {
		name string
		sas  []SA
		want string
	}{
		{"none", nil, ""},
		{"the article's", []SA{article}, articleListing},
		{"with traffic, then one that connects", []SA{busy, connecting}, busyListing +
			`beijing.edge2: #3, CONNECTING, IKEv2, 000000000000000a_i 0000000000000000_r*
  local  '%any' @ %any[4500]
  remote '%any' @ 2001:db8::2[4500]
`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var b strings.Builder
			if err := Format(&b, tt.sas); err != nil {
				t.Fatal(err)
			}
			if b.String() != tt.want {
				t.Errorf("got:\n%s\nwant:\n%s", b.String(), tt.want)
			}
		})
	}
}

func TestSelectorPrefix(t *testing.T) {
	for s, want := range map[Selector]bool{
		"10.233.66.0/24": true, "fd00::/64": true, "dynamic": false,
		"10.0.0.1..10.0.0.5": false, "10.0.0.1/32[udp/53]": false,
	} {
		p, ok := s.Prefix()
		if ok != want || ok && p.String() != string(s) {
			t.Errorf("%q: prefix %s, %v; want %v", s, p, ok, want)
		}
	}
}
