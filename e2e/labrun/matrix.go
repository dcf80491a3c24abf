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
	"github.com/bodkin-net/bodkin/e2e/lab"
)

// matrixOptions are the matrix' command line.
type matrixOptions struct {
	bin, out string
	kinds    []string
}

func matrixCommand() *cobra.Command {
	var o matrixOptions
	cmd := &cobra.Command{
		Use: "matrix", Short: "Try every pair of NATs, both ways, and compare with what is expected",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runMatrix(cmd.Context(), o, cmd.OutOrStdout())
		},
	}
	var kinds []string
	for _, k := range e2e.MatrixKinds() {
		kinds = append(kinds, k.String())
	}
	cmd.Flags().StringVar(&o.bin, "bin", "build/bodkin", "the bodkin binary")
	cmd.Flags().StringVar(&o.out, "out", "build/matrix.json", "where the results go")
	cmd.Flags().StringSliceVar(&o.kinds, "kinds", kinds, "the NATs to try with each other")
	return cmd
}

func runMatrix(ctx context.Context, o matrixOptions, out io.Writer) (err error) {
	var kinds []lab.NATKind
	for _, name := range o.kinds {
		kind, err := lab.ParseNATKind(name)
		if err != nil {
			return fmt.Errorf("--kinds: %w", err)
		}
		kinds = append(kinds, kind)
	}
	cluster, err := e2e.NewCluster(ctx, e2e.ClusterOptions{Bin: o.bin})
	if cluster != nil {
		defer func() { err = errors.Join(err, cluster.Close()) }()
	}
	if err != nil {
		return err
	}
	grid, err := e2e.NewGrid(ctx, cluster, kinds)
	if err != nil {
		return err
	}
	var cells []e2e.Cell
	for _, a := range kinds {
		for _, b := range kinds {
			cell, err := grid.RunCell(ctx, a, b)
			if err != nil {
				return err
			}
			slog.Info("cell", "a", cell.A, "b", cell.B, "got", cell.Got, "ms", cell.Ms, "problem", problem(cell))
			cells = append(cells, cell)
		}
	}
	if err := writeJSON(o.out, cells); err != nil {
		return err
	}
	printMatrix(out, cells)
	return judge(cells)
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

// printMatrix prints the grid, a line for each left site, and below it why
// pairs are down.
func printMatrix(out io.Writer, cells []e2e.Cell) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	var columns []string
	for _, c := range cells {
		if !slices.Contains(columns, c.B) {
			columns = append(columns, c.B)
		}
	}
	fmt.Fprintf(w, "a \\ b\t%s", strings.Join(columns, "\t"))
	row := ""
	var down []string
	for _, c := range cells {
		if c.A != row {
			row = c.A
			fmt.Fprintf(w, "\n%s", row)
		}
		fmt.Fprintf(w, "\t%s", cellText(c))
		if c.Got != e2e.Direct {
			down = append(down, fmt.Sprintf("%s × %s is %s: %s", c.A, c.B, c.Got, c.Reason))
		}
	}
	fmt.Fprintln(w)
	w.Flush()
	for _, d := range down {
		fmt.Fprintln(out, d)
	}
}

func cellText(c e2e.Cell) string {
	text := fmt.Sprintf("%s %d ms", c.Got, c.Ms)
	if c.Got == e2e.Direct {
		text += fmt.Sprintf(" %d/%d", c.PingsSent-c.PingsLost, c.PingsSent)
	}
	if problem(c) != "" {
		text += " (!)"
	}
	return text
}
