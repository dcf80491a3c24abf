package main

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bodkin-net/bodkin/punch/nat"
	"github.com/bodkin-net/bodkin/rendezvous"
)

func newForecast() *cobra.Command {
	var server rendezvousFlags
	var o output
	var file string
	cmd := &cobra.Command{
		Use:   "forecast {-f FILE | COMMUNITY}",
		Short: "Say which pairs of a community can be direct, and why others cannot",
		Long: "Forecast judges every pair of the communities in a file, or of one that is in force, by what\n" +
			"the rendezvous knows of the nodes' NATs. Nothing is tried and nothing is stored.",
		Example: "  bodkin forecast -f all-edges.yaml\n  bodkin forecast all-edges -o json",
		Args:    args(cobra.MaximumNArgs(1)),

		ValidArgsFunction: completeArgs(1, server.communityNames),
		RunE: func(cmd *cobra.Command, names []string) error {
			if (file == "") == (len(names) == 0) {
				return usageError{fmt.Errorf("forecast: want either -f FILE or the name of a community")}
			}
			method, path, query := http.MethodPost, "/api/v1/forecast", url.Values{"file": {file}}
			var body []byte
			if file == "" {
				method, path, query = http.MethodGet, path+segment(names[0]), nil
			} else {
				var err error
				if body, err = readInput(cmd.InOrStdin(), file); err != nil {
					return usageError{err}
				}
			}
			var f rendezvous.Forecast
			c, err := server.client()
			if err != nil {
				return err
			}
			if err := c.do(cmd.Context(), method, path, query, body, &f); err != nil {
				return err
			}
			return o.print(cmd, f, func(p *printer) { printForecast(p, f) })
		},
	}
	server.register(cmd)
	cmd.Flags().StringVarP(&file, "file", "f", "", "YAML file of communities, - for standard input")
	o.register(cmd)
	return cmd
}

// expectations are the styles of what is expected of a pair.
var expectations = map[nat.Expectation]style{nat.Direct: good, nat.Relay: warn}

func printForecast(p *printer, f rendezvous.Forecast) {
	t := p.table("NODE", "NODE", "EXPECTED", "STRATEGY", "REASON")
	for _, pair := range f.Pairs {
		reason := pair.Verdict.Reason
		for _, name := range pair.Offline {
			reason += fmt.Sprintf(" (%s is offline: as last known)", name)
		}
		strategy := "" // of what is not expected to succeed it is of no interest
		if pair.Verdict.Expect == nat.Direct {
			strategy = string(pair.Verdict.Strategy)
		}
		expect := pair.Verdict.Expect
		t.row(pair.Nodes[0], pair.Nodes[1], cell{string(expect), expectations[expect]}, strategy, reason)
	}
	t.end()
	p.printf("\n%s\n", conclusion(f.Summary))
}

// conclusion is the summary in a line.
func conclusion(s rendezvous.ForecastSummary) string {
	var impossible, unknown []string
	for _, r := range s.Reasons {
		line := fmt.Sprintf("%d × %s", r.Pairs, r.Reason)
		if r.Expect == nat.Relay {
			impossible = append(impossible, line)
		} else {
			unknown = append(unknown, line)
		}
	}
	var parts []string
	if s.Unknown > 0 {
		parts = append(parts, fmt.Sprintf("%d of %d pairs cannot be judged: %s", s.Unknown, s.Pairs, strings.Join(unknown, "; ")))
	}
	if s.Relay > 0 {
		parts = append(parts, fmt.Sprintf("%d of %d pairs cannot be direct: %s", s.Relay, s.Pairs, strings.Join(impossible, "; ")))
	} else {
		parts = append(parts, fmt.Sprintf("%d of %d pairs are expected to be direct", s.Direct, s.Pairs))
	}
	return strings.Join(parts, "\n")
}
