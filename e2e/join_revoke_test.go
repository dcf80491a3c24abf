package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

// byHand is a connection that Bodkin knows nothing of, from one of a cluster's nodes
// to its connector: what charon alone makes of a peer's certificate.
type byHand struct {
	c    *Cluster
	edge *Node
}

const handConnection = `connections {
  byhand {
    version = 2
    local_port = 4500
    remote_port = %d
    remote_addrs = %s
    proposals = aes128-sha256-x25519
    local {
      auth = pubkey
      id = "O=bodkin, CN=%s"
    }
    remote {
      auth = pubkey
      id = "O=bodkin, CN=%s"
    }
    children {
      byhand {
        local_ts = %s
        remote_ts = %s
        esp_proposals = aes128gcm16
      }
    }
  }
}
`

// load gives both ends' charons the connection.
func (h byHand) load(ctx context.Context, t *testing.T) {
	t.Helper()
	hub := h.c.Connector
	for _, end := range []struct {
		at, peer *Node
		remote   string
	}{{h.edge, hub, h.c.PublicAddr.String()}, {hub, h.edge, "%any"}} {
		must(t, end.at.WriteSwanctl(fmt.Sprintf(handConnection, ikePort, end.remote, end.at.Name, end.peer.Name, end.at.Subnet, end.peer.Subnet)))
		if out, err := end.at.Swanctl(ctx, "--load-conns"); err != nil {
			t.Fatal(err, out)
		}
	}
}

// unload takes it away: it would be in Bodkin's way.
func (h byHand) unload(ctx context.Context, t *testing.T) {
	t.Helper()
	for _, n := range []*Node{h.edge, h.c.Connector} {
		must(t, n.WriteSwanctl("connections {\n}\n"))
		if out, err := n.Swanctl(ctx, "--load-conns"); err != nil {
			t.Fatal(err, out)
		}
	}
}

// try makes the tunnel and ends it again, and returns what charon said.
func (h byHand) try(ctx context.Context, t *testing.T) (string, bool) {
	t.Helper()
	out, err := h.edge.Swanctl(ctx, "--initiate", "--child", "byhand", "--timeout", "20")
	if err == nil {
		if out, err := h.edge.Swanctl(ctx, "--terminate", "--ike", "byhand"); err != nil {
			t.Fatal(err, out)
		}
	}
	return out, err == nil
}

// refused fails the test unless the connector's charon refuses the edge because its
// certificate is revoked.
func (h byHand) refused(ctx context.Context, t *testing.T) {
	t.Helper()
	log := h.c.Connector.Dir() + "/charon.log"
	before := len(mustRead(t, log))
	if out, ok := h.try(ctx, t); ok || !strings.Contains(out, "AUTHENTICATION_FAILED") {
		t.Errorf("the connector's charon takes a certificate that is revoked:\n%s", out)
	}
	if said := mustRead(t, log)[before:]; !strings.Contains(said, "certificate was revoked on") {
		t.Errorf("the connector's charon does not say that the certificate is revoked:\n%s", said)
	}
}

// waitRefused waits until a node's agent says of the rendezvous what it should.
func waitRefused(ctx context.Context, t *testing.T, c *Cluster, n *Node, words string) {
	t.Helper()
	var last string
	err := c.until(ctx, n.Name+" is told: "+words, func() (bool, error) {
		out, err := n.Run(ctx, n.cluster.bin, "status", "--socket", n.Socket(), "-o", "json")
		if err != nil {
			return false, nil
		}
		var s struct {
			Rendezvous struct {
				Connected bool   `json:"connected"`
				Error     string `json:"error"`
			} `json:"rendezvous"`
		}
		err = json.Unmarshal([]byte(out), &s)
		last = s.Rendezvous.Error
		return !s.Rendezvous.Connected && strings.Contains(last, words), err
	})
	if err != nil {
		t.Fatalf("%v; last told %q", err, last)
	}
}

