package e2e

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

// stageCommunity is the only community of a stage.
const stageCommunity = "all-edges"

const (
	// stageTimeout is for a pair to be relayed, and to be direct, before
	// anything is broken.
	stageTimeout = 30 * time.Second
	// settled is for how long pings must go directly, none lost and none over the
	// connector, for a pair to count as direct again.
	settled = time.Second
	// calm is how long a pair has been direct before anything is broken: what
	// charon and agents say at first is over.
	calm = 3 * time.Second
)

// Stage is a cluster with one pair that is direct and could be relayed, for
// something to be broken.
type Stage struct {
	*Cluster
	// Nodes are the pair, the controlling one first; Routers what they are behind.
	Nodes   [2]*Node
	Routers [2]*lab.Router

	ways *ways
}

// NewStage builds a stage; each node stands behind a NAT of its own, over the
// link given. Close must be called, on error too if the stage is not nil.
func NewStage(ctx context.Context, o ClusterOptions, nats [2]lab.NATKind, link lab.Link) (*Stage, error) {
	c, err := NewCluster(ctx, o)
	if c == nil {
		return nil, err
	}
	s := &Stage{Cluster: c}
	if err != nil {
		return s, err
	}
	for i, kind := range nats {
		name := fmt.Sprintf("edge%d", i+1)
		if s.Routers[i], err = c.Router(name+"x", lab.RouterOptions{NAT: kind}); err != nil {
			return s, err
		}
		if err := s.Routers[i].SetLink(link); err != nil {
			return s, err
		}
		if s.Nodes[i], err = c.AddEdge(ctx, name, s.Routers[i]); err != nil {
			return s, err
		}
	}
	if err := c.WaitDiscovered(ctx, s.Nodes[:]...); err != nil {
		return s, err
	}
	s.ways = c.watchWays(s.Nodes[0], s.Nodes[1])
	if err := s.Relayed(ctx); err != nil {
		return s, err
	}
	if err := s.Direct(ctx); err != nil {
		return s, err
	}
	return s, sleep(ctx, calm)
}

// Relayed forbids punching and waits until the pair is relayed.
func (s *Stage) Relayed(ctx context.Context) error {
	if err := s.ApplyLimited(ctx, stageCommunity, "never", s.Nodes[:]...); err != nil {
		return err
	}
	return s.await(ctx, "relayed")
}

// Direct permits punching and waits until the pair is direct.
func (s *Stage) Direct(ctx context.Context) error {
	if err := s.Apply(ctx, stageCommunity, s.Nodes[:]...); err != nil {
		return err
	}
	return s.await(ctx, "direct")
}

func (s *Stage) await(ctx context.Context, state string) error {
	ctx, cancel := context.WithTimeout(ctx, stageTimeout)
	defer cancel()
	_, err := s.WaitPair(ctx, s.Nodes[0], s.Nodes[1], func(p *Pair) bool { return p.State == state })
	return err
}

// ApplyLimited puts a community with a limit on punching in force, "auto" for
// none.
func (c *Cluster) ApplyLimited(ctx context.Context, name, punch string, members ...*Node) error {
	text := strings.Replace(string(community(name, members...)), "metadata:\n",
		"metadata:\n  annotations:\n    bodkin.net/punch: "+punch+"\n", 1)
	return c.do(ctx, http.MethodPut, "/api/v1/communities?file="+url.QueryEscape(name+".yaml"), []byte(text), nil)
}

// RestartCharon ends charon as a crash does, and starts it again.
func (n *Node) RestartCharon() error {
	n.KillCharon()
	_, err := n.StartCharon(lab.CharonOptions{})
	return err
}

// RestartAgent kills the node's agent and starts it again.
func (n *Node) RestartAgent(ctx context.Context) error {
	n.agent.Kill()
	return n.StartAgent(ctx)
}

// WaitAdopted waits until the node's agent is connected and watches as many
// tunnels as it has peers.
func (c *Cluster) WaitAdopted(ctx context.Context, n *Node, peers int) error {
	return c.until(ctx, "the agent of "+n.Name+" watches its tunnels", func() (bool, error) {
		s, err := n.Status(ctx)
		if err != nil { // not up yet
			return false, ended(n.agent)
		}
		watched := 0
		for _, t := range s.Tunnels {
			if t.State == "direct" && t.Monitored {
				watched++
			}
		}
		return s.Rendezvous.Connected && watched == peers, nil
	})
}
