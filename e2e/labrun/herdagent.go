package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/gorilla/websocket"

	"github.com/bodkin-net/bodkin/agent"
	"github.com/bodkin-net/bodkin/e2e/lab"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

const (
	// herdDialTimeout is an agent's own.
	herdDialTimeout = 10 * time.Second
	// herdSettled is how long a session lives that ends an outage. An agent
	// waits for half a minute, which no scenario lasts.
	herdSettled = time.Second
	// punchMin to punchMax is what a simulated attempt takes.
	punchMin, punchMax = 200 * time.Millisecond, 600 * time.Millisecond
)

// herdAgent is to the rendezvous what an agent is: its certificate, its
// messages, its pauses. Instead of punching it waits a while. Its goroutine is
// run; what mu guards is for others.
type herdAgent struct {
	url      string
	tls      *tls.Config
	endpoint wire.Endpoint
	host     netip.AddrPort
	log      *herdLog

	mu       sync.Mutex
	standing map[wire.NodeName]herdTunnel
	joined   time.Time    // zero without a session
	current  *herdSession // nil without one
	punching map[wire.AttemptID]context.CancelFunc
}

// herdTunnel is a tunnel that stands, and the store of the rendezvous that asked
// for it.
type herdTunnel struct {
	wire.Tunnel
	storeID string
}

// herdName is the i-th node's; the connector is 0.
func herdName(i int) string {
	if i == 0 {
		return "herd.connector"
	}
	return fmt.Sprintf("herd.edge%d", i)
}

func newHerdAgent(pki *lab.PKI, log *herdLog, url string, i int) (*herdAgent, error) {
	name := herdName(i)
	cert, key, err := pki.Issue(name, lab.CertOptions{})
	if err != nil {
		return nil, err
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(pki.CAPath())
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	high, low := byte(i>>8), byte(i)
	a := &herdAgent{
		url: url, log: log, standing: map[wire.NodeName]herdTunnel{}, punching: map[wire.AttemptID]context.CancelFunc{},
		tls:  &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool, MinVersion: tls.VersionTLS13},
		host: netip.AddrPortFrom(netip.AddrFrom4([4]byte{172, 16, high, low}), 4500),
		endpoint: wire.Endpoint{
			Name: wire.NodeName(name), Type: wire.Edge,
			Subnets: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, high, low, 0}), 24)},
		},
	}
	if i == 0 {
		a.endpoint.Type, a.endpoint.PublicAddresses, a.endpoint.Port = wire.Connector, []string{"203.0.113.1"}, 4500
	}
	a.endpoint.ID, err = wire.IdentityOf(leaf)
	return a, err
}

// run keeps a session as an agent's link does.
func (a *herdAgent) run(ctx context.Context) {
	lost := time.Now()
	for ctx.Err() == nil {
		began := time.Now()
		refused := a.session(ctx)
		now := time.Now()
		if now.Sub(began) > herdSettled {
			lost = now
		}
		_ = pause(ctx, rand.N(agent.BackOff(now.Sub(lost), refused)))
	}
}

// session is one, from the dial to its end.
func (a *herdAgent) session(ctx context.Context) (refused bool) {
	began := time.Now()
	a.log.add(herdEvent{kind: dialled})
	dialer := websocket.Dialer{TLSClientConfig: a.tls, HandshakeTimeout: herdDialTimeout}
	conn, _, err := dialer.DialContext(ctx, a.url, nil) //nolint:bodyclose // gorilla has read it
	if err != nil {
		if !errors.Is(err, syscall.ECONNREFUSED) && ctx.Err() == nil {
			a.log.add(herdEvent{kind: broken, dialled: began, reason: err.Error()})
		}
		return false
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	s := &herdSession{herdAgent: a, conn: conn}
	err = s.serve(ctx)
	left := !a.leave().IsZero()
	outside := ctx.Err() != nil
	cancel()
	stop()
	s.orders.Wait()
	conn.Close()
	var bye herdBye
	switch {
	case errors.As(err, &bye):
		a.log.add(herdEvent{kind: refusedSession, reason: string(bye)})
		return true
	case !left && !outside:
		a.log.add(herdEvent{kind: broken, dialled: began, reason: err.Error()})
	}
	return false
}

// leave notes the session's end, and returns when it was joined.
func (a *herdAgent) leave() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	joined := a.joined
	a.joined, a.current = time.Time{}, nil
	return joined
}

func (a *herdAgent) joinedSince(t time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.joined.After(t)
}

// stir says again what the agent knows of its network. To the rendezvous that may
// be news: what it had counted of all pairs is out of date.
func (a *herdAgent) stir() error {
	a.mu.Lock()
	s := a.current
	a.mu.Unlock()
	if s == nil {
		return fmt.Errorf("%s has no session", a.endpoint.Name)
	}
	return s.send(s.network())
}

// drop has all tunnels broken.
func (a *herdAgent) drop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.standing)
}

// herdBye is the rendezvous' reason for ending a session.
type herdBye string

func (b herdBye) Error() string { return string(b) }

