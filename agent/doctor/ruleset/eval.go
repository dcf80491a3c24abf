package ruleset

import (
	"bytes"
	"encoding/binary"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Fate is what becomes of a packet.
type Fate int

// Fates.
const (
	Passes Fate = iota
	// Perhaps: a rule that could drop or rewrite it asks for what is not known here.
	Perhaps
	Dropped
	Rewritten // its address or port is translated
)

// Outcome is a packet's fate at a hook, and where it is decided. Place is zero
// for a packet that passes.
type Outcome struct {
	Fate  Fate
	Place Place
}

// answer is whether something matches.
type answer int

const (
	no answer = iota
	perhaps
	yes
)

func is(b bool) answer {
	if b {
		return yes
	}
	return no
}

// and of two answers is the less certain one.
func (a answer) and(b answer) answer { return min(a, b) }

func (a answer) not() answer { return yes - a }

// maxDepth is how deep chains may jump; the kernel's own bound is 16.
const maxDepth = 16

// At follows the packet through all base chains of a hook, such as
// nftables.ChainHookInput.
func (r *Ruleset) At(hook *nftables.ChainHook, p Packet) Outcome {
	family := nftables.TableFamilyIPv6
	if p.Dst.Addr().Is4() {
		family = nftables.TableFamilyIPv4
	}
	var unsure Outcome
	for _, c := range r.bases {
		if c.hook != *hook || c.key.family != family && c.key.family != nftables.TableFamilyINet {
			continue
		}
		w := walk{rules: r, packet: p}
		end := w.through(c, 0)
		if end == falls && c.drops {
			w.drop(c, 0, yes)
		}
		switch w.outcome.Fate {
		case Dropped, Rewritten:
			return w.outcome
		case Perhaps:
			unsure = w.outcome
		}
	}
	return unsure
}

// ending is how a packet leaves a chain.
type ending int

const (
	falls ending = iota // off its end, or by return
	decided
)

// walk is the way of a packet through one base chain.
type walk struct {
	rules  *Ruleset
	packet Packet
	// accepted: it may have passed already, so nothing that comes is sure.
	accepted bool
	outcome  Outcome
}

func (w *walk) drop(c *chain, handle uint64, sure answer) {
	w.end(Dropped, c, handle, sure)
}

func (w *walk) end(fate Fate, c *chain, handle uint64, sure answer) {
	if sure != yes || w.accepted {
		fate = Perhaps
	}
	if w.outcome.Fate == Passes || fate > Perhaps {
		w.outcome = Outcome{fate, c.place(handle)}
	}
}

// through goes through the rules of a chain.
func (w *walk) through(c *chain, depth int) ending {
	if depth > maxDepth {
		return falls
	}
	sure := yes // perhaps, once it may have returned
	for _, x := range c.rules {
		v, fate, matches := w.evaluate(c, x)
		switch {
		case matches == no || v == nil && fate == Passes:
			continue
		case v != nil && v.Kind == expr.VerdictReturn && matches == yes:
			return falls
		case v != nil && v.Kind == expr.VerdictReturn:
			sure = perhaps
			continue
		}
		matches = matches.and(sure)
		if w.act(c, x.handle, v, fate, matches, depth) == decided {
			return decided
		}
		if v != nil && v.Kind == expr.VerdictGoto && matches == yes {
			return falls
		}
	}
	return falls
}

// evaluate is what a rule does, and whether it matches.
func (w *walk) evaluate(c *chain, x rule) (*expr.Verdict, Fate, answer) {
	regs, matches := registers{}, yes
	for _, e := range x.exprs {
		v, fate := w.step(c, &regs, e, &matches)
		if matches == no || v != nil || fate != Passes {
			return v, fate, matches
		}
	}
	return nil, Passes, matches
}

// act does what a rule orders, as far as it is sure that it matches.
func (w *walk) act(c *chain, handle uint64, v *expr.Verdict, fate Fate, matches answer, depth int) ending {
	if v == nil {
		w.end(fate, c, handle, matches)
		return is(matches == yes).ending()
	}
	switch v.Kind {
	case expr.VerdictDrop:
		w.end(Dropped, c, handle, matches)
		return is(matches == yes).ending()
	case expr.VerdictAccept, expr.VerdictQueue, expr.VerdictStop:
		if matches == yes {
			return decided
		}
		w.accepted = true
	case expr.VerdictJump, expr.VerdictGoto:
		return w.jump(c, v.Chain, matches, depth)
	}
	return falls
}

func (a answer) ending() ending {
	if a == yes {
		return decided
	}
	return falls
}

// jump goes into another chain of the table. If it is not sure that the packet
// gets there, nothing in it is sure.
func (w *walk) jump(c *chain, name string, matches answer, depth int) ending {
	to := w.rules.chains[chainKey{c.key.family, c.key.table, name}]
	if to == nil {
		return falls
	}
	if matches == yes {
		return w.through(to, depth+1)
	}
	aside := walk{rules: w.rules, packet: w.packet}
	end := aside.through(to, depth+1)
	switch {
	case aside.outcome.Fate != Passes:
		if w.outcome.Fate == Passes {
			w.outcome = Outcome{Perhaps, aside.outcome.Place}
		}
	case end == decided:
		w.accepted = true
	}
	w.accepted = w.accepted || aside.accepted
	return falls
}

// step executes one expression of a rule: it narrows matches, or is what the rule
// does in the end.
func (w *walk) step(c *chain, regs *registers, e expr.Any, matches *answer) (*expr.Verdict, Fate) {
	switch e := e.(type) {
	case *expr.Verdict:
		return e, Passes
	case *expr.Reject:
		return nil, Dropped
	case *expr.Masq, *expr.NAT, *expr.Redir:
		return nil, Rewritten
	case *expr.Target:
		return nil, targetFate(e.Name)
	case *expr.Lookup:
		v, a := w.lookup(c, regs, e)
		*matches = matches.and(a)
		return v, Passes
	default:
		*matches = matches.and(w.match(regs, e))
		return nil, Passes
	}
}

// targetFate is what an xtables target does, of those that end a rule.
func targetFate(name string) Fate {
	switch name {
	case "REJECT", "DROP":
		return Dropped
	case "MASQUERADE", "SNAT", "DNAT", "REDIRECT", "NETMAP", "TPROXY":
		return Rewritten
	}
	return Passes
}

// lookup asks a set, or a verdict map.
func (w *walk) lookup(c *chain, regs *registers, e *expr.Lookup) (*expr.Verdict, answer) {
	s := w.rules.sets[chainKey{c.key.family, c.key.table, e.SetName}]
	if s == nil || len(s.elements) > 0 && !regs.known(e.SourceRegister, len(s.elements[0].Key)) {
		return nil, perhaps
	}
	element, found := s.find(regs, e.SourceRegister)
	switch {
	case s.isMap && found == yes && e.DestRegister == verdictRegister:
		return verdictOf(element.Val), yes
	case s.isMap && found == yes:
		regs.set(e.DestRegister, element.Val)
		return nil, yes
	}
	if e.Invert {
		found = found.not()
	}
	return nil, found
}

// verdictRegister is where a verdict map's answer goes.
const verdictRegister = 0

// Attributes of a verdict, and the bits of their type that count.
const (
	verdictCode  = 1
	verdictChain = 2
	attributeBit = 0x3fff
)

// verdictOf reads the netlink attributes of a verdict map's element, which the
// library leaves as they are.
func verdictOf(b []byte) *expr.Verdict {
	v := &expr.Verdict{Kind: expr.VerdictContinue}
	const header = 4
	for len(b) >= header {
		n := int(binary.NativeEndian.Uint16(b))
		if n < header || n > len(b) {
			break
		}
		value := b[header:n]
		switch kind := binary.NativeEndian.Uint16(b[2:]) & attributeBit; {
		case kind == verdictCode && len(value) >= 4:
			v.Kind = expr.VerdictKind(int32(binary.BigEndian.Uint32(value)))
		case kind == verdictChain:
			v.Chain = string(bytes.TrimRight(value, "\x00"))
		}
		b = b[min(len(b), (n+3)&^3):]
	}
	return v
}

// find looks for what is in a register. An interval set holds where its intervals
// begin, and where they have ended.
func (s *set) find(regs *registers, register uint32) (nftables.SetElement, answer) {
	if s.interval && s.concatenated {
		return nftables.SetElement{}, perhaps
	}
	var best nftables.SetElement
	for _, e := range s.elements {
		is := regs.get(register, len(e.Key))
		switch {
		case !s.interval && bytes.Equal(is, e.Key):
			return e, yes
		case s.interval && bytes.Compare(e.Key, is) <= 0 && bytes.Compare(e.Key, best.Key) >= 0:
			// One interval may end where the next one begins.
			if !e.IntervalEnd || !bytes.Equal(e.Key, best.Key) {
				best = e
			}
		}
	}
	return best, is(s.interval && best.Key != nil && !best.IntervalEnd)
}

// registers are netfilter's: four of 16 bytes, or sixteen of 4, in one place.
type registers struct {
	data  [64]byte
	valid [64]bool
}

// first is a register's first byte, -1 for one that there is not.
func first(register uint32) int {
	switch {
	case register >= 1 && register <= 4:
		return int(register-1) * 16
	case register >= 8 && register < 24:
		return int(register-8) * 4
	}
	return -1
}

func (r *registers) set(register uint32, b []byte) {
	at := first(register)
	if at < 0 {
		return
	}
	if b == nil { // not known
		clear(r.valid[at:])
		return
	}
	copy(r.data[at:], b)
	for i := at; i < min(at+(len(b)+3)/4*4, len(r.valid)); i++ {
		r.valid[i] = true
		if i >= at+len(b) {
			r.data[i] = 0
		}
	}
}

func (r *registers) known(register uint32, n int) bool {
	at := first(register)
	return at >= 0 && at+n <= len(r.valid) && !slices.Contains(r.valid[at:at+n], false)
}

// get is the content of a known register.
func (r *registers) get(register uint32, n int) []byte {
	at := first(register)
	if at < 0 || at+n > len(r.data) {
		return nil
	}
	return r.data[at : at+n]
}
