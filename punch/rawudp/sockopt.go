package rawudp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// configure prepares a fresh raw socket before it is bound.
func configure(fd int, o Options) error {
	v6 := o.Addr.Is6()
	if err := attachFilter(fd, filter(o.Port, v6)); err != nil {
		return fmt.Errorf("attach the STUN filter: %w", err)
	}
	if v6 {
		// Where the UDP header has its checksum: the kernel then verifies it on
		// receipt, which parse cannot do without the addresses of the IP header.
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_CHECKSUM, 6); err != nil {
			return fmt.Errorf("set IPV6_CHECKSUM: %w", err)
		}
	}
	return markAndBypass(fd, o.Mark, v6)
}

// markAndBypass keeps what the socket sends out of the host's tunnels.
func markAndBypass(fd int, mark uint32, v6 bool) error {
	if mark != 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark)); err != nil {
			return fmt.Errorf("set SO_MARK %#x: %w", mark, err)
		}
	}
	return bypassIPsec(fd, v6)
}

func attachFilter(fd int, program []bpf.Instruction) error {
	raw, err := bpf.Assemble(program)
	if err != nil {
		return err
	}
	code := make([]unix.SockFilter, len(raw))
	for i, in := range raw {
		code[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]})
}

// bypassIPsec exempts the socket from the host's IPsec policies in both
// directions, as an IKE daemon does with its own socket. Without it a policy
// between the two node addresses swallows what is sent, with no error.
func bypassIPsec(fd int, v6 bool) error {
	if !xfrmAvailable() {
		return nil
	}
	level, option, family := unix.IPPROTO_IP, unix.IP_XFRM_POLICY, uint16(unix.AF_INET)
	if v6 {
		level, option, family = unix.IPPROTO_IPV6, unix.IPV6_XFRM_POLICY, unix.AF_INET6
	}
	for _, direction := range []uint8{xfrmPolicyIn, xfrmPolicyOut} {
		err := unix.SetsockoptString(fd, level, option, string(allowPolicy(family, direction)))
		if errors.Is(err, unix.ENOPROTOOPT) || errors.Is(err, unix.ENOENT) {
			return nil // a kernel without XFRM has no policies to bypass
		}
		if err != nil {
			return fmt.Errorf("bypass IPsec policies: %w", err)
		}
	}
	return nil
}

// xfrmAvailable tells whether the kernel has XFRM. Opening its netlink socket
// also loads the module that reads socket policies; until it is loaded the
// socket option fails with EINVAL.
func xfrmAvailable() bool {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_XFRM)
	if err != nil {
		return !errors.Is(err, unix.EPROTONOSUPPORT)
	}
	_ = unix.Close(fd)
	return true
}

// intControlMessage builds ancillary data for sendmsg(2) that carries one int.
func intControlMessage(level, kind int32, value int) []byte {
	const intSize = 4
	b := make([]byte, unix.CmsgSpace(intSize))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = level, kind
	h.SetLen(unix.CmsgLen(intSize))
	binary.NativeEndian.PutUint32(b[unix.CmsgLen(0):], uint32(value))
	return b
}

// Layout of struct xfrm_userpolicy_info (linux/xfrm.h), the same on every
// 64-bit architecture:
//
//	  0  xfrm_selector sel (family at 40; the rest zero: any traffic)
//	 56  xfrm_lifetime_cfg, xfrm_lifetime_cur (zero)
//	152  priority, index (u32, zero)
//	160  dir, action, flags, share (u8; action 0 is allow)
//	164  padding
const (
	xfrmPolicySize         = 168
	xfrmPolicyFamilyOffset = 40
	xfrmPolicyDirOffset    = 160

	xfrmPolicyIn  = 0
	xfrmPolicyOut = 1
)

// allowPolicy is a socket policy that lets everything of an address family
// pass without IPsec.
func allowPolicy(family uint16, direction uint8) []byte {
	p := make([]byte, xfrmPolicySize)
	binary.NativeEndian.PutUint16(p[xfrmPolicyFamilyOffset:], family)
	p[xfrmPolicyDirOffset] = direction
	return p
}
