package e2e

import (
	"context"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

// refuseNftables has the kernel refuse the agent its nftables rules: another
// program owns the table in which it tries out whether it can have any.
func refuseNftables(ctx context.Context, t *testing.T, c *Cluster, h *lab.Host) {
	t.Helper()
	owner := exec.CommandContext(ctx, "nft", "--interactive")
	in, err := owner.StdinPipe()
	must(t, err)
	must(t, h.Exec(owner.Start))
	t.Cleanup(func() { // the table goes with its owner
		must(t, in.Close())
		if err := owner.Wait(); err != nil && ctx.Err() == nil {
			t.Errorf("nft: %v", err)
		}
	})
	_, err = io.WriteString(in, "add table ip bodkin_trial { flags owner; }\n")
	must(t, err)
	must(t, c.until(ctx, "the table is owned", func() (bool, error) {
		tables, err := h.Run(ctx, "nft", "list", "tables")
		return strings.Contains(tables, "bodkin_trial"), err
	}))
}

// noProbe is why the rendezvous takes a node for one that cannot open many
// ports.
func noProbe(ctx context.Context, t *testing.T, c *Cluster, n *Node) string {
	t.Helper()
	var list struct {
		Nodes []struct {
			Name    string `json:"name"`
			NoProbe string `json:"noProbe"`
		} `json:"nodes"`
	}
	must(t, c.get(ctx, "/api/v1/nodes", &list))
	for _, o := range list.Nodes {
		if o.Name == n.Name {
			return o.NoProbe
		}
	}
	t.Fatalf("%s is not known", n.Name)
	return ""
}

// TestNoRewrite: without nftables a symmetric node cannot be searched. That is
// said, with the cause, and all else works.
func TestNoRewrite(t *testing.T) {
	ctx, c := start(t, ClusterOptions{})
	r, err := c.Router("edge1-nat", lab.RouterOptions{NAT: lab.Symmetric})
	must(t, err)
	h, err := c.Host("edge1", lab.HostOptions{Router: r})
	must(t, err)
	refuseNftables(ctx, t, c, h)
	a, err := c.addNode(ctx, h, "edge1", "Edge")
	must(t, err)
	b, _ := edge(ctx, t, c, "edge2", lab.PortRestricted)
	d, _ := edge(ctx, t, c, "edge3", lab.FullCone)
	must(t, c.WaitDiscovered(ctx, a, b, d))
	must(t, c.Apply(ctx, "all-edges", a, b, d))

	for _, easy := range [][2]*Node{{a, d}, {b, d}} {
		direct(ctx, t, c, easy[0], easy[1])
		pings(ctx, t, easy[0], easy[1])
	}
	p, err := c.WaitPair(ctx, a, b, func(p *Pair) bool { return p.State == "direct" || p.Failed() })
	must(t, err)
	if !IsRelayed(p) || p.Verdict.Expect != "relay" || p.Strategy == "probe" {
		t.Errorf("%+v; want it relayed as expected, and nothing searched", p)
	}
	const cause = "operation not permitted"
	for where, text := range map[string]string{
		"reason": p.Reason, "verdict": p.Verdict.Reason, "noProbe": noProbe(ctx, t, c, a), "log": a.Agent().Log(),
	} {
		want := []string{"port rewriting is unavailable", "nftables", cause}
		switch where {
		case "reason", "verdict":
			want = append(want, a.Name+" is behind a symmetric NAT", "ports cannot be searched for")
		case "log":
			want = append(want, "ports of a symmetric NAT cannot be searched for")
		}
		for _, words := range want {
			if !strings.Contains(text, words) {
				t.Errorf("no %q in the %s:\n%s", words, where, text)
			}
		}
	}
	if why := noProbe(ctx, t, c, b); why != "" {
		t.Errorf("%s has nftables, and yet: %s", b.Name, why)
	}
}

// crossing records what two nodes, or the routers before them, send to each
// other over the internet from now on.
func crossing(t *testing.T, c *Cluster, a, b *Node) (so func() []lab.Packet) {
	t.Helper()
	var mu sync.Mutex
	var seen []lab.Packet
	x, y := a.Outside().Name(), b.Outside().Name()
	t.Cleanup(c.Trace(func(p lab.Packet) {
		if p.From == x && p.To == y || p.From == y && p.To == x {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, p)
		}
	}))
	return func() []lab.Packet {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(seen)
	}
}

// applyWith puts a community with a limit on punching in force.
func applyWith(ctx context.Context, t *testing.T, c *Cluster, punch string, members ...*Node) {
	t.Helper()
	text := strings.Replace(string(community("all-edges", members...)), "metadata:\n",
		"metadata:\n  annotations:\n    bodkin.net/punch: "+punch+"\n", 1)
	must(t, c.do(ctx, http.MethodPut, "/api/v1/communities?file=all-edges.yaml", []byte(text), nil))
}

// restartWith restarts a node's agent with one more line in its configuration.
func restartWith(ctx context.Context, t *testing.T, n *Node, line string) {
	t.Helper()
	conf, err := os.ReadFile(n.config)
	must(t, err)
	must(t, n.Agent().Stop(ctx))
	must(t, os.WriteFile(n.config, append(conf, line+"\n"...), 0o600))
	must(t, n.StartAgent(ctx))
}

