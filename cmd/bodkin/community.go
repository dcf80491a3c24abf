package main

import (
	"cmp"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bodkin-net/bodkin/rendezvous"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

func newCommunity() *cobra.Command {
	var server rendezvousFlags
	cmd := &cobra.Command{
		Use:   "community",
		Short: "Say who may talk to whom",
		Args:  args(cobra.NoArgs),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	server.register(cmd)
	cmd.AddCommand(newCommunityApply(&server), newCommunityGet(&server), newCommunityDelete(&server))
	return cmd
}

func newCommunityApply(server *rendezvousFlags) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:     "apply -f FILE",
		Short:   "Apply FabEdge Community objects from a YAML file (- for standard input)",
		Example: "  bodkin community apply -f all-edges.yaml",
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return usageError{fmt.Errorf("community apply: -f FILE is missing")}
			}
			b, err := readInput(cmd.InOrStdin(), file)
			if err != nil {
				return usageError{err}
			}
			var applied struct {
				Applied []string `json:"applied"`
			}
			c, err := server.client()
			if err != nil {
				return err
			}
			if err := c.do(cmd.Context(), http.MethodPut, "/api/v1/communities", url.Values{"file": {file}}, b, &applied); err != nil {
				return err
			}
			for _, name := range applied.Applied {
				fmt.Fprintf(cmd.OutOrStdout(), "community %s applied\n", name)
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "YAML file, - for standard input")
	return cmd
}

func readInput(stdin io.Reader, file string) ([]byte, error) {
	if file == "-" {
		return io.ReadAll(stdin)
	}
	return os.ReadFile(file)
}

func newCommunityGet(server *rendezvousFlags) *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use:     "get [NAME]",
		Short:   "List the communities in force",
		Example: "  bodkin community get\n  bodkin community get all-edges -o yaml",
		Args:    args(cobra.MaximumNArgs(1)),

		ValidArgsFunction: completeArgs(1, server.communityNames),
		RunE: func(cmd *cobra.Command, names []string) error {
			c, err := server.client()
			if err != nil {
				return err
			}
			var list struct {
				Communities []rendezvous.CommunityView `json:"communities"`
			}
			if err := c.get(cmd.Context(), "/api/v1/communities", nil, &list); err != nil {
				return err
			}
			found := list.Communities
			if len(names) == 1 {
				found = slices.DeleteFunc(found, func(c rendezvous.CommunityView) bool { return c.Name != names[0] })
				if len(found) == 0 {
					return fmt.Errorf("community %s not found", names[0])
				}
			}
			return o.print(cmd, found, func(p *printer) { printCommunities(p, found) })
		},
	}
	o.register(cmd)
	return cmd
}

func printCommunities(p *printer, list []rendezvous.CommunityView) {
	t := p.table("NAME", "PUNCH", "+SOURCE", "MEMBERS")
	for _, c := range list {
		t.row(c.Name, cmp.Or(c.Punch, wire.PolicyAuto), c.Source, strings.Join(c.Members, " "))
	}
	t.end()
}

func newCommunityDelete(server *rendezvousFlags) *cobra.Command {
	return &cobra.Command{
		Use:     "delete NAME",
		Short:   "Delete a community; tunnels no other community asks for end",
		Example: "  bodkin community delete all-edges",
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, names []string) error {
			c, err := server.client()
			if err != nil {
				return err
			}
			if err := c.do(cmd.Context(), http.MethodDelete, "/api/v1/communities"+segment(names[0]), nil, nil, nil); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "community %s deleted\n", names[0])
			return nil
		},
	}
}
