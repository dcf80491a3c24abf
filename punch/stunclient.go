package punch

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/pion/stun/v4"
)

// pace is when a request is sent again, RFC 8489 section 6.2.1. The RFC asks
// for 500 ms at first where nothing is known of the path; a node asks one
// server, rarely, and a lost first packet should not cost half a second.
type pace struct {
	first, max time.Duration // the wait doubles from the one to the other
	requests   int
	last       time.Duration // the wait for an answer to the last request
}

var (
	// patient sends at 0, 0.1, 0.3, 0.7, 1.5 and 3.1 s and gives up at 4.7 s.
	patient = pace{100 * time.Millisecond, 1600 * time.Millisecond, 6, 1600 * time.Millisecond}
	// insistent is for an answer that a NAT may be expected to drop, where
	// silence must mean just that: at 20 % loss each way the eight tries, over
	// 1.3 s, fail once in 3,500 times. A round trip of up to 0.7 s loses none.
	insistent = pace{100 * time.Millisecond, 200 * time.Millisecond, 8, 700 * time.Millisecond}
)

// paddingText makes unauthenticated requests long enough for all the addresses
// that RFC 5780 puts into an answer: a server that will not be an amplifier
// leaves out what makes the answer longer than the request.
const paddingText = "bodkin NAT discovery (https://github.com/bodkin-net/bodkin)"

// Errors of a STUN transaction.
var (
	ErrTimeout      = errors.New("no answer")
	ErrUnauthorised = errors.New("credential not accepted")
	ErrIntegrity    = errors.New("answer is not authentic")
	ErrRejected     = errors.New("request rejected")
)

// STUNCredential is a short-term credential, RFC 8489 section 9.1. The zero
// value sends and expects no MESSAGE-INTEGRITY.
type STUNCredential struct {
	Username, Password string
}

// BindOptions alter a Binding request.
type BindOptions struct {
	Credential STUNCredential
	// ChangeAddr and ChangePort ask the server to answer from its other address
	// and from its other port: CHANGE-REQUEST, RFC 5780 section 7.2.
	ChangeAddr, ChangePort bool
	// ResponsePort asks the server to answer to this port of the address the
	// request came from, RFC 5780 section 7.5. 0 asks for nothing.
	ResponsePort uint16

	pace pace // patient unless set
}

// BindResult is the outcome of a Binding transaction.
type BindResult struct {
	// Mapped is where the server saw the request come from.
	Mapped netip.AddrPort
	// Origin is where the answer came from.
	Origin netip.AddrPort
	// Other is the server's other address and port (OTHER-ADDRESS, RFC 5780
	// section 7.4), or its other port on the address that was asked when it has
	// no other one. Zero when the server names none.
	Other netip.AddrPort
	// RTT is the round trip, 0 when a retransmission makes it ambiguous.
	RTT time.Duration
}

// Bind asks server for the mapped address of the base from: one Binding
// transaction with retransmissions, RFC 8489 section 6.2.1. It ends with
// ErrTimeout (also when ctx ends; then ctx's error is in the chain), and with
// ErrUnauthorised or ErrIntegrity when answers came but none was acceptable:
// unauthenticated answers are remembered, not believed (section 9.1.4).
func (p *Port) Bind(ctx context.Context, from, server netip.AddrPort, o BindOptions) (BindResult, error) {
	from, server = unmap(from), unmap(server)
	req, err := bindingRequest(o)
	if err != nil {
		return BindResult{}, fmt.Errorf("STUN %s: %w", server, err)
	}
	if o.pace == (pace{}) {
		o.pace = patient
	}
	answers := make(chan packet, o.pace.requests)
	p.expect(req.TransactionID, func(pk packet) {
		select {
		case answers <- pk:
		default:
		}
	})
	defer p.forget(req.TransactionID)

	fail := ErrTimeout
	timer := time.NewTimer(0)
	defer timer.Stop()
	rto, sent, lastSent := o.pace.first, 0, time.Time{}
	for {
		select {
		case <-ctx.Done():
			return BindResult{}, fmt.Errorf("STUN %s from %s: %w (%w)", server, from, fail, ctx.Err())
		case <-p.done:
			return BindResult{}, fmt.Errorf("STUN %s: port %w", server, ErrClosed)
		case <-timer.C:
			if sent == o.pace.requests {
				return BindResult{}, fmt.Errorf("STUN %s from %s: %w", server, from, fail)
			}
			if err := p.send(from, server, req.Raw); err != nil {
				return BindResult{}, fmt.Errorf("STUN: %w", err)
			}
			lastSent = time.Now()
			sent++
			if sent == o.pace.requests {
				rto = o.pace.last
			}
			timer.Reset(rto)
			rto = min(2*rto, o.pace.max)
		case a := <-answers:
			res, final, err := judge(a, from, server, o)
			if final && err == nil {
				if sent == 1 {
					res.RTT = time.Since(lastSent)
				}
				return res, nil
			}
			if final {
				return BindResult{}, fmt.Errorf("STUN %s: %w", server, err)
			}
			if err != nil {
				fail = err
			}
		}
	}
}

