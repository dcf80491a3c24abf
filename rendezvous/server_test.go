package rendezvous

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"go.uber.org/goleak"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

func TestWelcomeAndHello(t *testing.T) {
	site := newSite(t)
	site.config.PublicAddresses = []string{"198.51.100.1", "2001:db8::1"}
	r := site.start()
	p := r.dial(edge1)
	w := p.welcome
	var ports []uint16
	for _, a := range r.server.stun.Addrs() {
		ports = append(ports, a.Port())
	}
	addrs := []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8::1")}
	if !slices.Equal(w.STUNPorts, ports) || !slices.Equal(w.STUNAddrs, addrs) {
		t.Errorf("STUN at %v of %v, want %v of %v", w.STUNPorts, w.STUNAddrs, ports, addrs)
	}
	if w.Node != edge1 || w.StoreID != r.server.store.ID() || w.STUNUsername == "" || len(w.STUNPassword) < 22 {
		t.Errorf("welcome %+v", w)
	}
	if n := nodeIn(r.snapshot(), edge1); n.Online {
		t.Errorf("online before its hello: %+v", n)
	}
	p.send(&wire.Hello{AgentVersion: "test", Endpoint: endpointOf(edge1)})
	p.expectPeers()
	n := nodeIn(r.snapshot(), edge1)
	if !n.Online || n.AgentVersion != "test" || len(n.Fingerprint) != 64 || !reflect.DeepEqual(n.Endpoint, endpointOf(edge1)) {
		t.Errorf("node %+v", n)
	}
	_ = p.conn.Close()
	r.until("edge1 offline", func(s Snapshot) bool { return !nodeIn(s, edge1).Online })
}

// From two hellos to a direct pair, as two agents would do it.
func TestFromHelloToDirect(t *testing.T) {
	r := newSite(t).start()
	r.apply(community("all", edge1, edge2))
	one, two := r.join(edge1), r.join(edge2)
	one.expectPeers(edge2)
	two.expectPeers(edge1)
	at := one.askSTUN()
	two.askSTUN()

	first, second := expect[*wire.Punch](one), expect[*wire.Punch](two)
	if first.Attempt != second.Attempt || first.Local != second.Remote || first.Peer.Role == second.Peer.Role {
		t.Errorf("orders %+v and %+v", first, second)
	}
	if n := nodeIn(r.snapshot(), edge1); n.Observed != at || n.ObservedBy == "" {
		t.Errorf("edge1 observed at %s by %q, want %s", n.Observed, n.ObservedBy, at)
	}
	for _, p := range []*peer{one, two} {
		other := map[wire.NodeName]wire.NodeName{edge1: edge2, edge2: edge1}[p.name]
		p.send(&wire.Report{Peer: other, Attempt: first.Attempt, Outcome: wire.OutcomeDirect, ElapsedMs: 80})
	}
	snap := r.until("direct", func(s Snapshot) bool { return pairIn(s, edge1, edge2).State == Direct })
	if p := pairIn(snap, edge1, edge2); p.TimeToDirectMs != 80 || p.Reason != "" {
		t.Errorf("%+v", p)
	}

	// Signalling may go away, the tunnel stays.
	_ = one.conn.Close()
	r.until("edge1 offline", func(s Snapshot) bool { return !nodeIn(s, edge1).Online })
	if p := pairIn(r.snapshot(), edge1, edge2); p.State != Direct {
		t.Errorf("without edge1's session: %+v", p)
	}
}

// A request before the hello counts as well: an agent may send both at once.
func TestObservedBeforeHello(t *testing.T) {
	r := newSite(t).start()
	p := r.dial(edge1)
	at := p.askSTUN()
	p.send(&wire.Hello{Endpoint: endpointOf(edge1), Candidates: []wire.Candidate{}})
	r.until("observed", func(s Snapshot) bool { return nodeIn(s, edge1).Observed == at })
}

