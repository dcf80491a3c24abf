package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

// operator runs commands on a node as somebody who is logged in there does.
type operator struct {
	t   *testing.T
	ctx context.Context
	c   *Cluster
	on  *Node
}

// runs expects an exit code, and words in what is printed.
func (o operator) runs(code int, command string, words ...string) string {
	o.t.Helper()
	args := strings.Fields(strings.NewReplacer("AGENT", o.on.Socket(), "RENDEZVOUS", o.c.AdminSocket).Replace(command))
	out, err := o.on.Run(o.ctx, append([]string{bin}, args...)...)
	got := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		got = exit.ExitCode()
	} else if err != nil {
		o.t.Fatalf("bodkin %s: %v", command, err)
	}
	if got != code {
		o.t.Errorf("bodkin %s: exit code %d, want %d\n%s", command, got, code, out)
	}
	for _, w := range words {
		if !strings.Contains(out, w) {
			o.t.Errorf("bodkin %s does not say %q:\n%s", command, w, out)
		}
	}
	o.t.Logf("bodkin %s\n%s", command, out)
	return out
}

// TestCommandLine asks a real cluster what an operator would: two edges with
// direct tunnels to a third, and a relayed one between them.
func TestCommandLine(t *testing.T) {
	ctx, c := start(t, ClusterOptions{})
	a, _ := edge(ctx, t, c, "edge1", lab.Symmetric)
	b, _ := edge(ctx, t, c, "edge2", lab.Symmetric)
	d, _ := edge(ctx, t, c, "edge3", lab.FullCone)
	must(t, c.WaitOnline(ctx, c.Connector, a, b, d))
	must(t, c.Apply(ctx, "all-edges", a, b, d))
	direct(ctx, t, c, a, d)
	direct(ctx, t, c, b, d)
	failed, err := c.WaitPair(ctx, a, b, (*Pair).Failed)
	must(t, err)
	if !IsRelayed(failed) {
		t.Fatalf("%+v; want it relayed", failed)
	}
	edge := operator{t, ctx, c, a}
	hub := operator{t, ctx, c, c.Connector}

	t.Run("look", func(t *testing.T) {
		edge.runs(0, "status --socket AGENT", "beijing.edge2      relayed  relay   beijing.connector", "beijing.edge3      direct", "3 peers: 2 direct, 1 relayed, 0 down")
		edge.runs(0, "status --socket AGENT -o wide", "COMMUNITIES", "all-edges")
		hub.runs(0, "nodes --socket RENDEZVOUS", "beijing.edge1", "symmetric", "full cone", "4 nodes, 4 online")
		hub.runs(0, "pairs --socket RENDEZVOUS", "beijing.edge1", "direct", "relayed")
		if out := hub.runs(0, "pairs --socket RENDEZVOUS --state relayed", "beijing.edge1", "beijing.edge2", "1 pair"); strings.Contains(out, "beijing.edge3") {
			t.Errorf("not only the relayed pair:\n%s", out)
		}
		hub.runs(0, "events --socket RENDEZVOUS --limit 500", "beijing.edge1 beijing.edge3  direct")
		hub.runs(0, "forecast --socket RENDEZVOUS all-edges", "beijing.edge1")
		hub.runs(0, "community get --socket RENDEZVOUS", "all-edges")
	})
	t.Run("pair", func(t *testing.T) { showsPair(t, hub) })
	t.Run("sas", func(t *testing.T) {
		edge.runs(0, "sas --socket AGENT", "beijing.edge3-p2p", "ESTABLISHED, IKEv2", "INSTALLED, TUNNEL")
		hub.runs(0, "sas --socket RENDEZVOUS --node beijing.edge3", "= beijing.edge3 =", "beijing.edge1: #", "beijing.edge2: #", d.Pod.String()[:len(d.Pod.String())-1])
		hub.runs(1, "sas --socket RENDEZVOUS --node beijing.edge9", "beijing.edge9")
	})
	t.Run("ping", func(t *testing.T) {
		edge.runs(0, "ping --socket AGENT beijing.edge3 -c 3 -i 20ms", "answer from", "direct ", "3 sent, 3 answered, 0 % lost")
		edge.runs(0, "ping --socket AGENT beijing.edge2 -c 3 -i 20ms", "relayed through beijing.connector", "3 sent, 3 answered, 0 % lost")
		edge.runs(1, "ping --socket AGENT beijing.edge9 -c 1", "is no peer of beijing.edge1")
	})
	t.Run("punch", func(t *testing.T) {
		hub.runs(5, "punch --socket RENDEZVOUS beijing.edge2 beijing.edge1", " s  ", "relayed: ", "all of it: bodkin pair show")
		hub.runs(1, "punch --socket RENDEZVOUS beijing.edge1 beijing.edge3", "direct already")
		after, err := c.Pair(ctx, a, b)
		must(t, err)
		if after.Attempts <= failed.Attempts {
			t.Errorf("%d attempts before, %d after", failed.Attempts, after.Attempts)
		}
	})
	t.Run("bundle", func(t *testing.T) { bundles(t, hub) })
	t.Run("metrics", func(t *testing.T) {
		client := overUnix(a.Socket())
		defer client.CloseIdleConnections()
		resp, err := client.Get("http://agent/metrics")
		must(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		must(t, err)
		out := string(body)
		for _, want := range []string{`bodkin_agent_tunnels{state="relayed"} 1`, `bodkin_agent_punch_total{`, "bodkin_agent_connected 1"} {
			if !strings.Contains(out, want) {
				t.Errorf("no %s in\n%s", want, out)
			}
		}
	})
}

// showsPair: both sides have told what they did, of an attempt that succeeded and
// of one that failed.
func showsPair(t *testing.T, hub operator) {
	hub.runs(0, "pair show --socket RENDEZVOUS beijing.edge3 beijing.edge1", "state       direct", "bytes through the tunnel", "IKE SA established", "nominated")
	hub.runs(0, "pair show --socket RENDEZVOUS beijing.edge1 beijing.edge2", "state       relayed through beijing.connector", "gives up: ", "srflx")
	for other, last := range map[string]string{"beijing.edge3": "bytes", "beijing.edge2": "failed"} {
		out := hub.runs(0, "pair show --socket RENDEZVOUS -o json beijing.edge1 "+other)
		var detail struct {
			Attempts []struct {
				Outcome string `json:"outcome"`
				Sides   map[string]struct {
					Candidates []any `json:"candidates"`
					Steps      []struct {
						Kind string `json:"kind"`
						AtMs int64  `json:"atMs"`
					} `json:"steps"`
				} `json:"sides"`
			} `json:"attempts"`
		}
		must(t, json.Unmarshal([]byte(out), &detail))
		ended := 0
		for _, attempt := range detail.Attempts {
			if attempt.Outcome == "running" {
				continue
			}
			ended++
			for _, name := range []string{"beijing.edge1", other} {
				side := attempt.Sides[name]
				var kinds []string
				for _, s := range side.Steps {
					kinds = append(kinds, s.Kind)
				}
				if text := strings.Join(kinds, " "); !strings.Contains(text, "start ") || !strings.Contains(text, "check") || !strings.Contains(text, last) || len(side.Candidates) == 0 {
					t.Errorf("%s with %s: %d candidates, steps %q; want start, check and %s", name, other, len(side.Candidates), text, last)
				}
			}
		}
		if ended == 0 {
			t.Errorf("no attempt with %s has ended:\n%s", other, out)
		}
	}
}

// bundles: the archive has what is there, and not the keys of the machine.
func bundles(t *testing.T, hub operator) {
	file := filepath.Join(hub.on.Dir(), "bundle.tar.gz")
	hub.runs(0, "bundle --file "+file+" --socket AGENT --rendezvous-socket RENDEZVOUS --config "+hub.on.config+" --rendezvous-config "+hub.c.config, file, "incomplete or missing")
	b, err := os.ReadFile(file)
	must(t, err)
	z, err := gzip.NewReader(bytes.NewReader(b))
	must(t, err)
	var all bytes.Buffer
	names := map[string]int64{}
	r := tar.NewReader(z)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		_, name, _ := strings.Cut(h.Name, "/")
		names[name] = h.Size
		_, err = io.Copy(&all, io.LimitReader(r, h.Size))
		must(t, err)
	}
	for _, name := range []string{
		"manifest.json", "version.json", "agent/status.json", "agent/sas.json", "config/agent.yaml", "config/rendezvous.yaml", "charon/version.json",
		"system/addresses.txt", "system/sysctls.txt", "system/nftables.txt", "rendezvous/overview.json", "rendezvous/pairs.json", "rendezvous/audit.json", "doctor.json",
	} {
		if names[name] == 0 {
			t.Errorf("no %s in the bundle: %v", name, names)
		}
	}
	keys, err := filepath.Glob(filepath.Join(hub.c.Dir(), "*.key.pem"))
	must(t, err)
	more, err := filepath.Glob(filepath.Join(hub.c.Dir(), "*", "*.key.pem"))
	must(t, err)
	secrets := 0
	for _, path := range append(keys, more...) {
		key, err := os.ReadFile(path)
		must(t, err)
		for line := range strings.SplitSeq(string(key), "\n") {
			if len(line) < 32 || strings.HasPrefix(line, "-----") {
				continue
			}
			if secrets++; bytes.Contains(all.Bytes(), []byte(line)) {
				t.Errorf("the bundle holds a line of %s", path)
			}
		}
	}
	if secrets == 0 {
		t.Error("found no keys to look for")
	}
}
