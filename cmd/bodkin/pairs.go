package main

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bodkin-net/bodkin/punch/nat"
	"github.com/bodkin-net/bodkin/rendezvous"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// pairStates are what --state takes: the states of a pair, and what any of them
// but direct may be beside.
var pairStates = []string{string(rendezvous.Direct), string(rendezvous.Relayed), string(rendezvous.Down), "punching"}

func newPairs() *cobra.Command {
	var server rendezvousFlags
	var o output
	var state, node string
	var limit int
	cmd := &cobra.Command{
		Use:   "pairs",
		Short: "List the pairs of nodes, and why those are not direct that are not",
		Example: "  bodkin pairs\n  bodkin pairs --state relayed\n  bodkin pairs --node beijing.edge1 -o wide\n" +
			"  bodkin pairs -o json | jq -r '.pairs[] | select(.state == \"down\") | .id'",
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if state != "" && !slices.Contains(pairStates, state) {
				return usageError{fmt.Errorf("--state %q: want %s", state, orList(pairStates))}
			}
			c, err := server.client()
			if err != nil {
				return err
			}
			query := url.Values{}
			for key, value := range map[string]string{"state": state, "node": node, "limit": strconv.Itoa(limit)} {
				if value != "" && value != "0" {
					query.Set(key, value)
				}
			}
			var list rendezvous.PairList
			if err := c.get(cmd.Context(), "/api/v1/pairs", query, &list); err != nil {
				return err
			}
			return o.print(cmd, list, func(p *printer) { printPairs(p, list.Pairs) })
		},
	}
	server.register(cmd)
	o.register(cmd)
	cmd.Flags().StringVar(&state, "state", "", "only pairs that are "+orList(pairStates))
	cmd.Flags().StringVar(&node, "node", "", "only pairs of this node")
	cmd.Flags().IntVar(&limit, "limit", 0, "at most so many (0: all)")
	completeFlag(cmd, "state", pairStates)
	completeFlagWith(cmd, "node", server.nodeNames)
	return cmd
}

func printPairs(p *printer, pairs []rendezvous.PairView) {
	if len(pairs) == 0 {
		p.printf("no pairs\n")
		return
	}
	t := p.table("NODE", "NODE", "STATE", "OVER", "SINCE", "TIME TO DIRECT", "+ATTEMPTS", "+STRATEGY", "+EXPECTED", "+COMMUNITIES", "REASON")
	count := map[rendezvous.State]int{}
	for _, v := range pairs {
		count[v.State]++
		took, reason := "", v.Reason
		if v.TimeToDirectMs > 0 {
			took = fmt.Sprintf("%d ms", v.TimeToDirectMs)
		}
		if v.Punching && !strings.HasPrefix(reason, "punching") {
			reason = strings.TrimSuffix("punching: "+reason, ": ")
		}
		t.row(v.Nodes[0], v.Nodes[1], stateCell(string(v.State)), over(v), p.ago(v.Since), took, v.Attempts, v.Strategy, v.Verdict.Expect,
			strings.Join(v.Communities, " "), reason)
	}
	t.end()
	p.printf("\n%s: %d direct, %d relayed, %d down\n", plural(len(pairs), "pair"),
		count[rendezvous.Direct], count[rendezvous.Relayed], count[rendezvous.Down])
}

// over is what a pair's traffic goes over: the path's kinds as its two ends see
// them, or the connector.
func over(v rendezvous.PairView) string {
	if v.State == rendezvous.Relayed {
		return string(v.Relay)
	}
	var kinds []string
	for _, node := range v.Nodes {
		if path, ok := v.Paths[node]; ok && path.Kind != "" && !slices.Contains(kinds, string(path.Kind)) {
			kinds = append(kinds, string(path.Kind))
		}
	}
	return strings.Join(kinds, "/")
}

func newPair() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "pair",
		Short:   "Show what has been tried between two nodes",
		Example: "  bodkin pair show beijing.edge1 beijing.edge2",
		Args:    args(cobra.NoArgs),
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var server rendezvousFlags
	server.register(cmd)
	cmd.AddCommand(newPairShow(&server))
	return cmd
}

// shownAttempts are those that pair show shows unless asked for more: the last
// ones mostly failed for the same reason as those before.
const shownAttempts = 3

func newPairShow(server *rendezvousFlags) *cobra.Command {
	var o output
	attempts := shownAttempts
	cmd := &cobra.Command{
		Use:   "show NODE NODE",
		Short: "Show a pair and its attempts: candidates, steps of both sides, verdict, reason",
		Long: "Show prints a pair's state and its last attempts, newest first. The steps of both sides stand in one\n" +
			"timeline: the first column is the time since the rendezvous gave the order, in milliseconds.\n" +
			"A name may lack its cluster where only one node is called so.",
		Example:           "  bodkin pair show beijing.edge1 beijing.edge2\n  bodkin pair show beijing.edge1 beijing.edge2 --attempts 0 -o yaml",
		Args:              args(cobra.ExactArgs(2)),
		ValidArgsFunction: server.completePair,
		RunE: func(cmd *cobra.Command, nodes []string) error {
			c, err := server.client()
			if err != nil {
				return err
			}
			if nodes, err = c.inFull(cmd.Context(), nodes); err != nil {
				return err
			}
			var d rendezvous.PairDetail
			if err := c.get(cmd.Context(), pairPath(nodes), nil, &d); err != nil {
				return err
			}
			return o.print(cmd, d, func(p *printer) { printPairDetail(p, d, attempts) })
		},
	}
	o.register(cmd)
	cmd.Flags().IntVarP(&attempts, "attempts", "n", shownAttempts, "how many attempts to show, 0 for all there are")
	return cmd
}