func TestHelloRefused(t *testing.T) {
	tests := []struct {
		name   string
		change func(*wire.Endpoint)
		want   []string
	}{
		{"another's name", func(e *wire.Endpoint) { e.Name = edge2 },
			[]string{"endpoint.name is beijing.edge2", "use beijing.edge1"}},
		{"another's identity", func(e *wire.Endpoint) { e.ID = "CN=beijing.edge2" },
			[]string{`endpoint.id is "CN=beijing.edge2"`, `"CN=beijing.edge1"`}},
		{"an identity as long as one may be", func(e *wire.Endpoint) { e.ID = strings.Repeat("\a", wire.MaxText) },
			[]string{`endpoint.id is "\a\a`}},
		{"a connector by its own word", func(e *wire.Endpoint) { e.Type = wire.Connector },
			[]string{"endpoint.type", "no Connector to this rendezvous", "use Edge"}},
		{"another's subnet", func(e *wire.Endpoint) { e.Subnets = endpointOf(edge2).Subnets },
			[]string{"endpoint.subnets", "overlaps", "of beijing.edge2"}},
	}
	r := newSite(t).start()
	other := r.join(edge2)
	other.expectPeers()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := r.dial(edge1)
			p.t = t
			e := endpointOf(edge1)
			tt.change(&e)
			p.send(&wire.Hello{Endpoint: e, Candidates: []wire.Candidate{}})
			bye := p.expectBye()
			if !bye.Final {
				t.Errorf("%+v: coming back unchanged cannot help", bye)
			}
			for _, want := range tt.want {
				if !strings.Contains(bye.Reason, want) {
					t.Errorf("reason %q lacks %q", bye.Reason, want)
				}
			}
			if n := nodeIn(r.snapshot(), edge1); n.Online {
				t.Errorf("let in: %+v", n)
			}
		})
	}
	if n := nodeIn(r.snapshot(), edge2); !n.Online || n.Endpoint.Name != edge2 {
		t.Errorf("edge2 suffered: %+v", n)
	}
}

func TestNewestSessionWins(t *testing.T) {
	r := newSite(t).start()
	r.apply(community("all", edge1, edge2))
	older := r.join(edge1)
	older.expectPeers()
	newer := r.join(edge1)
	newer.expectPeers()
	bye := older.expectBye()
	if !strings.Contains(bye.Reason, "newer session of beijing.edge1") || bye.Final {
		t.Errorf("%+v", bye)
	}
	if n := nodeIn(r.snapshot(), edge1); !n.Online {
		t.Errorf("the older session's end took the node offline: %+v", n)
	}
	two := r.join(edge2)
	two.expectPeers(edge1)
	newer.expectPeers(edge2)
}

