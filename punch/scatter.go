package punch

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	// scatterRate is how fast ports are opened, in packets per second: an
	// eighth of a second for 256, when the peer's first probes are on the way.
	scatterRate = 2000
	// probeBuffer holds any check; what is longer is none.
	probeBuffer = 576
)

// Errors of Scatter.
var (
	// ErrNoHit means that ctx ended first.
	ErrNoHit = errors.New("no probe of the peer's came in")
	// ErrRewrite means that this host could not be made to use a port.
	ErrRewrite = errors.New("source port not rewritten")
)

// Rewriter changes the source port of what the shared port sends to the peer's
// mapping, whoever sends it.
type Rewriter interface {
	// Set makes packets leave from port, and what comes to it arrive at the
	// shared port, although the host's connection tracking knows a flow from
	// that port already: it has to, for the host's own firewall to let a probe
	// in.
	Set(port uint16) error
}

// ScatterConfig says which ports to open.
type ScatterConfig struct {
	// Peer is the peer's mapping: the one address that probes come from.
	Peer netip.AddrPort
	// Ports is how many to open.
	Ports int
	// Listen opens a socket on an ephemeral port of the base's address; what it
	// sends has the time to live of an opener.
	Listen func() (net.PacketConn, error)
	// Rewrite puts the port that was hit in the shared port's place.
	Rewrite Rewriter
}

// Scatter is one part of a search, for the side behind a symmetric NAT: it
// opens many ports towards the peer's mapping, each of which the NAT gives a
// mapping of its own, and waits for a check of the peer's to come in on one of
// them (see Search). That port is then put in the shared port's place, so that
// the session's own checks pass the way which the probe has found; Scatter
// proves nothing by itself. Packets from elsewhere or without the attempt's
// credentials are counted as forged. All sockets are closed when it returns:
// the port that was hit, or ErrNoHit, ErrRewrite, or why no port was opened.
func (s *Session) Scatter(ctx context.Context, cfg ScatterConfig) (port uint16, err error) {
	cfg.Peer = unmap(cfg.Peer)
	if !s.reflexive(func(a netip.AddrPort) bool { return a == cfg.Peer }) {
		return 0, fmt.Errorf("search: %w: %s is no server-reflexive IPv4 candidate of the peer", ErrRefused, cfg.Peer)
	}
	f, err := openField(s, cfg)
	if err != nil {
		return 0, fmt.Errorf("search: %w", err)
	}
	defer f.close()
	f.listen()
	if err := f.open(ctx); err != nil {
		return 0, err
	}
	select {
	case <-f.hit:
		port = f.port
	case <-ctx.Done():
		return 0, ErrNoHit
	case <-s.done:
		return 0, ErrNoHit
	}
	f.close() // the flow from port must not be renewed
	if err := cfg.Rewrite.Set(port); err != nil {
		return port, fmt.Errorf("search: %w: %w", ErrRewrite, err)
	}
	s.hurry(cfg.Peer)
	s.log.Info("a probe of the peer's came in", "port", port, "from", cfg.Peer)
	return port, nil
}

// field is the open ports of one Scatter, which owns it.
type field struct {
	session *Session
	peer    netip.AddrPort
	conns   []net.PacketConn
	readers sync.WaitGroup
	closing sync.Once
	// hit is closed after the first port that was hit is in port.
	hit     chan struct{}
	hitting sync.Once
	port    uint16
}

// openField opens as many sockets as it is allowed to, at least one.
func openField(s *Session, cfg ScatterConfig) (*field, error) {
	f := &field{session: s, peer: cfg.Peer, hit: make(chan struct{})}
	for range cfg.Ports {
		c, err := cfg.Listen()
		if err != nil && len(f.conns) == 0 {
			return nil, err
		}
		if err != nil {
			s.log.Warn("fewer ports opened than wanted", "opened", len(f.conns), "wanted", cfg.Ports, "err", err)
			break
		}
		f.conns = append(f.conns, c)
	}
	return f, nil
}

func localPort(c net.PacketConn) uint16 {
	udp, ok := c.LocalAddr().(*net.UDPAddr)
	if !ok {
		return 0
	}
	return udp.AddrPort().Port()
}

// close ends the sockets and waits for their readers.
func (f *field) close() {
	f.closing.Do(func() {
		for _, c := range f.conns {
			_ = c.Close() // nothing was to be kept of it
		}
	})
	f.readers.Wait()
}

// open sends an opener from each port.
func (f *field) open(ctx context.Context) error {
	pace := cadence{rate: scatterRate, started: time.Now()}
	tick := time.NewTicker(paceTick)
	defer tick.Stop()
	opened := 0
	var last error
	for tried := 0; tried < len(f.conns); {
		for range pace.burst(time.Now(), tried, len(f.conns)) {
			opener, err := newOpener()
			if err == nil {
				err = writeTo(f.conns[tried], opener, f.peer)
			}
			tried++
			if err != nil {
				last = err
				continue
			}
			opened++
			f.session.note(func(st *Stats) { st.Openers++ })
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ErrNoHit
		case <-f.hit: // no more are needed
			return nil
		}
	}
	if opened == 0 {
		return fmt.Errorf("search: no port could be opened: %w", last)
	}
	return nil
}

func (f *field) listen() {
	for _, c := range f.conns {
		f.readers.Go(func() { f.read(c) })
	}
}

// read waits for a check of the peer's on one port.
func (f *field) read(c net.PacketConn) {
	buf := make([]byte, probeBuffer)
	for {
		n, from, err := readFrom(c, buf)
		if err != nil {
			return
		}
		if unmap(from) != f.peer || !f.session.isCheck(buf[:n]) {
			f.session.note(func(st *Stats) { st.Forged++ })
			continue
		}
		f.hitting.Do(func() {
			f.port = localPort(c)
			close(f.hit)
		})
	}
}
