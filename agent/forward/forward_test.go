package forward

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/bodkin-net/bodkin/internal/nstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// arrival bounds the wait for what is sure to come, on any machine.
const arrival = 20 * time.Second

// hub is a connector between three edges and a host of its own, each in a
// namespace with an address inside its subnet.
type hub struct {
	*nstest.Namespace
	table *Table
	spoke map[string]*nstest.Namespace
}

func newHub(t *testing.T) *hub {
	t.Helper()
	h := &hub{Namespace: nstest.New(t), spoke: map[string]*nstest.Namespace{}}
	h.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0")
	for i, addr := range []string{edge1, edge2, edge3, connector} {
		n := nstest.New(t)
		h.spoke[addr] = n
		link := fmt.Sprintf("spoke%d", i)
		a := netip.MustParseAddr(addr)
		gateway := netip.AddrFrom4([4]byte{a.As4()[0], a.As4()[1], a.As4()[2], 254})
		nstest.Join(t, link, h.Namespace, gateway, n, a)
		n.Run(t, "ip", "route", "add", "default", "via", gateway.String())
	}
	h.table = h.open(t)
	return h
}

func (h *hub) open(t *testing.T) *Table {
	t.Helper()
	var table *Table
	var err error
	h.Do(func() { table, err = Open() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := table.Close(); err != nil {
			t.Error(err)
		}
	})
	return table
}

func (h *hub) listen(t *testing.T, addr string) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	var err error
	h.spoke[addr].Do(func() {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), 9999)))
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func send(t *testing.T, from *net.UDPConn, to, text string) {
	t.Helper()
	if _, err := from.WriteToUDPAddrPort([]byte(text), netip.AddrPortFrom(netip.MustParseAddr(to), 9999)); err != nil {
		t.Fatal(err)
	}
}

// receive reads until text comes.
func receive(t *testing.T, at *net.UDPConn, text string) {
	t.Helper()
	if err := at.SetReadDeadline(time.Now().Add(arrival)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 64)
	for {
		n, _, err := at.ReadFromUDPAddrPort(b)
		if err != nil {
			t.Fatalf("waiting for %q: %v", text, err)
		}
		if string(b[:n]) == text {
			return
		}
	}
}

