package portmap

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var loopback = netip.MustParseAddr("127.0.0.1")

// fakeRouter answers on a UDP port of the loopback interface, each request with
// the packets of answer.
func fakeRouter(t *testing.T, answer func(request []byte) [][]byte) router {
	t.Helper()
	pc, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback, 0)))
	must(t, err)
	var serving sync.WaitGroup
	serving.Go(func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := pc.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			for _, b := range answer(buf[:n]) {
				_, _ = pc.WriteToUDPAddrPort(b, from)
			}
		}
	})
	t.Cleanup(func() {
		pc.Close()
		serving.Wait()
	})
	return router{addr: loopback, source: loopback, mapPort: pc.LocalAddr().(*net.UDPAddr).AddrPort().Port()}
}

// A router that answers everything with nonsense is ignored, and its nonsense
// counted.
func TestNonsense(t *testing.T) {
	junk := [][]byte{nil, {0}, make([]byte, 24), make([]byte, 2000), []byte("HTTP/1.1 200 OK\r\n\r\n"),
		// A mapping of somebody else's: another nonce, another port.
		unhex(t, pcpMapReply), unhex(t, natpmpReply16)}
	for name, times := range map[string]int{"a little": 1, "a flood": 100} {
		for _, p := range protocols[:2] {
			t.Run(p.name+", "+name, func(t *testing.T) {
				t.Parallel()
				s := site{inside: 1234, nonce: testNonce}
				s.router = fakeRouter(t, func([]byte) [][]byte { return slices.Repeat(junk, times) })
				m, err := p.find(t.Context(), s)
				if !errors.Is(err, ErrSilent) || !strings.Contains(err.Error(), "packets of nonsense") {
					t.Errorf("find: %v, want %v with the count", err, ErrSilent)
				}
				if mapping, err := m.request(t.Context(), netip.AddrPort{}); !errors.Is(err, ErrSilent) {
					t.Errorf("request: %+v, %v; want %v", mapping, err, ErrSilent)
				}
			})
		}
	}
}

// The answer counts although nonsense came first, and although the first two
// requests got lost.
func TestAnswerAmongNonsense(t *testing.T) {
	var requests atomic.Int32
	r := fakeRouter(t, func([]byte) [][]byte {
		if requests.Add(1) < transmissions {
			return nil
		}
		return [][]byte{{1, 2, 3}, unhex(t, pcpAnnReply), unhex(t, natpmpReply12), unhex(t, pcpMapReply)}
	})
	p := &pcp{site: site{router: r, inside: 4500, nonce: testNonce}}
	m, err := p.request(t.Context(), testOutside)
	if want := (Mapping{"PCP", testOutside, 2 * time.Hour}); err != nil || m != want {
		t.Errorf("got %+v, %v; want %+v", m, err, want)
	}
	if n := requests.Load(); n != transmissions {
		t.Errorf("%d requests, want %d", n, transmissions)
	}
}

// What a NAT-PMP server alone and a router without either say at once.
func TestRefusals(t *testing.T) {
	r := fakeRouter(t, func(request []byte) [][]byte {
		if request[0] != natpmpVersion {
			return [][]byte{unhex(t, "0080 0001 00000064")}
		}
		return [][]byte{unhex(t, natpmpReply12)}
	})
	s := site{router: r, inside: 4500}
	if _, err := findPCP(t.Context(), s); !errors.Is(err, ErrRefused) {
		t.Errorf("PCP on a router with NAT-PMP alone: %v, want %v", err, ErrRefused)
	}
	if _, err := findNATPMP(t.Context(), s); err != nil {
		t.Errorf("NAT-PMP: %v", err)
	}
	closed, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback, 0)))
	must(t, err)
	s.mapPort = closed.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	closed.Close()
	if _, err := findPCP(t.Context(), s); !errors.Is(err, ErrRefused) {
		t.Errorf("closed port: %v, want %v", err, ErrRefused)
	}
}

func TestExchangeEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	r := fakeRouter(t, func([]byte) [][]byte { cancel(); return nil })
	if err := r.exchange(ctx, []byte{0}, func([]byte) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	if err := r.exchange(ctx, []byte{0}, func([]byte) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled before: got %v, want %v", err, context.Canceled)
	}
}

// No router is no error of Keep's, and does not keep it from ending.
func TestKeepWithoutRouter(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	k := &keeper{
		Options: Options{Log: slog.New(slog.DiscardHandler)},
		router:  func() (router, error) { cancel(); return router{}, ErrNoRouter },
		found:   func(m Mapping) { t.Errorf("found %+v", m) },
	}
	k.run(ctx)
}
