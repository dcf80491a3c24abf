package doctor

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bodkin-net/bodkin/agent/doctor/ruleset"
)

// charonTable is the routing table that charon puts its routes into.
const charonTable = 220

// ownTables is how the names of Bodkin's nftables tables begin.
const ownTables = "bodkin"

// bigEndian machines keep words in the network's order.
var bigEndian = binary.NativeEndian.Uint16([]byte{0, 1}) == 1

func gatherKernel(_ context.Context, f *Facts) {
	k := &f.Kernel
	var errs [3]error
	k.Networks, errs[0] = networks()
	to := f.Target.addr()
	if !to.IsValid() || f.Target.Here {
		to = nowhere4
	}
	k.Plain, k.Marked = routeTo(to, 0), routeTo(to, f.Config.Config.Mark)
	k.Source = outside(k.Marked, f.Config)
	k.Defaults = defaults()
	k.Rules, errs[1] = tableRules()
	k.Policies, errs[2] = policies()
	k.Settings = settings()
	k.Err = errors.Join(errs[:]...)
}

func networks() (out []Network, err error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for _, link := range links {
		addrs, err := link.Addrs()
		if err != nil {
			continue // it has gone
		}
		for _, a := range addrs {
			n, is := a.(*net.IPNet)
			if !is || n.IP.IsLinkLocalUnicast() {
				continue
			}
			if p := prefixOf(n); p.IsValid() {
				out = append(out, Network{Interface: link.Name, Loopback: link.Flags&net.FlagLoopback != 0, Prefix: p})
			}
		}
	}
	return out, nil
}

// prefixOf keeps the address's host bits. It is invalid for nil.
func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, _ := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	a = a.Unmap()
	if a.Is4() && bits == 128 {
		ones -= 96
	}
	return netip.PrefixFrom(a, ones)
}

// routeTo asks the kernel for the way to an address, of packets with a mark.
func routeTo(to netip.Addr, mark uint32) (r Route) {
	routes, err := netlink.RouteGetWithOptions(net.IP(to.AsSlice()), &netlink.RouteGetOptions{Mark: mark})
	if err == nil && len(routes) == 0 {
		err = unix.ENETUNREACH
	}
	if err != nil {
		r.Err = fmt.Errorf("no route to %s: %w", to, err)
		return r
	}
	is := routes[0]
	r.Local = is.Type == unix.RTN_LOCAL
	if a, found := netip.AddrFromSlice(is.Src); found {
		r.Source = a.Unmap()
	}
	link, err := netlink.LinkByIndex(is.LinkIndex)
	if err != nil {
		r.Err = err
		return r
	}
	r.Interface = ruleset.Interface{Index: is.LinkIndex, Name: link.Attrs().Name}
	r.MTU = link.Attrs().MTU
	if is.MTU != 0 {
		r.MTU = is.MTU
	}
	tun, isTun := link.(*netlink.Tuntap)
	r.Tunnel = isTun && tun.Mode == netlink.TUNTAP_MODE_TUN && strings.HasPrefix(r.Interface.Name, libipsecDevice)
	return r
}

// outside is the source address of packets past the tunnels: charon's routes prefer
// one inside the node's own subnets.
func outside(r Route, c ConfigFacts) netip.Addr {
	if !slices.ContainsFunc(c.Subnets, func(p netip.Prefix) bool { return p.Contains(r.Source) }) {
		return r.Source
	}
	nowhere := nowhere4
	if r.Source.Is6() {
		nowhere = nowhere6
	}
	if d := routeTo(nowhere, c.Config.Mark); d.Source.IsValid() {
		return d.Source
	}
	return r.Source
}

// libipsecDevice is how the names of kernel-libipsec's TUN devices begin.
const libipsecDevice = "ipsec"

// defaults are the interfaces that default routes of the main table lead out of.
func defaults() (out []string) {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil
	}
	for _, r := range routes {
		if r.Dst != nil && !r.Dst.IP.IsUnspecified() {
			continue
		}
		if link, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
			out = append(out, link.Attrs().Name)
		}
	}
	return out
}

func tableRules() (out []TableRule, err error) {
	rules, err := netlink.RuleList(netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("routing rules: %w", err)
	}
	for _, r := range rules {
		if r.Table == charonTable {
			out = append(out, TableRule{Mark: r.Mark, Invert: r.Invert})
		}
	}
	return out, nil
}

// policies are the XFRM policies of addresses; those of sockets are charon's own
// exemptions.
func policies() (out []Policy, err error) {
	list, err := netlink.XfrmPolicyList(netlink.FAMILY_ALL)
	if errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("IPsec policies: %w", err)
	}
	if err != nil {
		return nil, nil //nolint:nilerr // a kernel without XFRM has no policies
	}
	for _, p := range list {
		if p.Dir != netlink.XFRM_DIR_OUT && p.Dir != netlink.XFRM_DIR_IN {
			continue
		}
		out = append(out, Policy{
			Src: prefixOf(p.Src), Dst: prefixOf(p.Dst), Out: p.Dir == netlink.XFRM_DIR_OUT, Priority: p.Priority,
			Block: p.Action == netlink.XFRM_POLICY_BLOCK, Transforms: len(p.Tmpls) > 0,
			Narrow: p.Proto != 0 || p.SrcPort != 0 || p.DstPort != 0 || p.Mark != nil || p.Ifid != 0,
		})
	}
	return out, nil
}

// wanted are the settings that are looked at.
var wanted = []string{
	"ipv4/ip_forward", "ipv6/conf/all/forwarding",
	"ipv4/conf/*/rp_filter", "ipv4/conf/*/forwarding", "ipv4/conf/*/src_valid_mark",
	"netfilter/nf_conntrack_count", "netfilter/nf_conntrack_max",
}

func settings() map[string]int {
	const root = "/proc/sys/net/"
	out := map[string]int{}
	for _, pattern := range wanted {
		paths, _ := filepath.Glob(root + pattern) // the patterns are good ones
		for _, path := range paths {
			b, err := os.ReadFile(path)
			if err != nil {
				continue
			}
			if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
				out[strings.TrimPrefix(path, root)] = n
			}
		}
	}
	return out
}

func gatherNetfilter(_ context.Context, f *Facts) {
	f.Netfilter.Rules, f.Netfilter.Err = ruleset.Read(ownTables)
	if b, err := os.ReadFile("/proc/self/net/ip_tables_names"); err == nil {
		f.Netfilter.Legacy = strings.Fields(string(b))
	}
}
