package agent

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// holdMost is how long a hold lasts at most: whatever it is for has failed by
	// then, and a packet that late is of little use.
	holdMost = 500 * time.Millisecond
	// holdBytes is what it keeps at most, some 100 Mbit/s of holdMost.
	holdBytes = 8 << 20
	// holdDrain is for packets that are between routing and the device when its
	// routes go.
	holdDrain = 2 * time.Millisecond
	// maxPacket is IP's.
	maxPacket = 1 << 16
	// holdMTU is that of charon's TUN device, which the packets leave by.
	holdMTU = 1400
)

// A hold has what is sent to a peer's subnets wait while a tunnel with it is
// deleted, where charon does ESP itself: it goes on sending into a tunnel until
// the peer has confirmed that it is gone there, and its policies are its own.
// Instead of to charon's TUN device the packets are routed to one of ours, and
// sent on in the end. The device goes with the process, and its routes with it.
type hold struct {
	tun    *os.File
	routes []netlink.Route
	since  time.Time
	timer  *time.Timer
	// end ends it, if it has not ended yet, and sends on what has waited.
	end func() error

	// What follows belongs to the reader until that has ended.
	reader  sync.WaitGroup
	subnets []netip.Prefix
	room    int // in bytes
	packets [][]byte
}

// hold has what goes to the peer's subnets wait until release.
func (r *run) hold() (err error) {
	r.held, err = newHold(r.peer.Endpoint.Subnets)
	return err
}

// release sends on what has waited, if anything has.
func (r *run) release() {
	if r.held == nil {
		return
	}
	r.held.timer.Stop()
	err := r.held.end()
	r.log.Debug("packets have waited for the relay", "packets", len(r.held.packets), "most", time.Since(r.held.since))
	if err != nil {
		r.log.Warn("not all of them were sent", "err", err)
	}
	r.held = nil
}

func newHold(subnets []netip.Prefix) (*hold, error) {
	routes, err := tunnelRoutes(subnets)
	if err != nil {
		return nil, fmt.Errorf("hold %v: %w", subnets, err)
	}
	tun, link, err := openTUN()
	if err != nil {
		return nil, fmt.Errorf("hold: %w", err)
	}
	h := &hold{tun: tun, subnets: subnets, room: holdBytes, since: time.Now()}
	h.end = sync.OnceValue(h.flush)
	h.reader.Go(h.read)
	for _, r := range routes {
		r.LinkIndex = link.Attrs().Index
		if err := netlink.RouteAdd(&r); err != nil {
			return nil, errors.Join(fmt.Errorf("hold %s: %w", r.Dst, err), h.end())
		}
		h.routes = append(h.routes, r)
	}
	h.timer = time.AfterFunc(holdMost, func() { _ = h.end() }) // release tells
	return h, nil
}

// tunnelRoutes are routes that come before those of charon's to subnets, which they
// are modelled on.
func tunnelRoutes(subnets []netip.Prefix) ([]netlink.Route, error) {
	var out []netlink.Route
	for _, p := range subnets {
		is, err := netlink.RouteListFiltered(netlinkFamily(p.Addr()), &netlink.Route{Table: charonTable, Dst: ipNet(p)},
			netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST)
		if err != nil {
			return nil, err
		}
		if len(is) == 0 {
			return nil, fmt.Errorf("no route to %s in table %d", p, charonTable)
		}
		if err := strict(is[0].LinkIndex); p.Addr().Is4() && err != nil {
			return nil, err
		}
		halves, err := halve(p)
		if err != nil {
			return nil, err
		}
		for _, half := range halves {
			out = append(out, netlink.Route{Dst: ipNet(half), Src: is[0].Src, Table: charonTable, Protocol: unix.RTPROT_STATIC, Scope: is[0].Scope})
		}
	}
	return out, nil
}

// strict says why the way back must not change while packets come in through a
// device: the kernel would drop them (rp_filter, RFC 3704).
func strict(device int) error {
	link, err := netlink.LinkByIndex(device)
	if err != nil {
		return err
	}
	filter := 0
	for _, name := range []string{"all", link.Attrs().Name} {
		path := "/proc/sys/net/ipv4/conf/" + name + "/rp_filter"
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		n, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		filter = max(filter, n) // the kernel's rule
	}
	if filter == 1 {
		return fmt.Errorf("%s has a strict reverse path filter (rp_filter=1)", link.Attrs().Name)
	}
	return nil
}

