package rawudp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bodkin-net/bodkin/internal/nstest"
)

// arrival bounds the wait for a packet that is sure to come, on any machine.
const arrival = 20 * time.Second

var (
	localhost4 = netip.MustParseAddr("127.0.0.1")
	localhost6 = netip.MustParseAddr("::1")
)

const ikePort = 4500

func listenUDP(t *testing.T, ns *nstest.Namespace, at netip.AddrPort) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	var err error
	ns.Do(func() { conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at)) })
	if err != nil {
		t.Fatalf("listen on %s: %v", at, err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func listenRaw(t *testing.T, ns *nstest.Namespace, o Options) *Conn {
	t.Helper()
	var conn *Conn
	var err error
	ns.Do(func() { conn, err = Listen(o) })
	if err != nil {
		t.Fatalf("Listen(%+v): %v", o, err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

type addrPortReader interface {
	ReadFromAddrPort([]byte) (int, netip.AddrPort, error)
	SetReadDeadline(time.Time) error
}

// udpReader gives *net.UDPConn the method name Conn has.
type udpReader struct{ *net.UDPConn }

func (r udpReader) ReadFromAddrPort(b []byte) (int, netip.AddrPort, error) {
	return r.ReadFromUDPAddrPort(b)
}

// wantPacket reads the next packet and checks its payload and its sender.
func wantPacket(t *testing.T, r addrPortReader, payload []byte, from netip.AddrPort) {
	t.Helper()
	if err := r.SetReadDeadline(time.Now().Add(arrival)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 2048)
	n, src, err := r.ReadFromAddrPort(b)
	if err != nil {
		t.Fatalf("read: %v; want %q from %s", err, payload, from)
	}
	if !bytes.Equal(b[:n], payload) || src != from {
		t.Fatalf("read %q from %s; want %q from %s", b[:n], src, payload, from)
	}
}

func send(t *testing.T, from *net.UDPConn, to netip.AddrPort, payload []byte) {
	t.Helper()
	if _, err := from.WriteToUDPAddrPort(payload, to); err != nil {
		t.Fatalf("send to %s: %v", to, err)
	}
}

func addrPortOf(c *net.UDPConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }

func TestSharesPort(t *testing.T) {
	t.Parallel()
	for name, addr := range map[string]netip.Addr{"IPv4": localhost4, "IPv6": localhost6} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ns := nstest.New(t)
			shared := netip.AddrPortFrom(addr, ikePort)
			owner := listenUDP(t, ns, shared)
			peer := listenUDP(t, ns, netip.AddrPortFrom(addr, 0))
			conn := listenRaw(t, ns, Options{Addr: addr, Port: ikePort})
			from := addrPortOf(peer)

			// The owner gets everything, in order; the Conn only STUN to its port.
			ike := append(make([]byte, 4), "IKE_SA_INIT"...)
			other := listenUDP(t, ns, netip.AddrPortFrom(addr, 0))
			send(t, peer, shared, ike)
			send(t, peer, shared, stunPayload("one"))
			send(t, peer, addrPortOf(other), stunPayload("to another port"))
			send(t, peer, shared, []byte{0xff})
			send(t, peer, shared, stunPayload("two"))
			for _, want := range [][]byte{ike, stunPayload("one"), {0xff}, stunPayload("two")} {
				wantPacket(t, udpReader{owner}, want, from)
			}
			wantPacket(t, conn, stunPayload("one"), from)
			wantPacket(t, conn, stunPayload("two"), from)

			// What it sends leaves from the shared port. The receiving kernel
			// verifies the checksum: an odd length and an empty payload too.
			for _, payload := range [][]byte{stunPayload("odd"), []byte("any payload"), {}} {
				if n, err := conn.WriteToAddrPort(payload, from); err != nil || n != len(payload) {
					t.Fatalf("WriteToAddrPort = %d, %v", n, err)
				}
				wantPacket(t, udpReader{peer}, payload, shared)
			}
			if got := conn.LocalAddr().(*net.UDPAddr).AddrPort(); got != shared {
				t.Errorf("LocalAddr = %s, want %s", got, shared)
			}
		})
	}
}

// A damaged packet must not be taken for a punched hole, in either family.
func TestWrongChecksumIsNotSeen(t *testing.T) {
	t.Parallel()
	for name, addr := range map[string]netip.Addr{"ip4:17": localhost4, "ip6:17": localhost6} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ns := nstest.New(t)
			shared, from := netip.AddrPortFrom(addr, ikePort), netip.AddrPortFrom(addr, 5000)
			conn := listenRaw(t, ns, Options{Addr: addr, Port: ikePort})
			var forger *net.IPConn
			var err error
			ns.Do(func() { forger, err = net.ListenIP(name, &net.IPAddr{IP: addr.AsSlice()}) })
			if err != nil {
				t.Fatalf("listen: %v", err)
			}
			t.Cleanup(func() { _ = forger.Close() })

			good := appendUDP(nil, from, shared, stunPayload("good"))
			bad := edited(appendUDP(nil, from, shared, stunPayload("bad")), 20, 0xee)
			for _, packet := range [][]byte{bad, good} {
				if _, err := forger.WriteToIP(packet, &net.IPAddr{IP: addr.AsSlice()}); err != nil {
					t.Fatalf("send: %v", err)
				}
			}
			wantPacket(t, conn, stunPayload("good"), from)
		})
	}
}

