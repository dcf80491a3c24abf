package e2e

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

// joinMembers is how many members a community has before another joins.
const joinMembers = 3

// Join is a community of joinMembers edges that are direct with each other, and
// one more that has never been online.
type Join struct {
	*Cluster
	Members []*Node
	Joiner  *Node
}

// NewJoin builds a join up to the moment before; each node stands behind a NAT
// of its own, over the link given. Close must be called, on error too if the
// join is not nil.
func NewJoin(ctx context.Context, o ClusterOptions, link lab.Link) (*Join, error) {
	c, err := NewCluster(ctx, o)
	if c == nil {
		return nil, err
	}
	j := &Join{Cluster: c}
	if err != nil {
		return j, err
	}
	for i := range joinMembers + 1 {
		name := fmt.Sprintf("edge%d", i+1)
		r, err := c.Router(name+"x", lab.RouterOptions{NAT: lab.PortRestricted})
		if err != nil {
			return j, err
		}
		if err := r.SetLink(link); err != nil {
			return j, err
		}
		if i == joinMembers {
			h, err := c.Host(name, lab.HostOptions{Router: r})
			if err != nil {
				return j, err
			}
			j.Joiner, err = c.prepareNode(h, name, "Edge")
			if err != nil {
				return j, err
			}
			break
		}
		n, err := c.AddEdge(ctx, name, r)
		if err != nil {
			return j, err
		}
		j.Members = append(j.Members, n)
	}
	if err := c.WaitDiscovered(ctx, j.Members...); err != nil {
		return j, err
	}
	if err := c.Apply(ctx, stageCommunity, append([]*Node{j.Joiner}, j.Members...)...); err != nil {
		return j, err
	}
	for i, a := range j.Members {
		for _, b := range j.Members[i+1:] {
			if _, err := c.WaitPair(ctx, a, b, IsDirect); err != nil {
				return j, err
			}
		}
	}
	return j, nil
}

// Run has the joiner come online while it pings all members. The cost's
// interruption is the time from the agent's start to when each has answered
// once, Direct the same from when the rendezvous has it online.
func (j *Join) Run(ctx context.Context) (Cost, error) {
	ctx, cancel := context.WithTimeout(ctx, tooLong)
	defer cancel()
	var streams []*Stream
	defer func() {
		for _, s := range streams {
			s.Stop()
		}
	}()
	for _, m := range j.Members {
		s, err := j.Joiner.StartStream(ctx, m)
		if err != nil {
			return Cost{}, err
		}
		streams = append(streams, s)
	}
	began, online := time.Now(), time.Time{}
	if err := j.Joiner.StartAgent(context.WithoutCancel(ctx)); err != nil {
		return Cost{}, err
	}
	var last time.Time
	err := j.until(ctx, "each member answers "+j.Joiner.Name, func() (bool, error) {
		if online.IsZero() {
			if is, err := j.online(ctx, j.Joiner); err == nil && is {
				online = time.Now()
			}
		}
		var all bool
		last, all = firstAnswers(streams)
		return all, ended(j.Joiner.agent)
	})
	if err != nil {
		return Cost{}, err
	}
	if online.IsZero() {
		return Cost{}, errors.New("all members answer one that is not online")
	}
	return Cost{Interrupted: last.Sub(began), Direct: max(0, last.Sub(online))}, nil
}

// firstAnswers is when the last of the streams had its first answer, and whether
// each has.
func firstAnswers(streams []*Stream) (last time.Time, all bool) {
	for _, s := range streams {
		first := time.Time{}
		for _, e := range s.Since(time.Time{}) {
			if !e.Answered.IsZero() {
				first = e.Answered
				break
			}
		}
		if first.IsZero() {
			return time.Time{}, false
		}
		if first.After(last) {
			last = first
		}
	}
	return last, true
}

func (c *Cluster) online(ctx context.Context, n *Node) (bool, error) {
	known, err := c.Nodes(ctx)
	for _, o := range known {
		if o.Name == n.Name {
			return o.Online, err
		}
	}
	return false, err
}