func (h *hub) dropped(t *testing.T) uint64 {
	t.Helper()
	n, err := h.table.Dropped()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// mustDrop sends a packet and waits until the table has counted it.
func (h *hub) mustDrop(t *testing.T, from *net.UDPConn, to string) {
	t.Helper()
	before := h.dropped(t)
	send(t, from, to, "must not arrive")
	for deadline := time.Now().Add(arrival); h.dropped(t) == before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s → %s: not dropped", from.LocalAddr(), to)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestTable(t *testing.T) {
	h := newHub(t)
	const other = "table ip other {\n\tchain c {\n\t\tip saddr 192.0.2.7 accept\n\t}\n}\n"
	h.Nft(t, other)
	conns := map[string]*net.UDPConn{}
	for addr := range h.spoke {
		conns[addr] = h.listen(t, addr)
	}
	passes := func(from, to string) {
		t.Helper()
		text := fmt.Sprintf("%s to %s at %d", from, to, time.Now().UnixNano())
		send(t, conns[from], to, text)
		receive(t, conns[to], text)
	}

	present := func(want bool) {
		t.Helper()
		if is, err := h.table.Present(); err != nil || is != want {
			t.Errorf("table present: %v, err %v; want %v", is, err, want)
		}
	}

	present(false)
	must(t, h.table.Set(twoOfThree()))
	present(true)
	passes(edge1, edge2)
	passes(edge2, edge1)
	passes(edge3, connector)
	passes(connector, edge3)
	h.mustDrop(t, conns[edge3], edge1)
	h.mustDrop(t, conns[edge1], edge3)
	if got := h.dropped(t); got != 2 {
		t.Errorf("%d packets dropped, want the 2 that were", got)
	}

	// Another policy: who was a member is none, and the count goes on.
	p := twoOfThree()
	p.Groups[0] = prefixes("10.233.66.0/24", "10.233.67.0/24")
	must(t, h.table.Set(p))
	passes(edge3, edge2)
	h.mustDrop(t, conns[edge1], edge2)
	if got := h.dropped(t); got != 3 {
		t.Errorf("%d packets dropped, want 3", got)
	}

	// A process that comes back finds the table as it was.
	again := h.open(t)
	if n, err := again.Dropped(); err != nil || n != 3 {
		t.Errorf("another process sees %d dropped, err %v; want 3", n, err)
	}
	must(t, again.Set(twoOfThree()))
	passes(edge1, edge2)

	must(t, h.table.Remove())
	must(t, h.table.Remove()) // again: nothing to do
	present(false)
	passes(edge3, edge1)
	if tables := h.Run(t, "nft", "list", "ruleset"); tables != other {
		t.Errorf("left:\n%s\nwant the other table alone, as it was:\n%s", tables, other)
	}
	if n, err := h.table.Dropped(); err != nil || n != 0 {
		t.Errorf("without a table %d dropped, err %v", n, err)
	}
}

// TestSetHasNoWindow: while policies replace each other, of which none permits a
// stranger and all permit the members, no stranger's packet passes and no
// member's is dropped.
func TestSetHasNoWindow(t *testing.T) {
	h := newHub(t)
	conns := map[string]*net.UDPConn{}
	for _, addr := range []string{edge1, edge2, edge3} {
		conns[addr] = h.listen(t, addr)
	}
	wide := twoOfThree()
	wide.Range = prefixes("10.232.0.0/15")
	wide.Groups = append(wide.Groups, prefixes("10.233.67.0/24", "10.233.68.0/24"))
	must(t, h.table.Set(twoOfThree()))

	const each = 2000
	sent := make(chan error, 1)
	go func() {
		for range each {
			for _, from := range []string{edge1, edge3} {
				to := netip.AddrPortFrom(netip.MustParseAddr(edge2), 9999)
				if _, err := conns[from].WriteToUDPAddrPort([]byte(from), to); err != nil {
					sent <- err
					return
				}
			}
			time.Sleep(50 * time.Microsecond) // no more than the receiver's buffer holds
		}
		sent <- nil
	}()
	members, strangers := make(chan int, 1), make(chan int, 1)
	go func() {
		b, m, s := make([]byte, 64), 0, 0
		for {
			n, _, err := conns[edge2].ReadFromUDPAddrPort(b)
			if err != nil || string(b[:n]) == "end" {
				break
			}
			if string(b[:n]) == edge1 {
				m++
			} else {
				s++
			}
		}
		members <- m
		strangers <- s
	}()
	must(t, conns[edge2].SetReadDeadline(time.Now().Add(3*arrival)))
	changes := 0
	for done := false; !done; {
		for _, p := range []Policy{wide, twoOfThree()} {
			must(t, h.table.Set(p))
			changes++
		}
		select {
		case err := <-sent:
			must(t, err)
			done = true
		default:
		}
	}
	send(t, conns[edge1], edge2, "end")
	if m, s := <-members, <-strangers; m != each || s != 0 {
		t.Errorf("over %d changes %d of %d packets of a member and %d of a stranger came through", changes, m, each, s)
	}
	if got := h.dropped(t); got != each {
		t.Errorf("%d of a stranger's %d packets counted", got, each)
	}
}

func TestEnabled(t *testing.T) {
	ns := nstest.New(t)
	both := prefixes("10.0.0.0/8", "fd00::/16")
	for _, tt := range []struct {
		name, set string
		want      string // empty for enabled
	}{
		{"neither", "net.ipv4.ip_forward=0", "net.ipv4.ip_forward"},
		{"IPv4 alone", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding"},
		{"both", "net.ipv6.conf.all.forwarding=1", ""},
	} {
		ns.Run(t, "sysctl", "-qw", tt.set)
		var err error
		ns.Do(func() { err = Enabled(both) })
		if tt.want == "" && err != nil || tt.want != "" && (!errors.Is(err, ErrOff) || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v, want an error that says %q", tt.name, err, tt.want)
		}
	}
}

func TestClosed(t *testing.T) {
	h := &hub{Namespace: nstest.New(t)}
	table := h.open(t)
	must(t, table.Close())
	_, dropped := table.Dropped()
	_, present := table.Present()
	for what, err := range map[string]error{"Present": present, "Set": table.Set(Policy{}), "Remove": table.Remove(), "Dropped": dropped} {
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s after Close: %v, want net.ErrClosed", what, err)
		}
	}
}
