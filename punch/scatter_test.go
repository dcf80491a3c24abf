package punch

import (
	"context"
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
)

// openNet is the symmetric side's host: its shared port's socket, the sockets
// that Scatter opens, and a Rewriter that does with the one what nftables does.
type openNet struct {
	net.PacketConn // the shared port
	t              testing.TB
	host           *vnet.Net
	peer           netip.AddrPort
	refuse         error // of Set

	in     chan datagram
	pumps  sync.WaitGroup
	mu     sync.Mutex
	opened []*openSocket
	set    []uint16       // what Set was called with
	hit    net.PacketConn // on the port that was set
}

func newOpenNet(t testing.TB, host *vnet.Net, addr string) *openNet {
	n := &openNet{PacketConn: listen(t, host, addr), t: t, host: host, in: make(chan datagram, 64)}
	n.pump(n.PacketConn)
	return n
}

func (n *openNet) pump(c net.PacketConn) {
	n.pumps.Go(func() {
		for buf := make([]byte, receiveMTU); ; {
			k, from, err := readFrom(c, buf)
			if err != nil {
				return
			}
			n.in <- datagram{from, slices.Clone(buf[:k])}
		}
	})
}

func (n *openNet) ReadFromAddrPort(b []byte) (int, netip.AddrPort, error) {
	d, ok := <-n.in
	if !ok {
		return 0, netip.AddrPort{}, net.ErrClosed
	}
	return copy(b, d.payload), d.from, nil
}

func (n *openNet) WriteToAddrPort(b []byte, to netip.AddrPort) (int, error) {
	n.mu.Lock()
	c := n.PacketConn
	if n.hit != nil && to == n.peer {
		c = n.hit
	}
	n.mu.Unlock()
	return c.WriteTo(b, net.UDPAddrFromAddrPort(to))
}

func (n *openNet) Close() error {
	n.mu.Lock()
	err := n.PacketConn.Close()
	if n.hit != nil {
		err = errors.Join(err, n.hit.Close())
	}
	n.mu.Unlock()
	go func() { // the port's reader may still be filling the channel's end
		for range n.in {
		}
	}()
	n.pumps.Wait()
	close(n.in)
	return err
}

type openSocket struct {
	net.PacketConn
	net    *openNet
	closed bool
}

func (s *openSocket) Close() error {
	s.net.mu.Lock()
	defer s.net.mu.Unlock()
	s.closed = true
	return s.PacketConn.Close()
}

func (n *openNet) listen() (net.PacketConn, error) {
	c, err := n.host.ListenPacket("udp4", "192.168.1.10:0")
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	s := &openSocket{PacketConn: c, net: n}
	n.opened = append(n.opened, s)
	return s, nil
}

// Set finds the sockets closed, so that the port is free.
func (n *openNet) Set(port uint16) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.set = append(n.set, port)
	for _, s := range n.opened {
		if !s.closed {
			n.t.Errorf("socket %s is open when port %d takes its place", s.LocalAddr(), port)
		}
	}
	if n.refuse != nil {
		return n.refuse
	}
	c, err := n.host.ListenPacket("udp4", netip.AddrPortFrom(netip.MustParseAddr("192.168.1.10"), port).String())
	if err != nil {
		return err
	}
	n.hit = c
	n.pump(c)
	return nil
}

func (n *openNet) ports() []uint16 {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []uint16
	for _, s := range n.opened {
		out = append(out, localPort(s))
	}
	return out
}

