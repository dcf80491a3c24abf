package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/bodkin-net/bodkin/e2e"
)

// matrixOptions are the matrix' command line.
type matrixOptions struct {
	bin, out, markdown, document string
	sites                        []string
	probe                        probeOptions
}

func matrixCommand() *cobra.Command {
	var o matrixOptions
	cmd := &cobra.Command{
		Use: "matrix", Short: "Try every pair of sites, both ways, and compare with what is expected",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runMatrix(cmd.Context(), o, cmd.OutOrStdout())
		},
	}
	var names []string
	for _, s := range e2e.Sites() {
		names = append(names, s.Name)
	}
	flags := cmd.Flags()
	flags.StringVar(&o.bin, "bin", "build/bodkin", "the bodkin binary")
	flags.StringVar(&o.out, "out", "build/matrix.json", "where the results go")
	flags.StringVar(&o.markdown, "markdown", "build/matrix.md", "where the table goes, for the documentation")
	flags.StringVar(&o.document, "document", "", "a Markdown file whose parts \"matrix\" and \"probes\" are to be replaced")
	flags.StringSliceVar(&o.sites, "sites", names, "the sites to try with each other")
	flags.IntVar(&o.probe.runs, "probe-runs", 30, "attempts between a symmetric and a port-restricted NAT, 0 for none")
	flags.StringVar(&o.probe.out, "probe-out", "build/probe.json", "where their results go")
	return cmd
}

func runMatrix(ctx context.Context, o matrixOptions, out io.Writer) error {
	var sites []e2e.Site
	for _, name := range o.sites {
		site, err := e2e.FindSite(name)
		if err != nil {
			return fmt.Errorf("--sites: %w", err)
		}
		sites = append(sites, site)
	}
	cells, err := tryAll(ctx, o.bin, sites)
	if err != nil {
		return err
	}
	if err := writeJSON(o.out, cells); err != nil {
		return err
	}
	if err := writeText(o.markdown, markdown(cells)); err != nil {
		return err
	}
	printMatrix(out, cells)
	parts, problems := map[string]string{"matrix": markdown(cells)}, judge(cells)
	if o.probe.runs > 0 {
		probing, err := measureProbing(ctx, o.bin, o.probe.runs)
		if err != nil {
			return errors.Join(problems, err)
		}
		fmt.Fprintln(out, probing)
		if err := writeJSON(o.probe.out, probing); err != nil {
			return err
		}
		parts["probes"], problems = probing.markdown(), errors.Join(problems, probing.problem())
	}
	if o.document != "" {
		problems = errors.Join(problems, fillIn(o.document, parts))
	}
	return problems
}

// tryAll runs each pair of sites in one lab.
func tryAll(ctx context.Context, bin string, sites []e2e.Site) (cells []e2e.Cell, err error) {
	cluster, grid, err := newGrid(ctx, bin, sites)
	if cluster != nil {
		defer func() { err = errors.Join(err, cluster.Close()) }()
	}
	if err != nil {
		return nil, err
	}
	for _, a := range sites {
		for _, b := range sites {
			cell, err := grid.RunCell(ctx, a, b)
			if err != nil {
				return nil, err
			}
			slog.Info("cell", "a", cell.A, "b", cell.B, "got", cell.Got, "strategy", cell.Strategy, "ms", cell.Ms, "problem", problem(cell))
			cells = append(cells, cell)
		}
	}
	return cells, nil
}

// newGrid is a lab with the sites. The cluster must be closed, on error too if
// it is not nil.
func newGrid(ctx context.Context, bin string, sites []e2e.Site) (*e2e.Cluster, *e2e.Grid, error) {
	cluster, err := e2e.NewCluster(ctx, e2e.ClusterOptions{Bin: bin, IPv6: e2e.NeedIPv6(sites)})
	if err != nil {
		return cluster, nil, err
	}
	grid, err := e2e.NewGrid(ctx, cluster, sites)
	return cluster, grid, err
}

// problem is what is wrong with a cell, its time included.
func problem(c e2e.Cell) string { return cmp.Or(c.Problem(), c.Late()) }

// judge is an error that names every cell that is not as expected.
func judge(cells []e2e.Cell) error {
	var bad []string
	for _, c := range cells {
		if p := problem(c); p != "" {
			bad = append(bad, fmt.Sprintf("%s × %s %s", c.A, c.B, p))
		}
	}
	if len(bad) > 0 {
		return fmt.Errorf("%d of %d cells are not as expected: %s", len(bad), len(cells), strings.Join(bad, "; "))
	}
	return nil
}

