package punch

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// MaxHosts bounds the host candidates of one node: every pair of candidates is
// checked, so each costs packets.
const MaxHosts = 8

// Interface is what HostCandidates needs to know of a network interface.
type Interface struct {
	Name     string
	Up       bool
	Loopback bool
	Addrs    []netip.Addr
}

// virtualInterfaces are name prefixes of interfaces that lead into this machine
// or into somebody's overlay: a peer cannot reach their addresses, or reaches
// them only through the very tunnel that is to be built.
var virtualInterfaces = []struct{ prefix, reason string }{
	{"cni", "CNI bridge"},
	{"flannel", "Flannel overlay"},
	{"cali", "Calico pod link"},
	{"cilium", "Cilium"},
	{"lxc", "container link"},
	{"weave", "Weave overlay"},
	{"antrea", "Antrea"},
	{"ovn", "OVN"},
	{"genev", "Geneve overlay"},
	{"vxlan", "VXLAN overlay"},
	{"veth", "container link"},
	{"docker", "Docker bridge"},
	{"podman", "Podman bridge"},
	{"virbr", "libvirt network"},
	{"vnet", "virtual machine link"},
	{"kube-", "Kubernetes service addresses"},
	{"nodelocaldns", "Kubernetes DNS cache"},
	{"edgemesh", "EdgeMesh"},
	{"dummy", "carries addresses, no traffic"},
	{"tun", "another VPN, or an IPIP tunnel (tunl0)"},
	{"tap", "another VPN or a virtual machine"},
	{"tailscale", "Tailscale"},
	{"wg", "WireGuard"},
	{"zt", "ZeroTier"},
	{"nebula", "Nebula"},
	{"ipsec", "IPsec, strongSwan's own kernel-libipsec among them"},
	{"ip_vti", "IPsec"},
	{"xfrm", "IPsec"},
	{"gre", "GRE tunnel"},
	{"sit", "IPv6 in IPv4 tunnel"},
	{"ip6tnl", "IPv6 tunnel"},
}

// HostCandidates picks the addresses a peer may reach this node at without
// help: those of physical interfaces that are up, outside exclude (the
// communities' subnets, which only exist inside tunnels). The order is that of
// ifaces; there are at most MaxHosts.
func HostCandidates(ifaces []Interface, exclude []netip.Prefix, port uint16) []netip.AddrPort {
	var out []netip.AddrPort
	for _, ifc := range ifaces {
		if !ifc.Up || ifc.Loopback || isVirtual(ifc.Name) {
			continue
		}
		for _, a := range ifc.Addrs {
			a = a.Unmap()
			if !a.IsGlobalUnicast() || slices.ContainsFunc(exclude, func(p netip.Prefix) bool { return p.Contains(a) }) {
				continue
			}
			c := netip.AddrPortFrom(a.WithZone(""), port)
			if len(out) < MaxHosts && !slices.Contains(out, c) {
				out = append(out, c)
			}
		}
	}
	return out
}

// dockerNetwork is br- and twelve hex digits; a router's own LAN can be br-lan.
var dockerNetwork = regexp.MustCompile(`^br-[0-9a-f]{12}$`)

func isVirtual(name string) bool {
	if dockerNetwork.MatchString(name) {
		return true
	}
	for _, v := range virtualInterfaces {
		if strings.HasPrefix(name, v.prefix) {
			return true
		}
	}
	return false
}

// Interfaces reads this machine's interfaces, in the kernel's order, without
// the IPv6 addresses that will not stay.
func Interfaces() ([]Interface, error) {
	list, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list network interfaces: %w", err)
	}
	table, err := os.ReadFile("/proc/net/if_inet6")
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // a kernel without IPv6 has none
		return nil, fmt.Errorf("list IPv6 addresses: %w", err)
	}
	passing := passingAddrs(string(table))
	var out []Interface
	for _, ifc := range list {
		addrs, err := ifc.Addrs()
		if err != nil {
			// It went away since it was listed.
			continue
		}
		i := Interface{Name: ifc.Name, Up: ifc.Flags&net.FlagUp != 0, Loopback: ifc.Flags&net.FlagLoopback != 0}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && !passing[p.Addr()] {
				i.Addrs = append(i.Addrs, p.Addr())
			}
		}
		out = append(out, i)
	}
	return out, nil
}

// Flags of an IPv6 address, linux/if_addr.h.
const (
	flagTemporary  = 0x01 // RFC 8981: replaced within a day
	flagDeprecated = 0x20 // RFC 4862 section 5.5.4: not for new communication
)

// passingAddrs reads from the lines of /proc/net/if_inet6 which addresses a
// tunnel must not be built on: they go while the host keeps another one of the
// same network. A line is address, interface, prefix length, scope and flags,
// all in hexadecimal, and the interface's name.
func passingAddrs(table string) map[netip.Addr]bool {
	passing := map[netip.Addr]bool{}
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) < 6 {
			continue
		}
		raw, err := hex.DecodeString(f[0])
		a, ok := netip.AddrFromSlice(raw)
		flags, err2 := strconv.ParseUint(f[4], 16, 32)
		if err == nil && ok && err2 == nil && flags&(flagTemporary|flagDeprecated) != 0 {
			passing[a] = true
		}
	}
	return passing
}