// searchPair is a symmetric side a, and a side b whose mapping is known.
func searchPair(t testing.TB, natB vnet.NATType) (opened *atomic.Int32, a *peer, open *openNet, b *peer) {
	in := newInternet(t)
	opened = in.dropOpeners()
	hostA := in.addHost(in.addSite("203.0.113.10", "192.168.1", symmetricNAT), "192.168.1.10")
	hostB := in.addHost(in.addSite("203.0.113.20", "192.168.2", natB), "192.168.2.20")
	in.start(STUNCredential{})
	open = newOpenNet(t, hostA, "192.168.1.10:4500")
	a = &peer{port: openPort(t, open), base: netip.MustParseAddrPort("192.168.1.10:4500")}
	var err error
	a.mapped, err = Mapped(t.Context(), a.port, a.base, in.stun.addrs()[0], STUNCredential{})
	must(t, err)
	b = newPeer(t, in, hostB, "192.168.2.20:4500")
	open.peer = b.mapped
	return opened, a, open, b
}

// Neither side's checks alone connect a symmetric NAT with a port-restricted
// one; a search does.
func TestSearchConnects(t *testing.T) {
	_, a, open, b := searchPair(t, portRestricted)
	sa, sb := sessions(t, a, b)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	must(t, sa.Start())
	must(t, sb.Start())
	var parts sync.WaitGroup
	defer parts.Wait()
	parts.Go(func() {
		port, err := sa.Scatter(ctx, ScatterConfig{Peer: b.mapped, Ports: 512, Listen: open.listen, Rewrite: open})
		if err != nil || !slices.Contains(open.ports(), port) || !slices.Equal(open.set, []uint16{port}) {
			t.Errorf("port %d, %v, set %v; want one of those opened", port, err, open.set)
		}
	})
	parts.Go(func() {
		if err := sb.Search(ctx, SearchConfig{From: b.base, Target: a.mapped.Addr(), Rate: 1000, Max: 20_000}); err != nil {
			t.Error(err)
		}
	})
	pb := waitPath(t, sb)
	if pb.Kind != PeerReflexive || pb.Remote.Addr() != a.mapped.Addr() || pb.Remote == a.mapped {
		t.Errorf("path %+v, want a peer-reflexive one to %s", pb, a.mapped.Addr())
	}
	if pa := waitPath(t, sa); pa.Remote != b.mapped {
		t.Errorf("path %+v, want one to %s", pa, b.mapped)
	}
	parts.Wait()
	if st := sb.Checked(); st.Probes == 0 || st.Sent() < st.Probes {
		t.Errorf("%d probes, %d packets", st.Probes, st.Sent())
	}
}

func TestScatterIgnoresForgeries(t *testing.T) {
	opened, a, open, b := searchPair(t, fullCone)
	sa, sb := sessions(t, a, b)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := sa.Scatter(ctx, ScatterConfig{Peer: b.mapped, Ports: 4, Listen: open.listen, Rewrite: open})
		done <- err
	}()
	eventually(t, "ports are open", func() bool { return opened.Load() == 4 })

	genuine, err := sb.newCheck()
	must(t, err)
	with := func(username, password string, typ stun.MessageType) []byte {
		m, err := stun.Build(stun.TransactionID, typ, stun.NewUsername(username), stun.NewShortTermIntegrity(password), stun.Fingerprint)
		must(t, err)
		return m.Raw
	}
	username := credA.Ufrag + ":" + credB.Ufrag
	forgeries := [][]byte{
		[]byte("not STUN"),
		with(username, "another password of some length", stun.BindingRequest),
		with(credA.Ufrag+":other", credA.Pwd, stun.BindingRequest),
		with(username, credA.Pwd, stun.BindingSuccess),
	}
	// The NAT's mappings towards the peer are the next four after the one that
	// the STUN server saw; vnet's count.
	first := a.mapped.Port() + 1
	for i, f := range forgeries {
		must(t, b.port.send(b.base, netip.AddrPortFrom(a.mapped.Addr(), first+uint16(i)), f))
	}
	eventually(t, "all forgeries are counted", func() bool { return sa.Checked().Forged == len(forgeries) })

	select {
	case err := <-done:
		t.Fatalf("a forgery ended it: %v", err)
	default:
	}
	must(t, b.port.send(b.base, netip.AddrPortFrom(a.mapped.Addr(), first+2), genuine.Raw))
	select {
	case err := <-done:
		must(t, err)
	case <-time.After(patience):
		t.Fatal("the peer's own check was not taken")
	}
}

