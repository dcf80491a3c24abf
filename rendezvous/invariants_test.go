package rendezvous

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// world is what an onlooker knows who sees all that goes in and out of a
// coordinator.
type world struct {
	*machine
	rand  *rand.Rand
	names []wire.NodeName
	// online nodes, and what each last said of its tunnel to each other.
	up   map[wire.NodeName]bool
	word map[[2]wire.NodeName]string
	// open are the attempts that have not ended, by pair; direct are the
	// sides that confirmed them, by attempt.
	open    map[PairID]wire.AttemptID
	direct  map[wire.AttemptID]map[wire.NodeName]bool
	started map[PairID]time.Time
	// last are the attempts that were ever seen.
	last []wire.AttemptID
}

const (
	saysDirect = "direct"
	saysNot    = "not"
)

// TestInvariants lets random things happen. A failure names its seed.
func TestInvariants(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			w := &world{
				machine: newMachine(t), rand: rand.New(rand.NewPCG(seed, 7)),
				names: []wire.NodeName{edge1, edge2, edge3, edge4, connector},
				up:    map[wire.NodeName]bool{}, word: map[[2]wire.NodeName]string{},
				open: map[PairID]wire.AttemptID{}, direct: map[wire.AttemptID]map[wire.NodeName]bool{},
				started: map[PairID]time.Time{},
			}
			reached := map[State]int{}
			for i := range 2000 {
				what := w.step()
				w.checkState()
				if t.Failed() {
					t.Fatalf("after step %d: %s", i, what)
				}
				for _, v := range w.Views() {
					reached[v.State]++
				}
			}
			if reached[Direct] == 0 || reached[Down] == 0 || len(w.last) < 50 {
				t.Errorf("the test is blind: states %v, %d attempts", reached, len(w.last))
			}
		})
	}
}

// step makes one thing happen and says what.
func (w *world) step() string {
	w.after(time.Duration(w.rand.IntN(700)) * time.Millisecond)
	name := w.names[w.rand.IntN(len(w.names))]
	switch w.rand.IntN(12) {
	case 0:
		return w.hello(name)
	case 1:
		if w.rand.IntN(3) > 0 {
			return "nothing"
		}
		w.up[name] = false
		w.take(w.Offline(w.now, name))
		return string(name) + " offline"
	case 2, 3:
		w.take(w.seen(name, fmt.Sprintf("203.0.113.%d:%d", number(name), 4500+w.rand.IntN(2))))
		return string(name) + " seen"
	case 4:
		hosts := []wire.Candidate{hostCandidate(fmt.Sprintf("192.168.1.%d:4500", 1+w.rand.IntN(3)))}
		w.take(w.Network(w.now, name, &wire.Network{Candidates: hosts}))
		return string(name) + " network"
	case 5:
		return w.communities()
	case 6:
		if next := w.Next(); next.After(w.now) {
			w.now = next
		}
		fallthrough
	case 7:
		w.take(w.Tick(w.now))
		return "tick"
	}
	return w.report(name)
}

func (w *world) hello(name wire.NodeName) string {
	h := &wire.Hello{Endpoint: endpointOf(name)}
	for _, other := range w.names {
		if other == name {
			continue
		}
		if w.rand.IntN(3) == 0 {
			h.Tunnels = append(h.Tunnels, wire.Tunnel{Peer: other, Monitored: w.rand.IntN(2) == 0})
		}
	}
	w.up[name] = true
	w.take(w.Online(w.now, h, time.Duration(w.rand.IntN(100))*time.Millisecond))
	for _, p := range w.byNode[name] { // what it says of others is not heard
		said := [2]wire.NodeName{name, p.other(name)}
		w.word[said] = saysNot
		if slices.ContainsFunc(h.Tunnels, func(t wire.Tunnel) bool { return t.Peer == said[1] }) {
			w.word[said] = saysDirect
		}
	}
	return fmt.Sprint(name, " hello ", h.Tunnels)
}

func (w *world) communities() string {
	if w.rand.IntN(4) > 0 {
		return "nothing"
	}
	var cs []Community
	for i := range w.rand.IntN(4) {
		members := slices.Clone(w.names)
		w.rand.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
		members = members[:2+w.rand.IntN(3)]
		slices.Sort(members)
		cs = append(cs, community(fmt.Sprint("c", i), members...))
	}
	known := slices.Collect(maps.Keys(w.pairs))
	w.take(w.Communities(w.now, cs))
	for _, id := range known {
		if w.pairs[id] == nil {
			delete(w.started, id)
			a, b := id.Nodes()
			delete(w.word, [2]wire.NodeName{wire.NodeName(a), wire.NodeName(b)})
			delete(w.word, [2]wire.NodeName{wire.NodeName(b), wire.NodeName(a)})
		}
	}
	return fmt.Sprint("communities ", cs)
}

