package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// blink is how long a pair may be silent without a fault to blame.
const blink = 500 * time.Millisecond

// soakKind is a kind of fault and what it may cost.
type soakKind struct {
	name string
	// weight is how often it is drawn.
	weight int
	// least and most are how long it lasts; both zero for one that is over at
	// once.
	least, most time.Duration
	// at says whom it may befall.
	at soakPlace
	// part is what it occupies there: one fault at a time. Faults of an empty
	// part occupy everything.
	part string
	// hard: nothing can pass while it lasts, and limit is counted from its end.
	hard bool
	// limit is how long a pair may be silent.
	limit time.Duration
	// impairs: what another fault breaks meanwhile can be mended only when this
	// one is over; slows: it takes so much longer.
	impairs bool
	slows   time.Duration
}

// soakPlace is where a fault can be.
type soakPlace int

const (
	atEdge soakPlace = iota
	atAnyNode
	atConnector
	betweenEdges
)

// Names of kinds, by which they are done.
const (
	rendezvousKilled = "rendezvous killed"
	agentKilled      = "agent killed"
	charonKilled     = "charon killed"
	hubCharonKilled  = "charon killed on the connector"
	natRebooted      = "NAT rebooted"
	addressChanged   = "public address changed"
	natReplaced      = "NAT replaced by another kind"
	lineCut          = "line cut"
	cablePulled      = "cable pulled"
	lossyLine        = "20 % loss"
	pathBlocked      = "direct path blocked"
	memberLeft       = "out of the community"
	rekeyed          = "SAs rekeyed"
)

// soakKinds are all faults. Limits are those of docs/outages.md; where it names
// none, what follows from its others.
var soakKinds = []soakKind{
	{name: rendezvousKilled, weight: 3, most: 20 * time.Second, at: atConnector, part: "rendezvous", limit: blink, slows: 3 * time.Second},
	{name: agentKilled, weight: 3, most: 10 * time.Second, at: atAnyNode, part: "agent", limit: blink, impairs: true},
	{name: charonKilled, weight: 2, most: 5 * time.Second, at: atEdge, part: "charon", hard: true, limit: 5 * time.Second},
	{name: hubCharonKilled, weight: 1, most: 5 * time.Second, at: atConnector, hard: true, limit: 5 * time.Second},
	{name: natRebooted, weight: 4, at: atEdge, part: "line", limit: 2 * time.Second},
	{name: addressChanged, weight: 2, at: atEdge, part: "line", limit: 3 * time.Second},
	{name: natReplaced, weight: 1, at: atEdge, part: "line", limit: 3 * time.Second},
	{name: lineCut, weight: 2, least: time.Second, most: 30 * time.Second, at: atEdge, part: "line", hard: true, limit: 5 * time.Second},
	{name: cablePulled, weight: 2, least: time.Second, most: 30 * time.Second, at: atEdge, part: "line", hard: true, limit: 5 * time.Second},
	{name: lossyLine, weight: 2, least: 10 * time.Second, most: 30 * time.Second, at: atEdge, part: "line", limit: 3 * time.Second},
	{name: pathBlocked, weight: 3, least: 5 * time.Second, most: 30 * time.Second, at: betweenEdges, part: "path", limit: 3 * time.Second},
	{name: memberLeft, weight: 2, least: 5 * time.Second, most: 15 * time.Second, at: atEdge, part: "rendezvous", hard: true, limit: 2 * time.Second},
	{name: rekeyed, weight: 3, at: atAnyNode, part: "charon", limit: blink},
}

// soakStep is one fault of a plan, all times counted from the start. Nodes are
// edges by number from 1 on; 0 is the connector. other is the second of a pair.
type soakStep struct {
	at, until   time.Duration
	kind        *soakKind
	node, other int
}

func (s soakStep) String() string {
	where := soakNode(s.node)
	if s.kind.at == betweenEdges {
		where += " – " + soakNode(s.other)
	}
	if s.until == s.at {
		return s.kind.name + " (" + where + ")"
	}
	return fmt.Sprintf("%s (%s) for %.1f s", s.kind.name, where, (s.until - s.at).Seconds())
}

func soakNode(i int) string {
	if i == 0 {
		return connector
	}
	return fmt.Sprintf("edge%d", i)
}

// Spacing of faults, and how many last at a time.
const (
	soakSpacingMin = 4 * time.Second
	soakSpacingMax = 12 * time.Second
	soakAtATime    = 2
)

// soakPlan draws the faults of a run: the same for the same source.
func soakPlan(r *rand.Rand, length time.Duration, edges int) []soakStep {
	var kinds []*soakKind
	for i := range soakKinds {
		for range soakKinds[i].weight {
			kinds = append(kinds, &soakKinds[i])
		}
	}
	var plan []soakStep
	for at := soakSpacingMin; ; at += soakSpacingMin + time.Duration(r.Int64N(int64(soakSpacingMax-soakSpacingMin))) {
		s := soakDraw(r, kinds[r.IntN(len(kinds))], at, edges)
		if s.until > length {
			return plan
		}
		if !slices.ContainsFunc(plan, s.conflicts) && overlapping(plan, s) < soakAtATime {
			plan = append(plan, s)
		}
	}
}

func soakDraw(r *rand.Rand, k *soakKind, at time.Duration, edges int) soakStep {
	s := soakStep{at: at, until: at + k.least, kind: k}
	if k.most > k.least {
		s.until += time.Duration(r.Int64N(int64(k.most - k.least)))
	}
	switch k.at {
	case atEdge:
		s.node = 1 + r.IntN(edges)
	case atAnyNode:
		s.node = r.IntN(edges + 1)
	case betweenEdges:
		s.node = 1 + r.IntN(edges)
		s.other = 1 + (s.node+r.IntN(edges-1))%edges
	case atConnector:
	}
	return s
}

// aftermath is how long a fault still explains a silence after it has ended.
const aftermath = 10 * time.Second

// conflicts reports whether two faults may not overlap: they occupy the same
// thing, or one of them would leave nothing that could be asked of the other.
func (s soakStep) conflicts(o soakStep) bool {
	if s.at > o.until+aftermath || o.at > s.until+aftermath {
		return false
	}
	if s.kind.part == "" || o.kind.part == "" {
		return true
	}
	if s.at > o.until || o.at > s.until {
		return false
	}
	// A NAT that forgets everything while no pings flow keeps a node from being
	// heard until it speaks by itself, after 20 s.
	if s.node == o.node && (s.kind.name == memberLeft && o.kind.part == "line" || o.kind.name == memberLeft && s.kind.part == "line") {
		return true
	}
	// The rendezvous is one, wherever the node is that it is asked about.
	return s.kind.part == o.kind.part && (s.node == o.node || s.kind.part == "rendezvous" || s.kind.part == "path")
}

func overlapping(plan []soakStep, s soakStep) int {
	n := 0
	for _, o := range plan {
		if s.at <= o.until && o.at <= s.until {
			n++
		}
	}
	return n
}
