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
	// An agent punches for 10 s; the rest is a slow machine's.
	verdictTimeout = 15 * time.Second
	// verdictWait is how long a verdict is waited for all the same, so that a
	// late one is measured and not only missed.
	verdictWait = 30 * time.Second
	// goneTimeout is for charon to delete a tunnel at both ends, with the
	// repetition of a message that was lost.
	goneTimeout = 20 * time.Second
	// discoveryTimeout is for every agent to find out what its NAT does, which
	// takes about 2 s each.
	discoveryTimeout = 60 * time.Second

	// offlineTimeout is for an agent's goodbye to arrive.
	offlineTimeout = 10 * time.Second

	matrixPings        = 20
	matrixPingInterval = 50 * time.Millisecond
)

// Outcome of an attempt to make a pair direct.
type Outcome string

// Outcomes. Undecided is what no pair may be.
const (
	Direct    Outcome = "direct"
	Down      Outcome = "down"
	Undecided Outcome = "undecided"
)

// MatrixKinds are the NATs that every pair of sites is tried with.
func MatrixKinds() []lab.NATKind {
	return []lab.NATKind{lab.FullCone, lab.AddressRestricted, lab.PortRestricted, lab.Symmetric}
}

// Expected is what plain ICE can do between two NATs (RFC 4787 terms): the port
// of an address-and-port-dependent mapping is only known to whom a packet from
// it has reached, and a filter of that kind, too, lets in no packet from a port
// it has not been told of.
func Expected(a, b lab.NATKind) Outcome {
	if unreachable(a, b) || unreachable(b, a) {
		return Down
	}
	return Direct
}

func unreachable(a, b lab.NATKind) bool {
	return a.Behavior().Mapping == lab.AddressAndPortDependent && b.Behavior().Filtering == lab.AddressAndPortDependent
}

// Cell is the result of one pair of sites.
type Cell struct {
	A        string  `json:"a"`
	B        string  `json:"b"`
	Expected Outcome `json:"expected"`
	Got      Outcome `json:"got"`
	Reason   string  `json:"reason"`
	// Ms is the time from sending the community until the rendezvous' API,
	// asked every 20 ms, said what Got says.
	Ms        int64 `json:"ms"`
	PingsSent int   `json:"pings_sent"`
	PingsLost int   `json:"pings_lost"`
}

// Problem says what is wrong with a cell, and is empty when nothing is.
func (c Cell) Problem() string {
	switch {
	case c.Got != c.Expected:
		return fmt.Sprintf("is %s, not %s: %s", c.Got, c.Expected, c.Reason)
	case c.Got == Direct && c.PingsSent == 0:
		return "no ping was sent"
	case c.PingsLost > 0:
		return fmt.Sprintf("lost %d of %d pings", c.PingsLost, c.PingsSent)
	case c.Got == Down && !strings.Contains(c.Reason, "symmetric"):
		return fmt.Sprintf("the reason names no symmetric NAT: %q", c.Reason)
	}
	return ""
}

// Late says that the verdict took longer than it may, and is empty when it did
// not. It is apart from Problem because a test cannot ask it of a slow machine.
func (c Cell) Late() string {
	if time.Duration(c.Ms)*time.Millisecond > verdictTimeout {
		return fmt.Sprintf("took %d ms, longer than %s", c.Ms, verdictTimeout)
	}
	return ""
}

// Grid is a cluster with two edges for each kind of NAT, each behind a router
// of its own: what stands on the left is only ever paired with what stands on
// the right. Its methods must not be called concurrently.
type Grid struct {
	cluster     *Cluster
	left, right map[lab.NATKind]*Node
}

// NewGrid adds the edges to a cluster and waits until they are online and know
// their NATs, without which no reason can be given.
func NewGrid(ctx context.Context, c *Cluster, kinds []lab.NATKind) (*Grid, error) {
	g := &Grid{cluster: c, left: map[lab.NATKind]*Node{}, right: map[lab.NATKind]*Node{}}
	var all []*Node
	for i, kind := range kinds {
		for side, nodes := range map[string]map[lab.NATKind]*Node{"l": g.left, "r": g.right} {
			n, err := c.AddSite(ctx, fmt.Sprintf("%s%d", side, i), kind)
			if err != nil {
				return nil, err
			}
			nodes[kind] = n
			all = append(all, n)
		}
	}
	return g, c.WaitDiscovered(ctx, all...)
}

