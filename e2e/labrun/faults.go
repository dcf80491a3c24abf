package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bodkin-net/bodkin/e2e"
)

// faultOptions are the command line of `labrun faults`.
type faultOptions struct {
	bin, out, document string
	only               string
	runs               int
	noAnchor, check    bool
	keepLogs           string
}

func faultsCommand() *cobra.Command {
	var o faultOptions
	cmd := &cobra.Command{
		Use: "faults", Short: "Break a direct pair in every way there is and measure what it costs, beside strongSwan mediation",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runFaults(cmd.Context(), o, cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.bin, "bin", "build/bodkin", "the bodkin binary, built without the race detector")
	flags.StringVar(&o.out, "out", "build/faults.json", "where the results go")
	flags.StringVar(&o.document, "document", "", "a Markdown document whose part faults is replaced by the results, empty for none")
	flags.StringVar(&o.only, "only", "", "measure only the faults whose name contains this")
	flags.IntVar(&o.runs, "runs", 3, "runs of each fault and side; the worst counts")
	flags.BoolVar(&o.noAnchor, "no-anchor", false, "leave strongSwan mediation out, which takes minutes")
	flags.BoolVar(&o.check, "check", false, "fail when a figure is not within its limit")
	flags.StringVar(&o.keepLogs, "logs", "", "directory that the logs of runs not within their limits are copied to, empty for none")
	return cmd
}

const faultsExplained = `Two edges behind NATs of their own, 10 ms from the internet each, direct, and the connector ready to relay.
A ping every 20 ms each way while it breaks; each run in a lab of its own, on each side where there are two; the worst counts.
  interrupted:  the longest time without an answer in one direction (all of it together where the path flaps).
  direct again: from the fault until pings go directly, are answered, and none goes over the connector any more.
`

// faultRow is one line of the result.
type faultRow struct {
	Fault string `json:"fault"`
	// Times in milliseconds; nil where there is no such thing, or no limit.
	LostMs        float64  `json:"lost_ms"`
	DirectMs      *float64 `json:"direct_again_ms"`
	LimitLostMs   *float64 `json:"limit_lost_ms"`
	LimitDirectMs *float64 `json:"limit_direct_ms"`
	OK            bool     `json:"ok"`
	PacketsLost   int      `json:"packets_lost"`
	Of            int      `json:"of"`
	Runs          int      `json:"runs"`
	// AnchorLostMs and AnchorDirectMs are strongSwan mediation's under the same
	// fault.
	AnchorLostMs   *float64 `json:"anchor_lost_ms,omitempty"`
	AnchorDirectMs *float64 `json:"anchor_direct_again_ms,omitempty"`
	// Problems are what went wrong beside the figures.
	Problems []string `json:"problems,omitempty"`
}

func newFaultRow(name string, maxLost, maxDirect time.Duration) *faultRow {
	return &faultRow{Fault: name, LimitLostMs: limitMs(maxLost), LimitDirectMs: limitMs(maxDirect), OK: true}
}

// limitMs is nil for a negative duration.
func limitMs(d time.Duration) *float64 {
	if d < 0 {
		return nil
	}
	ms := inMs(d)
	return &ms
}

// add takes one run into account: of figures the worst counts.
func (r *faultRow) add(c e2e.Cost, ok bool) {
	r.Runs++
	r.OK = r.OK && ok
	r.LostMs = max(r.LostMs, inMs(c.Interrupted))
	if ms := limitMs(c.Direct); ms != nil && (r.DirectMs == nil || *ms > *r.DirectMs) {
		r.DirectMs = ms
	}
	r.PacketsLost += c.Lost
	r.Of += c.Sent
	if c.Problem != "" {
		r.Problems = append(r.Problems, c.Problem)
	}
}

// sideNames tell the two nodes of a pair apart.
var sideNames = [2]string{"controlling side", "controlled side"}

func runFaults(ctx context.Context, o faultOptions, out io.Writer) error {
	if o.runs < 1 {
		return fmt.Errorf("--runs: %d: want at least 1", o.runs)
	}
	anchors := measureAnchors(ctx, o)
	defer anchors.stop()
	rows, err := measureFaults(ctx, o)
	err = errors.Join(err, anchors.fill(rows), writeJSON(o.out, rows))
	fmt.Fprint(out, faultsExplained)
	printFaults(out, rows)
	if o.document != "" && err == nil {
		err = fillIn(o.document, map[string]string{"faults": faultsMarkdown(rows)})
	}
	if o.check {
		err = errors.Join(err, checkFaults(rows))
	}
	return err
}

// measureFaults leaves out what could not be measured, and says why.
func measureFaults(ctx context.Context, o faultOptions) (rows []*faultRow, err error) {
	add := func(name string, row *faultRow, failed error) {
		if failed != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", name, failed))
			return
		}
		rows = append(rows, row)
	}
	for _, f := range e2e.Faults() {
		if strings.Contains(f.Name, o.only) && ctx.Err() == nil {
			row, failed := measureFault(ctx, o, f)
			add(f.Name, row, failed)
		}
	}
	if strings.Contains(joinFault, o.only) && ctx.Err() == nil {
		row, failed := measureJoin(ctx, o)
		add(joinFault, row, failed)
	}
	return rows, err
}

