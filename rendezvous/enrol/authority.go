// Package enrol decides who becomes a node and who stays one: join tokens,
// certificates, admissions, and the list of the revoked. Each decision is a pure
// function of the records; the Authority reads them, and writes what follows in
// one transaction together with its audit entry.
package enrol

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/bodkin-net/bodkin/internal/pki"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

// Error contract: every refusal is one of these, with words a person can act on.
var (
	// ErrToken: the token is unknown, or its secret is wrong. Failures count.
	ErrToken = errors.New("join token")
	// ErrRefused: what is asked for is not permitted to who asks.
	ErrRefused = errors.New("refused")
	// ErrConflict: it contradicts what is on record.
	ErrConflict = errors.New("conflict")
	// ErrInvalid: the request itself is wrong.
	ErrInvalid = errors.New("invalid")
	// ErrNotIssuing: the CA is somebody else's.
	ErrNotIssuing = errors.New("this rendezvous issues no certificates (no `caKey`): no token is needed, but a certificate of the CA it was configured with")
	// ErrRevoked and ErrPending: the node is not let in.
	ErrRevoked = errors.New("revoked")
	ErrPending = errors.New("pending")
)

// By is who has a record changed, as the audit log names them.
type By struct{ Who, From string }

// Itself is the rendezvous, for what it changes unasked.
var Itself = By{Who: "rendezvous"}

// Nodes is what the rendezvous knows of the nodes that have been online.
type Nodes interface {
	// Claim reports whether there is a node of that name, and what is wrong with an
	// endpoint that takes another node's subnets, nil if it does not.
	Claim(ctx context.Context, e wire.Endpoint) (known bool, wrong, err error)
}

// Rules are the rendezvous' configuration.
type Rules struct {
	// Manual approval: an operator has to approve each node.
	Manual bool
	// Lifetime is a node certificate's.
	Lifetime time.Duration
	// MayConnect tells whose name alone makes a node a Connector.
	MayConnect func(wire.NodeName) bool
}

// Authority keeps the records of who may be a node. Its methods may be called
// from any goroutine: the store makes their transactions one after another.
type Authority struct {
	store *store.Store
	// CA issues; nil where an existing CA is used without its key.
	CA *pki.CA

	mu    sync.Mutex
	rules Rules
	crl   list // the newest
}

// New makes an authority on an open store. Maintain has to be called then, and
// now and again. Without ca nothing is issued.
func New(s *store.Store, ca *pki.CA, r Rules) *Authority {
	return &Authority{store: s, CA: ca, rules: r}
}

// Reconfigure has other rules hold from now on.
func (a *Authority) Reconfigure(r Rules) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.rules = r
}

func (a *Authority) current() Rules {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.rules
}

// Issues reports whether the authority makes certificates.
func (a *Authority) Issues() bool { return a.CA != nil }

// change runs f in one transaction with its audit entry, and publishes the list
// of the revoked that f has made, if it has.
func (a *Authority) change(now time.Time, by By, action, object string, f func(*store.Tx, *change) error) error {
	entry := store.Audit{At: now, Who: by.Who, From: by.From, Action: action, Object: object}
	var c change
	err := a.store.Change(&entry, func(tx *store.Tx) error {
		if err := f(tx, &c); err != nil {
			return err
		}
		if c.revoked {
			if err := a.list(tx, now, &c); err != nil {
				return err
			}
		}
		entry.Detail = wire.Clip(c.detail)
		return nil
	})
	if err != nil {
		return plain(err)
	}
	a.publish(c.made)
	return nil
}

// change is what a transaction adds to its records.
type change struct {
	detail  string
	revoked bool // certificates: the list has to be made anew
	made    list
}

// plain is a refusal without the store's words around it, which name a file that
// is none of the asker's business; other errors stay as they are.
func plain(err error) error {
	if r, ok := errors.AsType[*refusal](err); ok {
		return r
	}
	return err // nil, too
}

// refusal is one of the errors above in words.
type refusal struct {
	kind error
	text string
}

func (r *refusal) Error() string { return r.text }
func (r *refusal) Unwrap() error { return r.kind }

func refuse(kind error, format string, args ...any) error {
	return &refusal{kind, fmt.Sprintf(format, args...)}
}

// notFound reports whether a record is missing, which often is no error.
func notFound(err error) bool { return errors.Is(err, store.ErrNotFound) }

// ParseSubnets reads what records and requests have as text.
func ParseSubnets(texts []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, refuse(ErrInvalid, "subnets: %q is no CIDR: want something like 10.233.66.0/24", text)
		}
		if p != p.Masked() {
			return nil, refuse(ErrInvalid, "subnets: %s has bits set behind its mask: want %s", p, p.Masked())
		}
		out = append(out, p)
	}
	return out, nil
}

// subnetsOf are a record's, which were checked before they were written.
func subnetsOf(texts []string) []netip.Prefix {
	subnets, _ := ParseSubnets(texts)
	return subnets
}

func texts(subnets []netip.Prefix) (out []string) {
	for _, p := range subnets {
		out = append(out, p.String())
	}
	return out
}

// outside finds the first of the subnets that lies in none of the bounds.
func outside(subnets, bounds []netip.Prefix) (netip.Prefix, bool) {
	for _, p := range subnets {
		within := false
		for _, b := range bounds {
			within = within || b.Bits() <= p.Bits() && b.Overlaps(p)
		}
		if !within {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

func words(subnets []netip.Prefix) string { return strings.Join(texts(subnets), ", ") }

func day(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 MST") }
