package rendezvous

import (
	"encoding/hex"
	"time"

	"github.com/bodkin-net/bodkin/punch/nat"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// Timing of the coordinator. All of it is relative; no clock of an agent is
// ever compared with ours.
const (
	// attemptTimeout is the backstop behind the agents' own limits (10 s of
	// punching, 9 s for charon) and the start offset: past it a side is silent.
	attemptTimeout = 25 * time.Second
	// prepareTimeout is for a message each way and two STUN requests between
	// them; a prediction that took longer would be out of date.
	prepareTimeout = 2 * time.Second
	// maxStartOffset bounds how long the nearer side waits for the farther: a
	// round trip measured during a stall must not cost the attempt.
	maxStartOffset = time.Second
	// maxParallel bounds the attempts of one node at a time: an edge that joins
	// a large community must not run hundreds of ICE sessions at once, nor its
	// session's outbox overflow.
	maxParallel = 32
	// retryMin doubles up to retryMax. Below a second a retry would meet the
	// same NAT state; above five minutes an operator would call it dead. No
	// event brings two attempts of one strategy closer together than retryMin,
	// or a node that reconnects in a loop would keep all its peers punching.
	retryMin = time.Second
	retryMax = 5 * time.Minute
	// A search costs thousands of packets, and a router some hundred mappings
	// for 30 s.
	probeRetryMin = 30 * time.Second
	probeRetryMax = time.Hour
	// maxPredictions in a row that miss are not bad luck: something behind the
	// same NAT takes ports all the time.
	maxPredictions = 3
	// retryJitter spreads the retries of pairs that broke together.
	retryJitter = 0.2
	// maxPackets bounds what an agent may claim to have sent in an attempt.
	maxPackets = 1_000_000
)

type attempt struct {
	id wire.AttemptID
	// verdict is what it was begun on, strategy what was made of it.
	verdict  nat.Verdict
	strategy nat.Strategy
	deadline time.Time
	// preparing is set until the order is out: the sides in asked are to say
	// what their NATs will do, prepared is what they said.
	preparing bool
	asked     [2]bool
	prepared  [2]*wire.Prepared
	// nominated is set once a side has found a path.
	nominated bool
	elapsed   time.Duration
	// strains marks the sides whose NATs bear no other such attempt beside it.
	strains [2]bool
	// direct marks the sides that have confirmed *this* attempt.
	direct [2]bool
	// packets is how many each side sent to get through.
	packets [2]int
}

// awaits reports whether a side has yet to answer.
func (a *attempt) awaits() bool {
	return a.asked[0] && a.prepared[0] == nil || a.asked[1] && a.prepared[1] == nil
}

// silent names the ends that have not confirmed the running attempt.
func (p *pair) silent() string {
	switch p.attempt.direct {
	case [2]bool{true, false}:
		return string(p.names[1])
	case [2]bool{false, true}:
		return string(p.names[0])
	}
	return string(p.names[0]) + " and " + string(p.names[1])
}

// begin starts an attempt: with the order, or with asking for what the order
// has to say.
func (c *coordinator) begin(now time.Time, p *pair) {
	p.total++
	a := &attempt{id: wire.AttemptID(c.token(8)), verdict: p.verdict, strategy: c.strategy(p), preparing: true}
	p.latest, p.started[rank(a.strategy)] = now, now
	p.retry(now)
	p.attempt = a
	for i, name := range p.names {
		c.running[name]++
		if a.strains[i] = c.strains(p, i); a.strains[i] {
			c.strained[name]++
		}
		if a.strategy == nat.Predict && c.nodes[name].known().counts() {
			a.asked[i] = true
			c.do(send{name, &wire.Prepare{Attempt: a.id}})
		}
	}
	if !a.awaits() {
		c.order(now, p)
		return
	}
	a.deadline = now.Add(prepareTimeout)
}

// Prepared takes what an agent says of its NAT's next mapping. Words about
// attempts that wait for none change nothing.
func (c *coordinator) Prepared(now time.Time, from wire.NodeName, m *wire.Prepared) []action {
	for _, p := range c.byNode[from] {
		a, i := p.attempt, p.index(from)
		if a == nil || a.id != m.Attempt || !a.preparing || !a.asked[i] || a.prepared[i] != nil {
			continue
		}
		a.prepared[i] = m
		if !a.awaits() {
			c.order(now, p)
		}
	}
	return c.flush()
}

// order tells both sides to punch, at the same moment, expressed as a delay
// after receipt.
func (c *coordinator) order(now time.Time, p *pair) {
	a := p.attempt
	a.preparing, a.deadline = false, now.Add(attemptTimeout)
	var predicted [2][]wire.Candidate
	for i, name := range p.names {
		predicted[i] = c.nodes[name].predict(a.prepared[i])
		if a.asked[i] && predicted[i] == nil {
			a.strategy = c.unpredicted(p)
		}
	}
	told := ordered{pair: p.id, attempt: a.id, names: p.names, strategy: a.strategy, verdict: viewOf(a.verdict)}
	creds := [2]wire.Credentials{
		{Ufrag: c.token(4), Pwd: c.token(16)},
		{Ufrag: c.token(4), Pwd: c.token(16)},
	}
	offsets := c.startOffsets(p)
	for i, name := range p.names {
		me, you := c.nodes[name], c.nodes[p.other(name)]
		m := &wire.Punch{
			Attempt:      a.id,
			Peer:         c.peer(p, name),
			Strategy:     wire.Strategy(a.strategy),
			StartAfterMs: offsets[i],
			Local:        creds[i],
			Remote:       creds[1-i],
			Candidates:   you.candidates(predicted[1-i]),
			RemoteNAT:    you.nat,
		}
		if a.strategy == nat.Probe {
			m.Part = wire.PartSearch
			if me.known().hidden() {
				m.Part = wire.PartOpen
			}
		}
		if a.verdict.Expect == nat.Relay {
			m.Hopeless = wire.Clip(a.verdict.Reason)
		}
		told.orders[i], told.delays[i] = m, me.delay
	}
	c.do(told)
	for i, name := range p.names {
		c.do(send{name, told.orders[i]})
	}
	c.schedule(p)
}

// startOffsets are what each side has to wait after receipt, in milliseconds, so
// that both start at one moment.
func (c *coordinator) startOffsets(p *pair) (offsets [2]int64) {
	delays := [2]time.Duration{c.nodes[p.names[0]].delay, c.nodes[p.names[1]].delay}
	for i := range offsets {
		offsets[i] = min(max(delays[0], delays[1])-delays[i], maxStartOffset).Milliseconds()
	}
	return offsets
}

// fail ends the running attempt, tells the sides other than from, and sets the
// time of the next one.
func (c *coordinator) fail(now time.Time, p *pair, reason string, from wire.NodeName) {
	least, most := retryMin, retryMax
	if a := p.attempt; a != nil {
		c.callOff(p, from, AttemptFailed, reason)
		p.sixFailed = true
		if a.strategy == nat.Probe {
			least, most = probeRetryMin, probeRetryMax
		}
	}
	for i := range p.sides {
		if s := &p.sides[i]; !s.direct {
			s.path = wire.Path{} // nominated, and came to nothing
		}
	}
	p.failure, p.reason = reason, reason
	p.tries++
	p.retry(now.Add(c.backoff(p.tries, least, most)))
	if p.state != Direct {
		p.reason = c.why(now, p) // as settle has it: one change of the pair, not two
		c.do(record{c.view(p)})
	}
}

// backoff is least doubled for each try after the first, jittered, capped.
func (c *coordinator) backoff(tries int, least, most time.Duration) time.Duration {
	d := most
	if shift := tries - 1; shift < 16 {
		d = min(most, least<<shift)
	}
	return time.Duration(float64(d) * (1 - retryJitter + 2*retryJitter*c.rand.Float64()))
}

// reset lets the next attempt start at once: something happened that may
// change its outcome.
func (c *coordinator) reset(now time.Time, p *pair) {
	p.tries, p.failure, p.sixFailed = 0, "", false
	p.retry(now)
}

// retry sets when the next attempt may start: at t, or retryMin after the last.
func (p *pair) retry(t time.Time) {
	p.retryAt = t
	if earliest := p.latest.Add(retryMin); earliest.After(t) {
		p.retryAt = earliest
	}
}

// due is when the next attempt may start: not too soon after the last one of
// its strategy, whatever was reason to begin anew.
func (c *coordinator) due(p *pair) time.Time {
	strategy, pause := c.strategy(p), retryMin
	if strategy == nat.Probe {
		pause = probeRetryMin
	}
	at := p.retryAt
	if started := p.started[rank(strategy)]; started.Add(pause).After(at) && !started.IsZero() {
		at = started.Add(pause)
	}
	if p.state != Direct && p.damping.held(at) && c.relay(p) != "" {
		at = p.damping.until
	}
	return at
}

// abandon ends an attempt because name's session ended; the other side is told.
func (c *coordinator) abandon(p *pair, name wire.NodeName, reason string) {
	if p.attempt != nil {
		c.callOff(p, name, AttemptCancelled, reason)
	}
}

// callOff ends the running attempt and tells the sides that have heard of it,
// but for one.
func (c *coordinator) callOff(p *pair, except wire.NodeName, outcome AttemptOutcome, reason string) {
	a := p.attempt
	c.end(p, outcome, reason)
	for i, name := range p.names {
		if heard := !a.preparing || a.asked[i]; heard && name != except && c.online(name) {
			c.do(send{name, &wire.Cancel{Attempt: a.id, Reason: wire.Clip(reason)}})
		}
	}
}

// end takes an attempt off the books, and puts down what waited for its slots.
func (c *coordinator) end(p *pair, outcome AttemptOutcome, reason string) {
	a := p.attempt
	if !a.preparing {
		p.last = a
		c.do(ended{pair: p.id, attempt: a.id, strategy: a.strategy, outcome: outcome, reason: reason, took: a.elapsed})
	}
	p.attempt = nil
	for i, name := range p.names {
		c.running[name]--
		if a.strains[i] {
			c.strained[name]--
		}
	}
	for _, name := range p.names {
		for _, waiting := range c.byNode[name] {
			c.schedule(waiting)
		}
	}
}

// strategy is what the next attempt makes of the pair's verdict.
func (c *coordinator) strategy(p *pair) nat.Strategy {
	switch s := p.verdict.Strategy; {
	case s == nat.Probe && p.state == Direct && p.tries == 0:
		return nat.Openers // only to watch a tunnel that stands: its way is open
	case s == nat.Predict && p.tries >= maxPredictions:
		return c.unpredicted(p)
	default:
		return s
	}
}

// unpredicted is what takes the place of a prediction: a port that was not
// foreseen can still be searched for, if it is the only one.
func (c *coordinator) unpredicted(p *pair) nat.Strategy {
	hidden := 0
	for _, name := range p.names {
		if k := c.nodes[name].known(); k.hidden() {
			hidden++
			if k.site.NoProbe != "" {
				return nat.Openers
			}
		}
	}
	if hidden != 1 {
		return nat.Openers
	}
	return nat.Probe
}

// strains reports whether an attempt on the pair's verdict is too much for the
// NAT of a side beside another one: a search makes hundreds of mappings in the
// router of the one side and thousands of flows in that of the other, and what
// counts was computed for the next mappings, not for those after another
// attempt's.
func (c *coordinator) strains(p *pair, side int) bool {
	switch c.strategy(p) {
	case nat.Probe:
		return true
	case nat.Predict:
		return c.nodes[p.names[side]].known().counts()
	}
	return false
}

// free reports whether both ends may run one attempt more.
func (c *coordinator) free(p *pair) bool {
	for i, name := range p.names {
		if c.running[name] >= maxParallel || c.strained[name] > 0 && c.strains(p, i) {
			return false
		}
	}
	return true
}

// token is n random bytes in hex. The source is seeded by crypto/rand
// (ChaCha8), so ICE passwords made of it cannot be guessed.
func (c *coordinator) token(n int) string {
	b := make([]byte, 0, n+8)
	for len(b) < n {
		v := c.rand.Uint64()
		b = append(b, byte(v), byte(v>>8), byte(v>>16), byte(v>>24), byte(v>>32), byte(v>>40), byte(v>>48), byte(v>>56))
	}
	return hex.EncodeToString(b[:n])
}
