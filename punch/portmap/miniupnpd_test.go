package portmap

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

// The tests here run Keep against a real miniupnpd. It has to run inside a
// host's network namespace, all its goroutines: in a process of its own, which
// is this test binary again.
const (
	keepEnv   = "PORTMAP_TEST_KEEP"   // the secret
	speaksEnv = "PORTMAP_TEST_SPEAKS" // the one protocol it may use, empty for all
	probeEnv  = "PORTMAP_TEST_PROBE"  // just probe

	endAtOnce = "GORACE=atexit_sleep_ms=0" // the race detector would wait a second
)

func TestMain(m *testing.M) {
	switch secret := os.Getenv(keepEnv); {
	case os.Getenv(probeEnv) != "":
		names, err := Probe(context.Background(), Options{})
		fmt.Println("speaks", strings.Join(names, " "), err)
		return
	case secret != "":
		keepUntilTold(secret, os.Getenv(speaksEnv))
		return
	}
	goleak.VerifyTestMain(m)
}

// keepUntilTold keeps a mapping until SIGTERM, looks on SIGUSR1, and prints
// what it finds.
func keepUntilTold(secret, speaks string) {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	usr1, look := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(usr1, syscall.SIGUSR1)
	go func() {
		for range usr1 {
			look <- struct{}{}
		}
	}()
	if speaks != "" {
		for _, p := range protocols {
			if p.name == speaks {
				protocols = []protocol{p}
			}
		}
	}
	o := Options{
		Inside: netip.AddrPortFrom(netip.IPv4Unspecified(), inside), Secret: []byte(secret), Look: look,
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	Keep(ctx, o, func(m Mapping) { fmt.Println("found", m.Protocol, m.Outside) })
}

// inside is the port that is mapped.
const inside = 4500

// patience bounds what takes milliseconds, on a machine that may be busy.
const patience = 10 * time.Second

type scene struct {
	*lab.Lab
	t      *testing.T
	router *lab.Router
	daemon *lab.Process
	host   *lab.Host
	opts   lab.MiniupnpdOptions
}

// newScene is a router that maps ports, with a host inside.
func newScene(t *testing.T, opts lab.MiniupnpdOptions) *scene {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: run as root (make test does)")
	}
	l, err := lab.New(t.Context(), lab.Options{})
	must(t, err)
	t.Cleanup(func() { must(t, l.Close()) })
	s := &scene{Lab: l, t: t, opts: opts}
	s.router, err = l.Router("router", lab.RouterOptions{NAT: lab.Symmetric})
	must(t, err)
	s.host, err = l.Host("host", lab.HostOptions{Router: s.router})
	must(t, err)
	s.start()
	return s
}

func (s *scene) start() {
	s.t.Helper()
	var err error
	s.daemon, err = s.router.StartMiniupnpd(s.t.Context(), s.opts)
	must(s.t, err)
}

// keep runs Keep on a host.
func (s *scene) keep(h *lab.Host, secret, speaks string) *lab.Process {
	s.t.Helper()
	self, err := os.Executable()
	must(s.t, err)
	p, err := h.Start(s.t.Context(), "keep", []string{keepEnv + "=" + secret, speaksEnv + "=" + speaks, endAtOnce}, self)
	must(s.t, err)
	return p
}

var foundLine = regexp.MustCompile(`(?m)^found (\S*) ?(\S+)$`)

