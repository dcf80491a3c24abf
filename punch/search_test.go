package punch

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestSearchRefuses(t *testing.T) {
	_, a, b := newPair(t, portRestricted, portRestricted)
	sa, _ := sessions(t, a, b)
	for _, target := range []netip.Addr{b.base.Addr(), netip.MustParseAddr("203.0.113.99"), {}} {
		if err := sa.Search(t.Context(), SearchConfig{From: a.base, Target: target, Rate: 1, Max: 1}); !errors.Is(err, ErrRefused) {
			t.Errorf("target %s: %v, want %v", target, err, ErrRefused)
		}
	}
	if n := sa.Checked().Probes; n != 0 {
		t.Errorf("%d probes sent", n)
	}
}

// deadEnd is a socket that takes notes, and hears nothing.
type deadEnd struct {
	mu     sync.Mutex
	sent   []time.Time
	to     []netip.AddrPort
	err    error
	closed chan struct{}
}

func newDeadEnd() *deadEnd { return &deadEnd{closed: make(chan struct{})} }

func (d *deadEnd) ReadFrom([]byte) (int, net.Addr, error) {
	<-d.closed
	return 0, nil, net.ErrClosed
}

func (d *deadEnd) WriteTo(_ []byte, to net.Addr) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sent = append(d.sent, time.Now())
	d.to = append(d.to, to.(*net.UDPAddr).AddrPort())
	return 0, d.err
}

func (d *deadEnd) Close() error { close(d.closed); return nil }

func (d *deadEnd) LocalAddr() net.Addr {
	return net.UDPAddrFromAddrPort(netip.MustParseAddrPort("192.168.1.10:4500"))
}
func (d *deadEnd) SetDeadline(time.Time) error      { return nil }
func (d *deadEnd) SetReadDeadline(time.Time) error  { return nil }
func (d *deadEnd) SetWriteDeadline(time.Time) error { return nil }

// A search keeps to its rate and its number, and probes no port twice.
func TestSearchPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn := newDeadEnd()
		target := netip.MustParseAddr("203.0.113.20")
		port, err := NewPort([]net.PacketConn{conn}, testLog(t))
		must(t, err)
		defer port.Close()
		s, err := port.NewSession(SessionConfig{Role: Controlling, Local: credA, Remote: credB, Log: testLog(t),
			Remotes: []Candidate{{ServerReflexive, netip.AddrPortFrom(target, 4500)}}})
		must(t, err)
		defer s.Close()
		const rate, limit = 300, 2400
		began := time.Now()
		must(t, s.Search(t.Context(), SearchConfig{From: port.Local()[0], Target: target, Rate: rate, Max: limit}))
		if took := time.Since(began); took < 7900*time.Millisecond || took > 8100*time.Millisecond {
			t.Errorf("%d probes at %d a second took %s", limit, rate, took)
		}
		if n := s.Checked().Probes; n != limit || len(conn.sent) != limit {
			t.Errorf("%d probes counted, %d sent, want %d", n, len(conn.sent), limit)
		}
		seen := map[uint16]bool{}
		for i, to := range conn.to {
			if to.Addr() != target || to.Port() < firstPort || seen[to.Port()] {
				t.Fatalf("probe %d to %s: want another port of %s from %d on", i, to, target, firstPort)
			}
			seen[to.Port()] = true
			if i >= rate && conn.sent[i].Sub(conn.sent[i-rate]) < 980*time.Millisecond {
				t.Fatalf("%d probes within %s", rate+1, conn.sent[i].Sub(conn.sent[i-rate]))
			}
		}
	})
}

func TestSearchEnds(t *testing.T) {
	for name, tc := range map[string]struct {
		err  error
		end  func(cancel func(), s *Session)
		want error
	}{
		"cancelled":       {nil, func(cancel func(), _ *Session) { cancel() }, nil},
		"session closed":  {nil, func(_ func(), s *Session) { go s.Close() }, nil},
		"network is down": {errors.New("network is unreachable"), func(func(), *Session) {}, errors.New("any")},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				conn := newDeadEnd()
				conn.err = tc.err
				target := netip.MustParseAddr("203.0.113.20")
				port, err := NewPort([]net.PacketConn{conn}, testLog(t))
				must(t, err)
				defer port.Close()
				s, err := port.NewSession(SessionConfig{Role: Controlling, Local: credA, Remote: credB, Log: testLog(t),
					Remotes: []Candidate{{ServerReflexive, netip.AddrPortFrom(target, 4500)}}})
				must(t, err)
				defer s.Close()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				time.AfterFunc(time.Second, func() { tc.end(cancel, s) })
				err = s.Search(ctx, SearchConfig{From: port.Local()[0], Target: target, Rate: 100, Max: 1000})
				if (err != nil) != (tc.want != nil) {
					t.Errorf("got %v, want an error: %v", err, tc.want != nil)
				}
				if n := s.Checked().Probes; tc.err == nil && (n < 95 || n > 105) || tc.err != nil && n != 0 {
					t.Errorf("%d probes", n)
				}
			})
		})
	}
}

func TestCadence(t *testing.T) {
	start := time.Unix(1000, 0)
	c := cadence{rate: 300, started: start}
	for _, tc := range []struct {
		at                time.Duration
		sent, limit, want int
	}{
		{0, 0, 2400, 1},
		{10 * time.Millisecond, 1, 2400, 3},
		{10 * time.Millisecond, 4, 2400, 0},
		{time.Second, 4, 2400, 6}, // late: twice the rate at most
		{time.Second, 299, 300, 1},
		{time.Minute, 2400, 2400, 0},
	} {
		if got := c.burst(start.Add(tc.at), tc.sent, tc.limit); got != tc.want {
			t.Errorf("after %s and %d sent: %d, want %d", tc.at, tc.sent, got, tc.want)
		}
	}
	slow := cadence{rate: 1, started: start}
	if got := slow.burst(start.Add(time.Second), 1, 10); got != 1 {
		t.Errorf("one a second: %d after a second, want 1", got)
	}
}
