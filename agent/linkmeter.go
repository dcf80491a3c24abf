package agent

import (
	"net"
	"net/netip"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Headers of a TCP segment: IP's, and TCP's with the timestamps that both
// kernels put into each (RFC 7323). The two SYN have 8 bytes more.
const (
	ipv4Header = 20
	ipv6Header = 40
	tcpHeader  = 20 + 12
)

// linkMeter adds up what TCP connections have cost in IP bytes, acknowledgements
// and retransmissions included, as the kernel has counted them. Dials that came
// to nothing are not in it. It may be used from any goroutine.
type linkMeter struct {
	mu      sync.Mutex
	past    uint64 // of connections that are closed
	current map[*meteredConn]struct{}
}

// watch counts a connection until it is closed.
func (m *linkMeter) watch(c net.Conn) net.Conn {
	counted := &meteredConn{Conn: c, meter: m}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.current == nil {
		m.current = map[*meteredConn]struct{}{}
	}
	m.current[counted] = struct{}{}
	return counted
}

func (m *linkMeter) bytes() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	total := m.past
	for c := range m.current {
		total += tcpBytes(c.Conn)
	}
	return total
}

type meteredConn struct {
	net.Conn
	meter *linkMeter
}

// Close takes the count before the kernel forgets it.
func (c *meteredConn) Close() error {
	c.meter.mu.Lock()
	if _, open := c.meter.current[c]; open {
		delete(c.meter.current, c)
		c.meter.past += tcpBytes(c.Conn)
	}
	c.meter.mu.Unlock()
	return c.Conn.Close()
}

// tcpBytes is 0 for what is no TCP connection.
func tcpBytes(c net.Conn) uint64 {
	conn, ok := c.(syscall.Conn)
	if !ok {
		return 0
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0
	}
	var info *unix.TCPInfo
	err = onDescriptor(raw, func(fd int) (err error) {
		info, err = unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		return err
	})
	if err != nil {
		return 0
	}
	header := uint64(ipv4Header + tcpHeader)
	if local, err := netip.ParseAddrPort(c.LocalAddr().String()); err == nil && local.Addr().Unmap().Is6() {
		header = ipv6Header + tcpHeader
	}
	return header*uint64(info.Segs_in+info.Segs_out) + info.Bytes_received + info.Bytes_sent
}