// columns are the sites on the right.
func columns(cells []e2e.Cell) []string {
	var names []string
	for _, c := range cells {
		if !slices.Contains(names, c.B) {
			names = append(names, c.B)
		}
	}
	return names
}

// printMatrix prints the grid, a line for each left site, and below it why
// pairs are not direct.
func printMatrix(out io.Writer, cells []e2e.Cell) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "a \\ b\t%s", strings.Join(columns(cells), "\t"))
	row := ""
	for _, c := range cells {
		if c.A != row {
			row = c.A
			fmt.Fprintf(w, "\n%s", row)
		}
		text := cellText(c)
		if problem(c) != "" {
			text += " (!)"
		}
		fmt.Fprintf(w, "\t%s", text)
	}
	fmt.Fprintln(w)
	w.Flush()
	fmt.Fprintln(out, tally(cells))
	for _, line := range causes(cells) {
		fmt.Fprintln(out, line)
	}
}

// causes are why pairs are not direct, a line for each reason with all that have it.
// Of a pair that is not meant to be the forecast says it shortest.
func causes(cells []e2e.Cell) []string {
	var reasons []string
	pairs := map[string][]string{}
	for _, c := range cells {
		if c.Got == e2e.Direct {
			continue
		}
		reason := c.Reason
		if problem(c) == "" {
			reason = c.Verdict.Reason
		}
		if pairs[reason] == nil {
			reasons = append(reasons, reason)
		}
		pairs[reason] = append(pairs[reason], c.A+" × "+c.B)
	}
	var lines []string
	for _, reason := range reasons {
		lines = append(lines, fmt.Sprintf("%s (a × b: %s)", reason, strings.Join(pairs[reason], ", ")))
	}
	return lines
}

// cellText is how a pair got through and how long that took, or that it did
// not.
func cellText(c e2e.Cell) string {
	if c.Got != e2e.Direct {
		return string(c.Got)
	}
	return fmt.Sprintf("%s %d ms", c.Strategy, c.Ms)
}

func tally(cells []e2e.Cell) string {
	direct, relayed, lost, sent := 0, 0, 0, 0
	for _, c := range cells {
		switch c.Got {
		case e2e.Direct:
			direct++
		case e2e.Relayed:
			relayed++
		}
		sent += c.PingsSent
		lost += c.PingsLost
	}
	return fmt.Sprintf("%d of %d pairs are direct, %d relayed; %d of %d pings were lost.", direct, len(cells), relayed, lost, sent)
}

// footnotes explain why pairs are not direct, in the order they are numbered.
var footnotes = []struct {
	obstacle e2e.Obstacle
	mark     string
	text     string
}{
	{e2e.BothSymmetric, "¹", "Both NATs are symmetric and at least one gives out random ports: with neither port known, a search takes some 64,512 mappings in a router at once."},
	{e2e.UDPBlocked, "²", "One side's network lets no UDP out."},
	{e2e.NoCommonFamily, "³", "One side has IPv6 only, the other IPv4 only."},
}

// markdown is the grid for the documentation. A cell that is not as expected
// says so.
func markdown(cells []e2e.Cell) string {
	var b strings.Builder
	names := columns(cells)
	fmt.Fprintf(&b, "| a \\ b | %s |\n|---|%s\n", strings.Join(names, " | "), strings.Repeat("---|", len(names)))
	for row := range slices.Chunk(cells, len(names)) {
		fmt.Fprintf(&b, "| **%s** |", row[0].A)
		for _, c := range row {
			fmt.Fprintf(&b, " %s%s |", cellText(c), marks(c))
		}
		b.WriteString("\n")
	}
	fmt.Fprintf(&b, "\n%s\n", tally(cells))
	for _, f := range footnotes {
		if slices.ContainsFunc(cells, func(c e2e.Cell) bool { return slices.Contains(c.Obstacles, f.obstacle) }) {
			fmt.Fprintf(&b, "\n%s %s\n", f.mark, f.text)
		}
	}
	return b.String()
}

func marks(c e2e.Cell) string {
	text := ""
	for _, f := range footnotes {
		if slices.Contains(c.Obstacles, f.obstacle) {
			text += f.mark
		}
	}
	if p := problem(c); p != "" {
		text += " **(" + p + ")**"
	}
	return text
}
