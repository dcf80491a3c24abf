package rawudp

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// PlainOptions says how to make an ordinary UDP socket.
type PlainOptions struct {
	Addr netip.Addr // a unicast address of this host; IPv6 link-local with its zone
	Port uint16     // 0 for an ephemeral port
	Mark uint32     // SO_MARK for sent packets; 0 sets none
	TTL  int        // time to live (hop limit) of sent packets, 1 to 255; 0 for the system's
}

func (o PlainOptions) validate() error {
	switch {
	case !o.Addr.IsValid() || o.Addr.IsUnspecified() || o.Addr.IsMulticast():
		return fmt.Errorf("%w: address %s: want a unicast address of this host", ErrOptions, o.Addr)
	case o.TTL < 0 || o.TTL > 255:
		return fmt.Errorf("%w: TTL %d: want 1 to 255, or 0 for the system's", ErrOptions, o.TTL)
	}
	return nil
}

// ListenPlain opens an ordinary UDP socket on a port that nobody else has. Its
// packets take the same ways as those of a Conn: it carries the mark and is
// exempt from the host's IPsec policies. Errors are as from Listen.
func ListenPlain(o PlainOptions) (*net.UDPConn, error) {
	o.Addr = o.Addr.Unmap()
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("rawudp: %w", err)
	}
	local := netip.AddrPortFrom(o.Addr, o.Port)
	pc, err := listenPacket("udp", local.String(), func(fd int) error { return configurePlain(fd, o) })
	if err != nil {
		return nil, listenError(err, local)
	}
	return pc.(*net.UDPConn), nil
}

func configurePlain(fd int, o PlainOptions) error {
	v6 := o.Addr.Is6()
	if o.TTL != 0 {
		level, option := unix.IPPROTO_IP, unix.IP_TTL
		if v6 {
			level, option = unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS
		}
		if err := unix.SetsockoptInt(fd, level, option, o.TTL); err != nil {
			return fmt.Errorf("set TTL %d: %w", o.TTL, err)
		}
	}
	return markAndBypass(fd, o.Mark, v6)
}

// listenPacket is net.ListenPacket with the socket configured before it is
// bound.
func listenPacket(network, addr string, configure func(fd int) error) (net.PacketConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error {
		var confErr error
		if err := rc.Control(func(fd uintptr) { confErr = configure(int(fd)) }); err != nil {
			return err
		}
		return confErr
	}}
	return lc.ListenPacket(context.Background(), network, addr)
}
