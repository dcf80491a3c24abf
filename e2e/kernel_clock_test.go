//go:build kernelesp

package e2e

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

// stepClock moves the machine's clock, which may be done in a machine of the
// tests' own alone.
func stepClock(t *testing.T, by time.Duration) {
	t.Helper()
	first, err := os.ReadFile("/proc/1/cmdline")
	must(t, err)
	if !bytes.Contains(first, []byte("/init\x00")) || prebuilt != "/bodkin" {
		t.Fatalf("not in the guest of e2e/kernel (process 1 is %q): its clock is left alone", first)
	}
	var now unix.Timespec
	must(t, unix.ClockGettime(unix.CLOCK_REALTIME, &now))
	next := unix.NsecToTimespec(now.Nano() + by.Nanoseconds())
	must(t, unix.ClockSettime(unix.CLOCK_REALTIME, &next))
}

// limited gives a node a certificate that is valid for an hour to both sides of
// now, and waits until its agent uses it.
func limited(ctx context.Context, t *testing.T, c *Cluster, n *Node) {
	t.Helper()
	now := time.Now()
	_, _, err := c.PKI().Issue(n.Name, lab.CertOptions{NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour)})
	must(t, err)
	must(t, n.Agent().Signal(unix.SIGHUP))
	must(t, c.until(ctx, n.Name+" has the certificate", func() (bool, error) {
		return strings.Contains(n.Agent().Log(), "certificate renewed"), nil
	}))
}

// TestKernelClock: the clock of all machines jumps by hours, to and fro. Nobody
// loses a tunnel, new ones can be made as long as certificates are valid, and an
// agent whose certificate is not says so.
func TestKernelClock(t *testing.T) {
	const step, settle = 5 * time.Hour, 6 * time.Second
	ctx, c := startKernel(t)
	a, _ := edge(ctx, t, c, "edge1", lab.PortRestricted)
	b, _ := edge(ctx, t, c, "edge2", lab.PortRestricted)
	must(t, c.WaitOnline(ctx, c.Connector, a, b))
	must(t, c.Apply(ctx, "all-edges", a, b))
	direct(ctx, t, c, a, b)
	direct(ctx, t, c, a, c.Connector)
	limited(ctx, t, c, a)
	// The kernel reckons the lifetimes of SAs by the wall clock, and knows how to
	// take a jump only after it has looked at an SA once, a second after it was
	// installed. One as young as that expires, and is made again.
	must(t, sleep(ctx, settle))
	for _, by := range []time.Duration{step, -step, -step, step} {
		check := undisturbed(ctx, t, c, a, b)
		sent, lost := streams(ctx, t, func() {
			stepClock(t, by)
			must(t, sleep(ctx, settle))
		}, [2]*Node{a, b}, [2]*Node{a, c.Connector})
		t.Logf("clock stepped by %v: %d of %d pings lost", by, lost, sent)
		if lost > 0 {
			t.Errorf("clock stepped by %v: %d of %d pings lost", by, lost, sent)
		}
		check()
		s, err := a.Status(ctx)
		must(t, err)
		for _, tun := range s.Tunnels {
			if age := time.Since(tun.Since); age < 0 || age > patience {
				t.Errorf("clock stepped by %v: the tunnel to %s is said to stand for %v", by, tun.Peer, age)
			}
		}
	}
	// The clock is right again.
	for _, then := range []struct {
		by   time.Duration
		says string
	}{{step, "expired on"}, {-2 * step, "is not valid before"}, {step, ""}} {
		stepClock(t, then.by)
		waitCertificate(ctx, t, c, a, "it is judged by the clock", func(got Certificate) bool {
			return then.says == "" && got.Problem == "" ||
				then.says != "" && strings.Contains(got.Problem, then.says) && strings.Contains(got.Problem, "this machine's clock says")
		})
		must(t, b.RestartAgent(ctx)) // whose certificate is valid for longer
		must(t, c.WaitOnline(ctx, b))
	}
	if out, err := a.Swanctl(ctx, "--terminate", "--ike", b.Name); err != nil {
		t.Fatal(err, out)
	}
	must(t, c.until(ctx, "the tunnel is made anew", func() (bool, error) {
		res, err := a.PingPod(ctx, b, 1, time.Second)
		return err == nil && res.Lost() == 0, err
	}))
	direct(ctx, t, c, a, b)
}
