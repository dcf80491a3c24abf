package punch

import (
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/logging"
	"github.com/pion/stun/v4"
	"github.com/pion/transport/v5/vnet"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for something that must happen. It is no
// measure of speed: the machine may be busy.
const patience = 20 * time.Second

var (
	fullCone          = vnet.NATType{MappingBehavior: vnet.EndpointIndependent, FilteringBehavior: vnet.EndpointIndependent}
	addressRestricted = vnet.NATType{MappingBehavior: vnet.EndpointIndependent, FilteringBehavior: vnet.EndpointAddrDependent}
	portRestricted    = vnet.NATType{MappingBehavior: vnet.EndpointIndependent, FilteringBehavior: vnet.EndpointAddrPortDependent}
	symmetricNAT      = vnet.NATType{MappingBehavior: vnet.EndpointAddrPortDependent, FilteringBehavior: vnet.EndpointAddrPortDependent}
)

// testLog is silent unless PUNCH_TEST_LOG is set: pion says a lot.
func testLog(t testing.TB) *slog.Logger {
	if os.Getenv("PUNCH_TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// internet is a virtual network: 203.0.113.0/24 with a STUN server at .1 and
// .2, and networks behind NATs of their own.
type internet struct {
	t    testing.TB
	wan  *vnet.Router
	logs *logging.DefaultLoggerFactory
	// cut drops every packet on the WAN while true.
	cut atomic.Bool
	// losses is how many of the STUN server's next packets are lost, of those
	// that come from where nobody asked.
	losses atomic.Int32
	stun   *stunServer
	// fresh opens another port of the last host that was put behind a NAT.
	fresh func() (net.PacketConn, error)
}

// building serialises the making of virtual interfaces: vnet counts their MAC
// addresses in an unguarded variable.
var building sync.Mutex

func newInternet(t testing.TB) *internet { return newInternetWith(t, 0) }

func newInternetWith(t testing.TB, delay time.Duration) *internet {
	logs := logging.NewDefaultLoggerFactory()
	logs.Writer = io.Discard
	in := &internet{t: t, logs: logs}
	in.wan = in.newRouter(&vnet.RouterConfig{CIDR: "203.0.113.0/24", MinDelay: delay})
	in.wan.AddChunkFilter(func(c vnet.Chunk) bool {
		return !in.cut.Load() && (!strings.HasSuffix(c.SourceAddr().String(), alternatePort) || in.losses.Add(-1) < 0)
	})
	return in
}

// addSite adds a network behind a NAT, e.g. 192.168.1 behind 203.0.113.10.
func (in *internet) addSite(wanIP, lan string, nat vnet.NATType) *vnet.Router {
	r := in.newRouter(&vnet.RouterConfig{CIDR: lan + ".0/24", StaticIPs: []string{wanIP}, NATType: &nat})
	must(in.t, in.wan.AddRouter(r))
	return r
}

func (in *internet) newRouter(cfg *vnet.RouterConfig) *vnet.Router {
	building.Lock()
	defer building.Unlock()
	cfg.LoggerFactory = in.logs
	r, err := vnet.NewRouter(cfg)
	must(in.t, err)
	return r
}

func (in *internet) addHost(r *vnet.Router, ips ...string) *vnet.Net {
	building.Lock()
	defer building.Unlock()
	n, err := vnet.NewNet(&vnet.NetConfig{StaticIPs: ips})
	must(in.t, err)
	must(in.t, r.AddNet(n))
	return n
}

// alternatePort ends the addresses that the STUN server sends from when it is
// asked to change its port.
const alternatePort = ":3480"

// start brings the network up, with a STUN server of two ports to ask and two
// to answer from, all on one address.
func (in *internet) start(cred STUNCredential) {
	in.startWith(cred, map[int]int{0: 2, 1: 3}, "203.0.113.1:3478", "203.0.113.1:3479", "203.0.113.1:3480", "203.0.113.1:3481")
}

// startTwoAddrs is start with a second address, RFC 5780 section 6.1.
func (in *internet) startTwoAddrs(cred STUNCredential) {
	in.startWith(cred, map[int]int{0: 4}, "203.0.113.1:3478", "203.0.113.1:3479", "203.0.113.1:3480", "203.0.113.2:3478", "203.0.113.2:3480")
}

func (in *internet) startWith(cred STUNCredential, other map[int]int, addrs ...string) {
	server := in.addHost(in.wan, "203.0.113.1", "203.0.113.2")
	must(in.t, in.wan.Start())
	in.t.Cleanup(func() { must(in.t, in.wan.Stop()) })
	var conns []net.PacketConn
	for _, a := range addrs {
		conns = append(conns, listen(in.t, server, a))
	}
	in.stun = startSTUN(in.t, cred, other, conns...)
	in.stun.strangers.Store(true)
}

func listen(t testing.TB, n *vnet.Net, addr string) net.PacketConn {
	c, err := n.ListenPacket("udp4", addr)
	must(t, err)
	return c
}

func openPort(t testing.TB, conns ...net.PacketConn) *Port {
	p, err := NewPort(conns, testLog(t))
	must(t, err)
	t.Cleanup(func() { must(t, p.Close()) })
	return p
}

// stunServer answers Binding requests, with CHANGE-REQUEST and RESPONSE-PORT
// where other says from where.
type stunServer struct {
	cred STUNCredential
	// strangers are answered without a credential, as the rendezvous does.
	strangers atomic.Bool
	conns     []net.PacketConn
	other     map[netip.AddrPort]netip.AddrPort
	deaf      atomic.Bool // answers nothing
	forging   atomic.Bool // signs answers with a wrong password
	// told, if not nil, is where a request from an address seems to come from.
	told    func(net.IP) net.IP
	readers sync.WaitGroup
}

var movedTo = netip.MustParseAddr("203.0.113.99")

// moveAfter makes the NAT's address seem another one after so many answers.
func (s *stunServer) moveAfter(answers int32) {
	var given atomic.Int32
	s.told = func(ip net.IP) net.IP {
		if given.Add(1) > answers {
			return movedTo.AsSlice()
		}
		return ip
	}
}

// startSTUN answers on conns; other says which of them differs from which in
// all that it can.
func startSTUN(t testing.TB, cred STUNCredential, other map[int]int, conns ...net.PacketConn) *stunServer {
	s := &stunServer{cred: cred, conns: conns, other: map[netip.AddrPort]netip.AddrPort{}}
	for i, j := range other {
		s.other[localOf(conns[i])] = localOf(conns[j])
	}
	for _, c := range conns {
		s.readers.Go(func() { s.serve(c) })
	}
	t.Cleanup(func() {
		for _, c := range conns {
			must(t, c.Close())
		}
		s.readers.Wait()
	})
	return s
}

// addrs are the two to be asked.
func (s *stunServer) addrs() [2]netip.AddrPort { return [2]netip.AddrPort(s.all()[:2]) }

func (s *stunServer) all() (out []netip.AddrPort) {
	for _, c := range s.conns {
		out = append(out, localOf(c))
	}
	return out
}

func localOf(c net.PacketConn) netip.AddrPort {
	return unmap(c.LocalAddr().(*net.UDPAddr).AddrPort())
}

// at is the socket with an address, nil when there is none.
func (s *stunServer) at(a netip.AddrPort) net.PacketConn {
	for _, c := range s.conns {
		if localOf(c) == a {
			return c
		}
	}
	return nil
}

func (s *stunServer) serve(c net.PacketConn) {
	buf := make([]byte, receiveMTU)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		req := &stun.Message{Raw: append([]byte(nil), buf[:n]...)}
		if req.Decode() != nil || s.deaf.Load() {
			continue
		}
		if err := s.answer(c, req, from.(*net.UDPAddr)); err != nil {
			return
		}
	}
}

func (s *stunServer) answer(c net.PacketConn, req *stun.Message, from *net.UDPAddr) error {
	local := localOf(c)
	other, reply, to := s.other[local], local, *from
	seen := from.IP
	if s.told != nil {
		seen = s.told(seen)
	}
	set := []stun.Setter{req, stun.BindingSuccess, &stun.XORMappedAddress{IP: seen, Port: from.Port}}
	if other.IsValid() {
		set = append(set, &stun.OtherAddress{IP: other.Addr().AsSlice(), Port: int(other.Port())})
	}
	if v, err := req.Get(stun.AttrChangeRequest); err == nil {
		if v[3]&changePort != 0 {
			reply = netip.AddrPortFrom(reply.Addr(), other.Port())
		}
		if v[3]&changeAddr != 0 {
			reply = netip.AddrPortFrom(other.Addr(), reply.Port())
		}
		if s.at(reply) == nil || v[3]&changeAddr != 0 && other.Addr() == local.Addr() {
			set, reply = []stun.Setter{req, stun.BindingError, stun.CodeUnknownAttribute}, local
		}
	}
	if v, err := req.Get(stun.AttrResponsePort); err == nil {
		to.Port = int(binary.BigEndian.Uint16(v))
	}
	if s.cred.Password != "" && (req.Contains(stun.AttrUsername) || !s.strangers.Load()) {
		password := s.cred.Password
		if s.forging.Load() {
			password = "another password"
		}
		if stun.NewShortTermIntegrity(s.cred.Password).Check(req) == nil {
			set = append(set, stun.NewShortTermIntegrity(password))
		} else {
			set, reply, to = []stun.Setter{req, stun.BindingError, stun.CodeUnauthorized}, local, *from
		}
	}
	res, err := stun.Build(append(set, stun.Fingerprint)...)
	if err != nil {
		return err
	}
	_, err = s.at(reply).WriteTo(res.Raw, &to)
	return err
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually polls until ok or patience ends.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("never happened: %s", what)
		case <-tick.C:
		}
	}
}
