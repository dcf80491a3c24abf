package rendezvous

import "time"

// Timing of damping.
const (
	// holdMin doubles up to holdMax: below 15 s a path that fails every few
	// seconds would still take every third packet with it, and after 5 min a
	// path that was mended would be called dead.
	holdMin = 15 * time.Second
	holdMax = 5 * time.Minute
	// calmAfter is how long a direct tunnel has to stand to be trusted again.
	calmAfter = 10 * time.Minute
	// excuseWindow is how far apart the rendezvous may hear of a loss and of the
	// new address that caused it: the agents find out about either within
	// seconds.
	excuseWindow = 15 * time.Second
	// causePause is how often a cause is believed in the long run, and
	// causeDepth how many at once are, in that measure: ten. Nobody restarts
	// strongSwan more often; an agent that says so would have its peers punch
	// every second.
	causePause = time.Minute
	causeDepth = 10 * causePause
)

// damping keeps a direct path that comes and goes from taking the pair's traffic
// along. The rule:
//
//   - A pair whose direct path went silent may go direct again at once, the
//     first time.
//   - Each further such loss within 10 minutes of having become direct doubles
//     a hold: 15 s, 30 s, 60 s, … 5 min. While it lasts the pair stays relayed.
//   - A direct tunnel that stood for 10 minutes clears the account.
//   - Losses that have a cause which says nothing of the path do not count:
//     strongSwan stopped, another address, a new session, an operator. More of
//     them than ten at once and one a minute are counted all the same.
//   - Without a relay nothing is held: a path that flaps is better than none.
//     The last one is for who asks; damping knows of no relay.
//
// The zero value is a pair that was never direct. It belongs to the coordinator.
type damping struct {
	// losses counts what is held against the path.
	losses int
	// up is since when the pair is direct, zero while it is not.
	up time.Time
	// believed is when no cause would be used up of those that are believed
	// (GCRA).
	believed time.Time
	// fell is when the last loss was counted, until the end of the hold it
	// brought; zero for none.
	fell, until time.Time
}

// rose: the pair has become direct.
func (d *damping) rose(now time.Time) {
	d.up, d.until = now, time.Time{}
}

// sank: the pair is direct no more, for a cause that is not held against the
// path, if it may be believed.
func (d *damping) sank(now time.Time) {
	if d.up.IsZero() {
		return
	}
	if d.believed.Before(now) {
		d.believed = now
	}
	if d.believed.Sub(now) >= causeDepth {
		d.lost(now)
		return
	}
	d.believed = d.believed.Add(causePause)
	d.ended(now)
}

// ended: a direct tunnel that stood for long clears the account.
func (d *damping) ended(now time.Time) {
	if now.Sub(d.up) >= calmAfter {
		d.losses = 0
	}
	d.up = time.Time{}
}

// lost: the direct path of a pair that was direct has gone silent.
func (d *damping) lost(now time.Time) {
	if d.up.IsZero() {
		return
	}
	d.ended(now)
	d.losses++
	d.fell, d.until = now, now.Add(holdOf(d.losses))
}

// excuse takes back a loss that was counted a moment ago: its cause has become
// known. What is held is let go all the same, since the path is another one now.
func (d *damping) excuse(now time.Time) {
	if !d.fell.IsZero() && now.Sub(d.fell) < excuseWindow {
		d.losses--
	}
	d.fell, d.until = time.Time{}, time.Time{}
}

// held reports whether the pair has to stay relayed.
func (d *damping) held(now time.Time) bool { return d.until.After(now) }

// holdOf is the hold after so many losses in a row.
func holdOf(losses int) time.Duration {
	switch shift := losses - 2; {
	case shift < 0:
		return 0
	case shift < 16:
		return min(holdMax, holdMin<<shift)
	}
	return holdMax
}
