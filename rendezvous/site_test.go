package rendezvous

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

func mappedCandidate(addr string) wire.Candidate {
	return wire.Candidate{Kind: wire.Mapped, Addr: netip.MustParseAddrPort(addr)}
}

func predictedCandidate(addr string) wire.Candidate {
	return wire.Candidate{Kind: wire.Predicted, Addr: netip.MustParseAddrPort(addr)}
}

// refusals are the causes of what was refused, in order.
func refusals(actions []action) (causes []refusalCause) {
	for _, a := range actions {
		if r, ok := a.(refuse); ok {
			causes = append(causes, r.cause)
		}
	}
	return causes
}

// What an agent names is passed on only where it can be a node's address.
func TestCandidatesAreSifted(t *testing.T) {
	inside := hostCandidate(fmt.Sprintf("10.10.%d.7:4500", number(edge2))) // a subnet of edge2
	host := hostCandidate("192.168.1.10:4500")
	var maps []wire.Candidate
	for i := range maxMapped + 1 {
		maps = append(maps, mappedCandidate(fmt.Sprintf("203.0.113.1:%d", 1024+i)))
	}
	seen := srflxCandidate("203.0.113.1:4500")
	elsewhere := []wire.Candidate{hostCandidate("198.51.100.7:4500"), hostCandidate("198.51.100.8:4500"), hostCandidate("198.51.100.9:4500")}
	tests := []struct {
		name   string
		told   []wire.Candidate
		want   []wire.Candidate // beside the observed one
		causes []refusalCause
		public bool // the mapping counts for everybody
	}{
		{"inside a tunnel", []wire.Candidate{inside, host}, []wire.Candidate{host}, []refusalCause{causeSubnet}, false},
		{"mapped where it is observed", maps[:1], maps[:1], nil, true},
		{"mapped at somebody else's", []wire.Candidate{mappedCandidate("198.51.100.9:53")}, nil, []refusalCause{causeMapping}, false},
		{"mapped at a carrier's", []wire.Candidate{mappedCandidate("100.64.3.4:4500")}, []wire.Candidate{mappedCandidate("100.64.3.4:4500")}, nil, false},
		{"mapped at a second router's", []wire.Candidate{mappedCandidate("192.168.0.2:4500")}, []wire.Candidate{mappedCandidate("192.168.0.2:4500")}, nil, false},
		{"mapped inside a tunnel", []wire.Candidate{{Kind: wire.Mapped, Addr: inside.Addr}}, nil, []refusalCause{causeSubnet}, false},
		{"mapped in a family that is not observed", []wire.Candidate{mappedCandidate("[2001:db8::1]:4500")}, nil, nil, false},
		{"public hosts nobody has seen it at", elsewhere, elsewhere[:maxElsewhere], []refusalCause{causeMany}, false},
		{"too many mappings", maps, maps[:maxMapped], []refusalCause{causeMany}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newMachine(t, community("all", edge1, edge2))
			m.join(edge2)
			actions := m.Online(m.now, &wire.Hello{Endpoint: endpointOf(edge1), Candidates: tt.told}, 0)
			actions = append(actions, m.seen(edge1, seen.Addr.String())...)
			if got := refusals(actions); !slices.Equal(got, tt.causes) {
				t.Errorf("refused for %q, want %q", got, tt.causes)
			}
			order := sent[*wire.Punch](t, actions)[edge2]
			if want := append(slices.Clone(tt.want), seen); !slices.Equal(order.Candidates, want) {
				t.Errorf("candidates %v, want %v", order.Candidates, want)
			}
			if m.nodes[edge1].site.Mapped != tt.public {
				t.Errorf("site mapped: %v", m.nodes[edge1].site.Mapped)
			}
			// Said once, not at every look.
			again := m.Network(m.now, edge1, &wire.Network{Candidates: tt.told})
			if got := refusals(again); len(got) != 0 {
				t.Errorf("refused once more: %q", got)
			}
		})
	}
}

// Subnets of a node that comes later are for tunnels, too.
func TestCandidatesAreSiftedWhenSubnetsCome(t *testing.T) {
	m := newMachine(t, community("all", edge1, edge2))
	inside := hostCandidate(fmt.Sprintf("10.10.%d.7:4500", number(edge2)))
	if got := refusals(m.Online(m.now, &wire.Hello{Endpoint: endpointOf(edge1), Candidates: []wire.Candidate{inside}}, 0)); got != nil {
		t.Errorf("refused for %q before edge2 is known", got)
	}
	if got := refusals(m.join(edge2)); !slices.Equal(got, []refusalCause{causeSubnet}) {
		t.Errorf("refused for %q", got)
	}
	m.Offline(m.now, edge2)
	m.Forget(m.now, edge2)
	if got := m.nodes[edge1].hosts; !slices.Equal(got, []wire.Candidate{inside}) {
		t.Errorf("after edge2 is gone: %v", got)
	}
}

