package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/bodkin-net/bodkin/e2e"
	"github.com/bodkin-net/bodkin/e2e/lab"
)

// idlePeers is how many peers the measured edge has.
const idlePeers = 3

// Targets of an idle agent.
const (
	targetMemoryMB  = 25
	targetPerPeerKB = 45
)

// flow is part of an edge's traffic, by an nftables match of what comes in and
// of what goes out.
type flow struct{ name, in, out string }

// idleCost is what an agent costs that has nothing to do.
type idleCost struct {
	memoryMB float64
	// perHour are kB (1000 bytes) in both directions, by flow.
	perHour map[string]float64
}

const peerFlow = "peer"

// Flows beside those with peers, in the order of the report.
var nodeFlows = []struct{ name, what string }{
	{"signalling", "signalling (websocket over TLS)"},
	{"stun", "STUN to the rendezvous"},
	{"connector", "tunnel to the connector"},
}

func (c idleCost) figures() []figure {
	perPeer, node := 0.0, 0.0
	for name, kb := range c.perHour {
		if strings.HasPrefix(name, peerFlow) {
			perPeer += kb / idlePeers
		} else {
			node += kb
		}
	}
	list := []figure{
		{What: fmt.Sprintf("agent's resident memory, idle with %d peers", idlePeers), Unit: "MB", Ours: c.memoryMB, target: targetMemoryMB},
		{What: "idle traffic per hour and peer", Unit: "kB", Ours: round(perPeer, 1), target: targetPerPeerKB},
		{What: "idle traffic per hour and node, whatever the number of peers", Unit: "kB", Ours: round(node, 1)},
	}
	for _, f := range nodeFlows {
		list = append(list, figure{What: "of that: " + f.what, Unit: "kB", Ours: round(c.perHour[f.name], 1)})
	}
	return list
}

// measureIdle lets an edge with idlePeers direct peers alone for a while.
func measureIdle(ctx context.Context, o benchOptions) (cost idleCost, err error) {
	cluster, err := e2e.NewCluster(ctx, e2e.ClusterOptions{Bin: o.bin, LogLevel: "info"})
	if cluster != nil {
		defer func() { err = errors.Join(err, cluster.Close()) }()
	}
	if err != nil {
		return cost, err
	}
	router, edge, err := idleCluster(ctx, cluster)
	if err != nil {
		return cost, err
	}
	slog.Info("idle", "settle", o.settle, "window", o.window)
	if err := pause(ctx, o.settle); err != nil {
		return cost, err
	}
	started := time.Now()
	before, err := countedBytes(ctx, router)
	if err != nil {
		return cost, err
	}
	if err := pause(ctx, o.window); err != nil {
		return cost, err
	}
	after, err := countedBytes(ctx, router)
	if err != nil {
		return cost, err
	}
	cost.perHour = perHour(before, after, time.Since(started))
	slog.Info("idle", "kB per hour", cost.perHour)
	cost.memoryMB, err = residentMB(edge.Agent().PID())
	return cost, err
}

// idleCluster makes an edge and its peers, all direct, with the traffic at the
// edge's router counted.
func idleCluster(ctx context.Context, cluster *e2e.Cluster) (*lab.Router, *e2e.Node, error) {
	router, err := cluster.Router("edgex", lab.RouterOptions{NAT: benchNAT})
	if err != nil {
		return nil, nil, err
	}
	edge, err := cluster.AddEdge(ctx, "edge", router)
	if err != nil {
		return nil, nil, err
	}
	nodes := []*e2e.Node{edge}
	var flows []flow
	for i := range idlePeers {
		name := fmt.Sprintf("%s%d", peerFlow, i)
		r, err := cluster.Router(name+"x", lab.RouterOptions{NAT: benchNAT})
		if err != nil {
			return nil, nil, err
		}
		n, err := cluster.AddEdge(ctx, name, r)
		if err != nil {
			return nil, nil, err
		}
		nodes = append(nodes, n)
		flows = append(flows, flow{name, fmt.Sprintf("ip saddr %s", r.WAN()), fmt.Sprintf("ip daddr %s", r.WAN())})
	}
	if err := count(ctx, router, append(flows, connectorFlows(cluster)...)); err != nil {
		return nil, nil, err
	}
	if err := cluster.WaitDiscovered(ctx, nodes...); err != nil {
		return nil, nil, err
	}
	if err := cluster.Apply(ctx, benchCommunity, nodes...); err != nil {
		return nil, nil, err
	}
	for _, peer := range nodes[1:] {
		if err := waitDirect(ctx, cluster, edge, peer); err != nil {
			return nil, nil, err
		}
	}
	return router, edge, nil
}

