// Package nstest gives tests network namespaces of their own, in which they may
// change what belongs to the whole host: addresses, routes, policies, rules.
package nstest

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Namespace is a network namespace without a name. A thread of its own holds it:
// it is gone with that thread and the sockets opened in it.
type Namespace struct {
	tid  int
	work chan func()
}

// New makes a namespace with its loopback interface up, for as long as the test
// lasts. Without root the test is skipped.
func New(t *testing.T) *Namespace {
	t.Helper()
	needRoot(t)
	ns := &Namespace{work: make(chan func())}
	made := make(chan error)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err := unshare()
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
		t.Fatal(err)
	}
	ns.Run(t, "ip", "link", "set", "lo", "up")
	return ns
}

// Enter is New for a test that needs no other namespace: its own goroutine is in
// the new one from then on, and no other goroutine is.
func Enter(t *testing.T) {
	t.Helper()
	needRoot(t)
	if err := unshare(); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Fatalf("loopback interface: %v: %s", err, out)
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: run as root (make test does)")
	}
}

// unshare gives the calling goroutine's thread a namespace. It is never unlocked:
// the runtime ends the thread with the goroutine.
func unshare() error {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare network namespace: %w", err)
	}
	return nil
}

// Do calls f inside the namespace. f must not end the test itself.
func (ns *Namespace) Do(f func()) {
	done := make(chan struct{})
	ns.work <- func() { defer close(done); f() }
	<-done
}

// DoWithout is Do without one of the first 32 capabilities, e.g. CAP_NET_ADMIN,
// which the namespace's thread does not get back.
func (ns *Namespace) DoWithout(t *testing.T, capability uint, f func()) {
	t.Helper()
	var err error
	ns.Do(func() {
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		if err = unix.Capget(&header, &data[0]); err != nil {
			return
		}
		data[0].Effective &^= 1 << capability
		if err = unix.Capset(&header, &data[0]); err == nil {
			f()
		}
	})
	if err != nil {
		t.Fatalf("drop capability %d: %v", capability, err)
	}
}

// Run executes a command inside the namespace and returns its output.
func (ns *Namespace) Run(t *testing.T, name string, args ...string) string {
	t.Helper()
	return ns.run(t, "", name, args...)
}

// Nft applies a ruleset of nftables in the namespace.
func (ns *Namespace) Nft(t *testing.T, ruleset string) {
	t.Helper()
	ns.run(t, ruleset, "nft", "-f", "-")
}

func (ns *Namespace) run(t *testing.T, stdin, name string, args ...string) string {
	t.Helper()
	var out []byte
	var err error
	ns.Do(func() {
		cmd := exec.Command(name, args...)
		cmd.Stdin = strings.NewReader(stdin)
		out, err = cmd.CombinedOutput()
	})
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Join links two namespaces by interfaces of that name with the given addresses,
// each in the network of 256 addresses around it.
func Join(t *testing.T, link string, a *Namespace, aAddr netip.Addr, b *Namespace, bAddr netip.Addr) {
	t.Helper()
	a.Run(t, "ip", "link", "add", link, "type", "veth", "peer", "name", link, "netns", strconv.Itoa(b.tid))
	for ns, addr := range map[*Namespace]netip.Addr{a: aAddr, b: bAddr} {
		args := []string{"address", "add", netip.PrefixFrom(addr, addr.BitLen()-8).String(), "dev", link}
		if addr.Is6() {
			args = append(args, "nodad")
		}
		ns.Run(t, "ip", args...)
		ns.Run(t, "ip", "link", "set", link, "up")
	}
}
