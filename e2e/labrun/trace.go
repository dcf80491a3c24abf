package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/bodkin-net/bodkin/e2e"
	"github.com/bodkin-net/bodkin/e2e/lab"
)

// traceGap is how long a row of packets of one kind may pause and still be one
// line: checks that get no answer are sent every half second in the end.
const traceGap = time.Second

// traceOptions are the trace's command line.
type traceOptions struct {
	bin string
	all bool
}

func traceCommand() *cobra.Command {
	var o traceOptions
	cmd := &cobra.Command{
		Use: "trace SITE SITE", Short: "Print the packets that make two sites direct, as they cross the internet",
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, errA := e2e.FindSite(args[0])
			b, errB := e2e.FindSite(args[1])
			if err := errors.Join(errA, errB); err != nil {
				return err
			}
			return runTrace(cmd.Context(), o, a, b, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&o.bin, "bin", "build/bodkin", "the bodkin binary")
	cmd.Flags().BoolVar(&o.all, "all", false, "show what goes to the rendezvous and the connector, too")
	return cmd
}

func runTrace(ctx context.Context, o traceOptions, a, b e2e.Site, out io.Writer) (err error) {
	sites := []e2e.Site{a, b}
	if a == b {
		sites = sites[:1]
	}
	cluster, grid, err := newGrid(ctx, o.bin, sites)
	if cluster != nil {
		defer func() { err = errors.Join(err, cluster.Close()) }()
	}
	if err != nil {
		return err
	}
	ends := []*lab.Host{grid.Node(a, true).Outside(), grid.Node(b, false).Outside()}
	var mu sync.Mutex
	var packets []lab.Packet
	stop := cluster.Trace(func(p lab.Packet) {
		between := p.From == ends[0].Name() || p.From == ends[1].Name()
		if p.To == "connector" || p.Dst.Addr().IsMulticast() {
			between = false
		}
		if o.all || between {
			mu.Lock()
			defer mu.Unlock()
			packets = append(packets, p)
		}
	})
	cell, err := grid.RunCell(ctx, a, b)
	stop()
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "a is %s at %s, b is %s at %s; forecast: %s\n", a, ends[0].Addr(), b, ends[1].Addr(), cell.Verdict)
	if !o.all {
		packets = untilESP(packets)
	}
	printRows(out, rows(packets))
	fmt.Fprintf(out, "%s after %d ms, strategy %s, %d packets %s\n", cell.Got, cell.Ms, cell.Strategy, cell.Packets, cell.Reason)
	return nil
}

// untilESP leaves out what follows the first ESP packet from each side: the
// tunnel stands.
func untilESP(packets []lab.Packet) []lab.Packet {
	from := map[string]bool{}
	for i, p := range packets {
		if p.What == encapsulatedESP {
			from[p.From] = true
		}
		if len(from) == 2 {
			return packets[:i+1]
		}
	}
	return packets
}

// row is one line of a trace: packets of one kind in quick succession.
type row struct {
	first, last lab.Packet
	count       int
	srcs, dsts  map[netip.AddrPort]bool
}

// rows puts packets of one kind together, by when their first one was sent.
func rows(packets []lab.Packet) []*row {
	type kind struct {
		from, to, what string
		ttl            uint8
		fate           lab.Fate
	}
	var all []*row
	open := map[kind]*row{}
	for _, p := range packets {
		k := kind{p.From, p.To, p.What, p.TTL, p.Fate}
		r := open[k]
		if r == nil || p.At-r.last.At > traceGap {
			r = &row{first: p, srcs: map[netip.AddrPort]bool{}, dsts: map[netip.AddrPort]bool{}}
			open[k] = r
			all = append(all, r)
		}
		r.last = p
		r.count++
		r.srcs[p.Src], r.dsts[p.Dst] = true, true
	}
	return all
}

// printRows counts time from the first row.
func printRows(out io.Writer, rows []*row) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ms\tfrom\tto\tttl\tpackets\t")
	for _, r := range rows {
		since := func(p lab.Packet) string {
			return fmt.Sprintf("%.1f", float64(p.At-rows[0].first.At)/float64(time.Millisecond))
		}
		when, what := since(r.first), r.first.What
		if r.count > 1 {
			when += "–" + since(r.last)
		}
		if r.first.Fate != lab.Delivered {
			what += " (" + string(r.first.Fate) + ")"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%s\n", when, several(r.first.Src, r.srcs), several(r.first.Dst, r.dsts), r.first.TTL, r.count, what)
	}
	w.Flush()
}

// several is an address, and how many ports there are of it.
func several(one netip.AddrPort, all map[netip.AddrPort]bool) string {
	if len(all) == 1 {
		return one.String()
	}
	return fmt.Sprintf("%s (%d ports)", strings.TrimSuffix(one.String(), fmt.Sprintf(":%d", one.Port())), len(all))
}
