package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/bodkin-net/bodkin/punch"
	"github.com/bodkin-net/bodkin/punch/rawudp"
)

var errNoAddress = errors.New("no usable address on any interface")

// openPort opens the shared port on every address a peer could reach, waiting
// for the first one.
func (d *Daemon) openPort(ctx context.Context) error {
	for warned := false; ; warned = true {
		ifaces, err := punch.Interfaces()
		if err != nil {
			return fmt.Errorf("network interfaces: %w", err)
		}
		hosts := punch.HostCandidates(ifaces, d.id.endpoint.Subnets, d.cfg.IKEPort)
		if err := d.listen(hosts); !errors.Is(err, errNoAddress) {
			return err
		}
		if !warned {
			d.log.Warn("no usable address on any interface yet: waiting for one")
		}
		select {
		case <-time.After(addressRetry):
		case q := <-d.queries:
			q <- d.status()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (d *Daemon) listen(hosts []netip.AddrPort) error {
	var conns []net.PacketConn
	closeAll := func() {
		for _, c := range conns {
			c.Close()
		}
	}
	for _, h := range hosts {
		c, err := rawudp.Listen(rawudp.Options{Addr: h.Addr(), Port: h.Port(), Mark: d.cfg.Mark})
		if errors.Is(err, rawudp.ErrNotLocal) {
			// Gone since it was listed, or IPv6 that is not sure yet to be
			// alone with it (RFC 4862 section 5.4).
			d.log.Warn("address not used", "addr", h.Addr(), "err", err)
			continue
		}
		if err != nil {
			closeAll()
			return fmt.Errorf("shared port %s: %w", h, err)
		}
		conns = append(conns, c)
	}
	if len(conns) == 0 {
		return errNoAddress
	}
	var err error
	if d.port, err = punch.NewPort(conns, d.log); err != nil {
		closeAll()
	}
	return err
}