// AddSite adds an edge behind a router of its own, named after it with an x.
func (c *Cluster) AddSite(ctx context.Context, name string, kind lab.NATKind) (*Node, error) {
	r, err := c.Router(name+"x", lab.RouterOptions{NAT: kind})
	if err != nil {
		return nil, err
	}
	return c.AddEdge(ctx, name, r)
}

// WaitDiscovered waits until all nodes are online and the behaviour of their
// NATs is known.
func (c *Cluster) WaitDiscovered(ctx context.Context, nodes ...*Node) error {
	ctx, cancel := context.WithTimeout(ctx, discoveryTimeout)
	defer cancel()
	if err := c.WaitOnline(ctx, nodes...); err != nil {
		return err
	}
	return c.until(ctx, "all NATs known", func() (bool, error) {
		seen, err := c.Nodes(ctx)
		if err != nil {
			return false, err
		}
		known := map[string]bool{}
		for _, o := range seen {
			known[o.Name] = o.NAT.Mapping != "" && o.NAT.Filtering != ""
		}
		for _, n := range nodes {
			if !known[n.Name] {
				return false, nil
			}
		}
		return true, nil
	})
}

// WaitOffline waits until the rendezvous has noticed that a node has left.
func (c *Cluster) WaitOffline(ctx context.Context, n *Node) error {
	ctx, cancel := context.WithTimeout(ctx, offlineTimeout)
	defer cancel()
	return c.until(ctx, n.Name+" offline", func() (bool, error) {
		seen, err := c.Nodes(ctx)
		return err == nil && !slices.ContainsFunc(seen, func(o Observed) bool { return o.Name == n.Name && o.Online }), nil
	})
}

// RunCell makes the edge left behind a and the one right behind b a community,
// waits for the verdict, pings when it is direct, and takes the community away
// again. An error means that the cell could not be tried.
func (g *Grid) RunCell(ctx context.Context, a, b lab.NATKind) (cell Cell, err error) {
	cell = Cell{A: a.String(), B: b.String(), Expected: Expected(a, b), Got: Undecided}
	left, right := g.left[a], g.right[b]
	if left == nil || right == nil {
		return cell, fmt.Errorf("cell %s × %s: not in this grid", a, b)
	}
	const community = "cell"
	started := time.Now()
	if err := g.cluster.Apply(ctx, community, left, right); err != nil {
		return cell, fmt.Errorf("cell %s × %s: %w", a, b, err)
	}
	defer func() { err = errors.Join(err, g.clear(ctx, community, left, right)) }()
	cell.Got, cell.Reason, err = g.verdict(ctx, left, right)
	cell.Ms = time.Since(started).Milliseconds()
	if err != nil || cell.Got != Direct {
		return cell, err
	}
	pings, err := left.PingPod(ctx, right, matrixPings, matrixPingInterval)
	cell.PingsSent, cell.PingsLost = pings.Sent, pings.Lost()
	return cell, err
}

// verdict waits until the pair is direct, or down after an attempt.
func (g *Grid) verdict(ctx context.Context, a, b *Node) (Outcome, string, error) {
	wait, cancel := context.WithTimeout(ctx, verdictWait)
	defer cancel()
	got, reason := Undecided, "the rendezvous does not know the pair"
	err := g.cluster.until(wait, a.Name+" and "+b.Name, func() (bool, error) {
		p, err := g.cluster.Pair(wait, a, b)
		if err != nil || p == nil {
			return false, err
		}
		reason = p.Reason
		switch {
		case IsDirect(p):
			got = Direct
		case p.Failed():
			got = Down
		}
		return got != Undecided, nil
	})
	if wait.Err() != nil && ctx.Err() == nil {
		err = nil // undecided is a verdict, too
	}
	return got, reason, err
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
