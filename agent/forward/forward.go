// Package forward has a connector's netfilter let packets pass between its edges
// only where a community permits it.
//
// A connector relays: what comes from one edge's tunnel and is for another edge
// is forwarded into that one's tunnel. Its table lets that happen between the
// members of one group, lets edges talk to the connector's own subnets, and drops
// what is left of the relay's range:
//
//	table inet bodkin-relay {
//	  counter dropped { }
//	  set edges4.1 { type ipv4_addr; flags interval; ... }   and so on
//	  chain forward { type filter hook forward priority filter;
//	    ip saddr @group0_4.1 ip daddr @group0_4.1 accept
//	    ip saddr @edges4.1 ip daddr @edges4.1 counter name dropped drop
//	    ip saddr @edges4.1 ip daddr @own4.1 accept
//	    ip saddr @own4.1 ip daddr @edges4.1 accept
//	    ip saddr @edges4.1 ip daddr @range4.1 counter name dropped drop
//	    ip saddr @range4.1 ip daddr @edges4.1 counter name dropped drop
//	  }
//	}
//
// The number after the dot is the policy's: each has sets of its own.
//
// A packet's source needs no further check: IPsec lets nothing out of an edge's
// tunnel that is not from that edge's subnets. Everything else that the host
// forwards is left to the host's other tables.
//
// The table outlives the process, as tunnels do. Linux only. Needs CAP_NET_ADMIN.
package forward

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/google/nftables"
)

var (
	// ErrUnavailable means that this host cannot filter: its kernel lacks
	// nftables, or does not let this process use it.
	ErrUnavailable = errors.New("filtering what is relayed is unavailable")
	// ErrOff means that this host forwards no packets at all. Its text names the
	// sysctl to set.
	ErrOff = errors.New("this host does not forward packets")
)

// TableName is the table's name, of family inet.
const TableName = "bodkin-relay"

// Policy is who may reach whom through this host.
type Policy struct {
	// Groups are the subnets of nodes that may reach each other.
	Groups [][]netip.Prefix
	// Edges are the subnets of all nodes that are relayed for, Own this host's.
	Edges, Own []netip.Prefix
	// Range is what the relay covers: all that an edge can send here.
	Range []netip.Prefix
}

// Table is the project's nftables table in the network namespace in which it was
// opened. All methods may be called concurrently, and return net.ErrClosed after
// Close.
type Table struct {
	mu     sync.Mutex // guards the socket: one change at a time
	nft    *nftables.Conn
	closed bool
}

// Open opens the netlink socket and tries out, without a trace, all that Set
// needs of the kernel. Its error is ErrUnavailable with the reason.
func Open() (*Table, error) {
	nft, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("forward: %w: open nftables' netlink: %w", ErrUnavailable, err)
	}
	t := &Table{nft: nft}
	if err := t.try(); err != nil {
		_ = t.Close()
		return nil, fmt.Errorf("forward: %w: nftables (CAP_NET_ADMIN, kernel module nf_tables): %w", ErrUnavailable, err)
	}
	return t, nil
}

// try makes and deletes a table in one transaction, so that nothing is ever in
// force.
func (t *Table) try() error {
	doc := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")} // RFC 5737, RFC 3849
	trial := layoutOf(TableName + "-trial")
	trial.create(t.nft)
	rs := compile(Policy{Groups: [][]netip.Prefix{doc}, Edges: doc, Own: doc, Range: doc})
	if err := trial.addSets(t.nft, rs, 0); err != nil {
		return err
	}
	trial.addRules(t.nft, rs, 0)
	t.nft.DelTable(trial.table)
	return t.nft.Flush()
}

// Close closes the socket. The table stays.
func (t *Table) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.closed = true
	if err := t.nft.CloseLasting(); err != nil {
		return fmt.Errorf("forward: close: %w", err)
	}
	return nil
}

