package doctor

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// UDP ports of IKE: RFC 7296, and RFC 3947 behind NATs.
const (
	ikePort    = 4500
	ikePort500 = 500
)

// ikeDaemons are programs that speak IKE, or manage one that does, by the names
// they have in /proc.
var ikeDaemons = []string{"charon", "charon-systemd", "charon-nm", "charon-cmd", "starter", "pluto", "iked", "racoon", "isakmpd", "fabedge-agent"}

// charons are strongSwan's daemons.
var charons = []string{"charon", "charon-systemd"}

func gatherPorts(_ context.Context, f *Facts) {
	processes := neighbours()
	for _, p := range processes {
		if slices.Contains(ikeDaemons, p.Name) {
			f.Ports.Daemons = append(f.Ports.Daemons, p)
		}
	}
	sockets, err := udpSockets()
	if err != nil {
		f.Ports.Err = err
		return
	}
	owners := socketOwners(processes, sockets)
	for inode, addr := range sockets {
		h := Holder{Addr: addr, Process: owners[inode]}
		switch {
		case addr.Port() == ikePort:
			f.Ports.IKE = append(f.Ports.IKE, h)
		case addr.Port() == ikePort500:
			f.Ports.IKE500 = append(f.Ports.IKE500, h)
		case slices.Contains(charons, h.Name):
			f.Ports.Others = append(f.Ports.Others, h)
		}
	}
	for _, list := range [][]Holder{f.Ports.IKE, f.Ports.IKE500, f.Ports.Others} {
		slices.SortFunc(list, func(a, b Holder) int { return a.Addr.Compare(b.Addr) })
	}
}

// neighbours are the processes of this network namespace.
func neighbours() (out []Process) {
	const ns = "/proc/self/ns/net"
	own, err := os.Readlink(ns)
	if err != nil {
		return nil
	}
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is a good one
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		// Processes come and go, and not all may be looked at.
		if is, err := os.Readlink(filepath.Join(dir, "ns/net")); err != nil || is != own {
			continue
		}
		if name, err := os.ReadFile(filepath.Join(dir, "comm")); err == nil {
			out = append(out, Process{pid, strings.TrimSpace(string(name))})
		}
	}
	return out
}

// udpSockets are the UDP sockets of this network namespace, by inode.
func udpSockets() (map[string]netip.AddrPort, error) {
	out := map[string]netip.AddrPort{}
	for _, path := range []string{"/proc/self/net/udp", "/proc/self/net/udp6"} {
		file, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // no IPv6
		}
		if err != nil {
			return nil, err
		}
		err = parseSockets(bufio.NewScanner(file), out)
		if err := errors.Join(err, file.Close()); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	return out, nil
}

// parseSockets reads proc(5)'s table of UDP sockets.
func parseSockets(lines *bufio.Scanner, into map[string]netip.AddrPort) error {
	const local, inode = 1, 9
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) <= inode || fields[0] == "sl" {
			continue
		}
		addr, err := parseSocketAddr(fields[local])
		if err != nil {
			return err
		}
		into[fields[inode]] = addr
	}
	return lines.Err()
}

// parseSocketAddr reads an address as the kernel prints it: 32-bit words in the
// machine's order.
func parseSocketAddr(s string) (netip.AddrPort, error) {
	host, port, found := strings.Cut(s, ":")
	b, err := hex.DecodeString(host)
	n, portErr := strconv.ParseUint(port, 16, 16)
	if err := errors.Join(err, portErr); !found || err != nil {
		return netip.AddrPort{}, fmt.Errorf("address %q", s)
	}
	if !bigEndian {
		for word := range slices.Chunk(b, 4) {
			slices.Reverse(word)
		}
	}
	addr, isIP := netip.AddrFromSlice(b)
	if !isIP {
		return netip.AddrPort{}, fmt.Errorf("address %q", s)
	}
	return netip.AddrPortFrom(addr, uint16(n)), nil
}

// socketOwners finds which process has which of the sockets.
func socketOwners(processes []Process, sockets map[string]netip.AddrPort) map[string]Process {
	out := map[string]Process{}
	for _, p := range processes {
		links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p.PID)) // the pattern is a good one
		for _, link := range links {
			target, err := os.Readlink(link)
			if err != nil {
				continue
			}
			inode, is := strings.CutPrefix(target, "socket:[")
			if !is {
				continue
			}
			inode = strings.TrimSuffix(inode, "]")
			if _, wanted := sockets[inode]; wanted {
				out[inode] = p
			}
		}
	}
	return out
}

// icmpWait is for an ICMP error of this machine's own.
const icmpWait = 300 * time.Millisecond

// gatherICMP sends what looks like a peer's check to the IKE port, over loopback,
// and listens for the kernel's complaint. charon takes it for ESP with an unknown
// SPI.
func gatherICMP(ctx context.Context, f *Facts) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "udp", netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), ikePort).String())
	if err != nil {
		f.ICMP.Err = err
		return
	}
	defer conn.Close()
	// A Binding indication (RFC 8489 section 5) is never answered.
	indication := append([]byte{0x00, 0x11, 0, 0, 0x21, 0x12, 0xa4, 0x42}, "bodkin check"...)
	if _, err := conn.Write(indication); err != nil {
		f.ICMP.Err = err
		return
	}
	if err := conn.SetReadDeadline(time.Now().Add(icmpWait)); err != nil {
		f.ICMP.Err = err
		return
	}
	_, err = conn.Read(make([]byte, 1))
	f.ICMP.Refused = errors.Is(err, syscall.ECONNREFUSED)
}

// capabilities of a process that the agent needs, as bits of /proc/PID/status.
var capabilities = []struct {
	name string
	bit  uint
}{{"CAP_NET_ADMIN", unix.CAP_NET_ADMIN}, {"CAP_NET_RAW", unix.CAP_NET_RAW}}

// lacks are the capabilities that a process would need.
func lacks(pid int) []string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil // it has ended
	}
	return lackingIn(string(b))
}

func lackingIn(status string) (out []string) {
	for line := range strings.Lines(status) {
		text, is := strings.CutPrefix(line, "CapEff:")
		if !is {
			continue
		}
		has, err := strconv.ParseUint(strings.TrimSpace(text), 16, 64)
		if err != nil {
			return nil
		}
		for _, c := range capabilities {
			if has>>c.bit&1 == 0 {
				out = append(out, c.name)
			}
		}
	}
	return out
}
