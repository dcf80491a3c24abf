package rendezvous

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/punch/nat"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// world is what an onlooker knows who sees all that goes in and out of a
// coordinator.
type world struct {
	*machine
	rand  *rand.Rand
	names []wire.NodeName
	// online nodes, and what each last said of its tunnel to each other.
	up map[wire.NodeName]bool
	// out are those that are not let in.
	out  map[wire.NodeName]bool
	word map[[2]wire.NodeName]string
	// of is the attempt that led to the tunnel each spoke of last, if it named one.
	of map[[2]wire.NodeName]wire.AttemptID
	// late is set for who said that it is direct when its attempt was over.
	late map[[2]wire.NodeName]bool
	// early is what each said in its hello of nodes it had no pair with.
	early map[[2]wire.NodeName]wire.Tunnel
	// relay is what each said of its tunnel with a connector, demoted who was
	// told to leave a tunnel it believes in.
	relay   map[[2]wire.NodeName]bool
	demoted map[[2]wire.NodeName]bool
	// policy is what each node's operator said, moved when each was seen at
	// another address.
	policy map[wire.NodeName]wire.Policy
	at     map[wire.NodeName]string
	moved  map[wire.NodeName]time.Time
	// open are the attempts that have not ended, by pair; direct are the
	// sides that confirmed them, by attempt; asked are the sides that were to
	// prepare one, until it is ordered.
	open    map[wire.PairID]wire.AttemptID
	direct  map[wire.AttemptID]map[wire.NodeName]bool
	asked   map[wire.AttemptID][]wire.NodeName
	started map[wire.PairID][ranks]time.Time
	// last are the attempts that were ever seen.
	last []wire.AttemptID
	// orders counts the orders by strategy, hopeless those without hope.
	orders   map[wire.Strategy]int
	hopeless int
	// listed is whom each node was last told of in its session, and when.
	listed map[wire.NodeName]listing
	// demotes, holds and bans count what the test has seen, waits the changes that
	// a node was told of later.
	demotes, holds, bans, waits int
}

const (
	saysDirect = "direct"
	saysNot    = "not"
)

// TestInvariants lets random things happen. A failure names its seed.
func TestInvariants(t *testing.T) {
	orders := map[wire.Strategy]int{}
	demotes, holds, bans, waits := 0, 0, 0, 0
	for seed := range uint64(12) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			w := &world{
				machine: newMachine(t), rand: rand.New(rand.NewPCG(seed, 7)),
				names: []wire.NodeName{edge1, edge2, edge3, edge4, connector},
				up:    map[wire.NodeName]bool{}, out: map[wire.NodeName]bool{}, word: map[[2]wire.NodeName]string{}, of: map[[2]wire.NodeName]wire.AttemptID{},
				early: map[[2]wire.NodeName]wire.Tunnel{}, late: map[[2]wire.NodeName]bool{}, relay: map[[2]wire.NodeName]bool{}, demoted: map[[2]wire.NodeName]bool{},
				policy: map[wire.NodeName]wire.Policy{}, at: map[wire.NodeName]string{}, moved: map[wire.NodeName]time.Time{},
				open: map[wire.PairID]wire.AttemptID{}, direct: map[wire.AttemptID]map[wire.NodeName]bool{},
				asked: map[wire.AttemptID][]wire.NodeName{}, started: map[wire.PairID][ranks]time.Time{},
				orders: orders, listed: map[wire.NodeName]listing{},
			}
			w.relaying = relaying{enabled: true}
			reached := map[State]int{}
			for i := range 4000 {
				what := w.step()
				w.checkState()
				if t.Failed() {
					t.Fatalf("after step %d: %s", i, what)
				}
				for _, v := range w.Views() {
					reached[v.State]++
				}
			}
			if reached[Direct] == 0 || reached[Relayed] == 0 || reached[Down] == 0 || len(w.last) < 50 {
				t.Errorf("the test is blind: states %v, %d attempts", reached, len(w.last))
			}
			demotes, holds, bans, waits = demotes+w.demotes, holds+w.holds, bans+w.bans, waits+w.waits
			if w.hopeless == 0 {
				t.Error("the test is blind: no order without hope")
			}
		})
	}
	if demotes < 20 || holds < 500 || bans < 20 || waits < 100 {
		t.Errorf("the test is blind: %d demotes, %d holds, %d nodes not let in, %d lists that waited", demotes, holds, bans, waits)
	}
	if len(orders) != 4 {
		t.Errorf("the test is blind: orders %v", orders)
	}
}

