package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// Router is a host that forwards between its LAN and its WAN, as its NATKind
// says. Programs, even a charon, can run on it as on any host.
type Router struct {
	*Host
	lan  netip.Prefix
	lan6 netip.Prefix // zero: no IPv6

	// The fields below are guarded by Host.mu.
	nat      natConfig
	lastPort int // ports of the LAN's bridge given out
}

// RouterOptions describe a router.
type RouterOptions struct {
	NAT NATKind
	// WAN is the public address; the zero Addr picks one of 203.0.113.0/24.
	// It must be zero behind a carrier, which assigns one.
	WAN netip.Addr
	// LAN is the prefix inside; the zero Prefix picks 192.168.N.0/24. Behind
	// a router of kind None it is reachable from the internet as it is.
	LAN netip.Prefix
	// LAN6 is a public IPv6 prefix for the LAN, not translated but behind a
	// firewall that lets in only what was asked for (none of kind None).
	// The zero Prefix leaves the LAN without IPv6.
	LAN6 netip.Prefix
	// WAN6 is an IPv6 address of the router's own beside WAN; the LAN's needs
	// none. It must be zero behind a carrier.
	WAN6 netip.Addr
	// Carrier puts the WAN on another router's LAN: two NATs in a row.
	Carrier *Router
	// UDPTimeout is how long an idle UDP mapping lives, to the second; zero
	// leaves Linux's 30 s, and 120 s for one used both ways.
	UDPTimeout time.Duration
	// Hairpin lets hosts on the LAN reach each other through the router's
	// public address (RFC 4787 section 6). Only kinds with EI mapping can.
	Hairpin bool
}

// Router adds a router with an empty LAN.
func (l *Lab) Router(name string, opts RouterOptions) (*Router, error) {
	h, err := l.newHost(name)
	if err != nil {
		return nil, err
	}
	r := &Router{Host: h, lan: opts.LAN.Masked(), lan6: opts.LAN6.Masked()}
	if !opts.LAN.IsValid() {
		r.lan = l.nextLAN()
	}
	if err := r.configure(opts); err != nil {
		return nil, fmt.Errorf("router %s: %w", name, err)
	}
	l.log.Debug("router added", "router", name, "nat", opts.NAT, "wan", r.addr, "lan", r.lan)
	return r, nil
}

func (r *Router) configure(opts RouterOptions) error {
	if err := checkNAT(opts); err != nil {
		return err
	}
	err := errors.Join(
		r.ns.sysctl("net/ipv4/ip_forward", "1"),
		// Redirects would lead hosts past the router that hairpins for them.
		r.ns.sysctl("net/ipv4/conf/all/send_redirects", "0"),
		r.ns.sysctl("net/ipv4/conf/default/send_redirects", "0"),
		// Who measures where a low TTL dies asks often.
		r.ns.sysctl("net/ipv4/icmp_ratelimit", "0"),
		r.ns.sysctl("net/ipv6/icmp/ratelimit", "0"),
		r.bypassBridgeFilter())
	if err != nil {
		return err
	}
	if opts.Carrier != nil {
		err = r.joinLAN(opts.Carrier, wanInterface, false)
	} else {
		err = r.joinInternet(opts.WAN, opts.WAN6)
	}
	if err != nil {
		return err
	}
	if err := r.openLAN(opts.NAT); err != nil {
		return err
	}
	r.mu.Lock()
	r.nat = natConfig{kind: opts.NAT, wan: r.addr, lan: r.lan, lan6: r.lan6, hairpin: opts.Hairpin, timeout: mappingTimeout(opts.UDPTimeout)}
	r.mu.Unlock()
	if err := r.applyNAT(); err != nil {
		return err
	}
	return r.setUDPTimeout(opts.UDPTimeout)
}

// openLAN makes the bridge and announces what the internet may reach on it.
func (r *Router) openLAN(kind NATKind) error {
	err := r.ns.ip(r.lab.ctx,
		"link add "+lanInterface+" type bridge",
		"link set "+lanInterface+" up",
		fmt.Sprintf("addr add %s dev %s", netip.PrefixFrom(r.Gateway(), r.lan.Bits()), lanInterface))
	if err != nil {
		return err
	}
	if kind == None && r.link != nil {
		if err := r.lab.internet.announce(r.lan, r.link); err != nil {
			return err
		}
	}
	if !r.lan6.IsValid() {
		return nil
	}
	if err := r.lab.internet.announce(r.lan6, r.link); err != nil {
		return err
	}
	if err := r.ns.sysctl("net/ipv6/conf/all/forwarding", "1"); err != nil {
		return err
	}
	gateway := r.lan6.Addr().Next()
	return r.ns.ip(r.lab.ctx,
		fmt.Sprintf("addr add %s dev %s nodad", netip.PrefixFrom(gateway, r.lan6.Bits()), lanInterface),
		defaultRoute(gateway))
}

