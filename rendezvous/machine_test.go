package rendezvous

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// Nodes of the tests. Each is a cluster.node, as in FabEdge.
const (
	edge1     wire.NodeName = "beijing.edge1"
	edge2     wire.NodeName = "beijing.edge2"
	edge3     wire.NodeName = "beijing.edge3"
	edge4     wire.NodeName = "shanghai.edge4"
	connector wire.NodeName = "beijing.connector"
)

var both12 = wire.NewPairID(string(edge1), string(edge2))

// number makes the addresses of the tests' nodes differ.
func number(name wire.NodeName) byte {
	var n byte
	for _, b := range []byte(name) {
		n = n*31 + b
	}
	return n
}

// endpointOf is an endpoint whose subnet is the node's own.
func endpointOf(name wire.NodeName) wire.Endpoint {
	e := wire.Endpoint{
		ID: "CN=" + string(name), Name: name, Type: wire.Edge,
		Subnets: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 10, number(name), 0}), 24)},
	}
	if strings.Contains(string(name), "connector") {
		e.Type, e.PublicAddresses, e.Port = wire.Connector, []string{"198.51.100.1"}, 45000
	}
	return e
}

func community(name string, members ...wire.NodeName) Community {
	c := Community{Name: name}
	for _, m := range members {
		c.Members = append(c.Members, string(m))
	}
	return c
}

func hostCandidate(addr string) wire.Candidate {
	return wire.Candidate{Kind: wire.Host, Addr: netip.MustParseAddrPort(addr)}
}

func srflxCandidate(addr string) wire.Candidate {
	return wire.Candidate{Kind: wire.ServerReflexive, Addr: netip.MustParseAddrPort(addr)}
}

// machine is a coordinator under test with a clock that only the test moves.
type machine struct {
	t *testing.T
	*coordinator
	now time.Time
}

func newMachine(t *testing.T, cs ...Community) *machine {
	m := &machine{t: t, coordinator: newCoordinator(rand.New(rand.NewPCG(1, 2))), now: time.Unix(1_700_000_000, 0)}
	m.Communities(m.now, cs)
	return m
}

// Online and Communities come when no node is in the pause after its last list:
// what that is for, lists_test.go tests.
func (m *machine) Online(now time.Time, hello *wire.Hello, delay time.Duration) []action {
	m.rest()
	return m.coordinator.Online(now, hello, delay)
}

func (m *machine) Communities(now time.Time, cs []Community) []action {
	m.rest()
	return m.coordinator.Communities(now, cs)
}

func (m *machine) rest() {
	for _, n := range m.nodes {
		n.listedAt = time.Time{}
	}
}

// join brings nodes online and lets the STUN service see them at port 4500 of
// an address of their own.
func (m *machine) join(names ...wire.NodeName) (out []action) {
	for _, name := range names {
		out = append(out, m.hello(name)...)
		out = append(out, m.seen(name, fmt.Sprintf("203.0.113.%d:4500", number(name)))...)
	}
	return out
}

func (m *machine) hello(name wire.NodeName, tunnels ...wire.Tunnel) []action {
	return m.Online(m.now, &wire.Hello{Endpoint: endpointOf(name), Tunnels: tunnels}, 0)
}

func (m *machine) seen(name wire.NodeName, addr string) []action {
	return m.Observed(m.now, name, netip.MustParseAddrPort(addr))
}

func (m *machine) after(d time.Duration) { m.now = m.now.Add(d) }

func (m *machine) tick(d time.Duration) []action {
	m.after(d)
	return m.Tick(m.now)
}

// toRetry moves the clock to what Next announces and does it.
func (m *machine) toRetry() []action {
	m.t.Helper()
	next := m.Next()
	if next.IsZero() {
		m.t.Fatal("nothing is planned")
	}
	m.now = next
	return m.Tick(m.now)
}

