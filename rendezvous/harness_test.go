package rendezvous

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/pion/stun/v4"
	"go.uber.org/goleak"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// testWait bounds the wait for what is sure to come, on any machine.
const testWait = 20 * time.Second

// authority signs the certificates of a test.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newTestCA(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{t, cert, key}
}

// issue makes a certificate with the common name cn, for both ends of TLS.
func (a *authority) issue(cn string) tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: cn},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore:   time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	write(t, path, string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})))
}

// site is where a rendezvous lives: its files outlast it.
type site struct {
	t      *testing.T
	ca     *authority
	config Config
}

func newSite(t *testing.T) *site {
	t.Helper()
	// Not t.TempDir: with a test's name in it, the path is too long for a
	// unix socket.
	dir, err := os.MkdirTemp("", "bdk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	ca := newTestCA(t)
	cert := ca.issue("rendezvous")
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	cfg.Listen, cfg.Status = "127.0.0.1:0", "127.0.0.1:0"
	cfg.STUN, cfg.STUNAlternates = []string{"127.0.0.1:0", "127.0.0.1:0"}, []uint16{0, 0}
	cfg.Certificate, cfg.Key, cfg.CA = filepath.Join(dir, "crt"), filepath.Join(dir, "key"), filepath.Join(dir, "ca")
	cfg.AdminSocket, cfg.Store = filepath.Join(dir, "sock"), filepath.Join(dir, "db")
	writePEM(t, cfg.Certificate, "CERTIFICATE", cert.Certificate[0])
	writePEM(t, cfg.Key, "PRIVATE KEY", key)
	writePEM(t, cfg.CA, "CERTIFICATE", ca.cert.Raw)
	return &site{t, ca, cfg}
}

// running is a rendezvous in full, on loopback.
type running struct {
	*site
	server *Server
	stop   func()
}

// start runs a rendezvous until stop or the end of the test, and checks that
// it leaves nothing behind.
func (s *site) start() *running {
	s.t.Helper()
	leaks := goleak.IgnoreCurrent()
	server, err := New(s.config, slog.New(slog.DiscardHandler))
	if err != nil {
		s.t.Fatalf("New: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	stopped := false
	r := &running{site: s, server: server}
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				s.t.Errorf("Run: %v", err)
			}
		case <-time.After(testWait):
			s.t.Fatal("Run does not end")
		}
		goleak.VerifyNone(s.t, leaks)
	}
	s.t.Cleanup(r.stop)
	return r
}

func (r *running) apply(cs ...Community) {
	r.t.Helper()
	in, out := io.Pipe()
	go func() {
		for _, c := range cs {
			fmt.Fprint(out, "---\n", communityFileOf(c.Name, c.Members...))
		}
		out.Close()
	}()
	if _, err := r.server.applyCommunities(r.t.Context(), "test.yaml", in); err != nil {
		r.t.Fatalf("apply: %v", err)
	}
}

// Snapshot is everything that the API shows, of one moment.
type Snapshot struct {
	At          time.Time
	Nodes       []NodeView
	Communities []Community
	Pairs       []PairView
}

func (s *Server) snapshot(ctx context.Context) (Snapshot, error) {
	var snap Snapshot
	err := s.hub.call(ctx, func(now time.Time) []action {
		snap = Snapshot{At: now, Pairs: s.hub.coordinator.Views(), Communities: slices.Clone(s.hub.coordinator.communities)}
		for _, d := range s.hub.details {
			snap.Nodes = append(snap.Nodes, *d)
		}
		return nil
	})
	slices.SortFunc(snap.Nodes, byName)
	return snap, err
}

func (r *running) snapshot() Snapshot {
	r.t.Helper()
	snap, err := r.server.snapshot(r.t.Context())
	if err != nil {
		r.t.Fatalf("snapshot: %v", err)
	}
	return snap
}

// until waits for a snapshot that is as it shall be.
func (r *running) until(what string, ok func(Snapshot) bool) Snapshot {
	r.t.Helper()
	for deadline := time.Now().Add(testWait); ; time.Sleep(5 * time.Millisecond) {
		snap := r.snapshot()
		if ok(snap) {
			return snap
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("%s: not within %v: %+v", what, testWait, snap)
		}
	}
}

func nodeIn(s Snapshot, name wire.NodeName) NodeView {
	for _, n := range s.Nodes {
		if n.Name == name {
			return n
		}
	}
	return NodeView{}
}

func pairIn(s Snapshot, a, b wire.NodeName) PairView {
	for _, p := range s.Pairs {
		if p.ID == wire.NewPairID(string(a), string(b)) {
			return p
		}
	}
	return PairView{}
}

