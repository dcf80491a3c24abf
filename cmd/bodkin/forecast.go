package main

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/bodkin-net/bodkin/punch/nat"
	"github.com/bodkin-net/bodkin/rendezvous"
)

func newForecast() *cobra.Command {
	var socket, file, output string
	cmd := &cobra.Command{
		Use:   "forecast {-f FILE | COMMUNITY}",
		Short: "Say which pairs of a community can be direct, and why others cannot (on the rendezvous' machine)",
		Long: "Forecast judges every pair of the communities in a file, or of one that is in force, by what\n" +
			"the rendezvous knows of the nodes' NATs. Nothing is tried and nothing is stored.",
		Example: "  bodkin forecast -f all-edges.yaml\n  bodkin forecast all-edges -o json",
		Args:    args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, names []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			if (file == "") == (len(names) == 0) {
				return usageError{fmt.Errorf("forecast: want either -f FILE or the name of a community")}
			}
			method, path, query := http.MethodPost, "/api/v1/forecast", url.Values{"file": {file}}
			var body []byte
			if file == "" {
				method, path, query = http.MethodGet, path+"/"+url.PathEscape(names[0]), nil
			} else {
				var err error
				if body, err = readInput(cmd.InOrStdin(), file); err != nil {
					return usageError{err}
				}
			}
			var f rendezvous.Forecast
			if err := call(cmd.Context(), socket, "the rendezvous", method, path, query, body, &f); err != nil {
				return err
			}
			if output == "json" {
				return printJSON(cmd.OutOrStdout(), f)
			}
			return printForecast(cmd.OutOrStdout(), f)
		},
	}
	cmd.Flags().StringVar(&socket, "socket", rendezvous.DefaultConfig().AdminSocket, "the rendezvous' admin socket")
	cmd.Flags().StringVarP(&file, "file", "f", "", "YAML file of communities, - for standard input")
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return cmd
}

func printForecast(w io.Writer, f rendezvous.Forecast) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "NODE\tNODE\tEXPECTED\tSTRATEGY\tREASON")
	for _, p := range f.Pairs {
		reason := p.Verdict.Reason
		for _, name := range p.Offline {
			reason += fmt.Sprintf(" (%s is offline: as last known)", name)
		}
		strategy := "-" // of what is not expected to succeed it is of no interest
		if p.Verdict.Expect == nat.Direct {
			strategy = string(p.Verdict.Strategy)
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", p.Nodes[0], p.Nodes[1], p.Verdict.Expect, strategy, reason)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w, "\n"+conclusion(f.Summary))
	return err
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
