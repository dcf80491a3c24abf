package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

const (
	// herdCommunity is how many edges share one community, unless one is to hold
	// all.
	herdCommunity = 10
	// herdPatience bounds what is waited for: far beyond what a herd needs.
	herdPatience = time.Minute
	// herdPoll is between looks at the agents; to look at the rendezvous more
	// often than metricsPoll would be a load of its own.
	herdPoll    = 10 * time.Millisecond
	metricsPoll = 100 * time.Millisecond
	// herdCalm is how long a standing herd is watched for orders after all are
	// back: an order would come at once.
	herdCalm = 3 * time.Second
	// herdBackLimit is what the agents' return may take, counted from the
	// rendezvous' own: beyond an eighth of the outage, the handshakes.
	herdBackLimit = 5 * time.Second
)

// herdOptions are the command line of herd.
type herdOptions struct {
	bin, out string
	agents   int // edges
	// community is how many edges share one community.
	community int
	outage    time.Duration
}

func herdCommand() *cobra.Command {
	o := herdOptions{community: herdCommunity}
	cmd := &cobra.Command{
		Use: "herd", Short: "Kill the rendezvous of many simulated agents, and see them come back",
		Long: "Kill the rendezvous of many simulated agents, and see them come back. The agents are\n" +
			"real to the rendezvous, with a certificate and a TLS connection each; they punch nothing.\n" +
			"Everything runs on this machine's loopback; no root is needed.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			results, err := runHerd(cmd.Context(), o, scenarios(o.outage))
			if len(results) == 0 {
				return err
			}
			printHerd(cmd.OutOrStdout(), results)
			return errors.Join(err, writeJSON(o.out, results), herdVerdict(results))
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.bin, "bin", "build/bodkin", "the bodkin binary, built without the race detector")
	flags.StringVar(&o.out, "out", "build/herd.json", "where the results go")
	flags.IntVar(&o.agents, "agents", 1000, "edges, in communities of 10")
	flags.DurationVar(&o.outage, "outage", 20*time.Second, "how long the rendezvous is away")
	return cmd
}

// herdResult is what one outage came to.
type herdResult struct {
	Scenario string  `json:"scenario"`
	Agents   int     `json:"agents"`
	Pairs    int     `json:"pairs"`
	OutageS  float64 `json:"outage_s"`
	// AllBackMs is from the rendezvous' start to the last agent's list of peers.
	AllBackMs      float64 `json:"all_back_ms"`
	LimitAllBackMs float64 `json:"limit_all_back_ms"`
	// Peaks are within any second; dials are those that failed, too.
	DialsPeak    int `json:"dials_per_s_peak"`
	SessionsPeak int `json:"sessions_per_s_peak"`
	Orders       int `json:"punch_orders"`
	OrdersPeak   int `json:"punch_orders_per_s_peak"`
	// OrdersInFlight is the most at one moment, of pairs.
	OrdersInFlight int `json:"punch_orders_in_flight_peak"`
	// AllDirectMs is from the rendezvous' start until it counts all pairs
	// direct.
	AllDirectMs float64 `json:"all_direct_ms"`
	Refused     int     `json:"refused"`
	// Broken are connections that were accepted and then failed.
	Broken int `json:"broken"`
	// Example is why the last of these ended.
	Example string `json:"example,omitempty"`
	// CPUSeconds and MemoryMB are the rendezvous', from its start on; the memory
	// is its greatest.
	CPUSeconds float64 `json:"rendezvous_cpu_s"`
	MemoryMB   float64 `json:"rendezvous_rss_mb"`
	// Load is the machine's load average of the last minute: what else ran on it
	// makes figures worse than they are.
	Load float64 `json:"machine_load"`
	OK   bool    `json:"ok"`
}

// scenario is an outage, or with join the start of everything. Where pairs are
// down after it, all their tunnels broke meanwhile, as when one provider's
// routers restart.
type scenario struct {
	name              string
	outage            time.Duration
	join, down, empty bool // empty: the rendezvous comes back with no store
}

// scenarios have the join first: it starts the agents.
func scenarios(outage time.Duration) []scenario {
	return []scenario{
		{name: "all join at once", join: true},
		{name: "restarted at once, tunnels stand"},
		{name: "away, tunnels stand", outage: outage},
		{name: "away, all tunnels broke", outage: outage, down: true},
		{name: "away, back with an empty store", outage: outage, empty: true},
	}
}

// ordersExpected reports whether pairs have to be punched in it.
func (s scenario) ordersExpected() bool { return s.join || s.down }

