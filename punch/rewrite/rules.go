package rewrite

import (
	"encoding/binary"
	"net/netip"

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

// add queues the rules of one rewrite. Together they let conntrack make one
// kind of entry only, whichever packet comes first: with the outgoing rule
// alone, one of the peer's makes an entry that occupies the port. What would
// make another is kept out of conntrack: a socket that still sends from the
// port itself, and the peer's packets to the shared port, which come through
// the mapping that had been there before.
func (l layout) add(c *nftables.Conn, r Rule) {
	hit := netip.AddrPortFrom(r.Flow.Local.Addr(), r.Port)
	notrack := []expr.Any{&expr.Notrack{}}
	for _, rule := range []struct {
		chain         *nftables.Chain
		match, action []expr.Any
	}{
		{l.outgoing, match(r.Flow.Local, r.Flow.Peer), translate(expr.NATTypeSourceNAT, r.Port)},
		{l.incoming, match(r.Flow.Peer, hit), translate(expr.NATTypeDestNAT, r.Flow.Local.Port())},
		{l.untrackedOut, match(hit, r.Flow.Peer), notrack},
		{l.untrackedIn, match(r.Flow.Peer, r.Flow.Local), notrack},
	} {
		c.AddRule(&nftables.Rule{
			Table:    l.table,
			Chain:    rule.chain,
			Exprs:    append(rule.match, rule.action...),
			UserData: userdata.AppendString(nil, userdata.TypeComment, r.Owner),
		})
	}
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

// match matches UDP from src to dst.
func match(src, dst netip.AddrPort) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register}, equal([]byte{unix.IPPROTO_UDP}),
		sourceAddress.load(), equal(src.Addr().AsSlice()),
		destinationAddress.load(), equal(dst.Addr().AsSlice()),
		sourcePort.load(), equal(bigEndian(src.Port())),
		destinationPort.load(), equal(bigEndian(dst.Port())),
	}
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
	rewrites bool   // a rewrite's outgoing rule, which tells the whole: Rule
	Rule
}

func (l layout) read(chain *nftables.Chain, r *nftables.Rule) installed {
	in := installed{chain: chain, handle: r.Handle}
	in.owner, _ = userdata.GetString(r.UserData, userdata.TypeComment)
	if chain == l.outgoing {
		in.Rule, in.rewrites = readRewrite(r.Exprs)
		in.Owner = in.owner
	}
	return in
}

// readRewrite reads back what add put into the outgoing chain.
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
