package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bodkin-net/bodkin/agent/doctor"
)

// doctorTimeout bounds the whole run: its parts are bounded by less.
const doctorTimeout = 10 * time.Second

func newDoctor() *cobra.Command {
	var (
		o             output
		config        string
		only          []string
		list, verbose bool
	)
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check what can be wrong on this machine, and say how to mend it",
		Long: "Doctor looks at all that a node needs: charon and its port, ESP, the host's firewall, routes,\n" +
			"IPsec policies, certificates and clock, and the ways to the rendezvous. It works whether the\n" +
			"agent runs or not, before a machine has joined, too, on edges and on connectors; it changes\n" +
			"nothing and disturbs neither charon nor the agent. Run it as root.\n\n" +
			"Exit code 0 if all is well or there are warnings only, 5 if there are problems.",
		Example: "  sudo bodkin doctor\n  sudo bodkin doctor --check rendezvous-udp --check host-firewall -v\n" +
			"  bodkin doctor --list\n  sudo bodkin doctor -o json | jq '.checks[] | select(.verdict == \"fail\")'",
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if list {
				return o.print(cmd, doctor.Catalogue(), printCatalogue)
			}
			options := doctor.Options{Config: config, Version: buildVersion()}
			for _, name := range only {
				id, err := doctor.Find(name)
				if err != nil {
					return usageError{fmt.Errorf("--check: %w", err)}
				}
				options.Only = append(options.Only, id)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), doctorTimeout)
			defer cancel()
			report := doctor.Run(ctx, options)
			if err := o.print(cmd, report, func(p *printer) { printDoctor(p, report, verbose) }); err != nil {
				return err
			}
			if report.Counts[doctor.Fail] > 0 {
				return errProblems
			}
			return nil
		},
	}
	o.register(cmd)
	flags := cmd.Flags()
	flags.StringVar(&config, "config", "/etc/bodkin/agent.yaml", "the agent's configuration; there need not be one")
	flags.StringArrayVar(&only, "check", nil, "do this check only; may be given several times")
	flags.BoolVar(&list, "list", false, "list the checks there are")
	flags.BoolVarP(&verbose, "verbose", "v", false, "say what each check looks at")
	completeFlag(cmd, "check", checkNames())
	return cmd
}

func checkNames() (names []string) {
	for _, c := range doctor.Catalogue() {
		names = append(names, string(c.ID))
	}
	return names
}

func printCatalogue(p *printer) {
	t := p.table("CHECK", "TITLE", "LOOKS AT")
	for _, c := range doctor.Catalogue() {
		t.row(string(c.ID), c.Title, c.About)
	}
	t.end()
}

// marks are how verdicts show, beside their word.
var marks = map[doctor.Verdict]cell{
	doctor.OK:      {"✓ ok", good},
	doctor.Warn:    {"! warning", warn},
	doctor.Fail:    {"✗ problem", bad},
	doctor.Skipped: {"- skipped", faint},
}

// Widths of the columns of marks and of checks' names: the longest of each.
const (
	markWidth  = 9
	checkWidth = 15
)

func printDoctor(p *printer, r doctor.Report, verbose bool) {
	about := map[doctor.ID]string{}
	for _, c := range doctor.Catalogue() {
		about[c.ID] = c.About
	}
	indent := strings.Repeat(" ", markWidth+columnGap)
	for _, f := range r.Findings {
		m := marks[f.Verdict]
		// Padded outside of the style: its codes have no width.
		pad := strings.Repeat(" ", markWidth-len([]rune(m.text))+columnGap)
		p.printf("%s%s%-*s  %s\n", p.styled(m.text, m.style), pad, checkWidth, f.ID, f.Found)
		if verbose {
			p.printf("%s%s\n", indent, p.styled("looks at: "+about[f.ID], faint))
		}
		if f.Means != "" {
			p.printf("%smeans: %s\n", indent, f.Means)
		}
		for i, step := range f.Mend {
			label := "mend:  "
			if i > 0 {
				label = "       "
			}
			p.printf("%s%s%s\n", indent, label, p.styled(step, bold))
		}
	}
	p.printf("\n%s\n", summary(r))
}

// summary is the last line.
func summary(r doctor.Report) string {
	s := fmt.Sprintf("%s, %s in %s", plural(r.Counts[doctor.Fail], "problem"), plural(r.Counts[doctor.Warn], "warning"), plural(len(r.Findings), "check"))
	if n := r.Counts[doctor.Skipped]; n > 0 {
		s += fmt.Sprintf(", %d of them skipped", n)
	}
	return s + fmt.Sprintf(" (%.1f s)", float64(r.TookMs)/1000)
}
