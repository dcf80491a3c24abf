package ruleset

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
)

// Read reads the rules of this network namespace. Tables whose names begin with
// except are left out: they are the reader's own.
func Read(except string) (*Ruleset, error) {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	defer func() { _ = conn.CloseLasting() }()
	r := &Ruleset{chains: map[chainKey]*chain{}, sets: map[chainKey]*set{}}
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6, nftables.TableFamilyINet} {
		if err := r.readFamily(conn, family, except); err != nil {
			return nil, fmt.Errorf("nftables: %w", err)
		}
	}
	slices.SortStableFunc(r.bases, func(a, b *chain) int { return cmp.Compare(a.priority, b.priority) })
	return r, nil
}

func (r *Ruleset) readFamily(conn *nftables.Conn, family nftables.TableFamily, except string) error {
	own := func(t *nftables.Table) bool { return except != "" && strings.HasPrefix(t.Name, except) }
	tables, err := conn.ListTablesOfFamily(family)
	if err != nil {
		return err
	}
	for _, t := range tables {
		if own(t) {
			continue
		}
		if err := r.readSets(conn, t); err != nil {
			return err
		}
	}
	chains, err := conn.ListChainsOfTableFamily(family)
	if err != nil {
		return err
	}
	for _, c := range chains {
		if own(c.Table) {
			continue
		}
		if err := r.readChain(conn, family, c); err != nil {
			return err
		}
	}
	return nil
}

func (r *Ruleset) readSets(conn *nftables.Conn, t *nftables.Table) error {
	sets, err := conn.GetSets(t)
	if err != nil {
		return err
	}
	for _, s := range sets {
		elements, err := conn.GetSetElements(s)
		if err != nil {
			return fmt.Errorf("set %s of table %s: %w", s.Name, t.Name, err)
		}
		r.sets[chainKey{t.Family, t.Name, s.Name}] = &set{
			interval: s.Interval, concatenated: s.Concatenation, isMap: s.IsMap, elements: elements,
		}
	}
	return nil
}

func (r *Ruleset) readChain(conn *nftables.Conn, family nftables.TableFamily, c *nftables.Chain) error {
	out := &chain{key: chainKey{family, c.Table.Name, c.Name}}
	rules, err := conn.GetRules(c.Table, c)
	if err != nil {
		return fmt.Errorf("chain %s of table %s: %w", c.Name, c.Table.Name, err)
	}
	for _, x := range rules {
		out.rules = append(out.rules, rule{x.Handle, x.Exprs})
	}
	r.chains[out.key] = out
	if c.Hooknum != nil {
		out.hook = *c.Hooknum
		out.drops = c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop
		if c.Priority != nil {
			out.priority = int32(*c.Priority)
		}
		r.bases = append(r.bases, out)
	}
	return nil
}
