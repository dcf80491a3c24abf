package rewrite

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/bodkin-net/bodkin/internal/nstest"
	"github.com/bodkin-net/bodkin/punch/rawudp"
)

func TestMain(m *testing.M) {
	if os.Getenv(setAndHangEnv) != "" {
		setAndHang()
	}
	goleak.VerifyTestMain(m)
}

const (
	// arrival bounds the wait for what is sure to come, on any machine.
	arrival = 20 * time.Second
	hit     = 40007 // a port that probing has found
)

var (
	hostAddr = netip.MustParseAddr("10.9.0.1")
	shared   = netip.AddrPortFrom(hostAddr, 4500)
	peerAt   = netip.MustParseAddrPort("10.9.0.2:4500")
	toPeer   = Flow{Local: shared, Peer: peerAt}
)

func open(t *testing.T, ns *nstest.Namespace) *Table {
	t.Helper()
	var table *Table
	var err error
	ns.Do(func() { table, err = Open(slog.New(slog.DiscardHandler)) })
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() {
		if err := table.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return table
}

func listen(t *testing.T, ns *nstest.Namespace, at netip.AddrPort) *net.UDPConn {
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

type sender interface {
	WriteToAddrPort([]byte, netip.AddrPort) (int, error)
}

type receiver interface {
	ReadFromAddrPort([]byte) (int, netip.AddrPort, error)
	SetReadDeadline(time.Time) error
}

// udp gives *net.UDPConn the method names that rawudp.Conn has.
type udp struct{ *net.UDPConn }

func (u udp) ReadFromAddrPort(b []byte) (int, netip.AddrPort, error) { return u.ReadFromUDPAddrPort(b) }

func (u udp) WriteToAddrPort(b []byte, to netip.AddrPort) (int, error) {
	return u.WriteToUDPAddrPort(b, to)
}

func send(t *testing.T, from sender, to netip.AddrPort, payload string) {
	t.Helper()
	if _, err := from.WriteToAddrPort([]byte(payload), to); err != nil {
		t.Fatalf("send %q to %s: %v", payload, to, err)
	}
}

// receive reads until the payload comes, and returns its sender.
func receive(t *testing.T, at receiver, payload string) netip.AddrPort {
	t.Helper()
	if err := at.SetReadDeadline(time.Now().Add(arrival)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 256)
	for {
		n, from, err := at.ReadFromAddrPort(b)
		if err != nil {
			t.Fatalf("waiting for %q: %v", payload, err)
		}
		if string(b[:n]) == payload {
			return from
		}
	}
}

// pair is a host whose port 4500 a daemon owns, and its peer.
type pair struct {
	host, peer   *nstest.Namespace
	daemon, away udp
}

func newPair(t *testing.T) pair {
	t.Helper()
	p := pair{host: nstest.New(t), peer: nstest.New(t)}
	nstest.Join(t, "eth0", p.host, hostAddr, p.peer, peerAt.Addr())
	p.daemon = udp{listen(t, p.host, shared)}
	p.away = udp{listen(t, p.peer, peerAt)}
	return p
}

// wantRewritten checks both directions.
func (p pair) wantRewritten(t *testing.T, port uint16) {
	t.Helper()
	outside := netip.AddrPortFrom(hostAddr, port)
	send(t, p.daemon, peerAt, "out")
	if from := receive(t, p.away, "out"); from != outside {
		t.Errorf("the peer saw %s, want %s", from, outside)
	}
	send(t, p.away, outside, "in")
	if from := receive(t, p.daemon, "in"); from != peerAt {
		t.Errorf("the daemon saw %s, want %s", from, peerAt)
	}
}

// openAndProbe is what probing does at the port that is hit. Conntrack has to
// know it, for a firewall that admits what belongs to known flows.
func (p pair) openAndProbe(t *testing.T) {
	t.Helper()
	at := netip.AddrPortFrom(hostAddr, hit)
	opener := udp{listen(t, p.host, at)}
	defer opener.Close()
	send(t, opener, peerAt, "opener")
	receive(t, p.away, "opener")
	send(t, p.away, at, "probe")
	receive(t, opener, "probe")
}

// What conntrack knew before must not keep a flow from being rewritten, nor
// which side's packet comes first after it.
func TestSet(t *testing.T) {
	t.Parallel()
	at := netip.AddrPortFrom(hostAddr, hit)
	for name, before := range map[string]func(*testing.T, pair, *Table){
		"no flow": func(*testing.T, pair, *Table) {},
		"flow of the shared port": func(t *testing.T, p pair, _ *Table) {
			send(t, p.daemon, peerAt, "before")
			receive(t, p.away, "before")
			send(t, p.away, shared, "answer")
			receive(t, p.daemon, "answer")
		},
		"flow that the peer began": func(t *testing.T, p pair, _ *Table) {
			send(t, p.away, shared, "before")
			receive(t, p.daemon, "before")
		},
		"opener and probe": func(t *testing.T, p pair, _ *Table) {
			p.openAndProbe(t)
		},
		"probe without an opener": func(t *testing.T, p pair, _ *Table) {
			opener := udp{listen(t, p.host, at)}
			defer opener.Close()
			send(t, p.away, at, "probe")
			receive(t, opener, "probe")
		},
		"another port set": func(t *testing.T, p pair, table *Table) {
			if err := table.Set("b", toPeer, hit+1); err != nil {
				t.Fatalf("Set: %v", err)
			}
			p.wantRewritten(t, hit+1)
		},
		"another owner's rule for the flow": func(t *testing.T, p pair, table *Table) {
			if err := table.Set("c", toPeer, hit+1); err != nil {
				t.Fatalf("Set: %v", err)
			}
		},
		"a masquerade rule of the host's": func(t *testing.T, p pair, _ *Table) {
			p.host.Nft(t, `table ip host { chain post { type nat hook postrouting priority srcnat; masquerade fully-random; }; }`)
		},
	} {
		for first, begin := range map[string]func(*testing.T, pair){
			"host first": func(*testing.T, pair) {},
			"peer first": func(t *testing.T, p pair) {
				send(t, p.away, at, "first")
				receive(t, p.daemon, "first")
			},
			"opener once more": func(t *testing.T, p pair) {
				opener := udp{listen(t, p.host, at)}
				defer opener.Close()
				send(t, opener, peerAt, "late opener")
				receive(t, p.away, "late opener")
			},
		} {
			t.Run(name+", "+first, func(t *testing.T) {
				t.Parallel()
				p := newPair(t)
				p.host.Nft(t, `table ip tracking { chain in { type filter hook input priority 0; ct state new; }; }`)
				table := open(t, p.host)
				before(t, p, table)
				if t.Failed() {
					return
				}
				if err := table.Set("b", toPeer, hit); err != nil {
					t.Fatalf("Set: %v", err)
				}
				begin(t, p)
				p.wantRewritten(t, hit)
				wantRules(t, table, Rule{"b", toPeer, hit})
				if err := table.Remove("b"); err != nil {
					t.Fatalf("Remove: %v", err)
				}
				wantNoTable(t, p.host)
			})
		}
	}
}

// The mapping of a symmetric NAT that an opener made is the daemon's after Set,
// and the socket that shares the daemon's port uses it too.
func TestSetBehindSymmetricNAT(t *testing.T) {
	t.Parallel()
	host, router, peer := nstest.New(t), nstest.New(t), nstest.New(t)
	gateway := netip.MustParseAddr("10.9.0.254")
	flow := Flow{Local: shared, Peer: netip.MustParseAddrPort("203.0.113.2:4500")}
	nstest.Join(t, "lan", host, hostAddr, router, gateway)
	nstest.Join(t, "wan", router, netip.MustParseAddr("203.0.113.1"), peer, flow.Peer.Addr())
	host.Run(t, "ip", "route", "add", "default", "via", gateway.String())
	router.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=1")
	router.Nft(t, `table ip nat { chain post { type nat hook postrouting priority srcnat; oifname wan masquerade fully-random; }; }`)
	table := open(t, host)
	daemon := udp{listen(t, host, shared)}
	away := udp{listen(t, peer, flow.Peer)}
	raw := listenRaw(t, host)

	send(t, raw, flow.Peer, stun+"check")
	if from := receive(t, away, stun+"check"); from.Port() == shared.Port() {
		t.Fatalf("the NAT is not symmetric: the peer saw %s", from)
	}
	opener := udp{listen(t, host, netip.AddrPortFrom(hostAddr, hit))}
	send(t, opener, flow.Peer, "opener")
	mapping := receive(t, away, "opener")

	if err := table.Set("b", flow, hit); err != nil {
		t.Fatalf("Set: %v", err)
	}
	for _, from := range []sender{daemon, raw} {
		send(t, from, flow.Peer, stun+"again")
		if got := receive(t, away, stun+"again"); got != mapping {
			t.Errorf("from %T the peer saw %s, want the opener's mapping %s", from, got, mapping)
		}
	}
	send(t, away, mapping, stun+"answer")
	for _, at := range []receiver{daemon, raw} {
		if got := receive(t, at, stun+"answer"); got != flow.Peer {
			t.Errorf("%T received from %s, want %s", at, got, flow.Peer)
		}
	}
}

// Packets that are under way while the rules change leave no entry that
// outlives Set: each packet that is sent after Set leaves from the port set.
func TestSetUnderTraffic(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	table := open(t, p.host)

	var mu sync.Mutex
	want := "" // the port set, or empty while Set is at work
	expect := func(port string) {
		mu.Lock() // once no packet that expects the old port is being sent
		defer mu.Unlock()
		want = port
	}
	done, stopped := make(chan struct{}), make(chan struct{})
	defer func() { close(done); <-stopped }()
	go func() {
		defer close(stopped)
		for {
			select {
			case <-done:
				return
			default:
			}
			mu.Lock()
			_, _ = p.daemon.WriteToAddrPort([]byte(want), peerAt)
			mu.Unlock()
			_, _ = p.away.WriteToAddrPort([]byte("probe"), netip.AddrPortFrom(hostAddr, hit))
			_, _ = p.away.WriteToAddrPort([]byte("to the old port"), shared)
		}
	}()
	for round := range 20 {
		port := uint16(hit + round%2)
		expect("")
		if err := table.Set("b", toPeer, port); err != nil {
			t.Fatalf("Set: %v", err)
		}
		expected := strconv.Itoa(int(port))
		expect(expected)
		for range 10 {
			if from := receive(t, p.away, expected); from.Port() != port {
				t.Fatalf("round %d: the peer saw %s, want port %d", round, from, port)
			}
		}
	}
}

func TestRemove(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	table := open(t, p.host)
	if err := table.Set("b", toPeer, hit); err != nil {
		t.Fatalf("Set: %v", err)
	}
	other := Flow{Local: shared, Peer: netip.AddrPortFrom(peerAt.Addr(), 4501)}
	if err := table.Set("c.edge2", other, hit); err != nil {
		t.Fatalf("Set: %v", err)
	}
	p.wantRewritten(t, hit)
	wantRules(t, table, Rule{"b", toPeer, hit}, Rule{"c.edge2", other, hit})

	for range 2 { // the second time there is nothing to remove
		if err := table.Remove("b"); err != nil {
			t.Fatalf("Remove: %v", err)
		}
	}
	wantRules(t, table, Rule{"c.edge2", other, hit})
	send(t, p.daemon, peerAt, "after")
	if from := receive(t, p.away, "after"); from != shared {
		t.Errorf("after Remove the peer saw %s, want %s", from, shared)
	}
	send(t, p.away, shared, "answer")
	receive(t, p.daemon, "answer")

	if err := table.Remove("c.edge2"); err != nil {
		t.Fatalf("Remove: %v", err)
	}
	wantNoTable(t, p.host)
}

func wantRules(t *testing.T, table *Table, want ...Rule) {
	t.Helper()
	if got, err := table.Rules(); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("Rules = %v, %v; want %v", got, err, want)
	}
}

func wantNoTable(t *testing.T, ns *nstest.Namespace) {
	t.Helper()
	if out := ns.Run(t, "nft", "list", "tables"); strings.Contains(out, tableName) {
		t.Errorf("an empty table stands:\n%s", ns.Run(t, "nft", "list", "ruleset"))
	}
}

// An operator's tools may flush what others have set.
func TestFlushedRuleset(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	table := open(t, p.host)
	wantRules(t, table)
	for range 2 {
		if err := table.Set("b", toPeer, hit); err != nil {
			t.Fatalf("Set: %v", err)
		}
		p.host.Nft(t, "flush ruleset")
	}
	if err := errors.Join(table.Remove("b"), table.Set("b", toPeer, hit)); err != nil {
		t.Fatal(err)
	}
	p.wantRewritten(t, hit)
}

func TestRefuses(t *testing.T) {
	t.Parallel()
	table := open(t, nstest.New(t))
	at := netip.MustParseAddrPort
	for name, tt := range map[string]struct {
		owner string
		flow  Flow
		port  uint16
	}{
		"no owner":         {"", toPeer, hit},
		"long owner":       {strings.Repeat("b", 128), toPeer, hit},
		"port 0":           {"b", toPeer, 0},
		"the shared port":  {"b", toPeer, shared.Port()},
		"no flow":          {"b", Flow{}, hit},
		"IPv6":             {"b", Flow{Local: at("[2001:db8::1]:4500"), Peer: at("[2001:db8::2]:4500")}, hit},
		"multicast":        {"b", Flow{Local: shared, Peer: at("224.0.0.1:4500")}, hit},
		"a peer of port 0": {"b", Flow{Local: shared, Peer: at("10.9.0.2:0")}, hit},
	} {
		if err := table.Set(tt.owner, tt.flow, tt.port); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: Set = %v, want ErrInvalid", name, err)
		}
	}
}

func TestClosed(t *testing.T) {
	t.Parallel()
	table := open(t, nstest.New(t))
	if err := table.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	_, err := table.Rules()
	for _, err := range []error{err, table.Set("b", toPeer, hit), table.Remove("b")} {
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("after Close: %v, want net.ErrClosed", err)
		}
	}
}

func TestUnavailable(t *testing.T) {
	t.Parallel()
	var err error
	nstest.New(t).DoWithout(t, unix.CAP_NET_ADMIN, func() { _, err = Open(slog.New(slog.DiscardHandler)) })
	if !errors.Is(err, ErrUnavailable) || !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("Open without CAP_NET_ADMIN: %v; want ErrUnavailable that names the capability", err)
	}
}

// stun is the start of a STUN message, which the raw socket lets pass.
const stun = "\x00\x01\x00\x00\x21\x12\xa4\x42"

func listenRaw(t *testing.T, ns *nstest.Namespace) *rawudp.Conn {
	t.Helper()
	var conn *rawudp.Conn
	var err error
	ns.Do(func() { conn, err = rawudp.Listen(rawudp.Options{Addr: shared.Addr(), Port: shared.Port()}) })
	if err != nil {
		t.Fatalf("rawudp.Listen: %v", err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}