// One agent's nonsense ends its own session, with a reason, and no other.
func TestBadFrames(t *testing.T) {
	hello := func() []byte {
		b, err := wire.Encode(&wire.Hello{Endpoint: endpointOf(edge1), Candidates: []wire.Candidate{}})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}()
	report := []byte(`{"v":1,"type":"report","body":{"peer":"beijing.edge2","outcome":"lost","elapsedMs":0}}`)
	srflx := []byte(`{"v":1,"type":"network","body":{"candidates":[{"kind":"srflx","addr":"8.8.8.8:53"}],"nat":{"present":true}}}`)
	many := []byte(`{"v":1,"type":"network","body":{"candidates":[` +
		strings.Repeat(`{"kind":"host","addr":"192.0.2.1:1"},`, wire.MaxCandidates) + `{"kind":"host","addr":"192.0.2.1:1"}],"nat":{"present":true}}}`)
	tests := []struct {
		name   string
		frames [][]byte
		kind   int
		want   string
	}{
		{"too large", [][]byte{bytes.Repeat([]byte{' '}, 4*wire.MaxFrame)}, websocket.TextMessage, wire.ErrTooLarge.Error()},
		// More than the kernel buffers: the agent is still sending when it is
		// told to stop.
		{"much too large, later", [][]byte{hello, bytes.Repeat([]byte{' '}, 12<<20)}, websocket.TextMessage, wire.ErrTooLarge.Error()},
		{"binary garbage", [][]byte{{0, 1, 2, 0xff, 0xfe}}, websocket.BinaryMessage, wire.ErrSyntax.Error()},
		{"empty", [][]byte{{}}, websocket.TextMessage, wire.ErrSyntax.Error()},
		{"wrong version", [][]byte{bytes.Replace(hello, []byte(`"v":1`), []byte(`"v":2`), 1)}, websocket.TextMessage, "unsupported protocol version 2"},
		{"unknown type", [][]byte{[]byte(`{"v":1,"type":"hola","body":{}}`)}, websocket.TextMessage, `unknown message type "hola"`},
		{"invalid", [][]byte{hello, bytes.Replace(report, []byte(`"lost"`), []byte(`"won"`), 1)}, websocket.TextMessage, `outcome "won"`},
		{"a report before the hello", [][]byte{report}, websocket.TextMessage, "report out of order"},
		{"a second hello", [][]byte{hello, hello}, websocket.TextMessage, "hello out of order"},
		{"the rendezvous' own message", [][]byte{hello, []byte(`{"v":1,"type":"bye","body":{"reason":"x"}}`)}, websocket.TextMessage, "bye is not an agent's message"},
		{"a claim to be seen elsewhere", [][]byte{hello, srflx}, websocket.TextMessage, "host and mapped candidates only"},
		{"a scan", [][]byte{hello, many}, websocket.TextMessage, "25 candidates, limit 24"},
	}
	r := newSite(t).start()
	other := r.join(edge2)
	other.expectPeers()
	known := r.join(edge1)
	known.expectPeers()
	_ = known.conn.Close()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := r.dial(edge1)
			p.t = t
			for _, f := range tt.frames {
				p.sendRaw(tt.kind, f)
			}
			bye := p.expectBye()
			if !strings.Contains(bye.Reason, tt.want) || bye.Final {
				t.Errorf("%+v, want %q", bye, tt.want)
			}
			r.until("edge1 offline", func(s Snapshot) bool { return !nodeIn(s, edge1).Online })
			// The other one is still served.
			r.apply(community("probe", edge2, edge1))
			other.expectPeers(edge1)
			if err := r.server.deleteCommunity(t.Context(), "probe"); err != nil {
				t.Fatal(err)
			}
			other.expectPeers()
		})
	}
}

