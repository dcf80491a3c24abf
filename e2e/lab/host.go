package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
)

// Names of the interfaces inside the namespaces.
const (
	wanInterface = "wan"  // to the internet or, of a router behind a router, to the carrier's LAN
	lanInterface = "lan"  // a router's bridge
	hostLAN      = "eth0" // of a host on a router's LAN
)

// Host is one machine: a network namespace, joined to the internet or to a
// router's LAN. Its methods may be called from any goroutine.
type Host struct {
	lab    *Lab
	name   string
	dir    string // logs and charon's files
	ns     *namespace
	router *Router     // nil on the internet
	port   string      // the router's end of this host's cable; empty on the internet
	link   *attachment // nil on a LAN
	addr6  netip.Addr  // zero without IPv6

	mu     sync.Mutex // guards the fields below
	addr   netip.Addr
	charon *Process // nil when none was started, or it was ended here
}

// HostOptions say where a host stands.
type HostOptions struct {
	// Router puts the host on this router's LAN, on the next free address.
	Router *Router
	// Addr is the public address of a host without a router, of either family;
	// the zero Addr picks one of 203.0.113.0/24.
	Addr netip.Addr
	// Addr6 makes a host without a router dual-stack.
	Addr6 netip.Addr
	// IPv6Only leaves a host on a LAN that has IPv6 without IPv4.
	IPv6Only bool
}

// Host adds a host.
func (l *Lab) Host(name string, opts HostOptions) (*Host, error) {
	h, err := l.newHost(name)
	if err != nil {
		return nil, err
	}
	switch {
	case opts.Router == nil && opts.IPv6Only:
		err = errors.New("IPv6 only, without a router: give it an IPv6 address (Addr)")
	case opts.Router == nil:
		err = h.joinInternet(opts.Addr, opts.Addr6)
	default:
		err = h.joinLAN(opts.Router, hostLAN, opts.IPv6Only)
	}
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", name, err)
	}
	l.log.Debug("host added", "host", name, "addr", h.addr)
	return h, nil
}

// newHost makes a host that is joined to nothing.
func (l *Lab) newHost(name string) (*Host, error) {
	h := &Host{lab: l, name: name, dir: filepath.Join(l.dir, name)}
	if err := l.reserve(h); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(h.dir, 0o755); err != nil {
		return nil, fmt.Errorf("host %s: %w", name, err)
	}
	ns, err := l.addNamespace(name)
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", name, err)
	}
	h.ns = ns
	// A reverse path filter inherited from the machine would drop what comes
	// out of a tunnel.
	err = errors.Join(ns.sysctl("net/ipv4/conf/all/rp_filter", "0"), ns.sysctl("net/ipv4/conf/default/rp_filter", "0"))
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", name, err)
	}
	return h, nil
}

// joinInternet gives the host a TUN device whose other end is the internet.
// addr6 is zero for none beside addr.
func (h *Host) joinInternet(addr, addr6 netip.Addr) error {
	if !addr.IsValid() {
		addr = h.lab.nextPublic()
	}
	var tun *os.File
	err := h.ns.do(func() (err error) {
		tun, err = openTUN(wanInterface)
		return err
	})
	if err != nil {
		return err
	}
	if h.link, err = h.lab.internet.attach(h.name, tun); err != nil {
		return err
	}
	if err := h.lab.internet.announce(hostPrefix(addr), h.link); err != nil {
		return err
	}
	h.addr = addr
	err = h.ns.ip(h.lab.ctx,
		"link set lo up",
		"link set "+wanInterface+" mtu "+fmt.Sprint(mtu)+" addrgenmode none up",
		fmt.Sprintf("addr add %s dev %s", hostPrefix(addr), wanInterface),
		defaultRoute(addr))
	if err != nil {
		return err
	}
	if !addr6.IsValid() {
		if addr.Is6() {
			h.addr6 = addr
		}
		return nil
	}
	h.addr6 = addr6
	return h.AddPublicAddr(addr6)
}

// defaultRoute leads everything of addr's family to the internet.
func defaultRoute(addr netip.Addr) string {
	if addr.Is6() {
		return "route replace ::/0 dev " + wanInterface
	}
	return "route replace default dev " + wanInterface
}

// joinLAN lays a cable from the host's interface name to r's bridge.
func (h *Host) joinLAN(r *Router, name string, only6 bool) error {
	if only6 && !r.lan6.IsValid() {
		return fmt.Errorf("IPv6 only, on the lan of router %s, which has none", r.name)
	}
	port, err := r.nextPort()
	if err != nil {
		return err
	}
	h.router, h.port, h.addr, h.addr6 = r, port.name, port.addr, port.addr6
	err = r.ns.ip(h.lab.ctx,
		fmt.Sprintf("link add %s type veth peer name %s netns %s", port.name, name, h.ns.name),
		fmt.Sprintf("link set %s master %s up", port.name, lanInterface))
	if err != nil {
		return err
	}
	lines := []string{"link set lo up", "link set " + name + " up"}
	if only6 {
		h.addr = port.addr6
	} else {
		lines = append(lines,
			fmt.Sprintf("addr add %s dev %s", netip.PrefixFrom(port.addr, r.lan.Bits()), name),
			fmt.Sprintf("route add default via %s", r.Gateway()))
	}
	if port.addr6.IsValid() {
		lines = append(lines,
			fmt.Sprintf("addr add %s dev %s nodad", netip.PrefixFrom(port.addr6, r.lan6.Bits()), name),
			fmt.Sprintf("route add ::/0 via %s", r.lan6.Addr().Next()))
	}
	return h.ns.ip(h.lab.ctx, lines...)
}

