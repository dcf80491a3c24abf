package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

// How long things are broken here: for longer than anybody needs to notice.
const (
	awayFor  = 15 * time.Second
	lossyFor = 15 * time.Second
)

// pass waits for what shall take its time.
func pass(ctx context.Context, t *testing.T, d time.Duration) {
	t.Helper()
	must(t, sleep(ctx, d))
}

// answered waits until a ping is answered again.
func answered(ctx context.Context, t *testing.T, c *Cluster, a, b *Node) {
	t.Helper()
	must(t, c.until(ctx, a.Name+" reaches "+b.Name, func() (bool, error) {
		res, err := a.PingPod(ctx, b, 1, StreamEvery)
		return err == nil && res.Lost() == 0, err
	}))
}

// standing is what IKE SAs the nodes have, to be compared.
func standing(ctx context.Context, t *testing.T, nodes ...*Node) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, n := range nodes {
		all[n.Name] = established(ctx, t, n)
	}
	return all
}

// sameSAs fails the test if one of the nodes has other IKE SAs than before.
func sameSAs(ctx context.Context, t *testing.T, before map[string]string, nodes ...*Node) {
	t.Helper()
	for name, now := range standing(ctx, t, nodes...) {
		if now != before[name] {
			t.Errorf("IKE SAs of %s changed from %q to %q", name, before[name], now)
		}
	}
}

// TestRendezvousAway: tunnels do not notice that the rendezvous is killed and
// stays away, nor that it comes back, with its store or with an empty one.
func TestRendezvousAway(t *testing.T) {
	t.Parallel()
	ctx, c := start(t, ClusterOptions{})
	a, b, d := trio(ctx, t, c)
	before := standing(ctx, t, a, b, d)
	pairs := [][2]*Node{{a, b}, {a, d}, {b, d}, {a, c.Connector}}
	during(ctx, t, a, b, func() {
		c.Rendezvous().Kill()
		pass(ctx, t, awayFor)
		must(t, c.RestartRendezvous(ctx, nil))
		must(t, c.WaitOnline(ctx, c.Connector, a, b, d))
		for _, p := range pairs {
			if got := direct(ctx, t, c, p[0], p[1]); got.Attempts > 1 {
				t.Errorf("%s was punched again (%d attempts) although its tunnel stands", got.ID, got.Attempts)
			}
		}

		c.Rendezvous().Kill()
		must(t, os.Remove(filepath.Join(c.Connector.Dir(), "rendezvous.db")))
		must(t, c.RestartRendezvous(ctx, nil))
		must(t, c.WaitOnline(ctx, c.Connector, a, b, d))
		for _, n := range []*Node{a, b, d} {
			must(t, c.until(ctx, n.Name+" keeps what the former store asked for", func() (bool, error) {
				return strings.Contains(n.Agent().Log(), "tunnel kept"), nil
			}))
		}
		must(t, c.Apply(ctx, "all-edges", a, b, d))
		for _, p := range pairs {
			direct(ctx, t, c, p[0], p[1])
		}
	})
	sameSAs(ctx, t, before, a, b, d)
}

// TestAgentKilled: the tunnels of killed agents live on and are adopted when
// they come back: one side's, the other's, or both. Connections of others stay
// untouched.
func TestAgentKilled(t *testing.T) {
	ctx, c := start(t, ClusterOptions{})
	a, b, _ := trio(ctx, t, c)
	stranger := addStranger(ctx, t, a)
	before := standing(ctx, t, a, b)
	for _, victims := range [][]*Node{{a}, {b}, {a, b}} {
		during(ctx, t, a, b, func() {
			for _, n := range victims {
				n.Agent().Kill()
			}
			for _, n := range victims {
				must(t, n.StartAgent(ctx))
			}
			for _, n := range victims {
				must(t, c.WaitAdopted(ctx, n, 3))
			}
		})
		sameSAs(ctx, t, before, a, b)
	}

	// What the tunnel lacks is made beside what stands.
	a.Agent().Kill()
	lacks := c.Connector.Name + "-n2p"
	_, err := a.Swanctl(ctx, "--terminate", "--child", lacks)
	must(t, err)
	must(t, a.StartAgent(ctx))
	must(t, c.WaitAdopted(ctx, a, 3))
	sameSAs(ctx, t, before, a)
	sas, err := a.Swanctl(ctx, "--list-sas")
	must(t, err)
	if !strings.Contains(sas, lacks+":") {
		t.Errorf("no CHILD SA %s:\n%s", lacks, sas)
	}

	conns, err := a.Swanctl(ctx, "--list-conns")
	must(t, err)
	if !strings.Contains(conns, stranger) {
		t.Errorf("the connection of somebody else is gone:\n%s", conns)
	}
}