// inFull adds the cluster to names of nodes that lack it.
func (c *client) inFull(ctx context.Context, names []string) ([]string, error) {
	if !slices.ContainsFunc(names, func(name string) bool { return !strings.Contains(name, ".") }) {
		return names, nil
	}
	var known rendezvous.NodeList
	if err := c.get(ctx, "/api/v1/nodes", nil, &known); err != nil {
		return nil, err
	}
	out := make([]string, len(names))
	for i, name := range names {
		var err error
		if out[i], err = nameInFull(name, known.Nodes); err != nil {
			return nil, usageError{err}
		}
	}
	return out, nil
}

// nameInFull is the name of the one node that is called so in its cluster. What
// nobody is called stays as it is: the rendezvous knows more names than those of
// nodes.
func nameInFull(name string, known []rendezvous.NodeHistory) (string, error) {
	var found []string
	for _, n := range known {
		switch full := string(n.Name); {
		case full == name:
			return name, nil
		case !strings.Contains(name, ".") && strings.HasSuffix(full, "."+name):
			found = append(found, full)
		}
	}
	switch len(found) {
	case 0:
		return name, nil
	case 1:
		return found[0], nil
	}
	return "", fmt.Errorf("%s: want %s", name, orList(found))
}

func pairPath(nodes []string) string { return "/api/v1/pairs" + segment(nodes[0]) + segment(nodes[1]) }

func printPairDetail(p *printer, d rendezvous.PairDetail, show int) {
	printPair(p, d.Pair)
	shown := d.Attempts
	if show > 0 && len(shown) > show {
		shown = shown[:show]
	}
	for _, a := range shown {
		p.printf("\n")
		printAttempt(p, a)
	}
	if more := len(d.Attempts) - len(shown); more > 0 {
		p.printf("\n%s before: --attempts 0\n", plural(more, "attempt"))
	}
	if len(d.Attempts) == 0 && d.Pair.Verdict.Strategy != "public" {
		p.printf("\nno attempts yet\n")
	}
}

func printPair(p *printer, v rendezvous.PairView) {
	line := func(name, format string, args ...any) { p.printf("%-12s%s\n", name, fmt.Sprintf(format, args...)) }
	line("pair", "%s and %s", v.Nodes[0], v.Nodes[1])
	state := p.styled(string(v.State), stateStyles[string(v.State)])
	if v.Relay != "" && v.State == rendezvous.Relayed {
		state += " through " + string(v.Relay)
	}
	line("state", "%s, since %s", state, p.ago(v.Since))
	if v.Reason != "" {
		line("reason", "%s", v.Reason)
	}
	for _, node := range v.Nodes {
		if path, ok := v.Paths[node]; ok && path.Remote.IsValid() {
			line("path", "%s: %s, from %s", node, remote(path), bracketed(path.Local))
		}
	}
	expected := string(v.Verdict.Expect)
	if v.Verdict.Strategy != "" && v.Verdict.Expect == nat.Direct {
		expected += " by " + string(v.Verdict.Strategy)
	}
	if v.Verdict.Reason != "" {
		expected += ": " + v.Verdict.Reason
	}
	line("expected", "%s", expected)
	line("communities", "%s", dash(strings.Join(v.Communities, " ")))
	if !v.LastDirect.IsZero() && v.State != rendezvous.Direct {
		line("last direct", "%s", p.ago(v.LastDirect))
	}
	if v.TimeToDirectMs > 0 {
		line("took", "%d ms", v.TimeToDirectMs)
	}
	switch {
	case v.Punching:
		line("next", "punching")
	case v.RetryAt.After(p.now):
		line("next", "in %s (bodkin punch %s %s does it now)", v.RetryAt.Sub(p.now).Round(time.Second), v.Nodes[0], v.Nodes[1])
	}
}

func remote(path wire.Path) string {
	return strings.TrimSpace(string(path.Kind) + " " + bracketed(path.Remote))
}

var outcomeStyles = map[rendezvous.AttemptOutcome]style{
	rendezvous.AttemptDirect: good, rendezvous.AttemptFailed: bad, rendezvous.AttemptCancelled: warn,
}

