package enrol

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/bodkin-net/bodkin/internal/pki"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

const (
	// DefaultTTL is a token's life: today's work, and none of tomorrow's.
	DefaultTTL = 12 * time.Hour
	// maxTTL and maxUses bound what one leaked token does.
	maxTTL  = 366 * 24 * time.Hour
	maxUses = 10_000
	// tokenKept is how long an expired token is listed: who finds that it does not
	// work any more finds out why.
	tokenKept = 24 * time.Hour
)

// TokenSpec is what a new token permits. Zero values: any name, the subnets the
// node asks for, DefaultTTL, one use.
type TokenSpec struct {
	Name               string
	Subnets            []string
	Connector, Replace bool
	TTL                time.Duration
	Uses               int
}

// check is what is wrong with a spec.
func (s TokenSpec) check() error {
	if s.Name != "" {
		if err := checkName(wire.NodeName(s.Name)); err != nil {
			return err
		}
	}
	subnets, err := ParseSubnets(s.Subnets)
	if err != nil {
		return err
	}
	probe := wire.Endpoint{Name: "any", ID: "CN=any", Type: wire.Edge, Subnets: subnets}
	if err := probe.Validate(); err != nil {
		return refuse(ErrInvalid, "subnets: %v", err)
	}
	switch {
	case s.TTL < 0 || s.TTL > maxTTL:
		return refuse(ErrInvalid, "ttl %s: want more than 0 and at most %s", s.TTL, maxTTL)
	case s.Uses < 0 || s.Uses > maxUses:
		return refuse(ErrInvalid, "uses %d: want 1 to %d", s.Uses, maxUses)
	case len(subnets) > 0 && s.Name == "" && s.Uses > 1:
		return refuse(ErrInvalid, "subnets: %d nodes cannot have the same subnets: want one use, or a name", s.Uses)
	}
	return nil
}

// checkName refuses what no community can name.
func checkName(name wire.NodeName) error {
	if err := name.Validate(); err != nil {
		return refuse(ErrInvalid, "name: %v", err)
	}
	if !strings.Contains(string(name), ".") {
		return refuse(ErrInvalid, "name: %s lacks its cluster: want cluster.node, such as beijing.%s", name, name)
	}
	return nil
}

// Doubt is why a node could not join with a token of this kind as things are, in
// words; empty if nothing is known against it.
func (a *Authority) Doubt(s TokenSpec) (doubt string, err error) {
	err = a.store.View("look for conflicts of a token", func(tx *store.Tx) error {
		all, err := tx.Admissions()
		doubt = s.doubt(all)
		return err
	})
	return doubt, err
}

func (s TokenSpec) doubt(nodes []store.Admission) string {
	if s.Name != "" {
		i := slices.IndexFunc(nodes, func(m store.Admission) bool { return m.Name == s.Name })
		switch {
		case i >= 0 && nodes[i].State == store.Revoked:
			return fmt.Sprintf("%s was revoked: nobody joins as it before `bodkin node delete %s`", s.Name, s.Name)
		case i >= 0 && !s.Replace:
			return fmt.Sprintf("%s is a node already: another machine joins as it only with a token made with --replace, or after `bodkin node delete %s`", s.Name, s.Name)
		}
	}
	g := grant{name: wire.NodeName(s.Name), subnets: subnetsOf(s.Subnets)}
	if err := g.overlapping(nodes); err != nil {
		return err.Error()
	}
	return ""
}

// CreateToken makes a token. Its secret is in the answer and nowhere else.
func (a *Authority) CreateToken(now time.Time, by By, s TokenSpec) (wire.JoinToken, store.Token, error) {
	var token wire.JoinToken
	if a.CA == nil {
		return token, store.Token{}, ErrNotIssuing
	}
	if err := s.check(); err != nil {
		return token, store.Token{}, err
	}
	rand.Read(token.ID[:]) // never fails since Go 1.24
	rand.Read(token.Secret[:])
	token.CAHash = pki.Hash(a.CA.Certificate)
	record := store.Token{
		ID: token.TokenID(), SecretSHA256: secretHash(token.Secret[:]), Name: s.Name, Subnets: s.Subnets,
		Connector: s.Connector, Replace: s.Replace, MaxUses: cmp.Or(s.Uses, 1),
		Created: now.UTC(), Expires: now.Add(cmp.Or(s.TTL, DefaultTTL)).UTC(), By: by.Who,
	}
	err := a.change(now, by, "create token", record.ID, func(tx *store.Tx, c *change) error {
		c.detail = fmt.Sprintf("for %s, until %s, uses: %d", cmp.Or(s.Name, "any name"), day(record.Expires), record.MaxUses)
		return tx.PutToken(record)
	})
	return token, record, err
}

// Tokens are all tokens, the oldest first.
func (a *Authority) Tokens() (tokens []store.Token, err error) {
	err = a.store.View("list tokens", func(tx *store.Tx) error {
		tokens, err = tx.Tokens()
		return err
	})
	slices.SortFunc(tokens, func(x, y store.Token) int {
		return cmp.Or(x.Created.Compare(y.Created), cmp.Compare(x.ID, y.ID))
	})
	return tokens, err
}

// DeleteToken has a token permit nothing any more. store.ErrNotFound if there is
// none of that ID.
func (a *Authority) DeleteToken(now time.Time, by By, id string) error {
	err := a.change(now, by, "delete token", id, func(tx *store.Tx, _ *change) error { return tx.DeleteToken(id) })
	if notFound(err) {
		return fmt.Errorf("token %.64q: %w", id, store.ErrNotFound) // without the store's path
	}
	return err
}

// Authenticate is ErrToken unless there is a token with that secret. Who cannot say
// one learns nothing of the rest.
func (a *Authority) Authenticate(id, secret string) error {
	if a.CA == nil {
		return ErrNotIssuing
	}
	return plain(a.store.View("authenticate", func(tx *store.Tx) error {
		_, err := authenticate(tx, id, secret)
		return err
	}))
}

// authenticate finds the token that a request names, if the request knows its
// secret. It tells nobody which of the two was wrong.
func authenticate(tx *store.Tx, id, secret string) (store.Token, error) {
	token, err := tx.Token(id)
	if err != nil && !notFound(err) {
		return token, err
	}
	presented, errHex := hex.DecodeString(secret)
	// Also without a record, so that the time tells nothing either.
	good := subtle.ConstantTimeCompare([]byte(secretHash(presented)), []byte(token.SecretSHA256)) == 1
	if err != nil || errHex != nil || !good {
		return token, refuse(ErrToken, "this join token is not known here: it was deleted, or is of another rendezvous; create one with `bodkin token create`")
	}
	return token, nil
}

func secretHash(secret []byte) string {
	sum := sha256.Sum256(secret)
	return hex.EncodeToString(sum[:])
}

// used reports whether a node with this key has used the token, and refuses when
// another one may not: a join that was cut short may come again.
func used(token store.Token, node, key string) (repeat bool, err error) {
	for _, use := range token.Uses {
		if use.Node == node && use.KeySHA256 == key {
			return true, nil
		}
	}
	if len(token.Uses) < token.MaxUses {
		return false, nil
	}
	last := token.Uses[len(token.Uses)-1]
	if token.MaxUses == 1 {
		return false, refuse(ErrRefused, "this join token was used by %s on %s: create another with `bodkin token create`", last.Node, day(last.At))
	}
	return false, refuse(ErrRefused, "this join token was used %d times, last by %s on %s: create another with `bodkin token create`", token.MaxUses, last.Node, day(last.At))
}
