package rewrite

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// layout is the table with its chains.
type layout struct {
	table                     *nftables.Table
	outgoing, incoming        *nftables.Chain // NAT: the rewrites
	untrackedOut, untrackedIn *nftables.Chain // before conntrack
}

func newLayout(name string) layout {
	table := &nftables.Table{Name: name, Family: nftables.TableFamilyIPv4}
	chain := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority nftables.ChainPriority) *nftables.Chain {
		return &nftables.Chain{Table: table, Name: name, Type: kind, Hooknum: hook, Priority: &priority}
	}
	// The first NAT chain with a matching rule decides: one step before the
	// usual priority no masquerade rule of the host or of Kubernetes comes first.
	return layout{
		table:        table,
		outgoing:     chain("outgoing", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, *nftables.ChainPriorityNATSource-1),
		incoming:     chain("incoming", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, *nftables.ChainPriorityNATDest-1),
		untrackedOut: chain("untracked_out", nftables.ChainTypeFilter, nftables.ChainHookOutput, *nftables.ChainPriorityRaw),
		untrackedIn:  chain("untracked_in", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, *nftables.ChainPriorityRaw),
	}
}

func (l layout) chains() []*nftables.Chain {
	return []*nftables.Chain{l.outgoing, l.incoming, l.untrackedOut, l.untrackedIn}
}

// create queues the table and its chains; those that exist stay as they are.
func (l layout) create(c *nftables.Conn) {
	c.AddTable(l.table)
	for _, chain := range l.chains() {
		c.AddChain(chain)
	}
}

// rewrite queues the rules of one rewrite. Together they let conntrack make one
// kind of entry only, whichever packet comes first: with the outgoing rule
// alone, one of the peer's makes an entry that occupies the port. What would
// make another is kept out of conntrack: a socket that still sends from the
// port itself, and the peer's packets to the shared port, which come through
// the mapping that had been there before.
func (l layout) rewrite(c *nftables.Conn, r Rule) {
	hit := netip.AddrPortFrom(r.Flow.Local.Addr(), r.Port)
	notrack := []expr.Any{&expr.Notrack{}}
	l.add(c, l.outgoing, r.Owner, match(r.Flow.Local, r.Flow.Peer), translate(expr.NATTypeSourceNAT, r.Port))
	l.add(c, l.incoming, r.Owner, match(r.Flow.Peer, hit), translate(expr.NATTypeDestNAT, r.Flow.Local.Port()))
	l.add(c, l.untrackedOut, r.Owner, match(hit, r.Flow.Peer), notrack)
	l.add(c, l.untrackedIn, r.Owner, match(r.Flow.Peer, r.Flow.Local), notrack)
}

// untrack queues the rules that keep the ports of f.Local's address out of
// conntrack towards f.Peer.
func (l layout) untrack(c *nftables.Conn, owner string, f Flow, ports []uint16) error {
	anyPort := netip.AddrPortFrom(f.Local.Addr(), 0)
	elements := make([]nftables.SetElement, len(ports))
	for i, p := range ports {
		elements[i].Key = bigEndian(p)
	}
	for i, direction := range []struct {
		chain *nftables.Chain
		match []expr.Any
		port  field
	}{
		{l.untrackedOut, match(anyPort, f.Peer), sourcePort},
		{l.untrackedIn, match(f.Peer, anyPort), destinationPort},
	} {
		// The kernel replaces %d. The ID is the set's within this transaction;
		// given none, the library counts them in an unguarded variable.
		set := &nftables.Set{Table: l.table, Name: "__set%d", ID: uint32(i + 1),
			Anonymous: true, Constant: true, KeyType: nftables.TypeInetService}
		if err := c.AddSet(set, elements); err != nil {
			return err
		}
		l.add(c, direction.chain, owner, direction.match, []expr.Any{
			direction.port.load(),
			&expr.Lookup{SourceRegister: register, SetName: set.Name, SetID: set.ID},
			&expr.Notrack{},
		})
	}
	return nil
}

