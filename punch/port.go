package punch

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/stun/v4"
)

const (
	// receiveMTU holds any UDP payload of an Ethernet path; STUN is far smaller.
	receiveMTU = 1500
	// readRetryWait keeps a reader from spinning while its interface is down.
	readRetryWait = 200 * time.Millisecond
)

// Errors of a Port.
var (
	ErrClosed    = errors.New("closed")
	ErrNoBase    = errors.New("no socket with this local address")
	ErrUfragUsed = errors.New("ufrag is in use")
	ErrNoTTL     = errors.New("socket cannot give a packet a time to live of its own")
)

// Port is the shared UDP port: one socket per local address (the bases of RFC
// 8445), which may come and go. It owns the sockets; one goroutine reads each of
// them and hands
//
//   - STUN responses to whoever sent the request, by transaction ID,
//   - STUN requests to the session whose ufrag begins the USERNAME.
//
// Both are keyed by what the packet says and never by its source: peers in
// different networks often have the same private address. Everything else is
// dropped. Writes go straight to the socket. All methods may be called
// concurrently; handlers run on the reader's goroutine and must not block.
type Port struct {
	log     *slog.Logger
	bases   atomic.Pointer[[]*base] // replaced, never changed, under changing
	done    chan struct{}
	closing sync.Once

	changing sync.Mutex // one Add, Remove or Close at a time

	packetsIn, packetsOut, bytesIn, bytesOut atomic.Uint64

	mu           sync.Mutex
	transactions map[transactionID]func(packet)
	sessions     map[string]func(packet)
}

// base is one socket, read by a goroutine of its own until done is closed; ended
// is closed when it has ended.
type base struct {
	local       netip.AddrPort
	conn        net.PacketConn
	done, ended chan struct{}
}

type transactionID = [stun.TransactionIDSize]byte

// packet is one decoded STUN message as it came in. Its message owns its bytes.
type packet struct {
	local, from netip.AddrPort
	msg         *stun.Message
}

// Traffic counts UDP payload bytes; add 28 (IPv4) or 48 (IPv6) for each packet
// to get bytes on the wire.
type Traffic struct {
	PacketsIn, PacketsOut, BytesIn, BytesOut uint64
}

// NewPort takes over conns, each bound to one specific local UDP address, and
// starts reading. On error conns stay the caller's.
func NewPort(conns []net.PacketConn, log *slog.Logger) (*Port, error) {
	p := &Port{
		log:          log,
		done:         make(chan struct{}),
		transactions: map[transactionID]func(packet){},
		sessions:     map[string]func(packet){},
	}
	p.bases.Store(new([]*base))
	var bases []*base
	for _, c := range conns {
		b, err := newBase(c, bases)
		if err != nil {
			return nil, err
		}
		bases = append(bases, b)
	}
	p.bases.Store(&bases)
	for _, b := range bases {
		go p.read(b)
	}
	return p, nil
}

// newBase checks a socket for use beside others.
func newBase(c net.PacketConn, others []*base) (*base, error) {
	udp, ok := c.LocalAddr().(*net.UDPAddr)
	if !ok {
		return nil, fmt.Errorf("local address %s is no UDP address", c.LocalAddr())
	}
	local := unmap(udp.AddrPort())
	if !local.IsValid() || local.Addr().IsUnspecified() {
		return nil, fmt.Errorf("local address %s: bind each socket to one specific address", local)
	}
	if slices.ContainsFunc(others, func(b *base) bool { return b.local == local }) {
		return nil, fmt.Errorf("local address %s is given twice", local)
	}
	return &base{local: local, conn: c, done: make(chan struct{}), ended: make(chan struct{})}, nil
}

// Add takes over one more socket, as NewPort does. Sessions that exist already
// make no use of it. On error it stays the caller's; ErrClosed after Close.
func (p *Port) Add(c net.PacketConn) error {
	p.changing.Lock()
	defer p.changing.Unlock()
	select {
	case <-p.done:
		return fmt.Errorf("port %w", ErrClosed)
	default:
	}
	old := *p.bases.Load()
	b, err := newBase(c, old)
	if err != nil {
		return err
	}
	bases := append(slices.Clone(old), b)
	p.bases.Store(&bases)
	go p.read(b)
	return nil
}

// Remove closes the socket with that local address, or returns ErrNoBase.
// Sessions can no longer send from there; other sockets do not notice.
func (p *Port) Remove(local netip.AddrPort) error {
	p.changing.Lock()
	defer p.changing.Unlock()
	b, err := p.base(local)
	if err != nil {
		return err
	}
	bases := slices.DeleteFunc(slices.Clone(*p.bases.Load()), func(o *base) bool { return o == b })
	p.bases.Store(&bases)
	return b.close()
}

// close ends the reader, and waits for it.
func (b *base) close() error {
	close(b.done)
	err := b.conn.Close()
	<-b.ended
	return err
}

// Close closes the sockets and waits for the readers. Sessions should be closed
// first; those that are not can no longer send or receive.
func (p *Port) Close() error {
	p.changing.Lock()
	defer p.changing.Unlock()
	var errs []error
	p.closing.Do(func() {
		close(p.done)
		for _, b := range *p.bases.Load() {
			errs = append(errs, b.close())
		}
	})
	return errors.Join(errs...)
}

// Local lists the bases in the order they were given.
func (p *Port) Local() []netip.AddrPort {
	var out []netip.AddrPort
	for _, b := range *p.bases.Load() {
		out = append(out, b.local)
	}
	return out
}

