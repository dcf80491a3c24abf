package enrol

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/bodkin-net/bodkin/internal/pki"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

// Presented is the certificate a node came with, of a CA that was checked.
type Presented struct {
	Name        wire.NodeName
	Serial      string
	KeySHA256   string
	Certificate *x509.Certificate
}

// Present reads what counts of a certificate. An operator's is no node's.
func Present(cert *x509.Certificate) (Presented, error) {
	p := Presented{Serial: pki.Serial(cert), Certificate: cert}
	if role := pki.RoleOf(cert); role != "" {
		return p, refuse(ErrRefused, "the certificate %q is an operator's (%s), not a node's", cert.Subject, role)
	}
	var err error
	if p.Name, err = wire.NameOf(cert); err != nil {
		return p, refuse(ErrRefused, "%v", err)
	}
	p.KeySHA256, err = pki.KeyHash(cert.PublicKey)
	return p, err
}

// judge decides whether a node is let in: said is what operators have said, and
// issued the record of its certificate, nil for none.
func judge(p Presented, said *store.Admission, issued *store.Certificate, manual bool) error {
	switch {
	case said != nil && said.State == store.Revoked:
		return refuse(ErrRevoked, "%s was revoked on %s%s", p.Name, day(said.Since), because(said.Reason))
	case issued != nil && !issued.Revoked.IsZero():
		return refuse(ErrRevoked, "certificate %s of %s was revoked on %s: it has to join anew", p.Serial, p.Name, day(issued.Revoked))
	case said == nil && manual, said != nil && said.State == store.Pending:
		return refuse(ErrPending, "%s waits for approval: `bodkin node approve %s` on the rendezvous", p.Name, p.Name)
	}
	return nil
}

// Admit says whether a node is let in, and what is on record of it then. Errors:
// ErrRevoked, ErrPending, or the store's. A node that is not on record and has to
// wait is put there.
func (a *Authority) Admit(now time.Time, p Presented) (store.Admission, error) {
	said, refused, err := a.judged(p)
	if err != nil {
		return store.Admission{}, err
	}
	if errors.Is(refused, ErrPending) && said == nil {
		err := a.change(now, By{Who: string(p.Name)}, "wait for approval", string(p.Name), func(tx *store.Tx, c *change) error {
			c.detail = "came with certificate " + p.Serial
			return a.amend(tx, now, string(p.Name), string(p.Name), func(*store.Admission) {})
		})
		if err != nil {
			return store.Admission{}, err
		}
	}
	if refused != nil {
		return store.Admission{}, refused
	}
	if said == nil {
		return store.Admission{Name: string(p.Name), State: store.Approved}, nil
	}
	return *said, nil
}

func (a *Authority) judged(p Presented) (said *store.Admission, refused, err error) {
	err = a.store.View("admission of "+string(p.Name), func(tx *store.Tx) error {
		said, refused, err = a.judgedIn(tx, p)
		return err
	})
	return said, refused, err
}

// judgedIn judges as of a transaction.
func (a *Authority) judgedIn(tx *store.Tx, p Presented) (said *store.Admission, refused, err error) {
	if said, err = admissionOf(tx, string(p.Name)); err != nil {
		return nil, nil, err
	}
	var issued *store.Certificate
	if c, err := tx.Certificate(p.Serial); err == nil {
		issued = &c
	} else if !notFound(err) {
		return nil, nil, err
	}
	return said, judge(p, said, issued, a.current().Manual), nil
}

// Bound refuses an endpoint that claims more than its node was granted. Its own
// addresses it may say itself, one by one: a network beside them would be another
// way to its peers' traffic.
func Bound(m store.Admission, e wire.Endpoint) error {
	bounds := subnetsOf(m.Subnets)
	networks := slices.DeleteFunc(slices.Clone(e.NodeSubnets), netip.Prefix.IsSingleIP)
	if p, wrong := outside(networks, bounds); len(bounds) > 0 && wrong {
		return refuse(ErrRefused, "endpoint.nodeSubnets: %s is more than an address, and not granted to %s: want its own addresses, as /32 or /128", p, e.Name)
	}
	if p, wrong := outside(e.Subnets, bounds); len(bounds) > 0 && wrong {
		return refuse(ErrRefused, "endpoint.subnets: %s is not granted to %s, which may have %s: leave it out, or `bodkin node set %s --subnets %s` on the rendezvous",
			p, e.Name, words(bounds), e.Name, strings.ReplaceAll(words(e.Subnets), " ", ""))
	}
	return nil
}

// Standing is what is on record of a node, or what holds without a record.
func (a *Authority) Standing(name string) (m store.Admission, err error) {
	err = a.store.View("admission of "+name, func(tx *store.Tx) error {
		m, err = a.standing(tx, name)
		return err
	})
	return m, err
}

// Records are all admissions by name.
func (a *Authority) Records() (records []store.Admission, err error) {
	err = a.store.View("list admissions", func(tx *store.Tx) error {
		records, err = tx.Admissions()
		return err
	})
	return records, err
}

// Certificates are those issued to a node, the newest first.
func (a *Authority) Certificates(name string) (certs []store.Certificate, err error) {
	err = a.store.View("certificates of "+name, func(tx *store.Tx) error {
		certs, err = certificatesOf(tx, name)
		return err
	})
	slices.SortFunc(certs, func(x, y store.Certificate) int { return y.NotBefore.Compare(x.NotBefore) })
	return certs, err
}