func TestPacketConn(t *testing.T) {
	t.Parallel()
	ns := nstest.New(t)
	var a, b net.PacketConn
	a = listenRaw(t, ns, Options{Addr: localhost4, Port: 4500})
	b = listenRaw(t, ns, Options{Addr: netip.MustParseAddr("::ffff:127.0.0.1"), Port: 4501})
	if _, err := a.WriteTo(stunPayload("to b"), b.LocalAddr()); err != nil {
		t.Fatalf("WriteTo: %v", err)
	}
	if err := b.SetDeadline(time.Now().Add(arrival)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 22) // shorter than the payload
	n, from, err := b.ReadFrom(buf)
	if err != nil || !bytes.Equal(buf[:n], stunPayload("to")) || from.String() != "127.0.0.1:4500" {
		t.Fatalf("ReadFrom = %q, %v, %v", buf[:n], from, err)
	}
}

func TestWriteToTTL(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		addr                 netip.Addr
		level, receive, kind int
	}{
		"IPv4": {localhost4, unix.IPPROTO_IP, unix.IP_RECVTTL, unix.IP_TTL},
		"IPv6": {localhost6, unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, unix.IPV6_HOPLIMIT},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ns := nstest.New(t)
			peer := listenUDP(t, ns, netip.AddrPortFrom(tt.addr, 0))
			conn := listenRaw(t, ns, Options{Addr: tt.addr, Port: ikePort})
			rc, err := peer.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			var optErr error
			err = rc.Control(func(fd uintptr) {
				optErr = unix.SetsockoptInt(int(fd), tt.level, tt.receive, 1)
			})
			if err := errors.Join(err, optErr); err != nil {
				t.Fatalf("ask for the TTL: %v", err)
			}

			const opener, usual = 3, 64
			if _, err := conn.WriteToTTL(stunPayload(""), addrPortOf(peer), opener); err != nil {
				t.Fatalf("WriteToTTL: %v", err)
			}
			if _, err := conn.WriteToAddrPort(stunPayload(""), addrPortOf(peer)); err != nil {
				t.Fatalf("WriteToAddrPort: %v", err)
			}
			for _, want := range []uint32{opener, usual} {
				if got := readTTL(t, peer, tt.kind); got != want {
					t.Errorf("TTL = %d, want %d", got, want)
				}
			}
			for _, bad := range []int{-1, 0, 256} {
				if _, err := conn.WriteToTTL(stunPayload(""), addrPortOf(peer), bad); err == nil {
					t.Errorf("WriteToTTL(%d) succeeded", bad)
				}
			}
		})
	}
}

