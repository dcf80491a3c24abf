//go:build !kernelesp

// The guest of e2e/kernel has neither loop devices nor what makes namespaces.

package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

// fill leaves no room on a disk.
const fill = `dd if=/dev/zero of="$DISK/filler" bs=4k 2>/dev/null || true`

// setStore has the rendezvous use another store from its next start on.
func (c *Cluster) setStore(path string) error {
	conf, err := os.ReadFile(c.config)
	if err != nil {
		return err
	}
	var lines []string
	for line := range strings.Lines(string(conf)) {
		if strings.HasPrefix(line, "store: ") {
			line = "store: " + path + "\n"
		}
		lines = append(lines, line)
	}
	return os.WriteFile(c.config, []byte(strings.Join(lines, "")), 0o600)
}

// disk is a file system that only its holder sees, at dir.
type disk struct {
	host   *lab.Host
	holder *lab.Process
	dir    string
}

// onDisk starts the rendezvous anew with its store on a disk that the shell
// commands of mount put at $DISK, for as long as that rendezvous runs.
func onDisk(ctx context.Context, t *testing.T, c *Cluster, mount string) *disk {
	t.Helper()
	h := c.Connector.Host
	d := &disk{host: h, dir: filepath.Join(h.Dir(), "disk")}
	must(t, os.MkdirAll(d.dir, 0o755))
	must(t, c.setStore(filepath.Join(d.dir, "rendezvous.db")))
	c.rendezvous.Kill()
	d.hold(ctx, t, "rendezvous", mount, c.bin, "rendezvous", "--config", c.config)
	c.rendezvous = d.holder
	must(t, c.until(ctx, "the rendezvous on the disk answers", func() (bool, error) {
		var health any
		return c.get(ctx, "/healthz", &health) == nil, ended(c.rendezvous)
	}))
	return d
}

// hold starts the holder, after the shell commands of mount have put the disk at
// $DISK.
func (d *disk) hold(ctx context.Context, t *testing.T, name, mount string, argv ...string) {
	t.Helper()
	var err error
	d.holder, err = d.host.Start(ctx, name, []string{"DISK=" + d.dir},
		append([]string{"unshare", "--mount", "sh", "-ec", mount + "\nexec \"$0\" \"$@\""}, argv...)...)
	must(t, err)
}

