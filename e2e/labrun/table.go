package main

import (
	"fmt"
	"time"

	"github.com/bodkin-net/bodkin/e2e"
	"github.com/bodkin-net/bodkin/e2e/lab"
)

// result is what became of a pair.
type result struct {
	names nodePair
	// pair is nil if the rendezvous does not list it.
	pair *e2e.Pair
	ping lab.PingResult
}

func (r result) direct() bool { return r.pair != nil && r.pair.State == stateDirect }

// kindWords say what the kinds of a peer's candidate come to.
var kindWords = map[string]string{
	"host":  "same network (host)",
	"srflx": "punched (srflx)",
	"prflx": "punched (prflx)",
}

// resultRows is the table of pairs.
func resultRows(results []result) [][]cell {
	rows := [][]cell{headings("PAIR", "STATE", "PATH", "PEER ADDRESS", "SEEN BY PEER AT", "TIME TO DIRECT", "PING LOSS", "RTT")}
	for _, r := range results {
		rows = append(rows, r.row())
	}
	return rows
}

func headings(texts ...string) []cell {
	row := make([]cell, 0, len(texts))
	for _, t := range texts {
		row = append(row, cell{t, strong})
	}
	return row
}

func (r result) row() []cell {
	loss := cell{fmt.Sprintf("%d of %d", r.ping.Lost(), r.ping.Sent), good}
	if r.ping.Lost() > 0 {
		loss.tone = bad
	}
	name, rtt := cell{text: r.names[0] + " – " + r.names[1]}, cell{text: medianRTT(r.ping)}
	if !r.direct() {
		none := cell{text: "-"}
		return []cell{name, {r.state(), bad}, none, none, none, none, loss, rtt}
	}
	there, back := r.ends()
	return []cell{
		name, {stateDirect, good}, {text: kindOf(there)}, {text: bracketed(there.Remote)}, {text: bracketed(back.Remote)},
		{text: millis(r.pair.TimeToDirect())}, loss, rtt,
	}
}

func (r result) state() string {
	if r.pair == nil {
		return "unknown"
	}
	return r.pair.State
}

// ends are the paths from the first node of the pair to the second, and back.
func (r result) ends() (there, back e2e.Path) {
	for node, path := range r.pair.Paths {
		if short(node) == r.names[0] {
			there = path
		} else {
			back = path
		}
	}
	return there, back
}

func kindOf(p e2e.Path) string {
	if words := kindWords[p.Kind]; words != "" {
		return words
	}
	return p.Kind
}

func medianRTT(p lab.PingResult) string {
	if len(p.RTTs) == 0 {
		return "-"
	}
	values := make([]float64, 0, len(p.RTTs))
	for _, rtt := range p.RTTs {
		values = append(values, float64(rtt))
	}
	return millis(time.Duration(median(values)))
}

// faults says what is not as it should be: every pair direct, with every ping
// answered.
func faults(results []result) []string {
	var out []string
	for _, r := range results {
		who := r.names[0] + " – " + r.names[1]
		switch {
		case r.pair == nil:
			out = append(out, who+": the rendezvous does not know this pair")
		case !r.direct():
			out = append(out, fmt.Sprintf("%s should be direct and is %s: %s", who, r.pair.State, r.pair.Reason))
		case r.ping.Sent == 0 || r.ping.Lost() > 0:
			out = append(out, fmt.Sprintf("%s is direct, but %d of %d pings were lost", who, r.ping.Lost(), r.ping.Sent))
		}
	}
	return out
}
