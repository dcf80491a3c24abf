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

const (
	// tentativeTimeout bounds the wait for IPv6 addresses that are not usable
	// yet: a host makes sure of one within two seconds (RFC 4862 sections 5.1
	// and 5.4.2), and does not try again.
	tentativeTimeout = 3 * time.Second
	tentativeRetry   = 250 * time.Millisecond
)

var (
	errNoAddress = errors.New("no usable address on any interface")
	errTentative = errors.New("an address is not usable yet")
)

// openPort opens the shared port on every address a peer could reach, waiting
// for the first one.
func (d *Daemon) openPort(ctx context.Context) error {
	tentative := time.Now().Add(tentativeTimeout)
	for warned := false; ; {
		hosts, err := d.hostAddresses()
		if err != nil {
			return fmt.Errorf("network interfaces: %w", err)
		}
		err = d.listen(hosts, time.Now().Before(tentative))
		pause := addressRetry
		switch {
		case errors.Is(err, errTentative):
			pause = tentativeRetry
		case !errors.Is(err, errNoAddress):
			return err
		case !warned:
			warned = true
			d.log.Warn("no usable address on any interface yet: waiting for one")
		}
		select {
		case <-time.After(pause):
		case q := <-d.queries:
			q()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// listen opens the shared port on all of hosts that are there. With patient it
// leaves that (errTentative) while one of them may yet become usable: to add a
// base later is to open all anew.
func (d *Daemon) listen(hosts []netip.AddrPort, patient bool) error {
	var conns []net.PacketConn
	closeAll := func() {
		for _, c := range conns {
			c.Close()
		}
	}
	for _, h := range hosts {
		c, err := rawudp.Listen(rawudp.Options{Addr: h.Addr(), Port: h.Port(), Mark: d.cfg.Mark})
		if errors.Is(err, rawudp.ErrNotLocal) && patient && h.Addr().Is6() {
			closeAll()
			return errTentative
		}
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
		return err
	}
	return nil
}
