package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bodkin-net/bodkin/agent"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// watchInterval is between looks of `status --watch`: as often as the agent asks
// itself what is due, there is something to see.
const watchInterval = time.Second

func newStatus() *cobra.Command {
	var daemon agentFlags
	var o output
	var watch bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show this node's tunnels, and why those are not direct that are not",
		Long: "Status shows what this machine's agent knows: whether it is connected to the rendezvous and to\n" +
			"charon, what NAT it is behind, and each peer's tunnel. A peer is direct, relayed (through the\n" +
			"connector) or down; of the last two REASON says why.",
		Example: "  bodkin status\n  bodkin status -o wide\n  bodkin status --watch\n" +
			"  bodkin status -o json | jq -r '.tunnels[] | select(.state != \"direct\") | .peer + \": \" + .reason'",
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			show := func() error {
				var s agent.Status
				if err := daemon.client().get(cmd.Context(), "/v1/status", nil, &s); err != nil {
					return err
				}
				return o.print(cmd, s, func(p *printer) {
					if watch && p.colour {
						p.printf("%s", clearScreen)
					}
					printStatus(p, s)
				})
			}
			if !watch {
				return show()
			}
			return repeat(cmd.Context(), watchInterval, show)
		},
	}
	daemon.register(cmd)
	o.register(cmd)
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show it again every second until interrupted")
	return cmd
}

// clearScreen moves to the top of a terminal and clears it.
const clearScreen = "\x1b[H\x1b[2J"

// repeat does something until ctx is done, which is no error, or it fails.
func repeat(ctx context.Context, every time.Duration, do func() error) error {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		if err := do(); err != nil && ctx.Err() == nil {
			return err
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// stateStyles are of the states of pairs and tunnels.
var stateStyles = map[string]style{"direct": good, "relayed": warn, "down": bad}

func stateCell(state string) cell { return cell{state, stateStyles[state]} }

func printStatus(p *printer, s agent.Status) {
	p.printf("node        %s (%s)\n", s.Node, s.Identity)
	p.printf("rendezvous  %s\n", p.connection(s.Rendezvous))
	p.printf("charon      %s\n", p.connection(s.Charon))
	if s.Certificate.Problem != "" {
		p.printf("certificate %s\n", p.styled(s.Certificate.Problem, bad))
	}
	if s.StateProblem != "" {
		p.printf("state       %s: tunnels work, but after a crash the agent would not know its own\n", p.styled(s.StateProblem, bad))
	}
	p.printf("observed    %s\n", observed(s))
	if s.Mapped6.IsValid() {
		p.printf("            %s\n", bracketed(s.Mapped6))
	}
	if more := natDetails(s.NAT); more != "" {
		p.printf("            %s\n", more)
	}
	if m := s.PortMapping; m != nil {
		p.printf("mapped      %s by %s\n", bracketed(m.Outside), m.Protocol)
	}
	if f := s.Forwarding; f != nil {
		p.printf("relay       %s\n", forwarding(*f))
	}
	p.printf("\n")
	switch {
	case len(s.Tunnels) > 0:
		printTunnels(p, s.Tunnels)
	case s.Listed && s.Forwarding != nil:
		p.printf("no peers yet: no edge of its cluster has joined\n")
	case s.Listed:
		p.printf("no peers: no community names this node\n")
	default:
		p.printf("no peers known: the rendezvous has not been reached since the agent started\n")
	}
}

func printTunnels(p *printer, tunnels []agent.TunnelStatus) {
	t := p.table("PEER", "STATE", "PATH", "PEER ADDRESS", "+LOCAL ADDRESS", "TIME TO DIRECT", "SINCE",
		"+MONITORED", "+IDLE/DAY", "+COMMUNITIES", "REASON")
	count := map[string]int{}
	for _, ts := range tunnels {
		count[ts.State]++
		took, idle := "", ""
		if ts.TimeToDirectMs > 0 {
			took = fmt.Sprintf("%d ms", ts.TimeToDirectMs)
		}
		if ts.IdleBytesPerDay > 0 {
			idle = kilobytes(ts.IdleBytesPerDay)
		}
		path, at := string(ts.Path.Kind), bracketed(ts.Path.Remote)
		if ts.Relay != "" {
			path, at = "relay", string(ts.Relay)
		}
		t.row(ts.Peer, stateCell(ts.State), path, at, bracketed(ts.Path.Local), took, p.ago(ts.Since),
			yesNo(ts.Monitored), idle, strings.Join(ts.Communities, " "), ts.Reason)
	}
	t.end()
	p.printf("\n%s: %d direct, %d relayed, %d down\n", plural(len(tunnels), "peer"), count["direct"], count["relayed"], count["down"])
}

func plural(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// forwarding is what a connector does for edges that have no direct tunnel.
func forwarding(f agent.ForwardingStatus) string {
	if f.Error != "" {
		return "none: " + f.Error
	}
	return fmt.Sprintf("for %d edges, %d packets dropped that no community permits", f.Edges, f.Dropped)
}

func (p *printer) connection(c agent.ConnectionStatus) string {
	s := c.Address
	switch {
	case c.Connected && !c.Since.IsZero():
		s += ", " + p.styled("connected", good) + " " + p.ago(c.Since)
	case c.Connected:
		s += ", " + p.styled("connected", good)
	default:
		s += ", " + p.styled("not connected", bad)
	}
	if c.Error != "" {
		s += ": " + c.Error
	}
	return s
}

func observed(s agent.Status) string {
	switch {
	case s.NAT.Blocked != "":
		return "nowhere: " + s.NAT.Blocked
	case !s.Mapped.IsValid():
		return "not yet"
	case !s.NAT.Present && s.NAT.Mapping == "" && !ownAddress(s):
		return bracketed(s.Mapped) + ", behind a NAT: being measured"
	case !s.NAT.Present:
		return bracketed(s.Mapped) + ", no NAT"
	}
	return fmt.Sprintf("%s, NAT: %s mapping, %s filtering", bracketed(s.Mapped), known(s.NAT.Mapping), known(s.NAT.Filtering))
}

// ownAddress reports whether the rendezvous sees an address that this node has.
func ownAddress(s agent.Status) bool {
	return slices.ContainsFunc(s.Local, func(a netip.AddrPort) bool { return a.Addr() == s.Mapped.Addr() })
}

// natDetails are what else is known of the NAT.
func natDetails(n wire.NAT) string {
	var parts []string
	say := func(known bool, format string, args ...any) {
		if known {
			parts = append(parts, fmt.Sprintf(format, args...))
		}
	}
	say(n.Allocation != "" && n.Step == 0, "%s ports", n.Allocation)
	say(n.Step != 0, "%s ports in steps of %d", n.Allocation, n.Step)
	say(n.Poisoned == wire.Yes, "remembers early packets (poisoned)")
	say(n.Hairpin == wire.Yes, "hairpins")
	say(n.Hairpin == wire.No, "does not hairpin")
	say(n.Hops > 0, "left with TTL %d", n.Hops)
	say(n.LifetimeSeconds > 0, "mappings live %d s or longer", n.LifetimeSeconds)
	return strings.Join(parts, ", ")
}

func known(b wire.Behaviour) string {
	if b == "" {
		return "unknown"
	}
	return string(b)
}

// bracketed writes an address as strongSwan does: 10.22.46.30[4500].
func bracketed(a netip.AddrPort) string {
	if !a.IsValid() {
		return "-"
	}
	return fmt.Sprintf("%s[%d]", a.Addr(), a.Port())
}
