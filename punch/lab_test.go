package punch

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
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

// internet is a virtual network: 203.0.113.0/24 with a STUN server at .1, and
// networks behind NATs of their own.
type internet struct {
	t    testing.TB
	wan  *vnet.Router
	logs *logging.DefaultLoggerFactory
	// cut drops every packet on the WAN while true.
	cut  atomic.Bool
	stun *stunServer
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
	in.wan.AddChunkFilter(func(vnet.Chunk) bool { return !in.cut.Load() })
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

func (in *internet) addHost(r *vnet.Router, ip string) *vnet.Net {
	building.Lock()
	defer building.Unlock()
	n, err := vnet.NewNet(&vnet.NetConfig{StaticIPs: []string{ip}})
	must(in.t, err)
	must(in.t, r.AddNet(n))
	return n
}

// start brings the network up, with a STUN server on two ports.
func (in *internet) start(cred STUNCredential) {
	server := in.addHost(in.wan, "203.0.113.1")
	must(in.t, in.wan.Start())
	in.t.Cleanup(func() { must(in.t, in.wan.Stop()) })
	in.stun = startSTUN(in.t, cred, listen(in.t, server, "203.0.113.1:3478"), listen(in.t, server, "203.0.113.1:3479"))
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

// stunServer answers Binding requests on two ports, CHANGE-REQUEST included.
type stunServer struct {
	cred    STUNCredential
	conns   [2]net.PacketConn
	deaf    atomic.Bool // answers nothing
	forging atomic.Bool // signs answers with a wrong password
	answers sync.WaitGroup
}

func startSTUN(t testing.TB, cred STUNCredential, first, second net.PacketConn) *stunServer {
	s := &stunServer{cred: cred, conns: [2]net.PacketConn{first, second}}
	for i := range s.conns {
		s.answers.Go(func() { s.serve(i) })
	}
	t.Cleanup(func() {
		must(t, first.Close())
		must(t, second.Close())
		s.answers.Wait()
	})
	return s
}

func (s *stunServer) addrs() (out [2]netip.AddrPort) {
	for i, c := range s.conns {
		out[i] = c.LocalAddr().(*net.UDPAddr).AddrPort()
	}
	return out
}

func (s *stunServer) serve(i int) {
	buf := make([]byte, receiveMTU)
	for {
		n, from, err := s.conns[i].ReadFrom(buf)
		if err != nil {
			return
		}
		req := &stun.Message{Raw: append([]byte(nil), buf[:n]...)}
		if req.Decode() != nil || s.deaf.Load() {
			continue
		}
		reply := i
		if v, err := req.Get(stun.AttrChangeRequest); err == nil && v[3]&2 != 0 {
			reply = 1 - i
		}
		udp := from.(*net.UDPAddr)
		set := []stun.Setter{req, stun.BindingSuccess, &stun.XORMappedAddress{IP: udp.IP, Port: udp.Port}}
		if s.cred.Password != "" {
			password := s.cred.Password
			if s.forging.Load() {
				password = "another password"
			}
			if stun.NewShortTermIntegrity(s.cred.Password).Check(req) == nil {
				set = append(set, stun.NewShortTermIntegrity(password))
			} else {
				set = []stun.Setter{req, stun.BindingError, stun.CodeUnauthorized}
			}
		}
		res, err := stun.Build(append(set, stun.Fingerprint)...)
		if err != nil {
			return
		}
		if _, err := s.conns[reply].WriteTo(res.Raw, from); err != nil {
			return
		}
	}
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
