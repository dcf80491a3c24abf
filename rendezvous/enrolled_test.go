package rendezvous

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/bodkin-net/bodkin/internal/pki"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// newIssuingSite is a site that holds the key of its CA.
func newIssuingSite(t *testing.T) *site {
	t.Helper()
	return newIssuingSiteOf(t, time.Now())
}

// newIssuingSiteOf is one whose CA was made then.
func newIssuingSiteOf(t *testing.T, made time.Time) *site {
	t.Helper()
	s := newSite(t)
	ca, err := pki.NewCA(made)
	if err != nil {
		t.Fatal(err)
	}
	text, err := ca.EncodeKey()
	if err != nil {
		t.Fatal(err)
	}
	key, err := pki.ParseKey(text)
	if err != nil {
		t.Fatal(err)
	}
	s.ca = &authority{t, ca.Certificate, key.(*ecdsa.PrivateKey)}
	s.config.CAKey = filepath.Join(filepath.Dir(s.config.CA), "cakey")
	serverKey := newKey(t)
	cert, err := ca.Server(time.Now(), []string{"127.0.0.1"}, serverKey.Public())
	if err != nil {
		t.Fatal(err)
	}
	serverText, err := pki.EncodeKey(serverKey)
	if err != nil {
		t.Fatal(err)
	}
	write(t, s.config.CA, string(pki.EncodeCertificate(ca.Certificate.Raw)))
	write(t, s.config.CAKey, string(text))
	write(t, s.config.Certificate, string(pki.EncodeCertificate(cert.Raw)))
	write(t, s.config.Key, string(serverText))
	return s
}

func newKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newRequest(t *testing.T, key crypto.Signer) string {
	t.Helper()
	text, err := pki.EncodeRequest(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// answer is what an HTTP request came to.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// failure is the words of an answer that is no success: one line.
func (a answer) failure(t *testing.T) string {
	t.Helper()
	var e apiError
	if err := json.Unmarshal(a.body, &e); err != nil || e.Error == "" || strings.ContainsAny(e.Error, "\n\r") {
		t.Errorf("%d: body %q is no error of one line", a.status, a.body)
	}
	return e.Error
}

func do(t *testing.T, client *http.Client, method, url string, in any) answer {
	t.Helper()
	body, isText := in.(string)
	if !isText && in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		body = string(b)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, b}
}

// ask sends a request to the listener for agents.
func (r *running) ask(method, path string, in any, certs ...tls.Certificate) answer {
	r.t.Helper()
	transport := &http.Transport{
		TLSClientConfig:   &tls.Config{Certificates: certs, RootCAs: r.ca.pool(), MinVersion: tls.VersionTLS13},
		DisableKeepAlives: true,
	}
	return do(r.t, &http.Client{Transport: transport, Timeout: testWait}, method, "https://"+r.server.agents.Addr().String()+path, in)
}

// operate sends a request to the admin socket and decodes its answer.
func (r *running) operate(method, path string, in, out any) answer {
	r.t.Helper()
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", r.config.AdminSocket)
		},
		DisableKeepAlives: true,
	}
	a := do(r.t, &http.Client{Transport: transport, Timeout: testWait}, method, "http://bodkin"+path, in)
	if out != nil {
		if err := json.Unmarshal(a.body, out); err != nil || a.status/100 != 2 {
			r.t.Fatalf("%s %s: %d %s", method, path, a.status, a.body)
		}
	}
	return a
}

// token creates a join token by the API.
func (r *running) token(spec NewToken) wire.JoinToken {
	r.t.Helper()
	var made CreatedToken
	r.operate("POST", "/api/v1/tokens", spec, &made)
	token, err := wire.ParseJoinToken(made.Token)
	if err != nil || token.TokenID() != made.ID {
		r.t.Fatalf("%+v: %v", made, err)
	}
	return token
}

func joinRequest(token wire.JoinToken, name wire.NodeName, csr string) *wire.JoinRequest {
	return &wire.JoinRequest{
		TokenID: token.TokenID(), Secret: hex.EncodeToString(token.Secret[:]), Name: name,
		CSR: csr, Subnets: endpointOf(name).Subnets, Type: wire.Edge,
	}
}

// enrol makes a node with a token of its own and returns what it has then.
func (r *running) enrol(name wire.NodeName, spec NewToken) tls.Certificate {
	r.t.Helper()
	key := newKey(r.t)
	a := r.ask("POST", wire.PathJoin, joinRequest(r.token(spec), name, newRequest(r.t, key)))
	var joined wire.JoinAnswer
	if err := json.Unmarshal(a.body, &joined); err != nil || a.status != http.StatusOK {
		r.t.Fatalf("join of %s: %d %s", name, a.status, a.body)
	}
	return tlsCertificate(r.t, joined.Certificate, key)
}

func tlsCertificate(t *testing.T, text string, key crypto.Signer) tls.Certificate {
	t.Helper()
	cert, err := pki.ParseCertificate([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
}

// come opens a session with a certificate and says hello.
func (r *running) come(name wire.NodeName, cert tls.Certificate) *peer {
	r.t.Helper()
	conn, err := r.dialTLS(cert)
	if err != nil {
		r.t.Fatalf("%s: %v", name, err)
	}
	r.t.Cleanup(func() { _ = conn.Close() })
	p := &peer{t: r.t, name: name, conn: conn}
	p.welcome = expect[*wire.Welcome](p)
	e := endpointOf(name)
	e.ID = "O=bodkin, CN=" + string(name)
	p.send(&wire.Hello{AgentVersion: "test", Endpoint: e, Candidates: []wire.Candidate{}, Answers: true})
	return p
}

// refusedAt is the answer to a session that is refused before it begins.
func (r *running) refusedAt(cert tls.Certificate) answer {
	r.t.Helper()
	d := websocket.Dialer{
		HandshakeTimeout: testWait,
		TLSClientConfig:  &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: r.ca.pool(), MinVersion: tls.VersionTLS13},
	}
	conn, resp, err := d.DialContext(r.t.Context(), "wss://"+r.server.agents.Addr().String()+"/v1/agent", nil)
	if err == nil {
		_ = conn.Close()
		r.t.Fatal("let in")
	}
	if !errors.Is(err, websocket.ErrBadHandshake) {
		r.t.Fatalf("want words, got %v", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, b}
}

// revoked are the serials of a list.
func (r *running) revoked(der []byte) []string {
	r.t.Helper()
	list, err := pki.ParseCRL(der, r.ca.cert)
	if err != nil {
		r.t.Fatal(err)
	}
	serials := []string{}
	for _, e := range list.RevokedCertificateEntries {
		serials = append(serials, pki.Serial(&x509.Certificate{SerialNumber: e.SerialNumber}))
	}
	return serials
}

// expectWithout reads until the node has no peers and the certificate of that
// serial is revoked, of which either may come first.
func (p *peer) expectWithout(r *running, serial string) {
	p.t.Helper()
	for alone, listed := false, false; !alone || !listed; {
		m, err := p.next()
		if err != nil {
			p.t.Fatalf("%s: %v; alone %v, %s listed %v", p.name, err, alone, serial, listed)
		}
		switch m := m.(type) {
		case *wire.Peers:
			alone = len(m.Peers) == 0
		case *wire.Revocations:
			listed = slices.Contains(r.revoked(m.CRL), serial)
		}
	}
}