// TestPunchNever: where a community forbids punching nothing is sent, not even
// after a node has come back, until the annotation is lifted.
func TestPunchNever(t *testing.T) {
	ctx, c := start(t, ClusterOptions{})
	a, _ := edge(ctx, t, c, "edge1", lab.PortRestricted)
	b, _ := edge(ctx, t, c, "edge2", lab.PortRestricted)
	must(t, c.WaitDiscovered(ctx, a, b))
	sent := crossing(t, c, a, b)
	applyWith(ctx, t, c, "never", a, b)
	forbidden := func(p *Pair) bool {
		return IsRelayed(p) && strings.Contains(p.Reason, "forbidden (never)") && strings.Contains(p.Reason, "by community all-edges")
	}
	p, err := c.WaitPair(ctx, a, b, forbidden)
	must(t, err)
	if p.Verdict.Expect != "relay" || p.Verdict.Strategy != "none" {
		t.Errorf("verdict %v; want relay, and nothing tried", p.Verdict)
	}
	must(t, a.Agent().Stop(ctx))
	must(t, c.WaitOffline(ctx, a))
	must(t, a.StartAgent(ctx))
	must(t, c.WaitDiscovered(ctx, a, b))
	p, err = c.WaitPair(ctx, a, b, forbidden)
	must(t, err)
	if got := sent(); len(got) != 0 || p.Attempts != 0 {
		t.Errorf("%d attempts, packets %v; want none", p.Attempts, got)
	}

	must(t, c.Apply(ctx, "all-edges", a, b))
	direct(ctx, t, c, a, b)
	pings(ctx, t, a, b)
	if len(sent()) == 0 {
		t.Error("the trace saw nothing of a tunnel")
	}
}

// TestPunchICEOnly: a node that permits ICE alone sends to the ports it was told
// of, and is not searched for; the reason says who forbids it.
func TestPunchICEOnly(t *testing.T) {
	ctx, c := start(t, ClusterOptions{})
	a, _ := edge(ctx, t, c, "edge1", lab.Symmetric)
	b, _ := edge(ctx, t, c, "edge2", lab.PortRestricted)
	restartWith(ctx, t, b, "punch: ice-only")
	must(t, c.WaitDiscovered(ctx, a, b))
	sent := crossing(t, c, a, b)
	must(t, c.Apply(ctx, "all-edges", a, b))
	p, err := c.WaitPair(ctx, a, b, func(p *Pair) bool { return p.State == "direct" || p.Failed() })
	must(t, err)
	for _, text := range []string{p.Reason, p.Verdict.Reason} {
		if !IsRelayed(p) || !strings.Contains(text, "forbidden (ice-only) for "+b.Name) {
			t.Errorf("%s: %q; want it relayed, since %s forbids a search", p.State, text, b.Name)
		}
	}
	named := observedAt(ctx, t, c, a)
	from, to := map[netip.AddrPort]bool{}, map[netip.AddrPort]bool{}
	for _, packet := range sent() {
		if packet.From == b.Outside().Name() {
			to[packet.Dst] = true
		} else {
			from[packet.Src] = true
		}
	}
	if !maps.Equal(to, map[netip.AddrPort]bool{named: true}) {
		t.Errorf("%s sent to %v; want %s alone", b.Name, slices.Collect(maps.Keys(to)), named)
	}
	if len(from) != 1 {
		t.Errorf("%s sent from %d ports; want one: %v", a.Name, len(from), slices.Collect(maps.Keys(from)))
	}
}

// observedAt is where the rendezvous has seen a node.
func observedAt(ctx context.Context, t *testing.T, c *Cluster, n *Node) netip.AddrPort {
	t.Helper()
	nodes, err := c.Nodes(ctx)
	must(t, err)
	for _, o := range nodes {
		if o.Name == n.Name {
			return o.Observed
		}
	}
	t.Fatalf("%s is not known", n.Name)
	return netip.AddrPort{}
}

// TestShortMappings: a tunnel without traffic outlives the mappings of NATs that
// forget after 25 s, since strongSwan's keepalives come every 20 s.
func TestShortMappings(t *testing.T) {
	const lifetime = 25 * time.Second
	ctx, c := start(t, ClusterOptions{})
	var nodes [2]*Node
	for i, name := range []string{"edge1", "edge2"} {
		r, err := c.Router(name+"-nat", lab.RouterOptions{NAT: lab.PortRestricted, UDPTimeout: lifetime})
		must(t, err)
		nodes[i], err = c.AddEdge(ctx, name, r)
		must(t, err)
	}
	a, b := nodes[0], nodes[1]
	must(t, c.WaitOnline(ctx, c.Connector, a, b))
	must(t, c.Apply(ctx, "all-edges", a, b))
	direct(ctx, t, c, a, b)
	pings(ctx, t, a, b)
	begin := time.Now()
	sent := crossing(t, c, a, b)
	must(t, c.until(ctx, "no ESP for longer than mappings live", func() (bool, error) {
		var last time.Duration
		for _, p := range sent() {
			if p.What == "ESP in UDP" {
				last = p.At
			}
		}
		return time.Since(begin)-last > lifetime+2*time.Second, nil
	}))
	pings(ctx, t, a, b)
	if p := direct(ctx, t, c, a, b); p.Attempts != 1 {
		t.Errorf("it was punched %d times", p.Attempts)
	}
}