// step makes one thing happen and says what.
func (w *world) step() string {
	if w.rand.IntN(3) > 0 { // much comes at once
		w.after(time.Duration(w.rand.IntN(700)) * time.Millisecond)
	}
	name := w.names[w.rand.IntN(len(w.names))]
	switch w.rand.IntN(19) {
	case 18:
		return w.bars(name)
	case 14:
		return w.loses()
	case 15, 16, 17:
		return w.uplinkReport(name)
	case 0:
		return w.hello(name)
	case 1:
		if w.rand.IntN(3) > 0 {
			return "nothing"
		}
		w.up[name] = false
		w.leave(name)
		w.take(w.Offline(w.now, name))
		return string(name) + " offline"
	case 2, 3:
		return w.seenAnywhere(name)
	case 4:
		return w.network(name)
	case 8, 9:
		return w.prepares(name)
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

// bars keeps a node out, as the hub does, or lets it in again.
func (w *world) bars(name wire.NodeName) string {
	if !w.out[name] {
		if w.rand.IntN(40) > 0 { // rarely, or little else is seen
			return "nothing"
		}
		w.bans++
		w.up[name] = false
		w.leave(name)
		w.take(w.Offline(w.now, name))
	}
	w.out[name] = !w.out[name]
	w.repair(func() []action { return w.Bar(w.now, name, w.out[name]) })
	return fmt.Sprint(name, " barred: ", w.out[name])
}

func (w *world) hello(name wire.NodeName) string {
	if w.out[name] {
		return "nothing" // the hub turns it away
	}
	h := &wire.Hello{Endpoint: endpointOf(name)}
	for _, other := range w.names {
		if other == name {
			continue
		}
		// Who comes back mostly has its tunnel with the connector.
		public := name == connector || other == connector
		if w.rand.IntN(3) == 0 || public && w.rand.IntN(2) == 0 {
			h.Tunnels = append(h.Tunnels, wire.Tunnel{Peer: other, Monitored: w.rand.IntN(2) == 0, Relay: w.rand.IntN(4) > 0})
		}
	}
	h.Punch = w.anyPolicy()
	before := w.carriers()
	w.up[name], w.policy[name] = true, h.Punch
	w.leave(name)
	for said := range w.early {
		if said[0] == name {
			delete(w.early, said)
		}
	}
	for _, t := range h.Tunnels {
		w.early[[2]wire.NodeName{name, t.Peer}] = t
	}
	known := w.known()
	delete(w.listed, name)
	actions := w.coordinator.Online(w.now, h, time.Duration(w.rand.IntN(100))*time.Millisecond)
	w.hear(known)
	for _, p := range w.byNode[name] {
		delete(w.early, [2]wire.NodeName{name, p.other(name)})
		said := [2]wire.NodeName{name, p.other(name)}
		w.word[said], w.of[said] = saysNot, ""
		w.late[said], w.relay[said], w.demoted[said] = false, false, false
		if i := slices.IndexFunc(h.Tunnels, func(t wire.Tunnel) bool { return t.Peer == said[1] }); i >= 0 {
			w.word[said], w.relay[said] = saysDirect, h.Tunnels[i].Relay
		}
	}
	w.recarry(before)
	w.take(actions)
	return fmt.Sprint(name, " hello ", h.Tunnels)
}

// anyPolicy is mostly none.
func (w *world) anyPolicy() wire.Policy {
	rare := map[int]wire.Policy{0: wire.PolicyNever, 1: wire.PolicyICEOnly, 2: wire.PolicyAuto}
	return rare[w.rand.IntN(12)]
}

// seenAnywhere lets the STUN service see a node, mostly where it was.
func (w *world) seenAnywhere(name wire.NodeName) string {
	at := fmt.Sprintf("203.0.113.%d", number(name))
	switch w.rand.IntN(40) {
	case 0, 1, 2:
		at = "203.0.113.254" // of which several may come
	case 3:
		at = fmt.Sprintf("[2001:db8::%x]", number(name))
	}
	if w.up[name] && w.at[name] != at && !strings.HasPrefix(at, "[") {
		w.at[name], w.moved[name] = at, w.now
	}
	w.take(w.seen(name, fmt.Sprintf("%s:%d", at, 4500+w.rand.IntN(2))))
	return string(name) + " seen at " + at
}

// network tells what is known of a node's NAT, mostly what was known before.
func (w *world) network(name wire.NodeName) string {
	m := &wire.Network{Candidates: []wire.Candidate{hostCandidate(fmt.Sprintf("192.168.1.%d:4500", 1+w.rand.IntN(3)))}}
	kinds := []wire.NAT{{}, {Blocked: "no answer"}, portRestricted, symmetric, sequential}
	m.NAT = map[wire.NodeName]wire.NAT{edge1: portRestricted, edge2: sequential, edge3: symmetric, edge4: sequential}[name]
	if w.rand.IntN(4) == 0 {
		m.NAT = kinds[w.rand.IntN(len(kinds))]
	}
	if w.rand.IntN(8) == 0 {
		m.Candidates = append(m.Candidates, mappedCandidate(fmt.Sprintf("203.0.113.%d:4500", number(name))))
	}
	w.take(w.Network(w.now, name, m))
	return fmt.Sprintf("%s network %+v", name, m)
}

// prepares answers a Prepare, or a former one, or none.
func (w *world) prepares(name wire.NodeName) string {
	m := &wire.Prepared{Attempt: "n0ne", Next: uint16(w.rand.IntN(3) * 30000), Step: w.rand.IntN(5) - 2}
	for id, asked := range w.asked {
		if slices.Contains(asked, name) {
			m.Attempt = id
		}
	}
	if w.rand.IntN(4) == 0 && len(w.last) > 0 {
		m.Attempt = w.last[w.rand.IntN(len(w.last))]
	}
	w.take(w.Prepared(w.now, name, m))
	return fmt.Sprintf("%s prepared %+v", name, m)
}

// leave forgets attempts that end with a session and that the other side has
// not heard of.
func (w *world) leave(name wire.NodeName) {
	for id, attempt := range w.open {
		a, b := id.Nodes()
		other := wire.NodeName(a)
		if other == name {
			other = wire.NodeName(b)
		} else if wire.NodeName(b) != name {
			continue
		}
		if asked, preparing := w.asked[attempt]; preparing && !slices.Contains(asked, other) {
			w.close(id)
		}
	}
}

func (w *world) close(id wire.PairID) {
	delete(w.asked, w.open[id])
	delete(w.open, id)
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
		c := community(fmt.Sprint("c", i), members...)
		c.Punch = w.anyPolicy()
		cs = append(cs, c)
	}
	w.repair(func() []action { return w.coordinator.Communities(w.now, cs) })
	return fmt.Sprint("communities ", cs)
}

// repair follows a change of who has to do with whom.
func (w *world) repair(change func() []action) {
	known := w.known()
	before := w.carriers()
	actions := change()
	for id := range known {
		if w.pairs[id] == nil {
			delete(w.started, id)
			a, b := id.Nodes()
			for _, said := range [][2]wire.NodeName{{wire.NodeName(a), wire.NodeName(b)}, {wire.NodeName(b), wire.NodeName(a)}} {
				delete(w.word, said)
				delete(w.late, said)
				delete(w.relay, said)
				delete(w.demoted, said)
			}
		}
	}
	w.hear(known)
	w.recarry(before)
	w.take(actions)
}

func (w *world) known() map[wire.PairID]bool {
	known := map[wire.PairID]bool{}
	for id := range w.pairs {
		known[id] = true
	}
	return known
}

// hear counts what was said in hellos of pairs that have come into being since.
func (w *world) hear(known map[wire.PairID]bool) {
	for id := range w.pairs {
		a, b := id.Nodes()
		for _, said := range [][2]wire.NodeName{{wire.NodeName(a), wire.NodeName(b)}, {wire.NodeName(b), wire.NodeName(a)}} {
			if known[id] || !w.up[said[0]] {
				continue
			}
			t, ok := w.early[said]
			w.word[said], w.of[said], w.relay[said] = saysNot, "", false
			if ok {
				w.word[said], w.relay[said] = saysDirect, t.Relay
			}
			delete(w.early, said)
		}
	}
}

// report says something about the running attempt, a former one, or none.
func (w *world) report(from wire.NodeName) string {
	if !w.up[from] {
		return "nothing" // the hub passes on what sessions send
	}
	to := w.names[w.rand.IntN(len(w.names))]
	id := wire.NewPairID(string(from), string(to))
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
	if w.pairs[id] == nil && outcome == wire.OutcomeLost {
		delete(w.early, [2]wire.NodeName{from, to})
	}
	if from != to && w.pairs[id] != nil {
		switch said := [2]wire.NodeName{from, to}; {
		case outcome == wire.OutcomeLost:
			if known := w.of[said]; current || attempt == "" || w.word[said] == saysDirect && (known == "" || known == attempt) {
				w.word[said], w.relay[said] = saysNot, false
			}
		case outcome == wire.OutcomeDirect && (current || attempt == ""):
			w.word[said], w.of[said] = saysDirect, attempt
			w.late[said], w.relay[said], w.demoted[said] = false, false, false
		case outcome == wire.OutcomeDirect:
			w.late[said], w.demoted[said] = true, false
		}
	}
	if current {
		switch outcome {
		case wire.OutcomeFailed, wire.OutcomeLost:
			w.close(id)
		case wire.OutcomeDirect:
			w.direct[attempt][from] = true
			if len(w.direct[attempt]) == 2 {
				w.close(id)
			}
		}
	}
	w.take(w.machine.report(from, to, outcome, attempt))
	return fmt.Sprintf("%s reports %s with %s of %q (current %v)", from, outcome, to, attempt, current)
}

// take follows what the coordinator wants done, and holds it against the rules.
func (w *world) take(actions []action) {
	w.t.Helper()
	ordered := map[wire.AttemptID][]wire.ProbePart{}
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
		case *wire.Prepare:
			w.prepare(s.to, msg.Attempt)
		case *wire.Punch:
			w.ordered(s.to, msg, ordered)
		case *wire.Cancel:
			w.ended(s.to, msg.Attempt)
		case *wire.Trickle:
			if _, preparing := w.asked[msg.Attempt]; preparing || !slices.ContainsFunc(w.partners(s.to), func(p wire.NodeName) bool {
				return w.open[wire.NewPairID(string(s.to), string(p))] == msg.Attempt
			}) {
				w.t.Errorf("%s gets candidates of attempt %s, which is none of its running ones", s.to, msg.Attempt)
			}
		case *wire.Demote:
			w.demote(s.to, msg)
		case *wire.Peers:
			w.list(s.to, msg)
		}
	}
	for id, parts := range ordered {
		slices.Sort(parts)
		if !slices.Equal(parts, []wire.ProbePart{"", ""}) && !slices.Equal(parts, []wire.ProbePart{wire.PartOpen, wire.PartSearch}) {
			w.t.Errorf("attempt %s has the parts %q", id, parts)
		}
	}
}

