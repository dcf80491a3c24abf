package rendezvous

import (
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/internal/certfile"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// show writes a certificate of this common name over the rendezvous' own.
func (s *site) show(cert tls.Certificate) {
	s.t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		s.t.Fatal(err)
	}
	writePEM(s.t, s.config.Certificate, "CERTIFICATE", cert.Certificate[0])
	writePEM(s.t, s.config.Key, "PRIVATE KEY", key)
}

// shown is the common name of the certificate that a new agent is shown.
func (r *running) shown() string {
	r.t.Helper()
	conn, err := r.dialTLS(r.ca.issue(string(edge3)))
	if err != nil {
		r.t.Fatalf("dial: %v", err)
	}
	defer conn.Close()
	return conn.NetConn().(*tls.Conn).ConnectionState().PeerCertificates[0].Subject.CommonName
}

// A certificate that is renewed is shown to who comes, without a restart, and
// sessions that stand do not notice. Files that do not fit change nothing.
func TestRenewedCertificate(t *testing.T) {
	s := newSite(t)
	r := s.start()
	standing := r.join(edge1)
	standing.expectPeers()
	s.show(r.ca.issue("renewed"))
	r.server.Reload()
	r.until("renewed", func(Snapshot) bool { return r.shown() == "renewed" })

	write(t, s.config.Key, "half a key")
	r.server.Reload()
	r.until("bad files are said", func(Snapshot) bool { return strings.Contains(r.server.trouble(), "not renewed: ") })
	if err := r.server.ready(); err != nil {
		t.Errorf("not ready, though all that stands goes on: %v", err)
	}
	if got := r.shown(); got != "renewed" {
		t.Errorf("%s is shown, want what was good last", got)
	}

	// Another authority: whom the old one has signed is let in no more.
	other := newTestCA(t)
	writePEM(t, s.config.CA, "CERTIFICATE", other.cert.Raw)
	s.show(r.ca.issue("again"))
	r.server.Reload()
	r.until("good again", func(Snapshot) bool { return !strings.Contains(r.server.trouble(), "not renewed") })
	if conn, err := r.dialTLS(r.ca.issue(string(edge3))); err == nil {
		// With TLS 1.3 the refusal comes after the client's part is done.
		if _, _, err := conn.ReadMessage(); err == nil {
			t.Error("an agent of the former CA is let in")
		}
		conn.Close()
	}
	standing.send(&wire.Network{NAT: wire.NAT{Present: true}})
	r.until("the first session goes on", func(s Snapshot) bool { return nodeIn(s, edge1).NAT.Present })
}

// Files are somebody's who writes them, for a minute; then they are a mistake.
func TestCertificateFilesThatDoNotFit(t *testing.T) {
	s := newSite(t)
	c, err := newCertificates(s.config, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	first := c.current.Load()
	check := func(what string, trouble string) {
		t.Helper()
		if got := c.problem.Load(); (got != nil) != (trouble != "") || got != nil && !strings.Contains(*got, trouble) {
			t.Errorf("%s: problem %v, want %q", what, got, trouble)
		}
	}
	c.look(now, false)
	if c.current.Load() != first {
		t.Error("files that have not changed were read again")
	}
	good, err := os.ReadFile(s.config.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	write(t, s.config.Certificate, "half a certificate")
	c.look(now, false)
	check("being written", "")
	c.look(now.Add(certfile.Patience), false)
	check("left like that", "PEM")
	if c.current.Load() != first {
		t.Error("another certificate is in use")
	}
	write(t, s.config.Certificate, string(good))
	c.look(now.Add(certfile.Patience+certfile.Poll), false)
	check("mended", "")
	if c.current.Load() == first {
		t.Error("what was mended is not taken")
	}
	c.look(now.Add(2*time.Hour), true)
	check("out of its time", "this machine's clock says")
}

func TestCertificateTrouble(t *testing.T) {
	s := newSite(t)
	c, err := newCertificates(s.config, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	leaf := c.current.Load().leaf // of two hours, in the middle of which it is
	for _, tt := range []struct {
		at   time.Time
		want string
	}{
		{leaf.NotBefore.Add(time.Hour), ""},
		{leaf.NotAfter.Add(-30 * time.Minute), "expires on"},
		{leaf.NotAfter.Add(time.Minute), "no agent gets in"},
		{leaf.NotBefore.Add(-time.Minute), "no agent gets in"},
	} {
		if got := c.trouble(tt.at); !strings.Contains(got, tt.want) || (tt.want == "") != (got == "") {
			t.Errorf("%v before its end: %q, want %q", leaf.NotAfter.Sub(tt.at), got, tt.want)
		}
	}
}

// A reload that finds what is in use already has nothing to say.
func TestReloadOfTheSame(t *testing.T) {
	s := newSite(t)
	var text strings.Builder
	c, err := newCertificates(s.config, slog.New(slog.NewTextHandler(&text, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if c.look(time.Now(), true); text.Len() > 0 {
		t.Errorf("said: %s", &text)
	}
	s.show(s.ca.issue("renewed"))
	if c.look(time.Now(), true); !strings.Contains(text.String(), "certificate taken into use") {
		t.Errorf("of another one: %q", &text)
	}
}
