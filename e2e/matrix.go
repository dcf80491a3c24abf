package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

// Timing of the matrix.
const (
	// verdictTimeout is how soon an attempt has to end one way or the other.
	// An agent punches for 12 s at most; the rest is a slow machine's.
	verdictTimeout = 15 * time.Second
	// verdictWait is how long an outcome is waited for all the same, so that a
	// late one is measured and not only missed.
	verdictWait = 30 * time.Second
	// goneTimeout is for charon to delete a tunnel at both ends, with the
	// repetition of a message that was lost.
	goneTimeout = 20 * time.Second
	// discoveryTimeout is for every agent to find out what its NAT does, which
	// takes about 4 s each, two dozen of them at once on two cores.
	discoveryTimeout = 90 * time.Second
	// offlineTimeout is for an agent's goodbye to arrive.
	offlineTimeout = 10 * time.Second
	// reportTimeout is for both agents to say what an attempt took, once it has
	// made a tunnel.
	reportTimeout = 2 * time.Second

	matrixPings        = 20
	matrixPingInterval = 50 * time.Millisecond
)

// Outcome of an attempt to make a pair direct.
type Outcome string

// Outcomes. Undecided is what no pair may be.
const (
	Direct    Outcome = "direct"
	Relayed   Outcome = "relayed"
	Down      Outcome = "down"
	Undecided Outcome = "undecided"
)

// Expected is what physics allows between two sites: what cannot be direct goes
// through the connector, which an edge reaches over UDP, too.
func Expected(a, b Site) Outcome {
	switch obstacles := Obstacles(a, b); {
	case slices.Contains(obstacles, UDPBlocked):
		return Down
	case len(obstacles) > 0:
		return Relayed
	}
	return Direct
}

// Cell is the result of one pair of sites.
type Cell struct {
	A        string  `json:"a"`
	B        string  `json:"b"`
	Expected Outcome `json:"expected"`
	Got      Outcome `json:"got"`
	Reason   string  `json:"reason"`
	// Verdict is what the rendezvous forecast before the pair was tried, After
	// what it judges now.
	Verdict Verdict `json:"verdict"`
	After   Verdict `json:"-"`
	// Strategy is the attempt's, Packets what both sides sent in it.
	Strategy string `json:"strategy"`
	Packets  int    `json:"packets"`
	Attempts int    `json:"attempts"`
	// Ms is the time from sending the community until the rendezvous' API,
	// asked every 20 ms, said what Got says.
	Ms        int64 `json:"ms"`
	PingsSent int   `json:"pings_sent"`
	PingsLost int   `json:"pings_lost"`
	// Obstacles are why Expected is not Direct.
	Obstacles []Obstacle `json:"obstacles,omitempty"`
}

// Problem says what is wrong with a cell, and is empty when nothing is.
func (c Cell) Problem() string {
	switch {
	case c.Got != c.Expected:
		return fmt.Sprintf("is %s, not %s: %s", c.Got, c.Expected, c.Reason)
	case c.Got != Down && c.PingsSent == 0:
		return "no ping was sent"
	case c.PingsLost > 0:
		return fmt.Sprintf("lost %d of %d pings", c.PingsLost, c.PingsSent)
	case c.Got != Direct && !c.reasonNamesObstacle():
		return fmt.Sprintf("the reason names none of %q: %q", c.Obstacles, c.Reason)
	case c.Verdict.Expect != c.Got.forecast():
		return fmt.Sprintf("the forecast was %q", c.Verdict)
	case c.After.Expect != c.Verdict.Expect || c.After.Strategy != c.Verdict.Strategy:
		return fmt.Sprintf("the verdict changed from %q to %q", c.Verdict, c.After)
	case c.Got == Direct && c.Strategy != c.Verdict.Strategy:
		return fmt.Sprintf("was made by %q; the verdict was %q", c.Strategy, c.Verdict)
	}
	return ""
}

func (c Cell) reasonNamesObstacle() bool {
	return slices.ContainsFunc(c.Obstacles, func(o Obstacle) bool { return strings.Contains(c.Reason, string(o)) })
}

// Late says that the outcome took longer than it may, and is empty when it did
// not. It is apart from Problem because a test cannot ask it of a slow machine.
func (c Cell) Late() string {
	if time.Duration(c.Ms)*time.Millisecond > verdictTimeout {
		return fmt.Sprintf("took %d ms, longer than %s", c.Ms, verdictTimeout)
	}
	return ""
}

// Grid is a cluster with two edges for each site: what stands on the left is
// only ever paired with what stands on the right. Its methods must not be
// called concurrently.
type Grid struct {
	cluster     *Cluster
	left, right map[Site]*Node
}

