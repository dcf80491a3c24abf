package wire

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net/netip"
	"strings"
)

// How a machine becomes a node, over HTTPS on the port of the signalling service:
//
//	GET  /v1/ca     the CA's certificate, PEM. Not authenticated: it is the one
//	                that was meant if its hash is the join token's.
//	POST /v1/join   JoinRequest, JoinAnswer. The token authenticates.
//	POST /v1/renew  RenewRequest, RenewAnswer. The present certificate does.
//	GET  /v1/crl    the CA's CRL, DER (RFC 5280)
//
// Every other answer than 200 is {"error": "..."}.
const (
	PathCA    = "/v1/ca"
	PathJoin  = "/v1/join"
	PathRenew = "/v1/renew"
	PathCRL   = "/v1/crl"
)

// JoinToken is what an operator hands to a node that shall join. It holds the
// hash of the rendezvous' CA, so that the first contact is authenticated too.
type JoinToken struct {
	ID     [8]byte
	Secret [16]byte
	CAHash [32]byte // SHA-256 of the CA's certificate, DER
}

// joinTokenPrefix lets people and secret scanners know one when they see it.
const joinTokenPrefix = "bodkin-join-"

// ErrJoinToken marks what is no join token.
var ErrJoinToken = errors.New("not a join token: want the word beginning with " + joinTokenPrefix + " that `bodkin token create` printed")

// String is the token as people copy it: one word.
func (t JoinToken) String() string {
	b := append(append(append([]byte{}, t.ID[:]...), t.Secret[:]...), t.CAHash[:]...)
	return joinTokenPrefix + base64.RawURLEncoding.EncodeToString(b)
}

// TokenID is the ID as listings show it.
func (t JoinToken) TokenID() string { return hex.EncodeToString(t.ID[:]) }

// ParseJoinToken is the inverse of String. Blanks around it do not matter.
func ParseJoinToken(s string) (t JoinToken, err error) {
	text, ok := strings.CutPrefix(strings.TrimSpace(s), joinTokenPrefix)
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if !ok || err != nil || len(b) != len(t.ID)+len(t.Secret)+len(t.CAHash) {
		return t, ErrJoinToken
	}
	copy(t.ID[:], b)
	copy(t.Secret[:], b[len(t.ID):])
	copy(t.CAHash[:], b[len(t.ID)+len(t.Secret):])
	return t, nil
}

// JoinRequest asks for a certificate.
type JoinRequest struct {
	// TokenID and Secret are the token's, in hexadecimal; its CA hash stays here.
	TokenID string `json:"tokenID"`
	Secret  string `json:"secret"`
	// Name is the node's, empty for the token's.
	Name NodeName `json:"name,omitempty"`
	// CSR is a certificate request, PEM (RFC 2986). Only its key and signature
	// count: the rendezvous makes the subject.
	CSR string `json:"csr"`
	// Subnets are what is behind the node, empty for the token's.
	Subnets []netip.Prefix `json:"subnets,omitempty"`
	Type    EndpointType   `json:"type"`
}

// JoinAnswer is a new node's.
type JoinAnswer struct {
	Name NodeName `json:"name"`
	// Certificate and CA are PEM.
	Certificate string         `json:"certificate"`
	CA          string         `json:"ca"`
	Subnets     []netip.Prefix `json:"subnets"`
	// Pending: an operator has to approve the node before it is let in.
	Pending bool `json:"pending,omitempty"`
}

// RenewRequest asks for a new certificate for the node that the present one
// names.
type RenewRequest struct {
	CSR string `json:"csr"` // PEM, as JoinRequest's
}

// RenewAnswer is a new certificate.
type RenewAnswer struct {
	Certificate string `json:"certificate"` // PEM
	CA          string `json:"ca"`          // PEM
}
