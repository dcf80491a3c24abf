package punch

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/stun/v4"
	"github.com/pion/transport/v5/vnet"

	"github.com/bodkin-net/bodkin/punch/nat"
)

func TestOpenerTTL(t *testing.T) {
	for name, tc := range map[string]struct {
		nat  nat.NAT
		want int
	}{
		"nothing known":       {nat.NAT{}, 3},
		"behind two NATs":     {nat.NAT{Present: true, Mapping: nat.EndpointIndependent, Filtering: nat.AddressDependent, Hops: 2}, 2},
		"hops not measured":   {portNAT, 3},
		"no NAT":              {nat.NAT{Mapping: nat.EndpointIndependent, Filtering: nat.EndpointIndependent}, 1},
		"half known, no NAT":  {nat.NAT{Mapping: nat.EndpointIndependent}, 3},
		"no NAT, but a route": {nat.NAT{Mapping: nat.EndpointIndependent, Filtering: nat.EndpointIndependent, Hops: 2}, 2},
	} {
		if got := OpenerTTL(tc.nat); got != tc.want {
			t.Errorf("%s: %d, want %d", name, got, tc.want)
		}
	}
}

func TestOpenerTargets(t *testing.T) {
	at := func(kind Kind, addr string) Candidate { return Candidate{kind, netip.MustParseAddrPort(addr)} }
	host, srflx := at(Host, "192.168.1.10:4500"), at(ServerReflexive, "203.0.113.1:4500")
	mapped, public := at(PortMapped, "203.0.113.1:7000"), at(Host, "203.0.113.9:4500")
	first, second := at(Predicted, "203.0.113.1:5001"), at(Predicted, "203.0.113.1:5002")
	for name, tc := range map[string]struct{ remotes, want []Candidate }{
		"host only":      {[]Candidate{host}, nil},
		"without a NAT":  {[]Candidate{host, public, at(Host, "[2001:db8::1]:4500")}, []Candidate{public}},
		"srflx":          {[]Candidate{host, srflx}, []Candidate{srflx}},
		"mapped":         {[]Candidate{host, srflx, mapped}, []Candidate{mapped, srflx}},
		"predicted":      {[]Candidate{host, srflx, first, second}, []Candidate{first, second}},
		"both":           {[]Candidate{mapped, srflx, first, second}, []Candidate{first, second, mapped}},
		"peer-reflexive": {[]Candidate{at(PeerReflexive, "203.0.113.1:9")}, nil},
	} {
		var want []netip.AddrPort
		for _, c := range tc.want {
			want = append(want, c.Addr)
		}
		if got := OpenerTargets(tc.remotes); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}

// ttlNet is a vnet socket that can send openers: vnet knows no TTL, so
// dropOpeners lets indications die between the NATs. Sent notes every packet.
type ttlNet struct {
	net.PacketConn

	mu   sync.Mutex
	sent []sentPacket
}

type sentPacket struct {
	to     netip.AddrPort
	ttl    int // 0: not set
	opener bool
}

func (c *ttlNet) WriteTo(b []byte, to net.Addr) (int, error) {
	c.note(b, to.(*net.UDPAddr).AddrPort(), 0)
	return c.PacketConn.WriteTo(b, to)
}

func (c *ttlNet) WriteToTTL(b []byte, to netip.AddrPort, ttl int) (int, error) {
	c.note(b, to, ttl)
	return c.PacketConn.WriteTo(b, net.UDPAddrFromAddrPort(to))
}

func (c *ttlNet) note(b []byte, to netip.AddrPort, ttl int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sent = append(c.sent, sentPacket{unmap(to), ttl, isOpener(b)})
}

func (c *ttlNet) packets() []sentPacket {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.sent)
}

func isOpener(b []byte) bool {
	msg := stun.Message{Raw: slices.Clone(b)}
	return msg.Decode() == nil && msg.Type.Class == stun.ClassIndication
}

// dropOpeners must be called before the internet starts. It counts the openers
// that have left their own NATs.
func (in *internet) dropOpeners() *atomic.Int32 {
	dropped := new(atomic.Int32)
	in.wan.AddChunkFilter(func(c vnet.Chunk) bool {
		if !isOpener(c.UserData()) {
			return true
		}
		dropped.Add(1)
		return false
	})
	return dropped
}

// ttlPair is newPair with sockets that can send openers.
func ttlPair(t testing.TB, natA, natB vnet.NATType) (a, b *peer, connA, connB *ttlNet) {
	in := newInternet(t)
	in.dropOpeners()
	hostA := in.addHost(in.addSite("203.0.113.10", "192.168.1", natA), "192.168.1.10")
	hostB := in.addHost(in.addSite("203.0.113.20", "192.168.2", natB), "192.168.2.20")
	in.start(STUNCredential{})
	join := func(n *vnet.Net, addr string) (*peer, *ttlNet) {
		conn := &ttlNet{PacketConn: listen(t, n, addr)}
		p := &peer{port: openPort(t, conn), base: netip.MustParseAddrPort(addr)}
		var err error
		p.mapped, err = Mapped(t.Context(), p.port, p.base, in.stun.addrs()[0], STUNCredential{})
		must(t, err)
		return p, conn
	}
	a, connA = join(hostA, "192.168.1.10:4500")
	b, connB = join(hostB, "192.168.2.20:4500")
	return a, b, connA, connB
}

