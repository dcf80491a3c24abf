package main

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bodkin-net/bodkin/rendezvous"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

func newNodeCommand() *cobra.Command {
	var server rendezvousFlags
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Say who is a node: list, show, approve, set, revoke, delete",
		Example: "  bodkin node list\n" +
			"  bodkin node approve beijing.edge1\n" +
			"  bodkin node revoke beijing.edge1 --reason stolen",
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	server.register(cmd)
	cmd.AddCommand(newNodeAdmissions(&server), newNodeShow(&server), newNodeApprove(&server), newNodeSet(&server),
		newNodeRevoke(&server), newNodeDelete(&server))
	return cmd
}

// onNode does something to one node by the API.
func onNode(cmd *cobra.Command, server *rendezvousFlags, method, name, verb string, in, out any) error {
	c, err := server.client()
	if err != nil {
		return err
	}
	return c.do(cmd.Context(), method, "/api/v1/nodes"+segment(name)+verb, nil, in, out)
}

func newNodeAdmissions(server *rendezvousFlags) *cobra.Command {
	return listing(server, "/api/v1/nodes", func(p *printer, list rendezvous.NodeList) { printAdmissions(p, list.Nodes) }, &cobra.Command{
		Use:     "list",
		Short:   "List the nodes and whether they are let in",
		Example: "  bodkin node list\n  bodkin node list -o json | jq -r '.nodes[] | select(.admission == \"pending\") | .name'",
	})
}

func printAdmissions(p *printer, nodes []rendezvous.NodeHistory) {
	if len(nodes) == 0 {
		p.printf("no nodes: bodkin token create\n")
		return
	}
	t := p.table("NODE", "ADMISSION", "STATE", "SINCE", "TYPE", "SUBNETS", "+CERTIFICATE SHA-256")
	for _, n := range nodes {
		state, since := cell{"offline", bad}, p.ago(n.LastSeen)
		switch {
		case n.Online:
			state, since = cell{"online", good}, p.ago(n.Since)
		case n.LastSeen.IsZero():
			state, since = cell{"never online", faint}, ""
		}
		t.row(n.Name, admissionCell(n.Admission), state, since, string(n.Endpoint.Type), prefixList(n.Endpoint.Subnets), n.Fingerprint)
	}
	t.end()
}

// admissionCell is empty for a node of an existing CA that nobody has said
// anything of.
func admissionCell(s store.AdmissionState) cell {
	return cell{string(s), map[store.AdmissionState]style{store.Approved: good, store.Pending: warn, store.Revoked: bad}[s]}
}

func newNodeShow(server *rendezvousFlags) *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use:     "show NAME",
		Short:   "Show what is on record of a node: admission, certificates, addresses, pairs",
		Example: "  bodkin node show beijing.edge1",
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, names []string) error {
			var n rendezvous.NodeDetail
			if err := onNode(cmd, server, http.MethodGet, names[0], "", nil, &n); err != nil {
				return err
			}
			return o.print(cmd, n, func(p *printer) { printNode(p, n) })
		},
	}
	o.register(cmd)
	return cmd
}

func printNode(p *printer, n rendezvous.NodeDetail) {
	state := cell{"offline", bad}
	if n.Online {
		state = cell{"online", good}
	}
	t := p.list()
	t.row("Node", n.Name)
	t.row("State", state)
	if !n.LastSeen.IsZero() {
		t.row("Last seen", p.ago(n.LastSeen))
	}
	m := n.Admission
	t.row("Admission", admissionCell(m.State))
	if !m.Since.IsZero() {
		t.row("  since", m.Since.Local().Format(time.DateTime)+" by "+orElse(m.By, "nobody"))
	}
	if m.Reason != "" {
		t.row("  reason", m.Reason)
	}
	t.row("  subnets", orElse(strings.Join(m.Subnets, " "), "any"))
	t.row("  punch", orElse(string(m.Punch), "as the node says"))
	t.row("  note", m.Note)
	t.row("Type", string(n.Endpoint.Type))
	t.row("Subnets", prefixList(n.Endpoint.Subnets))
	t.row("Observed", bracketed(n.Observed))
	t.row("NAT", natShort(n.NAT, n.Observed))
	t.row("Agent", n.AgentVersion)
	t.row("Pairs", fmt.Sprintf("%d direct, %d relayed, %d down", n.Pairs.Direct, n.Pairs.Relayed, n.Pairs.Down))
	if n.Refusal != "" {
		t.row("Refused", n.Refusal)
	}
	t.end()
	if len(n.Certificates) == 0 {
		return
	}
	p.printf("\n")
	certs := p.table("CERTIFICATE", "STATE", "UNTIL")
	for _, c := range n.Certificates {
		certs.row(c.Serial, certificateState(c, p.now), c.NotAfter.Local().Format(time.DateTime))
	}
	certs.end()
}