// A node is observed over IPv4 and over IPv6, and both are ways to it.
func TestTwoFamilies(t *testing.T) {
	m := newMachine(t, community("all", edge1, edge2))
	m.join(edge2)
	m.hello(edge1)
	m.seen(edge1, "[2001:db8::1]:4500")
	if s := m.nodes[edge1].site; s.V4 || !s.V6 || s.Public.IsValid() {
		t.Errorf("seen over IPv6: %+v", s)
	}
	trickle := sent[*wire.Trickle](t, m.seen(edge1, "203.0.113.1:4500"))[edge2]
	want := []wire.Candidate{srflxCandidate("203.0.113.1:4500"), srflxCandidate("[2001:db8::1]:4500")}
	if trickle == nil || !slices.Equal(trickle.Candidates, want) {
		t.Errorf("%+v, want %v", trickle, want)
	}
	if s := m.nodes[edge1].site; !s.V4 || !s.V6 || s.Public != netip.MustParseAddr("203.0.113.1") {
		t.Errorf("seen over both: %+v", s)
	}
	if got := m.seen(edge1, "[2001:db8::1]:4500"); len(got) != 0 {
		t.Errorf("seen again: %v", got)
	}
}

// An opening in an IPv6 firewall leads past no NAT.
func TestMappedOverIPv6(t *testing.T) {
	m := newMachine(t)
	told := []wire.Candidate{mappedCandidate("[2001:db8::1]:4500"), mappedCandidate("203.0.113.1:6000")}
	for n, want := range map[int]bool{1: false, 2: true} {
		m.Online(m.now, &wire.Hello{Endpoint: endpointOf(edge1), Candidates: told[:n]}, 0)
		m.seen(edge1, "203.0.113.1:4500")
		m.seen(edge1, "[2001:db8::1]:4500")
		if s := m.nodes[edge1]; s.site.Mapped != want || len(s.mapped) != n {
			t.Errorf("%v: mapped %v with %v passed on, want %v", told[:n], s.site.Mapped, s.mapped, want)
		}
	}
}

func TestFamiliesOfHosts(t *testing.T) {
	for host, want := range map[string][2]bool{
		"192.168.1.10:4500":  {true, false},
		"[2001:db8::1]:4500": {false, true},
		"[fd00::1]:4500":     {false, false}, // a unique local address leads nowhere outside
	} {
		m := newMachine(t)
		m.Online(m.now, &wire.Hello{Endpoint: endpointOf(edge1), Candidates: []wire.Candidate{hostCandidate(host)}}, 0)
		if s := m.nodes[edge1].site; [2]bool{s.V4, s.V6} != want {
			t.Errorf("%s: IPv4 %v, IPv6 %v, want %v", host, s.V4, s.V6, want)
		}
	}
}

func TestPredict(t *testing.T) {
	ports := func(first, step, n int) (cs []wire.Candidate) {
		for k := range n {
			cs = append(cs, predictedCandidate(fmt.Sprintf("203.0.113.1:%d", first+k*step)))
		}
		return cs
	}
	seen := netip.MustParseAddrPort("203.0.113.1:4500")
	tests := []struct {
		name     string
		observed netip.AddrPort
		step     int // of discovery
		said     *wire.Prepared
		want     []wire.Candidate
	}{
		{"upwards", seen, 2, &wire.Prepared{Next: 1026, Step: 2}, ports(1026, 2, maxPredicted)},
		{"downwards", seen, -1, &wire.Prepared{Next: 1026, Step: -1}, ports(1026, -1, maxPredicted)},
		{"step of discovery", seen, 4, &wire.Prepared{Next: 1026}, ports(1026, 4, maxPredicted)},
		{"no step at all", seen, 0, &wire.Prepared{Next: 1026}, ports(1026, 1, maxPredicted)},
		{"up to the last port", seen, 0, &wire.Prepared{Next: 65535 - 64, Step: 64}, ports(65535-64, 64, 2)},
		{"down to the first port", seen, 0, &wire.Prepared{Next: 3, Step: -1}, ports(3, -1, 3)},
		{"not found out", seen, 2, &wire.Prepared{}, nil},
		{"not said", seen, 2, nil, nil},
		{"never seen over IPv4", netip.AddrPort{}, 2, &wire.Prepared{Next: 1026, Step: 2}, nil},
		{"seen over loopback", netip.MustParseAddrPort("127.0.0.1:4500"), 2, &wire.Prepared{Next: 1026, Step: 2}, nil},
	}
	for _, tt := range tests {
		n := &node{observed4: tt.observed, nat: wire.NAT{Step: tt.step}}
		if got := n.predict(tt.said); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}