func TestWhoMayConnect(t *testing.T) {
	r := newSite(t).start()
	stranger := newTestCA(t)
	tests := []struct {
		name  string
		certs []tls.Certificate
		want  string
	}{
		{"without a certificate", nil, `401 Unauthorized: {"error":"a client certificate is required"}`},
		{"of another CA", []tls.Certificate{stranger.issue(string(edge1))}, "certificate"},
		{"of no node", []tls.Certificate{r.ca.issue("Jane Doe")}, `403 Forbidden: {"error":"certificate (SAN DNS, else CN): invalid message: node name \"Jane Doe\"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			conn, err := r.dialTLS(tt.certs...)
			if err == nil {
				// TLS 1.3: the client may believe itself connected before the
				// server has looked at its certificate.
				_ = conn.SetReadDeadline(time.Now().Add(testWait))
				_, _, err = conn.ReadMessage()
				_ = conn.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
	if snap := r.snapshot(); len(snap.Nodes) != 0 {
		t.Errorf("nodes %+v", snap.Nodes)
	}
}

// A dead session's credential observes nothing.
func TestCredentialEndsWithItsSession(t *testing.T) {
	r := newSite(t).start()
	p := r.join(edge1)
	p.expectPeers()
	if password, ok := r.server.hub.credential(p.welcome.STUNUsername); !ok || password != p.welcome.STUNPassword {
		t.Errorf("credential %q, %v", password, ok)
	}
	_ = p.conn.Close()
	r.until("edge1 offline", func(s Snapshot) bool { return !nodeIn(s, edge1).Online })
	if _, ok := r.server.hub.credential(p.welcome.STUNUsername); ok {
		t.Error("the credential is still good")
	}
}

func TestStopSaysBye(t *testing.T) {
	r := newSite(t).start()
	p := r.join(edge1)
	p.expectPeers()
	early := r.dial(edge2) // has not said hello
	said := make(chan *wire.Bye, 2)
	for _, p := range []*peer{p, early} {
		go func() {
			m, _ := p.next()
			bye, _ := m.(*wire.Bye)
			_ = p.conn.Close() // as an agent does
			said <- bye
		}()
	}
	r.stop()
	for range 2 {
		if bye := <-said; bye == nil || bye.Reason != "the rendezvous is stopping" || bye.Final {
			t.Errorf("%+v", bye)
		}
	}
}

func TestSecondRendezvousIsRefused(t *testing.T) {
	s := newSite(t)
	r := s.start()
	second, err := New(s.config, slog.New(slog.DiscardHandler))
	if second != nil || !errors.Is(err, store.ErrLocked) {
		t.Errorf("%v, want %v", err, store.ErrLocked)
	}
	// The first one's socket was not taken away.
	conn, err := net.Dial("unix", s.config.AdminSocket)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	r.join(edge1).expectPeers()
}

func TestRestart(t *testing.T) {
	s := newSite(t)
	r := s.start()
	r.apply(community("all", edge1, edge2))
	one, two := r.join(edge1), r.join(edge2)
	at := one.askSTUN()
	two.askSTUN()
	id := expect[*wire.Punch](one).Attempt
	one.send(&wire.Report{Peer: edge2, Attempt: id, Outcome: wire.OutcomeDirect, ElapsedMs: 80})
	two.send(&wire.Report{Peer: edge1, Attempt: id, Outcome: wire.OutcomeDirect, ElapsedMs: 80})
	r.until("direct", func(s Snapshot) bool { return pairIn(s, edge1, edge2).State == Direct })
	storeID := one.welcome.StoreID
	_ = one.conn.Close()
	_ = two.conn.Close()
	r.stop()

	r = s.start()
	before := r.server.events.lastID()
	snap := r.snapshot()
	if want := []Community{community("all", edge1, edge2)}; !reflect.DeepEqual(snap.Communities, want) {
		t.Errorf("communities %+v", snap.Communities)
	}
	n := nodeIn(snap, edge1)
	if n.Online || n.Observed != at || n.AgentVersion != "test" || n.LastSeen.IsZero() || !reflect.DeepEqual(n.Endpoint, endpointOf(edge1)) {
		t.Errorf("node %+v", n)
	}
	if p := pairIn(snap, edge1, edge2); p.Attempts != 1 || p.TimeToDirectMs != 80 || p.LastDirect.IsZero() {
		t.Errorf("pair %+v", p)
	}
	// The agents come back one by one, each with its tunnel.
	tunnel := func(to wire.NodeName) wire.Tunnel { return wire.Tunnel{Peer: to, Monitored: true} }
	one = r.join(edge1, tunnel(edge2))
	one.expectPeers(edge2)
	if one.welcome.StoreID != storeID {
		t.Errorf("store %s, before %s", one.welcome.StoreID, storeID)
	}
	one.askSTUN()
	two = r.join(edge2, tunnel(edge1))
	two.expectPeers(edge1)
	two.askSTUN()
	snap = r.until("both observed", func(s Snapshot) bool { return nodeIn(s, edge2).Online && nodeIn(s, edge2).ObservedAt.After(n.LastSeen) })
	if p := pairIn(snap, edge1, edge2); p.State != Direct || p.Punching || p.Attempts != 1 {
		t.Errorf("after the restart: %+v", p)
	}
	// What is as it was is no news: the events of the last days are worth more.
	for _, e := range r.server.events.newest() {
		if e.Kind == EventPair && e.ID > before {
			t.Errorf("event after the restart: %+v", e)
		}
	}
}

// What has not changed for long is of now, and so are the hours beside it.
func TestOverviewIsOfNow(t *testing.T) {
	r := newSite(t).start()
	if _, err := r.server.overview(t.Context()); err != nil {
		t.Fatal(err)
	}
	asked := time.Now()
	o, err := r.server.overview(t.Context())
	if err != nil || o.At.Before(asked) {
		t.Errorf("asked at %v, as of %v, %v", asked.UTC(), o.At, err)
	}
}

// The first Peers an agent gets after a restart must not lack anybody, or it
// would take tunnels down.
func TestCommunitiesDirBeforeTheFirstSession(t *testing.T) {
	s := newSite(t)
	s.config.CommunitiesDir = t.TempDir()
	file := filepath.Join(s.config.CommunitiesDir, "all.yaml")
	write(t, file, communityFileOf("all", string(edge1), string(edge2)))
	r := s.start()
	r.join(edge2).expectPeers()
	one := r.join(edge1)
	if got := peerNames(expect[*wire.Peers](one)); !reflect.DeepEqual(got, []wire.NodeName{edge2}) {
		t.Errorf("first peers %q", got)
	}
	one.askSTUN()
	r.until("counted", func(s Snapshot) bool { return nodeIn(s, edge1).Observed.IsValid() })
	_ = one.conn.Close()
	r.stop()

	server, err := New(s.config, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	views := server.hub.coordinator.Views()
	server.Close()
	if len(views) != 1 || views[0].ID != both12 {
		t.Errorf("pairs before anything runs: %+v", views)
	}

	r = s.start()
	one = r.join(edge1)
	if got := peerNames(expect[*wire.Peers](one)); !reflect.DeepEqual(got, []wire.NodeName{edge2}) {
		t.Errorf("first peers after a restart %q", got)
	}
	// The directory is watched from then on.
	write(t, file, communityFileOf("all", string(edge1), string(edge3)))
	one.expectPeers()
	r.join(edge3).expectPeers(edge1)
	one.expectPeers(edge3)
}

func TestBadCommunitiesDirIsAStartError(t *testing.T) {
	s := newSite(t)
	dir := t.TempDir()
	bad := filepath.Join(dir, "b.yaml")
	write(t, filepath.Join(dir, "a.yaml"), communityFileOf("a", string(edge1), string(edge2)))
	write(t, bad, "kind: X\n")
	absent := filepath.Join(dir, "absent")
	for path, want := range map[string][]string{
		dir:    {"communitiesDir: " + bad, "document 1, line 1", "apiVersion"},
		absent: {"communitiesDir: ", absent, "no such file"},
	} {
		s.config.CommunitiesDir = path
		leaks := goleak.IgnoreCurrent()
		server, err := New(s.config, slog.New(slog.DiscardHandler))
		if server != nil || !errors.Is(err, ErrConfig) {
			t.Fatalf("%v, want an ErrConfig", err)
		}
		for _, part := range append(want, "configuration: ") {
			if text := err.Error(); !strings.Contains(text, part) || strings.Contains(text, "\n") {
				t.Errorf("error %q, want one line with %q", text, part)
			}
		}
		goleak.VerifyNone(t, leaks)
	}
	// Nothing is held: mended, it starts.
	s.config.CommunitiesDir = dir
	write(t, bad, communityFileOf("b", string(edge2), string(edge3)))
	s.start()
}

// An agent that says too much is read later, and what it says is fit to be
// shown on a terminal.
func TestTalkativeAgent(t *testing.T) {
	r := newSite(t).start()
	p := r.dial(edge1)
	began := time.Now()
	p.send(&wire.Hello{Endpoint: endpointOf(edge1), Candidates: []wire.Candidate{}, NoProbe: "no\x1b[2Jnftables"})
	last := int(paceDepth/networkCost) + 2
	for i := range last + 1 {
		p.send(&wire.Network{NAT: wire.NAT{Blocked: fmt.Sprintf("n\n%d", i)}})
	}
	snap := r.until("the last word", func(s Snapshot) bool { return nodeIn(s, edge1).NAT.Blocked == fmt.Sprintf("n %d", last) })
	if took := time.Since(began); took < 3*networkCost {
		t.Errorf("%d messages were taken in %v, want %v or more", last+1, took, 3*networkCost)
	}
	if got := nodeIn(snap, edge1).NoProbe; got != "no [2Jnftables" {
		t.Errorf("noProbe %q", got)
	}
}