// peer is an agent's end of a session: a real websocket over real TLS.
type peer struct {
	t       *testing.T
	name    wire.NodeName
	conn    *websocket.Conn
	welcome *wire.Welcome
}

func (r *running) dialTLS(certs ...tls.Certificate) (*websocket.Conn, error) {
	d := websocket.Dialer{
		HandshakeTimeout: testWait,
		TLSClientConfig:  &tls.Config{Certificates: certs, RootCAs: r.ca.pool(), MinVersion: tls.VersionTLS13},
	}
	//nolint:bodyclose // gorilla: the body of a handshake needs no closing
	conn, resp, err := d.DialContext(r.t.Context(), "wss://"+r.server.agents.Addr().String()+"/v1/agent", nil)
	if err != nil && resp != nil {
		body, _ := io.ReadAll(resp.Body)
		err = fmt.Errorf("%w: %s: %s", err, resp.Status, body)
	}
	return conn, err
}

// connect opens a session.
func (r *running) connect(name wire.NodeName) *peer {
	r.t.Helper()
	conn, err := r.dialTLS(r.ca.issue(string(name)))
	if err != nil {
		r.t.Fatalf("dial: %v", err)
	}
	r.t.Cleanup(func() { _ = conn.Close() })
	return &peer{t: r.t, name: name, conn: conn}
}

// dial opens a session and takes the welcome.
func (r *running) dial(name wire.NodeName) *peer {
	r.t.Helper()
	p := r.connect(name)
	p.welcome = expect[*wire.Welcome](p)
	return p
}

// join opens a session and says hello.
func (r *running) join(name wire.NodeName, tunnels ...wire.Tunnel) *peer {
	r.t.Helper()
	p := r.dial(name)
	p.send(&wire.Hello{AgentVersion: "test", Endpoint: endpointOf(name), Candidates: []wire.Candidate{}, Tunnels: tunnels})
	return p
}

func (p *peer) send(m wire.Message) {
	p.t.Helper()
	b, err := wire.Encode(m)
	if err != nil {
		p.t.Fatal(err)
	}
	p.sendRaw(websocket.TextMessage, b)
}

func (p *peer) sendRaw(kind int, b []byte) {
	p.t.Helper()
	if err := p.conn.WriteMessage(kind, b); err != nil {
		p.t.Fatalf("%s: send: %v", p.name, err)
	}
}

// next is the next message; the connection's end is an error.
func (p *peer) next() (wire.Message, error) {
	if err := p.conn.SetReadDeadline(time.Now().Add(testWait)); err != nil {
		return nil, err
	}
	_, b, err := p.conn.ReadMessage()
	if err != nil {
		return nil, err
	}
	return wire.Decode(b)
}

// expect reads up to the next message of a kind.
func expect[M wire.Message](p *peer) M {
	p.t.Helper()
	for {
		m, err := p.next()
		if err != nil {
			p.t.Fatalf("%s waits for a %T: %v", p.name, *new(M), err)
		}
		if m, ok := m.(M); ok {
			return m
		}
	}
}

// expectPeers reads until the node has just these peers.
func (p *peer) expectPeers(names ...wire.NodeName) {
	p.t.Helper()
	for {
		m := expect[*wire.Peers](p)
		if got := fmt.Sprint(peerNames(m)); got == fmt.Sprint(names) {
			return
		}
	}
}

// expectBye reads the reason for the end, and then the end itself: a proper
// close, not a connection that broke.
func (p *peer) expectBye() *wire.Bye {
	p.t.Helper()
	bye := expect[*wire.Bye](p)
	_, err := p.next()
	var closed *websocket.CloseError
	if !errors.As(err, &closed) || closed.Code != websocket.CloseNormalClosure {
		p.t.Errorf("%s: after the bye: %v, want a close frame", p.name, err)
	}
	return bye
}

// askSTUN sends one Binding request with the session's credential and returns
// the address it left from.
func (p *peer) askSTUN() netip.AddrPort {
	p.t.Helper()
	client, from := stunClient(p.t, "127.0.0.1")
	request := bindingRequest(stun.NewUsername(p.welcome.STUNUsername), stun.NewShortTermIntegrity(p.welcome.STUNPassword), stun.Fingerprint)
	server := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), p.welcome.STUNPorts[0])
	m, _ := stunExchange(p.t, client, server, request)
	if got := mappedAddress(p.t, m); got != from {
		p.t.Errorf("%s: STUN says %s, sent from %s", p.name, got, from)
	}
	return from
}
