package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"github.com/bodkin-net/bodkin/rendezvous"
)

// punchWait covers an attempt with a search, 12 s, after one that was under way,
// and the rendezvous' own bound on each.
const punchWait = 60 * time.Second

func newPunch() *cobra.Command {
	var server rendezvousFlags
	var o output
	wait := punchWait
	cmd := &cobra.Command{
		Use:   "punch NODE NODE",
		Short: "Punch a pair now, and show it live",
		Long: "Punch has the rendezvous try a pair at once that is not direct, whatever its back-off, and shows what\n" +
			"happens until the attempt ends. Interrupting the command leaves the attempt running. Exits with 5 when\n" +
			"the pair is not direct afterwards. A name may lack its cluster where only one node is called so.",
		Example:           "  bodkin punch beijing.edge1 beijing.edge2\n  bodkin punch beijing.edge1 beijing.edge2 -o json | jq '.attempts[0].sides'",
		Args:              args(cobra.ExactArgs(2)),
		ValidArgsFunction: server.completePair,
		RunE: func(cmd *cobra.Command, nodes []string) error {
			c, err := server.client()
			if err != nil {
				return err
			}
			if nodes, err = c.inFull(cmd.Context(), nodes); err != nil {
				return err
			}
			var order rendezvous.PunchOrder
			if err := c.do(cmd.Context(), http.MethodPost, pairPath(nodes)+"/punch", nil, nil, &order); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), wait)
			defer cancel()
			if err := showPunch(ctx, cmd, c, o, order); err != nil {
				return err
			}
			return punchResult(cmd, c, o, order, wait)
		},
	}
	server.register(cmd)
	o.register(cmd)
	cmd.Flags().DurationVar(&wait, "timeout", punchWait, "how long to watch; the attempt goes on all the same")
	return cmd
}

// errPunchEnded ends the stream of events: there is a result.
var errPunchEnded = errors.New("the attempt has ended")

// showPunch prints what happens to the pair until the attempt ends or ctx does.
func showPunch(ctx context.Context, cmd *cobra.Command, c *client, o output, order rendezvous.PunchOrder) error {
	began := time.Now()
	live := o == outputTable || o == outputWide
	after := order.After
	each := func(e rendezvous.EventView) error {
		after = e.ID
		if live {
			p := newPrinter(cmd)
			st := stateStyles[e.State]
			if e.Kind == rendezvous.EventAttempt {
				st = outcomeStyles[rendezvous.AttemptOutcome(e.State)]
			}
			p.printf("%7.3f s  %s\n", max(0, time.Since(began).Seconds()), p.styled(e.Text, st))
			if err := p.flush(); err != nil {
				return err
			}
		}
		if e.Kind == rendezvous.EventAttempt && e.State != string(rendezvous.AttemptRunning) ||
			e.Kind == rendezvous.EventPair && e.State == string(rendezvous.Direct) {
			return errPunchEnded
		}
		return nil
	}
	for ctx.Err() == nil {
		err := c.stream(ctx, url.Values{"pair": {string(order.Pair.ID)}}, after, each)
		switch {
		case errors.Is(err, errPunchEnded):
			return nil
		case ctx.Err() == nil && !errors.Is(err, errStreamEnded):
			return err
		}
	}
	if cmd.Context().Err() != nil {
		return fmt.Errorf("interrupted: the attempt goes on, `bodkin pair show %s %s` tells its end", order.Pair.Nodes[0], order.Pair.Nodes[1])
	}
	return nil // it took too long: the result says what there is
}

// punchResult prints what came of the order.
func punchResult(cmd *cobra.Command, c *client, o output, order rendezvous.PunchOrder, wait time.Duration) error {
	nodes := []string{string(order.Pair.Nodes[0]), string(order.Pair.Nodes[1])}
	var d rendezvous.PairDetail
	if err := c.get(cmd.Context(), pairPath(nodes), nil, &d); err != nil {
		return err
	}
	if len(d.Attempts) > 1 {
		d.Attempts = d.Attempts[:1]
	}
	err := o.print(cmd, d, func(p *printer) { printPunchResult(p, d, wait) })
	if err == nil && d.Pair.State != rendezvous.Direct {
		return errProblems
	}
	return err
}

func printPunchResult(p *printer, d rendezvous.PairDetail, wait time.Duration) {
	v := d.Pair
	p.printf("\n")
	switch {
	case v.State == rendezvous.Direct:
		p.printf("%s: %s and %s over %s in %d ms\n", p.styled("direct", good), v.Nodes[0], v.Nodes[1], over(v), v.TimeToDirectMs)
		for _, node := range v.Nodes {
			if path, ok := v.Paths[node]; ok {
				p.printf("  %s  %s\n", node, remote(path))
			}
		}
	case v.Punching:
		p.printf("not ended after %s: bodkin pair show %s %s\n", wait, v.Nodes[0], v.Nodes[1])
	default:
		p.printf("%s: %s\n", p.styled(string(v.State), stateStyles[string(v.State)]), v.Reason)
		p.printf("all of it: bodkin pair show %s %s\n", v.Nodes[0], v.Nodes[1])
	}
}
