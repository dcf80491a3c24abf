package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

// TestAdoptedTunnelDies: an agent that comes back while the rendezvous is away can
// check no path that it finds in charon, and tells by the traffic alone when one has
// died. The relay, which it finds there as well, takes over.
func TestAdoptedTunnelDies(t *testing.T) {
	t.Parallel()
	ctx, c := start(t, ClusterOptions{})
	a, ra := edge(ctx, t, c, "edge1", lab.PortRestricted)
	b, rb := edge(ctx, t, c, "edge2", lab.PortRestricted)
	must(t, c.WaitOnline(ctx, c.Connector, a, b))
	must(t, c.ApplyLimited(ctx, "all-edges", "never", a, b))
	relayed(ctx, t, c, a, b)
	must(t, c.ApplyLimited(ctx, "all-edges", "auto", a, b))
	direct(ctx, t, c, a, b)

	c.Rendezvous().Kill()
	a.Agent().Kill()
	must(t, a.StartAgent(ctx))
	must(t, c.until(ctx, a.Name+" adopts its tunnels", func() (bool, error) {
		s, err := a.Status(ctx)
		if err != nil {
			return false, nil // not up yet
		}
		standing := 0
		for _, tunnel := range s.Tunnels {
			if tunnel.State == "direct" && !tunnel.Monitored {
				standing++
			}
		}
		return standing == 2, nil
	}))
	stream, err := a.StartStream(ctx, b)
	must(t, err)
	defer stream.Stop()
	pass(ctx, t, 2*time.Second)
	must(t, c.SetPath(ra.Host, rb.Host, false))
	pass(ctx, t, 2*time.Second)
	answered(ctx, t, c, a, b)
	echos := stream.Stop()
	t.Logf("interrupted for %v", echos.Longest())
	if echos.Longest() < 2*time.Second {
		t.Error("nothing broke")
	}
}

// TestUnloaded: what `swanctl --load-conns` takes out of charon, the agent puts back,
// and no ping is lost over it.
func TestUnloaded(t *testing.T) {
	t.Parallel()
	ctx, c := start(t, ClusterOptions{})
	a, _ := edge(ctx, t, c, "edge1", lab.PortRestricted)
	b, _ := edge(ctx, t, c, "edge2", lab.PortRestricted)
	must(t, c.Apply(ctx, "all-edges", a, b))
	direct(ctx, t, c, a, b)
	stream, err := a.StartStream(ctx, b)
	must(t, err)
	defer stream.Stop()

	_, err = a.Swanctl(ctx, "--load-conns")
	must(t, err)
	conns, err := a.Swanctl(ctx, "--list-conns")
	must(t, err)
	if strings.Contains(conns, b.Name+":") {
		t.Fatalf("swanctl took nothing out:\n%s", conns)
	}
	must(t, c.until(ctx, "the agent puts the connections back", func() (bool, error) {
		conns, err := a.Swanctl(ctx, "--list-conns")
		return strings.Contains(conns, b.Name+":"), err
	}))
	if echos := stream.Stop(); echos.Lost() > 0 {
		t.Errorf("%d of %d pings lost", echos.Lost(), len(echos))
	}
}
