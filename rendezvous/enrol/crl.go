package enrol

import (
	"fmt"
	"strings"
	"time"

	"github.com/bodkin-net/bodkin/internal/pki"
	"github.com/bodkin-net/bodkin/store"
)

const (
	// crlLifetime is a list's. Agents get a new one with each session and each
	// change; it has to outlast an outage of the rendezvous.
	crlLifetime = 30 * 24 * time.Hour
	// crlRenewal is the age at which the next one is made.
	crlRenewal = crlLifetime / 2
	// certificateKept is how long an expired certificate stays on record: one
	// that is revoked has to be on a list made after it expired (RFC 5280 section
	// 3.3).
	certificateKept = crlLifetime
	// youngCA is the age of a CA's certificate up to which it may be made together
	// with the store: it begins an hour before it is made.
	youngCA = 2 * time.Hour
)

// Forgotten says what a store that was just made does not know of an older CA,
// empty if nothing: whoever lost the store has to be told. Manual approval keeps
// out whom nobody knows.
func (a *Authority) Forgotten(now time.Time) string {
	if a.CA == nil || a.current().Manual || !a.store.Created() || now.Sub(a.CA.Certificate.NotBefore) < youngCA {
		return ""
	}
	return "the store is new and its CA is not: what that CA issued and was revoked is not known here, and is let in: " +
		"restore the store from a backup, set `approval: manual`, or make a new CA"
}

// list is a list of the revoked.
type list struct {
	number uint64
	der    []byte
	made   time.Time
}

// CRL is the newest list of the revoked in DER, nil where nothing is issued.
func (a *Authority) CRL() []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.crl.der
}

// publish takes a list that is on record. Two changes may come here in another
// order than they were written.
func (a *Authority) publish(l list) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if l.number > a.crl.number {
		a.crl = l
	}
}

// list makes the list of the revoked as of a transaction.
func (a *Authority) list(tx *store.Tx, now time.Time, c *change) error {
	if a.CA == nil {
		return nil // certificates of a time when it was set: its list has to come from elsewhere
	}
	certs, err := tx.Certificates()
	if err != nil {
		return err
	}
	var revoked []pki.Revoked
	for _, cert := range certs {
		if !cert.Revoked.IsZero() {
			revoked = append(revoked, pki.Revoked{Serial: cert.Serial, At: cert.Revoked})
		}
	}
	number, err := tx.NextCRL(now)
	if err != nil {
		return err
	}
	der, err := a.CA.CRL(now, crlLifetime, number, revoked)
	c.made = list{number, der, now}
	return err
}

// Maintain removes what has expired and makes the list of the revoked anew when
// that is due, which is also at the start. It reports whether there is a new list.
// Once an hour is often enough.
func (a *Authority) Maintain(now time.Time) (renewed bool, err error) {
	a.mu.Lock()
	due := a.CA != nil && now.Sub(a.crl.made) >= crlRenewal
	a.mu.Unlock()
	var tokens []store.Token
	var certs []store.Certificate
	err = a.store.View("expired records", func(tx *store.Tx) error {
		tokens, certs, err = expired(tx, now)
		return err
	})
	if err != nil || !due && len(tokens)+len(certs) == 0 {
		return false, err
	}
	err = a.change(now, Itself, "maintain", "enrolment", func(tx *store.Tx, c *change) error {
		tokens, certs, err = expired(tx, now)
		if err != nil {
			return err
		}
		for _, t := range tokens {
			if err := tx.DeleteToken(t.ID); err != nil {
				return err
			}
		}
		for _, cert := range certs {
			if err := tx.DeleteCertificate(cert.Serial); err != nil {
				return err
			}
		}
		c.revoked = due
		var done []string
		if len(tokens)+len(certs) > 0 {
			done = append(done, fmt.Sprintf("removed %d expired tokens and %d expired certificates", len(tokens), len(certs)))
		}
		if due {
			done = append(done, "made the list of the revoked anew")
		}
		c.detail = strings.Join(done, ", ")
		return nil
	})
	return due && err == nil, err
}

// expired are the records that nobody needs any more.
func expired(tx *store.Tx, now time.Time) (tokens []store.Token, certs []store.Certificate, err error) {
	all, err := tx.Tokens()
	if err != nil {
		return nil, nil, err
	}
	for _, t := range all {
		if now.Sub(t.Expires) > tokenKept {
			tokens = append(tokens, t)
		}
	}
	issued, err := tx.Certificates()
	for _, c := range issued {
		if now.Sub(c.NotAfter) > certificateKept {
			certs = append(certs, c)
		}
	}
	return tokens, certs, err
}