// TestNATReboot: a NAT that gives each destination another port forgets them
// all. What the peer sends to the old one dies, although what the node itself
// sends gets through.
func TestNATReboot(t *testing.T) {
	t.Parallel()
	ctx, c := start(t, ClusterOptions{})
	a, router := edge(ctx, t, c, "edge1", lab.Symmetric)
	b, _ := edge(ctx, t, c, "edge2", lab.AddressRestricted)
	must(t, c.WaitDiscovered(ctx, a, b))
	must(t, c.Apply(ctx, "all-edges", a, b))
	old := direct(ctx, t, c, a, b).Paths[b.Name].Remote
	stream, err := b.StartStream(ctx, a)
	must(t, err)
	defer stream.Stop()
	must(t, router.Reboot())
	_, err = c.WaitPair(ctx, a, b, func(p *Pair) bool { return p.State == "direct" && p.Paths[b.Name].Remote != old })
	must(t, err)
	pings(ctx, t, a, b)
	pings(ctx, t, b, a)
	echos := stream.Stop()
	t.Logf("interrupted for %v", echos.Longest())
	if echos.Lost() == 0 {
		t.Error("no ping was lost: nothing broke")
	}
}

// TestLinkDown: a line that fails for a while takes its node's tunnels with it
// and nobody else's; they come back with it.
func TestLinkDown(t *testing.T) {
	t.Parallel()
	ctx, c := start(t, ClusterOptions{})
	a, b, d := trio(ctx, t, c)
	during(ctx, t, b, d, func() {
		must(t, a.Outside().SetUp(false))
		pass(ctx, t, 2*awayFor)
		must(t, a.Outside().SetUp(true))
		for _, n := range []*Node{b, d, c.Connector} {
			answered(ctx, t, c, a, n)
		}
		must(t, c.WaitOnline(ctx, a))
		for _, n := range []*Node{b, d, c.Connector} {
			direct(ctx, t, c, a, n)
		}
	})
	pings(ctx, t, a, b)
	pings(ctx, t, b, a)
}

// TestLossyLine: a fifth of the packets lost each way is no reason to give up a
// path.
func TestLossyLine(t *testing.T) {
	t.Parallel()
	ctx, c := start(t, ClusterOptions{})
	a, b, _ := trio(ctx, t, c)
	stream, err := a.StartStream(ctx, b)
	must(t, err)
	defer stream.Stop()
	must(t, a.Outside().SetLink(lab.Link{Loss: 0.2}))
	pass(ctx, t, lossyFor)
	must(t, a.Outside().SetLink(lab.Link{}))
	echos := stream.Stop()
	t.Logf("%d of %d pings lost, for %v at a stretch", echos.Lost(), len(echos), echos.Longest())
	// Of round trips 64 % survive.
	if echos.Lost() > len(echos)/2 {
		t.Errorf("%d of %d pings lost; want no more than the line loses", echos.Lost(), len(echos))
	}
	direct(ctx, t, c, a, b)
	pings(ctx, t, a, b)
	pings(ctx, t, b, a)
}

// TestConnectorGone: without connector and rendezvous direct tunnels live on,
// and a pair that breaks is direct again by itself.
func TestConnectorGone(t *testing.T) {
	t.Parallel()
	ctx, c := start(t, ClusterOptions{})
	a, b, d := trio(ctx, t, c)
	must(t, c.Connector.PowerOff())
	during(ctx, t, a, d, func() {
		during(ctx, t, a, b, func() {
			for _, n := range []*Node{a, b, d} {
				must(t, c.until(ctx, n.Name+" misses the rendezvous", func() (bool, error) {
					s, err := n.Status(ctx)
					return err == nil && !s.Rendezvous.Connected, nil
				}))
			}
		})
		must(t, b.RestartCharon())
		answered(ctx, t, c, a, b)
		answered(ctx, t, c, b, a)
		answered(ctx, t, c, b, d)
	})

	must(t, c.Connector.SetUp(true))
	_, err := c.Connector.StartCharon(lab.CharonOptions{})
	must(t, err)
	must(t, c.RestartRendezvous(ctx, nil))
	must(t, c.Connector.StartAgent(ctx))
	must(t, c.WaitOnline(ctx, c.Connector, a, b, d))
	for _, p := range [][2]*Node{{a, b}, {b, d}, {a, d}, {a, c.Connector}, {b, c.Connector}, {d, c.Connector}} {
		direct(ctx, t, c, p[0], p[1])
	}
	pings(ctx, t, a, b)
	pings(ctx, t, b, a)
}
