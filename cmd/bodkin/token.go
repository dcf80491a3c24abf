package main

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bodkin-net/bodkin/rendezvous"
	"github.com/bodkin-net/bodkin/rendezvous/enrol"
)

func newToken() *cobra.Command {
	var server rendezvousFlags
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Let nodes join: create, list and delete join tokens",
		Example: "  bodkin token create --name beijing.edge1 --subnets 10.233.66.0/24\n" +
			"  bodkin token list",
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	server.register(cmd)
	cmd.AddCommand(newTokenCreate(&server), newTokenList(&server), newTokenDelete(&server))
	return cmd
}

func newTokenCreate(server *rendezvousFlags) *cobra.Command {
	var spec rendezvous.NewToken
	var ttl time.Duration
	var o output
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Create a join token and print it, this once",
		Long: "A join token lets one node join, within 12 hours, unless it is told otherwise. It holds the hash\n" +
			"of the rendezvous' CA, so that the node knows whom it talks to. The same node may use it again,\n" +
			"as after a join that was cut short.",
		Example: "  bodkin token create --name beijing.edge1 --subnets 10.233.66.0/24\n" +
			"  bodkin token create --uses 50 --ttl 72h\n" +
			"  bodkin token create --name beijing.connector --connector --subnets 10.233.0.0/24\n" +
			"  bodkin token create -o json | jq -r .token",
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if ttl < time.Second || ttl%time.Second != 0 {
				return usageError{fmt.Errorf("--ttl %s: want whole seconds, at least one", ttl)}
			}
			if spec.Uses < 1 {
				return usageError{fmt.Errorf("--uses %d: want 1 or more", spec.Uses)}
			}
			spec.TTLSeconds = int64(ttl / time.Second)
			c, err := server.client()
			if err != nil {
				return err
			}
			var made rendezvous.CreatedToken
			if err := c.do(cmd.Context(), http.MethodPost, "/api/v1/tokens", nil, spec, &made); err != nil {
				return err
			}
			return o.print(cmd, made, func(p *printer) { printCreated(p, made) })
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&spec.Name, "name", "", "the only node that may use it, such as beijing.edge1 (any)")
	flags.StringSliceVar(&spec.Subnets, "subnets", nil, "what the node gets, such as 10.233.66.0/24 (what it asks for)")
	flags.DurationVar(&ttl, "ttl", enrol.DefaultTTL, "how long it is good")
	flags.IntVar(&spec.Uses, "uses", 1, "how many nodes may join with it")
	flags.BoolVar(&spec.Connector, "connector", false, "the node may be a Connector")
	flags.BoolVar(&spec.Replace, "replace", false, "the node may take the name of one that exists, whose certificates are revoked then")
	o.register(cmd)
	return cmd
}

func printCreated(p *printer, made rendezvous.CreatedToken) {
	url := orElse(made.URL, "https://HOST:7443")
	extra := ""
	if made.Name == "" {
		extra += " --name CLUSTER.NODE"
	}
	if len(made.Subnets) == 0 {
		extra += " --subnets CIDR"
	}
	if made.Connector {
		extra += " --type connector --public-address ADDRESS"
	}
	p.printf("%s\n\n", p.styled(made.Token, bold))
	p.printf("For %s, %s, until %s. On the node:\n", orElse(made.Name, "any name"), plural(made.MaxUses, "use"), made.Expires.Local().Format(time.DateTime))
	p.printf("  sudo bodkin join %s --token %s%s\n", url, made.Token, extra)
	if made.Warning != "" {
		p.printf("\n%s %s\n", p.styled("warning:", warn), made.Warning)
	}
}

func newTokenList(server *rendezvousFlags) *cobra.Command {
	return listing(server, "/api/v1/tokens", func(p *printer, list rendezvous.TokenList) { printTokens(p, list.Tokens) }, &cobra.Command{
		Use:     "list",
		Short:   "List the join tokens, without their secrets",
		Example: "  bodkin token list\n  bodkin token list -o json | jq -r '.tokens[].id'",
	})
}

func printTokens(p *printer, tokens []rendezvous.TokenView) {
	if len(tokens) == 0 {
		p.printf("no join tokens: bodkin token create\n")
		return
	}
	t := p.table("ID", "NAME", "STATE", "USED", "EXPIRES", "SUBNETS", "+PERMITS", "+BY", "+NODES")
	for _, token := range tokens {
		var permits, nodes []string
		if token.Connector {
			permits = append(permits, "connector")
		}
		if token.Replace {
			permits = append(permits, "replace")
		}
		for _, use := range token.Uses {
			nodes = append(nodes, use.Node)
		}
		t.row(token.ID, orElse(token.Name, "any"), tokenState(token, p.now), fmt.Sprintf("%d of %d", len(token.Uses), token.MaxUses),
			token.Expires.Local().Format(time.DateTime), strings.Join(token.Subnets, " "),
			strings.Join(permits, " "), token.By, strings.Join(nodes, " "))
	}
	t.end()
}

func tokenState(t rendezvous.TokenView, now time.Time) cell {
	switch {
	case !now.Before(t.Expires):
		return cell{"expired", faint}
	case len(t.Uses) >= t.MaxUses:
		return cell{"used", faint}
	}
	return cell{"good", good}
}

func newTokenDelete(server *rendezvousFlags) *cobra.Command {
	return &cobra.Command{
		Use:     "delete ID",
		Short:   "Delete a join token: nobody joins with it any more, nodes that have stay",
		Example: "  bodkin token delete 3f9a01c2b4d5e6f7",
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, ids []string) error {
			c, err := server.client()
			if err != nil {
				return err
			}
			if err := c.do(cmd.Context(), http.MethodDelete, "/api/v1/tokens"+segment(ids[0]), nil, nil, nil); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "token %s deleted\n", ids[0])
			return nil
		},
	}
}
