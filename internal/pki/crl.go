package pki

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"math/big"
	"time"
)

// Revoked is a certificate on a revocation list.
type Revoked struct {
	Serial string // hexadecimal, as Serial gives it
	At     time.Time
}

// CRL makes a revocation list (RFC 5280 section 5) that is good for lifetime, in
// DER. Each must have a higher number than the one before.
func (ca *CA) CRL(now time.Time, lifetime time.Duration, number uint64, revoked []Revoked) ([]byte, error) {
	list := &x509.RevocationList{
		Number:     new(big.Int).SetUint64(number),
		ThisUpdate: now.Add(-skew), NextUpdate: now.Add(lifetime),
	}
	for _, r := range revoked {
		serial, err := hex.DecodeString(r.Serial)
		if err != nil {
			return nil, fmt.Errorf("revoked serial %q: %w", r.Serial, err)
		}
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: new(big.Int).SetBytes(serial), RevocationTime: r.At})
	}
	issuer := *ca.Certificate
	if issuer.KeyUsage == 0 {
		issuer.KeyUsage = x509.KeyUsageCRLSign // without the extension any use is good; Go wants it said
	}
	return x509.CreateRevocationList(rand.Reader, list, &issuer, ca.key)
}

// ParseCRL reads a revocation list in DER and checks that the CA has signed it.
func ParseCRL(der []byte, ca *x509.Certificate) (*x509.RevocationList, error) {
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, fmt.Errorf("revocation list: %w", err)
	}
	issuer := *ca
	if issuer.KeyUsage == 0 {
		issuer.KeyUsage = x509.KeyUsageCRLSign
	}
	if err := list.CheckSignatureFrom(&issuer); err != nil {
		return nil, fmt.Errorf("revocation list: not of %q: %w", ca.Subject, err)
	}
	return list, nil
}
