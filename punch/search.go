package punch

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"
)

const (
	// firstPort: below it are the ports of services, which NATs do not give
	// out, and which nobody should be seen to scan.
	firstPort = 1024
	portCount = 1<<16 - firstPort
	// paceTick is between bursts of packets: three at 300 a second.
	paceTick = 10 * time.Millisecond
)

// SearchConfig says where to look for the peer's open ports, and how fast.
type SearchConfig struct {
	// From is the base that the probes leave from.
	From netip.AddrPort
	// Target is the peer's public address.
	Target netip.Addr
	// Rate is in probes per second, Max how many there are at most; both must
	// be positive.
	Rate, Max int
}

// Search is one part of a search, for the side whose mapping is known: it sends
// checks to random ports of the peer's NAT, none twice, while the peer holds
// many ports open for them (see Scatter). With n of portCount ports open, some
// portCount/n probes meet one. It learns of that when the peer's own check
// comes back the same way, which the session then answers and follows like any
// other. Search returns when a check has come from Target, Max probes are sent
// or ctx ends. An error means that no probe could be sent.
func (s *Session) Search(ctx context.Context, cfg SearchConfig) error {
	if !s.reflexive(func(a netip.AddrPort) bool { return a.Addr() == cfg.Target }) {
		return fmt.Errorf("search: %w: %s is no server-reflexive IPv4 address of the peer", ErrRefused, cfg.Target)
	}
	probe, err := s.newCheck()
	if err != nil {
		return fmt.Errorf("search: %w", err)
	}
	ports := newPortDraw()
	limit := min(cfg.Max, portCount)
	c := cadence{rate: cfg.Rate, started: time.Now()}
	tick := time.NewTicker(paceTick)
	defer tick.Stop()
	for tried, sent := 0, 0; ; {
		for range c.burst(time.Now(), tried, limit) {
			tried++
			if err = s.port.send(cfg.From, netip.AddrPortFrom(cfg.Target, ports.next()), probe.Raw); err == nil {
				sent++
				s.note(func(st *Stats) { st.Probes++ })
			}
		}
		if tried == limit && sent == 0 {
			return fmt.Errorf("search: %w", err)
		}
		if tried == limit || s.heardFrom(cfg.Target) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		case <-s.done:
			return nil
		}
	}
}

// reflexive reports whether the peer has a server-reflexive IPv4 candidate that
// is as asked: what the rendezvous has seen itself, and nobody has claimed. Only
// such an address may be searched.
func (s *Session) reflexive(is func(netip.AddrPort) bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for a, kind := range s.kinds {
		if kind == ServerReflexive && a.Addr().Is4() && is(a) {
			return true
		}
	}
	return false
}

// cadence spreads packets over time.
type cadence struct {
	rate    int // packets per second
	started time.Time
}

// burst is how many packets may be sent now, when so many have been of limit.
// What a late tick has missed is made up for at no more than twice the rate.
func (c cadence) burst(now time.Time, sent, limit int) int {
	perTick := max(1, int(int64(c.rate)*int64(paceTick)/int64(time.Second)))
	due := int(int64(c.rate)*int64(now.Sub(c.started))/int64(time.Second)) + 1 - sent
	return max(0, min(due, 2*perTick, limit-sent))
}

// portDraw draws random ports without repetition: the part of a Fisher-Yates
// shuffle that is needed.
type portDraw struct {
	ports []uint16
}

func newPortDraw() *portDraw {
	d := &portDraw{ports: make([]uint16, portCount)}
	for i := range d.ports {
		d.ports[i] = uint16(firstPort + i)
	}
	return d
}

// next may be called portCount times.
func (d *portDraw) next() uint16 {
	i, last := rand.IntN(len(d.ports)), len(d.ports)-1
	port := d.ports[i]
	d.ports[i] = d.ports[last]
	d.ports = d.ports[:last]
	return port
}
