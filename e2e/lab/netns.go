package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// netnsDir is where `ip netns` keeps its namespaces.
const netnsDir = "/run/netns"

// namespace is a network namespace and one OS thread that lives in it from
// open to close. Children are forked on that thread: they inherit the
// namespace, and Pdeathsig, which the kernel ties to the forking thread and
// not to the process, then fires when the lab dies and not before.
type namespace struct {
	name  string
	calls chan func()
	quit  chan struct{}
	done  chan struct{}
}

func openNamespace(ctx context.Context, name string) (*namespace, error) {
	if out, err := exec.CommandContext(ctx, "ip", "netns", "add", name).CombinedOutput(); err != nil {
		return nil, commandError("ip netns add "+name, out, err)
	}
	n := &namespace{name: name, calls: make(chan func()), quit: make(chan struct{}), done: make(chan struct{})}
	entered := make(chan error, 1)
	onNewThread(func() { n.run(entered) })
	if err := <-entered; err != nil {
		return nil, err
	}
	return n, nil
}

func (n *namespace) run(entered chan<- error) {
	defer close(n.done)
	err := enterNamespace(n.name)
	entered <- err
	if err != nil {
		return
	}
	for {
		select {
		case call := <-n.calls:
			call()
		case <-n.quit:
			return
		}
	}
}

// do runs f on the namespace's thread and waits for it. f must be short: the
// next caller waits.
func (n *namespace) do(f func() error) error {
	result := make(chan error, 1)
	select {
	case n.calls <- func() { result <- f() }:
		return <-result
	case <-n.done:
		return ErrClosed
	}
}

// exec runs f on a thread of its own inside the namespace, so f may block.
func (n *namespace) exec(f func() error) error {
	result := make(chan error, 1)
	onNewThread(func() {
		if err := enterNamespace(n.name); err != nil {
			result <- err
			return
		}
		result <- f()
	})
	return <-result
}

// onNewThread runs f on an OS thread that no other goroutine gets, now or
// later: the runtime ends a thread whose goroutine ends locked to it. It is
// never the process's first thread. That one cannot end, and its namespace is
// what /proc shows as the process's, so the lab would pass for a resident of
// one of its own hosts.
func onNewThread(f func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			f()
			return
		}
		elsewhere := make(chan struct{})
		onNewThread(func() {
			close(elsewhere)
			f()
		})
		<-elsewhere
		runtime.UnlockOSThread()
	}()
}

// close ends the thread. The namespace itself stays until it is deleted.
func (n *namespace) close() {
	close(n.quit)
	<-n.done
}

func enterNamespace(name string) error {
	f, err := os.Open(filepath.Join(netnsDir, name))
	if err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", name, err)
	}
	return nil
}

// command runs argv in the namespace to its end, with env added to the
// environment, and returns what it printed on standard output and error.
func (n *namespace) command(ctx context.Context, env []string, stdin string, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.SysProcAttr = childAttributes()
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	err := n.do(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return out.String(), commandError(strings.Join(argv, " ")+" in "+n.name, []byte(out.String()), err)
	}
	return out.String(), nil
}

// ip runs lines of ip(8) in one process, stopping at the first that fails.
func (n *namespace) ip(ctx context.Context, lines ...string) error {
	_, err := n.command(ctx, nil, strings.Join(lines, "\n")+"\n", "ip", "-batch", "-")
	return err
}

// sysctl sets one of the namespace's own settings, such as
// "net/ipv4/ip_forward". The kernel picks the namespace of the thread that
// opens the file.
func (n *namespace) sysctl(key, value string) error {
	return n.do(func() error { return os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0) })
}

// childAttributes makes a child die with the lab, even one that is killed, and
// keeps an interrupt from the terminal to the lab alone, which then ends its
// children in order.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}

func commandError(what string, output []byte, err error) error {
	if text := strings.TrimSpace(string(output)); text != "" {
		return fmt.Errorf("%s: %w: %s", what, err, text)
	}
	return fmt.Errorf("%s: %w", what, err)
}
