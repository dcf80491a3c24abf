// Package doctor finds out what keeps this machine from being a good node, and
// says how to mend it: charon and its port, ESP, firewalls, routes and policies,
// certificates and clock, the ways to the rendezvous.
//
// Facts are gathered at the edge, each group by itself and within a bounded time;
// what they mean is decided by pure functions of them. Nothing is changed on the
// machine, and neither charon nor the agent is disturbed.
//
// Linux only; without root most facts are not to be had, and the checks say so.
package doctor

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// ID names a check; it is stable.
type ID string

// Verdict is what a check comes to.
type Verdict string

// Verdicts.
const (
	OK      Verdict = "ok"
	Warn    Verdict = "warn" // works, but not always or not well
	Fail    Verdict = "fail" // tunnels fail until it is mended
	Skipped Verdict = "skipped"
)

// Finding is the outcome of a check. Found, Means and Mend are texts for people.
type Finding struct {
	ID      ID      `json:"id" yaml:"id"`
	Title   string  `json:"title" yaml:"title"`
	Verdict Verdict `json:"verdict" yaml:"verdict"`
	// Found is what is there; of a skipped check, why it could not be done.
	Found string `json:"found" yaml:"found"`
	// Means is what follows from it, and Mend are commands and configuration that
	// change it: empty where all is well.
	Means string   `json:"means,omitempty" yaml:"means,omitempty"`
	Mend  []string `json:"mend,omitempty" yaml:"mend,omitempty"`
}

// Report is the outcome of a run.
type Report struct {
	Findings []Finding `json:"checks" yaml:"checks"`
	// Counts are how many checks came to which verdict.
	Counts map[Verdict]int `json:"counts" yaml:"counts"`
	// TookMs is how long it took, in milliseconds.
	TookMs int64 `json:"tookMs" yaml:"tookMs"`
}

// Entry is a check as the catalogue lists it.
type Entry struct {
	ID    ID     `json:"id" yaml:"id"`
	Title string `json:"title" yaml:"title"`
	// About says what is looked at.
	About string `json:"about" yaml:"about"`
}

// Options say what to look at.
type Options struct {
	// Config is the path of agent.yaml. There need not be one.
	Config string
	// Only are the checks to do; empty for all.
	Only []ID
	// Version is this program's, for comparison with the running agent's.
	Version string
}

// Catalogue lists all checks in their order.
func Catalogue() []Entry {
	var out []Entry
	for _, c := range checks {
		out = append(out, Entry{c.id, c.title, c.about})
	}
	return out
}

// Find says which check is meant.
func Find(name string) (ID, error) {
	var ids []ID
	for _, c := range checks {
		if string(c.id) == name {
			return c.id, nil
		}
		ids = append(ids, c.id)
	}
	return "", fmt.Errorf("no check %q: want one of %v", name, ids)
}

// Run does the checks. What cannot be found out is a finding as well: it has no
// errors.
func Run(ctx context.Context, o Options) Report {
	began := time.Now()
	var chosen []check
	for _, c := range checks {
		if len(o.Only) == 0 || slices.Contains(o.Only, c.id) {
			chosen = append(chosen, c)
		}
	}
	facts := gather(ctx, o, chosen)
	r := Report{Counts: map[Verdict]int{}}
	for _, c := range chosen {
		f := c.judge(&facts)
		f.ID, f.Title = c.id, c.title
		r.Findings = append(r.Findings, f)
		r.Counts[f.Verdict]++
	}
	r.TookMs = time.Since(began).Milliseconds()
	return r
}

// ok is a finding that needs no words but what was found.
func ok(format string, args ...any) Finding {
	return Finding{Verdict: OK, Found: fmt.Sprintf(format, args...)}
}

func skipped(format string, args ...any) Finding {
	return Finding{Verdict: Skipped, Found: fmt.Sprintf(format, args...)}
}

// problem is a finding of a verdict; what it means and how it is mended follow by
// the methods below.
func problem(v Verdict, format string, args ...any) Finding {
	return Finding{Verdict: v, Found: fmt.Sprintf(format, args...)}
}

func (f Finding) meaning(format string, args ...any) Finding {
	f.Means = fmt.Sprintf(format, args...)
	return f
}

// mend adds a step, all of which are to be done, in this order.
func (f Finding) mend(format string, args ...any) Finding {
	f.Mend = append(slices.Clip(f.Mend), fmt.Sprintf(format, args...))
	return f
}
