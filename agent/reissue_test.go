package agent

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/internal/pki"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

func TestReissueDue(t *testing.T) {
	const day = 24 * time.Hour
	from := time.Now()
	leaf := &x509.Certificate{Raw: []byte("one"), NotBefore: from, NotAfter: from.Add(90 * day)}
	r := newReissue()
	for _, tt := range []struct {
		share float64
		after time.Duration
		want  bool
	}{{0, 54*day - time.Minute, false}, {0, 54*day + time.Minute, true}, {1, 60*day - time.Minute, false}, {1, 60*day + time.Minute, true}} {
		r.leaf = nil
		if got := r.due(from.Add(tt.after), leaf, tt.share); got != tt.want {
			t.Errorf("share %v after %v: due %v, want %v", tt.share, tt.after, got, tt.want)
		}
	}
	at := func(after time.Duration) bool { return r.due(from.Add(after), leaf, 0) }
	r.asking = true
	if at(70 * day) {
		t.Error("asked a second time while the first is not answered")
	}
	for _, tt := range []struct {
		ended time.Duration
		err   error
		again time.Duration
	}{
		{70 * day, errors.New("no answer"), reissueMax},
		{90*day - 80*time.Minute, errors.New("no answer"), 10 * time.Minute},
		{90*day - time.Second, errors.New("no answer"), reissueMin},
		{60 * day, &RefusedError{Status: http.StatusForbidden}, reissueMax},
		{60 * day, &RefusedError{Status: http.StatusConflict}, reissueForeign},
	} {
		r.ended(from.Add(tt.ended), tt.err)
		if at(tt.ended+tt.again-time.Second) || !at(tt.ended+tt.again) {
			t.Errorf("after %v at %v: not asked again after exactly %v", tt.err, tt.ended, tt.again)
		}
		if (r.problem == nil) != issuesNone(tt.err) {
			t.Errorf("after %v: problem %v", tt.err, r.problem)
		}
	}
	other := &x509.Certificate{Raw: []byte("other"), NotBefore: from.Add(60 * day), NotAfter: from.Add(150 * day)}
	if r.due(from.Add(61*day), other, 0) || r.problem != nil {
		t.Error("a new certificate is not reckoned anew")
	}
}

// ownCA is a rendezvous' CA, a node's files of it, and the node.
type ownCA struct {
	*testing.T
	ca  *pki.CA
	cfg Config
	id  *identity
	now time.Time
}

func newOwnCA(t *testing.T) *ownCA {
	t.Helper()
	o := &ownCA{T: t, now: time.Now(), cfg: DefaultConfig()}
	var err error
	if o.ca, err = pki.NewCA(o.now); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	o.cfg.Certificate, o.cfg.Key, o.cfg.CA = filepath.Join(dir, "node.crt"), filepath.Join(dir, "node.key"), filepath.Join(dir, "ca.crt")
	o.cfg.Endpoint.Subnets, o.cfg.Rendezvous = []string{"10.233.66.0/24"}, "https://127.0.0.1:7443"
	key, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	text, err := pki.EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, o.cfg.Key, text)
	mustWrite(t, o.cfg.CA, pki.EncodeCertificate(o.ca.Certificate.Raw))
	mustWrite(t, o.cfg.Certificate, o.issue("beijing.edge1", key.Public()))
	if o.id, err = newIdentity(o.cfg); err != nil {
		t.Fatal(err)
	}
	return o
}

func (o *ownCA) issue(name string, key any) []byte {
	cert, err := o.ca.Node(o.now, name, key, time.Hour)
	if err != nil {
		o.Error(err)
		return nil
	}
	return pki.EncodeCertificate(cert.Raw)
}

