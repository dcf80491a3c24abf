package portmap

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"
)

// The Port Control Protocol, RFC 6887. Every packet starts with 24 bytes:
//
//	request:  version, opcode, 2 reserved, lifetime (4), client address (16)
//	reply:    version, opcode|128, reserved, result, lifetime (4), epoch (4), 12 reserved
//
// The MAP opcode's 36 bytes follow (section 11.1), the same both ways:
//
//	nonce (12), protocol, 3 reserved, inside port (2), outside port (2), outside address (16)
const (
	pcpVersion   = 2
	pcpHeader    = 24
	pcpMapLength = pcpHeader + 36
	opAnnounce   = 0
	opMap        = 1
	replyBit     = 0x80
	protocolUDP  = 17
	// Results, section 7.4.
	pcpUnsupported = 1 // UNSUPP_VERSION
	pcpNoOpcode    = 4 // UNSUPP_OPCODE
)

// nonce authenticates a mapping's owner, section 11.1.
type nonce [12]byte

// newNonce makes the nonce for one router, section 11.2: not to be guessed,
// and another one for each router.
func newNonce(secret []byte, router netip.Addr) (n nonce) {
	if len(secret) == 0 {
		_, _ = rand.Read(n[:]) // never fails
		return n
	}
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte("bodkin PCP mapping nonce"))
	mac.Write(router.AsSlice())
	copy(n[:], mac.Sum(nil))
	return n
}

// pcpMap is the body of the MAP opcode.
type pcpMap struct {
	nonce   nonce
	inside  uint16
	outside netip.AddrPort
}

// pcpAnnounce asks for nothing but the epoch, section 14.1.
func pcpAnnounce(client netip.Addr) []byte { return pcpRequest(opAnnounce, 0, client) }

func pcpMapRequest(client netip.Addr, lifetime time.Duration, m pcpMap) []byte {
	b := append(pcpRequest(opMap, lifetime, client), m.nonce[:]...)
	b = append(b, protocolUDP, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, m.inside)
	b = binary.BigEndian.AppendUint16(b, m.outside.Port())
	addr := netip.IPv4Unspecified()
	if m.outside.Addr().Is4() {
		addr = m.outside.Addr()
	}
	in6 := addr.As16()
	return append(b, in6[:]...)
}

func pcpRequest(opcode byte, lifetime time.Duration, client netip.Addr) []byte {
	b := []byte{pcpVersion, opcode, 0, 0}
	b = binary.BigEndian.AppendUint32(b, uint32(lifetime/time.Second))
	addr := client.As16()
	return append(b, addr[:]...)
}

// pcpReply is a reply that is one, of success or failure.
type pcpReply struct {
	opcode   byte
	result   resultCode
	lifetime time.Duration
	epoch    uint32
	pcpMap   // of opMap
}

// parsePCP decodes a reply. Its error is errNonsense for all that no PCP server
// sends, section 8.3.
func parsePCP(b []byte) (pcpReply, error) {
	switch {
	case len(b) >= 4 && b[0] == natpmpVersion && b[1]&replyBit != 0 && b[3] == pcpUnsupported:
		// A server of NAT-PMP alone, RFC 6887 appendix A.
		return pcpReply{}, fmt.Errorf("%w: the router speaks NAT-PMP, not PCP", ErrRefused)
	case len(b) < pcpHeader || len(b) > maxReply || len(b)%4 != 0:
		return pcpReply{}, fmt.Errorf("%w: %d bytes", errNonsense, len(b))
	case b[1]&replyBit == 0:
		return pcpReply{}, fmt.Errorf("%w: a request", errNonsense)
	case b[0] != pcpVersion && b[3] == pcpUnsupported:
		return pcpReply{}, fmt.Errorf("%w: the router speaks version %d of PCP, not %d", ErrRefused, b[0], pcpVersion)
	case b[0] != pcpVersion:
		return pcpReply{}, fmt.Errorf("%w: version %d", errNonsense, b[0])
	}
	r := pcpReply{
		opcode: b[1] &^ replyBit, result: resultCode(b[3]),
		lifetime: seconds(binary.BigEndian.Uint32(b[4:])), epoch: binary.BigEndian.Uint32(b[8:]),
	}
	if r.opcode != opMap {
		return r, nil
	}
	if len(b) < pcpMapLength || b[pcpHeader+12] != protocolUDP {
		return pcpReply{}, fmt.Errorf("%w: MAP of %d bytes", errNonsense, len(b))
	}
	body := b[pcpHeader:]
	copy(r.nonce[:], body)
	r.inside = binary.BigEndian.Uint16(body[16:])
	r.outside = netip.AddrPortFrom(netip.AddrFrom16([16]byte(body[20:36])).Unmap(), binary.BigEndian.Uint16(body[18:]))
	return r, nil
}

func seconds(n uint32) time.Duration { return time.Duration(n) * time.Second }

// pcp speaks PCP.
type pcp struct {
	site
	epoch epoch
}

func findPCP(ctx context.Context, s site) (mapper, error) {
	p := &pcp{site: s}
	return p, p.check(ctx)
}

// ask sends one request and takes the reply to its opcode.
func (p *pcp) ask(ctx context.Context, request []byte, matches func(pcpReply) bool) (reply pcpReply, err error) {
	err = p.exchange(ctx, request, func(b []byte) error {
		r, err := parsePCP(b)
		if err != nil {
			return err
		}
		if r.opcode != request[1] || !matches(r) {
			return errNonsense
		}
		reply = r
		return r.result.err("PCP")
	})
	return reply, err
}

func (p *pcp) check(ctx context.Context) error {
	r, err := p.ask(ctx, pcpAnnounce(p.source), func(pcpReply) bool { return true })
	if err != nil && r.result != pcpNoOpcode { // which tells the epoch as well
		return err
	}
	return p.epoch.observe(time.Now(), r.epoch)
}

func (p *pcp) request(ctx context.Context, suggested netip.AddrPort) (Mapping, error) {
	m := pcpMap{p.nonce, p.inside, suggested}
	r, err := p.ask(ctx, pcpMapRequest(p.source, requestedLifetime, m), func(r pcpReply) bool {
		return r.nonce == p.nonce && r.inside == p.inside
	})
	if err != nil {
		return Mapping{}, err
	}
	// That the epoch jumped tells nothing here: the mapping is a new one now.
	_ = p.epoch.observe(time.Now(), r.epoch)
	return granted("PCP", r.outside, r.lifetime)
}

// release asks for a lifetime of zero, RFC 6887 section 15.1.
func (p *pcp) release(ctx context.Context) error {
	_, err := p.ask(ctx, pcpMapRequest(p.source, 0, pcpMap{nonce: p.nonce, inside: p.inside}), func(r pcpReply) bool {
		return r.nonce == p.nonce && r.inside == p.inside
	})
	return err
}
