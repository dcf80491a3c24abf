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
	// Routine is what follows a check that all was well before, Hurried one that
	// CheckNow asked for.
	Routine, Hurried Schedule
	// Proof tells when authentic bytes last passed both ways on the path in
	// another way than by checks, zero for never. nil for no other way.
	Proof func() time.Time
}

// Schedule is what follows a check that is not answered.
type Schedule struct {
	// Tries are the times of the checks after the first one, counted from it;
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
//
// Where there is evidence of trouble there is traffic that suffers. At 20 % loss
// each way the six hurried checks fail all together once in 460 times.
func DefaultConsent() Consent {
	return Consent{
		Interval: 30 * time.Second,
		Jitter:   0.2, // RFC 7675 section 5.1: no synchronisation between flows
		Routine: Schedule{
			Tries: []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second},
			Lost:  10 * time.Second,
		},
		Hurried: Schedule{
			Tries: []time.Duration{100 * time.Millisecond, 200 * time.Millisecond, 350 * time.Millisecond, 500 * time.Millisecond, 650 * time.Millisecond},
			Lost:  800 * time.Millisecond,
		},
	}
}

const (
	// silence is how many intervals the controlled side waits to hear a check
	// before it sends its own: above what jitter explains, below two missed checks.
	silence = 1.5
	// A hurried check waits for lostRTTs of the path's round trips and lostExtra,
	// if that is longer than its schedule: trouble can be a queue that has grown.
	lostRTTs  = 3
	lostExtra = 300 * time.Millisecond
)

// patience is how long a hurried check of a path with that round trip takes at
// most.
func (s Schedule) patience(rtt time.Duration) time.Duration {
	return max(s.Lost, lostRTTs*rtt+lostExtra)
}

// consent is the state machine of one path; time is an argument.
type consent struct {
	Consent
	role    Role
	rand    func() float64 // uniform in [0, 1)
	rtt     time.Duration  // rises at once and falls slowly; 0 as long as it is not known
	due     time.Time      // next step
	first   time.Time      // first of the unanswered checks
	tries   int            // unanswered checks so far, 0 while all is well
	hurried bool           // there is evidence of trouble
}

type consentStep int

const (
	consentWait consentStep = iota
	consentSend
	consentLost
)

func newConsent(c Consent, role Role, rtt time.Duration, now time.Time) *consent {
	m := &consent{Consent: c, role: role, rtt: rtt, rand: rand.Float64}
	m.proven(now)
	return m
}

// answered notes that a check was answered after rtt.
func (c *consent) answered(now time.Time, rtt time.Duration) {
	c.rtt = max(rtt, (7*c.rtt+rtt)/8) // the weight of RFC 6298 section 2.3
	c.proven(now)
}

// proven notes that the path passes packets both ways.
func (c *consent) proven(now time.Time) {
	c.tries, c.hurried = 0, false
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
	if c.role != Controlled || c.tries > 0 || c.hurried {
		return
	}
	if due := at.Add(time.Duration(float64(c.Interval) * silence)); due.After(c.due) {
		c.due = due
	}
}

// carried notes when authentic bytes last passed both ways: as good as an
// answer, also to checks under way since before.
func (c *consent) carried(at time.Time) {
	switch {
	case c.tries > 0 && at.After(c.first):
		c.proven(at)
	case c.tries == 0 && !c.hurried:
		if due := at.Add(c.Interval); due.After(c.due) {
			c.due = due
		}
	}
}

// hurry makes the next check due now; one that is under way already goes on at
// a faster pace, from the start.
func (c *consent) hurry(now time.Time) {
	if !c.hurried {
		c.hurried, c.tries, c.due = true, 0, now
	}
}

// lost is when the checks under way end without an answer.
func (c *consent) lost() time.Time {
	if c.hurried {
		return c.first.Add(c.Hurried.patience(c.rtt))
	}
	return c.first.Add(c.Routine.Lost)
}

// step says what to do at now; after it, due is the time of the next step.
func (c *consent) step(now time.Time) consentStep {
	tries := c.Routine.Tries
	if c.hurried {
		tries = c.Hurried.Tries
	}
	switch {
	case c.tries > 0 && !now.Before(c.lost()):
		if c.tries > len(tries) {
			return consentLost
		}
		// This process, or the machine, stood still: checks that were not sent prove
		// nothing, and answers to those that were may still be on their way through it.
		c.tries = 0
	case now.Before(c.due):
		return consentWait
	}
	if c.tries == 0 {
		c.first = now
	}
	c.due = c.lost()
	if c.tries < len(tries) {
		c.due = c.first.Add(tries[c.tries])
	}
	c.tries++
	return consentSend
}
