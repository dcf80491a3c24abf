package lab

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// mtu is Ethernet's, on every link of the lab.
const mtu = 1500

// Link is the quality of one attachment to the internet, the same in both
// directions. A packet between two attachments passes both their links: the
// delays add up and it may be lost on either.
type Link struct {
	Delay  time.Duration // one way
	Jitter time.Duration // each packet waits up to this much longer, evenly spread; it may overtake
	Loss   float64       // the probability that a packet is lost, 0 to 1
}

func (l Link) delay() time.Duration {
	if l.Jitter <= 0 {
		return l.Delay
	}
	return l.Delay + rand.N(l.Jitter)
}

func (l Link) loses() bool { return l.Loss > 0 && rand.Float64() < l.Loss }

// Traffic counts the IP packets and bytes (headers included) that crossed one
// attachment. Sent packets count even if the internet then lost them.
type Traffic struct {
	SentPackets, SentBytes         uint64
	ReceivedPackets, ReceivedBytes uint64
}

// internet is the way between all public addresses: it reads packets from TUN
// devices and writes each to the device that owns its destination. It stands
// for hops routers in a row: the one that takes the last of a packet's TTL
// answers so (ICMP time exceeded), from an address of its own and as often as
// it is asked. What cannot be delivered for another reason vanishes.
type internet struct {
	hops    uint8
	queue   *delayQueue
	readers sync.WaitGroup
	tracer  atomic.Pointer[tracer] // nil when nobody looks

	mu          sync.RWMutex
	table       []destination // longest prefix first
	attachments []*attachment
	broken      map[path]bool
	closed      bool
}

// path is the way from one attachment to another.
type path struct{ from, to *attachment }

type destination struct {
	prefix netip.Prefix
	via    *attachment
}

// attachment is one TUN device. Its reader goroutine belongs to the internet.
type attachment struct {
	name string // of the host or router
	tun  *os.File
	link atomic.Pointer[Link]
	down atomic.Bool

	sentPackets, sentBytes         atomic.Uint64
	receivedPackets, receivedBytes atomic.Uint64
}

func newInternet(hops uint8) *internet {
	return &internet{hops: hops, queue: newDelayQueue(), broken: make(map[path]bool)}
}

// attach takes over tun, which close closes.
func (n *internet) attach(name string, tun *os.File) (*attachment, error) {
	a := &attachment{name: name, tun: tun}
	a.link.Store(&Link{})
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		tun.Close()
		return nil, ErrClosed
	}
	n.attachments = append(n.attachments, a)
	n.readers.Go(func() { n.read(a) })
	return a, nil
}

// announce makes prefix reachable through a.
func (n *internet) announce(prefix netip.Prefix, a *attachment) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, d := range n.table {
		if d.prefix == prefix {
			return fmt.Errorf("announce %s: %w", prefix, ErrAddressTaken)
		}
	}
	n.table = append(n.table, destination{prefix, a})
	slices.SortStableFunc(n.table, func(x, y destination) int { return cmp.Compare(y.prefix.Bits(), x.prefix.Bits()) })
	return nil
}

func (n *internet) withdraw(prefix netip.Prefix) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.table = slices.DeleteFunc(n.table, func(d destination) bool { return d.prefix == prefix })
}

func (n *internet) lookup(addr netip.Addr) *attachment {
	n.mu.RLock()
	defer n.mu.RUnlock()
	for _, d := range n.table {
		if d.prefix.Contains(addr) {
			return d.via
		}
	}
	return nil
}

func (n *internet) setPath(a, b *attachment, open bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range []path{{a, b}, {b, a}} {
		if open {
			delete(n.broken, p)
		} else {
			n.broken[p] = true
		}
	}
}

func (n *internet) isBroken(p path) bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.broken[p]
}

// read forwards what a sends until its device is closed.
func (n *internet) read(a *attachment) {
	buf := make([]byte, mtu+4)
	for {
		size, err := a.tun.Read(buf)
		if err != nil {
			return
		}
		a.sentPackets.Add(1)
		a.sentBytes.Add(uint64(size))
		n.forward(a, buf[:size])
	}
}

// forward sends a packet on its way, in place.
func (n *internet) forward(from *attachment, packet []byte) {
	h, ok := parse(packet)
	if !ok {
		return
	}
	to := n.lookup(h.dst)
	t := n.tracer.Load()
	if t == nil {
		n.send(from, to, h, packet)
		return
	}
	p := describe(h, len(packet))
	p.From = from.name
	if to != nil {
		p.To = to.name
	}
	t.pass(p, func() Fate { return n.send(from, to, h, packet) })
}

func (n *internet) send(from, to *attachment, h header, packet []byte) Fate {
	out := from.link.Load()
	if from.down.Load() || out.loses() {
		return Lost
	}
	if h.ttl <= n.hops {
		n.expire(from, h, packet)
		return Expired
	}
	if to == nil {
		return NoRoute
	}
	in := to.link.Load()
	if in.loses() || n.isBroken(path{from, to}) {
		return Lost
	}
	spend(packet, n.hops)
	n.deliver(to, out.delay()+in.delay(), packet)
	return Delivered
}

// expire answers the sender of a packet that dies on the way, over the
// sender's link alone.
func (n *internet) expire(from *attachment, h header, packet []byte) {
	answer := timeExceeded(hopAddr(max(h.ttl, 1), h.src), h, packet)
	link := from.link.Load()
	if answer == nil || link.loses() || n.lookup(h.src) != from {
		return
	}
	n.deliver(from, link.delay()+link.delay(), answer)
}

// deliver hands a packet over after a while.
func (n *internet) deliver(to *attachment, delay time.Duration, packet []byte) {
	if delay <= 0 {
		to.deliver(packet)
		return
	}
	n.queue.put(time.Now().Add(delay), to, packet)
}

// deliver drops the packet when the attachment is down, and when the device
// does not take it (no reader, interface down), as a cut cable would.
func (a *attachment) deliver(packet []byte) {
	if a.down.Load() {
		return
	}
	if _, err := a.tun.Write(packet); err != nil {
		return
	}
	a.receivedPackets.Add(1)
	a.receivedBytes.Add(uint64(len(packet)))
}

func (a *attachment) traffic() Traffic {
	return Traffic{
		SentPackets: a.sentPackets.Load(), SentBytes: a.sentBytes.Load(),
		ReceivedPackets: a.receivedPackets.Load(), ReceivedBytes: a.receivedBytes.Load(),
	}
}

// close closes every device and waits for the readers and the queue.
func (n *internet) close() {
	n.mu.Lock()
	n.closed = true
	for _, a := range n.attachments {
		a.tun.Close()
	}
	n.mu.Unlock()
	n.readers.Wait()
	n.queue.close()
}

// openTUN makes the TUN device name in the network namespace of the calling
// thread.
func openTUN(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("tun name %q: %w", name, err)
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make tun device %q: %w", name, err)
	}
	// Only now: the runtime's poller can watch a TUN only once it has a device.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("tun device %q: %w", name, err)
	}
	return os.NewFile(uintptr(fd), "tun:"+name), nil
}
