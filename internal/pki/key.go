// Package pki makes and reads keys, certificate requests, certificates and
// revocation lists, as both ends of a join need them. It does no I/O but WriteFile.
//
// Keys are ECDSA P-256: TLS and strongSwan's openssl plugin both take them, and
// that plugin is there wherever AES-GCM is. A CA may have any key Go signs with.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
)

// ErrPEM marks what does not hold the PEM block it should.
var ErrPEM = errors.New("no PEM")

// Types of PEM blocks, RFC 7468.
const (
	certificateBlock = "CERTIFICATE"
	requestBlock     = "CERTIFICATE REQUEST"
	keyBlock         = "PRIVATE KEY"
)

// NewKey makes a private key on P-256.
func NewKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// EncodeKey is a key as PKCS #8 in PEM.
func EncodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: der}), nil
}

// ParseKey reads a key that is not encrypted: PKCS #8, PKCS #1 or SEC 1, in PEM.
// Other blocks beside it, such as OpenSSL's EC PARAMETERS, do not matter. Errors:
// ErrPEM.
func ParseKey(text []byte) (crypto.Signer, error) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		var key any
		var err error
		switch block.Type {
		case keyBlock:
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "ENCRYPTED PRIVATE KEY":
			return nil, fmt.Errorf("%w: the private key is encrypted: want it decrypted", ErrPEM)
		default:
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrPEM, block.Type, err)
		}
		signer, ok := key.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("%w: a key of type %T cannot sign", ErrPEM, key)
		}
		return signer, nil
	}
	return nil, fmt.Errorf("%w private key: want a block of type %s", ErrPEM, keyBlock)
}

// EncodeCertificate is a certificate's DER in PEM.
func EncodeCertificate(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: certificateBlock, Bytes: der})
}

// ParseCertificate reads the first certificate of a PEM text. Errors: ErrPEM.
func ParseCertificate(text []byte) (*x509.Certificate, error) {
	certs, err := ParseCertificates(text)
	if err != nil {
		return nil, err
	}
	return certs[0], nil
}

// ParseCertificates reads all certificates of a PEM text, at least one. Errors:
// ErrPEM.
func ParseCertificates(text []byte) (certs []*x509.Certificate, err error) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != certificateBlock {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%w certificate: %w", ErrPEM, err)
		}
		certs = append(certs, cert)
	}
	if certs == nil {
		return nil, fmt.Errorf("%w certificate: want a block of type %s", ErrPEM, certificateBlock)
	}
	return certs, nil
}

// Hash is a certificate's SHA-256, as a join token has the CA's.
func Hash(cert *x509.Certificate) [sha256.Size]byte { return sha256.Sum256(cert.Raw) }

// Serial is a certificate's serial number in hexadecimal, whole bytes, as records
// and strongSwan have it.
func Serial(cert *x509.Certificate) string { return hex.EncodeToString(cert.SerialNumber.Bytes()) }

// KeyHash is the SHA-256 of a public key's SubjectPublicKeyInfo, in hexadecimal.
func KeyHash(public crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:]), nil
}
