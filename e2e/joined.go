package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

// joinTimeout is how long a join waits for its agent to be online.
const joinTimeout = time.Minute

// Bodkin runs the command line on the connector, with the rendezvous' socket, and
// returns what it printed.
func (c *Cluster) Bodkin(ctx context.Context, args ...string) (string, error) {
	out, err := c.host.Run(ctx, append(append([]string{c.bin}, args...), "--socket", c.AdminSocket)...)
	if err != nil {
		return out, fmt.Errorf("bodkin %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return out, nil
}

// initRendezvous makes a CA and the rendezvous' own certificate.
func (c *Cluster) initRendezvous(ctx context.Context, h *lab.Host) (string, error) {
	dir := filepath.Join(h.Dir(), "rdv")
	argv := []string{c.bin, "rendezvous", "init", "--dir", dir, "--state-dir", dir}
	for _, a := range c.publicAddrs() {
		argv = append(argv, "--host", a.String())
	}
	if out, err := h.Run(ctx, argv...); err != nil {
		return "", fmt.Errorf("rendezvous init: %w: %s", err, out)
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	return fmt.Sprintf("certificate: %s\nkey: %s\nca: %s\ncaKey: %s\n", in("rendezvous.crt"), in("rendezvous.key"), in("ca.crt"), in("ca.key")), nil
}

// Token creates a join token.
func (c *Cluster) Token(ctx context.Context, flags ...string) (string, error) {
	out, err := c.Bodkin(ctx, append([]string{"token", "create", "-o", "json"}, flags...)...)
	if err != nil {
		return "", err
	}
	var created struct {
		Token string `json:"token"`
	}
	return created.Token, json.Unmarshal([]byte(out), &created)
}

// Joined is a node that has joined by itself, and how long that took.
type Joined struct {
	*Node
	// Took is from the start of `bodkin join` to the node's being online, with the
	// agent's start in between.
	Took time.Duration
}

// JoinEdge adds an edge that joins with a token of its own.
func (c *Cluster) JoinEdge(ctx context.Context, name string, at lab.HostOptions) (Joined, error) {
	n, err := c.JoinableEdge(name, at)
	if err != nil {
		return Joined{}, err
	}
	token, err := c.Token(ctx, "--name", n.Name)
	if err != nil {
		return Joined{}, err
	}
	took, err := n.Join(ctx, token)
	return Joined{n, took}, err
}

// JoinableEdge adds an edge that has not joined yet.
func (c *Cluster) JoinableEdge(name string, at lab.HostOptions) (*Node, error) {
	h, err := c.Host(name, at)
	if err != nil {
		return nil, err
	}
	return c.joinable(h, name)
}

func (c *Cluster) joinable(h *lab.Host, name string) (*Node, error) {
	n, err := c.newNode(h, name)
	if err != nil {
		return nil, err
	}
	n.config = filepath.Join(h.Dir(), "etc", "agent.yaml")
	return n, nil
}

// joinNode is addNode by way of a join.
func (c *Cluster) joinNode(ctx context.Context, h *lab.Host, name, typ string) (*Node, error) {
	n, err := c.joinable(h, name)
	if err != nil {
		return nil, err
	}
	flags := []string{"--type", strings.ToLower(typ)}
	create := []string{"--name", n.Name}
	if typ == "Connector" {
		create = append(create, "--connector")
		for _, a := range c.publicAddrs() {
			flags = append(flags, "--public-address", a.String())
		}
		flags = append(flags, "--public-port", fmt.Sprint(c.PublicPort))
	}
	token, err := c.Token(ctx, create...)
	if err != nil {
		return nil, err
	}
	_, err = n.Join(ctx, token, flags...)
	return n, err
}

// JoinArgs is the command line of a join of this node.
func (n *Node) JoinArgs(token string, flags ...string) []string {
	argv := []string{n.cluster.bin, "join", "https://" + n.cluster.rendezvousFor(n.Host, "").String(), "--token", token,
		"--subnets", n.Subnet.String(), "--dir", filepath.Dir(n.config), "--state-dir", filepath.Join(n.Dir(), "state"),
		"--vici", n.VICISocket(), "--socket", n.Socket(), "--no-service", "--color", "never"}
	return append(argv, flags...)
}

// Join joins, starts the agent as a service would, and returns how long it took
// until the node was online.
func (n *Node) Join(ctx context.Context, token string, flags ...string) (time.Duration, error) {
	return n.join(ctx, n.FitToLab, token, flags...)
}

// Rejoin is Join on a machine that has joined before.
func (n *Node) Rejoin(ctx context.Context, token string, flags ...string) (time.Duration, error) {
	return n.join(ctx, func() error { return nil }, token, flags...)
}

func (n *Node) join(ctx context.Context, fit func() error, token string, flags ...string) (time.Duration, error) {
	began := time.Now()
	n.joins++
	p, err := n.Start(ctx, fmt.Sprintf("join%d", n.joins), nil, n.JoinArgs(token, append(flags, "--timeout", joinTimeout.String())...)...)
	if err != nil {
		return 0, err
	}
	err = n.cluster.until(ctx, n.Name+" has its files", func() (bool, error) {
		return strings.Contains(p.Log(), "bodkin agent --config"), ended(p)
	})
	if err != nil {
		return 0, err
	}
	if err := fit(); err != nil {
		return 0, err
	}
	if err := n.StartAgent(ctx); err != nil {
		return 0, err
	}
	if err := p.Wait(ctx); err != nil {
		return 0, fmt.Errorf("join of %s: %w:\n%s", n.Name, err, p.Log())
	}
	return time.Since(began), nil
}

// FitToLab appends to a configuration that a join has written what no machine but
// those of the lab needs.
func (n *Node) FitToLab() error {
	f, err := os.OpenFile(n.config, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "mark: %d\nlogLevel: %s\n", n.cluster.mark, n.cluster.logLevel)
	if closing := f.Close(); err == nil {
		err = closing
	}
	return err
}
