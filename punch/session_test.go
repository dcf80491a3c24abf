package punch

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pion/transport/v5/vnet"
)

var (
	credA = Credentials{"ufragA", "passwordApasswordApasswordA"}
	credB = Credentials{"ufragB", "passwordBpasswordBpasswordB"}
)

// peer is one end of a pair under test.
type peer struct {
	port   *Port
	base   netip.AddrPort
	mapped netip.AddrPort
}

func newPeer(t testing.TB, in *internet, n *vnet.Net, addr string) *peer {
	p := &peer{port: openPort(t, listen(t, n, addr)), base: netip.MustParseAddrPort(addr)}
	var err error
	p.mapped, err = Mapped(t.Context(), p.port, p.base, in.stun.addrs()[0], STUNCredential{})
	must(t, err)
	return p
}

func (p *peer) candidates() []Candidate {
	return []Candidate{{Host, p.base}, {ServerReflexive, p.mapped}}
}

// newPair puts two hosts behind two NATs; both have the same private network.
func newPair(t testing.TB, natA, natB vnet.NATType) (*internet, *peer, *peer) {
	in := newInternet(t)
	a := in.addHost(in.addSite("203.0.113.10", "192.168.1", natA), "192.168.1.10")
	b := in.addHost(in.addSite("203.0.113.20", "192.168.1", natB), "192.168.1.20")
	in.start(STUNCredential{})
	return in, newPeer(t, in, a, "192.168.1.10:4500"), newPeer(t, in, b, "192.168.1.20:4500")
}

// sessions makes both ends' sessions; a is controlling.
func sessions(t testing.TB, a, b *peer) (*Session, *Session) {
	return session(t, a.port, Controlling, credA, credB, b.candidates()), session(t, b.port, Controlled, credB, credA, a.candidates())
}

func session(t testing.TB, p *Port, role Role, local, remote Credentials, remotes []Candidate) *Session {
	s, err := p.NewSession(SessionConfig{Role: role, Local: local, Remote: remote, Remotes: remotes, Log: testLog(t)})
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}

func waitPath(t testing.TB, s *Session) Path {
	t.Helper()
	select {
	case p := <-s.Paths():
		return p
	case <-time.After(patience):
		t.Fatalf("%s side found no path: %+v", s.role, s.Checked())
		return Path{}
	}
}

func TestNATGrid(t *testing.T) {
	nats := []struct {
		name string
		typ  vnet.NATType
	}{
		{"full cone", fullCone}, {"address-restricted", addressRestricted},
		{"port-restricted", portRestricted}, {"symmetric", symmetricNAT},
	}
	direct := [4][4]bool{ // controlling × controlled
		{true, true, true, true},
		{true, true, true, true},
		{true, true, true, false},
		{true, true, false, false},
	}
	for i, ctl := range nats {
		for j, ctd := range nats {
			t.Run(fmt.Sprintf("%s × %s", ctl.name, ctd.name), func(t *testing.T) {
				t.Parallel()
				_, a, b := newPair(t, ctl.typ, ctd.typ)
				sa, sb := sessions(t, a, b)
				must(t, sa.Start())
				must(t, sb.Start())
				if !direct[i][j] {
					expectNoPath(t, sa, sb)
					return
				}
				pa, pb := waitPath(t, sa), waitPath(t, sb)
				if pa.Remote.Addr() != b.mapped.Addr() || pb.Remote.Addr() != a.mapped.Addr() {
					t.Errorf("paths lead to %s and %s, want the NATs %s and %s", pa.Remote, pb.Remote, b.mapped.Addr(), a.mapped.Addr())
				}
				if pa.Kind == Host || pb.Kind == Host {
					t.Errorf("kinds are %s and %s: a NAT was passed, none can be host", pa.Kind, pb.Kind)
				}
			})
		}
	}
}