// serve answers POST /v1/renew for the certificate of that name.
func (o *ownCA) serve(answer func(w http.ResponseWriter, csr *x509.CertificateRequest)) Enrolment {
	key, err := pki.NewKey()
	if err != nil {
		o.Fatal(err)
	}
	cert, err := o.ca.Server(o.now, []string{"127.0.0.1"}, key.Public())
	if err != nil {
		o.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var q wire.RenewRequest
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil || r.URL.Path != wire.PathRenew || len(r.TLS.PeerCertificates) == 0 {
			o.Errorf("%s by %v: %v", r.URL.Path, r.TLS.PeerCertificates, err)
		}
		csr, err := pki.ParseRequest([]byte(q.CSR))
		if err != nil {
			o.Error(err)
			return
		}
		answer(w, csr)
	}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}, ClientAuth: tls.RequestClientCert}
	s.StartTLS()
	o.Cleanup(s.Close)
	return Enrolment{Host: s.Listener.Addr().String(), Dial: (&net.Dialer{}).DialContext}
}

func TestRenewCertificate(t *testing.T) {
	for name, tt := range map[string]struct {
		answer func(o *ownCA, w http.ResponseWriter, csr *x509.CertificateRequest)
		want   string // of the error
	}{
		"renewed": {func(o *ownCA, w http.ResponseWriter, csr *x509.CertificateRequest) {
			json.NewEncoder(w).Encode(wire.RenewAnswer{Certificate: string(o.issue("beijing.edge1", csr.PublicKey))})
		}, ""},
		"another's": {func(o *ownCA, w http.ResponseWriter, csr *x509.CertificateRequest) {
			json.NewEncoder(w).Encode(wire.RenewAnswer{Certificate: string(o.issue("beijing.edge2", csr.PublicKey))})
		}, "is beijing.edge2's"},
		"another key's": {func(o *ownCA, w http.ResponseWriter, _ *x509.CertificateRequest) {
			key, err := pki.NewKey()
			if err != nil {
				o.Error(err)
			}
			json.NewEncoder(w).Encode(wire.RenewAnswer{Certificate: string(o.issue("beijing.edge1", key.Public()))})
		}, "private key does not match"},
		"another CA's": {func(o *ownCA, w http.ResponseWriter, csr *x509.CertificateRequest) {
			var err error
			if o.ca, err = pki.NewCA(o.now); err != nil {
				o.Error(err)
			}
			json.NewEncoder(w).Encode(wire.RenewAnswer{Certificate: string(o.issue("beijing.edge1", csr.PublicKey))})
		}, "is not signed by"},
		"nothing": {func(_ *ownCA, w http.ResponseWriter, _ *x509.CertificateRequest) { w.Write([]byte("{}")) }, "the rendezvous' answer"},
		"refused": {func(_ *ownCA, w http.ResponseWriter, _ *x509.CertificateRequest) {
			w.WriteHeader(http.StatusForbidden)
			w.Write([]byte(`{"error": "beijing.edge1 was revoked on 2026-11-23"}`))
		}, "the rendezvous refuses: beijing.edge1 was revoked on 2026-11-23"},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOwnCA(t)
			before := mustRead(t, o.cfg.Certificate)
			rendezvous := o.serve(func(w http.ResponseWriter, csr *x509.CertificateRequest) { tt.answer(o, w, csr) })
			err := renewCertificate(t.Context(), rendezvous, o.cfg, o.id)
			changed := string(mustRead(t, o.cfg.Certificate)) != string(before)
			if tt.want == "" && (err != nil || !changed) {
				t.Errorf("%v, file changed: %v", err, changed)
			}
			if tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) || changed) {
				t.Errorf("%v, file changed: %v; want %q and the file as it was", err, changed, tt.want)
			}
			if info, err := os.Stat(o.cfg.Certificate); err != nil || info.Mode() != 0o600 {
				t.Errorf("mode %v, %v; want it kept", info.Mode(), err)
			}
			if left, _ := os.ReadDir(filepath.Dir(o.cfg.Certificate)); len(left) != 3 {
				t.Errorf("files left: %v", left)
			}
		})
	}
}
