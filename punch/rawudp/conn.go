// Package rawudp gives a net.PacketConn on a UDP port that another process has
// bound.
//
// An IKE daemon owns UDP port 4500 alone, but the NAT mapping its tunnels need
// belongs to that very source port, so a hole has to be punched from it. A raw
// socket sees a copy of each UDP packet the host accepts; a filter in the
// kernel leaves only STUN to the shared port. The other process goes on
// receiving everything. What the host's firewall drops is not seen here
// either, so a punched path is one the other process can use too.
//
// Linux only. Needs CAP_NET_RAW, and CAP_NET_ADMIN to be exempt from the
// host's IPsec policies.
package rawudp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

var (
	// ErrPermission means that the process lacks a capability; its text is for
	// the operator.
	ErrPermission = errors.New("raw sockets need CAP_NET_RAW, and CAP_NET_ADMIN to bypass IPsec policies: run as root or grant AmbientCapabilities=CAP_NET_RAW CAP_NET_ADMIN")
	// ErrNotLocal means that Options.Addr is not an address of this host, or
	// not yet one (IPv6 duplicate address detection).
	ErrNotLocal = errors.New("not an address of this host")
	// ErrOptions means that Options cannot be used.
	ErrOptions = errors.New("invalid options")
	// ErrDestination means that a packet cannot be sent to the given address.
	ErrDestination = errors.New("invalid destination")
)

const (
	// maxPacket bounds a received packet with its IP header. STUN over UDP stays
	// within the path MTU (RFC 8489 Section 6.1); anything longer is dropped.
	maxPacket = 2048
	// maxPayload is the largest UDP payload in an IPv4 packet without options.
	maxPayload = 65535 - ipv4MinHeader - udpHeaderLen
)

// Options says which port to share.
type Options struct {
	Addr netip.Addr // a unicast address of this host; IPv6 link-local with its zone
	Port uint16     // the UDP port, not 0
	Mark uint32     // SO_MARK for sent packets; 0 sets none
}

func (o Options) validate() error {
	switch {
	case !o.Addr.IsValid() || o.Addr.IsUnspecified() || o.Addr.IsMulticast():
		return fmt.Errorf("%w: address %s: want a unicast address of this host", ErrOptions, o.Addr)
	case o.Port == 0:
		return fmt.Errorf("%w: port 0: want the UDP port to share", ErrOptions)
	}
	return nil
}

// Conn sends from, and receives STUN packets to, a UDP port that another
// process has bound. It is a net.PacketConn whose addresses are *net.UDPAddr.
//
// All methods may be called concurrently. Close makes blocked calls return an
// error that is net.ErrClosed.
type Conn struct {
	local netip.AddrPort
	ip    *net.IPConn

	readMu  sync.Mutex // guards readBuf: one reader at a time is on the socket
	readBuf [maxPacket]byte
}

// Listen opens a Conn. The port need not be bound by anybody. Errors are
// ErrPermission, ErrNotLocal, ErrOptions, or the system's.
func Listen(o Options) (*Conn, error) {
	o.Addr = o.Addr.Unmap()
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("rawudp: %w", err)
	}
	network := "ip4:" + strconv.Itoa(protoUDP)
	if o.Addr.Is6() {
		network = "ip6:" + strconv.Itoa(protoUDP)
	}
	local := netip.AddrPortFrom(o.Addr, o.Port)
	pc, err := listenPacket(network, o.Addr.String(), func(fd int) error { return configure(fd, o) })
	if err != nil {
		return nil, listenError(err, local)
	}
	return &Conn{local: local, ip: pc.(*net.IPConn)}, nil
}

// listenError says what kept a socket from being opened on local.
func listenError(err error, local netip.AddrPort) error {
	switch {
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("rawudp: %s: %w (%w)", local, ErrPermission, err)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("rawudp: %s: %w (%w)", local.Addr(), ErrNotLocal, err)
	}
	return fmt.Errorf("rawudp: %s: %w", local, err)
}

