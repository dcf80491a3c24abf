package enrol

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/internal/pki"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

// listed are the serials on the newest list of the revoked.
func (o *office) listed() map[string]bool {
	o.t.Helper()
	list, err := pki.ParseCRL(o.CRL(), o.CA.Certificate)
	if err != nil {
		o.t.Fatal(err)
	}
	out := map[string]bool{}
	for _, e := range list.RevokedCertificateEntries {
		out[pki.Serial(&x509.Certificate{SerialNumber: e.SerialNumber})] = true
	}
	return out
}

func (o *office) number() uint64 {
	o.t.Helper()
	list, err := pki.ParseCRL(o.CRL(), o.CA.Certificate)
	if err != nil {
		o.t.Fatal(err)
	}
	return list.Number.Uint64()
}

func TestJudge(t *testing.T) {
	p := Presented{Name: edge1, Serial: "2a"}
	said := func(s store.AdmissionState) *store.Admission {
		return &store.Admission{Name: edge1, State: s, Reason: "stolen"}
	}
	good, revoked := &store.Certificate{Serial: "2a"}, &store.Certificate{Serial: "2a", Revoked: time.Unix(1<<30, 0)}
	tests := []struct {
		name   string
		said   *store.Admission
		issued *store.Certificate
		manual bool
		want   error
	}{
		{"existing CA, nobody has said anything", nil, nil, false, nil},
		{"existing CA, to be approved", nil, nil, true, ErrPending},
		{"joined", said(store.Approved), good, false, nil},
		{"approved by hand", said(store.Approved), good, true, nil},
		{"waits, though approval was made automatic since", said(store.Pending), good, false, ErrPending},
		{"revoked", said(store.Revoked), revoked, false, ErrRevoked},
		{"revoked, existing CA", said(store.Revoked), nil, false, ErrRevoked},
		{"another certificate of a node that was replaced", said(store.Approved), revoked, false, ErrRevoked},
		{"deleted", nil, revoked, false, ErrRevoked},
		{"deleted, to be approved", nil, revoked, true, ErrRevoked},
		{"issued by a rendezvous whose store was lost", nil, nil, false, nil},
	}
	for _, tt := range tests {
		if err := judge(p, tt.said, tt.issued, tt.manual); !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
	if err := judge(p, said(store.Revoked), nil, false); !strings.Contains(err.Error(), "(stolen)") {
		t.Errorf("without the reason: %v", err)
	}
}

func TestApproval(t *testing.T) {
	o := newOffice(t, manual)
	answer, err := o.join(request(t, o.token(TokenSpec{}), newKey(t), edge1))
	if err != nil || !answer.Pending {
		t.Fatalf("%+v, %v", answer, err)
	}
	p := o.presents(answer.Certificate)
	if _, err := o.Admit(o.now, p); !errors.Is(err, ErrPending) || !strings.Contains(err.Error(), "bodkin node approve beijing.edge1") {
		t.Errorf("%v", err)
	}
	if _, err := o.Renew(o.now, "", p, &wire.RenewRequest{}); !errors.Is(err, ErrPending) {
		t.Errorf("a renewal before approval: %v", err)
	}
	if err := o.Approve(o.now, operator, edge1); err != nil {
		t.Fatal(err)
	}
	m, err := o.Admit(o.now, p)
	if err != nil || m.By != "alice" || m.KeySHA256 != p.KeySHA256 {
		t.Errorf("%+v, %v", m, err)
	}
	// The same key may come again, and does not wait again; another one does.
	again := o.token(TokenSpec{Replace: true})
	if answer, err := o.join(request(t, again, newKey(t), edge1)); err != nil || !answer.Pending {
		t.Errorf("with another key: %+v, %v", answer, err)
	}
}

// A node of an existing CA that comes is on record, once, and waits.
func TestPendingIsRecorded(t *testing.T) {
	o := newOffice(t, manual)
	cert, err := o.CA.Node(o.now, edge1, newKey(t).Public(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	p, err := Present(cert)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := o.Admit(o.now, p); !errors.Is(err, ErrPending) {
			t.Errorf("%v", err)
		}
	}
	records, err := o.Records()
	if err != nil || len(records) != 1 || records[0].State != store.Pending || records[0].Name != edge1 {
		t.Errorf("%+v, %v", records, err)
	}
	if got := o.audits(); len(got) != 1 || got[0].Who != edge1 {
		t.Errorf("audit %+v", got)
	}
	if err := o.Approve(o.now, operator, edge1); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Admit(o.now, p); err != nil {
		t.Error(err)
	}
}

func TestRevoke(t *testing.T) {
	o := newOffice(t)
	one, two := o.mustJoin(edge1, newKey(t), TokenSpec{}), o.mustJoin(edge2, newKey(t), TokenSpec{})
	if err := o.Revoke(o.now, operator, edge1, "stolen\nfrom the shop"); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Admit(o.now, one); !errors.Is(err, ErrRevoked) || !strings.Contains(err.Error(), "(stolen from the shop)") {
		t.Errorf("%v", err)
	}
	if _, err := o.Renew(o.now, "", one, &wire.RenewRequest{}); !errors.Is(err, ErrRevoked) {
		t.Errorf("renewed: %v", err)
	}
	if _, err := o.Admit(o.now, two); err != nil {
		t.Errorf("another node: %v", err)
	}
	if got := o.listed(); !got[one.Serial] || got[two.Serial] {
		t.Errorf("on the list: %v, want %s", got, one.Serial)
	}
	if err := o.Approve(o.now, operator, edge1); !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), "node delete") {
		t.Errorf("approved again: %v", err)
	}

	number := o.number()
	if err := o.Revoke(o.now, operator, edge2, ""); err != nil {
		t.Fatal(err)
	}
	if got := o.listed(); !got[one.Serial] || !got[two.Serial] || o.number() <= number {
		t.Errorf("list %d after %d: %v", o.number(), number, got)
	}
}

