package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/pion/stun/v4"
	"golang.org/x/sys/unix"

	"github.com/bodkin-net/bodkin/punch"
	"github.com/bodkin-net/bodkin/punch/rawudp"
)

// stunPorts are the two of the rendezvous that are asked, unless it is configured
// otherwise.
var stunPorts = []uint16{3478, 3479}

// answerLimit bounds what is read of an HTTP answer, of which only the head counts.
const answerLimit = 1 << 16

// gatherTCP goes the agent's way to the rendezvous, as far as it leads.
func gatherTCP(ctx context.Context, f *Facts) {
	t := &f.TCP
	if f.Target.Err != nil {
		t.Connect = f.Target.Err
		return
	}
	dialer := net.Dialer{Control: marking(f.Config.Config.Mark)}
	began := time.Now()
	conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(f.Target.Host, f.Target.Port))
	if err != nil {
		t.Connect = err
		return
	}
	t.Took = time.Since(began)
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	session := tls.Client(conn, clientTLS(f, t))
	if t.HTTP = session.HandshakeContext(ctx); t.HTTP != nil {
		return
	}
	t.Server = session.ConnectionState().PeerCertificates[0]
	t.HTTP = askHTTP(ctx, session, f.Target.Host, t)
}

// clientTLS judges the rendezvous' certificate and goes on all the same: the time
// in the answer tells whether a clock is to blame. Nothing but the time is taken
// from it, and nothing is told.
func clientTLS(f *Facts, t *TCPFacts) *tls.Config {
	cfg := &tls.Config{
		MinVersion:         tls.VersionTLS13,
		ServerName:         f.Target.Host,
		InsecureSkipVerify: true, //nolint:gosec // judged below
		VerifyConnection: func(s tls.ConnectionState) error {
			t.TLS = verifyServer(f, s)
			return nil
		},
	}
	if pair, err := tls.LoadX509KeyPair(f.Config.Config.Certificate, f.Config.Config.Key); err == nil {
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg
}

func verifyServer(f *Facts, s tls.ConnectionState) error {
	ca, err := os.ReadFile(f.Config.Config.CA)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	between := x509.NewCertPool()
	for _, c := range s.PeerCertificates[1:] {
		between.AddCert(c)
	}
	_, err = s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, DNSName: f.Target.Host, CurrentTime: f.Now})
	return err
}

// askHTTP sends one request for a page that needs no account, and keeps the
// answer's status and date.
func askHTTP(ctx context.Context, session *tls.Conn, host string, t *TCPFacts) error {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialTLSContext:    func(context.Context, string, string) (net.Conn, error) { return session, nil },
	}}
	u := "https://" + net.JoinHostPort(host, "443") + "/v1/ca"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return errors.Unwrap(err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, answerLimit))
	t.Status = resp.StatusCode
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		t.Date, t.At = date, time.Now()
	}
	return nil
}

// marking has sockets carry a mark, as charon's own do.
func marking(mark uint32) func(string, string, syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		if mark == 0 {
			return nil
		}
		var failed error
		err := c.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark)) })
		return errors.Join(err, failed)
	}
}

// gatherRaw opens the shared port, as the agent does.
func gatherRaw(_ context.Context, f *Facts) {
	conn, err := rawudp.Listen(rawudp.Options{Addr: netip.AddrFrom4([4]byte{127, 0, 0, 1}), Port: ikePort, Mark: f.Config.Config.Mark})
	if err == nil {
		err = conn.Close()
	}
	f.Raw = err
}

// errNoAddress: there is nobody to ask.
var errNoAddress = errors.New("the rendezvous' address is not known")

// sourceFor is the address that packets to the rendezvous leave from, past the
// tunnels.
func sourceFor(f *Facts) (netip.Addr, error) {
	to := f.Target.addr()
	if !to.IsValid() {
		return netip.Addr{}, errNoAddress
	}
	r := routeTo(to, f.Config.Config.Mark)
	source := outside(r, f.Config)
	switch {
	case r.Err != nil:
		return netip.Addr{}, r.Err
	case !source.IsValid():
		return netip.Addr{}, fmt.Errorf("no source address for %s", to)
	}
	return source, nil
}

// gatherUDP asks both STUN ports of the rendezvous, from the IKE port and from one
// that nobody has.
func gatherUDP(ctx context.Context, f *Facts) {
	from, err := sourceFor(f)
	if err != nil {
		f.UDP.Err = err
		return
	}
	shared, err := rawudp.Listen(rawudp.Options{Addr: from, Port: ikePort, Mark: f.Config.Config.Mark})
	if err != nil {
		f.UDP.Err = err
		return
	}
	fresh, err := rawudp.ListenPlain(rawudp.PlainOptions{Addr: from, Mark: f.Config.Config.Mark})
	if err != nil {
		f.UDP.Err = errors.Join(err, shared.Close())
		return
	}
	var both sync.WaitGroup
	both.Go(func() { f.UDP.Shared = askSTUN(ctx, shared, f.Target.addr()) })
	both.Go(func() { f.UDP.Fresh = askSTUN(ctx, fresh, f.Target.addr()) })
	both.Wait()
}

