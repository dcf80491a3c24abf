package e2e

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

// issue makes the CA give a node another certificate in the place of the one it
// has, and returns it.
func issue(t *testing.T, c *Cluster, n *Node) *x509.Certificate {
	t.Helper()
	path, _, err := c.PKI().Issue(n.Name, lab.CertOptions{})
	must(t, err)
	text, err := os.ReadFile(path)
	must(t, err)
	block, _ := pem.Decode(text)
	cert, err := x509.ParseCertificate(block.Bytes)
	must(t, err)
	return cert
}

// waitCertificate waits until a node's agent says what satisfies cond.
func waitCertificate(ctx context.Context, t *testing.T, c *Cluster, n *Node, what string, cond func(Certificate) bool) {
	t.Helper()
	var last Certificate
	err := c.until(ctx, n.Name+": "+what, func() (bool, error) {
		s, err := n.Status(ctx)
		last = s.Certificate
		return err == nil && cond(last), nil
	})
	if err != nil {
		t.Fatalf("%v; last seen %+v", err, last)
	}
}

// shown reports whether a node's charon knows a certificate of that serial.
func shown(ctx context.Context, t *testing.T, n *Node, cert *x509.Certificate) bool {
	t.Helper()
	out, err := n.Swanctl(ctx, "--list-certs", "--subject", "C=CN, O=fabedge.io, CN="+cert.DNSNames[0])
	must(t, err)
	for line := range strings.Lines(out) {
		if serial, ok := strings.CutPrefix(strings.TrimSpace(line), "serial:"); ok &&
			strings.ReplaceAll(strings.TrimSpace(serial), ":", "") == fmt.Sprintf("%02x", cert.SerialNumber) {
			return true
		}
	}
	return false
}

// TestRenewal: new certificates are taken without a restart and without a lost
// ping, and are what peers and rendezvous see from then on.
func TestRenewal(t *testing.T) {
	ctx, c := start(t, ClusterOptions{})
	a, b, _ := trio(ctx, t, c)
	check := undisturbed(ctx, t, c, a, b)
	before := established(ctx, t, a)
	renewed := map[*Node]*x509.Certificate{}
	sent, lost := streams(ctx, t, func() {
		for _, n := range []*Node{a, b, c.Connector} {
			renewed[n] = issue(t, c, n)
			must(t, n.Agent().Signal(syscall.SIGHUP))
			waitCertificate(ctx, t, c, n, "the new certificate is in use", func(got Certificate) bool {
				return got.Problem == "" && got.Serial == fmt.Sprintf("%x", renewed[n].SerialNumber)
			})
			must(t, c.until(ctx, n.Name+" has given it to all connections", func() (bool, error) {
				return strings.Count(n.Agent().Log(), "connection loaded again") >= 3, nil
			}))
		}
	}, [2]*Node{a, b}, [2]*Node{a, c.Connector})
	if lost > 0 {
		t.Errorf("%d of %d pings lost", lost, sent)
	}
	if after := established(ctx, t, a); after != before {
		t.Errorf("IKE SAs changed from %q to %q: a renewal shall not touch them", before, after)
	}
	check()

	for _, peer := range []*Node{b, c.Connector} {
		if shown(ctx, t, peer, renewed[a]) {
			t.Fatalf("%s knows the new certificate of %s already: what follows would prove nothing", peer.Name, a.Name)
		}
		if out, err := a.Swanctl(ctx, "--terminate", "--ike", peer.Name); err != nil {
			t.Fatal(err, out)
		}
		must(t, c.until(ctx, "the tunnel is made anew with the new certificates", func() (bool, error) {
			return shown(ctx, t, peer, renewed[a]) && shown(ctx, t, a, renewed[peer]), nil
		}))
		direct(ctx, t, c, a, peer)
		pings(ctx, t, a, peer)
	}
	must(t, c.RestartRendezvous(ctx, nil))
	must(t, c.until(ctx, "the rendezvous sees the new certificate", func() (bool, error) {
		nodes, err := c.Nodes(ctx)
		sum := sha256.Sum256(renewed[a].Raw)
		for _, n := range nodes {
			if n.Name == a.Name && n.Online && n.Fingerprint == hex.EncodeToString(sum[:]) {
				return true, err
			}
		}
		return false, err
	}))
}

// TestRenewalRefused: what is not this node's valid certificate with its key is
// said, and the one before stays in use.
func TestRenewalRefused(t *testing.T) {
	ctx, c := start(t, ClusterOptions{})
	a, _ := edge(ctx, t, c, "edge1", lab.PortRestricted)
	must(t, c.WaitOnline(ctx, c.Connector, a))
	direct(ctx, t, c, a, c.Connector)
	certPath, keyPath, err := c.PKI().Issue("beijing.edge2", lab.CertOptions{})
	must(t, err)
	otherCert, err := os.ReadFile(certPath)
	must(t, err)
	otherKey, err := os.ReadFile(keyPath)
	must(t, err)
	s, err := a.Status(ctx)
	must(t, err)
	first := s.Certificate.Serial
	mine, key := strings.Replace(certPath, "edge2", "edge1", 1), strings.Replace(keyPath, "edge2", "edge1", 1)
	for _, step := range []struct {
		path    string
		content []byte
		problem string
	}{
		{mine, otherCert, "private key does not match"},
		{key, otherKey, "is beijing.edge2's"},
		{mine, []byte("half of a"), "failed to find any PEM data"},
	} {
		must(t, os.WriteFile(step.path, step.content, 0o600))
		must(t, a.Agent().Signal(syscall.SIGHUP))
		waitCertificate(ctx, t, c, a, step.problem, func(got Certificate) bool {
			return strings.Contains(got.Problem, step.problem) && got.Serial == first
		})
	}
	pings(ctx, t, a, c.Connector)
	good := issue(t, c, a)
	waitCertificate(ctx, t, c, a, "the good one is taken unasked", func(got Certificate) bool {
		return got.Problem == "" && got.Serial == fmt.Sprintf("%x", good.SerialNumber)
	})
	pings(ctx, t, a, c.Connector)
}