// finds waits for the nth mapping, counted from 1, that the process found.
func (s *scene) finds(p *lab.Process, n int) (protocol string, outside netip.AddrPort) {
	s.t.Helper()
	for deadline := time.Now().Add(patience); ; {
		if all := foundLine.FindAllStringSubmatch(p.Log(), -1); len(all) >= n {
			outside, _ = netip.ParseAddrPort(all[n-1][2]) // invalid for a loss
			return all[n-1][1], outside
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("no mapping number %d was found:\n%s", n, p.Log())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (s *scene) mappings() string {
	s.t.Helper()
	text, err := s.router.PortMappings(s.t.Context())
	must(s.t, err)
	return text
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestKeepOnRealRouter(t *testing.T) {
	tests := []struct {
		name   string
		opts   lab.MiniupnpdOptions
		speaks string // the one protocol the host uses, empty for all
		want   string
	}{
		{"PCP", lab.MiniupnpdOptions{PCP: true}, "", "PCP"},
		{"NAT-PMP", lab.MiniupnpdOptions{PCP: true}, "NAT-PMP", "NAT-PMP"},
		{"UPnP", lab.MiniupnpdOptions{UPnP: true}, "", "UPnP"},
		{"all", lab.MiniupnpdOptions{PCP: true, UPnP: true}, "", "PCP"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newScene(t, tt.opts)
			keeper := s.keep(s.host, "one", tt.speaks)
			protocol, outside := s.finds(keeper, 1)
			if want := netip.AddrPortFrom(s.router.WAN(), inside); protocol != tt.want || outside != want {
				t.Fatalf("found %s by %s, want %s by %s", outside, protocol, want, tt.want)
			}
			s.leadsTo(outside, s.host)
			s.secondHost(tt.speaks, outside)
			must(t, keeper.Stop(t.Context()))
			if left := s.mappings(); left != "" {
				t.Errorf("after the end the router still has\n%s\n%s", left, s.daemon.Log())
			}
		})
	}
}

func TestProbeRealRouter(t *testing.T) {
	for opts, want := range map[lab.MiniupnpdOptions]string{
		{PCP: true, UPnP: true}: "speaks PCP NAT-PMP UPnP <nil>\n",
		{UPnP: true}:            "speaks UPnP <nil>\n",
	} {
		s := newScene(t, opts)
		self, err := os.Executable()
		must(t, err)
		p, err := s.host.Start(t.Context(), "probe", []string{probeEnv + "=1", endAtOnce}, self)
		must(t, err)
		must(t, p.Wait(t.Context()))
		if got := p.Log(); got != want {
			t.Errorf("%+v: got %q, want %q", opts, got, want)
		}
		if left := s.mappings(); left != "" {
			t.Errorf("probing has mapped\n%s", left)
		}
	}
}

// secondHost sees that another host gets another port, and gives it back.
func (s *scene) secondHost(speaks string, first netip.AddrPort) {
	s.t.Helper()
	h, err := s.Host("second", lab.HostOptions{Router: s.router})
	must(s.t, err)
	keeper := s.keep(h, "two", speaks)
	_, outside := s.finds(keeper, 1)
	if outside.Addr() != first.Addr() || outside.Port() == first.Port() {
		s.t.Errorf("the second host got %s, the first has %s", outside, first)
	}
	s.leadsTo(outside, h)
	s.leadsTo(first, s.host)
	must(s.t, keeper.Stop(s.t.Context()))
}

// leadsTo sends to an outside address from the internet.
func (s *scene) leadsTo(outside netip.AddrPort, h *lab.Host) {
	s.t.Helper()
	stranger, err := s.Host(fmt.Sprintf("stranger%d-%s", time.Now().UnixNano()%1e6, h.Name()), lab.HostOptions{})
	must(s.t, err)
	to, err := h.ListenUDP(netip.AddrPortFrom(h.Addr(), inside))
	must(s.t, err)
	defer to.Close()
	from, err := stranger.ListenUDP(netip.AddrPortFrom(stranger.Addr(), 0))
	must(s.t, err)
	defer from.Close()
	_, err = from.WriteToUDPAddrPort([]byte("unasked"), outside)
	must(s.t, err)
	must(s.t, to.SetReadDeadline(time.Now().Add(patience)))
	buf := make([]byte, 16)
	if n, _, err := to.ReadFromUDPAddrPort(buf); err != nil || string(buf[:n]) != "unasked" {
		s.t.Fatalf("sent to %s, %s received %q, error %v; router has\n%s", outside, h.Name(), buf[:n], err, s.mappings())
	}
}

// A router that reboots has forgotten the mapping; it is made anew.
func TestRouterReboots(t *testing.T) {
	for _, opts := range []lab.MiniupnpdOptions{{PCP: true}, {UPnP: true}} {
		t.Run(fmt.Sprintf("%+v", opts), func(t *testing.T) {
			s := newScene(t, opts)
			keeper := s.keep(s.host, "one", "")
			_, outside := s.finds(keeper, 1)
			s.daemon.Kill()
			must(t, s.router.Reboot())
			s.start()
			if left := s.mappings(); left != "" {
				t.Fatalf("the router remembers %s", left)
			}
			must(t, keeper.Signal(syscall.SIGUSR1))
			for deadline := time.Now().Add(patience); s.mappings() == ""; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("not mapped anew:\n%s\n%s", keeper.Log(), s.daemon.Log())
				}
			}
			s.leadsTo(outside, s.host)
		})
	}
}

// Whoever was killed left its mapping on the router, and takes it over when it
// comes back.
func TestKilledAndBack(t *testing.T) {
	for _, tt := range []struct {
		opts   lab.MiniupnpdOptions
		speaks string
	}{{lab.MiniupnpdOptions{PCP: true}, "PCP"}, {lab.MiniupnpdOptions{PCP: true}, "NAT-PMP"}, {lab.MiniupnpdOptions{UPnP: true}, "UPnP"}} {
		t.Run(tt.speaks, func(t *testing.T) {
			s := newScene(t, tt.opts)
			first := s.keep(s.host, "one", tt.speaks)
			_, before := s.finds(first, 1)
			first.Kill()
			if s.mappings() == "" {
				t.Fatal("a killed process has given its mapping back")
			}
			second := s.keep(s.host, "one", tt.speaks)
			if _, after := s.finds(second, 2); after != before { // both write to one log
				t.Errorf("got %s, want %s as before", after, before)
			}
			must(t, second.Stop(t.Context()))
			if left := s.mappings(); left != "" {
				t.Errorf("after the end the router still has\n%s", left)
			}
		})
	}
}
