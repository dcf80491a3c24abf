package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// MiniupnpdOptions say which protocols a router maps ports by.
type MiniupnpdOptions struct {
	// PCP turns on PCP and NAT-PMP, which miniupnpd has one switch for.
	PCP  bool
	UPnP bool
}

// miniupnpdTable is miniupnpd's own; a router's ruleset leaves it alone, but
// loading another one flushes it, so a router that reboots needs a new
// miniupnpd as well.
const miniupnpdTable = "miniupnpd"

// miniupnpdStart bounds its start; it takes a few milliseconds.
const miniupnpdStart = 10 * time.Second

// StartMiniupnpd lets hosts on the LAN map ports of the WAN address to
// themselves. The daemon runs until it is stopped or ctx ends; its mappings
// stay until the next start.
//
// It gives the router another public address, outside of the ranges for
// examples, for it would map no port of one of those. Behind a carrier's NAT it
// refuses every request, as miniupnpd does.
func (r *Router) StartMiniupnpd(ctx context.Context, opts MiniupnpdOptions) (*Process, error) {
	if r.NAT() == None {
		return nil, fmt.Errorf("miniupnpd on %s: it has no NAT to map ports of", r.name)
	}
	if wan, other := routable(r.WAN()); other {
		if err := r.SetPublicAddr(wan); err != nil {
			return nil, fmt.Errorf("miniupnpd on %s: %w", r.name, err)
		}
	}
	if _, err := r.ns.command(ctx, nil, miniupnpdRuleset, "nft", "-f", "-"); err != nil {
		return nil, fmt.Errorf("miniupnpd on %s: %w", r.name, err)
	}
	// It asks for multicast on the LAN, and answers by its routing table.
	if err := r.ns.ip(ctx, "route replace 239.0.0.0/8 dev "+lanInterface); err != nil {
		return nil, fmt.Errorf("miniupnpd on %s: %w", r.name, err)
	}
	conf := filepath.Join(r.dir, "miniupnpd.conf")
	if err := os.WriteFile(conf, []byte(miniupnpdConfig(opts)), 0o644); err != nil {
		return nil, err
	}
	pid := filepath.Join(r.dir, "miniupnpd.pid")
	p, err := r.Start(ctx, "miniupnpd", nil, "miniupnpd", "-d", "-f", conf, "-P", pid)
	if err != nil {
		return nil, err
	}
	return p, r.awaitMiniupnpd(ctx, p, opts)
}

// miniupnpdRuleset makes the chains miniupnpd writes to. What it maps passes
// the router's own firewall as translated ("ct status dnat").
const miniupnpdRuleset = `table inet ` + miniupnpdTable + `
flush table inet ` + miniupnpdTable + `
table inet ` + miniupnpdTable + ` {
  chain prerouting {
    type nat hook prerouting priority dstnat; policy accept;
    jump mapped
  }
  chain mapped { }
  chain postrouting {
    type nat hook postrouting priority srcnat; policy accept;
    jump peers
  }
  chain peers { }
  chain forward {
    type filter hook forward priority filter; policy accept;
    jump allowed
  }
  chain allowed { }
}
`

func miniupnpdConfig(opts MiniupnpdOptions) string {
	yes := func(b bool) string {
		if b {
			return "yes"
		}
		return "no"
	}
	lines := []string{
		"ext_ifname=" + wanInterface,
		"listening_ip=" + lanInterface,
		"ipv6_disable=yes",
		"enable_natpmp=" + yes(opts.PCP),
		"enable_upnp=" + yes(opts.UPnP),
		"secure_mode=yes",
		"system_uptime=no", // so that a new daemon's epoch starts anew
		"upnp_table_name=" + miniupnpdTable,
		"upnp_nat_table_name=" + miniupnpdTable,
		"upnp_forward_chain=allowed",
		"upnp_nat_chain=mapped",
		"upnp_nat_postrouting_chain=peers",
		"allow 1024-65535 0.0.0.0/0 1024-65535",
		"deny 0-65535 0.0.0.0/0 0-65535",
	}
	return strings.Join(lines, "\n") + "\n"
}

// awaitMiniupnpd waits until it answers: its sockets are open.
func (r *Router) awaitMiniupnpd(ctx context.Context, p *Process, opts MiniupnpdOptions) error {
	ctx, cancel := context.WithTimeout(ctx, miniupnpdStart)
	defer cancel()
	var ports []string
	if opts.PCP {
		ports = append(ports, ":5351 ")
	}
	if opts.UPnP {
		ports = append(ports, ":1900 ")
	}
	for {
		open, err := r.ns.command(ctx, nil, "", "ss", "-Hlun")
		if err == nil && containsAll(open, ports) {
			return nil
		}
		select {
		case <-p.Done():
			return fmt.Errorf("miniupnpd on %s ended: %s", r.name, p.Log())
		case <-ctx.Done():
			return fmt.Errorf("miniupnpd on %s does not open %s: %w: %s", r.name, ports, ctx.Err(), p.Log())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// routable leads from the ranges for examples (RFC 5737), which the lab's
// addresses are from, to others: miniupnpd maps no port of those, since nobody
// can be behind them. Nothing of the lab leaves the machine, and 25.0.0.0/22 is
// announced nowhere.
func routable(a netip.Addr) (netip.Addr, bool) {
	for i, p := range []string{"203.0.113.0/24", "198.51.100.0/24", "192.0.2.0/24"} {
		if netip.MustParsePrefix(p).Contains(a) {
			return netip.AddrFrom4([4]byte{25, 0, byte(i), a.As4()[3]}), true
		}
	}
	return a, false
}

func containsAll(text string, parts []string) bool {
	for _, part := range parts {
		if !strings.Contains(text, part) {
			return false
		}
	}
	return true
}

// PortMappings is the nftables text of the mappings that hosts have asked for,
// one a line; empty for none.
func (r *Router) PortMappings(ctx context.Context) (string, error) {
	out, err := r.ns.command(ctx, nil, "", "nft", "-s", "list", "chain", "inet", miniupnpdTable, "mapped")
	if err != nil {
		return "", err
	}
	var rules []string
	for line := range strings.Lines(out) {
		if strings.Contains(line, "dnat") {
			rules = append(rules, strings.TrimSpace(line))
		}
	}
	return strings.Join(rules, "\n"), nil
}
