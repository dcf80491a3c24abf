package rawudp

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
	ns.run(t, "", "ip", "link", "set", "lo", "up")
	return ns
}

// do calls f inside the namespace. f must not end the test itself.
func (ns *netns) do(f func()) {
	done := make(chan struct{})
	ns.work <- func() { defer close(done); f() }
	<-done
}

// run executes a command inside the namespace.
func (ns *netns) run(t *testing.T, stdin, name string, args ...string) {
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
}

// join links two namespaces: a gets 10.9.0.1/24, b 10.9.0.2/24.
func join(t *testing.T, a, b *netns) {
	t.Helper()
	a.run(t, "", "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", strconv.Itoa(b.tid))
	for i, ns := range []*netns{a, b} {
		ns.run(t, "", "ip", "address", "add", "10.9.0."+strconv.Itoa(i+1)+"/24", "dev", "eth0")
		ns.run(t, "", "ip", "link", "set", "eth0", "up")
	}
}
