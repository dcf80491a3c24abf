package punch

import (
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/pion/stun/v4"
)

// checkQueue is how many packets may wait for pion: a peer's checks of a few
// round trips, all that is of use if pion is late.
const checkQueue = 64

// checkConn is the socket pion's agent sees: one session's share of one base.
// What pion sends passes the session, which counts it, spaces it out and learns
// the transaction ID; what the session delivers, pion reads.
type checkConn struct {
	session *Session
	local   netip.AddrPort
	queue   chan datagram
	done    chan struct{}
	closing sync.Once
}

type datagram struct {
	from    netip.AddrPort
	payload []byte
}

func newCheckConn(s *Session, local netip.AddrPort) *checkConn {
	return &checkConn{session: s, local: local, queue: make(chan datagram, checkQueue), done: make(chan struct{})}
}

// deliver never blocks; a full queue drops, as a socket does.
func (c *checkConn) deliver(from netip.AddrPort, payload []byte) {
	select {
	case c.queue <- datagram{from, payload}:
	default:
	}
}

// ReadFromAddrPort implements pion's ice.AddrPortReaderWriter.
func (c *checkConn) ReadFromAddrPort(b []byte) (int, netip.AddrPort, error) {
	select {
	case <-c.done:
		return 0, netip.AddrPort{}, io.EOF
	case d := <-c.queue:
		return copy(b, d.payload), d.from, nil
	}
}

// WriteToAddrPort implements pion's ice.AddrPortReaderWriter.
func (c *checkConn) WriteToAddrPort(b []byte, to netip.AddrPort) (int, error) {
	select {
	case <-c.done:
		return 0, io.ErrClosedPipe
	default:
	}
	to = unmap(to)
	msg := stun.Message{Raw: append([]byte(nil), b...)}
	if err := msg.Decode(); err != nil {
		return 0, err
	}
	p := pair{c.local, to}
	if c.session.goesAstray(p) || msg.Type.Class == stun.ClassRequest && !c.session.sending(p, &msg) {
		return len(b), nil
	}
	return len(b), c.session.send(c.local, to, b)
}

func (c *checkConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.ReadFromAddrPort(b)
	if err != nil {
		return 0, nil, err
	}
	return n, net.UDPAddrFromAddrPort(from), nil
}

func (c *checkConn) WriteTo(b []byte, to net.Addr) (int, error) {
	udp, ok := to.(*net.UDPAddr)
	if !ok {
		return 0, net.InvalidAddrError(to.String())
	}
	return c.WriteToAddrPort(b, udp.AddrPort())
}

func (c *checkConn) Close() error {
	c.closing.Do(func() { close(c.done) })
	return nil
}

func (c *checkConn) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(c.local) }

// Deadlines are not needed: pion closes the conn to stop a read.

func (c *checkConn) SetDeadline(time.Time) error      { return nil }
func (c *checkConn) SetReadDeadline(time.Time) error  { return nil }
func (c *checkConn) SetWriteDeadline(time.Time) error { return nil }
