package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bodkin-net/bodkin/e2e"
	"github.com/bodkin-net/bodkin/e2e/lab"
)

const (
	// benchNAT is what stands before the edges: the commonest home router.
	benchNAT = lab.PortRestricted
	// benchCommunity is the only community of a benchmark's cluster.
	benchCommunity = "bench"
	// directTimeout is for a pair that can be direct to become so.
	directTimeout = 30 * time.Second
)

// What both methods negotiate: the first of Bodkin's own proposals.
const (
	ikeProposals = "aes128-sha256-x25519"
	espProposals = "aes128gcm16"
)

// benchOptions are the benchmark's command line.
type benchOptions struct {
	bin, out string
	runs     int
	joins    int
	page     bool
	delays   []time.Duration
	settle   time.Duration
	window   time.Duration
}

func benchCommand() *cobra.Command {
	var o benchOptions
	cmd := &cobra.Command{
		Use: "bench", Short: "Measure time to the first ping against strongSwan mediation, joins, the status page, memory and idle traffic",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runBench(cmd.Context(), o, cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.bin, "bin", "build/bodkin", "the bodkin binary, built without the race detector")
	flags.StringVar(&o.out, "out", "build/bench.json", "where the results go")
	flags.IntVar(&o.runs, "runs", 10, "runs of each method for each delay")
	flags.IntVar(&o.joins, "joins", 5, "machines that join, 0 for none")
	flags.BoolVar(&o.page, "page", true, "open the status page of a rendezvous with 300 nodes")
	flags.DurationSliceVar(&o.delays, "delays", []time.Duration{0, 25 * time.Millisecond, 75 * time.Millisecond}, "one-way delays between the edges")
	flags.DurationVar(&o.settle, "settle", time.Minute, "time between the last tunnel and the idle measurement")
	flags.DurationVar(&o.window, "idle", 4*time.Minute, "length of the idle measurement, 0 for none")
	return cmd
}

const benchExplained = `Time to the first ping through the strongSwan tunnel: one is sent every 10 ms, the first answer counts;
port-restricted NATs on both sides; the link to the rendezvous (the mediator) has no delay of its own,
so it is half as far from an edge as the other edge is. Both methods alternate in one lab. The relay is off:
with it the first ping would not wait for the direct tunnel.
  ours:      both agents online and their NATs known; from sending the community.
  mediation: both mediation SAs up; from strongSwan's "initiate".
  cold:      from starting the second edge's agent, its community being in force.
p95 is the nearest rank: of fewer than 20 runs, the slowest.
Join: from starting "bodkin join" with a token to the node's being online and seen by the rendezvous; the
agent is started as soon as the join has written its files.
Status: the whole process, on an edge with one tunnel.
Status page: 300 simulated agents in one community, all 44,850 pairs direct, on this machine's loopback;
something changes before each request. From the start of the navigation to the end of the frame that shows the
overview, in Chromium, with nothing cached unless it says so; a new tab is a new process of the browser, too.
kB: on the wire, as Chromium counts them. GET: to the last byte, without a browser.
Idle traffic: IP bytes in both directions at one edge's WAN, scaled to an hour.
`

func runBench(ctx context.Context, o benchOptions, out io.Writer) error {
	if o.runs < 1 {
		return fmt.Errorf("--runs: %d: want at least 1", o.runs)
	}
	var figures []figure
	for _, delay := range o.delays {
		times, err := measureTimes(ctx, o, delay)
		if err != nil {
			return fmt.Errorf("delay %s: %w", delay, err)
		}
		figures = append(figures, times.figures(delay)...)
	}
	if o.joins > 0 {
		took, err := measureJoins(ctx, o)
		if err != nil {
			return fmt.Errorf("join: %w", err)
		}
		figures = append(figures, joinFigures(took)...)
	}
	asked, err := measureStatus(ctx, o)
	if err != nil {
		return fmt.Errorf("status: %w", err)
	}
	figures = append(figures, statusFigures(asked)...)
	unseen := ""
	if o.page {
		page, err := measurePage(ctx, o)
		if err != nil {
			return fmt.Errorf("status page: %w", err)
		}
		figures, unseen = append(figures, page.figures()...), page.unseen
	}
	if o.window > 0 {
		idle, err := measureIdle(ctx, o)
		if err != nil {
			return fmt.Errorf("idle: %w", err)
		}
		figures = append(figures, idle.figures()...)
	}
	if err := writeJSON(o.out, figures); err != nil {
		return err
	}
	fmt.Fprint(out, benchExplained)
	printFigures(out, figures)
	if unseen != "" {
		fmt.Fprintf(out, "The status page was not opened in a browser: %s (make deps installs it).\n", unseen)
	}
	return nil
}

// side is one end of a race: a host behind a router of its own.
type side struct {
	router *lab.Router
	host   *lab.Host
	pods   netip.Prefix
	pod    netip.Addr
}

// times are the milliseconds to the first ping, run by run.
type times struct{ ours, cold, mediation []float64 }

// figures compare with the targets: a quarter of mediation's time without
// delay, six round trips between the edges with 75 ms.
func (t times) figures(delay time.Duration) []figure {
	const longHaul = 75 * time.Millisecond
	what := fmt.Sprintf("time to first ping, %d ms one way", delay.Milliseconds())
	target := 0.0
	switch delay {
	case 0:
		target = round(median(t.mediation)/4, 1)
	case longHaul:
		target = 6 * 2 * float64(longHaul.Milliseconds())
	}
	return []figure{
		against(what+", median", "ms", median(t.ours), median(t.mediation), target),
		against(what+", p95", "ms", p95(t.ours), p95(t.mediation), 0),
		{What: "cold, " + what + ", median", Unit: "ms", Ours: median(t.cold)},
		{What: "cold, " + what + ", p95", Unit: "ms", Ours: p95(t.cold)},
	}
}

// race is both methods, ready to run, in one lab.
type race struct {
	cluster       *e2e.Cluster
	left, right   *e2e.Node
	lefts, rights *lab.Router
	mediation     *mediation
}

func measureTimes(ctx context.Context, o benchOptions, delay time.Duration) (t times, err error) {
	cluster, err := e2e.NewCluster(ctx, e2e.ClusterOptions{Bin: o.bin, LogLevel: "info", NoRelay: true})
	if cluster != nil {
		defer func() { err = errors.Join(err, cluster.Close()) }()
	}
	if err != nil {
		return t, err
	}
	r, err := newRace(ctx, cluster, lab.Link{Delay: delay / 2})
	if err != nil {
		return t, err
	}
	defer r.mediation.Close()
	for i := range o.runs {
		ours, err := r.runOurs(ctx)
		if err != nil {
			return t, err
		}
		theirs, err := r.mediation.run(ctx)
		if err != nil {
			return t, err
		}
		cold, err := r.runCold(ctx)
		if err != nil {
			return t, err
		}
		slog.Info("run", "delay", delay, "n", i+1, "ours", ours, "mediation", theirs, "cold", cold)
		t.ours, t.cold, t.mediation = append(t.ours, inMs(ours)), append(t.cold, inMs(cold)), append(t.mediation, inMs(theirs))
	}
	return t, nil
}

func inMs(d time.Duration) float64 { return round(d.Seconds()*1000, 1) }

func newRace(ctx context.Context, cluster *e2e.Cluster, edgeLink lab.Link) (*race, error) {
	r := &race{cluster: cluster}
	for name, end := range map[string]struct {
		router **lab.Router
		node   **e2e.Node
	}{"left": {&r.lefts, &r.left}, "right": {&r.rights, &r.right}} {
		router, err := cluster.Router(name+"x", lab.RouterOptions{NAT: benchNAT})
		if err != nil {
			return nil, err
		}
		if err := router.SetLink(edgeLink); err != nil {
			return nil, err
		}
		node, err := cluster.AddEdge(ctx, name, router)
		if err != nil {
			return nil, err
		}
		*end.router, *end.node = router, node
	}
	if err := cluster.WaitDiscovered(ctx, r.left, r.right); err != nil {
		return nil, err
	}
	var err error
	r.mediation, err = newMediation(ctx, cluster.Lab, mediationOptions{nats: [2]lab.NATKind{benchNAT, benchNAT}, link: edgeLink})
	return r, err
}

func (r *race) runOurs(ctx context.Context) (time.Duration, error) {
	took, err := timeToPing(ctx, r.left.Host, r.left.Pod, r.right.Pod, r.apply)
	if err != nil {
		return 0, fmt.Errorf("ours: %w", err)
	}
	return took, r.reset(ctx)
}

// runCold has the community in force before the right agent starts.
func (r *race) runCold(ctx context.Context) (time.Duration, error) {
	if err := r.right.Agent().Stop(ctx); err != nil {
		return 0, err
	}
	// Only then: an attempt with one that has just left would delay the next.
	if err := r.cluster.WaitOffline(ctx, r.right); err != nil {
		return 0, err
	}
	if err := r.apply(ctx); err != nil {
		return 0, err
	}
	// The process must outlive the measurement, which ends its own context.
	start := func(context.Context) error { return r.right.StartAgent(ctx) }
	took, err := timeToPing(ctx, r.left.Host, r.left.Pod, r.right.Pod, start)
	if err != nil {
		return 0, fmt.Errorf("cold: %w", err)
	}
	if err := r.reset(ctx); err != nil {
		return 0, err
	}
	return took, r.cluster.WaitDiscovered(ctx, r.left, r.right)
}

func waitDirect(ctx context.Context, c *e2e.Cluster, a, b *e2e.Node) error {
	ctx, cancel := context.WithTimeout(ctx, directTimeout)
	defer cancel()
	_, err := c.WaitPair(ctx, a, b, e2e.IsDirect)
	return err
}

func (r *race) apply(ctx context.Context) error {
	return r.cluster.Apply(ctx, benchCommunity, r.left, r.right)
}

// reset ends the tunnel at both ends and makes the NATs forget it; the agents
// stay online.
func (r *race) reset(ctx context.Context) error {
	if err := waitDirect(ctx, r.cluster, r.left, r.right); err != nil {
		return err
	}
	if err := r.cluster.Delete(ctx, benchCommunity); err != nil {
		return err
	}
	if err := r.cluster.WaitGone(ctx, r.left, r.right); err != nil {
		return err
	}
	return forgetFlows(ctx, r.lefts, r.rights)
}

// forgetFlows makes two routers forget the UDP flows between them, and nothing
// else: links to the rendezvous or the mediator go on.
func forgetFlows(ctx context.Context, a, b *lab.Router) error {
	for _, ends := range [][2]*lab.Router{{a, b}, {b, a}} {
		for _, match := range []string{"--orig-dst", "--orig-src"} {
			out, err := ends[0].Run(ctx, "conntrack", "-D", "-p", "udp", match, ends[1].WAN().String())
			// Its exit status is 1 when there was nothing to forget.
			if err != nil && !strings.Contains(out+err.Error(), "0 flow entries") {
				return fmt.Errorf("forget flows of %s: %w: %s", ends[0].Name(), err, out)
			}
		}
	}
	return nil
}