// ReadFromAddrPort reads the payload of the next STUN packet into b and returns
// its length and sender. A payload longer than b is cut off, as by net.UDPConn.
func (c *Conn) ReadFromAddrPort(b []byte) (int, netip.AddrPort, error) {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	v6 := c.local.Addr().Is6()
	for {
		// ReadMsgIP, unlike ReadFrom, leaves the IPv4 header in place.
		n, _, _, from, err := c.ip.ReadMsgIP(c.readBuf[:], nil)
		if err != nil {
			return 0, netip.AddrPort{}, err
		}
		d, err := parse(c.readBuf[:n], v6)
		// The port and the cookie are looked at again for packets that came
		// between the socket's birth and the attaching of its filter.
		if err != nil || d.dst.Port() != c.local.Port() || !d.isSTUN() {
			continue
		}
		src, ok := netip.AddrFromSlice(from.IP)
		if !ok {
			continue
		}
		src = src.Unmap().WithZone(from.Zone)
		return copy(b, d.payload), netip.AddrPortFrom(src, d.src.Port()), nil
	}
}

// WriteToAddrPort sends b to dst from the shared port.
func (c *Conn) WriteToAddrPort(b []byte, dst netip.AddrPort) (int, error) {
	return c.write(b, dst, nil)
}

// WriteToTTL is WriteToAddrPort with a time to live (hop limit), 1 to 255, for
// this packet only: it opens the local NAT without reaching the remote one.
func (c *Conn) WriteToTTL(b []byte, dst netip.AddrPort, ttl int) (int, error) {
	if ttl < 1 || ttl > 255 {
		return 0, fmt.Errorf("rawudp: TTL %d: want 1 to 255", ttl)
	}
	if c.local.Addr().Is6() {
		return c.write(b, dst, intControlMessage(unix.IPPROTO_IPV6, unix.IPV6_HOPLIMIT, ttl))
	}
	return c.write(b, dst, intControlMessage(unix.IPPROTO_IP, unix.IP_TTL, ttl))
}

func (c *Conn) write(b []byte, dst netip.AddrPort, control []byte) (int, error) {
	dst = netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port())
	switch {
	case !dst.IsValid() || dst.Port() == 0 || dst.Addr().IsUnspecified():
		return 0, fmt.Errorf("rawudp: %w: %s: want an address and a port", ErrDestination, dst)
	case dst.Addr().Is6() != c.local.Addr().Is6():
		return 0, fmt.Errorf("rawudp: %w: %s: not of the address family of %s", ErrDestination, dst, c.local)
	case len(b) > maxPayload:
		return 0, fmt.Errorf("rawudp: send %d bytes to %s: %w", len(b), dst, unix.EMSGSIZE)
	}
	packet := appendUDP(make([]byte, 0, udpHeaderLen+len(b)), c.local, dst, b)
	to := &net.IPAddr{IP: dst.Addr().AsSlice(), Zone: dst.Addr().Zone()}
	if _, _, err := c.ip.WriteMsgIP(packet, control, to); err != nil {
		return 0, err
	}
	return len(b), nil
}

// ReadFrom is ReadFromAddrPort with a *net.UDPAddr.
func (c *Conn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.ReadFromAddrPort(b)
	if err != nil {
		return 0, nil, err
	}
	return n, net.UDPAddrFromAddrPort(from), nil
}

// WriteTo is WriteToAddrPort with a *net.UDPAddr.
func (c *Conn) WriteTo(b []byte, addr net.Addr) (int, error) {
	udp, ok := addr.(*net.UDPAddr)
	if !ok {
		return 0, fmt.Errorf("rawudp: %w: %T: want *net.UDPAddr", ErrDestination, addr)
	}
	return c.WriteToAddrPort(b, udp.AddrPort())
}

// LocalAddr returns the shared address and port as a *net.UDPAddr.
func (c *Conn) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(c.local) }

// Close closes the socket. The port stays with the process that has bound it.
func (c *Conn) Close() error { return c.ip.Close() }

// SetDeadline sets the read and the write deadline.
func (c *Conn) SetDeadline(t time.Time) error { return c.ip.SetDeadline(t) }

// SetReadDeadline sets the time after which reads fail with os.ErrDeadlineExceeded.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.ip.SetReadDeadline(t) }

// SetWriteDeadline sets the time after which writes fail with os.ErrDeadlineExceeded.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.ip.SetWriteDeadline(t) }