// Traffic returns what passed the sockets so far.
func (p *Port) Traffic() Traffic {
	return Traffic{
		PacketsIn: p.packetsIn.Load(), PacketsOut: p.packetsOut.Load(),
		BytesIn: p.bytesIn.Load(), BytesOut: p.bytesOut.Load(),
	}
}

func (p *Port) base(local netip.AddrPort) (*base, error) {
	for _, b := range *p.bases.Load() {
		if b.local == local {
			return b, nil
		}
	}
	return nil, fmt.Errorf("%w: %s", ErrNoBase, local)
}

func (p *Port) send(local, to netip.AddrPort, payload []byte) error {
	b, err := p.base(local)
	if err != nil {
		return err
	}
	if err := writeTo(b.conn, payload, to); err != nil {
		return fmt.Errorf("send from %s to %s: %w", local, to, err)
	}
	p.count(payload)
	return nil
}

// sendTTL is send with a time to live (hop limit), or ErrNoTTL.
func (p *Port) sendTTL(local, to netip.AddrPort, payload []byte, ttl int) error {
	b, err := p.base(local)
	if err != nil {
		return err
	}
	c, ok := b.conn.(ttlConn)
	if !ok {
		return fmt.Errorf("%s: %w", local, ErrNoTTL)
	}
	if _, err := c.WriteToTTL(payload, to, ttl); err != nil {
		return fmt.Errorf("send from %s to %s with TTL %d: %w", local, to, ttl, err)
	}
	p.count(payload)
	return nil
}

func (p *Port) count(payload []byte) {
	p.packetsOut.Add(1)
	p.bytesOut.Add(uint64(len(payload)))
}

// expect hands every response to transaction id to handle until forget.
func (p *Port) expect(id transactionID, handle func(packet)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.transactions[id] = handle
}

func (p *Port) forget(ids ...transactionID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range ids {
		delete(p.transactions, id)
	}
}

// attach hands every request for ufrag to handle until detach.
func (p *Port) attach(ufrag string, handle func(packet)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.sessions[ufrag]; ok {
		return fmt.Errorf("%w: %q", ErrUfragUsed, ufrag)
	}
	p.sessions[ufrag] = handle
	return nil
}

func (p *Port) detach(ufrag string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.sessions, ufrag)
}

func (p *Port) read(b *base) {
	defer close(b.ended)
	buf := make([]byte, receiveMTU)
	for failing := false; ; {
		n, from, err := readFrom(b.conn, buf)
		select {
		case <-b.done:
			return
		default:
		}
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				p.log.Error("socket closed by somebody else", "local", b.local)
				return
			}
			if !failing {
				p.log.Warn("cannot read", "local", b.local, "err", err)
			}
			failing = true
			select {
			case <-b.done:
				return
			case <-time.After(readRetryWait):
			}
			continue
		}
		failing = false
		p.packetsIn.Add(1)
		p.bytesIn.Add(uint64(n))
		p.dispatch(b.local, unmap(from), buf[:n])
	}
}

func (p *Port) dispatch(local, from netip.AddrPort, payload []byte) {
	if !stun.IsMessage(payload) {
		return
	}
	msg := &stun.Message{Raw: append([]byte(nil), payload...)}
	if err := msg.Decode(); err != nil {
		p.log.Debug("not STUN", "from", from, "err", err)
		return
	}
	if handle := p.handler(msg); handle != nil {
		handle(packet{local: local, from: from, msg: msg})
	}
}

func (p *Port) handler(msg *stun.Message) func(packet) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch msg.Type.Class {
	case stun.ClassSuccessResponse, stun.ClassErrorResponse:
		return p.transactions[msg.TransactionID]
	case stun.ClassRequest:
		// RFC 8445 section 7.2.2: USERNAME is "receiver's ufrag:sender's ufrag".
		username, _ := msg.Get(stun.AttrUsername)
		ufrag, _, _ := strings.Cut(string(username), ":")
		return p.sessions[ufrag]
	default:
		return nil
	}
}

// addrPortConn is what a socket offers that needs no net.Addr.
type addrPortConn interface {
	ReadFromAddrPort([]byte) (int, netip.AddrPort, error)
	WriteToAddrPort([]byte, netip.AddrPort) (int, error)
}

// ttlConn is a socket that can give a single packet a time to live.
type ttlConn interface {
	WriteToTTL(b []byte, to netip.AddrPort, ttl int) (int, error)
}

func readFrom(c net.PacketConn, buf []byte) (int, netip.AddrPort, error) {
	if ap, ok := c.(addrPortConn); ok {
		return ap.ReadFromAddrPort(buf)
	}
	n, addr, err := c.ReadFrom(buf)
	if err != nil {
		return 0, netip.AddrPort{}, err
	}
	udp, ok := addr.(*net.UDPAddr)
	if !ok {
		return 0, netip.AddrPort{}, fmt.Errorf("source %s is no UDP address", addr)
	}
	return n, udp.AddrPort(), nil
}

func writeTo(c net.PacketConn, payload []byte, to netip.AddrPort) error {
	var err error
	if ap, ok := c.(addrPortConn); ok {
		_, err = ap.WriteToAddrPort(payload, to)
	} else {
		_, err = c.WriteTo(payload, net.UDPAddrFromAddrPort(to))
	}
	return err
}