// connectorFlows are in the order in which they must be matched.
func connectorFlows(c *e2e.Cluster) []flow {
	in, out := "ip saddr "+c.PublicAddr.String(), "ip daddr "+c.PublicAddr.String()
	return []flow{
		{"signalling", in + " meta l4proto tcp", out + " meta l4proto tcp"},
		{"stun", in + " udp sport 3478-3481", out + " udp dport 3478-3481"},
		{"connector", in + " meta l4proto udp", out + " meta l4proto udp"},
	}
}

const countTable = "idle"

// count makes a router count flows outside of its NAT; each packet counts for
// the first flow it matches.
func count(ctx context.Context, r *lab.Router, flows []flow) error {
	var counters, in, out strings.Builder
	for _, f := range flows {
		fmt.Fprintf(&counters, "  counter %s { }\n", f.name)
		fmt.Fprintf(&in, "    iifname wan %s counter name %s return\n", f.in, f.name)
		fmt.Fprintf(&out, "    oifname wan %s counter name %s return\n", f.out, f.name)
	}
	text := fmt.Sprintf(`table ip %s {
%s  chain in {
    type filter hook prerouting priority raw - 10; policy accept;
%s  }
  chain out {
    type filter hook postrouting priority srcnat + 20; policy accept;
%s  }
}
`, countTable, &counters, &in, &out)
	path := filepath.Join(r.Dir(), countTable+".nft")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return err
	}
	if output, err := r.Run(ctx, "nft", "-f", path); err != nil {
		return fmt.Errorf("count traffic at %s: %w: %s", r.Name(), err, output)
	}
	return nil
}

func countedBytes(ctx context.Context, r *lab.Router) (map[string]uint64, error) {
	out, err := r.Run(ctx, "nft", "-j", "list", "counters", "table", "ip", countTable)
	if err != nil {
		return nil, fmt.Errorf("read counters of %s: %w: %s", r.Name(), err, out)
	}
	return parseCounters([]byte(out))
}

// parseCounters reads nft's JSON, see libnftables-json(5).
func parseCounters(text []byte) (map[string]uint64, error) {
	var listing struct {
		Objects []struct {
			Counter *struct {
				Name  string `json:"name"`
				Bytes uint64 `json:"bytes"`
			} `json:"counter"`
		} `json:"nftables"`
	}
	if err := json.Unmarshal(text, &listing); err != nil {
		return nil, fmt.Errorf("counters: %w", err)
	}
	counted := map[string]uint64{}
	for _, o := range listing.Objects {
		if o.Counter != nil {
			counted[o.Counter.Name] = o.Counter.Bytes
		}
	}
	return counted, nil
}

// perHour scales the bytes between two readings to kB an hour.
func perHour(before, after map[string]uint64, window time.Duration) map[string]float64 {
	scaled := map[string]float64{}
	for name, bytes := range after {
		scaled[name] = round(float64(bytes-before[name])/1000/window.Hours(), 1)
	}
	return scaled
}

// residentMB is a process's VmRSS.
func residentMB(pid int) (float64, error) {
	path := fmt.Sprintf("/proc/%d/status", pid)
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return parseResident(path, string(text))
}

func parseResident(path, status string) (float64, error) {
	for line := range strings.Lines(status) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 64)
			if err != nil {
				return 0, fmt.Errorf("%s: %w", path, err)
			}
			return round(kib*1024/1e6, 1), nil
		}
	}
	return 0, fmt.Errorf("%s: no VmRSS", path)
}

// pause waits, unless ctx ends first.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