// bypassBridgeFilter makes the LAN's bridge a plain switch. Where the kernel
// has br_netfilter, frames between two hosts of one LAN would pass the
// router's firewall, and be dropped.
func (r *Router) bypassBridgeFilter() error {
	err := r.ns.sysctl("net/bridge/bridge-nf-call-iptables", "0")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func checkNAT(opts RouterOptions) error {
	if !slices.Contains(NATKinds(), opts.NAT) {
		return fmt.Errorf("nat kind %d: want one of %v", int(opts.NAT), NATKinds())
	}
	behavior := opts.NAT.Behavior()
	switch {
	case opts.LAN6.IsValid() && opts.Carrier != nil:
		return fmt.Errorf("lan6 %s behind a carrier: only routers on the internet have IPv6", opts.LAN6)
	case opts.Hairpin && behavior.Mapping != EndpointIndependent:
		return fmt.Errorf("hairpin with NAT kind %s: its mapping is not endpoint-independent", opts.NAT)
	case opts.Hairpin && !opts.NAT.tracksMappings():
		return fmt.Errorf("hairpin with NAT kind %s: only %s and %s can", opts.NAT, FullCone, AddressRestricted)
	case opts.Carrier != nil && (opts.WAN.IsValid() || opts.WAN6.IsValid()):
		return fmt.Errorf("wan address behind a carrier: leave it to the carrier")
	}
	return nil
}

// setUDPTimeout sets both of conntrack's timeouts, as a router with short
// mappings does.
func (r *Router) setUDPTimeout(timeout time.Duration) error {
	if timeout <= 0 {
		return nil
	}
	seconds := strconv.Itoa(max(1, int(timeout.Seconds())))
	for _, key := range []string{"nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"} {
		if err := r.ns.sysctl("net/netfilter/"+key, seconds); err != nil {
			return err
		}
	}
	return nil
}

// applyNAT loads the ruleset in place of the old one, which also forgets what
// the old one's sets had learned.
func (r *Router) applyNAT() error {
	_, err := r.ns.command(r.lab.ctx, nil, r.Ruleset(), "nft", "-f", "-")
	return err
}

// Ruleset is the nftables text the router runs on.
func (r *Router) Ruleset() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.nat.ruleset()
}

// lanPort is one socket of the LAN's switch and the addresses that go with it.
type lanPort struct {
	name  string
	addr  netip.Addr
	addr6 netip.Addr // zero: no IPv6
}

// nextPort hands out the next port and the next free addresses.
func (r *Router) nextPort() (lanPort, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lastPort++
	port := lanPort{name: "port" + strconv.Itoa(r.lastPort), addr: r.Gateway()}
	if r.lan6.IsValid() {
		port.addr6 = r.lan6.Addr().Next()
	}
	for range r.lastPort {
		port.addr, port.addr6 = port.addr.Next(), port.addr6.Next()
	}
	if !r.lan.Contains(port.addr.Next()) { // the last is the broadcast address
		return lanPort{}, fmt.Errorf("lan %s of router %s is full", r.lan, r.name)
	}
	return port, nil
}

// LAN is the prefix inside.
func (r *Router) LAN() netip.Prefix { return r.lan }

// Gateway is the router's own address on its LAN, the first of it.
func (r *Router) Gateway() netip.Addr { return r.lan.Addr().Next() }

// WAN is the router's address outside; behind a carrier it is not public.
func (r *Router) WAN() netip.Addr { return r.Addr() }

// NAT is the router's kind.
func (r *Router) NAT() NATKind {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.nat.kind
}

// ForwardPort maps port of the router's WAN address to insidePort of host,
// statically, as its administrator would. protocol is "udp" or "tcp".
// Mappings the host makes by sending are not affected.
func (r *Router) ForwardPort(protocol string, port uint16, host *Host, insidePort uint16) error {
	if protocol != "udp" && protocol != "tcp" {
		return fmt.Errorf("forward port %d of %s: protocol %q: want udp or tcp", port, r.name, protocol)
	}
	if host.router != r {
		return fmt.Errorf("forward port %d of %s: host %s is not on its lan", port, r.name, host.name)
	}
	r.mu.Lock()
	r.nat.forwards = append(slices.Clip(r.nat.forwards), portForward{protocol, port, netip.AddrPortFrom(host.Addr(), insidePort)})
	r.mu.Unlock()
	return r.applyNAT()
}

// SetNAT turns the router into another kind, as one that is replaced.
func (r *Router) SetNAT(kind NATKind) error {
	if kind == None || r.NAT() == None {
		return fmt.Errorf("change nat of %s from %s to %s: a lan is either public or not", r.name, r.NAT(), kind)
	}
	r.mu.Lock()
	r.nat.kind = kind
	r.mu.Unlock()
	return r.Reboot()
}

// SetPublicAddr replaces the router's public address, as a provider does. All
// mappings are lost.
func (r *Router) SetPublicAddr(addr netip.Addr) error {
	if err := r.Host.SetPublicAddr(addr); err != nil {
		return err
	}
	r.mu.Lock()
	r.nat.wan = addr
	r.mu.Unlock()
	return r.Reboot()
}

// Reboot makes the router forget all mappings and connections.
func (r *Router) Reboot() error {
	if err := r.applyNAT(); err != nil {
		return err
	}
	return r.ForgetFlows()
}

// ForgetFlows flushes the router's conntrack and nothing else: what its NAT kind
// keeps in tables of its own stays.
func (r *Router) ForgetFlows() error {
	_, err := r.ns.command(r.lab.ctx, nil, "", "conntrack", "-F")
	return err
}