func TestOpen(t *testing.T) {
	a, b, conn, _ := ttlPair(t, portRestricted, portRestricted)
	sa, sb := sessions(t, a, b)
	before := len(conn.packets())
	stranger := netip.MustParseAddrPort("203.0.113.99:4500")
	must(t, sa.Open(2, []netip.AddrPort{b.mapped, stranger, netip.MustParseAddrPort("[2001:db8::1]:4500")}))
	want := []sentPacket{{to: b.mapped, ttl: 2, opener: true}}
	if got := conn.packets()[before:]; !slices.Equal(got, want) {
		t.Errorf("sent %+v, want %+v: one to the candidate, none to anybody else", got, want)
	}
	if st := sa.Checked(); st.Openers != 1 || st.Sent() != 1 {
		t.Errorf("%+v, want one opener", st)
	}
	must(t, sb.Open(2, []netip.AddrPort{a.mapped}))
	must(t, sa.Start())
	must(t, sb.Start())
	waitPath(t, sa)
	waitPath(t, sb)
}

func TestOpenWithoutTTL(t *testing.T) {
	_, a, b := newPair(t, portRestricted, portRestricted)
	sa, sb := sessions(t, a, b)
	if err := sa.Open(2, []netip.AddrPort{b.mapped}); !errors.Is(err, ErrNoTTL) {
		t.Errorf("got %v, want %v", err, ErrNoTTL)
	}
	if n := sa.Checked().Openers; n != 0 {
		t.Errorf("%d openers counted, none was sent", n)
	}
	must(t, sa.Start())
	must(t, sb.Start())
	waitPath(t, sa)
}

// What comes before Start, or as an answer to an opener, makes no path: only a
// check of one's own that is answered does.
func TestEarlyPacketsAreNoSuccess(t *testing.T) {
	in, a, b := newPair(t, fullCone, fullCone)
	sa, sb := sessions(t, a, b)
	must(t, sa.Start()) // the peer is early
	eventually(t, "the peer's checks are in", func() bool { return sa.Checked().total().RequestsSent > 5 })

	opener := &stun.Message{}
	raw, err := newOpener()
	must(t, err)
	opener.Raw = raw
	must(t, opener.Decode())
	forged, err := stun.Build(opener, stun.BindingSuccess, stun.NewShortTermIntegrity(credA.Pwd), stun.Fingerprint)
	must(t, err)
	must(t, a.port.send(a.base, b.mapped, forged.Raw))

	in.cut.Store(true) // nothing that is sent from now on arrives
	must(t, sb.Start())
	eventually(t, "the late side checks", func() bool { return sb.Checked().total().RequestsSent > 20 })
	select {
	case p := <-sb.Paths():
		t.Errorf("path %+v from early packets alone", p)
	default:
	}
	in.cut.Store(false)
	waitPath(t, sb)
	waitPath(t, sa)
}

// vnet's symmetric NATs count, so a hand-made prediction must connect two of
// them, if and only if nothing is sent to a new destination before the opener.
func TestPredict(t *testing.T) {
	for name, other := range map[string]vnet.NATType{"counting": symmetricNAT, "port-restricted": portRestricted} {
		t.Run("counting × "+name, func(t *testing.T) {
			a, b, _, _ := ttlPair(t, symmetricNAT, other)
			toA, toB := predicted(a), b.candidates()
			if other == symmetricNAT {
				toB = predicted(b)
			}
			sa := session(t, a.port, Controlling, credA, credB, toB)
			sb := session(t, b.port, Controlled, credB, credA, toA)
			must(t, sa.Open(2, OpenerTargets(toB)))
			must(t, sb.Open(2, OpenerTargets(toA)))
			time.Sleep(Barrier) // the barrier itself, not a wait for something
			must(t, sa.Start())
			must(t, sb.Start())
			if p := waitPath(t, sb); p.Kind != Predicted || p.Remote.Addr() != a.mapped.Addr() {
				t.Errorf("path %+v, want a %s one", p, Predicted)
			}
			waitPath(t, sa)
		})
	}
}

// predicted are a peer's candidates as the rendezvous makes them.
func predicted(p *peer) []Candidate {
	out := p.candidates()
	for k := range uint16(8) {
		out = append(out, Candidate{Predicted, netip.AddrPortFrom(p.mapped.Addr(), p.mapped.Port()+1+k)})
	}
	return out
}
