// Package unixsock opens the sockets on which both daemons take commands from
// this machine. Who may connect is the file's permission.
package unixsock

import (
	"errors"
	"fmt"
	"net"
	"os"
)

// mode lets root and the socket's group connect.
const mode = 0o660

// ErrServed says that another process serves the socket.
var ErrServed = errors.New("another process serves it: stop that first")

// Listen listens on path in place of a socket that a killed process left. A
// socket that is served (ErrServed), and a file that is none, are refused.
func Listen(path string) (net.Listener, error) {
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("%s: %w", path, ErrServed)
	}
	if info, err := os.Lstat(path); err == nil {
		if info.Mode()&os.ModeSocket == 0 {
			return nil, fmt.Errorf("%s is there and no socket: want another path", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, mode); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}