// prepare follows the first word of an attempt by prediction.
func (w *world) prepare(to wire.NodeName, attempt wire.AttemptID) {
	for _, p := range w.byNode[to] {
		if p.attempt == nil || p.attempt.id != attempt {
			continue
		}
		if w.asked[attempt] == nil {
			w.begun(p.id, attempt, rank(nat.Predict))
		}
		w.asked[attempt] = append(w.asked[attempt], to)
		return
	}
	w.t.Errorf("%s is to prepare attempt %s, which is none of its own", to, attempt)
}

// begun holds a new attempt against the one before it.
func (w *world) begun(id wire.PairID, attempt wire.AttemptID, rank int) {
	if p := w.pairs[id]; p.state == Relayed && p.damping.held(w.now) {
		w.t.Errorf("%s: attempt %s though it is held until %v", id, attempt, p.damping.until)
	}
	if running, ok := w.open[id]; ok {
		w.t.Errorf("%s: attempt %s beside %s", id, attempt, running)
	}
	a, b := id.Nodes()
	before := w.started[id]
	for r, started := range before {
		pause := w.now.Sub(started)
		moved := w.moved[wire.NodeName(a)].After(started) || w.moved[wire.NodeName(b)].After(started)
		switch {
		case started.IsZero():
		case r >= rank && pause < retryMin:
			w.t.Errorf("%s: an attempt %v after the last", id, pause)
		case r == rank && rank == ranks-1 && pause < probeRetryMin && !moved:
			w.t.Errorf("%s: a search %v after the last", id, pause)
		}
	}
	before[rank] = w.now
	w.open[id], w.started[id] = attempt, before
	w.direct[attempt] = map[wire.NodeName]bool{}
	w.last = append(w.last, attempt)
}