// Name is the host's name in the lab.
func (h *Host) Name() string { return h.name }

// Dir holds the host's logs and charon's files.
func (h *Host) Dir() string { return h.dir }

// Namespace is the name of the host's network namespace, for `ip netns exec`.
func (h *Host) Namespace() string { return h.ns.name }

// Addr is the host's own address: public, or on its router's LAN; its IPv4 one
// unless it has none.
func (h *Host) Addr() netip.Addr {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.addr
}

// Addr6 is the IPv6 address the host was made with, the zero Addr without IPv6.
func (h *Host) Addr6() netip.Addr { return h.addr6 }

// Outside is who puts the host's packets on the internet: itself, its router,
// or that one's carrier.
func (h *Host) Outside() *Host {
	for h.router != nil {
		h = h.router.Host
	}
	return h
}

// AddAddress gives the host one more address, on lo: the address of prefix
// alone, as a pod's inside a traffic selector. The rest of prefix is not made
// reachable.
func (h *Host) AddAddress(prefix netip.Prefix) error {
	return h.ns.ip(h.lab.ctx, fmt.Sprintf("addr add %s dev lo", hostPrefix(prefix.Addr())))
}

// EnableForwarding makes the host a router for IPv4, as a connector is that
// relays between tunnels. One made by Lab.Router is that already.
func (h *Host) EnableForwarding() error { return h.ns.sysctl("net/ipv4/ip_forward", "1") }

// AddPublicAddr gives a host on the internet one more public address, IPv4 or
// IPv6.
func (h *Host) AddPublicAddr(addr netip.Addr) error {
	if h.link == nil {
		return fmt.Errorf("add address %s to %s: %w", addr, h.name, ErrNoLink)
	}
	if err := h.lab.internet.announce(hostPrefix(addr), h.link); err != nil {
		return fmt.Errorf("add address to %s: %w", h.name, err)
	}
	return h.ns.ip(h.lab.ctx, fmt.Sprintf("addr add %s dev %s", hostPrefix(addr), wanInterface), defaultRoute(addr))
}

// SetPublicAddr replaces the host's public address, as a provider does.
// Whoever still sends to the old one is not heard.
func (h *Host) SetPublicAddr(addr netip.Addr) error {
	if h.link == nil {
		return fmt.Errorf("change address of %s: %w", h.name, ErrNoLink)
	}
	if err := h.AddPublicAddr(addr); err != nil {
		return err
	}
	h.mu.Lock()
	old := h.addr
	h.addr = addr
	h.mu.Unlock()
	h.lab.internet.withdraw(hostPrefix(old))
	// The new address first: an interface that loses its last one loses its
	// routes as well.
	return h.ns.ip(h.lab.ctx, fmt.Sprintf("addr del %s dev %s", hostPrefix(old), wanInterface))
}

// SetLink changes the quality of the host's link to the internet, for packets
// that enter it from now on.
func (h *Host) SetLink(link Link) error {
	if h.link == nil {
		return fmt.Errorf("set link of %s: %w", h.name, ErrNoLink)
	}
	h.link.link.Store(&link)
	return nil
}

// SetUp connects or disconnects the host: to the internet silently, as behind
// a broken line; from a LAN by pulling the cable, which the host can notice.
func (h *Host) SetUp(up bool) error {
	if h.link != nil {
		h.link.down.Store(!up)
		return nil
	}
	state := "down"
	if up {
		state = "up"
	}
	return h.router.ns.ip(h.lab.ctx, "link set "+h.port+" "+state)
}

// Traffic returns what has crossed the host's link to the internet.
func (h *Host) Traffic() (Traffic, error) {
	if h.link == nil {
		return Traffic{}, fmt.Errorf("traffic of %s: %w", h.name, ErrNoLink)
	}
	return h.link.traffic(), nil
}

// Exec runs f on an OS thread inside the host's network namespace. Sockets f
// opens stay in that namespace wherever they are used afterwards; goroutines f
// starts are not in it.
func (h *Host) Exec(f func() error) error { return h.ns.exec(f) }

// ListenUDP opens a UDP socket inside the host. Port 0 picks one.
func (h *Host) ListenUDP(addr netip.AddrPort) (conn *net.UDPConn, err error) {
	err = h.Exec(func() error {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
		return err
	})
	return conn, err
}

// Listen opens a listening socket inside the host, such as "tcp" on
// "203.0.113.1:443".
func (h *Host) Listen(ctx context.Context, network, addr string) (listener net.Listener, err error) {
	err = h.Exec(func() error {
		listener, err = new(net.ListenConfig).Listen(ctx, network, addr)
		return err
	})
	return listener, err
}

// Dial connects from inside the host; it has the signature of
// http.Transport.DialContext. The address must be numeric: looking names up
// would happen outside.
func (h *Host) Dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	if _, err := netip.ParseAddrPort(addr); err != nil {
		return nil, fmt.Errorf("dial from %s: want IP:PORT: %w", h.name, err)
	}
	err = h.Exec(func() error {
		conn, err = new(net.Dialer).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

func hostPrefix(addr netip.Addr) netip.Prefix { return netip.PrefixFrom(addr, addr.BitLen()) }