func readTTL(t *testing.T, c *net.UDPConn, kind int) uint32 {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(arrival)); err != nil {
		t.Fatal(err)
	}
	b, oob := make([]byte, 64), make([]byte, 64)
	_, oobn, _, _, err := c.ReadMsgUDPAddrPort(b, oob)
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	messages, err := syscall.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 || int(messages[0].Header.Type) != kind {
		t.Fatalf("control messages: %+v, %v", messages, err)
	}
	return binary.NativeEndian.Uint32(messages[0].Data)
}

// What the host's firewall drops must not be seen: the other process will not
// see it either.
func TestFirewallDropIsNotSeen(t *testing.T) {
	t.Parallel()
	ns := nstest.New(t)
	shared := netip.AddrPortFrom(localhost4, ikePort)
	blocked := listenUDP(t, ns, netip.AddrPortFrom(localhost4, 5001))
	allowed := listenUDP(t, ns, netip.AddrPortFrom(localhost4, 5002))
	conn := listenRaw(t, ns, Options{Addr: localhost4, Port: ikePort})

	send(t, blocked, shared, stunPayload("before the rule"))
	ns.Nft(t, `table ip t { chain in { type filter hook input priority 0; udp sport 5001 drop; }; }`)
	send(t, blocked, shared, stunPayload("dropped"))
	send(t, allowed, shared, stunPayload("allowed"))

	wantPacket(t, conn, stunPayload("before the rule"), addrPortOf(blocked))
	wantPacket(t, conn, stunPayload("allowed"), addrPortOf(allowed))
}

// A policy that demands ESP between the two addresses swallows what an ordinary
// socket sends or ought to receive.
func TestBypassesIPsecPolicies(t *testing.T) {
	t.Parallel()
	here, there := nstest.New(t), nstest.New(t)
	local, remote := netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("10.9.0.2")
	nstest.Join(t, "eth0", here, local, there, remote)
	peer := listenUDP(t, there, netip.AddrPortFrom(remote, 5000))
	ordinary := listenUDP(t, here, netip.AddrPortFrom(local, 4501))
	conn := listenRaw(t, here, Options{Addr: local, Port: ikePort})
	for _, p := range []struct{ dir, src, dst string }{
		{"out", local.String(), remote.String()}, {"in", remote.String(), local.String()},
	} {
		here.Run(t, "ip", "xfrm", "policy", "add", "src", p.src, "dst", p.dst, "dir", p.dir,
			"tmpl", "src", p.src, "dst", p.dst, "proto", "esp", "mode", "tunnel")
	}

	_, _ = ordinary.WriteToUDPAddrPort(stunPayload("ordinary"), addrPortOf(peer)) // an error or a loss, by kernel
	if _, err := conn.WriteToAddrPort(stunPayload("bypass"), addrPortOf(peer)); err != nil {
		t.Fatalf("WriteToAddrPort: %v", err)
	}
	wantPacket(t, udpReader{peer}, stunPayload("bypass"), netip.AddrPortFrom(local, ikePort))
	send(t, peer, netip.AddrPortFrom(local, ikePort), stunPayload("in"))
	wantPacket(t, conn, stunPayload("in"), addrPortOf(peer))
}

func TestMark(t *testing.T) {
	t.Parallel()
	ns := nstest.New(t)
	peer := listenUDP(t, ns, netip.AddrPortFrom(localhost4, 5000))
	ns.Nft(t, `table ip t { chain out { type filter hook output priority 0; udp dport 5000 meta mark != 0x42 drop; }; }`)
	plain := listenRaw(t, ns, Options{Addr: localhost4, Port: 4501})
	marked := listenRaw(t, ns, Options{Addr: localhost4, Port: ikePort, Mark: 0x42})

	_, _ = plain.WriteToAddrPort(stunPayload("plain"), addrPortOf(peer)) // EPERM: dropped on output
	if _, err := marked.WriteToAddrPort(stunPayload("marked"), addrPortOf(peer)); err != nil {
		t.Fatalf("WriteToAddrPort: %v", err)
	}
	wantPacket(t, udpReader{peer}, stunPayload("marked"), netip.AddrPortFrom(localhost4, ikePort))
}

