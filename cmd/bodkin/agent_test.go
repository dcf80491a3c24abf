package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/agent"
	"github.com/bodkin-net/bodkin/e2e/lab"
)

// processTimeout is for a daemon to start, answer or end, on a slow machine.
const processTimeout = time.Minute

// node is a lab host with the configuration of an agent whose charon and
// rendezvous are not there.
type node struct {
	*lab.Host
	t              *testing.T
	ctx            context.Context
	config, socket string
}

func newNode(t *testing.T) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip(lab.ErrNotRoot)
	}
	ctx, cancel := context.WithTimeout(t.Context(), processTimeout)
	t.Cleanup(cancel)
	l, err := lab.New(ctx, lab.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	h, err := l.Host("edge1", lab.HostOptions{})
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := l.PKI().Issue("beijing.edge1", lab.CertOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n := &node{Host: h, t: t, ctx: ctx, config: filepath.Join(h.Dir(), "agent.yaml"), socket: filepath.Join(h.Dir(), "agent.sock")}
	conf := fmt.Sprintf("rendezvous: https://%s:7443\ncertificate: %s\nkey: %s\nca: %s\nviciSocket: %s\nsocket: %s\nstateDir: %s\n"+
		"endpoint: {subnets: [10.233.66.0/24]}\n",
		h.Addr(), cert, key, l.PKI().CAPath(), filepath.Join(h.Dir(), "charon.vici"), n.socket, filepath.Join(h.Dir(), "state"))
	if err := os.WriteFile(n.config, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	return n
}

// agent starts the agent, behind the words of before.
func (n *node) agent(name string, before ...string) *lab.Process {
	n.t.Helper()
	self, err := os.Executable()
	if err != nil {
		n.t.Fatal(err)
	}
	p, err := n.Start(n.ctx, name, []string{asMain + "=1"}, append(before, self, "agent", "--config", n.config)...)
	if err != nil {
		n.t.Fatal(err)
	}
	return p
}

// status polls `bodkin status` until it satisfies cond.
func (n *node) status(p *lab.Process, cond func(agent.Status) bool) agent.Status {
	n.t.Helper()
	var s agent.Status
	for {
		out, err := run(n.t, "", "status", "--socket", n.socket, "-o", "json")
		if err == nil {
			s = agent.Status{}
			if err := json.Unmarshal([]byte(out), &s); err != nil {
				n.t.Fatal(err)
			}
			if cond(s) {
				return s
			}
		}
		select {
		case <-p.Done():
			n.t.Fatalf("the agent ended:\n%s", p.Log())
		case <-n.ctx.Done():
			n.t.Fatalf("status %+v, %v; the agent's log:\n%s", s, err, p.Log())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// end asks the agent to end and expects it to be content.
func (n *node) end(p *lab.Process) {
	n.t.Helper()
	if err := p.Signal(syscall.SIGTERM); err != nil {
		n.t.Fatal(err)
	}
	if err := p.Wait(n.ctx); err != nil {
		n.t.Errorf("the agent ended with %v:\n%s", err, p.Log())
	}
	if _, err := os.Stat(n.socket); !errors.Is(err, os.ErrNotExist) {
		n.t.Errorf("the agent left its socket: %v", err)
	}
}

// expectExit waits for a process that cannot work and checks its last words.
func (n *node) expectExit(p *lab.Process, code int, words ...string) {
	n.t.Helper()
	var exit *exec.ExitError
	if err := p.Wait(n.ctx); !errors.As(err, &exit) || exit.ExitCode() != code {
		n.t.Errorf("%v; want exit code %d:\n%s", err, code, p.Log())
	}
	for _, w := range words {
		if !strings.Contains(p.Log(), w) {
			n.t.Errorf("it does not say %q:\n%s", w, p.Log())
		}
	}
}

// An agent whose charon and rendezvous are both away says so, keeps its place,
// and ends when asked to.
func TestAgentAlone(t *testing.T) {
	n := newNode(t)
	p := n.agent("agent")
	s := n.status(p, func(s agent.Status) bool {
		return strings.Contains(s.Rendezvous.Error, "connection refused") && s.Charon.Error != "connecting"
	})
	if s.Rendezvous.Connected || s.Charon.Connected || !strings.Contains(s.Charon.Error, "charon is not reachable") {
		t.Errorf("status %+v; want both away, in words", s)
	}
	if s.Node != "beijing.edge1" || len(s.Local) != 1 || s.Local[0].String() != n.Addr().String()+":4500" || s.Tunnels == nil {
		t.Errorf("status %+v; want beijing.edge1 on %s:4500 and a list of tunnels", s, n.Addr())
	}

	second := n.agent("second")
	n.expectExit(second, exitFailed, n.socket+": another process serves it")
	n.status(p, func(agent.Status) bool { return true }) // the first is unharmed
	n.end(p)
}

// An edge can boot before its network.
func TestAgentWithoutAddress(t *testing.T) {
	n := newNode(t)
	if out, err := n.Run(n.ctx, "ip", "addr", "flush", "dev", "wan"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	p := n.agent("agent")
	if s := n.status(p, func(agent.Status) bool { return true }); len(s.Local) > 0 {
		t.Errorf("status %+v; want no local address", s)
	}
	n.end(p)
}

// What waiting cannot heal ends the agent at once.
func TestAgentWithoutCapability(t *testing.T) {
	n := newNode(t)
	p := n.agent("agent", "setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-net_raw")
	n.expectExit(p, exitFailed, "shared port "+n.Addr().String()+":4500", "CAP_NET_RAW", "run as root")
}
