package rendezvous

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/internal/pki"
	"github.com/bodkin-net/bodkin/rendezvous/access"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

// From a token to a session, as a node does it.
func TestJoinToSession(t *testing.T) {
	r := newIssuingSite(t).start()
	var made CreatedToken
	r.operate("POST", "/api/v1/tokens", NewToken{Name: string(edge1), Subnets: []string{endpointOf(edge1).Subnets[0].String()}}, &made)
	if want := "https://" + r.server.agents.Addr().String(); made.URL != want {
		t.Errorf("URL %q, want %q", made.URL, want)
	}
	token, err := wire.ParseJoinToken(made.Token)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := pki.ParseCertificate(r.ask("GET", wire.PathCA, nil).body)
	if err != nil || pki.Hash(ca) != token.CAHash {
		t.Fatalf("CA: %v; its hash is the token's: %v", err, ca != nil && pki.Hash(ca) == token.CAHash)
	}
	key := newKey(t)
	request := joinRequest(token, edge1, newRequest(t, key))
	request.Name, request.Subnets = "", nil // the token says both
	var joined wire.JoinAnswer
	if a := r.ask("POST", wire.PathJoin, request); a.status != http.StatusOK || json.Unmarshal(a.body, &joined) != nil {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if joined.Name != edge1 || joined.Pending || !slices.Equal(joined.Subnets, endpointOf(edge1).Subnets) {
		t.Errorf("%+v", joined)
	}
	if n := nodeIn(r.snapshot(), edge1); n.Admission != store.Approved || n.Online {
		t.Errorf("before its first session: %+v", n)
	}
	p := r.come(edge1, tlsCertificate(t, joined.Certificate, key))
	if crl := expect[*wire.Revocations](p); len(r.revoked(crl.CRL)) != 0 {
		t.Errorf("revoked: %v", r.revoked(crl.CRL))
	}
	p.expectPeers()
	var tokens TokenList
	r.operate("GET", "/api/v1/tokens", nil, &tokens)
	if len(tokens.Tokens) != 1 || len(tokens.Tokens[0].Uses) != 1 || tokens.Tokens[0].Uses[0].Node != string(edge1) {
		t.Errorf("%+v", tokens)
	}
	if strings.Contains(fmt.Sprint(tokens), hex.EncodeToString(token.Secret[:])) {
		t.Error("the listing shows the secret")
	}
}

// What is wrong with a request is one line, and the store stays as it was.
func TestJoinBadInput(t *testing.T) {
	r := newIssuingSite(t).start()
	r.enrol(edge2, NewToken{})
	csr := newRequest(t, newKey(t))
	good := func(spec NewToken) *wire.JoinRequest { return joinRequest(r.token(spec), edge1, csr) }
	with := func(change func(*wire.JoinRequest)) *wire.JoinRequest {
		request := good(NewToken{})
		change(request)
		return request
	}
	used := good(NewToken{})
	used.Name = "beijing.edge3"
	used.CSR, used.Subnets = newRequest(t, newKey(t)), endpointOf("beijing.edge3").Subnets
	if a := r.ask("POST", wire.PathJoin, used); a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	twice := *used
	twice.Name, twice.CSR, twice.Subnets = edge1, csr, endpointOf(edge1).Subnets
	tests := []struct {
		name   string
		body   any
		status int
		words  string
	}{
		{"no JSON", "join me", 422, "the body"},
		{"half a JSON", `{"tokenID":"`, 422, "ends too early"},
		{"empty", "", 422, "ends too early"},
		{"two", `{}{}`, 422, "more than one"},
		{"another type", `{"tokenID":7}`, 422, "tokenID"},
		{"too large", with(func(r *wire.JoinRequest) { r.CSR = strings.Repeat("x", maxJoin) }), 413, "larger than"},
		{"unknown token", with(func(r *wire.JoinRequest) { r.TokenID = "0011223344556677" }), 401, "not known here"},
		{"wrong secret", with(func(r *wire.JoinRequest) { r.Secret = strings.Repeat("00", 16) }), 401, "not known here"},
		{"used twice", &twice, 403, "was used by beijing.edge3"},
		{"for another name", good(NewToken{Name: string(edge2)}), 403, "is for beijing.edge2"},
		{"bad CSR", with(func(r *wire.JoinRequest) { r.CSR = "-----BEGIN" }), 422, "csr"},
		{"name that exists", with(func(r *wire.JoinRequest) { r.Name, r.Subnets = edge2, endpointOf(edge2).Subnets }), 409, "there is a node beijing.edge2"},
		{"another's subnets", with(func(r *wire.JoinRequest) { r.Subnets = endpointOf(edge2).Subnets }), 409, "overlaps"},
		{"subnets that are not the token's", good(NewToken{Subnets: []string{"10.99.0.0/16"}}), 403, "does not permit"},
		{"HTML for a name", with(func(r *wire.JoinRequest) { r.Name = "<script>" }), 422, "lower-case DNS name"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := r.ask("POST", wire.PathJoin, tt.body)
			if words := a.failure(t); a.status != tt.status || !strings.Contains(words, tt.words) {
				t.Errorf("%d %q, want %d with %q", a.status, words, tt.status, tt.words)
			}
		})
	}
	if records, err := r.server.authority.Records(); err != nil || len(records) != 2 {
		t.Errorf("records %+v, %v: want those of edge2 and edge3", records, err)
	}
}

