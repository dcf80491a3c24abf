package rendezvous

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"syscall"
)

// stunMaxRequest is more than any STUN request over UDP needs (RFC 8489 Section
// 6.1 keeps them within the path MTU). What is longer arrives cut off and is
// dropped as malformed.
const stunMaxRequest = 1500

// stunSocket is a UDP socket that answers from the address it was asked at,
// also when it listens on all addresses of a host with several.
type stunSocket struct {
	conn *net.UDPConn
}

// stunArrival says how a packet came.
type stunArrival struct {
	src, local netip.AddrPort // unmapped
	control    []byte         // for the way back: the local address as ancillary data, nil if bound to it
}

// openSTUNSocket opens a socket; 0.0.0.0 stands for all IPv4 addresses, [::]
// for all of both families (of IPv4 on a host without IPv6), port 0 for a port
// of the system's choice.
func openSTUNSocket(at netip.AddrPort) (*stunSocket, error) {
	at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	network, laddr := "udp", net.UDPAddrFromAddrPort(at)
	switch at.Addr() {
	case netip.IPv4Unspecified():
		network = "udp4"
	case netip.IPv6Unspecified():
		laddr.IP = nil
	}
	conn, err := net.ListenUDP(network, laddr)
	if err != nil {
		return nil, err
	}
	s := &stunSocket{conn: conn}
	if at.Addr().IsUnspecified() {
		if err := s.askLocalAddress(); err != nil {
			_ = conn.Close()
			return nil, fmt.Errorf("%s: %w", at, err)
		}
	}
	return s, nil
}

// askLocalAddress makes the kernel tell with each packet to which of the host's
// addresses it was sent.
func (s *stunSocket) askLocalAddress() error {
	level, option := syscall.IPPROTO_IPV6, syscall.IPV6_RECVPKTINFO
	if s.addr().Addr().Is4() {
		level, option = syscall.IPPROTO_IP, syscall.IP_PKTINFO
	}
	rc, err := s.conn.SyscallConn()
	if err != nil {
		return err
	}
	var optErr error
	if err := rc.Control(func(fd uintptr) { optErr = syscall.SetsockoptInt(int(fd), level, option, 1) }); err != nil {
		return err
	}
	if optErr != nil {
		return fmt.Errorf("ask for the local address of packets: %w", optErr)
	}
	return nil
}

func (s *stunSocket) addr() netip.AddrPort {
	at := s.conn.LocalAddr().(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}

// read reads a packet; the arrival's control aliases oob.
func (s *stunSocket) read(b, oob []byte) (int, stunArrival, error) {
	n, oobn, _, src, err := s.conn.ReadMsgUDPAddrPort(b, oob)
	if err != nil {
		return 0, stunArrival{}, err
	}
	a := stunArrival{src: netip.AddrPortFrom(src.Addr().Unmap(), src.Port()), local: s.addr()}
	if to, ok := localAddress(oob[:oobn]); ok {
		a.local = netip.AddrPortFrom(to, a.local.Port())
		a.control = oob[:oobn]
	}
	return n, a, nil
}

// write sends a response; control is that of the packet it answers.
func (s *stunSocket) write(b []byte, to netip.AddrPort, control []byte) error {
	_, _, err := s.conn.WriteMsgUDPAddrPort(b, control, to)
	return err
}

// localAddress finds the address a packet was sent to in its ancillary data
// (struct in_pktinfo, in6_pktinfo). It clears the interface index there, so
// that the data can go with the response: that is to be routed, not bound to
// the interface the request came by.
func localAddress(oob []byte) (netip.Addr, bool) {
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return netip.Addr{}, false
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == syscall.IPPROTO_IP && m.Header.Type == syscall.IP_PKTINFO &&
			len(m.Data) >= syscall.SizeofInet4Pktinfo: // ifindex, spec_dst, addr
			binary.NativeEndian.PutUint32(m.Data, 0)
			return netip.AddrFrom4([4]byte(m.Data[4:8])), true
		case m.Header.Level == syscall.IPPROTO_IPV6 && m.Header.Type == syscall.IPV6_PKTINFO &&
			len(m.Data) >= syscall.SizeofInet6Pktinfo: // addr, ifindex
			binary.NativeEndian.PutUint32(m.Data[16:], 0)
			return netip.AddrFrom16([16]byte(m.Data[:16])).Unmap(), true
		}
	}
	return netip.Addr{}, false
}