// expectNoPath lets both sides check for a while.
func expectNoPath(t *testing.T, sessions ...*Session) {
	// Where there is a path, the first checks find it. A busy machine may send few of
	// those that are due while both sides start, and what follows comes slowly.
	const enough = 30 // for each candidate
	for _, s := range sessions {
		eventually(t, "enough checks to each candidate", func() bool {
			st := s.Checked()
			return st.total().RequestsSent >= enough*len(st.Pairs) && len(st.Pairs) > 0
		})
		select {
		case p := <-s.Paths():
			t.Errorf("%s side found %+v, want none", s.role, p)
		default:
		}
		if got := s.Checked().total(); got.ResponsesReceived != 0 || got.RequestsReceived != 0 {
			t.Errorf("%s side: %+v, want nothing received", s.role, got)
		}
	}
}

func TestSameLANTakesHostPath(t *testing.T) {
	in := newInternet(t)
	lan := in.addSite("203.0.113.10", "192.168.1", portRestricted)
	a, b := in.addHost(lan, "192.168.1.10"), in.addHost(lan, "192.168.1.20")
	in.start(STUNCredential{})
	pa, pb := newPeer(t, in, a, "192.168.1.10:4500"), newPeer(t, in, b, "192.168.1.20:4500")
	sa, sb := sessions(t, pa, pb)
	must(t, sa.Start())
	must(t, sb.Start())
	for s, want := range map[*Session]Path{
		sa: {Kind: Host, Local: pa.base, Remote: pb.base},
		sb: {Kind: Host, Local: pb.base, Remote: pa.base},
	} {
		got := waitPath(t, s)
		if got.RTT <= 0 {
			t.Errorf("%s: no round trip measured", s.role)
		}
		got.RTT = 0
		if got != want {
			t.Errorf("%s: path %+v, want %+v", s.role, got, want)
		}
	}
}

// Two peers in different networks that both have this private address: checks
// of one must not end up in the other's session.
func TestSamePrivateAddressTwice(t *testing.T) {
	in := newInternet(t)
	hub := in.addHost(in.addSite("203.0.113.10", "10.0.0", portRestricted), "10.0.0.1")
	one := in.addHost(in.addSite("203.0.113.20", "192.168.1", portRestricted), "192.168.1.10")
	two := in.addHost(in.addSite("203.0.113.30", "192.168.1", portRestricted), "192.168.1.10")
	in.start(STUNCredential{})
	h := newPeer(t, in, hub, "10.0.0.1:4500")
	for i, n := range []*vnet.Net{one, two} {
		p := newPeer(t, in, n, "192.168.1.10:4500")
		mine := Credentials{fmt.Sprintf("hubfor%d", i), credA.Pwd}
		theirs := Credentials{fmt.Sprintf("peer%d", i), credB.Pwd}
		sh := session(t, h.port, Controlling, mine, theirs, p.candidates())
		sp := session(t, p.port, Controlled, theirs, mine, h.candidates())
		must(t, sh.Start())
		must(t, sp.Start())
		if got := waitPath(t, sh); got.Remote != p.mapped {
			t.Errorf("peer %d: path to %s, want %s", i, got.Remote, p.mapped)
		}
		waitPath(t, sp)
	}
}

// The controlling side needs no round trip for its nomination, the controlled
// side hears of the path only by it.
func TestPathBeforeNominationIsAnswered(t *testing.T) {
	_, a, b := newPair(t, portRestricted, portRestricted)
	sa, sb := sessions(t, a, b)
	must(t, sa.Start())
	must(t, sb.Start())
	pa := waitPath(t, sa)
	if pa.Remote != b.mapped || pa.Kind != ServerReflexive {
		t.Errorf("controlling: %+v, want %s %s", pa, ServerReflexive, b.mapped)
	}
	if pb := waitPath(t, sb); pb.Remote != a.mapped {
		t.Errorf("controlled: path to %s, want %s", pb.Remote, a.mapped)
	}
	if st := sa.Checked().total(); st.ResponsesReceived == 0 || st.RequestsSent == 0 {
		t.Errorf("controlling: %+v, want checks sent and answered", st)
	}
}