func (w *world) ordered(to wire.NodeName, msg *wire.Punch, seen map[wire.AttemptID][]wire.ProbePart) {
	peer := msg.Peer.Endpoint.Name
	id := wire.NewPairID(string(to), string(peer))
	seen[msg.Attempt] = append(seen[msg.Attempt], msg.Part)
	if !slices.Contains(w.listed[to].names, peer) {
		w.t.Errorf("%s is to punch to %s, which it has not been told of", to, peer)
	}
	w.orders[msg.Strategy]++
	if msg.Hopeless != "" {
		w.hopeless++
	}
	switch policy := w.strictest(to, peer); {
	case policy == wire.PolicyNever:
		w.t.Errorf("%s is to punch to %s, which is forbidden", to, peer)
	case policy == wire.PolicyICEOnly && msg.Strategy != wire.StrategyICE && msg.Strategy != wire.StrategyOpeners:
		w.t.Errorf("%s is to %s, which is forbidden", to, msg.Strategy)
	}
	if !w.mayTalk(to, peer) {
		w.t.Errorf("%s is to punch to %s: no community holds both", to, peer)
	}
	if !w.up[peer] {
		w.t.Errorf("%s is to punch to %s, which is offline", to, peer)
	}
	if len(seen[msg.Attempt]) == 2 {
		return // the second side of the same order
	}
	if w.asked[msg.Attempt] != nil {
		delete(w.asked, msg.Attempt) // its order, at last
		return
	}
	w.begun(id, msg.Attempt, rank(nat.Strategy(msg.Strategy)))
}

