package join

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/bodkin-net/bodkin/internal/pki"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var edgeSubnets = []netip.Prefix{netip.MustParsePrefix("10.233.66.0/24")}

// rendezvous is the enrolment's side of one that issues certificates, for a single
// token.
type rendezvous struct {
	*testing.T
	ca     *pki.CA
	server *httptest.Server
	token  wire.JoinToken

	// What follows is changed only between requests.
	refuse  string // the words of a refusal of the token
	revoked map[string]bool
	usedBy  string // hash of the key that has used the token
	joins   int
	renews  int
	pending bool
	subnets []netip.Prefix
	mangle  func(*wire.JoinAnswer)
}

func newRendezvous(t *testing.T) *rendezvous {
	t.Helper()
	r := &rendezvous{T: t, revoked: map[string]bool{}, mangle: func(*wire.JoinAnswer) {}}
	ca, err := pki.NewCA(time.Now())
	r.ca = must(t, ca, err)
	r.token = wire.JoinToken{ID: [8]byte{1}, Secret: [16]byte{2}, CAHash: pki.Hash(r.ca.Certificate)}
	r.server = r.serve([]string{"127.0.0.1"}, 0)
	return r
}

// serve starts a server whose certificate is for these hosts and was made that long
// ago.
func (r *rendezvous) serve(hosts []string, age time.Duration) *httptest.Server {
	key, err := pki.NewKey()
	must(r.T, key, err)
	cert, err := r.ca.Server(time.Now().Add(-age), hosts, key.Public())
	must(r.T, cert, err)
	pool := x509.NewCertPool()
	pool.AddCert(r.ca.Certificate)
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+wire.PathCA, func(w http.ResponseWriter, _ *http.Request) {
		w.Write(pki.EncodeCertificate(r.ca.Certificate.Raw))
	})
	mux.HandleFunc("POST "+wire.PathJoin, r.join)
	mux.HandleFunc("POST "+wire.PathRenew, r.renew)
	s := httptest.NewUnstartedServer(mux)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}},
		ClientCAs:    pool, ClientAuth: tls.VerifyClientCertIfGiven, MinVersion: tls.VersionTLS13,
	}
	s.StartTLS()
	r.Cleanup(s.Close)
	return s
}

func must[T any](t *testing.T, v T, err error) T {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func refuseWith(w http.ResponseWriter, status int, words string) {
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]string{"error": words})
}

func (r *rendezvous) join(w http.ResponseWriter, req *http.Request) {
	var q wire.JoinRequest
	if err := json.NewDecoder(req.Body).Decode(&q); err != nil || q.TokenID != r.token.TokenID() || q.Secret != "02000000000000000000000000000000" {
		r.Errorf("join request %+v: %v", q, err)
	}
	csr, err := pki.ParseRequest([]byte(q.CSR))
	if err != nil {
		r.Error(err)
		return
	}
	hash, err := pki.KeyHash(csr.PublicKey)
	switch {
	case err != nil:
		r.Error(err)
	case r.refuse != "":
		refuseWith(w, http.StatusForbidden, r.refuse)
		return
	case r.usedBy != "" && r.usedBy != hash:
		refuseWith(w, http.StatusForbidden, "the token was used already")
		return
	}
	r.usedBy = hash
	r.joins++
	name := q.Name
	if name == "" {
		name = "beijing.edge1"
	}
	a := wire.JoinAnswer{Name: name, Certificate: r.issue(name, csr), CA: string(pki.EncodeCertificate(r.ca.Certificate.Raw)),
		Subnets: q.Subnets, Pending: r.pending}
	if len(a.Subnets) == 0 {
		a.Subnets = r.subnets
	}
	r.mangle(&a)
	json.NewEncoder(w).Encode(a)
}

func (r *rendezvous) renew(w http.ResponseWriter, req *http.Request) {
	present := req.TLS.PeerCertificates[0]
	if r.revoked[pki.Serial(present)] {
		refuseWith(w, http.StatusForbidden, "beijing.edge1 was deleted")
		return
	}
	var q wire.RenewRequest
	if err := json.NewDecoder(req.Body).Decode(&q); err != nil {
		r.Error(err)
	}
	csr, err := pki.ParseRequest([]byte(q.CSR))
	if err != nil {
		r.Error(err)
		return
	}
	r.renews++
	name := wire.NodeName(present.DNSNames[0])
	json.NewEncoder(w).Encode(wire.RenewAnswer{Certificate: r.issue(name, csr), CA: string(pki.EncodeCertificate(r.ca.Certificate.Raw))})
}

func (r *rendezvous) issue(name wire.NodeName, csr *x509.CertificateRequest) string {
	cert, err := r.ca.Node(time.Now(), string(name), csr.PublicKey, time.Hour)
	if err != nil {
		r.Error(err)
		return ""
	}
	return string(pki.EncodeCertificate(cert.Raw))
}

// options are those of an edge that joins into a directory of its own.
func (r *rendezvous) options() Options {
	dir := r.TempDir()
	o := Options{
		Rendezvous: r.server.URL, Token: r.token.String(), Subnets: edgeSubnets, Type: wire.Edge,
		Dir: filepath.Join(dir, "etc"), StateDir: filepath.Join(dir, "lib"),
		VICISocket: filepath.Join(dir, "charon.vici"), Socket: filepath.Join(dir, "agent.sock"),
	}
	l, err := net.Listen("unix", o.VICISocket)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { l.Close() })
	return o
}

// lines are what a join told.
type lines []Told

func (l *lines) add(t Told) { *l = append(*l, t) }

func (l lines) find(step Step, mark Mark) string {
	for _, t := range l {
		if t.Step == step && t.Mark == mark {
			return t.Text
		}
	}
	return ""
}

// joinTo runs a join until a step has been told of, all of it if that is "".
func joinTo(t *testing.T, o Options, last Step) (Result, lines, error) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var told lines
	result, err := Run(ctx, o, func(line Told) {
		told.add(line)
		if line.Step == last && line.Mark == Done {
			stop()
		}
	})
	return result, told, err
}

func mustFail(t *testing.T, err error, want string, is error) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") || is != nil && !errors.Is(err, is) {
		t.Errorf("got %v\nwant one line with %q, of kind %v", err, want, is)
	}
}