func TestTrickle(t *testing.T) {
	_, a, b := newPair(t, portRestricted, portRestricted)
	sa := session(t, a.port, Controlling, credA, credB, nil)
	sb := session(t, b.port, Controlled, credB, credA, a.candidates())
	must(t, sa.Start())
	must(t, sb.Start())
	eventually(t, "the other side checks", func() bool { return sb.Checked().total().RequestsSent > 3 })
	if got := sa.Checked().total(); got != (PairStats{}) {
		t.Fatalf("%+v before any candidate is known, want nothing: the NAT lets nobody in", got)
	}
	must(t, sa.AddRemote(Candidate{ServerReflexive, b.mapped}))
	must(t, sa.AddRemote(Candidate{ServerReflexive, b.mapped})) // known: no error
	waitPath(t, sa)
	waitPath(t, sb)
}

func TestAddRemoteRefuses(t *testing.T) {
	in := newInternet(t)
	n := in.addHost(in.wan, "203.0.113.5")
	in.start(STUNCredential{})
	p := newPeer(t, in, n, "203.0.113.5:4500")
	s := session(t, p.port, Controlling, credA, credB, nil)
	for _, addr := range []string{
		"127.0.0.1:4500", "[::1]:4500", "0.0.0.0:4500", "[::]:4500", "224.0.0.1:4500", "[ff02::1]:4500",
		"255.255.255.255:4500", "169.254.1.1:4500", "[fe80::1]:4500", "192.0.2.1:0", "203.0.113.5:4500", "[::ffff:127.0.0.1]:4500",
	} {
		if err := s.AddRemote(Candidate{Host, netip.MustParseAddrPort(addr)}); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v, want %v", addr, err, ErrRefused)
		}
	}
	if err := s.AddRemote(Candidate{PeerReflexive, netip.MustParseAddrPort("192.0.2.1:1")}); !errors.Is(err, ErrRefused) {
		t.Errorf("peer-reflexive: %v, want %v", err, ErrRefused)
	}
	tunnel := netip.MustParseAddrPort("10.233.67.9:4500")
	s.forbidden = []Forbidden{{netip.MustParsePrefix("10.233.67.0/24"), "it leads into a tunnel"}}
	if err := s.AddRemote(Candidate{Host, tunnel}); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "it leads into a tunnel") {
		t.Errorf("forbidden network: %v, want %v with its reason", err, ErrRefused)
	}
	kinds := []Kind{Host, ServerReflexive, PortMapped, Predicted}
	for i := range MaxRemotes {
		must(t, s.AddRemote(Candidate{kinds[i%len(kinds)], netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(1000+i))}))
	}
	for i := range 1000 { // a prediction that would be a port scan
		if err := s.AddRemote(Candidate{Predicted, netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(2000+i))}); !errors.Is(err, ErrRefused) {
			t.Fatalf("candidate %d: %v, want %v", MaxRemotes+1+i, err, ErrRefused)
		}
	}
}

func TestNewSessionRefuses(t *testing.T) {
	in := newInternet(t)
	n := in.addHost(in.wan, "203.0.113.5")
	in.start(STUNCredential{})
	p := newPeer(t, in, n, "203.0.113.5:4500").port
	session(t, p, Controlling, credA, credB, nil)
	for name, tc := range map[string]struct {
		cfg  SessionConfig
		want error
	}{
		"short ufrag":    {SessionConfig{Role: Controlled, Local: Credentials{"abc", credA.Pwd}, Remote: credB}, ErrBadCredentials},
		"short password": {SessionConfig{Role: Controlled, Local: credA, Remote: Credentials{"ufrag", "short"}}, ErrBadCredentials},
		"ufrag in use":   {SessionConfig{Role: Controlled, Local: credA, Remote: credB}, ErrUfragUsed},
	} {
		tc.cfg.Log = testLog(t)
		if _, err := p.NewSession(tc.cfg); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
	}
	if _, err := p.NewSession(SessionConfig{Local: credB, Remote: credA}); err == nil {
		t.Error("session without a role, want an error")
	}
}