// report says something about the running attempt, a former one, or none.
func (w *world) report(from wire.NodeName) string {
	if !w.up[from] {
		return "nothing" // the hub passes on what sessions send
	}
	to := w.names[w.rand.IntN(len(w.names))]
	id := NewPairID(string(from), string(to))
	var attempt wire.AttemptID
	switch current, ok := w.open[id]; {
	case ok && w.rand.IntN(5) > 0:
		attempt = current
	case len(w.last) > 0:
		attempt = w.last[w.rand.IntN(len(w.last))]
	}
	outcomes := []wire.Outcome{wire.OutcomeNominated, wire.OutcomeDirect, wire.OutcomeDirect, wire.OutcomeDirect, wire.OutcomeFailed, wire.OutcomeLost}
	outcome := outcomes[w.rand.IntN(len(outcomes))]
	current := attempt != "" && w.open[id] == attempt
	if from != to && w.pairs[id] != nil {
		switch said := [2]wire.NodeName{from, to}; {
		case outcome == wire.OutcomeLost:
			w.word[said] = saysNot
		case outcome == wire.OutcomeDirect && (current || attempt == ""):
			w.word[said] = saysDirect
		}
	}
	if current {
		switch outcome {
		case wire.OutcomeFailed, wire.OutcomeLost:
			delete(w.open, id)
		case wire.OutcomeDirect:
			w.direct[attempt][from] = true
			if len(w.direct[attempt]) == 2 {
				delete(w.open, id)
			}
		}
	}
	w.take(w.machine.report(from, to, outcome, attempt))
	return fmt.Sprintf("%s reports %s with %s of %q (current %v)", from, outcome, to, attempt, current)
}

// take follows what the coordinator wants done, and holds it against the rules.
func (w *world) take(actions []action) {
	w.t.Helper()
	ordered := map[wire.AttemptID]int{}
	for _, a := range actions {
		s, ok := a.(send)
		if !ok {
			continue
		}
		if !w.up[s.to] {
			w.t.Errorf("%s for %s, which is offline", s.msg.Type(), s.to)
		}
		if err := s.msg.Validate(); err != nil {
			w.t.Errorf("%s for %s: %v", s.msg.Type(), s.to, err)
		}
		switch msg := s.msg.(type) {
		case *wire.Punch:
			w.ordered(s.to, msg, ordered)
		case *wire.Cancel:
			w.ended(s.to, msg.Attempt)
		case *wire.Trickle:
			if !slices.ContainsFunc(w.partners(s.to), func(p wire.NodeName) bool {
				return w.open[NewPairID(string(s.to), string(p))] == msg.Attempt
			}) {
				w.t.Errorf("%s gets candidates of attempt %s, which is none of its running ones", s.to, msg.Attempt)
			}
		case *wire.Peers:
			for _, p := range msg.Peers {
				if !w.mayTalk(s.to, p.Endpoint.Name) {
					w.t.Errorf("%s hears of %s", s.to, p.Endpoint.Name)
				}
			}
		}
	}
	for id, n := range ordered {
		if n != 2 {
			w.t.Errorf("attempt %s has %d sides", id, n)
		}
	}
}

func (w *world) ordered(to wire.NodeName, msg *wire.Punch, seen map[wire.AttemptID]int) {
	peer := msg.Peer.Endpoint.Name
	id := NewPairID(string(to), string(peer))
	seen[msg.Attempt]++
	if !w.mayTalk(to, peer) {
		w.t.Errorf("%s is to punch to %s: no community holds both", to, peer)
	}
	if !w.up[peer] {
		w.t.Errorf("%s is to punch to %s, which is offline", to, peer)
	}
	if seen[msg.Attempt] == 2 {
		return // the second side of the same order
	}
	if running, ok := w.open[id]; ok {
		w.t.Errorf("%s: attempt %s beside %s", id, msg.Attempt, running)
	}
	if before, ok := w.started[id]; ok && w.now.Sub(before) < retryMin {
		w.t.Errorf("%s: an attempt %v after the last", id, w.now.Sub(before))
	}
	w.open[id], w.started[id] = msg.Attempt, w.now
	w.direct[msg.Attempt] = map[wire.NodeName]bool{}
	w.last = append(w.last, msg.Attempt)
}

func (w *world) ended(to wire.NodeName, attempt wire.AttemptID) {
	for id, running := range w.open {
		a, b := id.Nodes()
		if running == attempt {
			if string(to) != a && string(to) != b {
				w.t.Errorf("%s hears that attempt %s of %s ended", to, attempt, id)
			}
			delete(w.open, id)
		}
	}
}

func (w *world) partners(of wire.NodeName) []wire.NodeName {
	return slices.DeleteFunc(slices.Clone(w.names), func(n wire.NodeName) bool { return n == of || !w.mayTalk(of, n) })
}

// mayTalk is the rule on who may have to do with whom, in its own words.
func (w *world) mayTalk(a, b wire.NodeName) bool {
	for _, c := range w.coordinator.communities {
		if slices.Contains(c.Members, string(a)) && slices.Contains(c.Members, string(b)) {
			return true
		}
	}
	return a.Cluster() == b.Cluster() && (a == connector) != (b == connector)
}

func (w *world) checkState() {
	w.t.Helper()
	w.checkNext()
	if next := w.Next(); next.After(w.now.Add(retryMax + retryMax/2)) {
		w.t.Errorf("next step in %v", next.Sub(w.now))
	}
	for _, v := range w.Views() {
		if (v.State == Direct) == (v.Reason != "") {
			w.t.Errorf("%s is %s with the reason %q", v.ID, v.State, v.Reason)
		}
		if _, open := w.open[v.ID]; open != v.Punching {
			w.t.Errorf("%s: punching %v, but an attempt is open: %v", v.ID, v.Punching, open)
		}
		if v.State != Direct {
			continue
		}
		for i, name := range v.Nodes {
			other := v.Nodes[1-i]
			switch w.word[[2]wire.NodeName{name, other}] {
			case saysDirect:
			case saysNot:
				w.t.Errorf("%s is direct, but %s says otherwise", v.ID, name)
			default:
				if w.up[name] || w.word[[2]wire.NodeName{other, name}] != saysDirect {
					w.t.Errorf("%s is direct without a word of %s", v.ID, name)
				}
			}
		}
	}
}
