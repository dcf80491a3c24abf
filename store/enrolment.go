package store

import "time"

var (
	tokensBucket       = []byte("tokens")
	admissionsBucket   = []byte("admissions")
	certificatesBucket = []byte("certificates")
)

// Token permits nodes to join. The secret itself is with whoever created it.
type Token struct {
	ID string `json:"id"`
	// SecretSHA256 is the secret's hash, in hexadecimal. The secret is random and
	// long: hashing slowly would protect nothing more.
	SecretSHA256 string `json:"secretSHA256"`
	// Name is the only node that may use it, empty for any.
	Name string `json:"name,omitempty"`
	// Subnets are what the node gets, CIDR; empty: what it asks for.
	Subnets []string `json:"subnets,omitempty"`
	// Connector permits an endpoint of that type.
	Connector bool `json:"connector,omitempty"`
	// Replace permits the name of a node that exists.
	Replace bool       `json:"replace,omitempty"`
	MaxUses int        `json:"maxUses"`
	Uses    []TokenUse `json:"uses,omitempty"`
	Created time.Time  `json:"created"`
	Expires time.Time  `json:"expires"`
	By      string     `json:"by"`
}

// TokenUse is a node that joined with a token. The same node with the same key
// may come again, as after a join that was cut short.
type TokenUse struct {
	Node      string    `json:"node"`
	KeySHA256 string    `json:"keySHA256"` // of its SubjectPublicKeyInfo, hexadecimal
	At        time.Time `json:"at"`
}

// AdmissionState says whether a node is let in.
type AdmissionState string

// Admission states.
const (
	Approved AdmissionState = "approved"
	Pending  AdmissionState = "pending"
	Revoked  AdmissionState = "revoked"
)

// Admission is what operators have said about a node. A node of an existing CA
// that nobody has said anything about has none.
type Admission struct {
	Name  string         `json:"name"`
	State AdmissionState `json:"state"`
	Since time.Time      `json:"since"`
	By    string         `json:"by"`
	// Reason is the operator's, of a revocation.
	Reason string `json:"reason,omitempty"`
	// Subnets bound what the node may claim, CIDR; empty does not.
	Subnets []string `json:"subnets,omitempty"`
	// Punch bounds the node's own policy, empty does not; Note is for people.
	Punch     string `json:"punch,omitempty"`
	Note      string `json:"note,omitempty"`
	Connector bool   `json:"connector,omitempty"`
	// KeySHA256 is of the key it joined with, empty with an existing CA.
	KeySHA256 string `json:"keySHA256,omitempty"`
}

// Certificate is one that the rendezvous has issued.
type Certificate struct {
	Serial    string    `json:"serial"` // hexadecimal
	Node      string    `json:"node"`
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
	// Revoked is zero while it is good. RFC 5280 section 5.3.1 has no reason
	// that is worth more than the admission's words.
	Revoked time.Time `json:"revoked,omitzero"`
}

// Token returns the token of that ID, or ErrNotFound.
func (t *Tx) Token(id string) (Token, error) { return get[Token](t, tokensBucket, id) }

// Tokens returns all tokens by ID.
func (t *Tx) Tokens() ([]Token, error) { return all[Token](t, tokensBucket) }

// PutToken stores a token under its ID.
func (t *Tx) PutToken(v Token) error { return put(t.tx, tokensBucket, v.ID, v) }

// DeleteToken removes a token, or returns ErrNotFound.
func (t *Tx) DeleteToken(id string) error { return t.remove(tokensBucket, id) }

// Admission returns what was said about a node, or ErrNotFound.
func (t *Tx) Admission(name string) (Admission, error) {
	return get[Admission](t, admissionsBucket, name)
}

// Admissions returns all admissions by node name.
func (t *Tx) Admissions() ([]Admission, error) { return all[Admission](t, admissionsBucket) }

// PutAdmission stores an admission under its node's name.
func (t *Tx) PutAdmission(v Admission) error { return put(t.tx, admissionsBucket, v.Name, v) }

// DeleteAdmission removes an admission, or returns ErrNotFound.
func (t *Tx) DeleteAdmission(name string) error { return t.remove(admissionsBucket, name) }

// Certificate returns the certificate of that serial, or ErrNotFound.
func (t *Tx) Certificate(serial string) (Certificate, error) {
	return get[Certificate](t, certificatesBucket, serial)
}

// Certificates returns all certificates by serial.
func (t *Tx) Certificates() ([]Certificate, error) { return all[Certificate](t, certificatesBucket) }

// PutCertificate stores a certificate under its serial.
func (t *Tx) PutCertificate(v Certificate) error { return put(t.tx, certificatesBucket, v.Serial, v) }

// DeleteCertificate removes a certificate, such as one that expired, or returns
// ErrNotFound.
func (t *Tx) DeleteCertificate(serial string) error { return t.remove(certificatesBucket, serial) }

// NextCRL is the number of the next CRL, RFC 5280 section 5.2.3: it only grows. It is
// never below the Unix time, so that a store that begins anew, or is an older copy,
// goes on above the lists that agents have.
func (t *Tx) NextCRL(now time.Time) (uint64, error) {
	b := t.tx.Bucket(certificatesBucket)
	if at := uint64(max(now.Unix(), 1)); b.Sequence() < at {
		return at, b.SetSequence(at)
	}
	return b.NextSequence()
}
