package punch

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/pion/stun/v4"
)

func bound(t *testing.T, addr string) (net.PacketConn, netip.AddrPort) {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), 0)))
	must(t, err)
	return c, c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// Bases come and go, and the others do not notice.
func TestPortAddRemove(t *testing.T) {
	first, a := bound(t, "127.0.0.1")
	second, b := bound(t, "127.0.0.2")
	p := openPort(t, first)
	service, server := bound(t, "127.0.0.1")
	startSTUN(t, STUNCredential{}, nil, service)
	ask := func(from netip.AddrPort) error {
		_, err := Mapped(t.Context(), p, from, server, STUNCredential{})
		return err
	}
	must(t, ask(a))
	if err := ask(b); !errors.Is(err, ErrNoBase) {
		t.Errorf("asked from a base that is not there: %v; want %v", err, ErrNoBase)
	}
	must(t, p.Add(second))
	must(t, ask(b))
	if err := p.Add(second); err == nil {
		t.Error("the same base twice: want an error")
	}
	must(t, p.Remove(a))
	if err := ask(a); !errors.Is(err, ErrNoBase) {
		t.Errorf("asked from a base that has gone: %v; want %v", err, ErrNoBase)
	}
	if err := p.Remove(a); !errors.Is(err, ErrNoBase) {
		t.Errorf("removed twice: %v; want %v", err, ErrNoBase)
	}
	must(t, ask(b))
	if got := p.Local(); !slices.Equal(got, []netip.AddrPort{b}) {
		t.Errorf("bases %v; want %s alone", got, b)
	}
	must(t, p.Close())
	third, _ := bound(t, "127.0.0.3")
	defer third.Close()
	if err := p.Add(third); !errors.Is(err, ErrClosed) {
		t.Errorf("added after Close: %v; want %v", err, ErrClosed)
	}
}

// A session goes on while other bases come and go; a check that arrives at a base
// it does not know of is nobody's.
func TestSessionWhileBasesChange(t *testing.T) {
	_, sa, sb := connected(t)
	extra, addr := bound(t, "127.0.0.1")
	must(t, sa.port.Add(extra))
	msg, err := sb.newCheck()
	must(t, err)
	stranger, _ := bound(t, "127.0.0.1")
	defer stranger.Close()
	packets := sa.port.Traffic().PacketsIn
	_, err = stranger.WriteTo(msg.Raw, net.UDPAddrFromAddrPort(addr))
	must(t, err)
	eventually(t, "the check has come in", func() bool { return sa.port.Traffic().PacketsIn > packets })
	must(t, sa.port.Remove(addr))

	ended := make(chan error, 1)
	go func() { ended <- sa.Monitor(t.Context(), quick) }()
	heard := sb.Checked().total().RequestsReceived
	eventually(t, "the peer hears consent checks", func() bool { return sb.Checked().total().RequestsReceived > heard+3 })
	must(t, sa.Close())
	if err := <-ended; !errors.Is(err, ErrClosed) {
		t.Errorf("monitor: %v; want %v, for its checks were answered until then", err, ErrClosed)
	}
}

// The peer's answers say when a NAT here has made another mapping for the path;
// what other pairs' answers say is no matter.
func TestMoved(t *testing.T) {
	_, sa, _ := connected(t)
	path, _ := sa.current()
	on := pair{path.Local, path.Remote}
	beside := pair{path.Local, netip.MustParseAddrPort("192.0.2.9:9")}
	for _, step := range []struct {
		name string
		pair pair
		port int
		want bool
	}{
		{"beside the path", beside, 1, false},
		{"beside the path, another", beside, 2, false},
		{"another than the checks before had", on, 3, true},
	} {
		answer, err := stun.Build(stun.BindingSuccess, &stun.XORMappedAddress{IP: net.IPv4(203, 0, 113, 10), Port: step.port})
		must(t, err)
		sa.mu.Lock()
		sa.seenAt(step.pair, answer)
		sa.mu.Unlock()
		if got := sa.Moved(); got != step.want {
			t.Errorf("%s: moved %v; want %v", step.name, got, step.want)
		}
	}
}
