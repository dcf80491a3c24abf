// Package punch gets two nodes through the NATs between them: it finds out
// what those NATs do (RFC 4787, RFC 5780), gathers host candidates, runs ICE
// (RFC 8445) over a UDP port that somebody else may own, sends what some NATs
// need besides (openers, a search for ports), watches the path that was found
// (RFC 7675), and says in words why none was found.
//
// A Port owns the sockets. Everything that leaves or enters passes through it:
// STUN transactions of this package (Port.Bind), and one Session for each peer.
package punch

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Role is an ICE role, RFC 8445 section 6.1.1.
type Role string

// The two roles. Exactly one side of a pair is controlling: it nominates.
const (
	Controlling Role = "controlling"
	Controlled  Role = "controlled"
)

// Kind is a candidate's type, RFC 8445 section 5.1.1.
type Kind string

// Candidate types. PeerReflexive candidates are found by checks, never signalled.
const (
	Host            Kind = "host"
	ServerReflexive Kind = "srflx"
	PeerReflexive   Kind = "prflx"
	// PortMapped is a port of the peer's router that leads to it (PCP, NAT-PMP, UPnP).
	PortMapped Kind = "mapped"
	// Predicted is a port that a NAT which counts is expected to give next.
	Predicted Kind = "predicted"
)

// Candidate is a UDP transport address a peer may be reached at.
type Candidate struct {
	Kind Kind
	Addr netip.AddrPort
}

// Credentials are one side's ICE credentials, RFC 8445 section 5.3: the ufrag
// has at least 4 characters, the password at least 22.
type Credentials struct {
	Ufrag, Pwd string
}

const (
	minUfragLen = 4  // RFC 8445 section 5.3: 24 bits
	minPwdLen   = 22 // RFC 8445 section 5.3: 128 bits
)

// MaxRemotes bounds the signalled candidates of one session, so that an attempt
// cannot be turned into a port scan.
const MaxRemotes = 24

// Errors of candidates and credentials.
var (
	ErrRefused        = errors.New("candidate refused")
	ErrBadCredentials = errors.New("bad ICE credentials")
)

func (c Credentials) validate(whose string) error {
	if len(c.Ufrag) < minUfragLen {
		return fmt.Errorf("%w: %s ufrag has %d characters, need at least %d", ErrBadCredentials, whose, len(c.Ufrag), minUfragLen)
	}
	if len(c.Pwd) < minPwdLen {
		return fmt.Errorf("%w: %s password has %d characters, need at least %d", ErrBadCredentials, whose, len(c.Pwd), minPwdLen)
	}
	return nil
}

// Forbidden is a network whose addresses must not be checked.
type Forbidden struct {
	Prefix netip.Prefix
	// Reason follows "candidate refused", such as "the address leads into a tunnel".
	Reason string
}

// refuse says why a signalled candidate must not be checked, nil when it may
// be. own are the addresses this node sends from.
func refuse(c Candidate, own []netip.AddrPort, forbidden []Forbidden) error {
	reason := ""
	ip := c.Addr.Addr()
	switch {
	case !slices.Contains([]Kind{Host, ServerReflexive, PortMapped, Predicted}, c.Kind):
		reason = fmt.Sprintf("kind %q cannot be signalled, only %s, %s, %s and %s", c.Kind, Host, ServerReflexive, PortMapped, Predicted)
	case !ip.IsValid() || ip.IsUnspecified():
		reason = "the address is unspecified"
	case c.Addr.Port() == 0:
		reason = "the port is 0"
	case ip.IsLoopback():
		reason = "the address is loopback"
	case ip.IsMulticast() || ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		reason = "the address is multicast or broadcast"
	case ip.IsLinkLocalUnicast():
		reason = "the address is link-local: it means another host on every link"
	}
	for _, o := range own {
		if c.Addr == o {
			reason = "the address is this node's own"
		}
	}
	for _, f := range forbidden {
		if reason == "" && f.Prefix.Contains(ip) {
			reason = f.Reason
		}
	}
	if reason == "" {
		return nil
	}
	return fmt.Errorf("%w: %s %s: %s", ErrRefused, c.Kind, c.Addr, reason)
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
