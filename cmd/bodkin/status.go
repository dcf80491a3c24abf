package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/bodkin-net/bodkin/agent"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

func newStatus() *cobra.Command {
	var socket, output string
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Show this node's tunnels, as its agent sees them",
		Example: "  bodkin status\n  bodkin status -o json",
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			var s agent.Status
			if err := call(cmd.Context(), socket, "the agent", http.MethodGet, "/v1/status", nil, nil, &s); err != nil {
				return err
			}
			if output == "json" {
				return printJSON(cmd.OutOrStdout(), s)
			}
			return printStatus(cmd.OutOrStdout(), s, time.Now())
		},
	}
	cmd.Flags().StringVar(&socket, "socket", agent.DefaultConfig().Socket, "the agent's unix socket")
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return cmd
}

func checkOutput(o string) error {
	if o != "table" && o != "json" {
		return usageError{fmt.Errorf("--output %q: want table or json", o)}
	}
	return nil
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func printStatus(w io.Writer, s agent.Status, now time.Time) error {
	fmt.Fprintf(w, "node        %s (%s)\n", s.Node, s.Identity)
	fmt.Fprintf(w, "rendezvous  %s\n", connection(s.Rendezvous, now))
	fmt.Fprintf(w, "charon      %s\n", connection(s.Charon, now))
	if s.Certificate.Problem != "" {
		fmt.Fprintf(w, "certificate %s\n", s.Certificate.Problem)
	}
	if s.StateProblem != "" {
		fmt.Fprintf(w, "state       %s: tunnels work, but after a crash the agent would not know its own\n", s.StateProblem)
	}
	fmt.Fprintf(w, "observed    %s\n", observed(s))
	if s.Mapped6.IsValid() {
		fmt.Fprintf(w, "            %s\n", bracketed(s.Mapped6))
	}
	if more := natDetails(s.NAT); more != "" {
		fmt.Fprintf(w, "            %s\n", more)
	}
	if m := s.PortMapping; m != nil {
		fmt.Fprintf(w, "mapped      %s by %s\n", bracketed(m.Outside), m.Protocol)
	}
	if f := s.Forwarding; f != nil {
		fmt.Fprintf(w, "relay       %s\n", forwarding(*f))
	}
	fmt.Fprintln(w)
	if len(s.Tunnels) == 0 && !s.Listed {
		fmt.Fprintln(w, "no peers known: the rendezvous has not been reached since the agent started")
		return nil
	}
	if len(s.Tunnels) == 0 {
		fmt.Fprintln(w, "no peers: no community names this node")
		return nil
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "PEER\tSTATE\tPATH\tPEER ADDRESS\tTIME TO DIRECT\tSINCE\tREASON")
	for _, t := range s.Tunnels {
		took := "-"
		if t.TimeToDirectMs > 0 {
			took = fmt.Sprintf("%d ms", t.TimeToDirectMs)
		}
		path, at := dash(string(t.Path.Kind)), bracketed(t.Path.Remote)
		if t.Relay != "" {
			path, at = "relay", string(t.Relay)
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", t.Peer, t.State, path, at, took, ago(t.Since, now), dash(t.Reason))
	}
	return tw.Flush()
}

// forwarding is what a connector does for edges that have no direct tunnel.
func forwarding(f agent.ForwardingStatus) string {
	if f.Error != "" {
		return "none: " + f.Error
	}
	return fmt.Sprintf("for %d edges, %d packets dropped that no community permits", f.Edges, f.Dropped)
}

func connection(c agent.ConnectionStatus, now time.Time) string {
	s := c.Address
	switch {
	case c.Connected && !c.Since.IsZero():
		s += ", connected " + ago(c.Since, now)
	case c.Connected:
		s += ", connected"
	default:
		s += ", not connected"
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
	case !s.NAT.Present:
		return bracketed(s.Mapped) + ", no NAT"
	}
	return fmt.Sprintf("%s, NAT: %s mapping, %s filtering", bracketed(s.Mapped), known(s.NAT.Mapping), known(s.NAT.Filtering))
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

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// bracketed writes an address as strongSwan does: 10.22.46.30[4500].
func bracketed(a netip.AddrPort) string {
	if !a.IsValid() {
		return "-"
	}
	return fmt.Sprintf("%s[%d]", a.Addr(), a.Port())
}

func ago(t, now time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return now.Sub(t).Round(time.Second).String() + " ago"
}
