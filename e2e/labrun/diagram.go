package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/bodkin-net/bodkin/e2e"
	"github.com/bodkin-net/bodkin/e2e/lab"
)

// drawn are the pairs whose packets are drawn, one for each strategy.
var drawn = []struct{ strategy, left, right string }{
	{"ice", "port-restricted", "port-restricted"},
	{"openers", "port-restricted-poisoned", "port-restricted"},
	{"predict", "symmetric-sequential", "port-restricted"},
	{"probe", "symmetric", "port-restricted"},
}

func diagramsCommand() *cobra.Command {
	var bin, document string
	cmd := &cobra.Command{
		Use: "diagrams", Short: "Draw the packets of one punch of each strategy, for docs/nat.md",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			diagrams, err := drawAll(cmd.Context(), bin, cmd.OutOrStdout())
			if err != nil || document == "" {
				return err
			}
			return fillIn(document, diagrams)
		},
	}
	cmd.Flags().StringVar(&bin, "bin", "build/bodkin", "the bodkin binary")
	cmd.Flags().StringVar(&document, "document", "", "a Markdown file whose diagrams are to be replaced")
	return cmd
}

// drawAll draws all pairs, by the name of their part in the document.
func drawAll(ctx context.Context, bin string, out io.Writer) (map[string]string, error) {
	diagrams := map[string]string{}
	for _, d := range drawn {
		left, err := e2e.FindSite(d.left)
		if err != nil {
			return nil, err
		}
		right, err := e2e.FindSite(d.right)
		if err != nil {
			return nil, err
		}
		text, err := drawPair(ctx, bin, left, right)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", d.strategy, err)
		}
		fmt.Fprintf(out, "%s\n%s\n", d.strategy, text)
		diagrams["diagram "+d.strategy] = "```\n" + text + "```\n"
	}
	return diagrams, nil
}

func drawPair(ctx context.Context, bin string, left, right e2e.Site) (diagram string, err error) {
	cluster, grid, err := newGrid(ctx, bin, slices.Compact([]e2e.Site{left, right}))
	if cluster != nil {
		defer func() { err = errors.Join(err, cluster.Close()) }()
	}
	if err != nil {
		return "", err
	}
	ends := []string{grid.Node(left, true).Outside().Name(), grid.Node(right, false).Outside().Name()}
	var mu sync.Mutex
	var packets []lab.Packet
	stop := cluster.Trace(func(p lab.Packet) {
		if slices.Contains(ends, p.From) && slices.Contains(ends, p.To) {
			mu.Lock()
			defer mu.Unlock()
			packets = append(packets, p)
		}
	})
	cell, err := grid.RunCell(ctx, left, right)
	stop()
	if err == nil && cell.Problem() != "" {
		err = errors.New(cell.Problem())
	}
	if err != nil {
		return "", err
	}
	return draw(packets, ends[0], left.Name, right.Name), nil
}

// The diagram's layout, in characters.
const (
	arrowWidth = 58
	portWidth  = 5
)

// draw makes a sequence diagram of the packets between two sites, up to the
// first ESP packet from each. A run of packets that differ in nothing but their
// ports is drawn as its first, and their number.
func draw(packets []lab.Packet, left, leftTitle, rightTitle string) string {
	var b strings.Builder
	gap := arrowWidth + 2*portWidth + 2 - len(leftTitle) - len(rightTitle)
	fmt.Fprintf(&b, "%8s  %s%*s%s\n", "ms", leftTitle, max(gap, 1), "", rightTitle)
	esp := map[string]bool{}
	for i := 0; i < len(packets) && len(esp) < 2; {
		p := packets[i]
		run := 1
		for i+run < len(packets) && alike(packets[i+run], p) {
			run++
		}
		i += run
		if p.What == encapsulatedESP {
			if esp[p.From] {
				continue
			}
			esp[p.From], run = true, 1
		}
		fmt.Fprintf(&b, "%s  %s\n", since(packets[0], p), arrow(p, p.From == left))
		if run > 1 {
			fmt.Fprintf(&b, "%s  %s\n", since(packets[0], packets[i-1]), centre(fmt.Sprintf("%d more like this", run-1)))
		}
	}
	return b.String()
}

// encapsulatedESP is what the lab's trace calls it.
const encapsulatedESP = "ESP in UDP"

func since(first, p lab.Packet) string {
	return fmt.Sprintf("%8.1f", float64(p.At-first.At)/float64(time.Millisecond))
}

// alike: the same kind of packet the same way, to or from another port.
func alike(a, b lab.Packet) bool {
	return a.From == b.From && a.What == b.What && a.Fate == b.Fate
}

// arrow is one packet between the ports it had on the internet. One that was
// not delivered ends on the way.
func arrow(p lab.Packet, fromLeft bool) string {
	text := strings.TrimPrefix(p.What, "STUN ")
	width, head := arrowWidth, "▶"
	if !fromLeft {
		head = "◀"
	}
	if p.Fate != lab.Delivered {
		text += fmt.Sprintf(", TTL %d", p.TTL)
		width, head = arrowWidth*2/3, "✕"
	}
	dashes := max(2, width-3-len([]rune(text)))
	line := strings.Repeat("─", dashes/2) + " " + text + " " + strings.Repeat("─", dashes-dashes/2)
	rest := strings.Repeat(" ", arrowWidth-width)
	if fromLeft {
		return fmt.Sprintf("%*d %s%s%s %d", portWidth, p.Src.Port(), line, head, rest, p.Dst.Port())
	}
	return fmt.Sprintf("%*d %s%s%s %d", portWidth, p.Dst.Port(), rest, head, line, p.Src.Port())
}

func centre(s string) string {
	return strings.Repeat(" ", portWidth+1+max(0, (arrowWidth-len(s))/2)) + s
}
