// Package rewrite makes this host's netfilter send the shared port's packets to
// one peer from another source port, and receive that port's packets from that
// peer at the shared one.
//
// Probing a symmetric NAT finds a source port whose mapping the peer has hit.
// The IKE daemon and the kernel's ESP go on sending from the port they own, so
// the packets are given the other source port on their way out:
//
//	table ip bodkin {
//	  chain outgoing { type nat hook postrouting priority 99;
//	    udp LOCAL:4500 -> PEER        snat to :PORT }
//	  chain incoming { type nat hook prerouting priority -101;
//	    udp PEER -> LOCAL:PORT        dnat to :4500 }
//	  chain untracked_out { type filter hook output priority -300;
//	    udp LOCAL:PORT -> PEER        notrack }
//	  chain untracked_in { type filter hook prerouting priority -300;
//	    udp PEER -> LOCAL:4500        notrack }
//	}
//
// Each rule carries its owner as its comment. The rules outlive the process,
// as tunnels do; Sweep removes what a killed process left behind.
//
// IPv4 only: nobody translates ports of IPv6. Linux only. Needs CAP_NET_ADMIN.
package rewrite

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"
)

var (
	// ErrUnavailable means that this host cannot rewrite ports: its kernel lacks
	// nftables NAT or conntrack's netlink, or does not let this process use them.
	ErrUnavailable = errors.New("port rewriting is unavailable")
	// ErrInvalid means that an owner, a flow or a port cannot be used.
	ErrInvalid = errors.New("invalid")
)

const (
	tableName = "bodkin"
	// maxOwner is what nft accepts as a comment, in bytes without the NUL.
	maxOwner = 127
)

// Flow is the shared port towards one peer.
type Flow struct {
	Local netip.AddrPort // this host's address and the shared port
	Peer  netip.AddrPort // the peer's mapping
}

func (f Flow) validate() error {
	for _, ap := range []netip.AddrPort{f.Local, f.Peer} {
		if a := ap.Addr(); !a.Is4() || a.IsUnspecified() || a.IsMulticast() || ap.Port() == 0 {
			return fmt.Errorf("%w flow %s to %s: want unicast IPv4 addresses with ports", ErrInvalid, f.Local, f.Peer)
		}
	}
	return nil
}

// Rule is a rewrite in force: Flow's packets leave from Port.
type Rule struct {
	Owner string
	Flow  Flow
	Port  uint16
}

func (r Rule) validate() error {
	if r.Owner == "" || len(r.Owner) > maxOwner {
		return fmt.Errorf("%w owner %q: want 1 to %d bytes", ErrInvalid, r.Owner, maxOwner)
	}
	if r.Port == 0 || r.Port == r.Flow.Local.Port() {
		return fmt.Errorf("%w port %d: want a port other than the shared one", ErrInvalid, r.Port)
	}
	return r.Flow.validate()
}

// Table is the project's nftables table in the network namespace in which it
// was opened. The table itself stands in the kernel only while it has rules.
//
// What is in force is asked of the kernel each time, never remembered: an
// operator may flush the ruleset at any moment. All methods may be called
// concurrently, and return net.ErrClosed after Close.
type Table struct {
	log    *slog.Logger
	layout layout

	mu     sync.Mutex // guards the sockets: one change at a time
	nft    *nftables.Conn
	ct     *conntrack
	closed bool
}

// Open opens the netlink sockets and tries out, without a trace, all that the
// methods need of the kernel. Its error is ErrUnavailable with the reason.
func Open(log *slog.Logger) (*Table, error) {
	nft, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("rewrite: %w: open nftables' netlink: %w", ErrUnavailable, err)
	}
	ct, err := openConntrack()
	if err != nil {
		_ = nft.CloseLasting()
		return nil, fmt.Errorf("rewrite: %w: open conntrack's netlink: %w", ErrUnavailable, err)
	}
	t := &Table{log: log, layout: newLayout(tableName), nft: nft, ct: ct}
	if err := t.try(); err != nil {
		_ = t.Close()
		return nil, fmt.Errorf("rewrite: %w: %w", ErrUnavailable, err)
	}
	return t, nil
}

// try makes and deletes every kind of rule in one transaction, so that nothing
// is ever in force, and looks for an entry that conntrack cannot have.
func (t *Table) try() error {
	f := Flow{ // RFC 5737 addresses
		Local: netip.MustParseAddrPort("192.0.2.1:4500"),
		Peer:  netip.MustParseAddrPort("192.0.2.2:4500"),
	}
	trial := newLayout(tableName + "_trial")
	trial.create(t.nft)
	trial.add(t.nft, Rule{Owner: "trial", Flow: f, Port: 1})
	t.nft.DelTable(trial.table)
	if err := t.nft.Flush(); err != nil {
		return fmt.Errorf("nftables with NAT (CAP_NET_ADMIN, kernel modules nf_tables, nft_nat, nft_ct): %w", err)
	}
	if err := t.ct.delete(f.Local, f.Peer); err != nil {
		return fmt.Errorf("conntrack (CAP_NET_ADMIN, kernel module nf_conntrack_netlink): %w", err)
	}
	return nil
}

