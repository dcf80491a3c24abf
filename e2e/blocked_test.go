package e2e

import (
	"encoding/json"
	"strings"
	"testing"

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
