package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
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

// manyAlike is how many packets of one kind are too many to draw.
const manyAlike = 8

// draw makes a sequence diagram of the packets between two sites, up to the
// first ESP packet from each. Of many that are alike the first is drawn, and
// where the last one was their number.
func draw(packets []lab.Packet, left, leftTitle, rightTitle string) string {
	var b strings.Builder
	gap := arrowWidth + 2*portWidth + 2 - len(leftTitle) - len(rightTitle)
	fmt.Fprintf(&b, "%8s  %s%*s%s\n", "ms", leftTitle, max(gap, 1), "", rightTitle)
	packets = untilESP(packets)
	kinds := kindsOf(packets)
	total, seen := map[kind]int{}, map[kind]int{}
	for _, k := range kinds {
		total[k]++
	}
	for i, p := range packets {
		k := kinds[i]
		seen[k]++
		switch {
		case p.What == encapsulatedESP && seen[k] > 1: // the tunnel's own traffic
		case seen[k] == 1 || total[k] < manyAlike:
			fmt.Fprintf(&b, "%s  %s\n", since(packets[0], p), arrow(p, p.From == left))
		case seen[k] == total[k]:
			fmt.Fprintf(&b, "%s  %s\n", since(packets[0], p), centre(fmt.Sprintf("%s: %d more", shortName(p), total[k]-1), p.From == left))
		}
	}
	return b.String()
}

// kind is what packets that are alike have in common.
type kind struct {
	from, what string
	fate       lab.Fate
	port       uint16
}

// kindsOf tells the kind of each packet. Those to ports that nothing has come
// from are alike, and so are those from ports that nothing goes to.
func kindsOf(packets []lab.Packet) []kind {
	answering := map[netip.AddrPort]bool{}
	for _, p := range packets {
		if p.What != "STUN Binding indication" {
			answering[p.Src] = true
		}
	}
	out := make([]kind, len(packets))
	for i, p := range packets {
		out[i] = kind{from: p.From, what: p.What, fate: p.Fate}
		if answering[p.Src] && answering[p.Dst] {
			out[i].port = p.Src.Port() ^ p.Dst.Port()
		}
	}
	return out
}

// encapsulatedESP is what the lab's trace calls it.
const encapsulatedESP = "ESP in UDP"

func since(first, p lab.Packet) string {
	return fmt.Sprintf("%8.1f", float64(p.At-first.At)/float64(time.Millisecond))
}

// arrow is one packet between the ports it had on the internet. One that was
// not delivered ends on the way.
func arrow(p lab.Packet, fromLeft bool) string {
	text := shortName(p)
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

func shortName(p lab.Packet) string { return strings.TrimPrefix(p.What, "STUN ") }

// centre puts a remark between the two sides, with the direction it is about.
func centre(s string, fromLeft bool) string {
	if fromLeft {
		s += " ▶"
	} else {
		s = "◀ " + s
	}
	return strings.Repeat(" ", portWidth+1+max(0, (arrowWidth-len([]rune(s)))/2)) + s
}
