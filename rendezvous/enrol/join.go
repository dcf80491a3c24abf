package enrol

import (
	"cmp"
	"context"
	"crypto"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/bodkin-net/bodkin/internal/pki"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

// maxCertificates is how many unexpired certificates one node may have: it gets
// one more with each renewal and each join that is repeated.
const maxCertificates = 64

// grant is what a token gives to one node.
type grant struct {
	name    wire.NodeName
	subnets []netip.Prefix
	kind    wire.EndpointType
	key     string // KeyHash
	repeat  bool   // the node has used the token before
}

// permit is what a token gives to who asks, if anything.
func permit(now time.Time, token store.Token, r *wire.JoinRequest, key string, mayConnect func(wire.NodeName) bool) (grant, error) {
	g := grant{name: cmp.Or(wire.NodeName(token.Name), r.Name), kind: cmp.Or(r.Type, wire.Edge), key: key}
	var err error
	switch {
	case !now.Before(token.Expires):
		return g, refuse(ErrRefused, "this join token expired on %s: create another with `bodkin token create`", day(token.Expires))
	case r.Name != "" && r.Name != g.name:
		return g, refuse(ErrRefused, "this join token is for %s, not for %.64q: join without --name, or create another", token.Name, string(r.Name))
	case g.name == "":
		return g, refuse(ErrInvalid, "name: neither the token nor the node names one: want --name CLUSTER.NODE")
	}
	if err := checkName(g.name); err != nil {
		return g, err
	}
	if g.repeat, err = used(token, string(g.name), key); err != nil {
		return g, err
	}
	// A name that makes a connector is worth as much as the type: the node could
	// say the type later.
	if (g.kind == wire.Connector || mayConnect(g.name)) && !token.Connector {
		return g, refuse(ErrRefused, "this join token is not for a connector, to which every edge of its cluster opens a tunnel: create one with `bodkin token create --connector`")
	}
	g.subnets = r.Subnets
	bounds := subnetsOf(token.Subnets)
	if len(g.subnets) == 0 {
		g.subnets = bounds
	}
	if len(g.subnets) == 0 {
		return g, refuse(ErrInvalid, "subnets: neither the token nor the node names any: want --subnets, the networks behind the node")
	}
	if p, wrong := outside(g.subnets, bounds); len(bounds) > 0 && wrong {
		return g, refuse(ErrRefused, "subnets: this join token does not permit %s: it is for %s", p, words(bounds))
	}
	e := g.endpoint()
	if err := e.Validate(); err != nil {
		return g, refuse(ErrInvalid, "%v", err)
	}
	return g, nil
}

// endpoint is as much of a node's as is known before it is one.
func (g grant) endpoint() wire.Endpoint {
	return wire.Endpoint{Name: g.name, ID: "CN=" + string(g.name), Type: g.kind, Subnets: g.subnets}
}

// takes decides whether a node may have its name: had is what is on record for
// it, if anything; known says that it has been online. replaces: it takes the
// place of a node with another key.
func (g grant) takes(had *store.Admission, known bool, token store.Token) (replaces bool, err error) {
	switch {
	case had != nil && had.State == store.Revoked:
		return false, refuse(ErrRefused, "%s was revoked on %s%s: `bodkin node delete %s` on the rendezvous first, if it shall be one again", g.name, day(had.Since), because(had.Reason), g.name)
	case had == nil && !known, had != nil && had.KeySHA256 == g.key:
		return false, nil
	case token.Replace:
		return true, nil
	}
	return false, refuse(ErrConflict, "there is a node %s already: join by another name, or `bodkin node delete %s` on the rendezvous if it is gone, or create a token with --replace", g.name, g.name)
}

// overlapping refuses subnets that another node was granted: it may not have been
// online yet, so that its sessions know nothing of it.
func (g grant) overlapping(others []store.Admission) error {
	for _, other := range others {
		if other.Name == string(g.name) || other.State == store.Revoked {
			continue
		}
		for _, theirs := range subnetsOf(other.Subnets) {
			for _, mine := range g.subnets {
				if mine.Overlaps(theirs) {
					return refuse(ErrConflict, "subnets: %s overlaps %s of %s: give each node subnets of its own", mine, theirs, other.Name)
				}
			}
		}
	}
	return nil
}

// Join makes a node of who knows a token. Replaced says that the node had another
// key before, whose certificates are revoked now. Errors: those of this package.
func (a *Authority) Join(ctx context.Context, now time.Time, from string, r *wire.JoinRequest, nodes Nodes) (answer *wire.JoinAnswer, replaced bool, err error) {
	if a.CA == nil {
		return nil, false, ErrNotIssuing
	}
	csr, err := pki.ParseRequest([]byte(r.CSR))
	if err != nil {
		return nil, false, refuse(ErrInvalid, "csr: %v", err)
	}
	key, err := pki.KeyHash(csr.PublicKey)
	if err != nil {
		return nil, false, refuse(ErrInvalid, "csr: %v", err)
	}
	j := joining{a, now, r, csr.PublicKey, key, false}
	var g grant
	err = a.store.View("join", func(tx *store.Tx) error {
		g, _, err = j.permitted(tx)
		return err
	})
	if err != nil {
		return nil, false, plain(err)
	}
	// Outside of any transaction: who answers this may be writing.
	known, wrong, err := nodes.Claim(ctx, g.endpoint())
	if err != nil {
		return nil, false, err
	}
	if wrong != nil {
		return nil, false, refuse(ErrConflict, "%v", wrong)
	}
	j.known = known
	err = a.change(now, By{string(g.name), from}, "join node", string(g.name), func(tx *store.Tx, c *change) error {
		answer, replaced, err = j.write(tx, c)
		return err
	})
	if err != nil {
		return nil, false, err
	}
	return answer, replaced, nil
}

// joining is one join.
type joining struct {
	*Authority
	now       time.Time
	request   *wire.JoinRequest
	publicKey crypto.PublicKey
	key       string
	known     bool
}

func (j joining) permitted(tx *store.Tx) (grant, store.Token, error) {
	token, err := authenticate(tx, j.request.TokenID, j.request.Secret)
	if err != nil {
		return grant{}, token, err
	}
	g, err := permit(j.now, token, j.request, j.key, j.current().MayConnect)
	return g, token, err
}

// write decides as of the transaction and writes all that a join changes.
func (j joining) write(tx *store.Tx, c *change) (*wire.JoinAnswer, bool, error) {
	g, token, err := j.permitted(tx)
	if err != nil {
		return nil, false, err
	}
	had, err := admissionOf(tx, string(g.name))
	if err != nil {
		return nil, false, err
	}
	replaces, err := g.takes(had, j.known, token)
	if err != nil {
		return nil, false, err
	}
	others, err := tx.Admissions()
	if err != nil {
		return nil, false, err
	}
	if err := g.overlapping(others); err != nil {
		return nil, false, err
	}
	if replaces {
		if err := revokeAll(tx, j.now, string(g.name), c); err != nil {
			return nil, false, err
		}
	}
	if !g.repeat {
		token.Uses = append(token.Uses, store.TokenUse{Node: string(g.name), KeySHA256: g.key, At: j.now.UTC()})
	}
	admission := g.admission(j.now, had, replaces, token, j.current().Manual)
	pem, serial, err := j.issue(tx, j.now, string(g.name), j.publicKey)
	if err != nil {
		return nil, false, err
	}
	c.detail = fmt.Sprintf("as %s with token %s: %s, subnets %s, certificate %s", g.kind, token.ID, admission.State, words(g.subnets), serial)
	if replaces {
		c.detail += ", in place of one with another key"
	}
	answer := &wire.JoinAnswer{
		Name: g.name, Certificate: pem, CA: string(pki.EncodeCertificate(j.CA.Certificate.Raw)),
		Subnets: g.subnets, Pending: admission.State == store.Pending,
	}
	if err := tx.PutToken(token); err != nil {
		return nil, false, err
	}
	return answer, replaces, tx.PutAdmission(admission)
}

// admission is the record of a node that has joined. Whoever joins again with the
// same key stays approved, and keeps what operators have said.
func (g grant) admission(now time.Time, had *store.Admission, replaces bool, token store.Token, manual bool) store.Admission {
	m := store.Admission{Name: string(g.name), State: store.Approved, Since: now.UTC(), By: "token " + token.ID}
	if manual {
		m.State = store.Pending
	}
	if had != nil {
		m.Punch, m.Note = had.Punch, had.Note
		if !replaces {
			m.State, m.Since, m.By = had.State, had.Since, had.By
		}
	}
	m.Subnets, m.KeySHA256 = texts(g.subnets), g.key
	m.Connector = g.kind == wire.Connector
	return m
}

// Renew issues another certificate for the key of the present one, which must be
// of this CA and good. Errors: those of this package.
func (a *Authority) Renew(now time.Time, from string, present Presented, r *wire.RenewRequest) (*wire.RenewAnswer, error) {
	if a.CA == nil {
		return nil, ErrNotIssuing
	}
	if present.Certificate.CheckSignatureFrom(a.CA.Certificate) != nil {
		return nil, refuse(ErrNotIssuing, "the certificate of %s is of another CA than the one this rendezvous issues for: have that one renew it", present.Name)
	}
	if _, err := a.Admit(now, present); err != nil {
		return nil, err
	}
	csr, err := pki.ParseRequest([]byte(r.CSR))
	if err != nil {
		return nil, refuse(ErrInvalid, "csr: %v", err)
	}
	if key, err := pki.KeyHash(csr.PublicKey); err != nil || key != present.KeySHA256 {
		return nil, refuse(ErrRefused, "csr: another key than the present certificate's: a new key needs a new join")
	}
	var pem string
	err = a.change(now, By{string(present.Name), from}, "renew certificate", string(present.Name), func(tx *store.Tx, c *change) error {
		// It may have been revoked a moment ago: nobody would revoke what is issued now.
		if _, refused, err := a.judgedIn(tx, present); err != nil || refused != nil {
			return errors.Join(err, refused)
		}
		var serial string
		pem, serial, err = a.issue(tx, now, string(present.Name), csr.PublicKey)
		c.detail = "certificate " + serial + " after " + present.Serial
		return err
	})
	if err != nil {
		return nil, err
	}
	return &wire.RenewAnswer{Certificate: pem, CA: string(pki.EncodeCertificate(a.CA.Certificate.Raw))}, nil
}

// issue makes a node's certificate and puts it on record.
func (a *Authority) issue(tx *store.Tx, now time.Time, name string, key crypto.PublicKey) (pem, serial string, err error) {
	all, err := tx.Certificates()
	if err != nil {
		return "", "", err
	}
	n := 0
	for _, c := range all {
		if c.Node == name && c.NotAfter.After(now) {
			n++
		}
	}
	if n >= maxCertificates {
		return "", "", refuse(ErrConflict, "%s has %d certificates that have not expired: something asks for them over and over", name, n)
	}
	cert, err := a.CA.Node(now, name, key, a.current().Lifetime)
	if err != nil {
		return "", "", err
	}
	serial = pki.Serial(cert)
	return string(pki.EncodeCertificate(cert.Raw)), serial,
		tx.PutCertificate(store.Certificate{Serial: serial, Node: name, NotBefore: cert.NotBefore, NotAfter: cert.NotAfter})
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return " (" + reason + ")"
}
