package charon

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/strongswan/govici/vici"
)

const (
	testCert = "-----BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE-----\n"
	testCA   = "-----BEGIN CERTIFICATE-----\nBAUG\n-----END CERTIFICATE-----\n"
	otherCA  = "-----BEGIN CERTIFICATE-----\nBwgJ\n-----END CERTIFICATE-----\n"
	testKey  = "-----BEGIN PRIVATE KEY-----\nAQID\n-----END PRIVATE KEY-----\n"
)

func prefixList(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// render writes a message as text, one key a line.
func render(m *vici.Message, indent string) string {
	var b strings.Builder
	for _, key := range m.Keys() {
		switch v := m.Get(key).(type) {
		case *vici.Message:
			fmt.Fprintf(&b, "%s%s {\n%s%s}\n", indent, key, render(v, indent+"  "), indent)
		case []string:
			fmt.Fprintf(&b, "%s%s = [%s]\n", indent, key, strings.Join(v, " | "))
		default:
			fmt.Fprintf(&b, "%s%s = %s\n", indent, key, v)
		}
	}
	return strings.NewReplacer(testCert, "<cert>", testCA, "<ca>", otherCA, "<other ca>").Replace(b.String())
}

func TestConnectionMessage(t *testing.T) {
	minimal := Connection{
		Name:     "beijing.edge2",
		LocalID:  "C=CN, O=fabedge.io, CN=beijing.edge1",
		RemoteID: "C=CN, O=fabedge.io, CN=beijing.edge2",
		Children: []Child{{Name: "beijing.edge2-p2p", LocalTS: prefixList("10.233.66.0/24"), RemoteTS: prefixList("10.233.67.0/24")}},
	}
	punched := minimal
	punched.LocalAddrs = []string{"10.22.46.30"}
	punched.RemoteAddrs = []string{"203.0.113.9"}
	punched.RemotePort = 61234
	punched.CertPEM = []byte(testCert + testCA) // with its chain: the first is the node's
	punched.CAPEMs = [][]byte{[]byte(testCA + otherCA)}
	punched.Encap = true
	punched.DPDDelay = 1500 * time.Millisecond
	punched.IKERekey = 2 * time.Hour
	punched.ChildRekey = 30 * time.Minute
	punched.IKEProposals = []string{"aes256-sha256-x25519"}
	punched.ESPProposals = []string{"aes256gcm16"}
	punched.Children = append(punched.Children[:1:1],
		Child{Name: "beijing.edge2-p2n", LocalTS: prefixList("10.233.66.0/24", "fd00:66::/64"), RemoteTS: prefixList("10.22.46.28/32")})

	for _, tt := range []struct {
		name string
		conn Connection
		want string
	}{
		{"defaults", minimal, `beijing.edge2 {
  version = 2
  local_addrs = [%any]
  remote_addrs = [%any]
  local_port = 4500
  remote_port = 4500
  encap = no
  mobike = no
  unique = replace
  send_cert = always
  dpd_delay = 60
  rekey_time = 14400
  proposals = [aes128-sha256-x25519 | aes256-sha256-x25519 | aes128-sha256-ecp256 | aes128-sha256-modp3072]
  local {
    auth = pubkey
    id = C=CN, O=fabedge.io, CN=beijing.edge1
  }
  remote {
    auth = pubkey
    id = C=CN, O=fabedge.io, CN=beijing.edge2
  }
  children {
    beijing.edge2-p2p {
      local_ts = [10.233.66.0/24]
      remote_ts = [10.233.67.0/24]
      mode = tunnel
      rekey_time = 3600
      esp_proposals = [aes128gcm16 | aes256gcm16 | aes128-sha256 | aes256-sha256]
      start_action = none
      dpd_action = clear
      close_action = none
    }
  }
}
`},
		{"punched", punched, `beijing.edge2 {
  version = 2
  local_addrs = [10.22.46.30]
  remote_addrs = [203.0.113.9]
  local_port = 4500
  remote_port = 61234
  encap = yes
  mobike = no
  unique = replace
  send_cert = always
  dpd_delay = 2
  rekey_time = 7200
  proposals = [aes256-sha256-x25519]
  local {
    auth = pubkey
    id = C=CN, O=fabedge.io, CN=beijing.edge1
    certs = [<cert>]
  }
  remote {
    auth = pubkey
    id = C=CN, O=fabedge.io, CN=beijing.edge2
    cacerts = [<ca> | <other ca>]
  }
  children {
    beijing.edge2-p2p {
      local_ts = [10.233.66.0/24]
      remote_ts = [10.233.67.0/24]
      mode = tunnel
      rekey_time = 1800
      esp_proposals = [aes256gcm16]
      start_action = none
      dpd_action = clear
      close_action = none
    }
    beijing.edge2-p2n {
      local_ts = [10.233.66.0/24 | fd00:66::/64]
      remote_ts = [10.22.46.28/32]
      mode = tunnel
      rekey_time = 1800
      esp_proposals = [aes256gcm16]
      start_action = none
      dpd_action = clear
      close_action = none
    }
  }
}
`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, err := tt.conn.message()
			if err != nil {
				t.Fatal(err)
			}
			if got := render(m, ""); got != tt.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, tt.want)
			}
		})
	}
}

