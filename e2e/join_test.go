package e2e

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

// joined adds an edge behind a port-restricted router of its own that joins.
func joined(ctx context.Context, t *testing.T, c *Cluster, name string) *Node {
	t.Helper()
	j, err := c.JoinEdge(ctx, name, behind(t, c, name))
	must(t, err)
	t.Logf("%s: %d ms from the start of its join to online", j.Name, j.Took.Milliseconds())
	return j.Node
}

func behind(t *testing.T, c *Cluster, name string) lab.HostOptions {
	t.Helper()
	r, err := c.Router(name+"-nat", lab.RouterOptions{NAT: lab.PortRestricted})
	must(t, err)
	return lab.HostOptions{Router: r}
}

// refusedJoin runs a join that has to end with the exit code and one line that
// holds the words.
func refusedJoin(ctx context.Context, t *testing.T, n *Node, argv []string, code int, words string) {
	t.Helper()
	out, err := n.Run(ctx, argv...)
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok || exit.ExitCode() != code {
		t.Errorf("%v: %v, want exit code %d; printed:\n%s", argv[1:], err, code, out)
	}
	last := out[strings.LastIndex(strings.TrimSpace(out), "\n")+1:]
	if !strings.HasPrefix(last, "bodkin: ") || !strings.Contains(last, words) {
		t.Errorf("%v ends with %q; want a line with %q", argv[1:], last, words)
	}
}

// noFiles fails the test if a join that was refused has left anything but a key.
func noFiles(t *testing.T, n *Node) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(n.config))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "node.key" {
			t.Errorf("%s is left after a join that was refused", e.Name())
		}
	}
}

// TestJoin: two machines become nodes with a token each, and a community makes
// their pair direct.
func TestJoin(t *testing.T) {
	ctx, c := start(t, ClusterOptions{OwnCA: true})
	a, b := joined(ctx, t, c, "edge1"), joined(ctx, t, c, "edge2")
	must(t, c.WaitOnline(ctx, c.Connector, a, b))
	must(t, c.Apply(ctx, "all-edges", a, b))
	direct(ctx, t, c, a, b)
	direct(ctx, t, c, a, c.Connector)
	pings(ctx, t, a, b)
	listing, err := a.Swanctl(ctx, "--list-sas")
	must(t, err)
	for _, want := range []string{"O=bodkin, CN=" + a.Name, "O=bodkin, CN=" + b.Name} {
		if !strings.Contains(listing, want) {
			t.Errorf("no %q in\n%s", want, listing)
		}
	}
}

// TestJoinKilled: a join that is killed goes on when it is run again, wherever it
// was: with the same token, which is good for one node, and the same key.
func TestJoinKilled(t *testing.T) {
	ctx, c := start(t, ClusterOptions{OwnCA: true})
	n, err := c.JoinableEdge("edge1", behind(t, c, "edge1"))
	must(t, err)
	token, err := c.Token(ctx, "--name", n.Name)
	must(t, err)
	keyPath := filepath.Join(filepath.Dir(n.config), "node.key")
	var key []byte
	for _, step := range []string{"token", "machine", "rendezvous", "key", "certificate", "configuration", "files", "service"} {
		p, err := n.Start(ctx, "join-until-"+step, nil, n.JoinArgs(token)...)
		must(t, err)
		for !strings.Contains(p.Log(), "  "+step+" ") && ended(p) == nil {
			time.Sleep(time.Millisecond)
		}
		p.Kill()
		if log := p.Log(); strings.Contains(log, "bodkin: ") {
			t.Fatalf("after %s:\n%s", step, log)
		}
		now, err := os.ReadFile(keyPath)
		if key == nil && err == nil {
			key = now
		}
		if !bytes.Equal(now, key) {
			t.Fatalf("another key after %s", step)
		}
	}
	_, err = n.Join(ctx, token)
	must(t, err)
	if now, err := os.ReadFile(keyPath); err != nil || !bytes.Equal(now, key) {
		t.Errorf("another key in the end (%v)", err)
	}
	must(t, c.WaitOnline(ctx, n))
}

// TestJoinRefused: what a token does not permit is one clear line, and leaves
// nothing half-written.
func TestJoinRefused(t *testing.T) {
	ctx, c := start(t, ClusterOptions{OwnCA: true})
	a := joined(ctx, t, c, "edge1")
	b, err := c.JoinableEdge("edge2", behind(t, c, "edge2"))
	must(t, err)
	token := func(flags ...string) string {
		t.Helper()
		token, err := c.Token(ctx, flags...)
		must(t, err)
		return token
	}
	once := token()
	_, err = b.Run(ctx, b.JoinArgs(once, "--name", b.Name)...)
	must(t, err)
	d, err := c.JoinableEdge("edge3", behind(t, c, "edge3"))
	must(t, err)
	refusedJoin(ctx, t, d, d.JoinArgs(once, "--name", d.Name), 4, "used")

	refusedJoin(ctx, t, d, d.JoinArgs(token("--name", "beijing.edge4"), "--name", d.Name), 4, "beijing.edge4")
	refusedJoin(ctx, t, d, d.JoinArgs(token(), "--name", a.Name), 4, a.Name)
	refusedJoin(ctx, t, d, d.JoinArgs(token(), "--name", d.Name, "--type", "connector", "--public-address", "198.51.100.9"), 4, "connector")
	refusedJoin(ctx, t, d, d.JoinArgs("bodkin-join-hunter2", "--name", d.Name), 2, "not a join token")

	short := token("--ttl", "1s")
	must(t, c.until(ctx, "the token expires", func() (bool, error) {
		out, err := d.Run(ctx, d.JoinArgs(short, "--name", a.Name)...) // a name that is taken: it cannot succeed
		return err != nil && strings.Contains(out, "expired"), nil
	}))
	refusedJoin(ctx, t, d, d.JoinArgs(short, "--name", d.Name), 4, "expired")

	forged := strings.TrimSuffix(once, once[len(once)-4:]) + "AAAA" // another CA's hash
	refusedJoin(ctx, t, d, d.JoinArgs(forged, "--name", d.Name), 4, "somebody is in between")
	noFiles(t, d)
}

// TestRenewsItself: certificates that live for seconds are renewed without anybody
// noticing.
func TestRenewsItself(t *testing.T) {
	ctx, c := start(t, ClusterOptions{OwnCA: true, Rendezvous: "certificateLifetime: 1m\n"})
	a, b := joined(ctx, t, c, "edge1"), joined(ctx, t, c, "edge2")
	must(t, c.WaitOnline(ctx, c.Connector, a, b))
	must(t, c.Apply(ctx, "all-edges", a, b))
	direct(ctx, t, c, a, b)
	first := map[*Node]string{}
	for _, n := range []*Node{a, b} {
		s, err := n.Status(ctx)
		must(t, err)
		first[n] = s.Certificate.Serial
	}
	sent, lost := streams(ctx, t, func() {
		for _, n := range []*Node{a, b} {
			waitCertificate(ctx, t, c, n, "has renewed twice", func(got Certificate) bool {
				return strings.Count(n.Agent().Log(), "certificate renewed") >= 2 && got.Serial != first[n]
			})
		}
	}, [2]*Node{a, b}, [2]*Node{a, c.Connector})
	if lost > 0 {
		t.Errorf("%d of %d pings lost", lost, sent)
	}
	direct(ctx, t, c, a, b)
}
