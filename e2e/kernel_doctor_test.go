//go:build kernelesp

package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

// TestKernelDoctor: policies and routes that charon makes for ESP in the kernel are
// no cause for alarm; one that catches the way to the rendezvous is.
func TestKernelDoctor(t *testing.T) {
	ctx, c := startKernel(t)
	a, _ := edge(ctx, t, c, "edge1", lab.PortRestricted)
	b, _ := edge(ctx, t, c, "edge2", lab.Symmetric)
	must(t, c.Apply(ctx, "all-edges", c.Connector, a, b))
	direct(ctx, t, c, a, b)
	for _, n := range []*Node{a, b, c.Connector} {
		noFalseAlarm(ctx, t, c, n)
	}
	policy := fmt.Sprintf("src %s dst %s dir out", a.Addr(), c.PublicAddr)
	_, err := a.Run(ctx, strings.Fields(fmt.Sprintf("ip xfrm policy add %s priority 1 tmpl src %s dst %s proto esp mode tunnel", policy, a.Addr(), c.PublicAddr))...)
	must(t, err)
	d, err := c.examine(ctx, a.Host, a.config, []string{"ipsec-capture"})
	must(t, err)
	if d.Checks[0].Verdict != "fail" {
		t.Errorf("%+v", d.Checks[0])
	}
}
