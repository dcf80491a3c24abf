package punch

import (
	"net/netip"
	"time"

	"github.com/pion/ice/v4"
	"github.com/pion/stun/v4"
)

// send sends a packet of this session.
func (s *Session) send(local, to netip.AddrPort, payload []byte) error {
	err := s.port.send(local, to, payload)
	if err == nil {
		s.count(len(payload))
	}
	return err
}

// request takes a check from the peer off the port; pion verifies it.
func (s *Session) request(pk packet) {
	s.count(len(pk.msg.Raw))
	conn, ok := s.conns[pk.local]
	if !ok {
		return // a base that came later: the peer is not told of it in this session
	}
	s.mu.Lock()
	// Only a pair that is being checked: an unverified packet must not make states.
	if c, ok := s.checks[pair{pk.local, pk.from}]; ok {
		c.alive(time.Now())
	}
	s.mu.Unlock()
	conn.deliver(pk.from, pk.msg.Raw)
}

// checked is pion's handler for every check it verified. It never switches pairs.
func (s *Session) checked(_ *stun.Message, local, remote ice.Candidate, _ *ice.CandidatePair) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.checks.at(pair{addrOf(local), addrOf(remote)})
	if c.heard++; c.heard == 1 {
		s.seen(CheckHeard, addrOf(remote))
	}
	s.lastHeard = time.Now()
	return false
}

// goesAstray tells whether packets of a pair would leave by another interface
// than its base's. It is asked once: routes that change make a path to be
// checked, not an attempt to be changed.
func (s *Session) goesAstray(p pair) bool {
	if s.leaves == nil {
		return false
	}
	key := [2]netip.Addr{p.local.Addr(), p.remote.Addr()}
	s.mu.Lock()
	astray, known := s.astray[key]
	s.mu.Unlock()
	if known {
		return astray
	}
	astray = !s.leaves(key[0], key[1])
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.astray) < MaxRemotes*len(s.conns) {
		s.astray[key] = astray
	}
	return astray
}

// sending decides whether pion's check leaves, and notes what to expect.
func (s *Session) sending(p pair, msg *stun.Message) bool {
	nomination := msg.Contains(stun.AttrUseCandidate)
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.checks.at(p)
	if s.closed || !c.mayCheck(now, nomination) {
		return false
	}
	if c.sent == 1 {
		s.seen(CheckSent, p.remote)
	}
	s.expire(now)
	s.pending = append(s.pending, pendingCheck{msg.TransactionID, p, now})
	s.port.expect(msg.TransactionID, func(pk packet) { s.response(pk, p, now) })
	if nomination {
		s.setPath(p)
	}
	return true
}

// response takes the answer to one of pion's checks, sent on p at sentAt.
func (s *Session) response(pk packet, p pair, sentAt time.Time) {
	s.count(len(pk.msg.Raw))
	// Checked on a copy: verification scribbles on the message.
	own := stun.Message{Raw: append([]byte(nil), pk.msg.Raw...)}
	authentic := own.Decode() == nil && stun.NewShortTermIntegrity(s.remote.Pwd).Check(&own) == nil
	if authentic && pk.msg.Type.Class == stun.ClassSuccessResponse && (pair{pk.local, pk.from}) == p {
		now := time.Now()
		s.mu.Lock()
		c := s.checks.at(p)
		c.answered++
		c.rtt = now.Sub(sentAt)
		s.seenAt(p, &own)
		s.mu.Unlock()
	}
	s.conns[pk.local].deliver(pk.from, pk.msg.Raw)
}

// seenAt notes where the peer saw a check on p come from, by its answer.
func (s *Session) seenAt(p pair, answer *stun.Message) {
	c := s.checks.at(p)
	switch at, err := mappedAddress(answer); {
	case err != nil:
	case !c.mapped.IsValid():
		c.mapped = at
	case c.mapped != at && p == (pair{s.path.Local, s.path.Remote}):
		s.moved = true
	}
}

// Moved reports whether the peer sees this side's checks on the current path come
// from another address than at first: a NAT here has made a new mapping, and what
// is sent to the old one is lost.
func (s *Session) Moved() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.moved
}

// expire forgets the checks that can no longer be answered; all when now is zero.
func (s *Session) expire(now time.Time) {
	n := 0
	for n < len(s.pending) && (now.IsZero() || now.Sub(s.pending[n].at) > checkTimeout) {
		s.port.forget(s.pending[n].id)
		n++
	}
	s.pending = s.pending[n:]
}