// A check with the right credentials from another address is no hit: it shows
// no way to the peer.
func TestScatterWantsThePeersAddress(t *testing.T) {
	in := newInternet(t)
	host := in.addHost(in.wan, "203.0.113.5")
	other := in.addHost(in.wan, "203.0.113.66")
	in.start(STUNCredential{})
	a := newPeer(t, in, host, "203.0.113.5:4500")
	stranger := openPort(t, listen(t, other, "203.0.113.66:4500"))
	peerAddr := netip.MustParseAddrPort("203.0.113.20:4500")
	sa := session(t, a.port, Controlling, credA, credB, []Candidate{{ServerReflexive, peerAddr}})
	sb := session(t, stranger, Controlled, credB, credA, nil)
	open := &openNet{t: t, host: host, peer: peerAddr}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := sa.Scatter(ctx, ScatterConfig{Peer: peerAddr, Ports: 1, Rewrite: open, Listen: func() (net.PacketConn, error) {
			return host.ListenPacket("udp4", "203.0.113.5:40000")
		}})
		done <- err
	}()
	eventually(t, "the port is open", func() bool { return sa.Checked().Openers == 1 })
	check, err := sb.newCheck()
	must(t, err)
	must(t, stranger.send(stranger.Local()[0], netip.MustParseAddrPort("203.0.113.5:40000"), check.Raw))
	eventually(t, "it is counted", func() bool { return sa.Checked().Forged == 1 })
	cancel()
	if err := <-done; !errors.Is(err, ErrNoHit) {
		t.Errorf("got %v, want %v", err, ErrNoHit)
	}
	if len(open.set) > 0 {
		t.Errorf("port %d set", open.set)
	}
}

func TestScatterFails(t *testing.T) {
	_, a, open, b := searchPair(t, portRestricted)
	sa, _ := sessions(t, a, b)
	refused := errors.New("no more sockets")
	host := netip.AddrPortFrom(b.base.Addr(), b.base.Port())
	for name, tc := range map[string]struct {
		cfg  ScatterConfig
		want error
	}{
		"not the peer's": {ScatterConfig{Peer: netip.MustParseAddrPort("203.0.113.99:4500"), Ports: 1, Listen: open.listen, Rewrite: open}, ErrRefused},
		"host candidate": {ScatterConfig{Peer: host, Ports: 1, Listen: open.listen, Rewrite: open}, ErrRefused},
		"no socket":      {ScatterConfig{Peer: b.mapped, Ports: 8, Rewrite: open, Listen: func() (net.PacketConn, error) { return nil, refused }}, refused},
	} {
		if _, err := sa.Scatter(t.Context(), tc.cfg); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
	}
	for _, s := range open.opened {
		if !s.closed {
			t.Errorf("socket %s is left open", s.LocalAddr())
		}
	}
}

// A port that nftables will not rewrite is of no use, and is told as such.
func TestScatterWithoutRewrite(t *testing.T) {
	opened, a, open, b := searchPair(t, fullCone)
	sa, sb := sessions(t, a, b)
	open.refuse = errors.New("operation not permitted")
	done := make(chan error, 1)
	go func() {
		_, err := sa.Scatter(t.Context(), ScatterConfig{Peer: b.mapped, Ports: 1, Listen: open.listen, Rewrite: open})
		done <- err
	}()
	eventually(t, "the port is open", func() bool { return opened.Load() == 1 })
	check, err := sb.newCheck()
	must(t, err)
	must(t, b.port.send(b.base, netip.AddrPortFrom(a.mapped.Addr(), a.mapped.Port()+1), check.Raw))
	if err := <-done; !errors.Is(err, ErrRewrite) || !errors.Is(err, open.refuse) {
		t.Errorf("got %v, want %v with its reason", err, ErrRewrite)
	}
}