// NeedIPv6 tells whether a cluster with these sites must have IPv6.
func NeedIPv6(sites []Site) bool {
	return slices.ContainsFunc(sites, func(s Site) bool { return s.IPv6 })
}

// NewGrid adds the edges to a cluster and waits until they are online and know
// their NATs, without which nothing can be forecast.
func NewGrid(ctx context.Context, c *Cluster, sites []Site) (*Grid, error) {
	g := &Grid{cluster: c, left: map[Site]*Node{}, right: map[Site]*Node{}}
	var all, mapped []*Node
	for i, site := range sites {
		for side, nodes := range map[string]map[Site]*Node{"l": g.left, "r": g.right} {
			n, err := c.AddSite(ctx, fmt.Sprintf("%s%d", side, i), site)
			if err != nil {
				return nil, fmt.Errorf("site %s: %w", site, err)
			}
			nodes[site] = n
			all = append(all, n)
			if site.PortMapping {
				mapped = append(mapped, n)
			}
		}
	}
	if err := c.WaitDiscovered(ctx, all...); err != nil {
		return nil, err
	}
	if err := g.waitConnected(ctx); err != nil {
		return nil, err
	}
	return g, c.WaitMapped(ctx, mapped...)
}

// waitConnected waits until every edge that can has its tunnel with the
// connector.
func (g *Grid) waitConnected(ctx context.Context) error {
	for _, nodes := range []map[Site]*Node{g.left, g.right} {
		for site, n := range nodes {
			if site.NAT == lab.UDPBlocked {
				continue
			}
			if _, err := g.cluster.WaitPair(ctx, n, g.cluster.Connector, IsDirect); err != nil {
				return err
			}
		}
	}
	return nil
}

// Node is the edge of a site, on the left or on the right; nil if the site is
// not in the grid.
func (g *Grid) Node(s Site, left bool) *Node {
	if left {
		return g.left[s]
	}
	return g.right[s]
}

// WaitDiscovered waits until all nodes are online and the behaviour of their
// NATs is known.
func (c *Cluster) WaitDiscovered(ctx context.Context, nodes ...*Node) error {
	ctx, cancel := context.WithTimeout(ctx, discoveryTimeout)
	defer cancel()
	if err := c.WaitOnline(ctx, nodes...); err != nil {
		return err
	}
	return c.waitNodes(ctx, "NATs known", func(o Observed) bool {
		return o.NAT.Blocked != "" || o.NAT.Mapping != "" && o.NAT.Filtering != ""
	}, nodes...)
}

