package agent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// pinPriority comes before every policy of charon's (100,000 and up, and higher
// is later), and is what a pin is known by, also to the next agent.
const pinPriority = 0xb0d

// A pin is an outbound policy of the kernel's that has what is sent to the peer's
// subnets take the relay, whatever other policies say. It is added and removed in
// one step each: no packet finds neither.

// pin makes this run's pins.
func (r *run) pin() error {
	policies, err := outPolicies()
	if err != nil {
		return err
	}
	pins, err := pinsFor(r.shared.id.endpoint.Subnets, r.peer.Endpoint.Subnets, r.shared.directMark, policies)
	if err != nil {
		return err
	}
	for _, p := range pins {
		if err := netlink.XfrmPolicyUpdate(&p); err != nil {
			r.unpin()
			return fmt.Errorf("pin %s to the relay: %w", p.Dst, err)
		}
		r.pins = append(r.pins, p)
	}
	return nil
}

// unpin removes this run's pins; it may have none.
func (r *run) unpin() {
	if err := removePins(r.pins); err != nil {
		r.log.Error("traffic to the peer stays in the relay", "err", err)
	}
	r.pins = nil
}

// sweepPins removes the pins that an agent which was killed has left behind.
func sweepPins() error {
	policies, err := outPolicies()
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil // a kernel without XFRM
	}
	var pins []netlink.XfrmPolicy
	for _, p := range policies {
		if p.Priority == pinPriority {
			pins = append(pins, p)
		}
	}
	return errors.Join(err, removePins(pins))
}

func removePins(pins []netlink.XfrmPolicy) error {
	var errs []error
	for _, p := range pins {
		if err := netlink.XfrmPolicyDel(&p); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("unpin %s from the relay: %w", p.Dst, err))
		}
	}
	return errors.Join(errs...)
}

// outPolicies are the kernel's policies of what is sent.
func outPolicies() ([]netlink.XfrmPolicy, error) {
	var out []netlink.XfrmPolicy
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		policies, err := netlink.XfrmPolicyList(family)
		if err != nil {
			return nil, fmt.Errorf("list XFRM policies: %w", err)
		}
		for _, p := range policies {
			if p.Dir == netlink.XFRM_DIR_OUT {
				out = append(out, p)
			}
		}
	}
	return out, nil
}

// pinsFor are the pins that hold in the relay what goes from own subnets to a
// peer's, given the policies there are.
//
// To the kernel, policies with the same selectors are one unless their marks
// differ. A pin's demands that a packet does not bear the mark of direct tunnels:
// none does that is sent, but the probes of a check, which have to leave the relay.
func pinsFor(own, peer []netip.Prefix, mark DirectMark, policies []netlink.XfrmPolicy) ([]netlink.XfrmPolicy, error) {
	var pins []netlink.XfrmPolicy
	for _, dst := range sameFamilies(peer, own) {
		for _, src := range sameFamilies(own, []netip.Prefix{dst}) {
			relay, ok := relayPolicy(src, dst, policies)
			if !ok {
				return nil, fmt.Errorf("the kernel has no policy of a relay from %s to %s", src, dst)
			}
			p := netlink.XfrmPolicy{
				Src: ipNet(src), Dst: ipNet(dst), Dir: netlink.XFRM_DIR_OUT, Priority: pinPriority,
				Mark: &netlink.XfrmMark{Value: 0, Mask: mark.Mask},
			}
			for _, t := range relay.Tmpls {
				t.Spi = 0 // reqid finds the SA, also after it was rekeyed
				p.Tmpls = append(p.Tmpls, t)
			}
			pins = append(pins, p)
		}
	}
	return pins, nil
}

// relayPolicy is what decides on packets from src to dst as long as there is no
// policy for dst itself.
func relayPolicy(src, dst netip.Prefix, policies []netlink.XfrmPolicy) (relay netlink.XfrmPolicy, ok bool) {
	for _, p := range policies {
		wide := contains(p.Src, src) && contains(p.Dst, dst) && prefixOf(p.Dst).Bits() < dst.Bits()
		if wide && len(p.Tmpls) > 0 && (!ok || p.Priority < relay.Priority) {
			relay, ok = p, true
		}
	}
	return relay, ok
}

func contains(n *net.IPNet, p netip.Prefix) bool {
	all := prefixOf(n)
	return all.Bits() <= p.Bits() && all.Contains(p.Addr())
}

func prefixOf(n *net.IPNet) netip.Prefix {
	ip, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(ip.Unmap(), bits)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
