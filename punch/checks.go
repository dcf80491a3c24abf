package punch

import (
	"cmp"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/pion/ice/v4"
	"github.com/pion/stun/v4"
)

// pair is a candidate pair as seen from here: base and remote address.
type pair struct {
	local, remote netip.AddrPort
}

// Stats tell what was tried and what came of it, one entry for each candidate
// pair. They are the material of Explain.
type Stats struct {
	Pairs []PairStats
	// Openers are the packets sent to die on the way, Probes those sent to
	// ports that nobody had named.
	Openers, Probes int
	// Forged are the packets that came to opened ports and were no check of
	// the peer's.
	Forged int
}

// Sent is how many packets it took to get through: openers, probes and checks.
func (s Stats) Sent() int { return s.Openers + s.Probes + s.total().RequestsSent }

// PairStats counts the connectivity checks of one pair. Requests received and
// responses received are authenticated ones only.
type PairStats struct {
	Local             netip.AddrPort
	Remote            Candidate
	RequestsSent      int
	ResponsesReceived int
	RequestsReceived  int
}

// total adds up all pairs.
func (s Stats) total() (t PairStats) {
	for _, p := range s.Pairs {
		t.RequestsSent += p.RequestsSent
		t.ResponsesReceived += p.ResponsesReceived
		t.RequestsReceived += p.RequestsReceived
	}
	return t
}

// Pacing of checks. pion repeats every unanswered check at checkTick for as long
// as the attempt lasts: a failed attempt of 10 s would send 120 kB for each
// candidate pair, on somebody's SIM card. So checks come at fastGap while both
// sides can be expected to start, then ever more rarely, 10 kB in all. Hearing
// the peer on a pair starts that pair's clock anew: now every check counts.
const (
	checkTick = 10 * time.Millisecond  // RFC 8445 section 14.2 permits Ta down to 5 ms
	fastGap   = 20 * time.Millisecond  // pacing within the first second
	slowGap   = 100 * time.Millisecond // until lateAfter
	lateGap   = 500 * time.Millisecond // RFC 8445's default RTO
	slowAfter = time.Second
	lateAfter = 3 * time.Second
)

// checkGap is the least time between two checks of a pair of that age.
func checkGap(age time.Duration) time.Duration {
	switch {
	case age < slowAfter:
		return fastGap
	case age < lateAfter:
		return slowGap
	default:
		return lateGap
	}
}

// checkState is what a session remembers of one pair.
type checkState struct {
	since           time.Time // first check, or the last time the peer was heard
	lastSent        time.Time
	lastNominated   time.Time
	rtt             time.Duration
	sent            int
	answered, heard int
	// mapped is where the peer saw the first answered check come from.
	mapped netip.AddrPort
}

// mayCheck decides whether a check asked for now is sent. Nominations
// are paced apart from plain checks: the first must not wait.
func (c *checkState) mayCheck(now time.Time, nomination bool) bool {
	last := &c.lastSent
	if nomination {
		last = &c.lastNominated
	}
	// Half a tick of tolerance: a tick that comes early must not cost a whole one.
	if !last.IsZero() && now.Sub(*last) < checkGap(now.Sub(c.since))-checkTick/2 {
		return false
	}
	if c.since.IsZero() {
		c.since = now
	}
	*last = now
	c.sent++
	return true
}

// alive restarts the pacing: something came from the peer on this pair.
func (c *checkState) alive(now time.Time) {
	c.since = now
	c.lastSent = time.Time{}
}

// checkList holds the states of all pairs. The session's mutex guards it.
type checkList map[pair]*checkState

func (l checkList) at(p pair) *checkState {
	c, ok := l[p]
	if !ok {
		c = &checkState{}
		l[p] = c
	}
	return c
}

func (l checkList) stats(kind func(netip.AddrPort) Kind) Stats {
	var s Stats
	for p, c := range l {
		s.Pairs = append(s.Pairs, PairStats{
			Local: p.local, Remote: Candidate{Kind: kind(p.remote), Addr: p.remote},
			RequestsSent: c.sent, ResponsesReceived: c.answered, RequestsReceived: c.heard,
		})
	}
	slices.SortFunc(s.Pairs, func(a, b PairStats) int {
		return cmp.Or(a.Local.Compare(b.Local), a.Remote.Addr.Compare(b.Remote.Addr))
	})
	return s
}

// prflxPriority is the PRIORITY of a check that is sent beside pion's: that of a
// peer-reflexive candidate (RFC 8445 section 7.1.1), with the local preference
// and the component that pion gives its own.
const prflxPriority = 110<<24 | 65535<<8 | 255

// newCheck builds a connectivity check, RFC 8445 section 7.2.2, that nominates
// nothing.
func (s *Session) newCheck() (*stun.Message, error) {
	// The tie-breaker only matters in a role conflict, and roles are assigned.
	var role stun.Setter = ice.AttrControlled(rand.Uint64())
	if s.role == Controlling {
		role = ice.AttrControlling(rand.Uint64())
	}
	return stun.Build(stun.TransactionID, stun.BindingRequest,
		stun.NewUsername(s.remote.Ufrag+":"+s.local.Ufrag), role, ice.PriorityAttr(prflxPriority),
		stun.NewShortTermIntegrity(s.remote.Pwd), stun.Fingerprint)
}

// isCheck reports whether a packet is a check of the peer's for this session.
func (s *Session) isCheck(payload []byte) bool {
	// A copy: verification scribbles on the message.
	msg := stun.Message{Raw: append([]byte(nil), payload...)}
	if !stun.IsMessage(payload) || msg.Decode() != nil || msg.Type != stun.BindingRequest {
		return false
	}
	username, err := msg.Get(stun.AttrUsername)
	return err == nil && string(username) == s.local.Ufrag+":"+s.remote.Ufrag &&
		stun.NewShortTermIntegrity(s.local.Pwd).Check(&msg) == nil
}