// Set puts a policy in force in the place of the one before, in one step. The chain
// stays, and gets other rules: a packet that meets one chain as it goes and another
// as it comes would be seen by neither. What was dropped so far stays counted.
func (t *Table) Set(p Policy) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return fmt.Errorf("forward: %w", net.ErrClosed)
	}
	if err := t.set(compile(p)); err != nil {
		return fmt.Errorf("forward: set table inet %s: %w", TableName, err)
	}
	return nil
}

// set makes the new sets first, under names of their own, and then the rules that
// use them: kernels from 6.18 on fill a set only after the transaction in which it
// is made has come into force, and a rule of the same one would find it empty.
func (t *Table) set(rs ruleset) error {
	l := layoutOf(TableName)
	old, err := t.sets(l)
	if err != nil {
		return err
	}
	version := nextVersion(old)
	l.create(t.nft)
	if err := l.addSets(t.nft, rs, version); err != nil {
		return err
	}
	if err := t.nft.Flush(); err != nil {
		return err
	}
	t.nft.FlushChain(l.chain)
	l.addRules(t.nft, rs, version)
	for _, s := range old {
		t.nft.DelSet(s)
	}
	return t.nft.Flush()
}

// sets are those of the table, none without one.
func (t *Table) sets(l layout) ([]*nftables.Set, error) {
	if present, err := t.present(); err != nil || !present {
		return nil, err
	}
	sets, err := t.nft.GetSets(l.table)
	if err != nil {
		return nil, fmt.Errorf("list sets: %w", err)
	}
	return sets, nil
}

// Remove removes the table. To have none is no error.
func (t *Table) Remove() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return fmt.Errorf("forward: %w", net.ErrClosed)
	}
	// To delete one that is not there would fail the transaction, so it is made
	// first.
	l := layoutOf(TableName)
	t.nft.AddTable(l.table)
	t.nft.DelTable(l.table)
	if err := t.nft.Flush(); err != nil {
		return fmt.Errorf("forward: remove table inet %s: %w", TableName, err)
	}
	return nil
}

// Dropped is how many packets the table has dropped, 0 without a table.
func (t *Table) Dropped() (packets uint64, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return 0, fmt.Errorf("forward: %w", net.ErrClosed)
	}
	c, err := t.dropped()
	if err != nil {
		return 0, fmt.Errorf("forward: %w", err)
	}
	return c.Packets, nil
}

// Present reports whether the table is there. An operator who loads other rules
// may have flushed it with the rest.
func (t *Table) Present() (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false, fmt.Errorf("forward: %w", net.ErrClosed)
	}
	ok, err := t.present()
	if err != nil {
		return false, fmt.Errorf("forward: %w", err)
	}
	return ok, nil
}

func (t *Table) present() (bool, error) {
	tables, err := t.nft.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, fmt.Errorf("list tables: %w", err)
	}
	return slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == TableName }), nil
}

// dropped is the counter in force, a zero one without a table.
func (t *Table) dropped() (nftables.CounterObj, error) {
	if ok, err := t.present(); err != nil || !ok {
		return nftables.CounterObj{}, err
	}
	objects, err := t.nft.GetObjects(layoutOf(TableName).table)
	if err != nil {
		return nftables.CounterObj{}, fmt.Errorf("list counters of table inet %s: %w", TableName, err)
	}
	for _, o := range objects {
		if c, ok := o.(*nftables.CounterObj); ok && c.Name == counterName {
			return *c, nil
		}
	}
	return nftables.CounterObj{}, nil // somebody else's table of that name: it is replaced
}

// Enabled reports as ErrOff whether this host forwards packets of the families
// of prefixes.
func Enabled(prefixes []netip.Prefix) error {
	for _, p := range prefixes {
		name := "net.ipv4.ip_forward"
		if p.Addr().Is6() {
			name = "net.ipv6.conf.all.forwarding"
		}
		b, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
		if err != nil {
			return fmt.Errorf("%w: %w", ErrOff, err)
		}
		if strings.TrimSpace(string(b)) == "0" {
			return fmt.Errorf("%w: set the sysctl %s to 1 (sysctl -w %s=1, and in /etc/sysctl.d)", ErrOff, name, name)
		}
	}
	return nil
}
