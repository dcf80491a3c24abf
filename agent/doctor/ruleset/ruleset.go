// Package ruleset follows a packet through this host's nftables rules (what
// iptables-nft wrote among them) without sending it, to find the rule that drops
// or rewrites it. It knows most of what firewalls are made of; where a rule asks
// for what it does not know, the answer is "perhaps", never a guess.
//
// Linux only. Reading the rules needs CAP_NET_ADMIN.
package ruleset

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Ruleset is what was in force when it was read. It does not change.
type Ruleset struct {
	bases  []*chain // sorted by priority
	chains map[chainKey]*chain
	sets   map[chainKey]*set
}

// chainKey names a chain or a set: names are those of a table.
type chainKey struct {
	family nftables.TableFamily
	table  string
	name   string
}

type chain struct {
	key      chainKey
	hook     nftables.ChainHook
	priority int32
	drops    bool // by policy
	rules    []rule
}

type rule struct {
	handle uint64
	exprs  []expr.Any
}

type set struct {
	interval, concatenated, isMap bool
	elements                      []nftables.SetElement
}

// Place is where in the ruleset something happens to a packet.
type Place struct {
	Family string `json:"family"`
	Table  string `json:"table"`
	Chain  string `json:"chain"`
	// Handle is the rule's, 0 for the chain's policy.
	Handle uint64 `json:"handle,omitempty"`
}

// String is the place in the words of nft(8).
func (p Place) String() string {
	s := fmt.Sprintf("table %s %s, chain %s", p.Family, p.Table, p.Chain)
	if p.Handle == 0 {
		return s + ", its policy"
	}
	return fmt.Sprintf("%s, rule with handle %d", s, p.Handle)
}

func (c *chain) place(handle uint64) Place {
	return Place{Family: familyName(c.key.family), Table: c.key.table, Chain: c.key.name, Handle: handle}
}

func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	case nftables.TableFamilyINet:
		return "inet"
	}
	return fmt.Sprintf("family %d", f)
}