// measureFault breaks a pair on each of its victims.
func measureFault(ctx context.Context, o faultOptions, f e2e.Fault) (*faultRow, error) {
	row := newFaultRow(f.Name, f.MaxLost, f.MaxDirect)
	for i := range o.runs {
		for _, victim := range f.Victims {
			cost, err := breakOnce(ctx, o, f, victim)
			if err != nil {
				return nil, err
			}
			slog.Info("fault", "name", f.Name, "run", i+1, "victim", sideNames[victim], "interrupted", cost.Interrupted,
				"direct", cost.Direct, "lost", cost.Lost, "of", cost.Sent, "ok", f.Within(cost), "problem", cost.Problem)
			row.add(cost, f.Within(cost))
		}
	}
	return row, nil
}

func breakOnce(ctx context.Context, o faultOptions, f e2e.Fault, victim int) (cost e2e.Cost, err error) {
	s, err := e2e.NewStage(ctx, o.cluster(), f.NATs, edgeLine)
	if s != nil {
		defer func() { err = errors.Join(err, o.close(s.Cluster, f.Name, err == nil && f.Within(cost))) }()
	}
	if err != nil {
		return cost, err
	}
	return f.Run(ctx, s, victim)
}

func (o faultOptions) cluster() e2e.ClusterOptions {
	return e2e.ClusterOptions{Bin: o.bin, LogLevel: "debug"}
}

// close closes a cluster, and keeps its logs if they may say what went wrong.
func (o faultOptions) close(c *e2e.Cluster, name string, ok bool) error {
	var err error
	if !ok && o.keepLogs != "" {
		err = keepLogs(c.Dir(), o.keepLogs, name)
	}
	return errors.Join(err, c.Close())
}

const (
	joinFault = "join: member online → first ping to every other member"
	joinLimit = 1500 * time.Millisecond
)

// measureJoin takes the time from the start of the agent's process: the time
// from its session with the rendezvous is shorter.
func measureJoin(ctx context.Context, o faultOptions) (*faultRow, error) {
	row := newFaultRow(joinFault, joinLimit, -1)
	for i := range o.runs {
		cost, err := joinOnce(ctx, o)
		if err != nil {
			return nil, err
		}
		slog.Info("fault", "name", joinFault, "run", i+1, "from start", cost.Interrupted, "from online", cost.Direct)
		cost.Direct = -1
		row.add(cost, cost.Interrupted <= joinLimit)
	}
	return row, nil
}

func joinOnce(ctx context.Context, o faultOptions) (cost e2e.Cost, err error) {
	j, err := e2e.NewJoin(ctx, o.cluster(), edgeLine)
	if j != nil {
		defer func() {
			err = errors.Join(err, o.close(j.Cluster, "join", err == nil && cost.Interrupted <= joinLimit))
		}()
	}
	if err != nil {
		return cost, err
	}
	return j.Run(ctx)
}

func checkFaults(rows []*faultRow) error {
	var missed []error
	for _, r := range rows {
		if !r.OK {
			missed = append(missed, fmt.Errorf("%s: not within its limits", r.Fault))
		}
	}
	return errors.Join(missed...)
}
