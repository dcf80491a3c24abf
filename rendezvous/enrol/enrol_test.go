package enrol

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/internal/pki"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

const edge1, edge2 = "beijing.edge1", "beijing.edge2"

var operator = By{Who: "alice", From: "192.0.2.1"}

// office is an authority on a store of its own, with a clock of its own.
type office struct {
	*Authority
	t   *testing.T
	now time.Time
	// online is what the coordinator knows.
	online map[wire.NodeName][]netip.Prefix
}

func newOffice(t *testing.T, change ...func(*Authority)) *office {
	t.Helper()
	s, err := store.Open(filepath.Join(t.TempDir(), "db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	now := time.Now()
	ca, err := pki.NewCA(now)
	if err != nil {
		t.Fatal(err)
	}
	a := New(s, ca, Rules{Lifetime: pki.NodeLifetime, MayConnect: func(n wire.NodeName) bool { return n == "beijing.connector" }})
	for _, f := range change {
		f(a)
	}
	return &office{a, t, now, map[wire.NodeName][]netip.Prefix{}}
}

// The authority of an existing CA, and one that has nodes wait for approval.
func keyless(a *Authority) { a.CA = nil }
func manual(a *Authority)  { a.rules.Manual = true }

// Claim implements Nodes.
func (o *office) Claim(_ context.Context, e wire.Endpoint) (known bool, wrong, err error) {
	for name, theirs := range o.online {
		for _, p := range theirs {
			for _, mine := range e.Subnets {
				if name != e.Name && mine.Overlaps(p) {
					return false, fmt.Errorf("endpoint.subnets: %s overlaps %s of %s", mine, p, name), nil
				}
			}
		}
	}
	return o.online[e.Name] != nil, nil, nil
}

func (o *office) token(s TokenSpec) wire.JoinToken {
	o.t.Helper()
	token, _, err := o.CreateToken(o.now, operator, s)
	if err != nil {
		o.t.Fatal(err)
	}
	return token
}

func newKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func request(t *testing.T, token wire.JoinToken, key crypto.Signer, name wire.NodeName) *wire.JoinRequest {
	t.Helper()
	csr, err := pki.EncodeRequest(key)
	if err != nil {
		t.Fatal(err)
	}
	subnet := "10.233.1.0/24"
	if name == edge2 {
		subnet = "10.233.2.0/24"
	}
	return &wire.JoinRequest{
		TokenID: token.TokenID(), Secret: hex.EncodeToString(token.Secret[:]), Name: name, CSR: string(csr), Type: wire.Edge,
		Subnets: []netip.Prefix{netip.MustParsePrefix(subnet)},
	}
}

func (o *office) join(r *wire.JoinRequest) (*wire.JoinAnswer, error) {
	answer, _, err := o.Join(o.t.Context(), o.now, "192.0.2.7", r, o)
	return answer, err
}

// mustJoin makes a node and returns what it presents from then on.
func (o *office) mustJoin(name wire.NodeName, key crypto.Signer, s TokenSpec) Presented {
	o.t.Helper()
	answer, err := o.join(request(o.t, o.token(s), key, name))
	if err != nil {
		o.t.Fatal(err)
	}
	return o.presents(answer.Certificate)
}

func (o *office) presents(text string) Presented {
	o.t.Helper()
	cert, err := pki.ParseCertificate([]byte(text))
	if err != nil {
		o.t.Fatal(err)
	}
	p, err := Present(cert)
	if err != nil {
		o.t.Fatal(err)
	}
	return p
}

// content is all that a store holds of enrolment.
func (o *office) content() string {
	o.t.Helper()
	var text string
	err := o.store.View("test", func(tx *store.Tx) error {
		tokens, err1 := tx.Tokens()
		admissions, err2 := tx.Admissions()
		certificates, err3 := tx.Certificates()
		text = fmt.Sprintf("%+v\n%+v\n%+v", tokens, admissions, certificates)
		return errors.Join(err1, err2, err3)
	})
	if err != nil {
		o.t.Fatal(err)
	}
	return text
}

func (o *office) audits() []store.Audit {
	o.t.Helper()
	entries, err := o.store.Audits(0)
	if err != nil {
		o.t.Fatal(err)
	}
	return entries
}

func TestJoin(t *testing.T) {
	o := newOffice(t)
	token, key := o.token(TokenSpec{}), newKey(t)
	answer, err := o.join(request(t, token, key, edge1))
	if err != nil {
		t.Fatal(err)
	}
	if answer.Name != edge1 || answer.Pending || words(answer.Subnets) != "10.233.1.0/24" {
		t.Errorf("%+v", answer)
	}
	ca, err := pki.ParseCertificate([]byte(answer.CA))
	if err != nil || pki.Hash(ca) != token.CAHash {
		t.Errorf("CA %v, %v: not the token's", ca, err)
	}
	p := o.presents(answer.Certificate)
	if p.Name != edge1 || p.Certificate.CheckSignatureFrom(ca) != nil || !key.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(p.Certificate.PublicKey) {
		t.Errorf("certificate %+v", p)
	}
	m, err := o.Admit(o.now, p)
	if err != nil || m.State != store.Approved || m.KeySHA256 != p.KeySHA256 || !reflect.DeepEqual(m.Subnets, []string{"10.233.1.0/24"}) {
		t.Errorf("admission %+v, %v", m, err)
	}
	last := o.audits()[0]
	if last.Who != edge1 || last.From != "192.0.2.7" || last.Action != "join node" || !strings.Contains(last.Detail, p.Serial) || !strings.Contains(last.Detail, token.TokenID()) {
		t.Errorf("audit %+v", last)
	}
	for _, e := range o.audits() {
		if strings.Contains(fmt.Sprint(e), hex.EncodeToString(token.Secret[:])) {
			t.Errorf("the secret is in the audit log: %+v", e)
		}
	}
	if strings.Contains(o.content(), hex.EncodeToString(token.Secret[:])) {
		t.Error("the secret is in the store")
	}
}

// Every join that is refused is refused in words, and leaves the store as it was.
func TestJoinRefused(t *testing.T) {
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	prefixes := func(texts ...string) (out []netip.Prefix) {
		for _, text := range texts {
			out = append(out, netip.MustParsePrefix(text))
		}
		return out
	}
	tests := []struct {
		name  string
		spec  TokenSpec
		key   crypto.Signer
		given func(*office)
		then  func(*office, *wire.JoinRequest)
		want  error
		words string
	}{
		{name: "unknown token", then: func(_ *office, r *wire.JoinRequest) { r.TokenID = "0123456789abcdef" }, want: ErrToken, words: "not known here"},
		{name: "no token", then: func(_ *office, r *wire.JoinRequest) { r.TokenID, r.Secret = "", "" }, want: ErrToken, words: "not known here"},
		{name: "wrong secret", then: func(_ *office, r *wire.JoinRequest) { r.Secret = strings.Repeat("00", 16) }, want: ErrToken, words: "not known here"},
		{name: "secret that is no hexadecimal", then: func(_ *office, r *wire.JoinRequest) { r.Secret = "secret" }, want: ErrToken, words: "not known here"},
		{name: "deleted token", then: func(o *office, r *wire.JoinRequest) {
			if err := o.DeleteToken(o.now, operator, r.TokenID); err != nil {
				o.t.Fatal(err)
			}
		}, want: ErrToken, words: "deleted"},
		{name: "expired", spec: TokenSpec{TTL: time.Hour}, then: func(o *office, _ *wire.JoinRequest) { o.now = o.now.Add(time.Hour) }, want: ErrRefused, words: "expired on"},
		{name: "for another name", spec: TokenSpec{Name: edge2}, want: ErrRefused, words: "is for beijing.edge2, not for \"beijing.edge1\""},
		{name: "no name at all", then: func(_ *office, r *wire.JoinRequest) { r.Name = "" }, want: ErrInvalid, words: "--name"},
		{name: "name that is none", then: func(_ *office, r *wire.JoinRequest) { r.Name = "Edge One<script>" }, want: ErrInvalid, words: "lower-case DNS name"},
		{name: "name without a cluster", then: func(_ *office, r *wire.JoinRequest) { r.Name = "edge3" }, want: ErrInvalid, words: "want cluster.node"},
		{name: "used by another node", then: func(o *office, r *wire.JoinRequest) {
			again := *r
			other := request(o.t, wire.JoinToken{}, newKey(o.t), edge2)
			again.Name, again.CSR, again.Subnets = edge2, other.CSR, other.Subnets
			if _, err := o.join(&again); err != nil {
				o.t.Fatal(err)
			}
		}, want: ErrRefused, words: "was used by beijing.edge2 on"},
		{name: "used with another key", then: func(o *office, r *wire.JoinRequest) {
			again := *r
			again.CSR = request(o.t, wire.JoinToken{}, newKey(o.t), edge1).CSR
			if _, err := o.join(&again); err != nil {
				o.t.Fatal(err)
			}
		}, want: ErrRefused, words: "was used by beijing.edge1 on"},
		{name: "all uses used", spec: TokenSpec{Uses: 2}, then: func(o *office, r *wire.JoinRequest) {
			for i, name := range []wire.NodeName{"beijing.a", "beijing.b"} {
				again := *r
				again.Name, again.CSR, again.Subnets = name, request(o.t, wire.JoinToken{}, newKey(o.t), edge1).CSR, prefixes(fmt.Sprintf("10.5.%d.0/24", i))
				if _, err := o.join(&again); err != nil {
					o.t.Fatal(err)
				}
			}
		}, want: ErrRefused, words: "was used 2 times, last by beijing.b"},
		{name: "CSR that is no PEM", then: func(_ *office, r *wire.JoinRequest) { r.CSR = "please" }, want: ErrInvalid, words: "CERTIFICATE REQUEST"},
		{name: "CSR with a weak key", key: weak, want: ErrInvalid, words: "1024 bits"},
		{name: "CSR on a curve nobody speaks", key: p224, want: ErrInvalid, words: "P-224"},
		{name: "name that exists", given: func(o *office) { o.mustJoin(edge1, newKey(o.t), TokenSpec{}) }, want: ErrConflict, words: "there is a node beijing.edge1 already"},
		{name: "name of a node of the existing CA", given: func(o *office) { o.online[edge1] = prefixes("10.233.1.0/24") }, want: ErrConflict, words: "there is a node beijing.edge1 already"},
		{name: "revoked node", given: func(o *office) {
			o.mustJoin(edge1, newKey(o.t), TokenSpec{})
			if err := o.Revoke(o.now, operator, edge1, "stolen"); err != nil {
				o.t.Fatal(err)
			}
		}, want: ErrRefused, words: "was revoked on"},
		{name: "revoked node, replacing itself", spec: TokenSpec{Replace: true}, given: func(o *office) {
			o.mustJoin(edge1, newKey(o.t), TokenSpec{})
			if err := o.Revoke(o.now, operator, edge1, "stolen"); err != nil {
				o.t.Fatal(err)
			}
		}, want: ErrRefused, words: "(stolen): `bodkin node delete beijing.edge1`"},
		{name: "subnets of a node that is online", given: func(o *office) { o.online[edge2] = prefixes("10.233.0.0/16") }, want: ErrConflict, words: "overlaps 10.233.0.0/16 of beijing.edge2"},
		{name: "subnets of a node that joined a moment ago", given: func(o *office) {
			r := request(o.t, o.token(TokenSpec{}), newKey(o.t), edge2)
			r.Subnets = prefixes("10.233.1.128/25")
			if _, err := o.join(r); err != nil {
				o.t.Fatal(err)
			}
		}, want: ErrConflict, words: "overlaps 10.233.1.128/25 of beijing.edge2"},
		{name: "subnets that the token does not permit", spec: TokenSpec{Subnets: []string{"10.234.0.0/16"}}, want: ErrRefused, words: "does not permit 10.233.1.0/24: it is for 10.234.0.0/16"},
		{name: "wider subnets than the token's", spec: TokenSpec{Subnets: []string{"10.233.1.0/25"}}, want: ErrRefused, words: "does not permit 10.233.1.0/24"},
		{name: "no subnets", then: func(_ *office, r *wire.JoinRequest) { r.Subnets = nil }, want: ErrInvalid, words: "--subnets"},
		{name: "the whole internet", then: func(_ *office, r *wire.JoinRequest) { r.Subnets = prefixes("0.0.0.0/0") }, want: ErrInvalid, words: "too many addresses"},
		{name: "connector", then: func(_ *office, r *wire.JoinRequest) { r.Type = wire.Connector }, want: ErrRefused, words: "not for a connector"},
		{name: "name of a connector", then: func(_ *office, r *wire.JoinRequest) { r.Name = "beijing.connector" }, want: ErrRefused, words: "not for a connector"},
		{name: "type that is none", then: func(_ *office, r *wire.JoinRequest) { r.Type = "Cloud" }, want: ErrInvalid, words: "Edge or Connector"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := newOffice(t)
			if tt.given != nil {
				tt.given(o)
			}
			if tt.key == nil {
				tt.key = newKey(t)
			}
			r := request(t, o.token(tt.spec), tt.key, edge1)
			if tt.then != nil {
				tt.then(o, r)
			}
			before, audits := o.content(), len(o.audits())
			answer, err := o.join(r)
			if !errors.Is(err, tt.want) || !strings.Contains(fmt.Sprint(err), tt.words) {
				t.Errorf("%v, want %v with %q", err, tt.want, tt.words)
			}
			if answer != nil || strings.Contains(fmt.Sprint(err), "\n") || strings.Contains(fmt.Sprint(err), "store ") {
				t.Errorf("%+v, %q", answer, err)
			}
			if o.content() != before || len(o.audits()) != audits {
				t.Errorf("left behind:\n%s\nbefore:\n%s", o.content(), before)
			}
		})
	}
}

// A join that was cut short comes again: with the same key the token stays good,
// until it expires.
func TestJoinAgain(t *testing.T) {
	o := newOffice(t)
	r := request(t, o.token(TokenSpec{TTL: time.Hour}), newKey(t), edge1)
	serials := map[string]bool{}
	for range 3 {
		answer, err := o.join(r)
		if err != nil {
			t.Fatal(err)
		}
		p := o.presents(answer.Certificate)
		if _, err := o.Admit(o.now, p); err != nil {
			t.Error(err)
		}
		serials[p.Serial] = true
		o.online[edge1] = r.Subnets
	}
	tokens, err := o.Tokens()
	if err != nil || len(tokens) != 1 || len(tokens[0].Uses) != 1 || len(serials) != 3 {
		t.Errorf("tokens %+v, %v, serials %v", tokens, err, serials)
	}
	o.now = o.now.Add(time.Hour)
	if _, err := o.join(r); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "expired") {
		t.Errorf("after it expired: %v", err)
	}
}