// askSTUN sends a Binding request to each port, and closes conn.
func askSTUN(ctx context.Context, conn net.PacketConn, server netip.Addr) []STUNAnswer {
	answers := make([]STUNAnswer, len(stunPorts))
	for i, port := range stunPorts {
		answers[i] = STUNAnswer{Server: netip.AddrPortFrom(server, port)}
	}
	port, err := punch.NewPort([]net.PacketConn{conn}, slog.New(slog.DiscardHandler))
	if err != nil {
		err = errors.Join(err, conn.Close())
		for i := range answers {
			answers[i].Err = err
		}
		return answers
	}
	defer port.Close()
	base := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	var all sync.WaitGroup
	for i := range answers {
		all.Go(func() {
			got, err := port.Bind(ctx, base, answers[i].Server, punch.BindOptions{})
			answers[i].Mapped, answers[i].Err = got.Mapped, err
		})
	}
	all.Wait()
	return answers
}

const (
	// mtuRounds and mtuPause are how often a packet of each size is sent, as long as
	// none of its size is answered: at 5 % loss each way, four are lost once in ten
	// thousand times.
	mtuRounds = 4
	mtuPause  = 250 * time.Millisecond
	// ethernet is the largest packet that is of interest.
	ethernet = 1500
	// headers of UDP over IPv4.
	udpHeaders = 20 + 8
)

// mtuSizes are the sizes of IP packets that are tried: Ethernet, PPPoE, common
// tunnels, and the least that IPv6 permits.
var mtuSizes = []int{ethernet, 1492, 1480, 1472, 1460, 1452, 1440, 1420, 1400, 1380, 1360, 1340, 1320, 1300, 1280, 1200, 1000}

// filler is a STUN attribute that nobody knows and whoever does not know ignores
// (RFC 8489 section 14: comprehension-optional).
const filler = stun.AttrType(0xfb0d)

// gatherMTU sends STUN requests of many sizes that no router may fragment, and
// sees which are answered. IPv4 only.
func gatherMTU(ctx context.Context, f *Facts) {
	from, err := sourceFor(f)
	switch {
	case err != nil:
		f.MTU.Err = err
		return
	case !from.Is4():
		f.MTU.Err = errors.New("measured over IPv4 only")
		return
	case f.Target.Here:
		f.MTU.Err = errors.New("the rendezvous is this machine")
		return
	}
	conn, err := rawudp.ListenPlain(rawudp.PlainOptions{Addr: from, Mark: f.Config.Config.Mark})
	if err != nil {
		f.MTU.Err = err
		return
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	if err := dontFragment(conn); err != nil {
		f.MTU.Err = err
		return
	}
	f.MTU.Err = f.MTU.measure(ctx, conn, netip.AddrPortFrom(f.Target.addr(), stunPorts[0]))
	f.MTU.Known = routeTo(f.Target.addr(), f.Config.Config.Mark).MTU
}

// dontFragment sets DF and leaves what the kernel believes of the path aside.
func dontFragment(conn *net.UDPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
	})
	return errors.Join(err, failed)
}

// measure is done when the largest that could be sent is answered, or in the end.
func (m *MTUFacts) measure(ctx context.Context, conn *net.UDPConn, server netip.AddrPort) error {
	sizes := map[[stun.TransactionIDSize]byte]int{}
	buf := make([]byte, ethernet)
	for range mtuRounds {
		if ctx.Err() != nil {
			break
		}
		if err := m.send(conn, server, sizes); err != nil {
			return err
		}
		if err := conn.SetReadDeadline(time.Now().Add(mtuPause)); err != nil {
			return err
		}
		for m.Answered < m.Tried {
			n, err := conn.Read(buf)
			if err != nil {
				break // the pause is over; an ICMP error of a router ends it early
			}
			msg := stun.Message{Raw: buf[:n]}
			if msg.Decode() == nil {
				m.Answered = max(m.Answered, sizes[msg.TransactionID])
			}
		}
		if m.Answered == m.Tried {
			break
		}
	}
	return nil
}

// send sends one request of each size that has not been answered for yet. Those
// that are larger than the interface permits are not sent.
func (m *MTUFacts) send(conn *net.UDPConn, server netip.AddrPort, sizes map[[stun.TransactionIDSize]byte]int) error {
	for _, size := range mtuSizes {
		if size <= m.Answered {
			break
		}
		msg, err := request(size - udpHeaders)
		if err != nil {
			return err
		}
		sizes[msg.TransactionID] = size
		switch _, err := conn.WriteToUDPAddrPort(msg.Raw, server); {
		case err == nil:
			m.Tried = max(m.Tried, size)
		case errors.Is(err, unix.EMSGSIZE), errors.Is(err, unix.ECONNREFUSED):
		default:
			return err
		}
	}
	return nil
}

// request is a Binding request of exactly n bytes, a multiple of 4.
func request(n int) (*stun.Message, error) {
	const headers = 20 + 4 // the message's and the filler's
	return stun.Build(stun.TransactionID, stun.BindingRequest, stun.RawAttribute{Type: filler, Value: make([]byte, n-headers)})
}
