package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
)

// words are the cells of a row, in the order of faultHeadings.
func (r *faultRow) words() []string {
	verdict := "met"
	if !r.OK {
		verdict = "MISSED"
	}
	anchor := "–"
	if r.AnchorLostMs != nil {
		anchor = msWords(r.AnchorLostMs) + ", " + msWords(r.AnchorDirectMs)
	}
	return []string{
		r.Fault, msWords(&r.LostMs), msWords(r.LimitLostMs), msWords(r.DirectMs), msWords(r.LimitDirectMs),
		fmt.Sprintf("%d of %d", r.PacketsLost, r.Of), fmt.Sprint(r.Runs), verdict, anchor,
	}
}

var faultHeadings = []string{
	"fault", "interrupted", "at most", "direct again", "within", "pings lost in all", "runs", "limits", "mediation: interrupted, direct again",
}

func msWords(ms *float64) string {
	switch {
	case ms == nil:
		return "–"
	case *ms >= 10_000:
		return fmt.Sprintf("%.0f s", *ms/1000)
	}
	return fmt.Sprintf("%.0f ms", *ms)
}

func printFaults(out io.Writer, rows []*faultRow) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, strings.Join(faultHeadings, "\t"))
	for _, r := range rows {
		fmt.Fprintln(w, strings.Join(r.words(), "\t"))
	}
	w.Flush()
	for _, r := range rows {
		for _, p := range r.Problems {
			fmt.Fprintf(out, "%s: %s\n", r.Fault, p)
		}
	}
}

// faultsMarkdown is the same table for the documentation.
func faultsMarkdown(rows []*faultRow) string {
	var b strings.Builder
	line := func(cells []string) { b.WriteString("| " + strings.Join(cells, " | ") + " |\n") }
	line(faultHeadings)
	b.WriteString(strings.Repeat("|---", len(faultHeadings)) + "|\n")
	for _, r := range rows {
		line(r.words())
	}
	return b.String()
}

// keepLogs copies a lab's logs to a directory of their own under to.
func keepLogs(from, to, name string) error {
	logs, err := filepath.Glob(filepath.Join(from, "*", "*.log"))
	if err != nil {
		return err
	}
	name = strings.Map(func(r rune) rune {
		if strings.ContainsRune(" /→:", r) {
			return '-'
		}
		return r
	}, name)
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(to, name+"-")
	if err != nil {
		return err
	}
	for _, path := range logs {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := writeText(filepath.Join(dir, filepath.Base(filepath.Dir(path)), filepath.Base(path)), string(text)); err != nil {
			return err
		}
	}
	return nil
}