// Somebody who has the token in a loop does not fill the disk.
func TestJoinForEver(t *testing.T) {
	o := newOffice(t)
	r := request(t, o.token(TokenSpec{}), newKey(t), edge1)
	for i := range maxCertificates + 1 {
		_, err := o.join(r)
		if want := i == maxCertificates; errors.Is(err, ErrConflict) != want || !want && err != nil {
			t.Fatalf("join %d: %v", i, err)
		}
	}
}

func TestTokenGivesTheSubnets(t *testing.T) {
	o := newOffice(t)
	r := request(t, o.token(TokenSpec{Name: edge1, Subnets: []string{"10.9.0.0/16"}}), newKey(t), "")
	r.Subnets = nil
	answer, err := o.join(r)
	if err != nil || answer.Name != edge1 || words(answer.Subnets) != "10.9.0.0/16" {
		t.Fatalf("%+v, %v", answer, err)
	}
	m, err := o.Standing(edge1)
	if err != nil {
		t.Fatal(err)
	}
	e := wire.Endpoint{Name: edge1, Subnets: []netip.Prefix{netip.MustParsePrefix("10.9.1.0/24")}}
	if err := Bound(m, e); err != nil {
		t.Errorf("a part of what was granted: %v", err)
	}
	e.Subnets = append(e.Subnets, netip.MustParsePrefix("10.8.0.0/24"))
	if err := Bound(m, e); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "10.8.0.0/24 is not granted to beijing.edge1, which may have 10.9.0.0/16") {
		t.Errorf("more than was granted: %v", err)
	}
	if err := Bound(store.Admission{}, e); err != nil {
		t.Errorf("nothing said: %v", err)
	}
}

