package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/bodkin-net/bodkin/e2e"
	"github.com/bodkin-net/bodkin/e2e/lab"
)

const (
	// statusTarget is the most that `bodkin status -o json` may take, in
	// milliseconds: scripts ask often, and people do not wait.
	statusTarget = 50
	statusRuns   = 40
)

// measureStatus is how long `bodkin status -o json` takes in milliseconds, from
// starting the process to its end, on an edge with a tunnel to the connector.
func measureStatus(ctx context.Context, o benchOptions) (took []float64, err error) {
	cluster, err := e2e.NewCluster(ctx, e2e.ClusterOptions{Bin: o.bin, LogLevel: "info"})
	if cluster != nil {
		defer func() { err = errors.Join(err, cluster.Close()) }()
	}
	if err != nil {
		return nil, err
	}
	router, err := cluster.Router("edge1x", lab.RouterOptions{NAT: benchNAT})
	if err != nil {
		return nil, err
	}
	edge, err := cluster.AddEdge(ctx, "edge1", router)
	if err != nil {
		return nil, err
	}
	if err := cluster.WaitOnline(ctx, edge); err != nil {
		return nil, err
	}
	for range statusRuns {
		began := time.Now()
		if _, err := edge.Status(ctx); err != nil {
			return nil, fmt.Errorf("bodkin status: %w", err)
		}
		took = append(took, inMs(time.Since(began)))
	}
	return took, nil
}

func statusFigures(took []float64) []figure {
	return []figure{
		{What: "bodkin status -o json, median", Unit: "ms", Ours: median(took)},
		{What: "bodkin status -o json, p95", Unit: "ms", Ours: p95(took), target: statusTarget},
	}
}
