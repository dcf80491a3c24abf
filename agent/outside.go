package agent

import (
	"net"
	"net/netip"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// defaultRoutes are addresses nobody has (RFC 5737, RFC 3849), so that only a
// default route leads to them, never one that charon made.
var defaultRoutes = [...]string{"192.0.2.1:9", "[2001:db8::1]:9"}

// outsideDialer dials the rendezvous outside of the tunnels, although its
// address can be inside their selectors, as one of the connector's node
// subnets: the link has to outlive the tunnel whose loss it reports.
//
// With kernel-libipsec every address inside a peer's selectors is routed into
// its TUN device, and charon's socket mark leads around it. With ESP in the
// kernel charon's routes prefer a source address inside our own subnets, which
// is what takes packets into the tunnel: there the socket is bound to the
// node's address.
func outsideDialer(mark uint32, subnets []netip.Prefix) *net.Dialer {
	// TCP's own keepalives, every 15 s, would double what an idle link costs;
	// the websocket's pings do their work.
	d := &net.Dialer{Timeout: dialTimeout, KeepAlive: -1}
	d.Control = func(_, to string, c syscall.RawConn) error {
		source, err := sourceOutside(mark, to, subnets)
		if err != nil {
			return err
		}
		return onDescriptor(c, func(fd int) error {
			if err := setMark(fd, mark); err != nil || !source.IsValid() {
				return err
			}
			return unix.Bind(fd, sockaddr(source))
		})
	}
	return d
}

// sourceOutside is the address to bind to for a connection to an address, the
// zero Addr where the route's own choice is a good one.
func sourceOutside(mark uint32, to string, subnets []netip.Prefix) (netip.Addr, error) {
	chosen, err := routeSource(mark, to)
	if err != nil || !slices.ContainsFunc(subnets, func(p netip.Prefix) bool { return p.Contains(chosen) }) {
		return netip.Addr{}, err
	}
	for _, route := range defaultRoutes {
		source, err := routeSource(mark, route)
		if err == nil && source.Is4() == chosen.Is4() {
			return source, nil
		}
	}
	return netip.Addr{}, nil
}

// routeSource is the source address that the routing table picks. Connecting a
// UDP socket asks it, and sends nothing.
func routeSource(mark uint32, to string) (netip.Addr, error) {
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		return onDescriptor(c, func(fd int) error { return setMark(fd, mark) })
	}}
	c, err := d.Dial("udp", to)
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
}

func setMark(fd int, mark uint32) error {
	if mark == 0 {
		return nil
	}
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark))
}

func sockaddr(a netip.Addr) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Addr: a.As16()}
}

func onDescriptor(c syscall.RawConn, f func(fd int) error) error {
	var err error
	if e := c.Control(func(fd uintptr) { err = f(int(fd)) }); e != nil {
		return e
	}
	return err
}
