package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bodkin-net/bodkin/agent/charon"
)

// charonTable is the routing table that charon puts its routes into, and asks
// before the main one.
const charonTable = 220

// spareOwn keeps an edge's traffic with itself out of a relay where charon does
// ESP itself: it knows no policy that leaves packets alone there, routes the whole
// range into its TUN device, and what comes in there finds no way back. A route of
// type throw sends the lookup on to the next table.
func spareOwn(children []charon.Child) ([]charon.Child, error) {
	var errs []error
	for _, c := range children {
		if c.Pass {
			errs = append(errs, throw(c.LocalTS, netlink.RouteReplace))
		}
	}
	rest := slices.DeleteFunc(children, func(c charon.Child) bool { return c.Pass })
	return rest, errors.Join(errs...)
}

// forgetOwn takes back what spareOwn has done. To have nothing is no error.
func forgetOwn(subnets []netip.Prefix) error {
	return throw(subnets, func(r *netlink.Route) error {
		if err := netlink.RouteDel(r); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
		return nil
	})
}

func throw(subnets []netip.Prefix, do func(*netlink.Route) error) error {
	var errs []error
	for _, p := range subnets {
		r := &netlink.Route{
			Dst: ipNet(p), Table: charonTable, Type: unix.RTN_THROW, Protocol: unix.RTPROT_STATIC,
		}
		if err := do(r); err != nil {
			errs = append(errs, fmt.Errorf("route throw %s table %d: %w", p, charonTable, err))
		}
	}
	return errors.Join(errs...)
}
