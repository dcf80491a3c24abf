package punch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
)

// ErrNoStep means that two mappings made one after the other are not as far
// apart as a NAT that counts would make them.
var ErrNoStep = errors.New("the NAT does not count")

// NextPortOptions say how NextPort asks.
type NextPortOptions struct {
	// Listen opens a UDP socket on a fresh port of one specific local address.
	Listen     func() (net.PacketConn, error)
	Server     netip.AddrPort
	Credential STUNCredential
	// Step is what discovery has found, 0 when nothing. A host beside this one
	// that takes a port in between does not change it.
	Step int
	Log  *slog.Logger
}

// NextPort finds out which outside port a NAT that counts will give to the next
// mapping, from two made just now, and the step to the one after it. Errors are
// ErrNoStep, those of Bind, and those of Listen.
func NextPort(ctx context.Context, o NextPortOptions) (next uint16, step int, err error) {
	p, err := freshPort(o)
	if err != nil {
		return 0, 0, fmt.Errorf("next port: %w", err)
	}
	defer p.Close()
	var mapped [2]netip.AddrPort
	for i, from := range p.Local() {
		res, err := p.Bind(ctx, from, o.Server, BindOptions{Credential: o.Credential})
		if err != nil {
			return 0, 0, fmt.Errorf("next port: %w", err)
		}
		mapped[i] = res.Mapped
	}
	return following(mapped[0], mapped[1], o.Step)
}

// freshPort is a port of two bases that no NAT has a mapping for.
func freshPort(o NextPortOptions) (*Port, error) {
	first, err := o.Listen()
	if err != nil {
		return nil, err
	}
	second, err := o.Listen()
	if err != nil {
		return nil, errors.Join(err, first.Close())
	}
	p, err := NewPort([]net.PacketConn{first, second}, o.Log)
	if err != nil {
		return nil, errors.Join(err, first.Close(), second.Close())
	}
	return p, nil
}

// following is the port after second's, where known is the step if it is known.
func following(first, second netip.AddrPort, known int) (next uint16, step int, err error) {
	step = int(second.Port()) - int(first.Port())
	if first.Addr() != second.Addr() || !counts(step) {
		return 0, 0, fmt.Errorf("next port: %w: mappings %s and %s", ErrNoStep, first, second)
	}
	if known != 0 && (known > 0) == (step > 0) {
		step = nearer(step, known)
	}
	port := int(second.Port()) + step
	if port < 1 || port > 0xFFFF {
		return 0, 0, fmt.Errorf("next port: %w beyond %s in steps of %d", ErrNoStep, second, step)
	}
	return uint16(port), step, nil
}
