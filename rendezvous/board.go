package rendezvous

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// board is what is counted and drawn of all nodes and pairs, as of one moment. It
// is copied on the hub's goroutine in a few milliseconds for tens of thousands of
// pairs, which whole views of them would take a hundred for. Nobody changes it.
type board struct {
	at    time.Time
	nodes []nodeBrief // by name
	pairs []pairBrief // by ID
}

type nodeBrief struct {
	name   wire.NodeName
	online bool
}

type pairBrief struct {
	id       wire.PairID
	names    [2]wire.NodeName
	state    State
	punching bool
	reason   string
	verdict  VerdictView
}

// briefs are all pairs, by ID.
func (c *coordinator) briefs() []pairBrief {
	out := make([]pairBrief, len(c.sorted))
	for i, p := range c.sorted {
		out[i] = pairBrief{p.id, p.names, p.state, p.attempt != nil, c.reasonOf(p), viewOf(p.verdict)}
	}
	return out
}

// boards makes a board when it is asked for one and something has changed since
// the last; however many ask, the hub makes one at a time.
type boards struct {
	// version counts what has changed. The hub writes it.
	version atomic.Uint64

	mu   sync.Mutex
	last *board
	// of is the version of last.
	of uint64
}

// board is never older than the question.
func (s *Server) board(ctx context.Context) (*board, error) {
	b := &s.hub.boards
	asked := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.last == nil:
	case b.last.at.After(asked):
		return b.last, nil
	case b.of == b.version.Load():
		still := *b.last
		still.at = asked // it is as it was
		b.last = &still
		return b.last, nil
	}
	next := &board{}
	var version uint64
	err := s.hub.call(ctx, func(now time.Time) []action {
		version = b.version.Load()
		next.at, next.pairs = now, s.hub.coordinator.briefs()
		for name, d := range s.hub.details {
			next.nodes = append(next.nodes, nodeBrief{name, d.Online})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(next.nodes, func(a, b nodeBrief) int { return strings.Compare(string(a.name), string(b.name)) })
	b.last, b.of = next, version
	return next, nil
}

// cellOf is a pair's character in Matrix.
func cellOf(state State, punching bool) byte {
	switch {
	case state == Direct:
		return 'd'
	case state == Relayed && punching:
		return 'R'
	case state == Relayed:
		return 'r'
	case punching:
		return 'X'
	}
	return 'x'
}

// noCell stands where two nodes are no pair.
const noCell = '.'

// matrix draws the pairs. Nodes that have never joined are in it, if they are of a
// pair.
func (b *board) matrix() Matrix {
	m := Matrix{At: b.at.UTC(), Nodes: []wire.NodeName{}}
	online := map[wire.NodeName]bool{}
	for _, n := range b.nodes {
		online[n.name] = n.online
	}
	for _, p := range b.pairs {
		for _, n := range p.names {
			if _, ok := online[n]; !ok {
				online[n] = false
			}
		}
	}
	for n := range online {
		m.Nodes = append(m.Nodes, n)
	}
	slices.Sort(m.Nodes)
	place := make(map[wire.NodeName]int, len(m.Nodes))
	rows := make([][]byte, len(m.Nodes))
	up := make([]byte, len(m.Nodes))
	for i, n := range m.Nodes {
		place[n], up[i] = i, '0'
		if online[n] {
			up[i] = '1'
		}
		rows[i] = slices.Repeat([]byte{noCell}, i)
	}
	for _, p := range b.pairs {
		i, j := place[p.names[0]], place[p.names[1]]
		rows[max(i, j)][min(i, j)] = cellOf(p.state, p.punching)
	}
	m.Online, m.Rows = string(up), make([]string, len(rows))
	for i, row := range rows {
		m.Rows[i] = string(row)
	}
	return m
}
