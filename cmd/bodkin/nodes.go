package main

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bodkin-net/bodkin/rendezvous"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

func newNodeList() *cobra.Command {
	var server rendezvousFlags
	cmd := listing(&server, "/api/v1/nodes", func(p *printer, list rendezvous.NodeList) { printNodes(p, list.Nodes) }, &cobra.Command{
		Use:     "nodes",
		Short:   "List the nodes that the rendezvous knows, with their NATs",
		Example: "  bodkin nodes\n  bodkin nodes -o wide --server https://connector:7480 --token-file viewer.token",
	})
	server.register(cmd)
	return cmd
}

// listing makes a command that prints what one GET of the rendezvous' API answers.
func listing[T any](server *rendezvousFlags, path string, show func(*printer, T), cmd *cobra.Command) *cobra.Command {
	var o output
	cmd.Args = args(cobra.NoArgs)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := server.client()
		if err != nil {
			return err
		}
		var list T
		if err := c.get(cmd.Context(), path, nil, &list); err != nil {
			return err
		}
		return o.print(cmd, list, func(p *printer) { show(p, list) })
	}
	o.register(cmd)
	return cmd
}

func printNodes(p *printer, nodes []rendezvous.NodeHistory) {
	if len(nodes) == 0 {
		p.printf("no nodes: none has connected to this rendezvous yet\n")
		return
	}
	t := p.table("NODE", "STATE", "SINCE", "OBSERVED", "NAT", "+SUBNETS", "+AGENT", "+PUNCH", "+IDLE/DAY", "NOTE")
	online := 0
	for _, n := range nodes {
		state, since := cell{"offline", bad}, n.LastSeen
		if n.Online {
			state, since = cell{"online", good}, n.Since
			online++
		}
		idle := ""
		if n.Usage != nil {
			idle = kilobytes(idleBytes(n.Usage))
		}
		t.row(n.Name, state, p.ago(since), bracketed(n.Observed), natShort(n.NAT, n.Observed), prefixList(n.Endpoint.Subnets),
			n.AgentVersion, cmp.Or(n.Punch, wire.PolicyAuto), idle, nodeNote(n))
	}
	t.end()
	p.printf("\n%s, %d online\n", plural(len(nodes), "node"), online)
}

// idleBytes is all that a node costs in a day while nothing uses its tunnels.
func idleBytes(u *rendezvous.UsageView) int64 {
	sum := u.Signalling + u.STUN
	for _, bytes := range u.Peers {
		sum += bytes
	}
	return sum
}

// kilobytes is rounded up: what costs something is not shown as nothing.
func kilobytes(bytes int64) string { return fmt.Sprintf("%d kB", (bytes+999)/1000) }

// nodeNote is what an operator should know of a node.
func nodeNote(n rendezvous.NodeHistory) string {
	switch {
	case n.Admission == store.Revoked:
		return "revoked: stays out until bodkin node delete"
	case n.Admission == store.Pending:
		return "waits for bodkin node approve"
	case n.Refusal != "":
		return "refused: " + n.Refusal
	case n.NAT.Blocked != "":
		return "UDP is blocked: " + n.NAT.Blocked
	case n.Endpoint.Type == wire.Connector:
		return "connector"
	case n.Metered:
		return "metered"
	}
	return ""
}

// natShort is the kind of a NAT in a word or two, as people call it.
func natShort(n wire.NAT, observed netip.AddrPort) string {
	switch {
	case n.Blocked != "":
		return "blocked"
	case !n.Present && observed.IsValid():
		return "none"
	case n.Mapping == "":
		return "unknown"
	case n.Mapping != wire.EndpointIndependent:
		return strings.TrimSpace("symmetric " + string(n.Allocation))
	case n.Filtering == wire.EndpointIndependent:
		return "full cone"
	case n.Filtering == wire.AddressDependent:
		return "address-restricted"
	case n.Filtering == wire.AddressAndPortDependent:
		return "port-restricted"
	}
	return "cone"
}

func prefixList(prefixes []netip.Prefix) string {
	words := make([]string, 0, len(prefixes))
	for _, p := range prefixes {
		words = append(words, p.String())
	}
	return strings.Join(words, " ")
}
