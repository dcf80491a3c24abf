package agent

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"time"

	"github.com/bodkin-net/bodkin/agent/charon"
	"github.com/bodkin-net/bodkin/internal/certfile"
)

// credentials are what this node proves itself with, and whom it believes. They
// do not change: a renewal makes others.
type credentials struct {
	charon charon.Credentials
	tls    *tls.Config
	leaf   *x509.Certificate
}

// credentials are those to use now. They can be others a moment later: who needs
// several of their parts asks once. Any goroutine may ask.
func (id *identity) credentials() *credentials { return id.current.Load() }

// readCredentials reads the three PEM files and checks that they belong
// together. Whether the certificate is valid now is another question.
func readCredentials(cfg Config, now time.Time) (*credentials, error) {
	var err error
	read := func(key, path string) []byte {
		b, e := os.ReadFile(path)
		if e != nil && err == nil {
			err = fmt.Errorf("%s: %w", key, e)
		}
		return b
	}
	certPEM, keyPEM, caPEM := read("certificate", cfg.Certificate), read("key", cfg.Key), read("ca", cfg.CA)
	if err != nil {
		return nil, err
	}
	return parseCredentials(cfg, certPEM, keyPEM, caPEM, now)
}

// parseCredentials is readCredentials for what would be in the files.
func parseCredentials(cfg Config, certPEM, keyPEM, caPEM []byte, now time.Time) (*credentials, error) {
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("certificate %s, key %s: %w", cfg.Certificate, cfg.Key, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(caPEM) {
		return nil, fmt.Errorf("ca: %s holds no PEM certificate", cfg.CA)
	}
	leaf := pair.Leaf
	at := now
	switch certfile.ValidityOf(leaf, now) {
	case certfile.NotYetValid:
		at = leaf.NotBefore
	case certfile.Expired:
		at = leaf.NotAfter
	}
	options := x509.VerifyOptions{Roots: pool, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	if _, err := leaf.Verify(options); err != nil {
		return nil, fmt.Errorf("certificate: %s is not signed by %s: %w", cfg.Certificate, cfg.CA, err)
	}
	return &credentials{
		charon: charon.Credentials{CertPEM: certPEM, KeyPEM: keyPEM, CAPEMs: [][]byte{caPEM}},
		tls:    &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool, MinVersion: tls.VersionTLS13},
		leaf:   leaf,
	}, nil
}

// validNow reports as an error that the time is not the certificate's.
func (c *credentials) validNow(cfg Config, now time.Time) error {
	if v := certfile.ValidityOf(c.leaf, now); !v.Holds() {
		return fmt.Errorf("certificate: %s: %s", cfg.Certificate, v.Explain(c.leaf, now, "it cannot be used"))
	}
	return nil
}