func (w *world) ended(to wire.NodeName, attempt wire.AttemptID) {
	for id, running := range w.open {
		a, b := id.Nodes()
		if running == attempt {
			if string(to) != a && string(to) != b {
				w.t.Errorf("%s hears that attempt %s of %s ended", to, attempt, id)
			}
			w.close(id)
		}
	}
}

// strictest is the policy of two nodes and of the communities they share.
func (w *world) strictest(a, b wire.NodeName) wire.Policy {
	said := []wire.Policy{w.policy[a], w.policy[b]}
	for _, c := range w.coordinator.communities {
		if slices.Contains(c.Members, string(a)) && slices.Contains(c.Members, string(b)) {
			said = append(said, c.Punch)
		}
	}
	for _, p := range []wire.Policy{wire.PolicyNever, wire.PolicyICEOnly} {
		if slices.Contains(said, p) {
			return p
		}
	}
	return wire.PolicyAuto
}

func (w *world) partners(of wire.NodeName) []wire.NodeName {
	return slices.DeleteFunc(slices.Clone(w.names), func(n wire.NodeName) bool { return n == of || !w.mayTalk(of, n) })
}

// mayTalk is the rule on who may have to do with whom, in its own words.
func (w *world) mayTalk(a, b wire.NodeName) bool {
	if w.out[a] || w.out[b] {
		return false
	}
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
	w.checkLists()
	if next := w.Next(); next.After(w.now.Add(probeRetryMax + probeRetryMax/2)) {
		w.t.Errorf("next step in %v", next.Sub(w.now))
	}
	strained := map[wire.NodeName]int{}
	for _, p := range w.sorted {
		for i, name := range p.names {
			if p.attempt != nil && p.attempt.strains[i] {
				strained[name]++
			}
		}
	}
	for name, n := range strained {
		if n > 1 {
			w.t.Errorf("%d attempts at a time strain the NAT of %s", n, name)
		}
	}
	for _, v := range w.Views() {
		if (v.State == Direct) == (v.Reason != "") {
			w.t.Errorf("%s is %s with the reason %q", v.ID, v.State, v.Reason)
		}
		if _, open := w.open[v.ID]; open != v.Punching {
			w.t.Errorf("%s: punching %v, but an attempt is open: %v", v.ID, v.Punching, open)
		} else if open && w.strictest(v.Nodes[0], v.Nodes[1]) == wire.PolicyNever {
			w.t.Errorf("%s punches, which is forbidden", v.ID)
		}
		w.checkRelay(v)
		w.checkStep(v)
		if v.Verdict.Expect == "" || v.Verdict.Reason == "" {
			w.t.Errorf("%s without a verdict: %+v", v.ID, v.Verdict)
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
