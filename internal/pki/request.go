package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// ErrRequest marks a certificate request that nothing is issued for.
var ErrRequest = errors.New("certificate request")

// minRSA is the least RSA key that is signed, in bits: TLS libraries and
// strongSwan's own tools make none smaller.
const minRSA = 2048

// EncodeRequest is a certificate request for a key (RFC 2986) in PEM. Its subject
// is empty: whoever signs decides on it.
func EncodeRequest(key crypto.Signer) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: requestBlock, Bytes: der}), nil
}

// ParseRequest reads a certificate request and checks that whoever made it has
// the key, and that the key is one to sign. Errors: ErrRequest.
func ParseRequest(text []byte) (*x509.CertificateRequest, error) {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != requestBlock || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("%w: want one PEM block of type %s", ErrRequest, requestBlock)
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	if err := r.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w: not signed with its own key: %w", ErrRequest, err)
	}
	if err := strong(r.PublicKey); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	return r, nil
}

// strong refuses public keys that are no longer good enough, or that TLS or
// strongSwan do not know.
func strong(key any) error {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() && k.Curve != elliptic.P521() {
			return fmt.Errorf("a key on curve %s: want ECDSA P-256", k.Curve.Params().Name)
		}
	case ed25519.PublicKey:
	case *rsa.PublicKey:
		if k.N.BitLen() < minRSA {
			return fmt.Errorf("an RSA key of %d bits: want %d or more, or ECDSA P-256", k.N.BitLen(), minRSA)
		}
	default:
		return fmt.Errorf("a key of type %T: want ECDSA P-256", key)
	}
	return nil
}
