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

// internet is the router between all public addresses: it reads packets from
// TUN devices and writes each to the device that owns its destination. It
// sends no ICMP errors; what cannot be delivered vanishes.
type internet struct {
	hops    uint8
	queue   *delayQueue
	readers sync.WaitGroup

	mu          sync.RWMutex
	table       []destination // longest prefix first
	attachments []*attachment
	closed      bool
}

type destination struct {
	prefix netip.Prefix
	via    *attachment
}

// attachment is one TUN device. Its reader goroutine belongs to the internet.
type attachment struct {
	tun  *os.File
	link atomic.Pointer[Link]
	down atomic.Bool

	sentPackets, sentBytes         atomic.Uint64
	receivedPackets, receivedBytes atomic.Uint64
}

func newInternet(hops uint8) *internet {
	return &internet{hops: hops, queue: newDelayQueue()}
}

// attach takes over tun, which close closes.
func (n *internet) attach(tun *os.File) (*attachment, error) {
	a := &attachment{tun: tun}
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

func (n *internet) forward(from *attachment, packet []byte) {
	addr, alive := route(packet, n.hops)
	if !alive || from.down.Load() {
		return
	}
	to := n.lookup(addr)
	if to == nil {
		return
	}
	out, in := from.link.Load(), to.link.Load()
	if out.loses() || in.loses() {
		return
	}
	delay := out.delay() + in.delay()
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
