package rendezvous

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// journal keeps what the hub does, for people: log, events, attempts, hours and
// counters. It belongs to the hub's goroutine, but for events and hours, which
// others read.
type journal struct {
	log       *slog.Logger
	metrics   *metrics
	recorder  *recorder
	events    *eventLog
	hours     *hours
	chronicle *chronicle
	// said is what was last told of each pair.
	said map[wire.PairID]pairSaid
}

type pairSaid struct {
	state    State
	punching bool
	reason   string
}

func newJournal(log *slog.Logger, m *metrics, rec *recorder) *journal {
	return &journal{
		log: log, metrics: m, recorder: rec, events: newEventLog(nil), hours: newHours(nil),
		chronicle: newChronicle(), said: map[wire.PairID]pairSaid{},
	}
}

// pair tells what changed of a pair. The log has a line for each change of its
// state; why it is not direct changes more often.
func (j *journal) pair(now time.Time, v PairView) {
	was, known := j.said[v.ID]
	is := pairSaid{v.State, v.Punching, v.Reason}
	if was == is {
		return
	}
	j.said[v.ID] = is
	level := slog.LevelDebug
	if !known || was.state != is.state {
		level = slog.LevelInfo
	}
	j.log.Log(context.Background(), level, "pair", "pair", v.ID, "state", v.State, "reason", v.Reason, "punching", v.Punching,
		"expect", v.Verdict.Expect, "strategy", v.Verdict.Strategy)
	j.events.add(now, EventView{
		Kind: EventPair, Pair: v.ID, State: string(v.State), Cell: string(cellOf(v.State, v.Punching)), Text: pairText(v),
	})
}

// pairText is a pair's state in a sentence.
func pairText(v PairView) string {
	if v.State != Direct {
		return fmt.Sprintf("%s: %s", v.State, v.Reason)
	}
	var ways []string
	for _, name := range v.Nodes {
		if path, ok := v.Paths[name]; ok {
			ways = append(ways, fmt.Sprintf("%s to %s", name, path.Remote))
		}
	}
	if len(ways) == 0 {
		return "direct"
	}
	return "direct: " + strings.Join(ways, ", ")
}

// remember takes up what was told of a pair before a restart: that it is still so is
// no news, and would push out of the events what was.
func (j *journal) remember(v PairView) { j.said[v.ID] = pairSaid{state: v.State, reason: v.Reason} }

func (j *journal) forget(id wire.PairID) { delete(j.said, id) }

// order tells that both sides were told to punch.
func (j *journal) order(now time.Time, o ordered) {
	v := j.chronicle.order(now, o)
	j.log.Info("punch ordered", "pair", o.pair, "attempt", o.attempt, "strategy", o.strategy, "hopeless", v.Hopeless)
	j.metrics.orders.WithLabelValues(string(o.strategy)).Inc()
	text := "punch ordered, strategy " + string(o.strategy)
	if v.Hopeless != "" {
		text = "punch ordered, though no path is expected: " + v.Hopeless
	}
	j.events.add(now, EventView{Kind: EventAttempt, Pair: o.pair, State: string(AttemptRunning), Text: text})
}

// report keeps what a side says of an attempt.
func (j *journal) report(now time.Time, from wire.NodeName, r *wire.Report) {
	j.metrics.outcomes.WithLabelValues(string(r.Outcome)).Inc()
	if v := j.chronicle.report(now, from, r); v != nil {
		j.recorder.attempt(v.clone())
	}
}

// end tells how an attempt ended.
func (j *journal) end(now time.Time, e ended) {
	j.log.Info("punch ended", "pair", e.pair, "attempt", e.attempt, "strategy", e.strategy, "outcome", e.outcome, "reason", e.reason)
	j.metrics.attempts.WithLabelValues(string(e.strategy), string(e.outcome)).Inc()
	v := j.chronicle.end(now, e)
	hopeless := v != nil && v.Hopeless != "" && e.outcome == AttemptFailed
	text := fmt.Sprintf("punch %s, strategy %s", e.outcome, e.strategy)
	if hopeless {
		text = "punch failed, as no path was expected"
	}
	switch {
	case e.outcome == AttemptDirect:
		text += fmt.Sprintf(", after %d ms", e.took.Milliseconds())
		j.metrics.timeToDirect.Observe(e.took.Seconds())
	case e.reason != "":
		text += ": " + e.reason
	}
	j.events.add(now, EventView{Kind: EventAttempt, Pair: e.pair, State: string(e.outcome), Text: text})
	// One that was cancelled says nothing of the path, and what was not to be had is
	// no failure.
	if e.outcome != AttemptCancelled && !hopeless {
		j.recorder.hour(j.hours.count(now, e.outcome, e.took))
	}
	if v != nil {
		j.recorder.attempt(v.clone())
	}
}

// online tells that a node came or went.
func (j *journal) online(now time.Time, name wire.NodeName, online bool, text string) {
	state := "offline"
	if online {
		state = "online"
	}
	j.events.add(now, EventView{Kind: EventNode, Node: name, State: state, Text: text})
}
