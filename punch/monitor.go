package punch

import (
	"context"
	"fmt"
	"time"

	"github.com/pion/stun/v4"
)

// Monitor watches the current path until it is lost (ErrConsentLost), ctx ends
// (its error) or the session is closed (ErrClosed). It follows the path when it
// changes; without one it returns ErrNoPath. At most one Monitor of a session
// may run at a time.
func (s *Session) Monitor(ctx context.Context, c Consent) error {
	path, ok := s.current()
	if !ok {
		return ErrNoPath
	}
	answers := make(chan time.Duration, 1)
	var pending []transactionID
	defer func() { s.port.forget(pending...) }()

	state := newConsent(c, s.role, path.RTT, time.Now())
	s.setPatience(c.Hurried.patience(path.RTT))
	answered := func(rtt time.Duration) {
		state.answered(time.Now(), rtt)
		s.setPatience(c.Hurried.patience(state.rtt))
		s.port.forget(pending...)
		pending = nil
	}
	timer := time.NewTimer(time.Until(state.due))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.done:
			return fmt.Errorf("session %w", ErrClosed)
		case <-s.checkNow:
			state.hurry(time.Now())
		case rtt := <-answers:
			answered(rtt)
		case <-timer.C:
			// An answer that has come counts, however late this goroutine is.
			select {
			case rtt := <-answers:
				answered(rtt)
			default:
			}
		}
		path, _ = s.current()
		state.heard(s.heardAt())
		if c.Proof != nil {
			state.carried(c.Proof())
		}
		now := time.Now()
		switch state.step(now) {
		case consentLost:
			return fmt.Errorf("%w: %d checks to %s unanswered in %s", ErrConsentLost, state.tries, path.Remote, now.Sub(state.first).Round(time.Millisecond))
		case consentSend:
			id, err := s.sendConsent(path, answers)
			if err != nil {
				// The next tries tell whether this passes.
				s.log.Debug("consent check not sent", "err", err)
				break
			}
			pending = append(pending, id)
		}
		timer.Reset(time.Until(state.due))
	}
}

func (s *Session) current() (Path, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.path, s.path.Remote.IsValid()
}

func (s *Session) heardAt() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lastHeard
}

// setPatience notes how long a hurried check takes at most.
func (s *Session) setPatience(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.patience = d
}

// sendConsent sends one check on path; the round trip of an authentic answer that
// comes back the same way is told to answers. Each check is a transaction of its own, RFC 7675
// section 5.1.
func (s *Session) sendConsent(path Path, answers chan<- time.Duration) (transactionID, error) {
	msg, err := s.newCheck()
	if err != nil {
		return transactionID{}, err
	}
	sent := time.Now()
	s.port.expect(msg.TransactionID, func(pk packet) {
		s.count(len(pk.msg.Raw))
		if pk.local != path.Local || pk.from != path.Remote || pk.msg.Type.Class != stun.ClassSuccessResponse ||
			stun.NewShortTermIntegrity(s.remote.Pwd).Check(pk.msg) != nil {
			return
		}
		s.mu.Lock()
		s.seenAt(pair{path.Local, path.Remote}, pk.msg)
		s.mu.Unlock()
		select {
		case answers <- time.Since(sent):
		default:
		}
	})
	if err := s.send(path.Local, path.Remote, msg.Raw); err != nil {
		s.port.forget(msg.TransactionID)
		return transactionID{}, err
	}
	return msg.TransactionID, nil
}
