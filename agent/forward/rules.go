package forward

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const (
	counterName = "dropped"
	chainName   = "forward"
)

// ruleset is a policy as netfilter takes it.
type ruleset struct {
	sets  []set
	rules []rule
}

// set is a named set of addresses of one family.
type set struct {
	name   string
	family family
	spans  []span
}

// span is the addresses from first to last.
type span struct{ first, last netip.Addr }

// rule decides on packets of one family whose addresses are in two sets.
type rule struct {
	family   family
	from, to string
	accept   bool
}

// family is what is different between IPv4 and IPv6.
type family struct {
	suffix   string
	proto    byte
	key      nftables.SetDatatype
	src, dst uint32 // where the addresses are in the header
	length   uint32
	is       func(netip.Addr) bool
}

var families = [...]family{
	{suffix: "4", proto: unix.NFPROTO_IPV4, key: nftables.TypeIPAddr, src: 12, dst: 16, length: 4, is: netip.Addr.Is4},
	{suffix: "6", proto: unix.NFPROTO_IPV6, key: nftables.TypeIP6Addr, src: 8, dst: 24, length: 16, is: netip.Addr.Is6},
}

// compile turns a policy into sets and rules. The first rule that matches decides.
func compile(p Policy) ruleset {
	var out ruleset
	for _, f := range families {
		named := func(name string, prefixes []netip.Prefix) string {
			s := set{name: name + f.suffix, family: f, spans: spans(prefixes, f.is)}
			out.sets = append(out.sets, s)
			return s.name
		}
		decide := func(from, to string, accept bool) {
			out.rules = append(out.rules, rule{family: f, from: from, to: to, accept: accept})
		}
		edges, own, whole := named("edges", p.Edges), named("own", p.Own), named("range", p.Range)
		for i, members := range p.Groups {
			if group := fmt.Sprintf("group%d_", i); len(spans(members, f.is)) > 0 {
				name := named(group, members)
				decide(name, name, true)
			}
		}
		decide(edges, edges, false)
		decide(edges, own, true)
		decide(own, edges, true)
		decide(edges, whole, false)
		decide(whole, edges, false)
	}
	return out
}

// spans are the prefixes of a family, in order, without overlaps and gaps that
// are none: netfilter takes nothing else.
func spans(prefixes []netip.Prefix, is func(netip.Addr) bool) []span {
	var all []span
	for _, p := range prefixes {
		if is(p.Addr()) {
			all = append(all, span{p.Masked().Addr(), last(p)})
		}
	}
	slices.SortFunc(all, func(a, b span) int { return a.first.Compare(b.first) })
	var out []span
	for _, s := range all {
		if n := len(out) - 1; n >= 0 && (s.first.Compare(out[n].last) <= 0 || s.first == out[n].last.Next()) {
			if s.last.Compare(out[n].last) > 0 {
				out[n].last = s.last
			}
			continue
		}
		out = append(out, s)
	}
	return out
}

// last is a prefix' highest address.
func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// layout is the table with its chain and its counter.
type layout struct {
	table *nftables.Table
	chain *nftables.Chain
}

func layoutOf(name string) layout {
	t := &nftables.Table{Name: name, Family: nftables.TableFamilyINet}
	priority := *nftables.ChainPriorityFilter
	return layout{table: t, chain: &nftables.Chain{
		Table: t, Name: chainName, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: &priority,
	}}
}

// create queues the table, its chain and its counter; those that exist stay as
// they are.
func (l layout) create(c *nftables.Conn) {
	c.AddTable(l.table)
	c.AddChain(l.chain)
	c.AddObj(&nftables.CounterObj{Table: l.table, Name: counterName})
}

// addSets queues the sets of a policy.
func (l layout) addSets(c *nftables.Conn, rs ruleset, version int) error {
	for _, s := range rs.sets {
		set := &nftables.Set{Table: l.table, Name: versioned(s.name, version), KeyType: s.family.key, Interval: true}
		if err := c.AddSet(set, elements(s.spans)); err != nil {
			return fmt.Errorf("set %s: %w", set.Name, err)
		}
	}
	return nil
}

// addRules queues the rules of a policy.
func (l layout) addRules(c *nftables.Conn, rs ruleset, version int) {
	for _, r := range rs.rules {
		c.AddRule(&nftables.Rule{Table: l.table, Chain: l.chain, Exprs: r.exprs(version)})
	}
}

func versioned(name string, version int) string { return fmt.Sprintf("%s.%d", name, version) }

// nextVersion is one that none of sets has.
func nextVersion(sets []*nftables.Set) int {
	next := 1
	for _, s := range sets {
		if _, n, ok := strings.Cut(s.Name, "."); ok {
			if v, err := strconv.Atoi(n); err == nil {
				next = max(next, v+1)
			}
		}
	}
	return next
}

// elements are the bounds of spans: netfilter's intervals leave their end out,
// and the one up to the highest address of all has none.
func elements(spans []span) []nftables.SetElement {
	var out []nftables.SetElement
	for _, s := range spans {
		out = append(out, nftables.SetElement{Key: s.first.AsSlice()})
		if end := s.last.Next(); end.IsValid() {
			out = append(out, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	return out
}

// register is the one nftables register in use: rules load into it and look up at
// once.
const register = 1

func (r rule) exprs(version int) []expr.Any {
	f := r.family
	out := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{f.proto}},
		&expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: f.src, Len: f.length},
		&expr.Lookup{SourceRegister: register, SetName: versioned(r.from, version)},
		&expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: f.dst, Len: f.length},
		&expr.Lookup{SourceRegister: register, SetName: versioned(r.to, version)},
	}
	if r.accept {
		return append(out, &expr.Verdict{Kind: expr.VerdictAccept})
	}
	return append(out, &expr.Objref{Type: int(nftables.ObjTypeCounter), Name: counterName}, &expr.Verdict{Kind: expr.VerdictDrop})
}
