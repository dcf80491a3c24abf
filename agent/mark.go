package agent

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// markedDialer dials with charon's socket mark. With kernel-libipsec every
// address inside a peer's selectors is routed into its TUN device, and the
// rendezvous' own address can be one; the mark leads around it.
func markedDialer(mark uint32) *net.Dialer {
	// TCP's own keepalives, every 15 s, would double what an idle link costs;
	// the websocket's pings do their work.
	d := &net.Dialer{Timeout: dialTimeout, KeepAlive: -1}
	if mark != 0 {
		d.Control = func(_, _ string, c syscall.RawConn) error {
			var err error
			if e := c.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark))
			}); e != nil {
				return e
			}
			return err
		}
	}
	return d
}