func (l layout) add(c *nftables.Conn, chain *nftables.Chain, owner string, match, action []expr.Any) {
	c.AddRule(&nftables.Rule{
		Table:    l.table,
		Chain:    chain,
		Exprs:    append(match, action...),
		UserData: userdata.AppendString(nil, userdata.TypeComment, owner),
	})
}

// register is the one nftables register in use: rules load into it and compare
// at once.
const register = 1

// field is a part of a packet that rules match.
type field struct {
	base        expr.PayloadBase
	offset, len uint32
}

var (
	sourceAddress      = field{expr.PayloadBaseNetworkHeader, 12, 4}
	destinationAddress = field{expr.PayloadBaseNetworkHeader, 16, 4}
	sourcePort         = field{expr.PayloadBaseTransportHeader, 0, 2}
	destinationPort    = field{expr.PayloadBaseTransportHeader, 2, 2}
)

func (f field) load() *expr.Payload {
	return &expr.Payload{DestRegister: register, Base: f.base, Offset: f.offset, Len: f.len}
}

// match matches UDP from src to dst; port 0 is any.
func match(src, dst netip.AddrPort) []expr.Any {
	exprs := []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register}, equal([]byte{unix.IPPROTO_UDP})}
	for _, m := range []struct {
		field field
		value []byte
		skip  bool
	}{
		{sourceAddress, src.Addr().AsSlice(), false},
		{destinationAddress, dst.Addr().AsSlice(), false},
		{sourcePort, bigEndian(src.Port()), src.Port() == 0},
		{destinationPort, bigEndian(dst.Port()), dst.Port() == 0},
	} {
		if !m.skip {
			exprs = append(exprs, m.field.load(), equal(m.value))
		}
	}
	return exprs
}

func equal(value []byte) *expr.Cmp {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: value}
}

// translate gives the packet another port and leaves its addresses.
func translate(kind expr.NATType, port uint16) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: register, Data: bigEndian(port)},
		&expr.NAT{Type: kind, Family: unix.NFPROTO_IPV4, RegProtoMin: register, Specified: true},
	}
}

func bigEndian(port uint16) []byte { return binary.BigEndian.AppendUint16(nil, port) }

// installed is a rule as the kernel lists it.
type installed struct {
	chain    *nftables.Chain
	handle   uint64
	owner    string // empty for a rule that is not of this package
	untracks bool   // one of Untrack's
	rewrites bool   // a rewrite's outgoing rule, which tells the whole: Rule
	Rule
}

func (l layout) read(chain *nftables.Chain, r *nftables.Rule) installed {
	in := installed{chain: chain, handle: r.Handle}
	in.owner, _ = userdata.GetString(r.UserData, userdata.TypeComment)
	in.untracks = slices.ContainsFunc(r.Exprs, func(e expr.Any) bool {
		_, matchesSet := e.(*expr.Lookup)
		return matchesSet
	})
	if chain == l.outgoing {
		in.Rule, in.rewrites = readRewrite(r.Exprs)
		in.Owner = in.owner
	}
	return in
}

// readRewrite reads back what rewrite put into the outgoing chain.
func readRewrite(exprs []expr.Any) (Rule, bool) {
	values := map[field][]byte{}
	var loaded field
	var port []byte
	for _, e := range exprs {
		switch e := e.(type) {
		case *expr.Payload:
			loaded = field{e.Base, e.Offset, e.Len}
		case *expr.Cmp:
			values[loaded] = e.Data
		case *expr.Immediate:
			port = e.Data
		}
	}
	local, okLocal := readAddrPort(values[sourceAddress], values[sourcePort])
	peer, okPeer := readAddrPort(values[destinationAddress], values[destinationPort])
	if !okLocal || !okPeer || len(port) != 2 {
		return Rule{}, false
	}
	return Rule{Flow: Flow{Local: local, Peer: peer}, Port: binary.BigEndian.Uint16(port)}, true
}

func readAddrPort(addr, port []byte) (netip.AddrPort, bool) {
	a, ok := netip.AddrFromSlice(addr)
	if !ok || !a.Is4() || len(port) != 2 {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(port)), true
}
