package punch

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/transport/v5/vnet"
)

// delayedPair is newPair with a one-way delay between the sites.
func delayedPair(t testing.TB, delay time.Duration) (*peer, *peer) {
	in := newInternetWith(t, delay)
	a := in.addHost(in.addSite("203.0.113.10", "192.168.1", portRestricted), "192.168.1.10")
	b := in.addHost(in.addSite("203.0.113.20", "192.168.1", portRestricted), "192.168.1.20")
	in.start(STUNCredential{})
	return newPeer(t, in, a, "192.168.1.10:4500"), newPeer(t, in, b, "192.168.1.20:4500")
}

// On the fake clock the time to a path is exact: the acceptance wait or one
// round trip, whichever is longer, and the nomination's way to the peer.
func TestRoundTripsToPath(t *testing.T) {
	for _, delay := range []time.Duration{time.Millisecond, 25 * time.Millisecond, 75 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			a, b := delayedPair(t, delay)
			sa, sb := sessions(t, a, b)
			start := time.Now()
			must(t, sa.Start())
			must(t, sb.Start())
			waitPath(t, sa)
			controlling := time.Since(start)
			waitPath(t, sb)
			controlled := time.Since(start)
			t.Logf("one way %s: controlling %s, controlled %s", delay, controlling, controlled)
			if most := max(acceptanceWait, 2*delay) + 2*checkTick; controlling > most {
				t.Errorf("one way %s: controlling side after %s, want at most %s", delay, controlling, most)
			}
			if most := controlling + delay + 2*checkTick; controlled > most {
				t.Errorf("one way %s: controlled side after %s, want at most %s", delay, controlled, most)
			}
		})
	}
}

// BenchmarkPath measures Start to first path on networks without delay.
func BenchmarkPath(b *testing.B) {
	for _, tc := range []struct {
		name string
		nat  *vnet.NATType
	}{{"port-restricted", &portRestricted}, {"LAN", nil}} {
		b.Run(tc.name, func(b *testing.B) {
			in := newInternet(b)
			ra, rb, ipA, ipB := in.wan, in.wan, "203.0.113.10", "203.0.113.20"
			if tc.nat != nil {
				ra, rb = in.addSite("203.0.113.10", "192.168.1", *tc.nat), in.addSite("203.0.113.20", "192.168.1", *tc.nat)
				ipA, ipB = "192.168.1.10", "192.168.1.20"
			}
			ha, hb := in.addHost(ra, ipA), in.addHost(rb, ipB)
			in.start(STUNCredential{})
			pa, pb := newPeer(b, in, ha, ipA+":4500"), newPeer(b, in, hb, ipB+":4500")
			var sum [2]time.Duration
			for b.Loop() {
				sa, sb := sessions(b, pa, pb)
				start := time.Now()
				must(b, sa.Start())
				must(b, sb.Start())
				waitPath(b, sa)
				sum[0] += time.Since(start)
				waitPath(b, sb)
				sum[1] += time.Since(start)
				must(b, sa.Close())
				must(b, sb.Close())
			}
			b.ReportMetric(float64(sum[0].Microseconds())/1000/float64(b.N), "ms-controlling")
			b.ReportMetric(float64(sum[1].Microseconds())/1000/float64(b.N), "ms-controlled")
		})
	}
}
