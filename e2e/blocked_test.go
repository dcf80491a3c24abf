package e2e

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

// A network that lets out UDP and drops TCP to the rendezvous: `bodkin status`
// says so, and the agent is there as soon as the firewall is opened.
func TestTCPBlocked(t *testing.T) {
	ctx, c := start(t, ClusterOptions{})
	r, err := c.Router("firewall", lab.RouterOptions{NAT: lab.PortRestricted})
	must(t, err)
	nft := func(rules string) {
		t.Helper()
		if out, err := r.Run(ctx, "nft", rules); err != nil {
			t.Fatalf("nft %s: %v: %s", rules, err, out)
		}
	}
	nft("add table ip blocked; add chain ip blocked forward { type filter hook forward priority -10; }; add rule ip blocked forward tcp dport 7443 reject")
	n, err := c.AddEdge(ctx, "edge1", r)
	must(t, err)
	var said string
	const want = "UDP passes, TCP 7443 does not: a firewall on this network blocks it"
	must(t, c.until(ctx, "status names the firewall", func() (bool, error) {
		out, err := n.Run(ctx, bin, "status", "--socket", n.Socket(), "-o", "json")
		if err != nil {
			return false, ended(n.agent) // not up yet
		}
		var status struct{ Rendezvous struct{ Error string } }
		if err := json.Unmarshal([]byte(out), &status); err != nil {
			return false, err
		}
		said = status.Rendezvous.Error
		return strings.Contains(said, want), nil
	}))
	nft("delete table ip blocked")
	must(t, c.WaitOnline(ctx, n))
}

// A network that no longer lets UDP through, while nothing leaves the edge and the
// connector goes on relaying to it: its tunnel with the connector is found dead by
// what STUN says, long before charon's dead peer detection.
func TestUDPBlocked(t *testing.T) {
	t.Parallel()
	ctx, c := start(t, ClusterOptions{})
	a, ra := edge(ctx, t, c, "edge1", lab.PortRestricted)
	b, _ := edge(ctx, t, c, "edge2", lab.PortRestricted)
	must(t, c.Apply(ctx, "all-edges", a, b))
	direct(ctx, t, c, a, b)
	// So little that its end alone is no reason for edge1 to look.
	ping, err := b.Start(ctx, "ping", nil, "ping", "-i", "1", "-I", b.Pod.String(), a.Pod.String())
	must(t, err)
	defer ping.Kill()
	pass(ctx, t, 3*time.Second)

	out, err := ra.Run(ctx, "nft", "add table ip blocked; add chain ip blocked forward { type filter hook forward priority -10; }; add rule ip blocked forward meta l4proto udp drop")
	if err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
	began := time.Now()
	must(t, c.until(ctx, "the pair is down", func() (bool, error) {
		p, err := c.Pair(ctx, a, b)
		return err == nil && p != nil && p.State == "down" && strings.Contains(p.Reason, "UDP"), err
	}))
	took := time.Since(began)
	t.Logf("down after %v", took)
	if took > time.Minute {
		t.Errorf("down after %v, which is charon's dead peer detection's time", took)
	}
}
