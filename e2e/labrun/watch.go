package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/bodkin-net/bodkin/e2e"
)

// tone is the sense of a line, which a terminal shows as a colour.
type tone int

const (
	plain tone = iota
	good
	bad
	faint
	strong
)

// event is something that happened to a node or a pair.
type event struct {
	who, what string
	tone      tone
}

// watcher turns what the rendezvous' API says, look after look, into events. It
// is a pure state machine of one caller.
type watcher struct {
	nodes map[string]e2e.Observed
	pairs map[string]e2e.Pair
}

func newWatcher() *watcher {
	return &watcher{nodes: map[string]e2e.Observed{}, pairs: map[string]e2e.Pair{}}
}

// look returns what is new since the last look. What happened and passed
// between two looks, such as a punch of less than the interval, is told too.
func (w *watcher) look(nodes []e2e.Observed, pairs []e2e.Pair) []event {
	var events []event
	for _, n := range nodes {
		events = append(events, nodeEvents(w.nodes[n.Name], n)...)
		w.nodes[n.Name] = n
	}
	for _, p := range pairs {
		events = append(events, pairEvents(w.pairs[p.ID], p)...)
		w.pairs[p.ID] = p
	}
	return events
}

func nodeEvents(was, is e2e.Observed) []event {
	who := short(is.Name)
	var events []event
	if is.Online && !was.Online {
		events = append(events, event{who, "joined", plain})
	}
	if !is.Online && was.Online {
		events = append(events, event{who, "left", bad})
	}
	if who == connector {
		return events // the rendezvous is on the same host: nothing is between the two
	}
	if is.Observed.IsValid() && is.Observed != was.Observed {
		events = append(events, event{who, "observed at " + bracketed(is.Observed), plain})
	}
	if is.NAT != was.NAT {
		if nat := natWords(is); nat != "" {
			events = append(events, event{who, nat, plain})
		}
	}
	return events
}

// natWords is empty while the NAT is not known.
func natWords(n e2e.Observed) string {
	switch {
	case n.NAT.Blocked != "":
		return "NAT seen: UDP does not get through: " + n.NAT.Blocked
	case n.NAT.Mapping == "" && n.NAT.Filtering == "":
		return ""
	case !n.NAT.Present:
		return "no NAT seen, " + known(n.NAT.Filtering) + " filtering"
	}
	return fmt.Sprintf("NAT seen: %s mapping, %s filtering", known(n.NAT.Mapping), known(n.NAT.Filtering))
}

func known(behaviour string) string {
	if behaviour == "" {
		return "unknown"
	}
	return behaviour
}

// A pair's states in the API.
const (
	stateDirect  = "direct"
	stateRelayed = "relayed"
)

func pairEvents(was, is e2e.Pair) []event {
	who := short(is.Nodes[0]) + " – " + short(is.Nodes[1])
	var events []event
	if is.Attempts > was.Attempts {
		what := "punching"
		if is.Attempts > 1 {
			what = fmt.Sprintf("punching again, attempt %d", is.Attempts)
		}
		events = append(events, event{who, what, faint})
	}
	switch {
	case is.State == stateDirect && was.State != stateDirect:
		events = append(events, event{who, "direct in " + millis(is.TimeToDirect()) + " over " + pathWords(is), good})
	case is.State != was.State && is.State == stateRelayed:
		what := "relayed through " + short(is.Relay)
		if was.State == stateDirect {
			what += ": " + is.Reason
		}
		events = append(events, event{who, what, plain})
	case is.State != stateDirect && was.State == stateDirect:
		events = append(events, event{who, is.State + ": " + is.Reason, bad})
	case is.Failed() && is.Reason != was.Reason:
		events = append(events, event{who, "not direct: " + is.Reason, bad})
	}
	return events
}

// natsKnown reports whether every node's NAT is known.
func natsKnown(nodes []e2e.Observed) bool {
	return !slices.ContainsFunc(nodes, func(n e2e.Observed) bool { return n.Online && natWords(n) == "" })
}

// pathWords is both ends' addresses as the other end sees them.
func pathWords(p e2e.Pair) string {
	return address(p, 1) + " ⇄ " + address(p, 0)
}

// address is where end i sees the other end, as strongSwan writes it.
func address(p e2e.Pair, i int) string { return bracketed(p.Paths[p.Nodes[i]].Remote) }

func bracketed(a netip.AddrPort) string {
	if !a.IsValid() {
		return "?"
	}
	return fmt.Sprintf("%s[%d]", a.Addr(), a.Port())
}

// short is a node's name without its cluster, of which the demo has only one.
func short(node string) string {
	if _, host, ok := strings.Cut(node, "."); ok {
		return host
	}
	return node
}
