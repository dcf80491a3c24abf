package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"time"

	"github.com/bodkin-net/bodkin/punch"
	"github.com/bodkin-net/bodkin/punch/rawudp"
)

const (
	// stunPort is where a rendezvous that has never been reached listens unless
	// it is configured otherwise (RFC 8489 section 18.6).
	stunPort = 3478
	// blockedTimeout is for two requests that got lost.
	blockedTimeout = 2 * time.Second
)

// errTCPBlocked: the rendezvous is there, and TCP does not get to it.
var errTCPBlocked = errors.New("a firewall on this network blocks it")

// explain is why TCP to the rendezvous failed. Where its STUN service answers
// over UDP, the rendezvous runs, and the way to it is what is closed.
func (l *link) explain(ctx context.Context, failed error) error {
	at := l.stun
	var op *net.OpError
	if !at.IsValid() && errors.As(failed, &op) {
		if tcp, ok := op.Addr.(*net.TCPAddr); ok {
			at = netip.AddrPortFrom(tcp.AddrPort().Addr().Unmap(), stunPort)
		}
	}
	if l.stunAnswers == nil || !at.IsValid() || ctx.Err() != nil || !l.stunAnswers(ctx, at) {
		return fmt.Errorf("%s: %w", l.id.url, failed)
	}
	port := ""
	if u, err := url.Parse(l.id.url); err == nil {
		port = " " + u.Port()
	}
	return fmt.Errorf("%s: UDP passes, TCP%s does not: %w (%w)", l.id.url, port, errTCPBlocked, failed)
}

// outsideSTUN asks a STUN service outside of the tunnels, from a port of its
// own, for whether it answers. It needs no credential.
func outsideSTUN(mark uint32, subnets []netip.Prefix) func(context.Context, netip.AddrPort) bool {
	return func(ctx context.Context, server netip.AddrPort) bool {
		ctx, cancel := context.WithTimeout(ctx, blockedTimeout)
		defer cancel()
		from, err := sourceOutside(mark, server.String(), subnets)
		if err == nil && !from.IsValid() {
			from, err = routeSource(mark, server.String())
		}
		if err != nil {
			return false
		}
		conn, err := rawudp.ListenPlain(rawudp.PlainOptions{Addr: from, Mark: mark})
		if err != nil {
			return false
		}
		port, err := punch.NewPort([]net.PacketConn{conn}, slog.New(slog.DiscardHandler))
		if err != nil {
			conn.Close()
			return false
		}
		defer port.Close()
		_, err = port.Bind(ctx, port.Local()[0], server, punch.BindOptions{})
		return err == nil
	}
}