func TestChildMessage(t *testing.T) {
	child := Child{Name: "c", LocalTS: prefixList("10.0.0.0/24", "fd00::/64"), RemoteTS: prefixList("10.0.1.0/24")}
	marked, check, pass := child, child, child
	marked.MarkIn = Mark{Value: 0x1000_0000, Mask: 0x1000_0000}
	check.Protocol = 253
	pass.Pass = true
	const selectors = "local_ts = [10.0.0.0/24 | fd00::/64]\nremote_ts = [10.0.1.0/24]\n"
	const sa = `mode = tunnel
rekey_time = 3600
esp_proposals = [aes128gcm16 | aes256gcm16 | aes128-sha256 | aes256-sha256]
start_action = none
dpd_action = clear
close_action = none
`
	for _, tt := range []struct {
		name  string
		child Child
		want  string
	}{
		{"marked", marked, selectors + "mark_in = 0x10000000/0x10000000\nset_mark_in = 0x10000000/0x10000000\n" + sa},
		{"one protocol", check, "local_ts = [10.0.0.0/24[253] | fd00::/64[253]]\nremote_ts = [10.0.1.0/24[253]]\n" + sa},
		{"pass", pass, selectors + "mode = pass\nstart_action = trap\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, err := Connection{}.child(tt.child).message()
			must(t, err)
			if got := render(m, ""); got != tt.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, tt.want)
			}
		})
	}
}

func TestConnectionRefusesNonsense(t *testing.T) {
	child := Child{Name: "c", LocalTS: prefixList("10.0.0.0/24"), RemoteTS: prefixList("10.0.1.0/24")}
	good := Connection{Name: "n", LocalID: "CN=a", RemoteID: "CN=b", Children: []Child{child}}
	if _, err := good.message(); err != nil {
		t.Fatalf("good connection: %v", err)
	}
	for _, tt := range []struct {
		name   string
		change func(*Connection)
		words  string
	}{
		{"no name", func(c *Connection) { c.Name = "" }, "name"},
		{"name too long for VICI", func(c *Connection) { c.Name = strings.Repeat("x", 256) }, "255"},
		{"no identity", func(c *Connection) { c.RemoteID = "" }, "identity"},
		{"no children", func(c *Connection) { c.Children = nil }, "no children"},
		{"child twice", func(c *Connection) { c.Children = []Child{child, child} }, `"c" is empty or given twice`},
		{"child without selectors", func(c *Connection) { c.Children = []Child{{Name: "x"}} }, "traffic selectors"},
		{"certificate that is none", func(c *Connection) { c.CertPEM = []byte(testKey) }, "certificate"},
		{"CA that is none", func(c *Connection) { c.CAPEMs = [][]byte{[]byte("x")} }, "CA certificate"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := good
			tt.change(&c)
			_, err := c.message()
			if !errors.Is(err, ErrInvalid) || !strings.Contains(fmt.Sprint(err), tt.words) {
				t.Errorf("error %v, want ErrInvalid that says %q", err, tt.words)
			}
		})
	}
}

func TestCredentialLoads(t *testing.T) {
	creds := Credentials{CertPEM: []byte(testCert + testCA), KeyPEM: []byte(testKey), CAPEMs: [][]byte{[]byte(testCA + otherCA)}}
	loads, err := creds.loads()
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for _, l := range loads {
		m, err := l.args.message()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&got, "%s\n%s", l.command, strings.ReplaceAll(render(m, "  "), testKey, "<key>"))
	}
	want := `load-cert
  type = X509
  flag = NONE
  data = <cert>
load-key
  type = any
  data = <key>
load-cert
  type = X509
  flag = CA
  data = <ca>
load-cert
  type = X509
  flag = CA
  data = <other ca>
`
	if got.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", got.String(), want)
	}

	for name, change := range map[string]func(*Credentials){
		"certificate": func(c *Credentials) { c.CertPEM = []byte(testKey) },
		"private key": func(c *Credentials) { c.KeyPEM = nil },
		"CA":          func(c *Credentials) { c.CAPEMs = [][]byte{nil} },
	} {
		bad := creds
		change(&bad)
		if _, err := bad.loads(); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), name) {
			t.Errorf("bad %s: error %v, want ErrInvalid that says so", name, err)
		}
	}
}
