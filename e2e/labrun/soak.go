package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/bodkin-net/bodkin/e2e"
	"github.com/bodkin-net/bodkin/e2e/lab"
)

const (
	// soakLook is between looks at charons, rules and processes, soakJudge
	// between those at the pings.
	soakLook  = 5 * time.Second
	soakJudge = 2 * time.Second
	// soakRest is how long the network is left alone at the end.
	soakRest = 20 * time.Second
)

// soakOptions are the command line of soak.
type soakOptions struct {
	bin, out, logs string
	minutes        float64
	seed           uint64
}

func soakCommand() *cobra.Command {
	var o soakOptions
	cmd := &cobra.Command{
		Use: "soak", Short: "Break things at random for a while, and check all the time what must always hold",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if os.Geteuid() != 0 {
				return lab.ErrNotRoot
			}
			if o.minutes <= 0 {
				return fmt.Errorf("--minutes %g: want more than 0", o.minutes)
			}
			if o.seed == 0 {
				o.seed = rand.Uint64()>>32 + 1
			}
			return runSoak(cmd.Context(), o, cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.bin, "bin", "build/bodkin", "the bodkin binary")
	flags.StringVar(&o.out, "out", "build/soak.json", "where the results go")
	flags.StringVar(&o.logs, "logs", "", "directory that all logs are copied to when something was wrong, empty for none")
	flags.Float64Var(&o.minutes, "minutes", 10, "how long")
	flags.Uint64Var(&o.seed, "seed", 0, "draws the faults; 0 for another one each time")
	return cmd
}

// soakReport is what a run came to.
type soakReport struct {
	Seed    uint64  `json:"seed"`
	Minutes float64 `json:"minutes"`
	Faults  int     `json:"faults"`
	// Log is the faults as they happened.
	Log   []soakLogged `json:"log"`
	Pings int          `json:"pings"`
	Lost  int          `json:"lost"`
	// Unexplained are those of Lost that no fault had to do with.
	Unexplained int           `json:"unexplained"`
	Growth      []soakGrowth  `json:"growth"`
	Violations  []violation   `json:"violations"`
	OK          bool          `json:"ok"`
	took        time.Duration // of all
}

type soakLogged struct {
	AtS  float64 `json:"at_s"`
	What string  `json:"what"`
}

// soakGrowth is a process that lived long, in the first third of its life and
// in the last.
type soakGrowth struct {
	Node     string     `json:"node"`
	Program  string     `json:"program"`
	LivedS   float64    `json:"lived_s"`
	MemoryMB [2]float64 `json:"memory_mb"`
	Threads  [2]float64 `json:"threads"`
	Files    [2]float64 `json:"descriptors"`
}

func runSoak(ctx context.Context, o soakOptions, out io.Writer) (err error) {
	fmt.Fprintf(out, "seed %d: to repeat, labrun soak --minutes %g --seed %d\n", o.seed, o.minutes, o.seed)
	net, err := openSoak(ctx, o.bin)
	if net != nil {
		defer func() {
			if err != nil && o.logs != "" {
				err = errors.Join(err, keepLogs(net.Dir(), o.logs, fmt.Sprintf("soak-%d", o.seed)))
			}
			err = errors.Join(err, net.close())
		}()
	}
	if err != nil {
		return err
	}
	length := time.Duration(o.minutes * float64(time.Minute))
	plan := soakPlan(rand.New(rand.NewPCG(o.seed, 0)), length, len(soakNATs))
	s := &soak{net: net, out: out, streams: map[nodePair]*e2e.Stream{}, start: time.Now(), told: map[string]bool{}}
	defer s.stopStreams()
	for _, p := range net.pairs() {
		if s.streams[soakPair(p)], err = net.nodes[p[0]].StartStream(ctx, net.nodes[p[1]]); err != nil {
			return err
		}
	}
	if err := s.run(ctx, plan, length); err != nil {
		return err
	}
	report := s.report(o)
	s.print(report)
	if err := writeJSON(o.out, report); err != nil {
		return err
	}
	if !report.OK {
		return fmt.Errorf("%d violations", len(report.Violations))
	}
	return nil
}

// soak is one run. The fields below mu are guarded by it.
type soak struct {
	net     *soakNet
	out     io.Writer
	streams map[nodePair]*e2e.Stream
	start   time.Time

	mu         sync.Mutex
	faults     []soakFault
	samples    []soakSample
	log        []soakLogged
	violations []violation
	told       map[string]bool
}

func (s *soak) now() time.Duration { return time.Since(s.start) }

// run does all of the plan's faults, and checks meanwhile.
func (s *soak) run(ctx context.Context, plan []soakStep, length time.Duration) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	checking, stopChecking := context.WithCancel(ctx)
	var faults, checks sync.WaitGroup
	checks.Go(func() { every(checking, soakLook, func() { s.look(checking) }) })
	checks.Go(func() { every(checking, soakJudge, s.judge) })
	for _, step := range plan {
		faults.Go(func() {
			if err := s.do(ctx, step); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("%s: %w", step, err))
			}
		})
	}
	faults.Wait()
	_ = pause(ctx, max(soakRest, length-s.now()))
	s.dissolve(ctx)
	stopChecking()
	checks.Wait()
	s.judge()
	return context.Cause(ctx)
}

func every(ctx context.Context, d time.Duration, f func()) {
	for pause(ctx, d) == nil {
		f()
	}
}

