package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/bodkin-net/bodkin/e2e"
	"github.com/bodkin-net/bodkin/e2e/lab"
)

// joinTarget is the most that a join may take, in milliseconds.
const joinTarget = 3000

// joinDelay is the links' one-way delay in a join: that of a rendezvous on the same
// continent.
const joinDelay = 25 * time.Millisecond

// measureJoins is how long joins take in milliseconds, each of a machine of its own
// behind a router of its own.
func measureJoins(ctx context.Context, o benchOptions) (took []float64, err error) {
	link := lab.Link{Delay: joinDelay}
	cluster, err := e2e.NewCluster(ctx, e2e.ClusterOptions{Bin: o.bin, LogLevel: "info", OwnCA: true})
	if cluster != nil {
		defer func() { err = errors.Join(err, cluster.Close()) }()
	}
	if err != nil {
		return nil, err
	}
	for i := range o.joins {
		name := fmt.Sprintf("edge%d", i+1)
		router, err := cluster.Router(name+"x", lab.RouterOptions{NAT: benchNAT})
		if err != nil {
			return nil, err
		}
		if err := router.SetLink(link); err != nil {
			return nil, err
		}
		joined, err := cluster.JoinEdge(ctx, name, lab.HostOptions{Router: router})
		if err != nil {
			return nil, err
		}
		slog.Info("run", "joined", joined.Name, "took", joined.Took)
		took = append(took, inMs(joined.Took))
	}
	return took, nil
}

func joinFigures(took []float64) []figure {
	what := fmt.Sprintf("join to online, %d ms one way", joinDelay.Milliseconds())
	return []figure{
		{What: what + ", median", Unit: "ms", Ours: median(took)},
		{What: what + ", p95", Unit: "ms", Ours: p95(took), target: joinTarget},
	}
}