func printAttempt(p *printer, a rendezvous.AttemptView) {
	p.printf("%s  %s  %s: %s", p.styled("attempt "+string(a.ID), bold), a.At.UTC().Format(time.RFC3339),
		attemptWay(a), p.styled(string(a.Outcome), outcomeStyles[a.Outcome]))
	if a.Outcome != rendezvous.AttemptRunning {
		p.printf(" after %d ms", a.ElapsedMs)
	}
	p.printf("\n")
	if a.Reason != "" {
		p.printf("  %s\n", a.Reason)
	}
	if a.Hopeless != "" {
		p.printf("  cut short, for it was not expected to succeed")
		if !strings.Contains(a.Reason, a.Hopeless) {
			p.printf(": %s", a.Hopeless)
		}
		p.printf("\n")
	} else if a.Verdict.Reason != "" {
		p.printf("  expected: %s, %s\n", a.Verdict.Expect, a.Verdict.Reason)
	}
	x, y := a.Pair.Nodes()
	names := []wire.NodeName{wire.NodeName(x), wire.NodeName(y)}
	for _, name := range names {
		if side := a.Sides[name]; side != nil {
			printSide(p, name, side)
		}
	}
	printTimeline(p, a, names)
}

// attemptWay is the strategy of an attempt, unless it was one for want of a better.
func attemptWay(a rendezvous.AttemptView) string {
	if a.Hopeless != "" {
		return "no path expected"
	}
	return cmp.Or(string(a.Strategy), "ice")
}

func printSide(p *printer, name wire.NodeName, s *rendezvous.AttemptSide) {
	p.printf("  %s: %s", name, s.Role)
	if s.Part != "" {
		p.printf(", %s", orElse(partWords[s.Part], string(s.Part)))
	}
	p.printf(", NAT %s", natShort(s.NAT, firstAddr(s.Candidates)))
	if s.Packets > 0 {
		p.printf(", %s sent", plural(s.Packets, "packet"))
	}
	p.printf("\n")
	var candidates []string
	for _, c := range s.Candidates {
		candidates = append(candidates, string(c.Kind)+" "+bracketed(c.Addr))
	}
	p.printf("    candidates  %s\n", dash(strings.Join(candidates, ", ")))
	switch {
	case s.Outcome == "":
		p.printf("    result      has not told\n")
	case s.Path.Remote.IsValid():
		p.printf("    result      %s over %s after %d ms\n", s.Outcome, remote(s.Path), s.ElapsedMs)
	default:
		p.printf("    result      %s after %d ms: %s\n", s.Outcome, s.ElapsedMs, s.Reason)
	}
}

var partWords = map[wire.ProbePart]string{wire.PartSearch: "searches", wire.PartOpen: "opens ports"}

func firstAddr(cs []wire.Candidate) netip.AddrPort {
	if len(cs) == 0 {
		return netip.AddrPort{}
	}
	return cs[0].Addr
}

// printTimeline puts the steps of both sides into one order of time. They are
// aligned by the delay of each session, so that a difference of a few
// milliseconds means nothing.
func printTimeline(p *printer, a rendezvous.AttemptView, names []wire.NodeName) {
	type moment struct {
		at   int64
		side int
		step wire.Step
	}
	var all []moment
	for i, name := range names {
		if s := a.Sides[name]; s != nil {
			for _, step := range s.Steps {
				if step.Kind == wire.StepFailed && step.Text == s.Reason {
					step.Text = "" // is told already
				}
				all = append(all, moment{s.OffsetMs + step.AtMs, i, step})
			}
		}
	}
	if len(all) == 0 {
		return
	}
	slices.SortStableFunc(all, func(x, y moment) int { return cmp.Compare(x.at, y.at) })
	t := p.table("    MS", string(names[0]), string(names[1]))
	for _, m := range all {
		at := fmt.Sprintf("%6d", m.at)
		text := cell{stepText(m.step), stepStyles[m.step.Kind]}
		if m.side == 0 {
			t.row(at, text, cell{text: " "})
		} else {
			t.row(at, cell{text: " "}, text)
		}
	}
	t.end()
}

var stepStyles = map[wire.StepKind]style{wire.StepNominated: good, wire.StepBytes: good, wire.StepHit: good, wire.StepFailed: bad}

// stepText is a step in words.
func stepText(s wire.Step) string {
	at := bracketed(s.Remote)
	words := map[wire.StepKind]string{
		wire.StepStart:     "starts",
		wire.StepOpeners:   "openers to " + at,
		wire.StepPorts:     "ports opened towards " + at,
		wire.StepSearch:    "search of a port of " + at + " begins",
		wire.StepCheck:     "first check to " + at,
		wire.StepHeard:     "first packet from " + at,
		wire.StepHit:       "found " + at,
		wire.StepNominated: "nominated " + at,
		wire.StepLoaded:    "charon has the connection",
		wire.StepIKE:       "IKE SA established",
		wire.StepChild:     "CHILD SAs installed",
		wire.StepBytes:     "bytes through the tunnel",
		wire.StepFailed:    "gives up",
	}
	text := cmp.Or(words[s.Kind], string(s.Kind))
	if s.Count > 1 {
		text = fmt.Sprintf("%d × %s", s.Count, text)
	}
	switch {
	case s.Kind == wire.StepHit && !s.Remote.IsValid() && s.Text != "": // found here, not there
		text = "found " + s.Text
	case s.Text != "":
		text += ": " + s.Text
	}
	return text
}
