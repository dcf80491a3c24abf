package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

// patience bounds one test: far beyond what it needs, for machines that are
// slow at times.
const patience = 3 * time.Minute

// bin is the binary under test, with the race detector in it.
var bin string

// What e2e/kernel sets in its guest, where there is no Go: the binary under
// test, and who does ESP.
var (
	prebuilt  = os.Getenv("BODKIN_E2E_BIN")
	kernelESP = os.Getenv("BODKIN_E2E_ESP") == "kernel"
)

func TestMain(m *testing.M) { os.Exit(build(m)) }

func build(m *testing.M) int {
	if prebuilt != "" {
		bin = prebuilt
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "bodkin-e2e")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	bin = filepath.Join(dir, "bodkin")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-race", "-o", bin, "github.com/bodkin-net/bodkin/cmd/bodkin")
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building bodkin: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// start makes a cluster that the test's end closes; a failed test's logs are
// printed, and a race in any process fails the test.
func start(t *testing.T, o ClusterOptions) (context.Context, *Cluster) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: run as root (make test does)")
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	o.Bin = bin
	o.Lab.KernelESP = kernelESP
	c, err := NewCluster(ctx, o)
	if c != nil {
		t.Cleanup(func() {
			c.checkLogs(t)
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return ctx, c
}

// edge adds an edge behind a router of its own.
func edge(ctx context.Context, t *testing.T, c *Cluster, name string, kind lab.NATKind) (*Node, *lab.Router) {
	t.Helper()
	r, err := c.Router(name+"-nat", lab.RouterOptions{NAT: kind})
	if err != nil {
		t.Fatal(err)
	}
	n, err := c.AddEdge(ctx, name, r)
	if err != nil {
		t.Fatal(err)
	}
	return n, r
}

// direct waits until a pair is direct.
func direct(ctx context.Context, t *testing.T, c *Cluster, a, b *Node) *Pair {
	t.Helper()
	p, err := c.WaitPair(ctx, a, b, IsDirect)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// pings fails the test if one of a few pings through the tunnel is lost.
func pings(ctx context.Context, t *testing.T, a, b *Node) {
	t.Helper()
	res, err := a.PingPod(ctx, b, 10, 20*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if res.Lost() != 0 {
		t.Fatalf("%s → %s: %d of %d pings lost", a.Name, b.Name, res.Lost(), res.Sent)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// checkLogs prints every log of a failed test, and fails one in which the race
// detector spoke or a process panicked.
func (c *Cluster) checkLogs(t *testing.T) {
	t.Helper()
	logs, err := filepath.Glob(filepath.Join(c.Dir(), "*", "*.log"))
	if err != nil {
		t.Error(err)
	}
	for _, path := range logs {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
			continue
		}
		text := string(b)
		if strings.Contains(text, "DATA RACE") || strings.Contains(text, "panic:") {
			t.Errorf("%s:\n%s", path, text)
		} else if t.Failed() && !strings.HasSuffix(path, "charon.log") {
			t.Logf("%s:\n%s", path, text)
		}
	}
}