// runHerd makes a rendezvous and a herd, and has the one lose the other, in
// each of the scenarios.
func runHerd(ctx context.Context, o herdOptions, all []scenario) (results []herdResult, err error) {
	dir, err := os.MkdirTemp("", "bdk-herd-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	h, err := newHerd(dir, o)
	if err != nil {
		return nil, err
	}
	defer h.close()
	slog.Info("herd", "agents", len(h.agents), "pairs", h.pairs())
	for _, s := range all {
		r, err := h.play(ctx, s)
		if err != nil {
			return results, fmt.Errorf("%s: %w", s.name, err)
		}
		slog.Info("herd", "scenario", s.name, "all back ms", r.AllBackMs, "all direct ms", r.AllDirectMs, "orders", r.Orders)
		results = append(results, r)
	}
	return results, nil
}

// play is one scenario, from the rendezvous' end to a herd that is calm again.
func (h *herd) play(ctx context.Context, s scenario) (herdResult, error) {
	load, err := machineLoad()
	if err != nil {
		return herdResult{}, err
	}
	h.kill()
	killed := time.Now()
	if s.down {
		for _, a := range h.agents {
			a.drop()
		}
	}
	if s.empty {
		if err := os.Remove(h.store); err != nil {
			return herdResult{}, err
		}
	}
	if err := pause(ctx, s.outage); err != nil {
		return herdResult{}, err
	}
	started := time.Now()
	if err := h.start(); err != nil {
		return herdResult{}, err
	}
	if s.join { // who joins finds it running
		if err := h.until(ctx, "the rendezvous answers", herdPoll, func() bool { return h.direct(ctx) >= 0 }); err != nil {
			return herdResult{}, err
		}
		started = time.Now()
		h.run(ctx)
	}
	if err := h.until(ctx, "all agents back", herdPoll, func() bool { return h.joined(killed) == len(h.agents) }); err != nil {
		return herdResult{}, err
	}
	back := time.Now()
	count := 0
	if err := h.until(ctx, "all pairs direct", metricsPoll, func() bool { count = h.direct(ctx); return count == h.pairs() }); err != nil {
		return herdResult{}, fmt.Errorf("%w: %d of %d", err, count, h.pairs())
	}
	direct := time.Now()
	if err := pause(ctx, herdCalm); err != nil {
		return herdResult{}, err
	}
	used, err := usageOf(h.process.Process.Pid)
	r := h.log.result(killed, started)
	r.Scenario, r.Agents, r.Pairs, r.OutageS = s.name, len(h.agents), h.pairs(), s.outage.Seconds()
	r.AllBackMs, r.AllDirectMs = milliseconds(back.Sub(started)), milliseconds(direct.Sub(started))
	r.LimitAllBackMs = milliseconds(herdBackLimit)
	if s.join { // of nodes nobody knows yet: no outage, and no promise
		r.LimitAllBackMs = milliseconds(herdPatience)
	}
	r.CPUSeconds, r.MemoryMB, r.Load = used.cpu.Seconds(), used.peakMB, load
	r.OK = r.Refused == 0 && r.Broken == 0 && r.AllBackMs <= r.LimitAllBackMs && (s.ordersExpected() || r.Orders == 0)
	return r, err
}

func milliseconds(d time.Duration) float64 { return round(d.Seconds()*1000, 0) }

// herdVerdict is an error where a scenario is not as it should be.
func herdVerdict(results []herdResult) error {
	for _, r := range results {
		if !r.OK {
			return fmt.Errorf("%s: %d refused, %d broken (%s), all back after %g ms (at most %g), %d punch orders", r.Scenario, r.Refused, r.Broken, r.Example, r.AllBackMs, r.LimitAllBackMs, r.Orders)
		}
	}
	return nil
}

func printHerd(out io.Writer, results []herdResult) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(what string, value func(herdResult) any) {
		fmt.Fprint(w, what)
		for _, r := range results {
			fmt.Fprintf(w, "\t%v", value(r))
		}
		fmt.Fprintln(w)
	}
	line("", func(r herdResult) any { return r.Scenario })
	line("rendezvous away, s", func(r herdResult) any { return r.OutageS })
	line("all agents back after, ms", func(r herdResult) any { return r.AllBackMs })
	line("all pairs direct after, ms", func(r herdResult) any { return r.AllDirectMs })
	line("dials per second, peak", func(r herdResult) any { return r.DialsPeak })
	line("sessions per second, peak", func(r herdResult) any { return r.SessionsPeak })
	line("punch orders (pairs)", func(r herdResult) any { return r.Orders })
	line("  per second, peak", func(r herdResult) any { return r.OrdersPeak })
	line("  in flight, peak", func(r herdResult) any { return r.OrdersInFlight })
	line("sessions refused, broken", func(r herdResult) any { return fmt.Sprint(r.Refused, ", ", r.Broken) })
	line("rendezvous: CPU, s", func(r herdResult) any { return r.CPUSeconds })
	line("rendezvous: memory, MB", func(r herdResult) any { return r.MemoryMB })
	line("machine's load before", func(r herdResult) any { return r.Load })
	line("as it should be", func(r herdResult) any { return r.OK })
	w.Flush()
}