// herdSession is one session of an agent; serve reads it.
type herdSession struct {
	*herdAgent
	conn    *websocket.Conn
	storeID string // the rendezvous', serve's own
	writing sync.Mutex
	orders  sync.WaitGroup
}

func (s *herdSession) send(m wire.Message) error {
	b, err := wire.Encode(m)
	if err != nil {
		return err
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	return s.conn.WriteMessage(websocket.TextMessage, b)
}

// serve reads until the session ends.
func (s *herdSession) serve(ctx context.Context) error {
	s.conn.SetReadLimit(wire.MaxFrame)
	for {
		_, b, err := s.conn.ReadMessage()
		if err != nil {
			return err
		}
		m, err := wire.Decode(b)
		if err != nil {
			return err
		}
		switch m := m.(type) {
		case *wire.Welcome:
			s.storeID = m.StoreID
			err = s.send(s.hello())
		case *wire.Peers:
			err = s.peers(m)
		case *wire.Punch:
			s.punch(ctx, m)
		case *wire.Cancel:
			s.cancel(m.Attempt)
		case *wire.Bye:
			return herdBye(m.Reason)
		}
		if err != nil {
			return err
		}
	}
}

func (s *herdSession) hello() *wire.Hello {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := &wire.Hello{AgentVersion: "herd", Endpoint: s.endpoint, Candidates: s.candidates()}
	for _, t := range s.standing {
		h.Tunnels = append(h.Tunnels, t.Tunnel)
	}
	return h
}

func (s *herdSession) candidates() []wire.Candidate {
	return []wire.Candidate{{Kind: wire.Host, Addr: s.host}}
}

// network is what an agent finds behind a home router.
func (s *herdSession) network() *wire.Network {
	return &wire.Network{Candidates: s.candidates(), NAT: wire.NAT{
		Present: true, Mapping: wire.EndpointIndependent, Filtering: wire.AddressAndPortDependent, Allocation: wire.Preserving,
	}}
}

// peers takes the complete set: the first one means that the session is joined.
// A tunnel with the connector needs no order, and one that stood before is
// reported again to a rendezvous that did not ask for it.
func (s *herdSession) peers(m *wire.Peers) error {
	s.mu.Lock()
	first := s.joined.IsZero()
	if first {
		s.joined, s.current = time.Now(), s
	}
	s.mu.Unlock()
	if first {
		s.log.add(herdEvent{kind: joined})
		if err := s.send(s.network()); err != nil {
			return err
		}
	}
	for _, p := range m.Peers {
		if !s.asked(p) {
			continue
		}
		if err := s.send(s.direct(p, "")); err != nil {
			return err
		}
	}
	return nil
}

// asked notes that a peer is wanted, and reports whether its tunnel stands and
// this rendezvous has not been told.
func (s *herdSession) asked(p wire.Peer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, stands := s.standing[p.Endpoint.Name]
	if stands && t.storeID == s.storeID || !stands && p.Plan != wire.PlanPublic {
		return false
	}
	s.stand(p)
	return true
}

// stand notes a tunnel; s.mu is held.
func (s *herdSession) stand(p wire.Peer) {
	name := p.Endpoint.Name
	public := p.Plan == wire.PlanPublic
	s.standing[name] = herdTunnel{wire.Tunnel{Peer: name, Path: pathTo(p), Monitored: true, Relay: public}, s.storeID}
}

func pathTo(p wire.Peer) wire.Path {
	if p.Plan == wire.PlanPublic {
		return wire.Path{Kind: wire.PathPublic}
	}
	return wire.Path{Kind: wire.PathHost}
}

// direct reports a tunnel.
func (s *herdSession) direct(p wire.Peer, attempt wire.AttemptID) *wire.Report {
	return &wire.Report{
		Peer: p.Endpoint.Name, Attempt: attempt, Outcome: wire.OutcomeDirect, Path: pathTo(p), Relay: p.Plan == wire.PlanPublic,
	}
}

// punch obeys an order: after a while the pair is direct. Only one end's orders
// are counted.
func (s *herdSession) punch(ctx context.Context, m *wire.Punch) {
	ctx, cancel := context.WithCancel(ctx)
	s.mu.Lock()
	s.punching[m.Attempt] = cancel
	s.mu.Unlock()
	began := time.Now()
	if m.Peer.Role == wire.Controlling {
		s.log.add(herdEvent{kind: ordered})
	}
	s.orders.Go(func() {
		defer cancel()
		done := pause(ctx, punchMin+rand.N(punchMax-punchMin)) == nil
		s.mu.Lock()
		delete(s.punching, m.Attempt)
		s.mu.Unlock()
		if m.Peer.Role == wire.Controlling {
			s.log.add(herdEvent{kind: finished})
		}
		if !done {
			return
		}
		s.mu.Lock()
		s.stand(m.Peer)
		s.mu.Unlock()
		report := s.direct(m.Peer, m.Attempt)
		report.ElapsedMs = time.Since(began).Milliseconds()
		_ = s.send(report) // a failure is the session's, which its reader finds out
	})
}

func (s *herdSession) cancel(attempt wire.AttemptID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if stop := s.punching[attempt]; stop != nil {
		stop()
	}
}