// do does one fault in its time.
func (s *soak) do(ctx context.Context, step soakStep) error {
	if err := pause(ctx, step.at-s.now()); err != nil {
		return err
	}
	pairs, err := s.net.befallen(ctx, step)
	if err != nil {
		return err
	}
	s.mu.Lock()
	i := len(s.faults)
	// It begins with what is done for it: a killed process is gone before kill
	// has returned.
	s.faults = append(s.faults, soakFault{kind: step.kind, text: step.String(), begun: s.now(), over: stillLasts, pairs: pairs})
	s.tell(step.String())
	s.mu.Unlock()
	undo, err := s.net.begin(ctx, step)
	if err != nil {
		return err
	}
	if undo != nil {
		if err := pause(ctx, step.until-s.now()); err != nil {
			return err
		}
		if err := undo(); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults[i].over = s.now()
	return nil
}

// tell logs and prints; s.mu is held.
func (s *soak) tell(what string) {
	at := s.now().Seconds()
	s.log = append(s.log, soakLogged{round(at, 1), what})
	fmt.Fprintf(s.out, "%7.1f s  %s\n", at, what)
}

// look takes a sample.
func (s *soak) look(ctx context.Context) {
	sample := s.net.sample(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	sample.at = s.now()
	s.samples = append(s.samples, sample)
}

// judge looks for what is wrong so far, and tells what is new.
func (s *soak) judge() {
	timelines := map[nodePair]e2e.Timeline{}
	for pair, stream := range s.streams {
		timelines[pair] = stream.Decided(s.start)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []violation
	for pair, t := range timelines {
		all := silences(pair, t, s.start)
		if v, wrong := judgeTrickle(all, s.faults); wrong {
			found = append(found, s.first(fmt.Sprint("trickle", pair, v.At), v)...)
		}
		for _, quiet := range all {
			if v, wrong := judgeSilence(quiet, s.faults); wrong {
				found = append(found, s.first(fmt.Sprint(pair, quiet.from), v)...)
			}
		}
		if v, wrong := judgeExpulsion(pair, t, s.start, s.faults); wrong {
			found = append(found, s.first(v.What, v)...)
		}
	}
	for _, v := range judgeSamples(s.samples) {
		found = append(found, s.first(fmt.Sprint(v.At, v.What), v)...)
	}
	for _, v := range found {
		s.violations = append(s.violations, v)
		fmt.Fprintf(s.out, "%7.1f s  WRONG: %s\n", v.AtS, v.What)
	}
}

// first is the violation, unless its key has been told already.
func (s *soak) first(key string, v violation) []violation {
	if s.told[key] {
		return nil
	}
	s.told[key] = true
	return []violation{v}
}

// dissolve ends the community: nothing of its tunnels may be left.
func (s *soak) dissolve(ctx context.Context) {
	s.stopStreams()
	s.mu.Lock()
	s.tell("the community is deleted")
	s.mu.Unlock()
	s.net.mu.Lock()
	s.net.members = nil
	err := s.net.Delete(ctx, soakCommunity)
	s.net.mu.Unlock()
	if err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.violations = append(s.violations, newViolation(s.now(), "the community cannot be deleted: "+err.Error()))
		return
	}
	_ = pause(ctx, strayTimeout+2*soakLook)
}

func (s *soak) stopStreams() {
	var stopping sync.WaitGroup
	for _, stream := range s.streams {
		stopping.Go(func() { stream.Stop() })
	}
	stopping.Wait()
}

func (s *soak) report(o soakOptions) soakReport {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := soakReport{Seed: o.seed, Minutes: o.minutes, Faults: len(s.faults), Log: s.log, Violations: s.violations, Growth: []soakGrowth{}, took: s.now()}
	for pair, stream := range s.streams {
		t := stream.Since(s.start)
		r.Pings, r.Lost = r.Pings+len(t), r.Lost+t.Lost()
		r.Unexplained += unexplainedLoss(silences(pair, t, s.start), s.faults)
	}
	for _, g := range grown(s.samples) {
		r.Growth = append(r.Growth, soakGrowth{g.node, g.program, round(g.lived.Seconds(), 0), g.memoryMB, g.threads, g.files})
		r.Violations = append(r.Violations, judgeGrowth(g, s.now())...)
	}
	slices.SortFunc(r.Violations, func(a, b violation) int { return int(a.At - b.At) })
	if r.Violations == nil {
		r.Violations = []violation{}
	}
	r.OK = len(r.Violations) == 0
	return r
}

func (s *soak) print(r soakReport) {
	fmt.Fprintf(s.out, "\n%d faults in %v, seed %d; %d of %d pings lost, the time in which nothing could pass included; %d with no fault near.\n",
		r.Faults, r.took.Round(time.Second), r.Seed, r.Lost, r.Pings, r.Unexplained)
	for _, g := range r.Growth {
		fmt.Fprintf(s.out, "%s of %s, %g s: %g to %g MB, %g to %g threads, %g to %g descriptors\n",
			g.Program, g.Node, g.LivedS, g.MemoryMB[0], g.MemoryMB[1], g.Threads[0], g.Threads[1], g.Files[0], g.Files[1])
	}
	for _, v := range r.Violations {
		fmt.Fprintf(s.out, "WRONG at %.1f s: %s\n", v.AtS, v.What)
	}
	if r.OK {
		fmt.Fprintln(s.out, "Nothing was wrong.")
	}
}
