package store

import "time"

var accessBucket = []byte("access")

// Credential is a bearer token of an operator or of a program. The secret itself
// is with whoever created it.
type Credential struct {
	Name         string    `json:"name"`
	Role         string    `json:"role"`         // viewer or admin
	SecretSHA256 string    `json:"secretSHA256"` // hexadecimal, as Token's
	Created      time.Time `json:"created"`
	Expires      time.Time `json:"expires,omitzero"` // zero: never
	By           string    `json:"by"`
}

// Credential returns the credential of that name, or ErrNotFound.
func (t *Tx) Credential(name string) (Credential, error) {
	return get[Credential](t, accessBucket, name)
}

// Credentials returns all credentials by name.
func (t *Tx) Credentials() ([]Credential, error) { return all[Credential](t, accessBucket) }

// PutCredential stores a credential under its name.
func (t *Tx) PutCredential(v Credential) error { return put(t.tx, accessBucket, v.Name, v) }

// DeleteCredential removes a credential, or returns ErrNotFound.
func (t *Tx) DeleteCredential(name string) error { return t.remove(accessBucket, name) }
