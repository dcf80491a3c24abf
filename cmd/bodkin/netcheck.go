package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/bodkin-net/bodkin/agent"
	"github.com/bodkin-net/bodkin/punch"
	"github.com/bodkin-net/bodkin/punch/portmap"
	"github.com/bodkin-net/bodkin/punch/rawudp"
)

const (
	// netcheckTimeout covers two servers that do not answer, 5 s each.
	netcheckTimeout = 15 * time.Second
	// portMapWait is for the answers of a router on the same network.
	portMapWait = 3 * time.Second
)

// rendezvousSTUN are the ports of a rendezvous' STUN service unless it is
// configured otherwise.
var rendezvousSTUN = []string{"3478", "3479"}

// netcheckFlags are the command line of netcheck.
type netcheckFlags struct {
	stun     []string
	config   string
	port     uint16
	mark     uint32
	timeout  time.Duration
	ip4, ip6 bool
}

func newNetcheck() *cobra.Command {
	var f netcheckFlags
	var o output
	cmd := &cobra.Command{
		Use:   "netcheck",
		Short: "Find out what the NATs before this node do",
		Long: "Find out what the NATs and firewalls before this node do, as seen from strongSwan's own\n" +
			"port, whether charon runs or not. The servers asked are the rendezvous', or any two STUN\n" +
			"servers; most is learnt from one with a second port to answer from (RFC 5780).\n" +
			"Needs CAP_NET_RAW and CAP_NET_ADMIN. Exits with 5 when UDP does not pass at all.",
		Example: "  bodkin netcheck\n  bodkin netcheck --stun stun1.example.org:3478 --stun stun2.example.org:3478 -o json",
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(); err != nil {
				return usageError{err}
			}
			if err := f.fillIn(cmd.Flags().Changed("mark")); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), f.timeout)
			defer cancel()
			r, err := f.run(ctx)
			if err != nil {
				return fmt.Errorf("netcheck: %w", err)
			}
			if err := o.print(cmd, r, func(p *printer) { printNetcheck(p, r) }); err != nil {
				return err
			}
			if !r.UDP {
				return errProblems
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&f.stun, "stun", nil, "STUN server HOST:PORT; give it twice (the rendezvous of --config by default)")
	flags.StringVar(&f.config, "config", "/etc/bodkin/agent.yaml", "the agent's configuration, for the rendezvous and the mark")
	flags.Uint16Var(&f.port, "port", agent.DefaultConfig().IKEPort, "UDP port to send from")
	flags.Uint32Var(&f.mark, "mark", 0, "socket mark, as charon's own (that of --config by default)")
	flags.DurationVar(&f.timeout, "timeout", netcheckTimeout, "when to give up")
	flags.BoolVarP(&f.ip4, "ipv4", "4", false, "IPv4 only")
	flags.BoolVarP(&f.ip6, "ipv6", "6", false, "IPv6 only")
	o.register(cmd)
	return cmd
}

func (f *netcheckFlags) check() error {
	switch {
	case len(f.stun) != 0 && len(f.stun) != 2:
		return fmt.Errorf("--stun: %d servers: want two, to compare what they see", len(f.stun))
	case f.ip4 && f.ip6:
		return errors.New("-4 and -6: want one of them, or neither")
	case f.port == 0:
		return errors.New("--port 0: want the port that strongSwan uses, such as 4500")
	case f.timeout <= 0:
		return fmt.Errorf("--timeout %s: want some time, such as %s", f.timeout, netcheckTimeout)
	}
	for _, s := range f.stun {
		if _, _, err := net.SplitHostPort(s); err != nil {
			return fmt.Errorf("--stun %q: want HOST:PORT", s)
		}
	}
	return nil
}

// fillIn takes from the agent's configuration what the command line leaves open.
func (f *netcheckFlags) fillIn(markGiven bool) error {
	if len(f.stun) != 0 {
		return nil
	}
	cfg, err := agent.LoadConfig(f.config)
	if err != nil {
		return fmt.Errorf("%w (without a configuration, name two STUN servers: --stun HOST:PORT --stun HOST:PORT)", err)
	}
	u, err := url.Parse(cfg.Rendezvous)
	if err != nil {
		return usageError{err}
	}
	for _, port := range rendezvousSTUN {
		f.stun = append(f.stun, net.JoinHostPort(u.Hostname(), port))
	}
	if !markGiven {
		f.mark = cfg.Mark
	}
	return nil
}

func (f *netcheckFlags) network() string {
	switch {
	case f.ip4:
		return "ip4"
	case f.ip6:
		return "ip6"
	}
	return "ip"
}

