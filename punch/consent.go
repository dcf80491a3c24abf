package punch

import (
	"math/rand/v2"
	"time"
)

// Consent says when a path is checked and when it is given up, RFC 7675.
type Consent struct {
	// Interval between checks while all is well, ± Jitter (a fraction).
	Interval time.Duration
	Jitter   float64
	// Tries are the times of the checks after a first one, counted from it;
	// Lost, counted the same, is when consent ends without an answer.
	Tries []time.Duration
	Lost  time.Duration
}

// DefaultConsent costs about 25 kB an hour on the wire: one exchange of some
// 210 bytes each half minute, since the controlled side stays silent while it
// hears the controlling one. RFC 7675 section 5.1 checks every 5 s, for media
// that would flood a victim; behind ours are tunnels both ends authenticated.
// Keeping NAT mappings alive is not its task: strongSwan's keepalives, from the
// same port, are more frequent. A check that is lost to congestion alone is
// made good by five more within 8 s.
func DefaultConsent() Consent {
	return Consent{
		Interval: 30 * time.Second,
		Jitter:   0.2, // RFC 7675 section 5.1: no synchronisation between flows
		Tries:    []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second},
		Lost:     10 * time.Second,
	}
}

// silence is how many intervals the controlled side waits to hear a check before
// it sends its own: above what jitter explains, below two missed checks.
const silence = 1.5

// consent is the state machine of one path; time is an argument.
type consent struct {
	Consent
	role  Role
	rand  func() float64 // uniform in [0, 1)
	due   time.Time      // next step
	first time.Time      // first of the unanswered checks
	tries int            // unanswered checks so far, 0 while all is well
}

type consentStep int

const (
	consentWait consentStep = iota
	consentSend
	consentLost
)

func newConsent(c Consent, role Role, now time.Time) *consent {
	m := &consent{Consent: c, role: role, rand: rand.Float64}
	m.proven(now)
	return m
}

// proven notes that a check was answered.
func (c *consent) proven(now time.Time) {
	c.tries = 0
	wait := float64(c.Interval) * (1 + c.Jitter*(2*c.rand()-1))
	if c.role == Controlled {
		wait = float64(c.Interval) * silence
	}
	c.due = now.Add(time.Duration(wait))
}

// heard notes the peer's last check. It puts off the controlled side's own,
// but answers none that is under way: that the peer reaches us does not prove
// that we reach it.
func (c *consent) heard(at time.Time) {
	if c.role != Controlled || c.tries > 0 {
		return
	}
	if due := at.Add(time.Duration(float64(c.Interval) * silence)); due.After(c.due) {
		c.due = due
	}
}

// hurry makes the next check due now, unless one is under way.
func (c *consent) hurry(now time.Time) {
	if c.tries == 0 {
		c.due = now
	}
}

// step says what to do at now; after it, due is the time of the next step.
func (c *consent) step(now time.Time) consentStep {
	if c.tries > 0 && !now.Before(c.first.Add(c.Lost)) {
		return consentLost
	}
	if now.Before(c.due) {
		return consentWait
	}
	if c.tries == 0 {
		c.first = now
	}
	c.due = c.first.Add(c.Lost)
	if c.tries < len(c.Tries) {
		c.due = c.first.Add(c.Tries[c.tries])
	}
	c.tries++
	return consentSend
}
