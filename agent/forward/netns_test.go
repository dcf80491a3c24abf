package forward

import (
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// netns is a network namespace without a name. A thread of its own holds it:
// it is gone with that thread and the sockets opened in it.
type netns struct {
	tid  int
	work chan func()
}

// newNetns makes a namespace with its loopback interface up.
func newNetns(t *testing.T) *netns {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: run as root (make test does)")
	}
	ns := &netns{work: make(chan func())}
	made := make(chan error)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread() // never unlocked: the runtime ends the thread with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		ns.tid = unix.Gettid()
		made <- err
		for f := range ns.work {
			f()
		}
	}()
	t.Cleanup(func() {
		close(ns.work)
		<-ended
	})
	if err := <-made; err != nil {
		t.Fatalf("unshare network namespace: %v", err)
	}
	ns.run(t, "ip", "link", "set", "lo", "up")
	return ns
}

// do calls f inside the namespace. f must not end the test itself.
func (ns *netns) do(f func()) {
	done := make(chan struct{})
	ns.work <- func() { defer close(done); f() }
	<-done
}

// run executes a command inside the namespace and returns its output.
func (ns *netns) run(t *testing.T, name string, args ...string) string {
	t.Helper()
	return ns.runInput(t, "", name, args...)
}

// nft applies a ruleset in the namespace.
func (ns *netns) nft(t *testing.T, ruleset string) {
	t.Helper()
	ns.runInput(t, ruleset, "nft", "-f", "-")
}

func (ns *netns) runInput(t *testing.T, stdin, name string, args ...string) string {
	t.Helper()
	var out []byte
	var err error
	ns.do(func() {
		cmd := exec.Command(name, args...)
		cmd.Stdin = strings.NewReader(stdin)
		out, err = cmd.CombinedOutput()
	})
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// join links two namespaces by interfaces of that name with the given
// addresses.
func join(t *testing.T, link string, a *netns, aAddr string, b *netns, bAddr string) {
	t.Helper()
	a.run(t, "ip", "link", "add", link, "type", "veth", "peer", "name", link, "netns", strconv.Itoa(b.tid))
	for ns, addr := range map[*netns]string{a: aAddr, b: bAddr} {
		ns.run(t, "ip", "address", "add", addr+"/24", "dev", link)
		ns.run(t, "ip", "link", "set", link, "up")
	}
}