func TestDeadlineAndClose(t *testing.T) {
	t.Parallel()
	ns := nstest.New(t)
	conn := listenRaw(t, ns, Options{Addr: localhost4, Port: ikePort})
	b := make([]byte, 64)
	if err := conn.SetReadDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := conn.ReadFrom(b); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("ReadFrom past the deadline: %v", err)
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}

	const readers = 3
	got := make(chan error, readers)
	for range readers {
		go func() {
			_, _, err := conn.ReadFrom(make([]byte, 64))
			got <- err
		}()
	}
	if err := conn.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	for range readers {
		if err := <-got; !errors.Is(err, net.ErrClosed) {
			t.Errorf("ReadFrom on a closed Conn: %v", err)
		}
	}
	if _, err := conn.WriteToAddrPort(stunPayload(""), netip.AddrPortFrom(localhost4, 9)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write on a closed Conn: %v", err)
	}
}

func TestWriteRefuses(t *testing.T) {
	t.Parallel()
	ns := nstest.New(t)
	conn := listenRaw(t, ns, Options{Addr: localhost4, Port: ikePort})
	for _, dst := range []string{"127.0.0.1:0", "0.0.0.0:9", "[::1]:9"} {
		if _, err := conn.WriteToAddrPort(stunPayload(""), netip.MustParseAddrPort(dst)); !errors.Is(err, ErrDestination) {
			t.Errorf("to %s: %v; want ErrDestination", dst, err)
		}
	}
	if _, err := conn.WriteTo(stunPayload(""), &net.TCPAddr{}); !errors.Is(err, ErrDestination) {
		t.Errorf("to a TCP address: %v; want ErrDestination", err)
	}
	if _, err := conn.WriteToAddrPort(make([]byte, 70000), netip.AddrPortFrom(localhost4, 9)); !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("70000 bytes: %v; want EMSGSIZE", err)
	}
}

func TestListenRefuses(t *testing.T) {
	t.Parallel()
	for _, o := range []Options{
		{},
		{Addr: netip.IPv4Unspecified(), Port: ikePort},
		{Addr: netip.MustParseAddr("224.0.0.1"), Port: ikePort},
		{Addr: localhost4},
	} {
		if _, err := Listen(o); !errors.Is(err, ErrOptions) {
			t.Errorf("Listen(%+v): %v; want ErrOptions", o, err)
		}
	}
}

func TestListenNotLocal(t *testing.T) {
	t.Parallel()
	ns := nstest.New(t)
	for _, addr := range []string{"192.0.2.1", "2001:db8::1"} {
		var err error
		ns.Do(func() { _, err = Listen(Options{Addr: netip.MustParseAddr(addr), Port: ikePort}) })
		if !errors.Is(err, ErrNotLocal) {
			t.Errorf("Listen on %s: %v; want ErrNotLocal", addr, err)
		}
	}
}

// Each capability is asked for by name when it is missing.
func TestListenWithoutCapability(t *testing.T) {
	t.Parallel()
	for name, capability := range map[string]uint{"CAP_NET_RAW": unix.CAP_NET_RAW, "CAP_NET_ADMIN": unix.CAP_NET_ADMIN} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var err error
			nstest.New(t).DoWithout(t, capability, func() { _, err = Listen(Options{Addr: localhost4, Port: ikePort}) })
			if !errors.Is(err, ErrPermission) {
				t.Errorf("Listen: %v; want ErrPermission", err)
			}
		})
	}
}
