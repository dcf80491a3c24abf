package wire

import "strings"

// PairID names two nodes without order: "a|b" with a < b. No node name holds
// a "|". Logs of both ends and of the rendezvous carry it.
type PairID string

// NewPairID returns the same ID for a, b as for b, a.
func NewPairID(a, b string) PairID {
	return PairID(min(a, b) + "|" + max(a, b))
}

// Nodes returns the two names, in order.
func (id PairID) Nodes() (string, string) {
	a, b, _ := strings.Cut(string(id), "|")
	return a, b
}