// halve splits a network: routes to its halves come before one to the whole.
func halve(p netip.Prefix) ([2]netip.Prefix, error) {
	if p.IsSingleIP() {
		return [2]netip.Prefix{}, fmt.Errorf("%s has no halves", p)
	}
	upper := p.Masked().Addr().AsSlice()
	upper[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	addr, _ := netip.AddrFromSlice(upper)
	return [2]netip.Prefix{netip.PrefixFrom(p.Masked().Addr(), p.Bits()+1), netip.PrefixFrom(addr, p.Bits()+1)}, nil
}

func netlinkFamily(a netip.Addr) int {
	if a.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

// openTUN makes a device for packets without addresses of its own.
func openTUN() (*os.File, netlink.Link, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("/dev/net/tun: %w", err)
	}
	req, err := unix.NewIfreq("bodkin-hold%d")
	if err == nil {
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	tun := os.NewFile(uintptr(fd), "/dev/net/tun") // only now can it be waited for
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("/dev/net/tun: %w", err), tun.Close())
	}
	link, err := netlink.LinkByName(req.Name())
	if err == nil {
		_ = netlink.LinkSetIP6AddrGenMode(link, 1) // none; an error means that there is no IPv6
		err = errors.Join(netlink.LinkSetMTU(link, holdMTU), netlink.LinkSetUp(link))
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%s: %w", req.Name(), err), tun.Close())
	}
	return tun, link, nil
}

// read keeps what is sent to the device, until its deadline.
func (h *hold) read() {
	buf := make([]byte, maxPacket)
	for {
		n, err := h.tun.Read(buf)
		if err != nil {
			return
		}
		h.keep(buf[:n])
	}
}

// drain keeps what is there of what read has left.
func (h *hold) drain() error {
	raw, err := h.tun.SyscallConn()
	if err != nil {
		return err
	}
	return errors.Join(h.tun.SetReadDeadline(time.Time{}), raw.Read(func(fd uintptr) bool {
		buf := make([]byte, maxPacket)
		for {
			n, err := unix.Read(int(fd), buf)
			if err != nil {
				return true // EAGAIN: there is no more
			}
			h.keep(buf[:n])
		}
	}))
}

// keep leaves out what the system says to every device, such as router
// solicitations.
func (h *hold) keep(packet []byte) {
	to := destination(packet)
	if len(packet) > h.room || !slices.ContainsFunc(h.subnets, func(p netip.Prefix) bool { return p.Contains(to) }) {
		return
	}
	h.room -= len(packet)
	h.packets = append(h.packets, bytes.Clone(packet))
}

// flush sends on what was held.
func (h *hold) flush() error {
	var errs []error
	for _, r := range h.routes {
		if err := netlink.RouteDel(&r); err != nil {
			errs = append(errs, fmt.Errorf("route %s: %w", r.Dst, err))
		}
	}
	errs = append(errs, h.tun.SetReadDeadline(time.Now().Add(holdDrain)))
	h.reader.Wait()
	errs = append(errs, h.drain(), h.tun.Close(), resend(h.packets))
	return errors.Join(errs...)
}

// destination is where an IP packet goes, invalid if it is none.
func destination(packet []byte) netip.Addr {
	switch {
	case len(packet) >= 20 && packet[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(packet[16:20]))
	case len(packet) >= 40 && packet[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(packet[24:40]))
	}
	return netip.Addr{}
}

// resend routes packets again, with the headers that they have.
func resend(packets [][]byte) error {
	return errors.Join(resendOver(unix.AF_INET, packets), resendOver(unix.AF_INET6, packets))
}

// resendOver is resend for the packets of one address family.
func resendOver(family int, packets [][]byte) error {
	packets = slices.DeleteFunc(slices.Clone(packets), func(p []byte) bool {
		of, _ := socketAddr(destination(p))
		return of != family
	})
	if len(packets) == 0 {
		return nil // a host may be without one of them
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return fmt.Errorf("raw socket: %w", err)
	}
	defer unix.Close(fd)
	var errs []error
	for _, p := range packets {
		_, to := socketAddr(destination(p))
		errs = append(errs, unix.Sendto(fd, p, 0, to))
	}
	return errors.Join(errs...)
}

func socketAddr(a netip.Addr) (family int, addr unix.Sockaddr) {
	if a.Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Addr: a.As4()}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Addr: a.As16()}
}