// With an existing CA nothing is on a list, so that it can be taken back.
func TestRevokeWithAnExistingCA(t *testing.T) {
	o := newOffice(t, keyless)
	p := Presented{Name: edge1, Serial: "2a"}
	if err := o.Revoke(o.now, operator, edge1, "sold"); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Admit(o.now, p); !errors.Is(err, ErrRevoked) {
		t.Errorf("%v", err)
	}
	if err := o.Approve(o.now, operator, edge1); err != nil {
		t.Fatal(err)
	}
	if m, err := o.Admit(o.now, p); err != nil || m.Reason != "" {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestDelete(t *testing.T) {
	o := newOffice(t)
	key := newKey(t)
	old := o.mustJoin(edge1, key, TokenSpec{})
	if err := o.Revoke(o.now, operator, edge1, "stolen"); err != nil {
		t.Fatal(err)
	}
	for range 2 { // what is gone may be deleted
		if err := o.Delete(o.now, operator, edge1); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := o.Admit(o.now, old); !errors.Is(err, ErrRevoked) {
		t.Errorf("the old certificate: %v", err)
	}
	fresh := o.mustJoin(edge1, key, TokenSpec{})
	if _, err := o.Admit(o.now, fresh); err != nil {
		t.Errorf("joined anew: %v", err)
	}
	if got := o.listed(); !got[old.Serial] || got[fresh.Serial] {
		t.Errorf("on the list: %v", got)
	}
}

func TestSet(t *testing.T) {
	o := newOffice(t)
	o.mustJoin(edge1, newKey(t), TokenSpec{})
	o.mustJoin(edge2, newKey(t), TokenSpec{})
	never, note := wire.PolicyNever, "SIM card\x1b[2J"
	subnets := []string{"10.50.0.0/16"}
	if err := o.Set(o.now, operator, edge1, Settings{Subnets: &subnets, Punch: &never, Note: &note}); err != nil {
		t.Fatal(err)
	}
	m, err := o.Standing(edge1)
	if err != nil || m.Punch != "never" || m.Subnets[0] != subnets[0] || strings.Contains(m.Note, "\x1b") || m.State != store.Approved {
		t.Errorf("%+v, %v", m, err)
	}
	if got := o.audits()[0]; got.Who != "alice" || !strings.Contains(got.Detail, "10.50.0.0/16 (10.233.1.0/24 before)") {
		t.Errorf("%+v", got)
	}
	taken, wrong, odd := []string{"10.233.0.0/16"}, []string{"10.1"}, wire.Policy("ice")
	for _, tt := range []struct {
		s    Settings
		want error
	}{
		{Settings{Subnets: &taken}, ErrConflict},
		{Settings{Subnets: &wrong}, ErrInvalid},
		{Settings{Punch: &odd}, ErrInvalid},
	} {
		before := o.content()
		if err := o.Set(o.now, operator, edge1, tt.s); !errors.Is(err, tt.want) || o.content() != before {
			t.Errorf("%+v: %v, want %v", tt.s, err, tt.want)
		}
	}
}

func TestRenew(t *testing.T) {
	o := newOffice(t)
	key := newKey(t)
	p := o.mustJoin(edge1, key, TokenSpec{})
	csr := request(t, wire.JoinToken{}, key, edge1).CSR
	o.now = o.now.Add(60 * 24 * time.Hour)
	answer, err := o.Renew(o.now, "192.0.2.7", p, &wire.RenewRequest{CSR: csr})
	if err != nil {
		t.Fatal(err)
	}
	next := o.presents(answer.Certificate)
	if next.Name != edge1 || next.Serial == p.Serial || next.KeySHA256 != p.KeySHA256 || !next.Certificate.NotAfter.After(p.Certificate.NotAfter) {
		t.Errorf("%+v after %+v", next, p)
	}
	for _, p := range []Presented{p, next} { // its session lives on with the old one
		if _, err := o.Admit(o.now, p); err != nil {
			t.Error(err)
		}
	}
	other, err := pki.NewCA(o.now)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := other.Node(o.now, edge1, key.Public(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := Present(foreign)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name    string
		present Presented
		csr     string
		want    error
	}{
		{"another key", p, request(t, wire.JoinToken{}, newKey(t), edge1).CSR, ErrRefused},
		{"no request", p, "", ErrInvalid},
		{"another CA's certificate", theirs, csr, ErrNotIssuing},
	} {
		before := o.content()
		if _, err := o.Renew(o.now, "", tt.present, &wire.RenewRequest{CSR: tt.csr}); !errors.Is(err, tt.want) || o.content() != before {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
}

func TestBoundNodeSubnets(t *testing.T) {
	granted := store.Admission{Subnets: []string{"10.233.66.0/24"}}
	for _, tt := range []struct {
		said string
		m    store.Admission
		want error
	}{
		{"192.0.2.10/32", granted, nil},
		{"2001:db8::1/128", granted, nil},
		{"10.233.66.128/25", granted, nil},
		{"8.0.0.0/8", granted, ErrRefused},
		{"192.0.2.10/31", granted, ErrRefused},
		{"8.0.0.0/8", store.Admission{}, nil},
	} {
		e := wire.Endpoint{Name: edge1, NodeSubnets: []netip.Prefix{netip.MustParsePrefix(tt.said)}}
		if err := Bound(tt.m, e); !errors.Is(err, tt.want) {
			t.Errorf("%s of %v: %v, want %v", tt.said, tt.m.Subnets, err, tt.want)
		}
	}
}

// Whichever of the two comes first, no certificate of a revoked node is good.
func TestRenewWhileRevoked(t *testing.T) {
	o := newOffice(t)
	for i := range 40 {
		name := wire.NodeName(fmt.Sprintf("beijing.edge%d", i))
		key := newKey(t)
		p := o.mustJoin(name, key, TokenSpec{})
		renewal := wire.RenewRequest{CSR: request(t, wire.JoinToken{}, key, name).CSR}
		var both sync.WaitGroup
		both.Go(func() {
			if _, err := o.Renew(o.now, "", p, &renewal); err != nil && !errors.Is(err, ErrRevoked) {
				t.Error(err)
			}
		})
		both.Go(func() {
			if err := o.Revoke(o.now, operator, string(name), "stolen"); err != nil {
				t.Error(err)
			}
		})
		both.Wait()
		certs, err := o.Certificates(string(name))
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range certs {
			if c.Revoked.IsZero() {
				t.Errorf("%s: certificate %s was issued as the node was revoked", name, c.Serial)
			}
		}
	}
}

// A token for one node makes one, however many come at once.
func TestOneUseForAll(t *testing.T) {
	o := newOffice(t)
	token := o.token(TokenSpec{})
	var all sync.WaitGroup
	var joined atomic.Int32
	for i := range 8 {
		r := request(t, token, newKey(t), wire.NodeName(fmt.Sprintf("beijing.edge%d", i)))
		r.Subnets = []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.1.%d.0/24", i))}
		all.Go(func() {
			_, _, err := o.Join(t.Context(), o.now, "", r, o)
			if err == nil {
				joined.Add(1)
			} else if !errors.Is(err, ErrRefused) {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := joined.Load(); n != 1 {
		t.Errorf("%d nodes joined with a token for one", n)
	}
}

func TestOperatorsAreNoNodes(t *testing.T) {
	o := newOffice(t)
	cert, err := o.CA.Operator(o.now, edge1, "viewer", newKey(t).Public(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Present(cert); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "an operator's (viewer)") {
		t.Errorf("%v", err)
	}
}

func TestMaintain(t *testing.T) {
	o := newOffice(t)
	maintain := func(after time.Duration, want bool) {
		t.Helper()
		o.now = o.now.Add(after)
		if renewed, err := o.Maintain(o.now); err != nil || renewed != want {
			t.Errorf("after %v: renewed %v, %v, want %v", after, renewed, err, want)
		}
	}
	maintain(0, true) // at the start
	maintain(time.Hour, false)
	p := o.mustJoin(edge1, newKey(t), TokenSpec{})
	if err := o.Revoke(o.now, operator, edge1, ""); err != nil {
		t.Fatal(err)
	}
	number := o.number()
	maintain(crlRenewal-time.Second, false)
	if tokens, err := o.Tokens(); err != nil || len(tokens) != 0 {
		t.Errorf("expired tokens: %+v, %v", tokens, err)
	}
	maintain(time.Second, true)
	if list, err := pki.ParseCRL(o.CRL(), o.CA.Certificate); err != nil || !list.NextUpdate.After(o.now.Add(crlLifetime-time.Minute)) || o.number() <= number {
		t.Errorf("%+v, %v", list, err)
	}
	// What has expired goes, but not before a list has named it once more.
	maintain(p.Certificate.NotAfter.Sub(o.now)+time.Hour, true)
	if !o.listed()[p.Serial] {
		t.Error("taken off the list too early")
	}
	maintain(certificateKept, true)
	if certs, err := o.Certificates(edge1); err != nil || len(certs) != 0 || len(o.listed()) != 0 {
		t.Errorf("%+v, %v, on the list %v", certs, err, o.listed())
	}
}

// The number of a list grows over a restart, too.
func TestListNumberOverARestart(t *testing.T) {
	o := newOffice(t)
	if _, err := o.Maintain(o.now); err != nil {
		t.Fatal(err)
	}
	before := o.number()
	o.Authority = New(o.store, o.CA, o.rules)
	if _, err := o.Maintain(o.now); err != nil {
		t.Fatal(err)
	}
	if o.number() <= before {
		t.Errorf("list %d after %d", o.number(), before)
	}
}

// A store that was lost does not know whom its CA's list named.
func TestForgotten(t *testing.T) {
	o := newOffice(t)
	for _, tt := range []struct {
		who   *Authority
		after time.Duration
		want  bool
	}{
		{o.Authority, 0, false}, // made together
		{o.Authority, youngCA, true},
		{New(o.store, o.CA, Rules{Manual: true}), youngCA, false},
		{New(o.store, nil, Rules{}), youngCA, false}, // somebody else's CA has a list of its own
	} {
		if got := tt.who.Forgotten(o.now.Add(tt.after)); (got != "") != tt.want {
			t.Errorf("after %v: %q", tt.after, got)
		}
	}
}
