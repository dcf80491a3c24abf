package rendezvous

import (
	"container/heap"
	"time"
)

// agenda is the pairs that have something due, the longest overdue first: who
// waits for a free slot gets it before who failed a moment ago. A community has
// more pairs than could be looked at after every message.
//
// It is a heap; pair.at and pair.place belong to it.
type agenda []*pair

// set puts p down for a time, in place of the one it had; zero takes it off.
func (a *agenda) set(p *pair, at time.Time) {
	was := p.place
	p.at = at
	switch {
	case was == 0 && !at.IsZero():
		heap.Push(a, p)
	case was > 0 && at.IsZero():
		heap.Remove(a, was-1)
	case was > 0:
		heap.Fix(a, was-1)
	}
}

// next is the earliest time, zero for none.
func (a agenda) next() time.Time {
	if len(a) == 0 {
		return time.Time{}
	}
	return a[0].at
}

// due takes off all pairs whose time has come.
func (a *agenda) due(now time.Time) []*pair {
	var due []*pair
	for len(*a) > 0 && !(*a)[0].at.After(now) {
		due = append(due, heap.Pop(a).(*pair))
	}
	return due
}

// Len implements heap.Interface.
func (a agenda) Len() int { return len(a) }

// Less implements heap.Interface.
func (a agenda) Less(i, j int) bool {
	if !a[i].at.Equal(a[j].at) {
		return a[i].at.Before(a[j].at)
	}
	return a[i].id < a[j].id
}

// Swap implements heap.Interface.
func (a agenda) Swap(i, j int) {
	a[i], a[j] = a[j], a[i]
	a[i].place, a[j].place = i+1, j+1
}

// Push implements heap.Interface.
func (a *agenda) Push(x any) {
	p := x.(*pair)
	*a = append(*a, p)
	p.place = len(*a)
}

// Pop implements heap.Interface.
func (a *agenda) Pop() any {
	last := len(*a) - 1
	p := (*a)[last]
	(*a)[last] = nil
	*a = (*a)[:last]
	p.place = 0
	return p
}
