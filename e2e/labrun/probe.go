package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/bodkin-net/bodkin/e2e"
)

const (
	// probeWithin is how soon a search for a port is to have found one.
	probeWithin = 10 * time.Second
	// probeTarget is the least share of runs in which it has.
	probeTarget = 0.95
)

// probeOptions are the part of the matrix' command line about searching.
type probeOptions struct {
	out  string
	runs int
}

// probeRun is one attempt between a symmetric and a port-restricted NAT.
type probeRun struct {
	A       string      `json:"a"`
	B       string      `json:"b"`
	Got     e2e.Outcome `json:"got"`
	Reason  string      `json:"reason,omitempty"`
	Ms      int64       `json:"ms"`
	Packets int         `json:"packets"`
}

// probing is what searching for a port takes. Times and packets are those of
// the runs that got through.
type probing struct {
	Runs          int        `json:"runs"`
	Within10s     int        `json:"within_10s"`
	Rate          float64    `json:"rate"`
	MedianMs      float64    `json:"median_ms"`
	P95Ms         float64    `json:"p95_ms"`
	MedianPackets float64    `json:"median_packets"`
	P95Packets    float64    `json:"p95_packets"`
	Each          []probeRun `json:"each"`
}

func summarise(runs []probeRun) probing {
	p := probing{Runs: len(runs), Each: runs}
	var ms, packets []float64
	for _, r := range runs {
		if r.Got != e2e.Direct {
			continue
		}
		if time.Duration(r.Ms)*time.Millisecond <= probeWithin {
			p.Within10s++
		}
		ms, packets = append(ms, float64(r.Ms)), append(packets, float64(r.Packets))
	}
	p.Rate = round(float64(p.Within10s)/float64(len(runs)), 3)
	if len(ms) > 0 { // JSON knows no NaN
		p.MedianMs, p.P95Ms = median(ms), p95(ms)
		p.MedianPackets, p.P95Packets = median(packets), p95(packets)
	}
	return p
}

// problem is nil when the target is met.
func (p probing) problem() error {
	if p.Rate >= probeTarget {
		return nil
	}
	return fmt.Errorf("%d of %d searches got through within %s, less than %g %%", p.Within10s, p.Runs, probeWithin, probeTarget*100)
}

func (p probing) String() string {
	return fmt.Sprintf("symmetric × port-restricted, %d runs, either way round: %d direct within %s (%g %%)\n"+
		"  time: median %g ms, p95 %g ms; packets of both sides: median %g, p95 %g",
		p.Runs, p.Within10s, probeWithin, round(100*p.Rate, 1), p.MedianMs, p.P95Ms, p.MedianPackets, p.P95Packets)
}

// markdown is the summary for the documentation.
func (p probing) markdown() string {
	return "| attempts | direct within 10 s | time, median | time, p95 | packets of both sides, median | packets, p95 |\n|---|---|---|---|---|---|\n" +
		fmt.Sprintf("| %d | %d (%g %%) | %g ms | %g ms | %g | %g |\n",
			p.Runs, p.Within10s, round(100*p.Rate, 1), p.MedianMs, p.P95Ms, p.MedianPackets, p.P95Packets)
}

// measureProbing runs one pair of sites over and over, each side being the
// symmetric one in turn.
func measureProbing(ctx context.Context, bin string, runs int) (result probing, err error) {
	var sites []e2e.Site
	for _, name := range []string{"symmetric", "port-restricted"} {
		site, err := e2e.FindSite(name)
		if err != nil {
			return probing{}, err
		}
		sites = append(sites, site)
	}
	cluster, grid, err := newGrid(ctx, bin, sites)
	if cluster != nil {
		defer func() { err = errors.Join(err, cluster.Close()) }()
	}
	if err != nil {
		return probing{}, err
	}
	var all []probeRun
	for i := range runs {
		cell, err := grid.RunCell(ctx, sites[i%2], sites[1-i%2])
		if err != nil {
			return probing{}, err
		}
		slog.Info("probe", "run", i+1, "a", cell.A, "got", cell.Got, "ms", cell.Ms, "packets", cell.Packets, "problem", problem(cell))
		all = append(all, probeRun{cell.A, cell.B, cell.Got, cell.Reason, cell.Ms, cell.Packets})
	}
	return summarise(all), nil
}
