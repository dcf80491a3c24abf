package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

var loopback = netip.MustParseAddr("127.0.0.1")

// herd is simulated agents and the process of their rendezvous.
type herd struct {
	bin, dir, config, store string
	edges, community        int // community: edges of one
	status                  netip.AddrPort
	agents                  []*herdAgent // the connector first
	log                     *herdLog
	running                 sync.WaitGroup
	stop                    context.CancelFunc
	patience                time.Duration // bounds what is waited for

	process *exec.Cmd // nil while none runs
	exited  chan struct{}
}

// newHerd writes certificates and configuration; nothing runs yet.
func newHerd(dir string, o herdOptions) (*herd, error) {
	if err := enoughDescriptors(o.agents); err != nil {
		return nil, err
	}
	pki, err := lab.NewPKI(filepath.Join(dir, "pki"))
	if err != nil {
		return nil, err
	}
	h := &herd{bin: o.bin, dir: dir, edges: o.agents, community: o.community, log: &herdLog{}, stop: func() {}, patience: herdPatience}
	h.config, h.store = filepath.Join(dir, "rendezvous.yaml"), filepath.Join(dir, "rendezvous.db")
	signal, errSignal := freePort()
	status, errStatus := freePort()
	cert, key, err := pki.Issue("rendezvous", lab.CertOptions{Addrs: []netip.Addr{loopback}})
	if err := errors.Join(err, errSignal, errStatus); err != nil {
		return nil, err
	}
	h.status = status
	conf := fmt.Sprintf("listen: %s\nstatus: %s\nstun: [%q, %q]\nstunAlternates: [0, 0]\ncertificate: %s\nkey: %s\nca: %s\nstore: %s\nadminSocket: %s\ncommunitiesDir: %s\nlogLevel: warn\n",
		signal, status, loopback.String()+":0", loopback.String()+":0", cert, key, pki.CAPath(),
		h.store, filepath.Join(dir, "rdv.sock"), filepath.Join(dir, "communities"))
	err = errors.Join(writeText(h.config, conf), writeText(filepath.Join(dir, "communities", "herd.yaml"), herdCommunities(o.agents, o.community)))
	if err != nil {
		return nil, err
	}
	for i := range o.agents + 1 {
		a, err := newHerdAgent(pki, h.log, fmt.Sprintf("wss://%s/v1/agent", signal), i)
		if err != nil {
			return nil, err
		}
		h.agents = append(h.agents, a)
	}
	return h, nil
}

// enoughDescriptors checks the hard limit; Go raises the soft one to it by
// itself.
func enoughDescriptors(agents int) error {
	const others = 100
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("limit of open files: %w", err)
	}
	if want := uint64(agents + others); limit.Max < want {
		return fmt.Errorf("%d agents need %d open files, the limit is %d: raise it (ulimit -Hn)", agents, want, limit.Max)
	}
	return nil
}

// freePort is a TCP port of loopback that was free a moment ago.
func freePort() (netip.AddrPort, error) {
	l, err := net.Listen("tcp", netip.AddrPortFrom(loopback, 0).String())
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort(), nil
}

// herdCommunities puts each so many edges into one.
func herdCommunities(edges, each int) string {
	var text strings.Builder
	for i := 0; i < edges; i += each {
		fmt.Fprintf(&text, "---\napiVersion: fabedge.io/v1alpha1\nkind: Community\nmetadata:\n  name: herd%d\nspec:\n  members:\n", i/each)
		for j := i; j < min(i+each, edges); j++ {
			fmt.Fprintf(&text, "    - %s\n", herdName(j+1))
		}
	}
	return text.String()
}

// pairs is how many there are: within the communities, and each edge with the
// connector.
func (h *herd) pairs() int {
	n := h.edges
	for i := 0; i < h.edges; i += h.community {
		members := min(h.community, h.edges-i)
		n += members * (members - 1) / 2
	}
	return n
}

// start runs the rendezvous.
func (h *herd) start() error {
	log, err := os.OpenFile(filepath.Join(h.dir, "rendezvous.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	p := exec.Command(h.bin, "rendezvous", "--config", h.config)
	p.Stdout, p.Stderr = log, log
	if err := p.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	go func() { // kill waits for it
		defer close(exited)
		_ = p.Wait() // it is killed
	}()
	h.process, h.exited = p, exited
	return nil
}

// kill kills the rendezvous (SIGKILL), if it runs.
func (h *herd) kill() {
	if h.process != nil {
		h.process.Process.Kill()
		<-h.exited
		h.process = nil
	}
}

// run starts the agents.
func (h *herd) run(ctx context.Context) {
	ctx, h.stop = context.WithCancel(ctx)
	for _, a := range h.agents {
		h.running.Go(func() { a.run(ctx) })
	}
}

func (h *herd) close() {
	h.stop()
	h.running.Wait()
	h.kill()
}

// joined counts the agents that have been let in since a time and still are.
func (h *herd) joined(since time.Time) int {
	n := 0
	for _, a := range h.agents {
		if a.joinedSince(since) {
			n++
		}
	}
	return n
}

// direct is how many pairs the rendezvous counts as direct, -1 if it does not
// answer.
func (h *herd) direct(ctx context.Context) int {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s/metrics", h.status), nil)
	if err != nil {
		return -1
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return -1
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return -1
	}
	return directPairs(string(text))
}

// directPairs reads a page of metrics.
func directPairs(metrics string) int {
	for line := range strings.Lines(metrics) {
		if value, ok := strings.CutPrefix(line, `bodkin_pairs{state="direct"} `); ok {
			if n, err := strconv.ParseFloat(strings.TrimSpace(value), 64); err == nil {
				return int(n)
			}
		}
	}
	return -1
}

// until polls a condition. It fails when the rendezvous ends.
func (h *herd) until(ctx context.Context, what string, often time.Duration, cond func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, h.patience)
	defer cancel()
	for !cond() {
		select {
		case <-h.exited:
			text, _ := os.ReadFile(filepath.Join(h.dir, "rendezvous.log"))
			return fmt.Errorf("%s: the rendezvous has ended: %s", what, text)
		default:
		}
		if err := pause(ctx, often); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	return nil
}
