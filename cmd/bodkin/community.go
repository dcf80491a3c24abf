package main

import (
	"cmp"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/bodkin-net/bodkin/rendezvous"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

func newCommunity() *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use:   "community",
		Short: "Say who may talk to whom (on the rendezvous' machine)",
		Args:  args(cobra.NoArgs),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.PersistentFlags().StringVar(&socket, "socket", rendezvous.DefaultConfig().AdminSocket, "the rendezvous' admin socket")
	cmd.AddCommand(newCommunityApply(&socket), newCommunityGet(&socket), newCommunityDelete(&socket))
	return cmd
}

func newCommunityApply(socket *string) *cobra.Command {
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
			err = call(cmd.Context(), *socket, "the rendezvous", http.MethodPut, "/api/v1/communities", url.Values{"file": {file}}, b, &applied)
			if err != nil {
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

func newCommunityGet(socket *string) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "get [NAME]",
		Short: "List the communities in force",
		Args:  args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, names []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			var list struct {
				Communities []rendezvous.Community `json:"communities"`
			}
			if err := call(cmd.Context(), *socket, "the rendezvous", http.MethodGet, "/api/v1/communities", nil, nil, &list); err != nil {
				return err
			}
			found := list.Communities
			if len(names) == 1 {
				found = nil
				for _, c := range list.Communities {
					if c.Name == names[0] {
						found = append(found, c)
					}
				}
				if found == nil {
					return fmt.Errorf("community %s not found", names[0])
				}
			}
			if output == "json" {
				return printJSON(cmd.OutOrStdout(), found)
			}
			tw := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(tw, "NAME\tPUNCH\tMEMBERS")
			for _, c := range found {
				fmt.Fprintf(tw, "%s\t%s\t%s\n", c.Name, cmp.Or(c.Punch, wire.PolicyAuto), strings.Join(c.Members, " "))
			}
			return tw.Flush()
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return cmd
}

func newCommunityDelete(socket *string) *cobra.Command {
	return newDelete(socket, "community", "Delete a community; tunnels no other community asks for end")
}

// newDelete deletes a named thing of the API: "community" or "node".
func newDelete(socket *string, what, short string) *cobra.Command {
	plural := map[string]string{"community": "communities", "node": "nodes"}[what]
	return &cobra.Command{
		Use:   "delete NAME",
		Short: short,
		Args:  args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, names []string) error {
			path := "/api/v1/" + plural + "/" + url.PathEscape(names[0])
			if err := call(cmd.Context(), *socket, "the rendezvous", http.MethodDelete, path, nil, nil, nil); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s %s deleted\n", what, names[0])
			return nil
		},
	}
}

func newNodes() *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Manage the nodes the rendezvous knows (on its machine)",
		Args:  args(cobra.NoArgs),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.PersistentFlags().StringVar(&socket, "socket", rendezvous.DefaultConfig().AdminSocket, "the rendezvous' admin socket")
	cmd.AddCommand(newDelete(&socket, "node", "Forget a node that is gone for good; its subnets are free again"))
	return cmd
}
