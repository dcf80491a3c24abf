package lab

import (
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

// tunnel is the swanctl.conf of one end of a tunnel between two nodes.
func tunnel(node, peer string, peerAddr, local, remote string) string {
	dn := func(cn string) string { return fmt.Sprintf(`"C=CN, O=fabedge.io, CN=%s"`, cn) }
	return fmt.Sprintf(`connections {
  peer {
    version = 2
    remote_addrs = %s
    remote_port = 4500
    local_port = 4500
    encap = yes
    mobike = no
    local {
      auth = pubkey
      id = %s
      certs = node.pem
    }
    remote {
      auth = pubkey
      id = %s
    }
    children {
      net {
        local_ts = %s
        remote_ts = %s
        esp_proposals = aes128-sha256
      }
    }
  }
}
`, peerAddr, dn(node), dn(peer), local, remote)
}

func TestTunnelBetweenCharons(t *testing.T) {
	l := newLab(t, Options{})
	hub := addHost(t, l, "hub", HostOptions{})
	r := addRouter(t, l, "router", RouterOptions{NAT: PortRestricted})
	edge := addHost(t, l, "edge", HostOptions{Router: r})
	hubInner, edgeInner := netip.MustParsePrefix("10.233.1.1/24"), netip.MustParsePrefix("10.233.2.1/24")
	for h, inner := range map[*Host]netip.Prefix{hub: hubInner, edge: edgeInner} {
		if err := h.AddAddress(inner); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := hub.StartCharon(CharonOptions{Node: "beijing.hub",
		Swanctl: tunnel("beijing.hub", "beijing.edge", "%any", "10.233.1.0/24", "10.233.2.0/24")}); err != nil {
		t.Fatal(err)
	}
	p, err := edge.StartCharon(CharonOptions{Node: "beijing.edge",
		Swanctl: tunnel("beijing.edge", "beijing.hub", hub.Addr().String(), "10.233.2.0/24", "10.233.1.0/24")})
	if err != nil {
		t.Fatal(err)
	}
	if out, err := edge.Swanctl(t.Context(), "--initiate", "--child", "net", "--timeout", "20"); err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, p.Log())
	}
	result, err := edge.Ping(t.Context(), hubInner.Addr(), 10, 10*time.Millisecond, edgeInner.Addr())
	if err != nil || result.Received != 10 {
		t.Errorf("ping through the tunnel: %+v, %v", result, err)
	}
	if out, err := hub.Swanctl(t.Context(), "--list-sas"); err != nil || !strings.Contains(out, "INSTALLED, TUNNEL-in-UDP") {
		t.Errorf("hub lists no tunnel: %v\n%s", err, out)
	}

	// In order, the hub is told; as a crash, it is not.
	if err := edge.StopCharon(); err != nil {
		t.Fatal(err)
	}
	until(t, "the hub drops the tunnel", func() bool {
		out, err := hub.Swanctl(t.Context(), "--list-sas")
		return err == nil && strings.TrimSpace(out) == ""
	})
}

func TestCharonLifecycle(t *testing.T) {
	l := newLab(t, Options{})
	h := addHost(t, l, "host", HostOptions{})
	first, err := h.StartCharon(CharonOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.StartCharon(CharonOptions{}); err == nil {
		t.Error("two charons started on one host")
	}
	for _, port := range []uint16{500, 4500} {
		if conn, err := h.ListenUDP(netip.AddrPortFrom(h.Addr(), port)); err == nil {
			conn.Close()
			t.Errorf("charon does not hold udp port %d", port)
		}
	}
	h.KillCharon()
	if !first.ended() {
		t.Error("KillCharon returned before charon was gone")
	}
	if _, err := h.StartCharon(CharonOptions{Strongswan: "charon {\n port_nat_t = 14500\n}"}); err != nil {
		t.Fatalf("start after a crash: %v", err)
	}
	if conn, err := h.ListenUDP(netip.AddrPortFrom(h.Addr(), 14500)); err == nil {
		conn.Close()
		t.Error("the strongswan.conf given was not heeded")
	}
	broken := addHost(t, l, "broken", HostOptions{})
	if _, err := broken.StartCharon(CharonOptions{Swanctl: "connections { } }"}); err == nil {
		t.Error("a broken swanctl.conf was accepted")
	}
}

func TestIssuedCertificates(t *testing.T) {
	p, err := NewPKI(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := NewPKI(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []KeyKind{"", RSA2048, ECDSAP256} {
		certPath, keyPath, err := p.Issue("beijing.edge1", CertOptions{Key: kind, Addrs: []netip.Addr{netip.MustParseAddr("203.0.113.1")}})
		if err != nil {
			t.Fatal(err)
		}
		pair, err := tls.LoadX509KeyPair(certPath, keyPath)
		if err != nil {
			t.Fatal(err)
		}
		if _, isDefault := pair.PrivateKey.(ed25519.PrivateKey); isDefault != (kind == "") {
			t.Errorf("key kind %q: got %T", kind, pair.PrivateKey)
		}
		if got := pair.Leaf.Subject.ToRDNSequence().String(); got != "CN=beijing.edge1,O=fabedge.io,C=CN" {
			t.Errorf("subject %s", got) // RFC 2253 prints the last RDN first
		}
		for _, name := range []string{"beijing.edge1", "203.0.113.1"} {
			for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
				opts := x509.VerifyOptions{DNSName: name, Roots: pool(t, p), KeyUsages: []x509.ExtKeyUsage{usage}}
				if _, err := pair.Leaf.Verify(opts); err != nil {
					t.Errorf("verify for %s: %v", name, err)
				}
			}
		}
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: pool(t, stranger)}); err == nil {
			t.Error("a stranger's authority vouches for the certificate")
		}
	}
	if _, _, err := p.Issue("node", CertOptions{Key: "dsa"}); err == nil {
		t.Error("an unknown kind of key was accepted")
	}
}

func pool(t *testing.T, p *PKI) *x509.CertPool {
	t.Helper()
	text, err := os.ReadFile(p.CAPath())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		t.Fatalf("no certificate in %s", p.CAPath())
	}
	return roots
}
