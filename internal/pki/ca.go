package pki

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"time"
)

const (
	// organisation is in the subject of all that is issued.
	organisation = "bodkin"
	// caLifetime outlasts the machines; a CA that ends ends every node at once.
	caLifetime = 10 * 365 * 24 * time.Hour
	// ServerLifetime is the most that TLS clients take since 2018 (CA/Browser
	// Forum ballot 193): a browser is among them.
	ServerLifetime = 825 * 24 * time.Hour
	// NodeLifetime is a node's unless configured: short enough that a list of the
	// revoked stays short, long enough for a machine in a store room.
	NodeLifetime = 90 * 24 * time.Hour
	// skew is how far certificates begin in the past: clocks of machines that
	// have just been switched on are slow.
	skew = time.Hour
	// rolePrefix begins the organisational unit of an operator's certificate.
	rolePrefix = "bodkin:"
)

// ErrCA marks a CA that cannot issue.
var ErrCA = errors.New("CA")

// CA is a certification authority with its key. It does not change, so it may be
// used from any goroutine.
type CA struct {
	Certificate *x509.Certificate
	key         crypto.Signer
}

// NewCA makes a CA with a new key, good from an hour before now for ten years.
func NewCA(now time.Time) (*CA, error) {
	key, err := NewKey()
	if err != nil {
		return nil, err
	}
	return CAOf(now, key)
}

// CAOf makes a CA of a key that is there.
func CAOf(now time.Time, key crypto.Signer) (*CA, error) {
	var name [4]byte // tells two CAs of one operator apart
	rand.Read(name[:])
	template := &x509.Certificate{
		Subject:   pkix.Name{Organization: []string{organisation}, CommonName: "Bodkin CA " + hex.EncodeToString(name[:])},
		NotBefore: now.Add(-skew), NotAfter: now.Add(caLifetime),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	cert, err := sign(template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &CA{cert, key}, nil
}

// ParseCA reads a CA from the PEM texts of its certificate and key. Of several
// certificates the one counts that the key belongs to. Errors: ErrPEM, ErrCA.
func ParseCA(certificate, key []byte) (*CA, error) {
	certs, err := ParseCertificates(certificate)
	if err != nil {
		return nil, err
	}
	signer, err := ParseKey(key)
	if err != nil {
		return nil, err
	}
	for _, cert := range certs {
		if same, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !same.Equal(signer.Public()) {
			continue
		}
		if err := mayIssue(cert); err != nil {
			return nil, err
		}
		return &CA{cert, signer}, nil
	}
	return nil, fmt.Errorf("%w: the private key belongs to none of its %d certificates", ErrCA, len(certs))
}

// mayIssue refuses a certificate whose signatures under certificates or lists
// would be accepted by nobody (RFC 5280 section 4.2.1.3).
func mayIssue(cert *x509.Certificate) error {
	const need = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	switch {
	case !cert.IsCA:
		return fmt.Errorf("%w: %q is no CA's certificate (basicConstraints)", ErrCA, cert.Subject)
	case cert.KeyUsage != 0 && cert.KeyUsage&need != need:
		return fmt.Errorf("%w: %q may not sign certificates and revocation lists (keyUsage): want keyCertSign and cRLSign", ErrCA, cert.Subject)
	case len(cert.SubjectKeyId) == 0:
		return fmt.Errorf("%w: %q has no subjectKeyIdentifier, by which a revocation list names it", ErrCA, cert.Subject)
	}
	return nil
}

// EncodeKey is the CA's key as PEM.
func (ca *CA) EncodeKey() ([]byte, error) { return EncodeKey(ca.key) }

// Node issues a node's certificate: subject O=bodkin, CN=name, and the name as
// its DNS name, for IKE, where charon asks for no usage, and for clients of TLS.
// Not for servers: a node may be called what the rendezvous is reached at, and
// would pass for it.
func (ca *CA) Node(now time.Time, name string, key crypto.PublicKey, lifetime time.Duration) (*x509.Certificate, error) {
	return ca.issue(now, lifetime, key, &x509.Certificate{
		Subject:     pkix.Name{Organization: []string{organisation}, CommonName: name},
		DNSNames:    []string{name},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

// Server issues a rendezvous' certificate for the names and addresses it is
// reached at, of which there must be one.
func (ca *CA) Server(now time.Time, hosts []string, key crypto.PublicKey) (*x509.Certificate, error) {
	if len(hosts) == 0 {
		return nil, errors.New("server certificate: want a name or an address it is reached at")
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{Organization: []string{organisation}, CommonName: hosts[0]},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, host := range hosts {
		if a, err := netip.ParseAddr(host); err == nil {
			template.IPAddresses = append(template.IPAddresses, a.Unmap().AsSlice())
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	return ca.issue(now, ServerLifetime, key, template)
}

// Hosts are the names and addresses of a server's certificate, the one of its
// common name first.
func Hosts(cert *x509.Certificate) []string {
	var hosts []string
	add := func(host string) {
		if host == cert.Subject.CommonName {
			hosts = append([]string{host}, hosts...)
		} else {
			hosts = append(hosts, host)
		}
	}
	for _, name := range cert.DNSNames {
		add(name)
	}
	for _, ip := range cert.IPAddresses {
		add(ip.String())
	}
	return hosts
}

// Operator issues a client certificate for a person or program: the role is its
// organisational unit, so it is no node's.
func (ca *CA) Operator(now time.Time, name, role string, key crypto.PublicKey, lifetime time.Duration) (*x509.Certificate, error) {
	return ca.issue(now, lifetime, key, &x509.Certificate{
		Subject:     pkix.Name{Organization: []string{organisation}, OrganizationalUnit: []string{rolePrefix + role}, CommonName: name},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

// RoleOf is the role in an operator's certificate, empty in any other.
func RoleOf(cert *x509.Certificate) string {
	for _, unit := range cert.Subject.OrganizationalUnit {
		if len(unit) > len(rolePrefix) && unit[:len(rolePrefix)] == rolePrefix {
			return unit[len(rolePrefix):]
		}
	}
	return ""
}

// issue completes and signs an end entity's certificate. None outlives its CA.
func (ca *CA) issue(now time.Time, lifetime time.Duration, key crypto.PublicKey, template *x509.Certificate) (*x509.Certificate, error) {
	if now.After(ca.Certificate.NotAfter) {
		return nil, fmt.Errorf("%w: %q has expired on %s", ErrCA, ca.Certificate.Subject, ca.Certificate.NotAfter.UTC().Format(time.DateTime))
	}
	// Not by more than its life: what is due after a part of that would be at once.
	template.NotBefore, template.NotAfter = now.Add(-min(skew, lifetime)), now.Add(lifetime)
	if template.NotAfter.After(ca.Certificate.NotAfter) {
		template.NotAfter = ca.Certificate.NotAfter
	}
	template.BasicConstraintsValid = true
	template.KeyUsage = x509.KeyUsageDigitalSignature
	return sign(template, ca.Certificate, key, ca.key)
}

func sign(template, parent *x509.Certificate, key crypto.PublicKey, signer crypto.Signer) (*x509.Certificate, error) {
	template.SerialNumber = newSerial()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, signer)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// newSerial is random, positive and of 16 bytes: RFC 5280 section 4.1.2.2 allows
// 20, and a leading byte from 64 to 127 keeps all of them that long.
func newSerial() *big.Int {
	var b [16]byte
	rand.Read(b[:])
	b[0] = b[0]&0x3f | 0x40
	return new(big.Int).SetBytes(b[:])
}
