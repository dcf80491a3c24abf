package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

// diagnosis is what `bodkin doctor -o json` prints.
type diagnosis struct {
	Checks []struct {
		ID, Verdict, Found, Means string
		Mend                      []string
	}
}

// examine runs doctor on a host, as argv before it says, and returns what it says.
func (c *Cluster) examine(ctx context.Context, h *lab.Host, config string, checks []string, before ...string) (diagnosis, error) {
	argv := slices.Concat(before, []string{c.bin, "doctor", "-o", "json", "--config", config})
	for _, check := range checks {
		argv = append(argv, "--check", check)
	}
	var d diagnosis
	out, err := h.Run(ctx, argv...) // exit code 5 when there are problems
	if json.Unmarshal([]byte(out), &d) != nil {
		return d, fmt.Errorf("%w\n%s", err, out)
	}
	problems := 0
	for _, x := range d.Checks {
		if x.Verdict == "fail" {
			problems++
		}
	}
	if (err != nil) != (problems > 0) || err != nil && !strings.Contains(err.Error(), "exit status 5") {
		return d, fmt.Errorf("%d problems, and doctor ended with %w", problems, err)
	}
	return d, nil
}

// noFalseAlarm demands that all is well on a node of a cluster that works.
func noFalseAlarm(ctx context.Context, t *testing.T, c *Cluster, n *Node) {
	d, err := c.examine(ctx, n.Host, n.config, nil)
	if err != nil {
		t.Errorf("%s: %v", n.Name, err)
	}
	for _, x := range d.Checks {
		if x.Verdict != "ok" && (x.Verdict != "skipped" || x.ID != "mtu" || n != c.Connector) {
			t.Errorf("%s: %s: %s: %s", n.Name, x.ID, x.Verdict, x.Found)
		}
	}
	out, err := n.Run(ctx, c.bin, "doctor", "--config", n.config)
	if err != nil || !strings.Contains(out, "0 problems, 0 warnings") {
		t.Errorf("%s: %v\n%s", n.Name, err, out)
	}
	t.Logf("%s\n%s", n.Name, out)
}
