package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
)

// figure is one line of the benchmark's result.
type figure struct {
	What string  `json:"what"`
	Unit string  `json:"unit"`
	Ours float64 `json:"ours"`
	// Anchor is strongSwan mediation's value, nil where there is none.
	Anchor *float64 `json:"anchor"`
	// Ratio is Ours over Anchor.
	Ratio *float64 `json:"ratio"`
	// target is the most that Ours may be, 0 for no such thing.
	target float64
}

// against makes a figure that is compared.
func against(what, unit string, ours, anchor, target float64) figure {
	ratio := round(ours/anchor, 3)
	return figure{What: what, Unit: unit, Ours: ours, Anchor: &anchor, Ratio: &ratio, target: target}
}

// verdict compares a figure with its target, in words.
func (f figure) verdict() string {
	switch {
	case f.target == 0:
		return ""
	case f.Ours <= f.target:
		return fmt.Sprintf("met (at most %g)", f.target)
	}
	return fmt.Sprintf("MISSED (at most %g)", f.target)
}

func printFigures(out io.Writer, figures []figure) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "what\tunit\tours\tmediation\tratio\ttarget")
	for _, f := range figures {
		anchor, ratio := "", ""
		if f.Anchor != nil {
			anchor, ratio = fmt.Sprintf("%g", *f.Anchor), fmt.Sprintf("%.2f", *f.Ratio)
		}
		fmt.Fprintf(w, "%s\t%s\t%g\t%s\t%s\t%s\n", f.What, f.Unit, f.Ours, anchor, ratio, f.verdict())
	}
	w.Flush()
}

// writeJSON writes v to a file for people and programs, making its folder.
func writeJSON(path string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return writeText(path, string(text)+"\n")
}

// writeText writes a file, making its folder.
func writeText(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text), 0o644)
}

// median is the middle value, or the mean of the two middle ones, to a tenth.
func median(values []float64) float64 {
	v := slices.Sorted(slices.Values(values))
	if len(v) == 0 {
		return math.NaN()
	}
	return round((v[(len(v)-1)/2]+v[len(v)/2])/2, 1)
}

// p95 is the nearest rank: the least value that 95 of 100 do not exceed. Of
// fewer than 20 values that is the greatest.
func p95(values []float64) float64 {
	v := slices.Sorted(slices.Values(values))
	if len(v) == 0 {
		return math.NaN()
	}
	return v[int(math.Ceil(0.95*float64(len(v))))-1]
}

func round(x float64, digits int) float64 {
	scale := math.Pow10(digits)
	return math.Round(x*scale) / scale
}
