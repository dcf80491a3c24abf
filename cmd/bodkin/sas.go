package main

import (
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/bodkin-net/bodkin/agent"
	"github.com/bodkin-net/bodkin/agent/charon"
)

func newSAs() *cobra.Command {
	var server rendezvousFlags
	var o output
	var node string
	cmd := &cobra.Command{
		Use:   "sas",
		Short: "List strongSwan's SAs, of this node or of any other",
		Long: "Sas lists the IKE SAs of this node's charon with their CHILD SAs, as `swanctl --list-sas` does. With\n" +
			"--node it asks the rendezvous, which asks the node, as `fabctl swanctl list-sa` does.",
		Example: "  bodkin sas\n  bodkin sas --node beijing.edge1\n" +
			"  bodkin sas -o json | jq '.[].children[] | {name, udp, in: .in.bytes, out: .out.bytes}'",
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			sas, err := listSAs(cmd, &server, node)
			if err != nil {
				return err
			}
			return o.print(cmd, sas, func(p *printer) { printSAs(p, node, sas) })
		},
	}
	server.register(cmd)
	socket := cmd.PersistentFlags().Lookup("socket")
	socket.DefValue, socket.Usage = "", "unix socket of the agent, or with --node of the rendezvous"
	o.register(cmd)
	cmd.Flags().StringVar(&node, "node", "", "another node, through the rendezvous")
	completeFlagWith(cmd, "node", server.nodeNames)
	return cmd
}

func listSAs(cmd *cobra.Command, server *rendezvousFlags, node string) (sas []agent.SA, err error) {
	path := "/v1/sas"
	daemon := agentFlags{socket: agent.DefaultConfig().Socket}
	if server.socketGiven() {
		daemon.socket = server.socket
	}
	c := daemon.client()
	if node != "" {
		path = "/api/v1/nodes" + segment(node) + "/sas"
		if c, err = server.client(); err != nil {
			return nil, err
		}
	}
	sas = []agent.SA{}
	return sas, c.get(cmd.Context(), path, nil, &sas)
}

func printSAs(p *printer, node string, sas []agent.SA) {
	if node != "" {
		const rule = "=========================="
		p.printf("%s %s %s\n", rule, node, rule)
	}
	if len(sas) == 0 {
		p.printf("no SAs\n")
		return
	}
	list := make([]charon.SA, 0, len(sas))
	for _, sa := range sas {
		list = append(list, sa.Charon())
	}
	var text strings.Builder
	if charon.Format(&text, list) == nil { // a Builder takes everything
		p.printf("%s", printable(text.String()))
	}
}

// printable is text without what terminals take for commands: it is another
// node's own.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
}
