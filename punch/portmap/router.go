package portmap

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
)

// outside is an address nobody has (RFC 5737): only a default route leads
// there.
var outside = net.IPv4(192, 0, 2, 1)

// Ports of the protocols on the router.
const (
	mapPort  = 5351 // RFC 6886 section 3, RFC 6887 section 7
	ssdpPort = 1900
)

// Asking over UDP.
const (
	// retransmit doubles from one transmission to the next, RFC 6886 section
	// 3.1. With three of them a router that speaks neither protocol costs
	// 1.75 s; on a LAN more would not help.
	retransmit    = 250 * time.Millisecond
	transmissions = 3
	// maxIgnored bounds how much nonsense is read before the router is given
	// up.
	maxIgnored = 64
	// maxReply is the longest packet of PCP, RFC 6887 section 7.
	maxReply = 1100
)

// router is the default gateway as seen from here.
type router struct {
	addr   netip.Addr
	source netip.Addr // this host's address on the router's network
	mark   uint32
	// Ports the router is asked on; they differ in tests alone.
	mapPort, ssdpPort uint16
}

// findRouter asks the routing table.
func findRouter(o Options) (router, error) {
	ask := &netlink.RouteGetOptions{Mark: o.Mark}
	if a := o.Inside.Addr(); a.IsValid() && !a.IsUnspecified() {
		ask.SrcAddr = a.Unmap().AsSlice()
	}
	routes, err := netlink.RouteGetWithOptions(outside, ask)
	if err != nil {
		return router{}, fmt.Errorf("%w: no default route: %w", ErrNoRouter, err)
	}
	for _, route := range routes {
		addr, ok1 := netip.AddrFromSlice(route.Gw)
		source, ok2 := netip.AddrFromSlice(route.Src)
		if ok1 && ok2 && addr.Unmap().Is4() {
			return router{addr.Unmap(), source.Unmap(), o.Mark, mapPort, ssdpPort}, nil
		}
	}
	return router{}, fmt.Errorf("%w: the default route has no IPv4 gateway", ErrNoRouter)
}

// control marks a socket.
func (r router) control(_, _ string, c syscall.RawConn) error {
	if r.mark == 0 {
		return nil
	}
	var err error
	if e := c.Control(func(fd uintptr) {
		err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_MARK, int(r.mark))
	}); e != nil {
		return e
	}
	if err != nil {
		return fmt.Errorf("socket mark %#x: %w", r.mark, err)
	}
	return nil
}

// exchange sends a request to the router's mapping port, again and again, until
// accept takes a reply or refuses it; what accept finds to be nonsense is
// ignored. The connected socket hears the router alone.
func (r router) exchange(ctx context.Context, request []byte, accept func(reply []byte) error) error {
	d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(r.source, 0)), Control: r.control}
	to := netip.AddrPortFrom(r.addr, r.mapPort)
	c, err := d.DialContext(ctx, "udp4", to.String())
	if err != nil {
		return err
	}
	defer c.Close()
	unwatch := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer unwatch()

	ignored, wait := 0, retransmit
	for range transmissions {
		if _, err := c.Write(request); err != nil {
			return silence(ctx, to, ignored, err)
		}
		if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
			return err
		}
		if ctx.Err() != nil { // before the deadline was set anew
			return ctx.Err()
		}
		wait *= 2
		switch err := read(c, accept, &ignored); {
		case err == nil:
			return nil
		case !errors.Is(err, errUnanswered):
			return silence(ctx, to, ignored, err)
		}
	}
	return silence(ctx, to, ignored, errUnanswered)
}

// errUnanswered: the time for one transmission is over.
var errUnanswered = errors.New("unanswered")

// read reads until accept has decided or time is up.
func read(c net.Conn, accept func([]byte) error, ignored *int) error {
	buf := make([]byte, maxReply+1)
	for {
		n, err := c.Read(buf)
		if isTimeout(err) {
			return errUnanswered
		}
		if err != nil {
			return err
		}
		if err := accept(buf[:n]); !errors.Is(err, errNonsense) {
			return err
		}
		if *ignored++; *ignored >= maxIgnored {
			return errNonsense
		}
	}
}

// silence turns the errors of a socket into words; others pass.
func silence(ctx context.Context, to netip.AddrPort, ignored int, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: UDP port %s is closed", ErrRefused, to)
	case !errors.Is(err, errNonsense) && !errors.Is(err, errUnanswered):
		return err
	case ignored == 0:
		return fmt.Errorf("%w from %s", ErrSilent, to)
	}
	return fmt.Errorf("%w from %s, but %d packets of nonsense", ErrSilent, to, ignored)
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}