// quick is a consent schedule for tests on the real clock.
var quick = Consent{
	Interval: 50 * time.Millisecond, Jitter: 0.2,
	Routine: quickSchedule, Hurried: quickSchedule,
}

var quickSchedule = Schedule{Tries: []time.Duration{100 * time.Millisecond, 200 * time.Millisecond}, Lost: time.Second}

func connected(t testing.TB) (*internet, *Session, *Session) {
	in, a, b := newPair(t, portRestricted, portRestricted)
	sa, sb := sessions(t, a, b)
	must(t, sa.Start())
	must(t, sb.Start())
	waitPath(t, sa)
	waitPath(t, sb)
	return in, sa, sb
}

func TestConsentKeptThenLost(t *testing.T) {
	t.Parallel()
	in, sa, sb := connected(t)
	lost := make(chan error, 2)
	var monitors sync.WaitGroup
	defer monitors.Wait()
	for _, s := range []*Session{sa, sb} {
		monitors.Go(func() { lost <- s.Monitor(t.Context(), quick) })
	}
	before := sb.Checked().total().RequestsReceived
	eventually(t, "the controlled side hears consent checks", func() bool {
		return sb.Checked().total().RequestsReceived > before+10
	})
	select {
	case err := <-lost:
		t.Fatalf("monitor ended on a good path: %v", err)
	default:
	}
	in.cut.Store(true)
	for range 2 {
		select {
		case err := <-lost:
			if !errors.Is(err, ErrConsentLost) {
				t.Errorf("got %v, want %v", err, ErrConsentLost)
			}
		case <-time.After(patience):
			t.Fatal("a dead path was not noticed")
		}
	}
}

func TestCheckNow(t *testing.T) {
	t.Parallel()
	in, sa, _ := connected(t)
	rare := quick
	rare.Interval = time.Hour
	lost := make(chan error, 1)
	var monitor sync.WaitGroup
	defer monitor.Wait()
	monitor.Go(func() { lost <- sa.Monitor(t.Context(), rare) })
	in.cut.Store(true)
	sa.CheckNow()
	select {
	case err := <-lost:
		if !errors.Is(err, ErrConsentLost) {
			t.Errorf("got %v, want %v", err, ErrConsentLost)
		}
	case <-time.After(patience):
		t.Fatal("CheckNow did not make the monitor check")
	}
}

func TestMonitorEnds(t *testing.T) {
	_, sa, sb := connected(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := sa.Monitor(ctx, DefaultConsent()); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v, want %v", err, context.Canceled)
	}
	must(t, sb.Close())
	if err := sb.Monitor(t.Context(), DefaultConsent()); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v, want %v", err, ErrClosed)
	}
	if _, open := <-sb.Paths(); open {
		t.Error("Paths delivers after Close")
	}
	if sb.Checked().total().RequestsSent == 0 {
		t.Error("the counts are gone after Close")
	}
}

func TestMonitorWithoutPath(t *testing.T) {
	_, a, b := newPair(t, portRestricted, portRestricted)
	sa, _ := sessions(t, a, b)
	if err := sa.Monitor(t.Context(), DefaultConsent()); !errors.Is(err, ErrNoPath) {
		t.Errorf("got %v, want %v", err, ErrNoPath)
	}
}

// After Close, the same credentials may be used again and the peer finds nobody.
func TestCloseFreesUfrag(t *testing.T) {
	_, a, b := newPair(t, fullCone, fullCone)
	for range 2 {
		sa, sb := sessions(t, a, b)
		must(t, sa.Start())
		must(t, sb.Start())
		waitPath(t, sa)
		waitPath(t, sb)
		must(t, errors.Join(sa.Close(), sb.Close()))
	}
	a.port.mu.Lock()
	defer a.port.mu.Unlock()
	if n := len(a.port.transactions) + len(a.port.sessions); n != 0 {
		t.Errorf("%d entries left in the port's tables", n)
	}
}