// WaitMapped waits until the routers of all nodes have mapped a port.
func (c *Cluster) WaitMapped(ctx context.Context, nodes ...*Node) error {
	ctx, cancel := context.WithTimeout(ctx, discoveryTimeout)
	defer cancel()
	for _, n := range nodes {
		err := c.until(ctx, "port mapped for "+n.Name, func() (bool, error) {
			status, err := n.Status(ctx)
			return status.PortMapping.Outside.IsValid(), err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// waitNodes waits until the rendezvous tells of each node what cond wants.
func (c *Cluster) waitNodes(ctx context.Context, what string, cond func(Observed) bool, nodes ...*Node) error {
	var missing []string
	err := c.until(ctx, what, func() (bool, error) {
		seen, err := c.Nodes(ctx)
		if err != nil {
			return false, err
		}
		missing = nil
		for _, n := range nodes {
			if !slices.ContainsFunc(seen, func(o Observed) bool { return o.Name == n.Name && cond(o) }) {
				missing = append(missing, n.Name)
			}
		}
		return len(missing) == 0, nil
	})
	if err != nil {
		return fmt.Errorf("%w; not yet: %v", err, missing)
	}
	return nil
}

// WaitOffline waits until the rendezvous has noticed that a node has left.
func (c *Cluster) WaitOffline(ctx context.Context, n *Node) error {
	ctx, cancel := context.WithTimeout(ctx, offlineTimeout)
	defer cancel()
	return c.waitNodes(ctx, "offline", func(o Observed) bool { return !o.Online }, n)
}

// RunCell makes the edge left in a and the one right in b a community, waits
// for the outcome, pings unless it is down, and takes the community away again.
// An error means that the cell could not be tried.
func (g *Grid) RunCell(ctx context.Context, a, b Site) (cell Cell, err error) {
	cell = Cell{A: a.Name, B: b.Name, Expected: Expected(a, b), Got: Undecided, Obstacles: Obstacles(a, b)}
	left, right := g.left[a], g.right[b]
	if left == nil || right == nil {
		return cell, fmt.Errorf("cell %s × %s: not in this grid", a, b)
	}
	// The sites' names are what a reader of the matrix knows.
	defer func() { cell.rename(left.Name, "a", right.Name, "b") }()
	if cell.Verdict, err = g.cluster.Forecast(ctx, left, right); err != nil {
		return cell, fmt.Errorf("cell %s × %s: %w", a, b, err)
	}
	const community = "cell"
	started := time.Now()
	if err := g.cluster.Apply(ctx, community, left, right); err != nil {
		return cell, fmt.Errorf("cell %s × %s: %w", a, b, err)
	}
	defer func() { err = errors.Join(err, g.clear(ctx, community, left, right)) }()
	err = g.outcome(ctx, &cell, left, right)
	cell.Ms = time.Since(started).Milliseconds()
	if err != nil || cell.Got != Direct && cell.Got != Relayed {
		return cell, err
	}
	pings, err := left.PingPod(ctx, right, matrixPings, matrixPingInterval)
	cell.PingsSent, cell.PingsLost = pings.Sent, pings.Lost()
	if cell.Got == Direct {
		err = errors.Join(err, g.account(ctx, &cell, left, right))
	}
	return cell, err
}

// outcome waits until the pair is direct, or not after an attempt: relayed, or down
// for good.
func (g *Grid) outcome(ctx context.Context, cell *Cell, a, b *Node) error {
	wait, cancel := context.WithTimeout(ctx, verdictWait)
	defer cancel()
	cell.Reason = "the rendezvous does not know the pair"
	err := g.cluster.until(wait, a.Name+" and "+b.Name, func() (bool, error) {
		p, err := g.cluster.Pair(wait, a, b)
		if err != nil || p == nil {
			return false, err
		}
		cell.see(p)
		switch {
		case IsDirect(p):
			cell.Got = Direct
		case p.Failed():
			cell.Got = Outcome(p.State)
		}
		// The relay of an edge that had no peers may come after the first attempt.
		return cell.Got == cell.Expected || cell.Got == Direct || cell.Got == Relayed, nil
	})
	if wait.Err() != nil && ctx.Err() == nil {
		err = nil // undecided is an outcome, too
	}
	return err
}

// see takes over what the API tells of the pair besides its state.
func (c *Cell) see(p *Pair) {
	c.Reason, c.After, c.Attempts = p.Reason, p.Verdict, p.Attempts
	c.Strategy, c.Packets = p.Strategy, p.Packets
}

// account waits for what a successful attempt took: the tunnel stands before
// both agents have reported.
func (g *Grid) account(ctx context.Context, cell *Cell, a, b *Node) error {
	wait, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	err := g.cluster.until(wait, "reports of "+a.Name+" and "+b.Name, func() (bool, error) {
		p, err := g.cluster.Pair(wait, a, b)
		if err != nil || p == nil {
			return false, err
		}
		cell.see(p)
		return p.Packets > 0, nil
	})
	if wait.Err() != nil && ctx.Err() == nil {
		err = nil // a cell without packets shows it
	}
	return err
}

// rename replaces names in all texts, given as pairs of old and new.
func (c *Cell) rename(names ...string) {
	r := strings.NewReplacer(names...)
	for _, text := range []*string{&c.Reason, &c.Verdict.Reason, &c.After.Reason} {
		*text = r.Replace(*text)
	}
}

func (g *Grid) clear(ctx context.Context, community string, a, b *Node) error {
	if err := g.cluster.Delete(ctx, community); err != nil {
		return err
	}
	return g.cluster.WaitGone(ctx, a, b)
}

// WaitGone waits until the charons of both nodes have no SA with the other.
func (c *Cluster) WaitGone(ctx context.Context, a, b *Node) error {
	ctx, cancel := context.WithTimeout(ctx, goneTimeout)
	defer cancel()
	return c.until(ctx, "tunnel of "+a.Name+" and "+b.Name+" is gone", func() (bool, error) {
		for _, ends := range [][2]*Node{{a, b}, {b, a}} {
			out, err := ends[0].Swanctl(ctx, "--list-sas", "--ike", ends[1].Name)
			if err != nil || strings.Contains(out, ends[1].Name) {
				return false, err
			}
		}
		return true, nil
	})
}

// Verdict is what the rendezvous expects of a pair, as its API tells it.
type Verdict struct {
	Expect   string `json:"expect"`
	Strategy string `json:"strategy"`
	Reason   string `json:"reason"`
}

func (v Verdict) String() string {
	return strings.Join(slices.DeleteFunc([]string{v.Expect, v.Strategy, v.Reason}, func(s string) bool { return s == "" }), ": ")
}

// forecast is the expectation of a verdict that an outcome bears out: what is not
// direct needs a relay, also where there is no way to one.
func (o Outcome) forecast() string {
	if o == Direct {
		return "direct"
	}
	return "relay"
}