func certificateState(c store.Certificate, now time.Time) cell {
	switch {
	case !c.Revoked.IsZero():
		return cell{"revoked", bad}
	case now.After(c.NotAfter):
		return cell{"expired", faint}
	}
	return cell{"good", good}
}

func newNodeApprove(server *rendezvousFlags) *cobra.Command {
	return &cobra.Command{
		Use:     "approve NAME",
		Short:   "Let a node in that waits for approval",
		Example: "  bodkin node approve beijing.edge1",
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, names []string) error {
			if err := onNode(cmd, server, http.MethodPost, names[0], "/approve", nil, nil); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "node %s approved: it comes online within seconds, if its agent runs\n", names[0])
			return nil
		},
	}
}

func newNodeSet(server *rendezvousFlags) *cobra.Command {
	var subnets []string
	var punch, note string
	var o output
	cmd := &cobra.Command{
		Use:   "set NAME",
		Short: "Change what holds for a node: its subnets, how far it punches, a note",
		Long: "What is not given stays as it is. The node's session begins anew with it; its tunnels stay, unless\n" +
			"it claims subnets that it may not have any more.",
		Example: "  bodkin node set beijing.edge1 --subnets 10.233.66.0/24,10.233.67.0/24\n" +
			"  bodkin node set beijing.edge1 --subnets \"\"   # whatever it claims, if nobody else has it\n" +
			"  bodkin node set beijing.edge1 --punch ice-only --note \"SIM card 8986…\"",
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, names []string) error {
			var s rendezvous.NodeSettings
			if cmd.Flags().Changed("subnets") {
				if s.Subnets = &subnets; subnets == nil {
					s.Subnets = &[]string{}
				}
			}
			if cmd.Flags().Changed("punch") {
				policy := wire.Policy(punch)
				s.Punch = &policy
			}
			if cmd.Flags().Changed("note") {
				s.Note = &note
			}
			if s == (rendezvous.NodeSettings{}) {
				return usageError{errors.New("node set: nothing to change: want --subnets, --punch or --note")}
			}
			var view rendezvous.AdmissionView
			if err := onNode(cmd, server, http.MethodPatch, names[0], "", s, &view); err != nil {
				return err
			}
			return o.print(cmd, view, func(p *printer) {
				p.printf("node %s: subnets %s, punch %s, note %q\n", names[0],
					orElse(strings.Join(view.Subnets, " "), "any"), orElse(string(view.Punch), "as the node says"), view.Note)
			})
		},
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&subnets, "subnets", nil, "the subnets it may claim, \"\" for any")
	flags.StringVar(&punch, "punch", "", "how far it punches at most: auto, ice-only or never; \"\" for as the node says")
	flags.StringVar(&note, "note", "", "a note for people")
	completeFlag(cmd, "punch", []string{"auto", "ice-only", "never"})
	o.register(cmd)
	return cmd
}

func newNodeRevoke(server *rendezvousFlags) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "revoke NAME",
		Short: "Keep a node out: its session and its tunnels end, its certificates are revoked",
		Long: "The node's session ends at once, its peers drop their tunnels with it, and its certificates are put\n" +
			"on the list that every node's strongSwan checks. There is no way back: `bodkin node delete`, and\n" +
			"have it join anew.",
		Example: "  bodkin node revoke beijing.edge1 --reason \"stolen from the shop\"",
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, names []string) error {
			var done rendezvous.RevokedNode
			if err := onNode(cmd, server, http.MethodPost, names[0], "/revoke", rendezvous.Revocation{Reason: reason}, &done); err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			fmt.Fprintf(w, "node %s revoked: its session has ended, its peers drop their tunnels with it\n", names[0])
			if done.Certificates == 0 {
				fmt.Fprintf(w, "No certificate of it was issued here: its own CA has to revoke that.\n")
				return nil
			}
			fmt.Fprintf(w, "%s of it on the list of the revoked\n", plural(done.Certificates, "certificate"))
			return nil
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the node's log and the audit log")
	return cmd
}

func newNodeDelete(server *rendezvousFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "delete NAME",
		Short: "Forget a node that is gone for good; its name and its subnets are free again",
		Long: "The node has to be offline or revoked. Its certificates are revoked; with another token it may join\n" +
			"anew.",
		Example: "  bodkin node delete beijing.edge1",
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, names []string) error {
			if err := onNode(cmd, server, http.MethodDelete, names[0], "", nil, nil); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "node %s deleted\n", names[0])
			return nil
		},
	}
}