// Close closes the sockets. The rules stay: tunnels live on without the agent.
func (t *Table) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.closed = true
	t.ct.close()
	if err := t.nft.CloseLasting(); err != nil {
		return fmt.Errorf("rewrite: close: %w", err)
	}
	return nil
}

// Set makes f's packets leave from port, and replaces in one step what its
// owner, or anybody for the same flow, had in force. When it returns, every
// further packet is rewritten, whatever flows conntrack knew before.
func (t *Table) Set(owner string, f Flow, port uint16) error {
	rule := Rule{Owner: owner, Flow: f, Port: port}
	if err := rule.validate(); err != nil {
		return fmt.Errorf("rewrite: set: %w", err)
	}
	if err := t.change(func(o string) bool { return o == owner }, rule); err != nil {
		return fmt.Errorf("rewrite: set port %d towards %s for %s: %w", port, f.Peer, owner, err)
	}
	return nil
}

// Remove removes all of the owner's rules. To have none is no error.
func (t *Table) Remove(owner string) error {
	if err := t.change(func(o string) bool { return o == owner }); err != nil {
		return fmt.Errorf("rewrite: remove rules of %s: %w", owner, err)
	}
	return nil
}

// Sweep removes the rules whose owner is not to be kept.
func (t *Table) Sweep(keep func(owner string) bool) error {
	if err := t.change(func(o string) bool { return !keep(o) }); err != nil {
		return fmt.Errorf("rewrite: sweep: %w", err)
	}
	return nil
}

// Rules returns the rewrites in force.
func (t *Table) Rules() ([]Rule, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	all, err := t.list()
	if err != nil {
		return nil, fmt.Errorf("rewrite: %w", err)
	}
	var rules []Rule
	for _, r := range all {
		if r.rewrites {
			rules = append(rules, r.Rule)
		}
	}
	return rules, nil
}

// list returns all rules of the table; none if there is no such table.
func (t *Table) list() ([]installed, error) {
	if t.closed {
		return nil, net.ErrClosed
	}
	var all []installed
	for _, chain := range t.layout.chains() {
		rules, err := t.nft.GetRules(t.layout.table, chain)
		if err != nil {
			return nil, fmt.Errorf("list chain %s: %w", chain.Name, err)
		}
		for _, r := range rules {
			all = append(all, t.layout.read(chain, r))
		}
	}
	return all, nil
}

// change deletes the rules of owners that are gone, or that have a flow which is
// added, and adds those of a rewrite, in one transaction. Then it makes
// conntrack forget the flows of the rewrites that were added or deleted.
//
// The order is what makes it safe against packets that are sent meanwhile: with
// the rules in force conntrack can only make entries that agree with them, and
// after the grace period no packet is under way that has passed the old ones.
// An entry that does not agree is from before, and is deleted now.
func (t *Table) change(gone func(owner string) bool, added ...Rule) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	all, err := t.list()
	if err != nil {
		return err
	}
	without := map[string]bool{}
	for _, r := range all {
		taken := r.rewrites && slices.ContainsFunc(added, func(a Rule) bool { return a.Flow == r.Flow })
		without[r.owner] = without[r.owner] || taken || gone(r.owner)
	}
	changed := added
	var deleted []installed
	for _, r := range all {
		if without[r.owner] {
			deleted = append(deleted, r)
			if r.rewrites {
				changed = append(changed, r.Rule)
			}
		}
	}
	if len(added) == 0 && len(deleted) == 0 {
		return nil
	}
	if err := t.commit(deleted, len(deleted) == len(all), added); err != nil {
		return err
	}
	t.log.Debug("nftables rules changed", "deleted", len(deleted), "rewrites", changed)
	awaitGracePeriod()
	return t.ct.forget(changed)
}

// commit is change's transaction. all says that nothing else is in the table.
func (t *Table) commit(deleted []installed, all bool, added []Rule) error {
	if all && len(added) == 0 {
		t.nft.DelTable(t.layout.table)
		return t.nft.Flush()
	}
	t.layout.create(t.nft)
	for _, r := range deleted {
		if err := t.nft.DelRule(&nftables.Rule{Table: t.layout.table, Chain: r.chain, Handle: r.handle}); err != nil {
			return fmt.Errorf("delete a rule of chain %s: %w", r.chain.Name, err)
		}
	}
	for _, r := range added {
		t.layout.add(t.nft, r)
	}
	return t.nft.Flush()
}