// sh runs shell commands where the disk is.
func (d *disk) sh(ctx context.Context, t *testing.T, commands string) {
	t.Helper()
	out, err := d.host.Run(ctx, "nsenter", "--target", strconv.Itoa(d.holder.PID()), "--mount", "env", "DISK="+d.dir, "sh", "-ec", commands)
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// page reads something of the rendezvous' that is no JSON.
func (c *Cluster) page(ctx context.Context, path string) (status int, text string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://bodkin"+path, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := c.admin.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// inTrouble checks what the rendezvous says of a store that takes no writes.
func inTrouble(ctx context.Context, t *testing.T, c *Cluster, path, words string) {
	t.Helper()
	must(t, c.until(ctx, "the rendezvous says what its store's trouble is", func() (bool, error) {
		status, text, err := c.page(ctx, "/readyz")
		return status == http.StatusServiceUnavailable && strings.Contains(text, path) && strings.Contains(text, words), err
	}))
	for at, want := range map[string]string{"/metrics": "bodkin_store_ok 0", "/api/v1/overview": words} {
		if _, text, err := c.page(ctx, at); err != nil || !strings.Contains(text, want) {
			t.Errorf("%s does not say %q (error %v)", at, want, err)
		}
	}
	if status, _, err := c.page(ctx, "/healthz"); err != nil || status != http.StatusOK {
		t.Errorf("/healthz is %d, %v: the rendezvous works", status, err)
	}
}

// worksFromMemory: a node that the store cannot take joins and becomes direct.
func worksFromMemory(ctx context.Context, t *testing.T, c *Cluster, path, words string, others ...*Node) {
	t.Helper()
	late, _ := edge(ctx, t, c, "late", lab.AddressRestricted)
	must(t, c.WaitOnline(ctx, late))
	for _, n := range others {
		direct(ctx, t, c, late, n)
		pings(ctx, t, late, n)
	}
	inTrouble(ctx, t, c, path, words)
	if said := strings.Count(c.Rendezvous().Log(), "record not written"); said != 1 {
		t.Errorf("the log says %d times that a record was not written, want once", said)
	}
}

// remembered starts the rendezvous on a copy of the store and checks that it has
// forgotten nobody.
func remembered(ctx context.Context, t *testing.T, c *Cluster, copied string, names ...string) {
	t.Helper()
	must(t, c.setStore(copied))
	must(t, c.RestartRendezvous(ctx, nil))
	nodes, err := c.Nodes(ctx)
	must(t, err)
	known := map[string]bool{}
	for _, n := range nodes {
		known[n.Name] = true
	}
	for _, name := range names {
		if !known[name] {
			t.Errorf("%s is forgotten; known: %v", name, known)
		}
	}
	if pairs, err := c.Pairs(ctx); err != nil || len(pairs) == 0 {
		t.Errorf("%d pairs, error %v: the communities are forgotten", len(pairs), err)
	}
}

// storeStage is a community of two edges and one that is yet to come, with the
// store on a disk of its own.
func storeStage(ctx context.Context, t *testing.T, c *Cluster, mount string) (*disk, *Node, *Node) {
	t.Helper()
	d := onDisk(ctx, t, c, mount)
	a, _ := edge(ctx, t, c, "edge1", lab.PortRestricted)
	b, _ := edge(ctx, t, c, "edge2", lab.PortRestricted)
	must(t, c.WaitOnline(ctx, c.Connector, a, b))
	must(t, c.Apply(ctx, "all-edges", a, b, &Node{Name: "beijing.late"}))
	direct(ctx, t, c, a, b)
	return d, a, b
}

// TestDiskFull: the rendezvous goes on from memory, and writes when it can.
func TestDiskFull(t *testing.T) {
	ctx, c := start(t, ClusterOptions{})
	d, a, b := storeStage(ctx, t, c, `mount -t tmpfs -o size=8m disk "$DISK"`)
	store := filepath.Join(d.dir, "rendezvous.db")
	d.sh(ctx, t, fill)
	// The store needs no more room before there is much to be remembered.
	var many []*Node
	for i := range 60 {
		many = append(many, &Node{Name: fmt.Sprintf("beijing.absent%d", i)})
	}
	must(t, c.Apply(ctx, "absent", many...))
	inTrouble(ctx, t, c, store, "no space left on device")
	worksFromMemory(ctx, t, c, store, "no space left on device", a, b)
	during, after := filepath.Join(c.Connector.Dir(), "during.db"), filepath.Join(c.Connector.Dir(), "after.db")
	d.sh(ctx, t, `cp "$DISK/rendezvous.db" `+during)
	d.sh(ctx, t, `rm "$DISK/filler"`)
	must(t, c.until(ctx, "the rendezvous writes again", func() (bool, error) {
		status, _, err := c.page(ctx, "/readyz")
		return status == http.StatusOK, err
	}))
	d.sh(ctx, t, `cp "$DISK/rendezvous.db" `+after)
	remembered(ctx, t, c, after, a.Name, b.Name, "beijing.late")
	remembered(ctx, t, c, during, a.Name, b.Name)
}

// TestDiskReadOnly: a file system that the kernel has made read-only after an
// error. A rendezvous that runs goes on from memory; one that starts refuses to,
// in words.
func TestDiskReadOnly(t *testing.T) {
	ctx, c := start(t, ClusterOptions{})
	image := filepath.Join(c.Connector.Dir(), "disk.img")
	d, a, b := storeStage(ctx, t, c, "truncate -s 8M "+image+"; mkfs.ext4 -q "+image+`; mount -o loop `+image+` "$DISK"`)
	store := filepath.Join(d.dir, "rendezvous.db")
	d.sh(ctx, t, `mount -o remount,abort "$DISK"`)
	worksFromMemory(ctx, t, c, store, "read-only file system", a, b)
	// An operator is told at once, and nothing is half in force.
	if err := c.Apply(ctx, "refused", a, b); err == nil || !strings.Contains(err.Error(), store) || !strings.Contains(err.Error(), "read-only file system") {
		t.Errorf("a community that cannot be kept: %v; want it refused with %q and the path", err, "read-only file system")
	}
	copied := filepath.Join(c.Connector.Dir(), "copied.db")
	d.sh(ctx, t, `cp "$DISK/rendezvous.db" `+copied)
	out, err := c.Connector.Run(ctx, "nsenter", "--target", strconv.Itoa(d.holder.PID()), "--mount",
		c.bin, "rendezvous", "--config", c.config)
	if err == nil || !strings.Contains(out, store) || !strings.Contains(out, "read-only file system") {
		t.Errorf("a rendezvous on a read-only store: error %v, said:\n%s", err, out)
	}
	remembered(ctx, t, c, copied, a.Name, b.Name)
}

// TestStateDirFull: an agent that cannot write down which connections are its
// own makes tunnels all the same, says so, and writes when it can.
func TestStateDirFull(t *testing.T) {
	ctx, c := start(t, ClusterOptions{})
	a, _ := edge(ctx, t, c, "edge1", lab.PortRestricted)
	must(t, c.WaitOnline(ctx, c.Connector, a))
	a.Agent().Kill()
	must(t, a.RestartCharon()) // it shall know no connection of the agent before
	d := &disk{host: a.Host, dir: filepath.Join(a.Dir(), "state")}
	d.hold(ctx, t, "agent", `mount -t tmpfs -o size=16k disk "$DISK"; `+fill, c.bin, "agent", "--config", a.config)
	a.agent = d.holder
	problem := func(want string) func() (bool, error) {
		return func() (bool, error) {
			s, err := a.Status(ctx)
			return err == nil && (s.StateProblem == "") == (want == "") && strings.Contains(s.StateProblem, want), ended(a.agent)
		}
	}
	must(t, c.until(ctx, "the agent says that its state is not written", problem("no space left on device")))
	must(t, c.until(ctx, "pings pass all the same", func() (bool, error) {
		res, err := a.PingPod(ctx, c.Connector, 1, time.Second)
		return err == nil && res.Lost() == 0, err
	}))
	d.sh(ctx, t, `rm "$DISK/filler"`)
	must(t, c.until(ctx, "it is written", problem("")))
	d.sh(ctx, t, `grep -q beijing.connector "$DISK/agent.json"`)
}
