package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bodkin-net/bodkin/internal/nstest"
)

func TestHalve(t *testing.T) {
	for _, tt := range []struct{ whole, lower, upper string }{
		{"10.233.66.0/24", "10.233.66.0/25", "10.233.66.128/25"},
		{"10.233.66.7/24", "10.233.66.0/25", "10.233.66.128/25"},
		{"10.0.0.0/15", "10.0.0.0/16", "10.1.0.0/16"},
		{"10.0.0.2/31", "10.0.0.2/32", "10.0.0.3/32"},
		{"0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1"},
		{"fd00:1::/64", "fd00:1::/65", "fd00:1:0:0:8000::/65"},
	} {
		got, err := halve(netip.MustParsePrefix(tt.whole))
		want := [2]netip.Prefix{netip.MustParsePrefix(tt.lower), netip.MustParsePrefix(tt.upper)}
		if err != nil || got != want {
			t.Errorf("halve(%s) = %v, %v; want %v", tt.whole, got, err, want)
		}
	}
	if _, err := halve(netip.MustParsePrefix("10.0.0.1/32")); err == nil {
		t.Error("a single address has no halves: want an error")
	}
}

func TestDestination(t *testing.T) {
	four, six := make([]byte, 20), make([]byte, 40)
	four[0], four[16], four[19] = 0x45, 10, 7
	six[0], six[24], six[39] = 0x60, 0xfd, 7
	for _, tt := range []struct {
		packet []byte
		want   netip.Addr
	}{
		{four, netip.MustParseAddr("10.0.0.7")},
		{six, netip.MustParseAddr("fd00::7")},
		{four[:19], netip.Addr{}},
		{six[:39], netip.Addr{}},
		{nil, netip.Addr{}},
	} {
		if got := destination(tt.packet); got != tt.want {
			t.Errorf("destination(%x) = %v, want %v", tt.packet, got, tt.want)
		}
	}
}

// charonStage is a namespace in which a TUN device stands for charon's, with the
// routes that charon makes.
type charonStage struct {
	*testing.T
	tun  *os.File
	link netlink.Link
}

func newCharonStage(t *testing.T) charonStage {
	t.Helper()
	nstest.Enter(t)
	s := charonStage{T: t}
	lo, err := netlink.LinkByName("lo")
	s.must(err)
	s.tun, s.link, err = openTUN()
	s.must(err)
	t.Cleanup(func() { s.tun.Close() })
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rule := netlink.NewRule()
		rule.Priority, rule.Table, rule.Family = charonTable, charonTable, family
		s.must(netlink.RuleAdd(rule))
	}
	for own, peer := range map[string]string{"10.9.1.1/32": "10.9.2.0/24", "fd00:1::1/128": "fd00:2::/64"} {
		a := netip.MustParsePrefix(own)
		s.must(netlink.AddrAdd(lo, &netlink.Addr{IPNet: ipNet(a), Flags: unix.IFA_F_NODAD}))
		s.must(netlink.RouteAdd(&netlink.Route{
			LinkIndex: s.link.Attrs().Index, Table: charonTable, Dst: ipNet(netip.MustParsePrefix(peer)), Src: a.Addr().AsSlice(),
		}))
	}
	return s
}

func (s charonStage) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s charonStage) send(to, text string) {
	s.Helper()
	conn, err := net.Dial("udp", net.JoinHostPort(to, "9"))
	s.must(err)
	defer conn.Close()
	_, err = conn.Write([]byte(text))
	s.must(err)
}

// arrived are the last two bytes of the UDP packets that have come to charon's
// device, which are waited for if there are to be any.
func (s charonStage) arrived(count int) (texts []string) {
	s.Helper()
	patience := 5 * time.Second
	if count == 0 {
		patience = 100 * time.Millisecond
	}
	s.must(s.tun.SetReadDeadline(time.Now().Add(patience)))
	buf := make([]byte, maxPacket)
	for {
		n, err := s.tun.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return texts
		}
		s.must(err)
		if to := destination(buf[:n]); !to.IsMulticast() {
			if texts = append(texts, string(buf[n-2:n])); len(texts) == count {
				return texts
			}
		}
	}
}

func (s charonStage) routes() string {
	s.Helper()
	var all []string
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: charonTable}, netlink.RT_FILTER_TABLE)
		s.must(err)
		for _, r := range routes {
			all = append(all, fmt.Sprint(r.Dst, " ", r.LinkIndex))
		}
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// TestHold: what is sent while a hold is on arrives at its end, whole, and what is
// sent afterwards as before.
func TestHold(t *testing.T) {
	s := newCharonStage(t)
	before := s.routes()
	s.send("10.9.2.5", "a1")
	s.send("fd00:2::5", "a2")
	if got := s.arrived(2); !slices.Equal(got, []string{"a1", "a2"}) {
		t.Fatalf("%v arrived, want a1 and a2", got)
	}
	r := &run{log: slog.New(slog.DiscardHandler)}
	r.release() // of nothing
	r.peer.Endpoint.Subnets = prefixList("10.9.2.0/24", "fd00:2::/64")
	s.must(r.hold())
	r.held.timer.Stop() // a slow machine is no reason to go on
	for i, to := range []string{"10.9.2.5", "fd00:2::5", "10.9.2.200", "fd00:2:0:0:8000::5"} {
		s.send(to, fmt.Sprint("b", i))
	}
	if got := s.arrived(0); len(got) != 0 {
		t.Errorf("%v arrived during the hold", got)
	}
	r.release()
	r.release() // again
	s.send("10.9.2.5", "c1")
	// In order, family by family.
	if got, want := s.arrived(5), []string{"b0", "b2", "b1", "b3", "c1"}; !slices.Equal(got, want) {
		t.Errorf("%v arrived, want %v", got, want)
	}
	if after := s.routes(); after != before {
		t.Errorf("routes %s, want as before %s", after, before)
	}
}

// TestHoldRefused: where a hold would do harm or nothing there is none.
func TestHoldRefused(t *testing.T) {
	s := newCharonStage(t)
	before := s.routes()
	for _, subnets := range []string{"10.9.3.0/24", "10.9.2.0/25"} {
		if _, err := newHold(prefixList(subnets)); err == nil {
			t.Errorf("%s is not what charon has a route to: want an error", subnets)
		}
	}
	s.must(os.WriteFile("/proc/sys/net/ipv4/conf/"+s.link.Attrs().Name+"/rp_filter", []byte("1"), 0o644))
	if _, err := newHold(prefixList("10.9.2.0/24")); err == nil || !strings.Contains(err.Error(), "rp_filter") {
		t.Errorf("error %v, want one of rp_filter: the kernel would drop what comes in", err)
	}
	if after := s.routes(); after != before {
		t.Errorf("routes %s, want as before %s", after, before)
	}
}

// TestHoldDies: of a hold whose agent was killed the kernel leaves nothing.
func TestHoldDies(t *testing.T) {
	s := newCharonStage(t)
	before := s.routes()
	h, err := newHold(prefixList("10.9.2.0/24", "fd00:2::/64"))
	s.must(err)
	h.timer.Stop()
	if during := s.routes(); during == before {
		t.Fatalf("routes %s: want more", during)
	}
	s.must(h.tun.Close()) // as the end of the process does
	h.reader.Wait()
	if after := s.routes(); after != before {
		t.Errorf("routes %s, want as before %s", after, before)
	}
	s.send("10.9.2.5", "a1")
	if got := s.arrived(1); !slices.Equal(got, []string{"a1"}) {
		t.Errorf("%v arrived, want a1", got)
	}
}