// Guesses are slowed down, and whoever knows is let in from elsewhere meanwhile.
func TestJoinGuessing(t *testing.T) {
	r := newIssuingSite(t).start()
	request := joinRequest(r.token(NewToken{}), edge1, newRequest(t, newKey(t)))
	guess := *request
	guess.Secret = strings.Repeat("00", 16)
	for i := range 100 {
		a := r.ask("POST", wire.PathJoin, &guess)
		a.failure(t)
		if a.status == http.StatusTooManyRequests {
			if i < 3 || a.header.Get("Retry-After") == "" {
				t.Errorf("after %d guesses, Retry-After %q", i, a.header.Get("Retry-After"))
			}
			break
		}
		if a.status != http.StatusUnauthorized || i == 99 {
			t.Fatalf("guess %d: %d %s", i, a.status, a.body)
		}
	}
	if a := r.ask("POST", wire.PathJoin, request); a.status != http.StatusTooManyRequests {
		t.Errorf("the right one from the same address: %d", a.status)
	}
}

// A revoked node is out at once, its peers hear of it, and it stays out, over a
// restart too, until it is deleted and joins anew.
func TestRevokedNode(t *testing.T) {
	site := newIssuingSite(t)
	r := site.start()
	r.apply(community("all", edge1, edge2))
	first, second := r.enrol(edge1, NewToken{}), r.enrol(edge2, NewToken{})
	one, two := r.come(edge1, first), r.come(edge2, second)
	one.expectPeers(edge2)
	two.expectPeers(edge1)

	var done RevokedNode
	r.operate("POST", "/api/v1/nodes/"+string(edge1)+"/revoke", Revocation{Reason: "stolen"}, &done)
	if done.Certificates != 1 || done.Admission.State != store.Revoked || done.Admission.Reason != "stolen" || done.Admission.By != "unix socket" {
		t.Errorf("%+v", done)
	}
	if bye := one.expectBye(); !bye.Final || !strings.Contains(bye.Reason, "was revoked on") || !strings.Contains(bye.Reason, "stolen") {
		t.Errorf("%+v", bye)
	}
	serial := pki.Serial(first.Leaf)
	two.expectWithout(r, serial)
	if p := pairIn(r.snapshot(), edge1, edge2); p.ID != "" {
		t.Errorf("the pair is there: %+v", p)
	}
	out := func(r *running) {
		t.Helper()
		if a := r.refusedAt(first); a.status != http.StatusForbidden || !strings.Contains(a.failure(t), "was revoked on") {
			t.Errorf("it comes back: %d %s", a.status, a.body)
		}
		key := first.PrivateKey.(crypto.Signer)
		if a := r.ask("POST", wire.PathRenew, wire.RenewRequest{CSR: newRequest(t, key)}, first); a.status != http.StatusForbidden {
			t.Errorf("it renews: %d %s", a.status, a.body)
		}
		if a := r.ask("POST", wire.PathJoin, joinRequest(r.token(NewToken{Replace: true}), edge1, newRequest(t, key))); a.status != http.StatusForbidden || !strings.Contains(a.failure(t), "node delete") {
			t.Errorf("it joins: %d %s", a.status, a.body)
		}
		if a := r.operate("POST", "/api/v1/nodes/"+string(edge1)+"/approve", nil, nil); a.status != http.StatusConflict {
			t.Errorf("approved: %d %s", a.status, a.body)
		}
		if n := nodeIn(r.snapshot(), edge1); n.Online || n.Admission != store.Revoked {
			t.Errorf("%+v", n)
		}
	}
	out(r)
	r.stop()
	r = site.start()
	out(r)
	two = r.come(edge2, second)
	if crl := expect[*wire.Revocations](two); !slices.Equal(r.revoked(crl.CRL), []string{serial}) {
		t.Errorf("on the list after a restart: %v", r.revoked(crl.CRL))
	}
	two.expectPeers()

	if a := r.operate("DELETE", "/api/v1/nodes/"+string(edge1), nil, nil); a.status != http.StatusNoContent {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if a := r.refusedAt(first); a.status != http.StatusForbidden || !strings.Contains(a.failure(t), "join anew") {
		t.Errorf("the old certificate: %d %s", a.status, a.body)
	}
	if n := nodeIn(r.snapshot(), edge1); n.Name != "" {
		t.Errorf("deleted, and there again: %+v", n)
	}
	one = r.come(edge1, r.enrol(edge1, NewToken{}))
	one.expectPeers(edge2)
	two.expectPeers(edge1)
	if got := r.revoked(r.ask("GET", wire.PathCRL, nil).body); !slices.Equal(got, []string{serial}) {
		t.Errorf("on the list: %v", got)
	}
}

func TestApprovedByHand(t *testing.T) {
	site := newIssuingSite(t)
	site.config.Approval = ApprovalManual
	r := site.start()
	r.apply(community("all", edge1, edge2))
	// One with a token, one with a certificate that the CA has signed elsewhere.
	first, second := r.enrol(edge1, NewToken{}), r.ca.issue(string(edge2))
	for _, cert := range []tls.Certificate{first, second} {
		a := r.refusedAt(cert)
		if words := a.failure(t); a.status != http.StatusForbidden || !strings.Contains(words, "bodkin node approve beijing.edge") || a.header.Get("Retry-After") != "10" {
			t.Errorf("%d %q, Retry-After %q", a.status, words, a.header.Get("Retry-After"))
		}
	}
	for _, name := range []wire.NodeName{edge1, edge2} {
		if n := nodeIn(r.snapshot(), name); n.Admission != store.Pending || n.Online {
			t.Errorf("%+v", n)
		}
	}
	for _, name := range []string{string(edge1), string(edge2)} {
		var view AdmissionView
		r.operate("POST", "/api/v1/nodes/"+name+"/approve", nil, &view)
		if view.State != store.Approved || view.By != "unix socket" || view.Since.IsZero() {
			t.Errorf("%+v", view)
		}
	}
	one := r.come(edge1, first)
	one.expectPeers()
	r.join(edge2).expectPeers(edge1)
	one.expectPeers(edge2)
	if a := r.operate("POST", "/api/v1/nodes/nonesuch/approve", nil, nil); a.status != http.StatusNotFound {
		t.Errorf("a node that is none: %d %s", a.status, a.body)
	}
}

// Approval and the rest of joining follow the configuration while it runs.
func TestApprovalFollowsTheConfiguration(t *testing.T) {
	r := newIssuingSite(t).start()
	file := r.server.cfg
	file.Approval, file.CertificateLifetime = ApprovalManual, "24h"
	if err := r.server.Reconfigure(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	cert := r.enrol(edge1, NewToken{})
	if a := r.refusedAt(cert); a.status != http.StatusForbidden || !strings.Contains(a.failure(t), "waits for approval") {
		t.Errorf("%d %s", a.status, a.body)
	}
	if left := time.Until(cert.Leaf.NotAfter); left > 24*time.Hour || left < 23*time.Hour {
		t.Errorf("good for %v", left)
	}
}

// With an existing CA nothing is issued, and a node is kept out all the same.
func TestExistingCA(t *testing.T) {
	r := newSite(t).start()
	r.apply(community("all", edge1, edge2))
	if a := r.ask("POST", wire.PathJoin, &wire.JoinRequest{}); a.status != http.StatusConflict || !strings.Contains(a.failure(t), "no token is needed") {
		t.Errorf("join: %d %s", a.status, a.body)
	}
	if a := r.ask("POST", wire.PathRenew, &wire.RenewRequest{}, r.ca.issue(string(edge1))); a.status != http.StatusConflict {
		t.Errorf("renew: %d %s", a.status, a.body)
	}
	if a := r.ask("GET", wire.PathCRL, nil); a.status != http.StatusNotFound {
		t.Errorf("crl: %d %s", a.status, a.body)
	}
	if a := r.operate("POST", "/api/v1/tokens", NewToken{}, nil); a.status != http.StatusConflict {
		t.Errorf("token: %d %s", a.status, a.body)
	}
	if ca, err := pki.ParseCertificate(r.ask("GET", wire.PathCA, nil).body); err != nil || !ca.Equal(r.ca.cert) {
		t.Errorf("ca: %v", err)
	}
	one, two := r.join(edge1), r.join(edge2)
	one.expectPeers(edge2)
	two.expectPeers(edge1)
	var done RevokedNode
	r.operate("POST", "/api/v1/nodes/"+string(edge1)+"/revoke", Revocation{}, &done)
	if done.Certificates != 0 {
		t.Errorf("%+v", done)
	}
	if bye := one.expectBye(); !bye.Final {
		t.Errorf("%+v", bye)
	}
	two.expectPeers()
	if a := r.refusedAt(r.ca.issue(string(edge1))); a.status != http.StatusForbidden {
		t.Errorf("another certificate of it: %d %s", a.status, a.body)
	}
	r.operate("POST", "/api/v1/nodes/"+string(edge1)+"/approve", nil, &AdmissionView{})
	r.join(edge1).expectPeers(edge2)
	two.expectPeers(edge1)
}

func TestRenewOverTLS(t *testing.T) {
	r := newIssuingSite(t).start()
	cert := r.enrol(edge1, NewToken{})
	key := cert.PrivateKey.(crypto.Signer)
	request := wire.RenewRequest{CSR: newRequest(t, key)}
	if a := r.ask("POST", wire.PathRenew, request); a.status != http.StatusUnauthorized {
		t.Errorf("without a certificate: %d %s", a.status, a.body)
	}
	var renewed wire.RenewAnswer
	a := r.ask("POST", wire.PathRenew, request, cert)
	if a.status != http.StatusOK || json.Unmarshal(a.body, &renewed) != nil {
		t.Fatalf("%d %s", a.status, a.body)
	}
	next := tlsCertificate(t, renewed.Certificate, key)
	if next.Leaf.SerialNumber.Cmp(cert.Leaf.SerialNumber) == 0 {
		t.Error("the same certificate")
	}
	r.come(edge1, next).expectPeers()
	if a := r.ask("POST", wire.PathRenew, wire.RenewRequest{CSR: newRequest(t, newKey(t))}, cert); a.status != http.StatusForbidden {
		t.Errorf("with another key: %d %s", a.status, a.body)
	}
}

// A node gets what it was granted, from its next session on.
func TestSettings(t *testing.T) {
	r := newIssuingSite(t).start()
	cert := r.enrol(edge1, NewToken{})
	one := r.come(edge1, cert)
	one.expectPeers()
	patch := func(s NodeSettings, status int) {
		t.Helper()
		if a := r.operate("PATCH", "/api/v1/nodes/"+string(edge1), s, nil); a.status != status {
			t.Errorf("%+v: %d %s, want %d", s, a.status, a.body, status)
		}
	}
	never, note, odd := wire.PolicyNever, "behind the till", wire.Policy("ice")
	patch(NodeSettings{Note: &note}, http.StatusOK)
	patch(NodeSettings{Punch: &odd}, http.StatusUnprocessableEntity)
	patch(NodeSettings{Subnets: &[]string{"10.1"}}, http.StatusUnprocessableEntity)
	patch(NodeSettings{Punch: &never}, http.StatusOK)
	if bye := one.expectBye(); bye.Final || !strings.Contains(bye.Reason, "an operator has changed") {
		t.Errorf("%+v", bye)
	}
	one = r.come(edge1, cert)
	one.expectPeers()
	if n := nodeIn(r.snapshot(), edge1); n.Punch != wire.PolicyNever {
		t.Errorf("punches as it says itself: %+v", n)
	}
	patch(NodeSettings{Subnets: &[]string{"10.99.0.0/16"}}, http.StatusOK)
	one.expectBye()
	if bye := r.come(edge1, cert).expectBye(); !bye.Final || !strings.Contains(bye.Reason, "is not granted to beijing.edge1, which may have 10.99.0.0/16") {
		t.Errorf("%+v", bye)
	}
	patch(NodeSettings{Subnets: &[]string{}}, http.StatusOK)
	r.come(edge1, cert).expectPeers()
	if a := r.operate("PATCH", "/api/v1/nodes/nonesuch", NodeSettings{Note: &note}, nil); a.status != http.StatusNotFound {
		t.Errorf("a node that is none: %d", a.status)
	}
	if a := r.operate("DELETE", "/api/v1/nodes/"+string(edge1), nil, nil); a.status != http.StatusConflict || !strings.Contains(a.failure(t), "is online") {
		t.Errorf("deleted while it is online: %d %s", a.status, a.body)
	}
}

func TestNoSessionWithoutANodesCertificate(t *testing.T) {
	r := newIssuingSite(t).start()
	if a := r.ask("GET", "/v1/agent", nil); a.status != http.StatusUnauthorized || a.failure(t) == "" {
		t.Errorf("without a certificate: %d %s", a.status, a.body)
	}
	key := newKey(t)
	cert, err := r.server.authority.CA.Operator(time.Now(), string(edge1), "admin", key.Public(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	operator := tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
	if a := r.refusedAt(operator); a.status != http.StatusForbidden || !strings.Contains(a.failure(t), "an operator's") {
		t.Errorf("an operator's: %d %s", a.status, a.body)
	}
}

func TestConfigOfEnrolment(t *testing.T) {
	for words, change := range map[string]func(*Config){
		"caKey":               func(c *Config) { c.CAKey = filepath.Join(filepath.Dir(c.CA), "nonesuch") },
		"belongs to none":     func(c *Config) { c.CAKey = c.Key },
		"approval":            func(c *Config) { c.Approval = "maybe" },
		"certificateLifetime": func(c *Config) { c.CertificateLifetime = "a year" },
		"1m0s or more":        func(c *Config) { c.CertificateLifetime = "1s" },
	} {
		s := newIssuingSite(t)
		change(&s.config)
		server, err := New(s.config, slog.New(slog.DiscardHandler))
		if !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), words) {
			t.Errorf("%v, want %q", err, words)
		}
		if server != nil {
			server.Close()
		}
	}
}

// The rendezvous' own certificate is renewed in time, for the same key and hosts.
func TestRenewCertificate(t *testing.T) {
	s := newIssuingSite(t)
	ca, err := s.config.issuer()
	if err != nil {
		t.Fatal(err)
	}
	read := func() *x509.Certificate {
		text, err := os.ReadFile(s.config.Certificate)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := pki.ParseCertificate(text)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	first := read()
	due := renewalOf(first)
	for _, tt := range []struct {
		now  time.Time
		want bool
	}{{due.Add(-time.Second), false}, {due, true}, {due, false}} {
		if got, err := s.config.RenewCertificate(tt.now, ca, false); got != tt.want || err != nil {
			t.Errorf("at %s: %v, %v, want %v", tt.now, got, err, tt.want)
		}
	}
	next := read()
	if !next.NotAfter.After(first.NotAfter) || !next.IPAddresses[0].Equal(net.IPv4(127, 0, 0, 1)) || !bytes.Equal(next.RawSubjectPublicKeyInfo, first.RawSubjectPublicKeyInfo) {
		t.Errorf("%+v", next)
	}
	if _, err := tls.LoadX509KeyPair(s.config.Certificate, s.config.Key); err != nil {
		t.Error(err)
	}
	other, err := pki.NewCA(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for name, ca := range map[string]*pki.CA{"another CA's": other, "without the key": nil} {
		if got, err := s.config.RenewCertificate(next.NotAfter, ca, true); got || err != nil {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// Whoever starts with an empty store beside a CA that has issued before is told.
func TestStoreLost(t *testing.T) {
	old := newIssuingSiteOf(t, time.Now().Add(-24*time.Hour))
	for _, tt := range []struct {
		name string
		site *site
		want bool
	}{{"both new", newIssuingSite(t), false}, {"the store lost", old, true}, {"the next start", old, false}} {
		r := tt.site.start()
		var o Overview
		getJSON(t, r.serving(access.Socket), "/api/v1/overview", &o)
		if strings.Contains(o.Trouble, "the store is new") != tt.want {
			t.Errorf("%s: trouble %q", tt.name, o.Trouble)
		}
		r.stop()
	}
}
