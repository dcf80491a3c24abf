package agent

import (
	"sync"
	"time"

	"github.com/bodkin-net/bodkin/agent/charon"
	"github.com/bodkin-net/bodkin/punch"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// When it is counted and told what standing still costs.
const (
	// usageSettle is after a session's start, for punching and discovery, which
	// are not standing still; usageFirst and usageEvery are between reports.
	usageSettle = time.Minute
	usageFirst  = 5 * time.Minute
	usageEvery  = time.Hour
)

// What charon is reckoned to send, in IP bytes, when nothing else passes.
const (
	// keepaliveEvery and keepaliveBytes are of a NAT keepalive (RFC 3948 section
	// 2.3), which a node behind a NAT sends: charon.keep_alive's default, and one
	// byte in UDP.
	keepaliveEvery = 20 * time.Second
	keepaliveBytes = 29
	// dpdBytes is an empty INFORMATIONAL exchange, both ways, as measured.
	dpdBytes = 220
)

// udpHeaders are those of UDP over IPv4; IPv6's are 20 bytes longer.
const udpHeaders = 28

// usage counts what a node's standing still costs. It belongs to the daemon's
// goroutine, but for the meters, which the runs add to.
type usage struct {
	session time.Time // that is counted in: when it began
	begun   time.Time // counting, zero before
	due     time.Time // the next report
	// at are the counters when counting began.
	at     counters
	meters map[wire.NodeName]*meter
	last   *wire.Usage // the last report
}

// counters are totals in IP bytes.
type counters struct {
	signalling, port uint64
	peers            map[wire.NodeName]float64
}

// meter adds up the IP bytes of one peer's checks, and the estimate of what charon
// sends. Its methods may be called from any goroutine.
type meter struct {
	mu     sync.Mutex
	checks uint64
	charon float64
	looked time.Time // of the last estimate
}

// packet counts one of n bytes in UDP.
func (m *meter) packet(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.checks += uint64(n + udpHeaders)
}

func (m *meter) total() (checks uint64, all float64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.checks, float64(m.checks) + m.charon
}

// meter is the peer's.
func (u *usage) meter(name wire.NodeName) *meter {
	if u.meters == nil {
		u.meters = map[wire.NodeName]*meter{}
	}
	m := u.meters[name]
	if m == nil {
		m = &meter{}
		u.meters[name] = m
	}
	return m
}

// idle adds the estimate for the time since the last look, in which nothing
// passed that makes keepalives and dead peer detection superfluous.
func (u *usage) idle(name wire.NodeName, now time.Time, seen *traffic, sas []charon.SA, plan wire.Plan) {
	m := u.meter(name)
	m.mu.Lock()
	defer m.mu.Unlock()
	before := m.looked
	m.looked = now
	if before.IsZero() || len(sas) == 0 {
		return
	}
	passed := now.Sub(before)
	var perSecond float64
	for _, behind := range []bool{sas[0].LocalNAT, sas[0].RemoteNAT} {
		if behind && now.Sub(seen.lastOut) > keepaliveEvery {
			perSecond += keepaliveBytes / keepaliveEvery.Seconds()
		}
	}
	dpd := dpdPunched
	if plan == wire.PlanPublic {
		dpd = dpdPublic
	}
	if now.Sub(seen.lastIn) > dpd {
		perSecond += dpdBytes / dpd.Seconds()
	}
	m.charon += perSecond * passed.Seconds()
}

// report is what has been counted, when that is due at now, in the session that
// began at session; nil otherwise. Counting begins anew with each session.
func (u *usage) report(now, session time.Time, signalling uint64, port punch.Traffic) *wire.Usage {
	if session != u.session {
		u.session, u.begun = session, time.Time{}
		u.due = session.Add(usageFirst)
	}
	totals := counters{signalling: signalling, port: port.BytesIn + port.BytesOut + udpHeaders*(port.PacketsIn+port.PacketsOut)}
	var checks uint64
	totals.peers = make(map[wire.NodeName]float64, len(u.meters))
	for name, m := range u.meters {
		c, all := m.total()
		totals.peers[name] = all
		checks += c
	}
	totals.port -= min(totals.port, checks)
	switch {
	case u.begun.IsZero() && now.Sub(session) >= usageSettle:
		u.begun, u.at = now, totals
	case !u.begun.IsZero() && !now.Before(u.due):
		u.last = totals.since(u.at, now.Sub(u.begun))
		u.begun, u.at, u.due = now, totals, now.Add(usageEvery)
		return u.last
	}
	return nil
}

func (c counters) since(old counters, passed time.Duration) *wire.Usage {
	out := &wire.Usage{
		Seconds:    max(1, int64(passed.Seconds())),
		Signalling: int64(c.signalling - min(c.signalling, old.signalling)),
		STUN:       int64(c.port - min(c.port, old.port)),
		Peers:      map[wire.NodeName]int64{},
	}
	for name, all := range c.peers {
		// One that has been no peer for a while counts from 0 again.
		out.Peers[name] = int64(all - min(all, old.peers[name]))
	}
	return out
}

// perDay is what a tunnel that stands idle costs in a day by the last report, 0
// before there is one.
func (u *usage) perDay(name wire.NodeName) int64 {
	if u.last == nil {
		return 0
	}
	return u.last.Peers[name] * int64(24*time.Hour/time.Second) / u.last.Seconds
}

// forget drops the meters of nodes that are no peers any more.
func (u *usage) forget(isPeer func(wire.NodeName) bool) {
	for name := range u.meters {
		if !isPeer(name) {
			delete(u.meters, name)
		}
	}
}

// reportUsage tells the rendezvous what standing still costs, when it is due.
func (d *Daemon) reportUsage(now time.Time) {
	if d.link == nil {
		return
	}
	d.usage.forget(func(name wire.NodeName) bool { return d.tunnels[name] != nil })
	if u := d.usage.report(now, d.linkSince, d.signalling.bytes(), d.port.Traffic()); u != nil {
		d.send(u)
	}
}
