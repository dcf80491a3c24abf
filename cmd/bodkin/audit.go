package main

import (
	"fmt"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/bodkin-net/bodkin/rendezvous"
	"github.com/bodkin-net/bodkin/store"
)

func newAudit() *cobra.Command {
	var server rendezvousFlags
	var limit int
	var o output
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Show who changed what on the rendezvous",
		Long: "Every change of communities, nodes, tokens and credentials, and every punch that somebody ordered,\n" +
			"with who asked for it and from which address; the newest first. The last 10,000 are kept.",
		Example: "  bodkin audit\n" +
			"  bodkin audit --limit 1000 -o json | jq '.entries[] | select(.who == \"anna\")'",
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 1 {
				return usageError{fmt.Errorf("--limit %d: want 1 or more", limit)}
			}
			c, err := server.client()
			if err != nil {
				return err
			}
			var list rendezvous.AuditList
			if err := c.get(cmd.Context(), "/api/v1/audit", url.Values{"limit": {strconv.Itoa(limit)}}, &list); err != nil {
				return err
			}
			return o.print(cmd, list, func(p *printer) { printAudit(p, list.Entries) })
		},
	}
	server.register(cmd)
	cmd.Flags().IntVar(&limit, "limit", 50, "how many, the newest first")
	o.register(cmd)
	return cmd
}

func printAudit(p *printer, entries []store.Audit) {
	if len(entries) == 0 {
		p.printf("nothing has been changed yet\n")
		return
	}
	t := p.table("TIME", "WHO", "FROM", "ACTION", "OBJECT", "DETAIL")
	for _, e := range entries {
		t.row(e.At.Local().Format(time.DateTime), e.Who, e.From, e.Action, e.Object, e.Detail)
	}
	t.end()
}