// run measures.
func (f *netcheckFlags) run(ctx context.Context) (*netcheckReport, error) {
	servers, err := f.resolve(ctx)
	if err != nil {
		return nil, err
	}
	addr, err := f.source(ctx, servers[0])
	if err != nil {
		return nil, err
	}
	protocols := make(chan []string, 1)
	go func() { protocols <- f.portMapping(ctx, addr) }()

	o := punch.DiscoverOptions{From: netip.AddrPortFrom(addr, f.port), Servers: [4]netip.AddrPort{servers[0], servers[1]}}
	plain := rawudp.PlainOptions{Addr: addr, Mark: f.mark}
	o.Fresh = func() (net.PacketConn, error) { return rawudp.ListenPlain(plain) }
	o.Hop = func(ctx context.Context, ttl int) (netip.Addr, error) { return rawudp.Hop(ctx, plain, servers[0], ttl) }
	found, err := f.discover(ctx, o)
	mapped := <-protocols
	if err != nil {
		return nil, err
	}
	r := &netcheckReport{Local: o.From, Servers: servers[:], Mapped: found.Mapped, nat: found.NAT}
	r.finish(mapped)
	return r, nil
}

// discover opens the shared port and asks from there.
func (f *netcheckFlags) discover(ctx context.Context, o punch.DiscoverOptions) (punch.Network, error) {
	release, err := hold(o.From)
	if err != nil {
		return punch.Network{}, err
	}
	defer release()
	conn, err := rawudp.Listen(rawudp.Options{Addr: o.From.Addr(), Port: o.From.Port(), Mark: f.mark})
	if err != nil {
		return punch.Network{}, err
	}
	p, err := punch.NewPort([]net.PacketConn{conn}, slog.New(slog.DiscardHandler))
	if err != nil {
		return punch.Network{}, errors.Join(err, conn.Close())
	}
	defer p.Close()
	return punch.Discover(ctx, p, o)
}

// hold binds a port that nobody has bound: this host would answer packets to it
// with an ICMP error, which a firewall may take for the flow's end.
func hold(at netip.AddrPort) (release func(), err error) {
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if errors.Is(err, syscall.EADDRINUSE) {
		return func() {}, nil // charon runs
	}
	if err != nil {
		return nil, err
	}
	return func() { conn.Close() }, nil
}

// portMapping lists the protocols in which the router gives ports away.
func (f *netcheckFlags) portMapping(ctx context.Context, addr netip.Addr) []string {
	if !addr.Is4() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, portMapWait)
	defer cancel()
	// An error means that there is no router to ask, or not enough time.
	names, _ := portmap.Probe(ctx, portmap.Options{Inside: netip.AddrPortFrom(addr, f.port), Mark: f.mark})
	return names
}

// resolve finds the servers' addresses, of one family: IPv4, which is what NATs
// translate, unless the first has none.
func (f *netcheckFlags) resolve(ctx context.Context) (out [2]netip.AddrPort, err error) {
	network := f.network()
	for i, s := range f.stun {
		host, service, err := net.SplitHostPort(s)
		if err != nil {
			return out, err
		}
		port, err := net.DefaultResolver.LookupPort(ctx, "udp", service)
		if err != nil {
			return out, fmt.Errorf("STUN server %s: %w", s, err)
		}
		addrs, err := net.DefaultResolver.LookupNetIP(ctx, network, host)
		if err != nil {
			return out, fmt.Errorf("STUN server %s: %w", s, err)
		}
		addr := preferred(addrs)
		if network = "ip4"; addr.Is6() {
			network = "ip6" // the second must be of the same family
		}
		out[i] = netip.AddrPortFrom(addr, uint16(port))
	}
	if out[0] == out[1] {
		return out, fmt.Errorf("STUN servers %s and %s are the same: want two, or two ports of one", f.stun[0], f.stun[1])
	}
	return out, nil
}

func preferred(addrs []netip.Addr) netip.Addr {
	for _, a := range addrs {
		if a.Unmap().Is4() {
			return a.Unmap()
		}
	}
	return addrs[0]
}

// source is the address that packets to a server leave from. Connecting a UDP
// socket asks the routing table, and sends nothing.
func (f *netcheckFlags) source(ctx context.Context, server netip.AddrPort) (netip.Addr, error) {
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) {
			if f.mark != 0 {
				failed = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_MARK, int(f.mark))
			}
		})
		return errors.Join(err, failed)
	}}
	c, err := d.DialContext(ctx, "udp", server.String())
	if err != nil {
		return netip.Addr{}, fmt.Errorf("no way to %s: %w", server, err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
}
