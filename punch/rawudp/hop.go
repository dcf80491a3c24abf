package rawudp

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrNoHop means that nobody told what became of a packet: routers need not
// report one that expired, and a destination need not answer.
var ErrNoHop = errors.New("no hop answered")

// Hop sends one UDP packet, a STUN Binding request, that may pass ttl-1
// routers, and returns who reported it expired. That is `to` itself when the
// packet arrived: it answered, or reported the port unreachable. The error is
// ErrNoHop when ctx ended first or a router reported the destination
// unreachable, else as from ListenPlain or the system's. o.TTL is not used.
func Hop(ctx context.Context, o PlainOptions, to netip.AddrPort, ttl int) (from netip.Addr, err error) {
	if ttl < 1 || ttl > 255 {
		return netip.Addr{}, fmt.Errorf("rawudp: %w: TTL %d: want 1 to 255", ErrOptions, ttl)
	}
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	o.TTL = ttl
	conn, err := ListenPlain(o)
	if err != nil {
		return netip.Addr{}, err
	}
	defer conn.Close()
	if err := reportErrors(conn, to.Addr().Is6()); err != nil {
		return netip.Addr{}, fmt.Errorf("rawudp: hop towards %s: %w", to, err)
	}
	if _, err := conn.WriteToUDPAddrPort(bindingRequest(), to); err != nil {
		return netip.Addr{}, fmt.Errorf("rawudp: hop towards %s: %w", to, err)
	}
	// A deadline in the past ends the read when ctx ends, whatever ended it.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	from, err = awaitHop(conn, to)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = ErrNoHop
	}
	if err != nil {
		return netip.Addr{}, fmt.Errorf("rawudp: hop %d towards %s: %w", ttl, to, err)
	}
	return from, nil
}

// bindingRequest is a STUN Binding request without attributes (RFC 8489
// Section 5): what a STUN server answers.
func bindingRequest() []byte {
	b := make([]byte, 20)
	b[1] = 1 // Binding request; the length stays 0
	binary.BigEndian.PutUint32(b[magicCookieOffset:], magicCookie)
	_, _ = rand.Read(b[8:]) // never fails
	return b
}

// reportErrors makes the kernel queue ICMP errors for the socket.
func reportErrors(conn *net.UDPConn, v6 bool) error {
	level, option := unix.IPPROTO_IP, unix.IP_RECVERR
	if v6 {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_RECVERR
	}
	rc, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var optErr error
	err = rc.Control(func(fd uintptr) { optErr = unix.SetsockoptInt(int(fd), level, option, 1) })
	return errors.Join(err, optErr)
}

// awaitHop reads until an ICMP error or an answer of to's tells who the packet
// has got to.
func awaitHop(conn *net.UDPConn, to netip.AddrPort) (from netip.Addr, err error) {
	rc, err := conn.SyscallConn()
	if err != nil {
		return netip.Addr{}, err
	}
	var told error
	err = rc.Read(func(fd uintptr) (done bool) {
		from, told = readHop(int(fd), to)
		return !errors.Is(told, unix.EAGAIN)
	})
	return from, errors.Join(err, told)
}

// readHop looks at everything the socket has queued. Its error is EAGAIN when
// nothing tells.
func readHop(fd int, to netip.AddrPort) (netip.Addr, error) {
	var b [maxPacket]byte
	var oob [256]byte
	for {
		_, n, _, _, err := unix.Recvmsg(fd, b[:], oob[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		if err != nil {
			break // the queue of errors is empty
		}
		if report, ok := parseReport(oob[:n]); ok {
			if from, err := report.judge(to.Addr()); !errors.Is(err, errUnrelated) {
				return from, err
			}
		}
	}
	for {
		_, from, err := unix.Recvfrom(fd, b[:], unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return netip.Addr{}, err
		case err != nil: // what the queue of errors told already
		case sockaddr(from) == to:
			return to.Addr(), nil
		}
	}
}

func sockaddr(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// report is an ICMP error (RFC 792, RFC 4443) about a packet of the socket's.
type report struct {
	from   netip.Addr
	v6     bool
	kind   uint8
	detail uint8
}

const (
	icmpUnreachable    = 3
	icmpTimeExceeded   = 11
	icmpv6Unreachable  = 1
	icmpv6TimeExceeded = 3
)

var errUnrelated = errors.New("tells nothing of the hops")

// judge tells how far the packet to the given address has got.
func (r report) judge(to netip.Addr) (netip.Addr, error) {
	unreachable, exceeded := uint8(icmpUnreachable), uint8(icmpTimeExceeded)
	if r.v6 {
		unreachable, exceeded = icmpv6Unreachable, icmpv6TimeExceeded
	}
	switch {
	case r.kind == exceeded, r.kind == unreachable && r.from == to.WithZone(""):
		return r.from, nil
	case r.kind == unreachable:
		return netip.Addr{}, fmt.Errorf("%w: %s reports the destination unreachable (code %d)", ErrNoHop, r.from, r.detail)
	}
	return netip.Addr{}, errUnrelated
}

// parseReport reads the control message that comes with a queued error: struct
// sock_extended_err (linux/errqueue.h) and the address of who sent it.
func parseReport(oob []byte) (report, bool) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return report{}, false
	}
	for _, m := range messages {
		v4 := m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_RECVERR
		v6 := m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_RECVERR
		const header = int(unsafe.Sizeof(unix.SockExtendedErr{}))
		if !v4 && !v6 || len(m.Data) < header+unix.SizeofSockaddrInet4 {
			continue
		}
		origin, kind, code, sender := m.Data[4], m.Data[5], m.Data[6], m.Data[header:]
		switch {
		case origin == unix.SO_EE_ORIGIN_ICMP:
			return report{from: netip.AddrFrom4([4]byte(sender[4:8])), kind: kind, detail: code}, true
		case origin == unix.SO_EE_ORIGIN_ICMP6 && len(sender) >= unix.SizeofSockaddrInet6:
			return report{from: netip.AddrFrom16([16]byte(sender[8:24])), v6: true, kind: kind, detail: code}, true
		}
	}
	return report{}, false
}