func TestReplace(t *testing.T) {
	o := newOffice(t)
	old := o.mustJoin(edge1, newKey(t), TokenSpec{})
	note := "in the basement"
	if err := o.Set(o.now, operator, edge1, Settings{Note: &note}); err != nil {
		t.Fatal(err)
	}
	_, replaced, err := o.Join(t.Context(), o.now, "", request(t, o.token(TokenSpec{Replace: true}), newKey(t), edge1), o)
	if err != nil || !replaced {
		t.Fatalf("replaced %v, %v", replaced, err)
	}
	if _, err := o.Admit(o.now, old); !errors.Is(err, ErrRevoked) || !strings.Contains(err.Error(), "join anew") {
		t.Errorf("the old certificate: %v", err)
	}
	if got := o.listed(); !got[old.Serial] || len(got) != 1 {
		t.Errorf("on the list: %v, want %s", got, old.Serial)
	}
	if m, err := o.Standing(edge1); err != nil || m.Note != note || m.State != store.Approved {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestConnector(t *testing.T) {
	o := newOffice(t)
	for _, name := range []wire.NodeName{"beijing.connector", "beijing.gateway"} {
		r := request(t, o.token(TokenSpec{Connector: true}), newKey(t), name)
		r.Type, r.Subnets = wire.Connector, []netip.Prefix{netip.MustParsePrefix(map[wire.NodeName]string{"beijing.connector": "10.1.0.0/16", "beijing.gateway": "10.2.0.0/16"}[name])}
		if _, err := o.join(r); err != nil {
			t.Fatal(err)
		}
		if m, err := o.Standing(string(name)); err != nil || !m.Connector {
			t.Errorf("%+v, %v", m, err)
		}
	}
}

func TestNothingIsIssuedWithoutTheKey(t *testing.T) {
	o := newOffice(t, keyless)
	_, _, errToken := o.CreateToken(o.now, operator, TokenSpec{})
	_, errJoin := o.join(request(t, wire.JoinToken{}, newKey(t), edge1))
	_, errRenew := o.Renew(o.now, "", Presented{Name: edge1}, &wire.RenewRequest{})
	for _, err := range []error{errToken, errJoin, errRenew, o.Authenticate("", "")} {
		if !errors.Is(err, ErrNotIssuing) || !strings.Contains(err.Error(), "no token is needed") {
			t.Error(err)
		}
	}
	if o.CRL() != nil {
		t.Error("a list of the revoked of another's CA")
	}
}

// What is known to be in the way of a token is said when it is made.
func TestTokenDoubt(t *testing.T) {
	o := newOffice(t)
	o.mustJoin(edge1, newKey(t), TokenSpec{})
	o.mustJoin(edge2, newKey(t), TokenSpec{})
	if err := o.Revoke(o.now, operator, edge2, "stolen"); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		spec TokenSpec
		want string
	}{
		{TokenSpec{}, ""},
		{TokenSpec{Name: "beijing.edge3", Subnets: []string{"10.233.2.0/24"}}, ""}, // was the revoked node's
		{TokenSpec{Name: edge1}, "is a node already"},
		{TokenSpec{Name: edge1, Replace: true, Subnets: []string{"10.233.1.0/24"}}, ""},
		{TokenSpec{Name: edge2, Replace: true}, "bodkin node delete beijing.edge2"},
		{TokenSpec{Subnets: []string{"10.233.0.0/16"}}, "overlaps 10.233.1.0/24 of beijing.edge1"},
	} {
		doubt, err := o.Doubt(tt.spec)
		if err != nil || (doubt == "") != (tt.want == "") || !strings.Contains(doubt, tt.want) {
			t.Errorf("%+v: %q, %v; want %q", tt.spec, doubt, err, tt.want)
		}
	}
}

func TestTokenSpec(t *testing.T) {
	o := newOffice(t)
	for words, spec := range map[string]TokenSpec{
		"lower-case DNS name": {Name: "Beijing Edge"},
		"want cluster.node":   {Name: "edge3"},
		"is no CIDR":          {Subnets: []string{"10.233"}},
		"behind its mask":     {Subnets: []string{"10.233.1.1/16"}},
		"too many addresses":  {Subnets: []string{"0.0.0.0/0"}},
		"ttl":                 {TTL: -time.Second},
		"at most":             {TTL: 100 * 366 * 24 * time.Hour},
		"uses -1":             {Uses: -1},
		"the same subnets":    {Subnets: []string{"10.0.0.0/8"}, Uses: 2},
	} {
		if _, _, err := o.CreateToken(o.now, operator, spec); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), words) {
			t.Errorf("%+v: %v, want %q", spec, err, words)
		}
	}
	if tokens, err := o.Tokens(); err != nil || len(tokens) != 0 {
		t.Errorf("left behind: %+v, %v", tokens, err)
	}
	if err := o.DeleteToken(o.now, operator, "nonesuch"); !errors.Is(err, store.ErrNotFound) || strings.Contains(err.Error(), "store ") {
		t.Error(err)
	}
	if got := o.audits(); len(got) != 0 {
		t.Errorf("audit of what was not done: %+v", got)
	}
}
