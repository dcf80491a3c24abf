package lab

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// KeyKind is the algorithm of a certificate's key.
type KeyKind string

// The kinds of keys. Ed25519 is the default: it costs nothing to make, and
// strongSwan's curve25519 plugin knows it, whereas ECDSA needs the openssl
// plugin, which a minimal installation lacks.
const (
	Ed25519   KeyKind = "ed25519"
	RSA2048   KeyKind = "rsa-2048"
	ECDSAP256 KeyKind = "ecdsa-p256"
)

// DefaultValidity is how long certificates are good for, and have been: longer
// than any lab lives, also one whose clock is stepped by hours.
const DefaultValidity = 24 * time.Hour

// PKI is a certificate authority that keeps all it issues as PEM files in one
// directory. Its methods may be called from any goroutine.
type PKI struct {
	dir  string
	cert *x509.Certificate
	key  crypto.Signer

	mu     sync.Mutex
	serial int64
}

// CertOptions say what a certificate differs in. The zero value makes that of
// a node: name in subject and SAN, for servers and clients, good for a day.
type CertOptions struct {
	Key       KeyKind
	DNSNames  []string     // beside the node's name
	Addrs     []netip.Addr // IP addresses, as of a server that is dialled by address
	NotBefore time.Time    // zero: DefaultValidity ago
	NotAfter  time.Time    // zero: DefaultValidity from now
}

// NewPKI makes a new authority in dir. A second one is what a stranger's
// certificates come from.
func NewPKI(dir string) (*PKI, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	p := &PKI{dir: dir}
	key, err := newKey(Ed25519)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	template := p.template("Bodkin Lab CA", CertOptions{})
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	template.ExtKeyUsage, template.DNSNames = nil, nil
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	p.key = key
	if p.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	return p, writePEM(p.CAPath(), "CERTIFICATE", der, 0o644)
}

// CAPath is the authority's own certificate.
func (p *PKI) CAPath() string { return filepath.Join(p.dir, "ca.pem") }

// Issue makes a key and a certificate with subject C=CN, O=fabedge.io,
// CN=node and SAN DNS:node, in that order of RDNs as FabEdge does, and returns
// the paths of both PEM files; the key is PKCS #8. Issuing for the same node
// again replaces them.
func (p *PKI) Issue(node string, opts CertOptions) (certPath, keyPath string, err error) {
	if opts.Key == "" {
		opts.Key = Ed25519
	}
	key, err := newKey(opts.Key)
	if err != nil {
		return "", "", fmt.Errorf("issue certificate for %s: %w", node, err)
	}
	certDER, err := x509.CreateCertificate(rand.Reader, p.template(node, opts), p.cert, key.Public(), p.key)
	if err != nil {
		return "", "", fmt.Errorf("issue certificate for %s: %w", node, err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", "", fmt.Errorf("issue certificate for %s: %w", node, err)
	}
	certPath, keyPath = filepath.Join(p.dir, node+".crt.pem"), filepath.Join(p.dir, node+".key.pem")
	if err := writePEM(certPath, "CERTIFICATE", certDER, 0o644); err != nil {
		return "", "", err
	}
	return certPath, keyPath, writePEM(keyPath, "PRIVATE KEY", keyDER, 0o600)
}

func (p *PKI) template(node string, opts CertOptions) *x509.Certificate {
	p.mu.Lock()
	p.serial++
	serial := p.serial
	p.mu.Unlock()
	if opts.NotBefore.IsZero() {
		opts.NotBefore = time.Now().Add(-DefaultValidity)
	}
	if opts.NotAfter.IsZero() {
		opts.NotAfter = time.Now().Add(DefaultValidity)
	}
	t := &x509.Certificate{
		SerialNumber: big.NewInt(serial),
		Subject:      pkix.Name{Country: []string{"CN"}, Organization: []string{"fabedge.io"}, CommonName: node},
		NotBefore:    opts.NotBefore,
		NotAfter:     opts.NotAfter,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:     append([]string{node}, opts.DNSNames...),
	}
	for _, addr := range opts.Addrs {
		t.IPAddresses = append(t.IPAddresses, addr.AsSlice())
	}
	return t
}

func newKey(kind KeyKind) (crypto.Signer, error) {
	switch kind {
	case Ed25519:
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	case RSA2048:
		return rsa.GenerateKey(rand.Reader, 2048)
	case ECDSAP256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	return nil, fmt.Errorf("key kind %q: want %s, %s or %s", kind, Ed25519, RSA2048, ECDSAP256)
}

func writePEM(path, kind string, der []byte, mode os.FileMode) error {
	text := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	if err := os.WriteFile(path, text, mode); err != nil {
		return fmt.Errorf("write %s: %w", kind, err)
	}
	return nil
}
