package portmap

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"
)

// NAT-PMP, RFC 6886 section 3. All packets start with version and opcode.
//
//	address request:  nothing more
//	map request:      2 reserved, inside port (2), outside port (2), lifetime (4)
//	address reply:    result (2), epoch (4), outside address (4)
//	map reply:        result (2), epoch (4), inside port (2), outside port (2), lifetime (4)
const (
	natpmpVersion  = 0
	opAddress      = 0
	opMapUDP       = 1
	natpmpHeader   = 8 // of a reply
	addressReply   = 12
	mapReplyLength = 16
)

func natpmpAddressRequest() []byte { return []byte{natpmpVersion, opAddress} }

func natpmpMapRequest(inside, outside uint16, lifetime time.Duration) []byte {
	b := []byte{natpmpVersion, opMapUDP, 0, 0}
	b = binary.BigEndian.AppendUint16(b, inside)
	b = binary.BigEndian.AppendUint16(b, outside)
	return binary.BigEndian.AppendUint32(b, uint32(lifetime/time.Second))
}

// natpmpReply is a reply that is one, of success or failure.
type natpmpReply struct {
	opcode byte
	result resultCode
	epoch  uint32
	addr   netip.Addr // of opAddress
	// Of opMapUDP.
	inside, outside uint16
	lifetime        time.Duration
}

// parseNATPMP decodes a reply. Its error is errNonsense for all that no
// NAT-PMP server sends. Of a failure nothing but the code is looked at: some
// servers leave out the rest.
func parseNATPMP(b []byte) (natpmpReply, error) {
	if len(b) < natpmpHeader || b[0] != natpmpVersion || b[1]&replyBit == 0 {
		return natpmpReply{}, fmt.Errorf("%w: no reply of version %d in %d bytes", errNonsense, natpmpVersion, len(b))
	}
	r := natpmpReply{
		opcode: b[1] &^ replyBit, result: resultCode(binary.BigEndian.Uint16(b[2:])),
		epoch: binary.BigEndian.Uint32(b[4:]),
	}
	switch {
	case r.result != 0:
	case r.opcode == opAddress && len(b) == addressReply:
		r.addr = netip.AddrFrom4([4]byte(b[8:12]))
	case r.opcode == opMapUDP && len(b) == mapReplyLength:
		r.inside, r.outside = binary.BigEndian.Uint16(b[8:]), binary.BigEndian.Uint16(b[10:])
		r.lifetime = seconds(binary.BigEndian.Uint32(b[12:]))
	default:
		return natpmpReply{}, fmt.Errorf("%w: opcode %d in %d bytes", errNonsense, r.opcode, len(b))
	}
	return r, nil
}

// natpmp speaks NAT-PMP.
type natpmp struct {
	site
	epoch   epoch
	outside netip.Addr // the router's address when it was last asked
}

func findNATPMP(ctx context.Context, s site) (mapper, error) {
	n := &natpmp{site: s}
	return n, n.learnAddress(ctx)
}

// ask sends one request and takes the reply to its opcode.
func (n *natpmp) ask(ctx context.Context, request []byte, matches func(natpmpReply) bool) (reply natpmpReply, err error) {
	err = n.exchange(ctx, request, func(b []byte) error {
		r, err := parseNATPMP(b)
		if err != nil {
			return err
		}
		if r.opcode != request[1] || r.result == 0 && !matches(r) {
			return errNonsense
		}
		reply = r
		return r.result.err("NAT-PMP")
	})
	return reply, err
}

func (n *natpmp) learnAddress(ctx context.Context) error {
	r, err := n.ask(ctx, natpmpAddressRequest(), func(natpmpReply) bool { return true })
	if err != nil {
		return err
	}
	n.outside = r.addr
	return n.epoch.observe(time.Now(), r.epoch)
}

func (n *natpmp) check(ctx context.Context) error {
	before := n.outside
	if err := n.learnAddress(ctx); err != nil {
		return err
	}
	if n.outside != before {
		return fmt.Errorf("%w: the router's address changed from %s to %s", errLost, before, n.outside)
	}
	return nil
}

func (n *natpmp) request(ctx context.Context, suggested netip.AddrPort) (Mapping, error) {
	r, err := n.askToMap(ctx, suggested.Port(), requestedLifetime)
	if err != nil {
		return Mapping{}, err
	}
	_ = n.epoch.observe(time.Now(), r.epoch) // the mapping is a new one now
	if err := n.learnAddress(ctx); err != nil {
		return Mapping{}, err
	}
	return granted("NAT-PMP", netip.AddrPortFrom(n.outside, r.outside), r.lifetime)
}

// release asks for a lifetime of zero, RFC 6886 section 3.4.
func (n *natpmp) release(ctx context.Context) error {
	_, err := n.askToMap(ctx, 0, 0)
	return err
}

func (n *natpmp) askToMap(ctx context.Context, outside uint16, lifetime time.Duration) (natpmpReply, error) {
	return n.ask(ctx, natpmpMapRequest(n.inside, outside, lifetime), func(r natpmpReply) bool { return r.inside == n.inside })
}
