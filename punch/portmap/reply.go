package portmap

import (
	"fmt"
	"net/netip"
	"time"
)

// resultCode is PCP's, RFC 6887 section 7.4; NAT-PMP's few have the same
// numbers up to 2, RFC 6886 section 3.5.
type resultCode uint16

var resultNames = map[string][]string{
	"PCP": {"SUCCESS", "UNSUPP_VERSION", "NOT_AUTHORIZED", "MALFORMED_REQUEST", "UNSUPP_OPCODE", "UNSUPP_OPTION",
		"MALFORMED_OPTION", "NETWORK_FAILURE", "NO_RESOURCES", "UNSUPP_PROTOCOL", "USER_EX_QUOTA",
		"CANNOT_PROVIDE_EXTERNAL", "ADDRESS_MISMATCH", "EXCESSIVE_REMOTE_PEERS"},
	"NAT-PMP": {"success", "unsupported version", "not authorized", "network failure", "out of resources", "unsupported opcode"},
}

// err is nil for success.
func (c resultCode) err(protocol string) error {
	if c == 0 {
		return nil
	}
	name := "unknown"
	if names := resultNames[protocol]; int(c) < len(names) {
		name = names[c]
	}
	return fmt.Errorf("%w: the router's %s answers %d (%s)", ErrRefused, protocol, c, name)
}

// granted checks what a router says it has granted, before it is told to
// anybody.
func granted(protocol string, outside netip.AddrPort, lifetime time.Duration) (Mapping, error) {
	if err := usable(outside.Addr()); err != nil {
		return Mapping{}, err
	}
	if outside.Port() == 0 || lifetime <= 0 {
		return Mapping{}, fmt.Errorf("%w: the router grants port %d for %s", ErrRefused, outside.Port(), lifetime)
	}
	return Mapping{protocol, outside, min(lifetime, longestLifetime)}, nil
}

// usable refuses outside addresses that are none. A private one is used: the
// router may stand behind a carrier's NAT, and a peer may do so, too.
func usable(a netip.Addr) error {
	switch {
	case !a.Is4(), a.IsUnspecified(), a.IsLoopback(), a.IsMulticast(), a.IsLinkLocalUnicast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Errorf("%w: the router calls %s its outside address", ErrRefused, a)
	}
	return nil
}

// epoch is the router's clock, which starts anew when it has lost its
// mappings. The zero value has seen nothing.
type epoch struct {
	at      time.Time
	seconds uint32
}

// Tolerances of RFC 6887 section 8.5, where those of RFC 6886 section 3.6 are
// wider: two seconds and a sixteenth.
const (
	epochSlack = 2
	epochDrift = 16
)

// observe takes a reply's epoch, in seconds, and returns errLost when the
// router cannot have run without a break since the one before.
func (e *epoch) observe(now time.Time, seconds uint32) error {
	before := *e
	*e = epoch{now, seconds}
	if before.at.IsZero() {
		return nil
	}
	here, there := int64(now.Sub(before.at)/time.Second), int64(seconds)-int64(before.seconds)
	if there < -1 || here+epochSlack < there-there/epochDrift || there+epochSlack < here-here/epochDrift {
		return fmt.Errorf("%w: the router's clock went from %d s to %d s in %d s: it has started anew", errLost, before.seconds, seconds, here)
	}
	return nil
}
