package e2e

import (
	"context"
	"strings"
	"testing"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

// rewritten is a symmetric and a port-restricted edge, direct by a search.
func rewritten(ctx context.Context, t *testing.T, c *Cluster) (symmetric, other *Node) {
	t.Helper()
	a, _ := edge(ctx, t, c, "edge1", lab.Symmetric)
	b, _ := edge(ctx, t, c, "edge2", lab.PortRestricted)
	must(t, c.WaitDiscovered(ctx, a, b))
	must(t, c.Apply(ctx, "all-edges", a, b))
	if p := direct(ctx, t, c, a, b); p.Strategy != "probe" || p.Packets == 0 {
		t.Errorf("strategy %q with %d packets; want a search", p.Strategy, p.Packets)
	}
	return a, b
}

// rules are the project's nftables rules on a node, empty when there are none.
func rules(ctx context.Context, t *testing.T, n *Node) string {
	t.Helper()
	out, err := n.Run(ctx, "nft", "list", "ruleset")
	must(t, err)
	if !strings.Contains(out, "table ip bodkin") {
		return ""
	}
	return out
}

// TestRewriteOutlivesAgent: a tunnel that runs through a rewritten port lives on
// when the agent is killed, is adopted with its rule, and takes it along when it
// ends.
func TestRewriteOutlivesAgent(t *testing.T) {
	ctx, c := start(t, ClusterOptions{})
	a, b := rewritten(ctx, t, c)
	before := established(ctx, t, a)
	during(ctx, t, a, b, func() {
		a.Agent().Kill()
		if got := rules(ctx, t, a); !strings.Contains(got, b.Name) {
			t.Errorf("rules after the kill:\n%s", got)
		}
		must(t, a.StartAgent(ctx))
		must(t, c.until(ctx, "the tunnels are adopted and watched again", func() (bool, error) {
			s, err := a.Status(ctx)
			if err != nil || len(s.Tunnels) != 2 {
				return false, nil
			}
			for _, tun := range s.Tunnels {
				if tun.State != "direct" || !tun.Monitored {
					return false, nil
				}
			}
			return true, nil
		}))
		if got := rules(ctx, t, a); !strings.Contains(got, b.Name) {
			t.Errorf("rules of a tunnel that is watched again:\n%s", got)
		}
	})
	if after := established(ctx, t, a); after != before {
		t.Errorf("IKE SAs changed from %q to %q", before, after)
	}
	must(t, c.Delete(ctx, "all-edges"))
	must(t, c.WaitGone(ctx, a, b))
	must(t, c.until(ctx, "the rule goes with its tunnel", func() (bool, error) { return rules(ctx, t, a) == "", nil }))
}

// TestRewriteSwept: an agent that comes back removes the rule of a tunnel that
// has ended meanwhile, although the community is still in force, and those of a
// connection that it knows nothing of.
func TestRewriteSwept(t *testing.T) {
	ctx, c := start(t, ClusterOptions{})
	a, b := rewritten(ctx, t, c)
	a.Agent().Kill()
	b.Agent().Kill() // nobody punches again
	a.KillCharon()
	_, err := a.StartCharon(lab.CharonOptions{})
	must(t, err)
	_, err = a.Run(ctx, "nft", "add", "rule", "ip", "bodkin", "untracked_out", "udp", "sport", "50000", "notrack", "comment", `"beijing.nobody"`)
	must(t, err)
	if got := rules(ctx, t, a); !strings.Contains(got, b.Name) || !strings.Contains(got, "beijing.nobody") {
		t.Fatalf("rules before the agent comes back:\n%s", got)
	}
	must(t, a.StartAgent(ctx))
	must(t, c.until(ctx, "nothing of the project's is left", func() (bool, error) { return rules(ctx, t, a) == "", nil }))
}

// TestSearchBehindHostFirewall: a symmetric node whose own firewall admits only
// what belongs to flows it has opened itself can be searched all the same.
func TestSearchBehindHostFirewall(t *testing.T) {
	ctx, c := start(t, ClusterOptions{})
	a, _ := edge(ctx, t, c, "edge1", lab.Symmetric)
	b, _ := edge(ctx, t, c, "edge2", lab.PortRestricted)
	_, err := a.Run(ctx, "nft", `
		table inet host {
			chain input {
				type filter hook input priority filter
				meta l4proto udp ct state != { established, related } drop
			}
		}`)
	must(t, err)
	must(t, c.WaitDiscovered(ctx, a, b))
	must(t, c.Apply(ctx, "all-edges", a, b))
	direct(ctx, t, c, a, b)
	pings(ctx, t, a, b)
}