// TestRevoked: a node that is revoked is out: of its session, of its peers, of
// charon, and when it comes back. Deleted, it may join anew.
func TestRevoked(t *testing.T) {
	ctx, c := start(t, ClusterOptions{OwnCA: true})
	a, b, d := joined(ctx, t, c, "edge1"), joined(ctx, t, c, "edge2"), joined(ctx, t, c, "edge3")
	must(t, c.WaitOnline(ctx, c.Connector, a, b, d))
	must(t, c.Apply(ctx, "all-edges", a, b, d))
	for _, pair := range [][2]*Node{{a, b}, {a, d}, {b, d}, {a, c.Connector}} {
		direct(ctx, t, c, pair[0], pair[1])
	}
	spare, err := c.Token(ctx, "--name", a.Name)
	must(t, err)

	during(ctx, t, b, d, func() {
		_, err = c.Bodkin(ctx, "node", "revoke", a.Name, "--reason", "stolen from the shop")
		must(t, err)
		waitRefused(ctx, t, c, a, "stolen from the shop")
		for _, n := range []*Node{b, d, c.Connector} {
			must(t, c.until(ctx, n.Name+" drops its tunnel to "+a.Name, func() (bool, error) {
				conns, err := n.Swanctl(ctx, "--list-conns")
				sas, err2 := n.Swanctl(ctx, "--list-sas")
				return err == nil && err2 == nil && !strings.Contains(conns, a.Name) && !strings.Contains(sas, a.Name), nil
			}))
			must(t, c.until(ctx, n.Name+" gives charon the list", func() (bool, error) {
				return strings.Contains(n.Agent().Log(), "certificates revoked"), nil
			}))
		}
	})

	// charon by itself, before and after it is restarted.
	must(t, a.Agent().Stop(ctx))
	hand := byHand{c, a}
	if out, err := a.Swanctl(ctx, "--terminate", "--ike", c.Connector.Name); err != nil {
		t.Log(out) // the connector has ended it already
	}
	hand.load(ctx, t)
	hand.refused(ctx, t)
	loaded := strings.Count(c.Connector.Agent().Log(), "list of revoked certificates loaded into charon")
	c.Connector.KillCharon()
	_, err = c.Connector.StartCharon(lab.CharonOptions{})
	must(t, err)
	must(t, c.until(ctx, "the connector's charon has the list again", func() (bool, error) {
		return strings.Count(c.Connector.Agent().Log(), "list of revoked certificates loaded into charon") > loaded, nil
	}))
	hand.load(ctx, t)
	hand.refused(ctx, t)
	hand.unload(ctx, t)

	// It comes back, with what it has and with a token.
	must(t, a.StartAgent(ctx))
	waitRefused(ctx, t, c, a, "was revoked on")
	refusedJoin(ctx, t, a, a.JoinArgs(spare), 4, "bodkin node delete "+a.Name)

	_, err = c.Bodkin(ctx, "node", "delete", a.Name)
	must(t, err)
	must(t, a.Agent().Stop(ctx))
	token, err := c.Token(ctx, "--name", a.Name)
	must(t, err)
	_, err = a.Rejoin(ctx, token)
	must(t, err)
	must(t, c.WaitOnline(ctx, a, b, d))
	direct(ctx, t, c, a, b)
	direct(ctx, t, c, a, c.Connector)
	pings(ctx, t, a, b)
}

// TestByHand is the control of TestRevoked: without a revocation charon takes the
// certificates of joined nodes in a connection that is not Bodkin's.
func TestByHand(t *testing.T) {
	ctx, c := start(t, ClusterOptions{OwnCA: true})
	a := joined(ctx, t, c, "edge1")
	direct(ctx, t, c, a, c.Connector)
	for _, n := range []*Node{a, c.Connector} {
		must(t, n.Agent().Stop(ctx))
	}
	hand := byHand{c, a}
	hand.load(ctx, t)
	if out, err := a.Swanctl(ctx, "--terminate", "--ike", c.Connector.Name); err != nil {
		t.Fatal(err, out)
	}
	if out, ok := hand.try(ctx, t); !ok {
		t.Errorf("no tunnel:\n%s", out)
	}
}

// TestApproval: with manual approval a node that joined waits for an operator, and
// comes online when it is approved.
func TestApproval(t *testing.T) {
	ctx, c := start(t, ClusterOptions{OwnCA: true, Rendezvous: "approval: manual\n", NoConnector: true})
	n, err := c.JoinableEdge("edge1", behind(t, c, "edge1"))
	must(t, err)
	token, err := c.Token(ctx, "--name", n.Name)
	must(t, err)
	out, err := n.Run(ctx, n.JoinArgs(token)...)
	if err != nil || !strings.Contains(out, "bodkin node approve "+n.Name) {
		t.Fatalf("%v:\n%s", err, out)
	}
	must(t, n.FitToLab())
	must(t, n.StartAgent(ctx))
	waitRefused(ctx, t, c, n, "waits for approval")
	_, err = c.Bodkin(ctx, "node", "approve", n.Name)
	must(t, err)
	must(t, c.WaitOnline(ctx, n))
}

func mustRead(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return string(b)
}