// Flags of CHANGE-REQUEST, RFC 5780 section 7.2.
const (
	changeAddr = 4
	changePort = 2
)

func (o BindOptions) change() byte {
	var flags byte
	if o.ChangeAddr {
		flags |= changeAddr
	}
	if o.ChangePort {
		flags |= changePort
	}
	return flags
}

func bindingRequest(o BindOptions) (*stun.Message, error) {
	set := []stun.Setter{stun.TransactionID, stun.BindingRequest}
	if flags := o.change(); flags != 0 {
		set = append(set, stun.RawAttribute{Type: stun.AttrChangeRequest, Value: []byte{0, 0, 0, flags}})
	}
	if o.ResponsePort != 0 {
		value := binary.BigEndian.AppendUint16(nil, o.ResponsePort)
		set = append(set, stun.RawAttribute{Type: stun.AttrResponsePort, Value: append(value, 0, 0)})
	}
	if o.Credential.Password != "" {
		set = append(set, stun.NewUsername(o.Credential.Username), stun.NewShortTermIntegrity(o.Credential.Password))
	} else {
		set = append(set, stun.NewSoftware(paddingText))
	}
	return stun.Build(append(set, stun.Fingerprint)...)
}

// from reports whether an answer may come from a: of the server's address, and
// port, what it was not asked to change.
func (o BindOptions) from(a, server netip.AddrPort) bool {
	return (o.ChangeAddr || a.Addr() == server.Addr()) && (o.change() != 0 || a == server)
}

// judge decides about one answer. When it is not final, the transaction goes
// on and err, if any, replaces ErrTimeout as the reason should it fail.
func judge(a packet, from, server netip.AddrPort, o BindOptions) (res BindResult, final bool, err error) {
	if a.local != from || !o.from(a.from, server) {
		return BindResult{}, false, nil
	}
	authentic := o.Credential.Password == "" || stun.NewShortTermIntegrity(o.Credential.Password).Check(a.msg) == nil
	if a.msg.Type.Class == stun.ClassErrorResponse {
		return BindResult{}, authentic, errorResponse(a.msg)
	}
	if !authentic {
		return BindResult{}, false, ErrIntegrity
	}
	mapped, err := mappedAddress(a.msg)
	if err != nil {
		return BindResult{}, true, fmt.Errorf("%w: %w", ErrRejected, err)
	}
	return BindResult{Mapped: mapped, Origin: a.from, Other: otherAddress(a.msg, server)}, true, nil
}

// otherAddress reads OTHER-ADDRESS. A server behind a port mapping names its
// inside addresses: only the port then is of use. So it is when RESPONSE-ORIGIN
// (RFC 5780 section 7.3) has the same address, which then is not another one.
func otherAddress(m *stun.Message, server netip.AddrPort) netip.AddrPort {
	var named stun.OtherAddress
	if named.GetFrom(m) != nil {
		return netip.AddrPort{}
	}
	other, ok := addrPort(named.IP, named.Port)
	if !ok || other.Port() == 0 || other.Addr().Is4() != server.Addr().Is4() {
		return netip.AddrPort{}
	}
	own := server.Addr()
	var origin stun.ResponseOrigin
	if origin.GetFrom(m) == nil {
		if at, ok := addrPort(origin.IP, origin.Port); ok {
			own = at.Addr()
		}
	}
	switch {
	case other.Addr() == own || other.Addr().IsPrivate() && !server.Addr().IsPrivate():
		return netip.AddrPortFrom(server.Addr(), other.Port())
	case !other.Addr().IsGlobalUnicast():
		return netip.AddrPort{}
	}
	return other
}

func errorResponse(m *stun.Message) error {
	var code stun.ErrorCodeAttribute
	if err := code.GetFrom(m); err != nil {
		return fmt.Errorf("%w: error response without a code", ErrRejected)
	}
	if code.Code == stun.CodeUnauthorized {
		return ErrUnauthorised
	}
	return fmt.Errorf("%w: %d %s", ErrRejected, code.Code, code.Reason)
}

func mappedAddress(m *stun.Message) (netip.AddrPort, error) {
	var xor stun.XORMappedAddress
	if err := xor.GetFrom(m); err != nil {
		return netip.AddrPort{}, fmt.Errorf("XOR-MAPPED-ADDRESS: %w", err)
	}
	mapped, ok := addrPort(xor.IP, xor.Port)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("XOR-MAPPED-ADDRESS: %s is no address", xor)
	}
	return mapped, nil
}

func addrPort(ip net.IP, port int) (netip.AddrPort, bool) {
	addr, ok := netip.AddrFromSlice(ip)
	if !ok || port < 0 || port > 0xFFFF {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(port)), true
}