func (a *Authority) standing(tx *store.Tx, name string) (store.Admission, error) {
	m, err := admissionOf(tx, name)
	switch {
	case err != nil:
		return store.Admission{}, err
	case m != nil:
		return *m, nil
	case a.current().Manual:
		return store.Admission{Name: name, State: store.Pending}, nil
	}
	return store.Admission{Name: name, State: store.Approved}, nil
}

// amend changes a node's record, or makes one of what holds without it.
func (a *Authority) amend(tx *store.Tx, now time.Time, who, name string, f func(*store.Admission)) error {
	m, err := a.standing(tx, name)
	if err != nil {
		return err
	}
	was := m.State
	f(&m)
	if m.State != was || m.Since.IsZero() {
		m.Since, m.By = now.UTC(), who
	}
	return tx.PutAdmission(m)
}

// Approve lets a node in. ErrConflict if its certificates are revoked: a list of
// the revoked takes nothing back (RFC 5280 section 5.3.1 has only holds).
func (a *Authority) Approve(now time.Time, by By, name string) error {
	return a.change(now, by, "approve node", name, func(tx *store.Tx, _ *change) error {
		certs, err := certificatesOf(tx, name)
		if err != nil {
			return err
		}
		m, err := a.standing(tx, name)
		if err != nil {
			return err
		}
		revoked := slices.ContainsFunc(certs, func(c store.Certificate) bool { return !c.Revoked.IsZero() })
		if m.State == store.Revoked && revoked {
			return refuse(ErrConflict, "%s was revoked on %s, and so were its certificates: `bodkin node delete %s`, then have it join anew", name, day(m.Since), name)
		}
		return a.amend(tx, now, by.Who, name, func(m *store.Admission) { m.State, m.Reason = store.Approved, "" })
	})
}

// Settings are what an operator says of a node; nil stays as it is.
type Settings struct {
	Subnets *[]string
	Punch   *wire.Policy
	Note    *string
}

// Set changes a node's settings. They hold from its next session on.
func (a *Authority) Set(now time.Time, by By, name string, s Settings) error {
	if s.Subnets != nil {
		if err := (TokenSpec{Subnets: *s.Subnets}).check(); err != nil {
			return err
		}
	}
	if s.Punch != nil {
		if err := s.Punch.Validate(); err != nil {
			return refuse(ErrInvalid, "%v", err)
		}
	}
	return a.change(now, by, "set node", name, func(tx *store.Tx, c *change) error {
		if s.Subnets != nil {
			others, err := tx.Admissions()
			if err != nil {
				return err
			}
			if err := (grant{name: wire.NodeName(name), subnets: subnetsOf(*s.Subnets)}).overlapping(others); err != nil {
				return err
			}
		}
		return a.amend(tx, now, by.Who, name, func(m *store.Admission) { c.detail = s.apply(m) })
	})
}

// apply changes a record and says what.
func (s Settings) apply(m *store.Admission) string {
	var said []string
	if s.Subnets != nil {
		said = append(said, fmt.Sprintf("subnets %s (%s before)", listed(*s.Subnets), listed(m.Subnets)))
		m.Subnets = *s.Subnets
	}
	if s.Punch != nil {
		said = append(said, fmt.Sprintf("punch %q (%q before)", *s.Punch, m.Punch))
		m.Punch = string(*s.Punch)
	}
	if s.Note != nil {
		m.Note = wire.Clip(*s.Note)
		said = append(said, fmt.Sprintf("note %q", m.Note))
	}
	return strings.Join(said, ", ")
}

func listed(subnets []string) string {
	if len(subnets) == 0 {
		return "any"
	}
	return strings.Join(subnets, " ")
}

// Revoke keeps a node out, and puts its certificates on the list of the revoked.
func (a *Authority) Revoke(now time.Time, by By, name, reason string) error {
	reason = wire.Clip(reason)
	return a.change(now, by, "revoke node", name, func(tx *store.Tx, c *change) error {
		c.detail = reason
		if err := revokeAll(tx, now, name, c); err != nil {
			return err
		}
		return a.amend(tx, now, by.Who, name, func(m *store.Admission) { m.State, m.Reason = store.Revoked, reason })
	})
}

// Delete removes what is on record of a node, so that its name is free. Its
// certificates are revoked.
func (a *Authority) Delete(now time.Time, by By, name string) error {
	return a.change(now, by, "delete node", name, func(tx *store.Tx, c *change) error {
		if err := revokeAll(tx, now, name, c); err != nil {
			return err
		}
		if err := tx.DeleteAdmission(name); !notFound(err) {
			return err
		}
		return nil
	})
}

// revokeAll revokes what a node has been issued.
func revokeAll(tx *store.Tx, now time.Time, name string, c *change) error {
	certs, err := certificatesOf(tx, name)
	if err != nil {
		return err
	}
	for _, cert := range certs {
		if !cert.Revoked.IsZero() {
			continue
		}
		cert.Revoked, c.revoked = now.UTC(), true
		if err := tx.PutCertificate(cert); err != nil {
			return err
		}
	}
	return nil
}

func certificatesOf(tx *store.Tx, name string) ([]store.Certificate, error) {
	all, err := tx.Certificates()
	return slices.DeleteFunc(all, func(c store.Certificate) bool { return c.Node != name }), err
}

// admissionOf is what was said of a node, nil for nothing.
func admissionOf(tx *store.Tx, name string) (*store.Admission, error) {
	m, err := tx.Admission(name)
	if notFound(err) {
		return nil, nil //nolint:nilnil // nothing said is an answer
	}
	return &m, err
}