func (m *machine) report(from, peer wire.NodeName, o wire.Outcome, id wire.AttemptID) []action {
	r := &wire.Report{Peer: peer, Attempt: id, Outcome: o}
	switch o {
	case wire.OutcomeFailed, wire.OutcomeLost:
		r.Reason, r.Silent = "because of it", o == wire.OutcomeLost
	default:
		r.Path = wire.Path{Kind: wire.PathServerReflexive, Remote: netip.MustParseAddrPort("203.0.113.9:4500")}
		r.ElapsedMs = 400
	}
	return m.Report(m.now, from, r)
}

// connect brings a pair that has an attempt to direct.
func (m *machine) connect(a, b wire.NodeName) []action {
	m.t.Helper()
	id := m.attempt(a, b)
	return append(m.report(a, b, wire.OutcomeDirect, id), m.report(b, a, wire.OutcomeDirect, id)...)
}

func (m *machine) pair(a, b wire.NodeName) PairView {
	m.t.Helper()
	for _, v := range m.Views() {
		if v.ID == wire.NewPairID(string(a), string(b)) {
			return v
		}
	}
	m.t.Fatalf("%s and %s are no pair", a, b)
	return PairView{}
}

// attempt is the running attempt of a pair.
func (m *machine) attempt(a, b wire.NodeName) wire.AttemptID {
	m.t.Helper()
	p := m.pairs[wire.NewPairID(string(a), string(b))]
	if p == nil || p.attempt == nil {
		m.t.Fatalf("%s and %s are not punching: %+v", a, b, p)
	}
	return p.attempt.id
}

func (m *machine) wantPair(a, b wire.NodeName, state State, punching bool, reason string) {
	m.t.Helper()
	v := m.pair(a, b)
	if v.State != state || v.Punching != punching || v.Reason != reason {
		m.t.Errorf("%s: %s, punching %v, %q; want %s, punching %v, %q", v.ID, v.State, v.Punching, v.Reason, state, punching, reason)
	}
}

// sent are the messages of one kind by receiver; nobody gets two at once.
func sent[M wire.Message](t *testing.T, actions []action) map[wire.NodeName]M {
	t.Helper()
	found := map[wire.NodeName]M{}
	for _, a := range actions {
		if s, ok := a.(send); ok {
			if msg, ok := s.msg.(M); ok {
				if _, twice := found[s.to]; twice {
					t.Errorf("%s gets two of %s", s.to, msg.Type())
				}
				found[s.to] = msg
			}
		}
	}
	return found
}

func receivers[M wire.Message](t *testing.T, actions []action) []wire.NodeName {
	t.Helper()
	var names []wire.NodeName
	for name := range sent[M](t, actions) {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func wantReceivers[M wire.Message](t *testing.T, actions []action, want ...wire.NodeName) {
	t.Helper()
	if got := receivers[M](t, actions); !slices.Equal(got, want) {
		t.Errorf("%T for %q, want %q", *new(M), got, want)
	}
}

// failCurrent reports the running attempt as failed, if there is one.
func (m *machine) failCurrent(from wire.NodeName) {
	if p := m.pairs[both12]; p.attempt != nil {
		m.report(from, p.other(from), wire.OutcomeFailed, p.attempt.id)
	}
}

// checkNext: a pair that can have an attempt, or has one, is on the agenda at
// the right time, and no other is.
func (m *machine) checkNext() {
	m.t.Helper()
	planned := 0
	for _, p := range m.sorted {
		var want time.Time
		switch {
		case p.attempt != nil:
			want = p.attempt.deadline
		case m.wants(p) && m.free(p):
			want = m.due(p)
		}
		if p.place > 0 {
			planned++
		}
		// One that has been put down may meanwhile have lost its slot.
		if !p.at.Equal(want) && !(want.IsZero() && m.wants(p)) {
			m.t.Errorf("%s is planned for %v, want %v", p.id, p.at, want)
		}
	}
	if planned != len(m.agenda) {
		m.t.Errorf("%d pairs on the agenda, %d of those that there are", len(m.agenda), planned)
	}
}
