package punch

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/pion/stun/v4"
)

const (
	// firstRTO is the wait before the first retransmission. RFC 8489 section
	// 6.2.1 asks for 500 ms where nothing is known of the path; a node asks
	// one server, rarely, and a lost first packet should not cost half a second.
	firstRTO = 100 * time.Millisecond
	// maxRTO ends the doubling, so that the transaction stays below 5 s.
	maxRTO = 1600 * time.Millisecond
	// maxRequests: sent at 0, 0.1, 0.3, 0.7, 1.5 and 3.1 s, given up at 4.7 s.
	maxRequests = 6
)

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
	// ChangePort asks the server to answer from its other port: CHANGE-REQUEST,
	// RFC 5780 section 7.2.
	ChangePort bool
}

// BindResult is the outcome of a Binding transaction.
type BindResult struct {
	// Mapped is where the server saw the request come from.
	Mapped netip.AddrPort
	// Origin is where the answer came from.
	Origin netip.AddrPort
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
	answers := make(chan packet, maxRequests)
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
	rto, sent, lastSent := firstRTO, 0, time.Time{}
	for {
		select {
		case <-ctx.Done():
			return BindResult{}, fmt.Errorf("STUN %s from %s: %w (%w)", server, from, fail, ctx.Err())
		case <-p.done:
			return BindResult{}, fmt.Errorf("STUN %s: port %w", server, ErrClosed)
		case <-timer.C:
			if sent == maxRequests {
				return BindResult{}, fmt.Errorf("STUN %s from %s: %w", server, from, fail)
			}
			if err := p.send(from, server, req.Raw); err != nil {
				return BindResult{}, fmt.Errorf("STUN: %w", err)
			}
			lastSent = time.Now()
			sent++
			timer.Reset(rto)
			rto = min(2*rto, maxRTO)
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

func bindingRequest(o BindOptions) (*stun.Message, error) {
	set := []stun.Setter{stun.TransactionID, stun.BindingRequest}
	if o.ChangePort {
		set = append(set, stun.RawAttribute{Type: stun.AttrChangeRequest, Value: []byte{0, 0, 0, 2}})
	}
	if o.Credential.Password != "" {
		set = append(set, stun.NewUsername(o.Credential.Username), stun.NewShortTermIntegrity(o.Credential.Password))
	}
	return stun.Build(append(set, stun.Fingerprint)...)
}

// judge decides about one answer. When it is not final, the transaction goes
// on and err, if any, replaces ErrTimeout as the reason should it fail.
func judge(a packet, from, server netip.AddrPort, o BindOptions) (res BindResult, final bool, err error) {
	if a.local != from || a.from.Addr() != server.Addr() || (!o.ChangePort && a.from != server) {
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
	return BindResult{Mapped: mapped, Origin: a.from}, true, nil
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
	ip, ok := netip.AddrFromSlice(xor.IP)
	if !ok || xor.Port < 0 || xor.Port > 0xFFFF {
		return netip.AddrPort{}, fmt.Errorf("XOR-MAPPED-ADDRESS: %s is no address", xor)
	}
	return netip.AddrPortFrom(ip.Unmap(), uint16(xor.Port)), nil
}
