package lab

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// patience bounds every wait for something that must happen.
const patience = 20 * time.Second

// victimEnv makes the test binary a lab owner that waits to be killed.
const victimEnv = "BODKIN_LAB_VICTIM"

func TestMain(m *testing.M) {
	if name := os.Getenv(victimEnv); name != "" {
		runVictim(name)
		return
	}
	os.Exit(m.Run())
}

func runVictim(name string) {
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	l, err := New(context.Background(), Options{Name: name})
	fail(err)
	h, err := l.Host("victim", HostOptions{})
	fail(err)
	// The first sleep is the shell's child: Pdeathsig does not reach it.
	p, err := h.Start(context.Background(), "sleeper", nil, "sh", "-c", "sleep 1000 & echo $!; sleep 1000")
	fail(err)
	for !strings.HasSuffix(p.Log(), "\n") {
		time.Sleep(10 * time.Millisecond)
	}
	fmt.Println(p.PID(), strings.TrimSpace(p.Log()), l.Dir())
	select {}
}

func newLab(t *testing.T, opts Options) *Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: run as root (make test does)")
	}
	before := goleak.IgnoreCurrent()
	l, err := New(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		goleak.VerifyNone(t, before)
	})
	return l
}

func addHost(t *testing.T, l *Lab, name string, opts HostOptions) *Host {
	t.Helper()
	h, err := l.Host(name, opts)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func addRouter(t *testing.T, l *Lab, name string, opts RouterOptions) *Router {
	t.Helper()
	r, err := l.Router(name, opts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// socket is a UDP socket inside a host.
type socket struct {
	*net.UDPConn
	t    *testing.T
	addr netip.AddrPort
}

func listen(t *testing.T, h *Host, port uint16) socket {
	t.Helper()
	addr := netip.AddrPortFrom(h.Addr(), port)
	conn, err := h.ListenUDP(addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return socket{conn, t, addr}
}

func (s socket) send(to netip.AddrPort, text string) {
	s.t.Helper()
	if _, err := s.WriteToUDPAddrPort([]byte(text), to); err != nil {
		s.t.Fatalf("send %q from %v to %v: %v", text, s.addr, to, err)
	}
}

// receive waits for the next packet.
func (s socket) receive() (string, netip.AddrPort) {
	s.t.Helper()
	text, from, err := s.receiveWithin(patience)
	if err != nil {
		s.t.Fatalf("receive at %v: %v", s.addr, err)
	}
	return text, from
}

func (s socket) receiveWithin(wait time.Duration) (string, netip.AddrPort, error) {
	buf := make([]byte, 2048)
	s.SetReadDeadline(time.Now().Add(wait))
	n, from, err := s.ReadFromUDPAddrPort(buf)
	return string(buf[:n]), netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), err
}

// until polls for what cannot be waited on.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	l := newLab(t, Options{})
	r := addRouter(t, l, "router", RouterOptions{NAT: PortRestricted})
	h := addHost(t, l, "edge.one", HostOptions{Router: r})
	p, err := h.Start(t.Context(), "sleeper", []string{"GREETING=hello"}, "sh", "-c", "sleep 1000 & echo $GREETING $!; sleep 1000")
	if err != nil {
		t.Fatal(err)
	}
	until(t, "the child prints", func() bool { return strings.HasSuffix(p.Log(), "\n") })
	var grandchild int
	if _, err := fmt.Sscanf(p.Log(), "hello %d", &grandchild); err != nil {
		t.Fatalf("child printed %q: %v", p.Log(), err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, pid := range []int{p.PID(), grandchild} {
		if _, err := identify(pid); err == nil {
			t.Errorf("process %d outlived the lab", pid)
		}
	}
	assertGone(t, l.Name(), l.Dir())
	if _, err := l.Host("late", HostOptions{}); err == nil {
		t.Error("a closed lab took a host")
	}
	if _, err := h.Run(t.Context(), "true"); err == nil {
		t.Error("a closed lab ran a command")
	}
}

// assertGone checks that nothing of the named lab is left.
func assertGone(t *testing.T, name, dir string) {
	t.Helper()
	left, err := labNamespaces(func(lab string) bool { return lab == name })
	if err != nil || len(left) > 0 {
		t.Errorf("namespaces left: %v, %v", left, err)
	}
	for _, path := range []string{dir, filepath.Join(registry, name)} {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
}

func TestSweepRemovesKilledLab(t *testing.T) {
	living := newLab(t, Options{})
	addHost(t, living, "bystander", HostOptions{})

	const name = "victimlab"
	victim := exec.Command(os.Args[0])
	victim.Env = append(os.Environ(), victimEnv+"="+name)
	victim.Stderr = os.Stderr
	out, err := victim.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	var child, grandchild int
	var dir string
	line, _ := bufio.NewReader(out).ReadString('\n')
	_, scanErr := fmt.Sscanf(line, "%d %d %s", &child, &grandchild, &dir)
	victim.Process.Kill()
	victim.Wait()
	if scanErr != nil {
		t.Fatalf("victim printed %q: %v", line, scanErr)
	}
	until(t, "the child dies with its lab", func() bool { _, err := identify(child); return err != nil })

	if err := Sweep(); err != nil {
		t.Fatal(err)
	}
	if _, err := identify(grandchild); err == nil {
		t.Errorf("grandchild %d survived Sweep", grandchild)
	}
	assertGone(t, name, dir)
	if left, err := labNamespaces(func(lab string) bool { return lab == living.Name() }); err != nil || len(left) != 1 {
		t.Errorf("the living lab has namespaces %v, %v; want its one", left, err)
	}
}

func TestNames(t *testing.T) {
	l := newLab(t, Options{})
	if _, err := New(t.Context(), Options{Name: l.Name()}); err == nil {
		t.Error("two labs took one name")
	}
	if _, err := New(t.Context(), Options{Name: "with-dash"}); err == nil {
		t.Error("a lab took a name with a dash, which would hide its namespaces from Sweep")
	}
	first := addHost(t, l, "first", HostOptions{})
	if _, err := l.Host("first", HostOptions{}); err == nil {
		t.Error("two hosts took one name")
	}
	if _, err := l.Host("second", HostOptions{Addr: first.Addr()}); err == nil {
		t.Error("two hosts took one address")
	}
}

func TestHostsAddedAtOnce(t *testing.T) {
	l := newLab(t, Options{})
	r := addRouter(t, l, "router", RouterOptions{NAT: PortRestricted})
	server := addHost(t, l, "server", HostOptions{})
	var group sync.WaitGroup
	for i := range 4 {
		group.Go(func() {
			h, err := l.Host(fmt.Sprint("edge", i), HostOptions{Router: r})
			if err != nil {
				t.Error(err)
				return
			}
			if result, err := h.Ping(t.Context(), server.Addr(), 1, time.Second, netip.Addr{}); err != nil || result.Received != 1 {
				t.Errorf("%s: %+v, %v", h.Name(), result, err)
			}
		})
	}
	group.Wait()
}

func TestProcess(t *testing.T) {
	l := newLab(t, Options{})
	h := addHost(t, l, "host", HostOptions{})
	p, err := h.Start(t.Context(), "talker", nil, "sh", "-c", "ip -o addr show dev wan; exit 3")
	if err != nil {
		t.Fatal(err)
	}
	err = p.Wait(t.Context())
	if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 3 {
		t.Errorf("exit: %v, want status 3", err)
	}
	if !strings.Contains(p.Log(), h.Addr().String()) {
		t.Errorf("log %q does not show the host's own address %v", p.Log(), h.Addr())
	}
	stubborn, err := h.Start(t.Context(), "stubborn", nil, "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done")
	if err != nil {
		t.Fatal(err)
	}
	until(t, "the trap is set", func() bool { return strings.Contains(stubborn.Log(), "ready") })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := stubborn.Stop(ctx); err == nil {
		t.Error("Stop did not report that it had to kill")
	}
	if !stubborn.ended() {
		t.Error("Stop returned before the process was gone")
	}
}
