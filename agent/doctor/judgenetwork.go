package doctor

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/bodkin-net/bodkin/punch/rawudp"
)

func judgeTCP(f *Facts) Finding {
	t, target := f.TCP, f.Target
	if errors.Is(target.Err, errNoRendezvous) {
		return unconfigured(f)
	}
	if dns, is := errors.AsType[*net.DNSError](t.Connect); is {
		return problem(Fail, "the name %s is not resolved: %s", target.Host, dns.Err).
			meaning("the agent cannot find the rendezvous").
			mend("resolvectl query %s; cat /etc/resolv.conf", target.Host).
			mend("or put its address into agent.yaml: rendezvous: https://ADDRESS:%s", target.Port)
	}
	if t.Connect != nil {
		return unreached(f)
	}
	if t.TLS != nil {
		return untrusted(f)
	}
	if t.HTTP != nil {
		return problem(Fail, "%s: TLS or HTTP fails: %s", target.Host, t.HTTP).
			meaning("something answers on TCP %s that is no rendezvous, or it refuses this node's certificate", target.Port).
			mend("bodkin doctor --check certificate; on the rendezvous: journalctl -u bodkin-rendezvous | tail")
	}
	return ok("%s answers in %s", net.JoinHostPort(target.Host, target.Port), t.Took.Round(time.Millisecond/10))
}

// unreached: no TCP connection.
func unreached(f *Facts) Finding {
	at := net.JoinHostPort(f.Target.Host, f.Target.Port)
	x := problem(Fail, "TCP to %s: %s", at, systemError(f.TCP.Connect)).meaning("no session: tunnels that stand go on, none is made anew")
	switch {
	case errors.Is(f.TCP.Connect, syscall.ECONNREFUSED):
		return x.mend("on the rendezvous: systemctl status bodkin-rendezvous; ss -tlpn 'sport = :%s'", f.Target.Port).
			mend("before it: the port mapping of TCP %s", f.Target.Port)
	case errors.Is(f.TCP.Connect, syscall.ENETUNREACH), errors.Is(f.TCP.Connect, syscall.EHOSTUNREACH):
		return x.mend("ip route get %s", f.Target.addr())
	case stunAnswers(f.UDP.Fresh) > 0 || stunAnswers(f.UDP.Shared) > 0:
		return x.mend("UDP gets there: have the firewall of this network let TCP %s out", f.Target.Port)
	}
	return x.mend("ping %s; nc -vz %s %s   # a firewall of this network, or the rendezvous' (docs/operating.md, Firewalls)",
		f.Target.addr(), f.Target.Host, f.Target.Port)
}

// systemError is the innermost error's text.
func systemError(err error) string {
	if errors.Is(err, context.DeadlineExceeded) || os.IsTimeout(err) {
		return "no answer"
	}
	if op, is := errors.AsType[*net.OpError](err); is {
		return op.Err.Error()
	}
	return err.Error()
}

// untrusted: the rendezvous' certificate is not acceptable.
func untrusted(f *Facts) Finding {
	t := f.TCP
	x := problem(Fail, "the certificate of %s: %s", f.Target.Host, t.TLS)
	issuer := "unknown"
	if t.Server != nil {
		issuer = t.Server.Issuer.String()
	}
	var (
		hostname x509.HostnameError
		unknown  x509.UnknownAuthorityError
	)
	switch {
	case errors.As(t.TLS, &hostname):
		return x.meaning("agent.yaml names the rendezvous by a name or address that its certificate lacks").
			mend("in agent.yaml, rendezvous: one of %s", names(t.Server)).
			mend("or on the rendezvous: bodkin rendezvous init --renew, with that name or address")
	case errors.As(t.TLS, &unknown):
		return x.meaning("it was issued by %s: another rendezvous, another CA, or a proxy on the way that opens TLS", issuer).
			mend("put the rendezvous' CA into %s", f.Config.Config.CA).mend("or have the proxy let TCP %s be", f.Target.Port)
	case isTimeError(t.TLS):
		return x.meaning("by this machine's clock it is not valid").
			mend("bodkin doctor --check clock; if the clock is right, on the rendezvous: bodkin rendezvous init --renew")
	}
	return x.meaning("the agent does not believe the rendezvous").mend("bodkin doctor --check config --check certificate")
}

func names(c *x509.Certificate) string {
	if c == nil {
		return "those in its certificate"
	}
	out := slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		out = append(out, ip.String())
	}
	return strings.Join(out, ", ")
}

// stunAnswers counts them.
func stunAnswers(list []STUNAnswer) (n int) {
	for _, a := range list {
		if a.Err == nil {
			n++
		}
	}
	return n
}

func judgeUDP(f *Facts) Finding {
	u := f.UDP
	switch {
	case errors.Is(f.Target.Err, errNoRendezvous):
		return unconfigured(f)
	case !f.Target.addr().IsValid():
		return skipped("%s: see rendezvous-tcp", f.Target.Err)
	case errors.Is(u.Err, rawudp.ErrPermission):
		return skipped("see capabilities")
	case u.Err != nil:
		return problem(Fail, "%s", u.Err).meaning("no packet leaves this machine for the rendezvous").
			mend("ip route get %s; ip -br address", f.Target.addr())
	}
	shared, fresh, most := stunAnswers(u.Shared), stunAnswers(u.Fresh), len(stunPorts)
	mapped := f.Agent.Status.Mapped
	switch {
	case shared == most:
		return ok("UDP 4500 is seen as %s", u.Shared[0].Mapped)
	case shared == 0 && fresh == 0 && f.Agent.Err == nil && f.Agent.Status.Rendezvous.Connected && mapped.IsValid():
		return problem(Warn, "no answer from %s, UDP %d and %d, but a moment ago the agent had one: UDP 4500 was seen as %s",
			f.Target.addr(), stunPorts[0], stunPorts[1], mapped).
			meaning("UDP has just stopped to pass, or the rendezvous has its STUN service on other ports, and then all is well").
			mend("bodkin doctor --check rendezvous-udp   # in a minute").
			mend("on the rendezvous: ss -ulpn | grep bodkin")
	case shared == 0 && fresh == 0:
		return problem(Fail, "no answer from %s, UDP %d and %d", f.Target.addr(), stunPorts[0], stunPorts[1]).
			meaning("UDP does not leave this network, or does not get into the rendezvous': no direct tunnel, and no relayed one either").
			mend("have the firewall of this network let UDP 3478 to 3481 and UDP from port 4500 out").
			mend("on the rendezvous: ss -ulpn | grep 347, and its firewall (docs/operating.md, Firewalls)")
	case shared == 0:
		return problem(Fail, "the rendezvous' answers reach other ports of this machine, but not UDP 4500").
			meaning("a firewall here or on this network filters charon's port").
			mend("bodkin doctor --check host-firewall").
			mend("on the router and its provider: UDP 4500 (IPsec pass-through, IPsec blocking) out and its answers in")
	}
	var silent []string
	for _, a := range u.Shared {
		if a.Err != nil {
			silent = append(silent, portNumber(a))
		}
	}
	return problem(Warn, "no answer from UDP %s of the rendezvous; from the other there is one", strings.Join(silent, ", ")).
		meaning("what the NATs do cannot be told, and pairs that need it are tried blindly").
		mend("on the rendezvous and before it: open and map UDP 3478 to 3481 alike")
}

func portNumber(a STUNAnswer) string { return fmt.Sprint(a.Server.Port()) }

const (
	// espOverhead is what a tunnel adds to a packet with AES-GCM over IPv4: IP 20,
	// UDP 8, ESP 8, IV 8, padding and trailer up to 5, ICV 16.
	espOverhead = 65
	// libipsecMTU is that of kernel-libipsec's TUN device.
	libipsecMTU = 1400
	// mssHeaders are those of IP and TCP, which the MSS does not count.
	mssHeaders = 40
)

func judgeMTU(f *Facts) Finding {
	m := f.MTU
	switch {
	case errors.Is(f.Target.Err, errNoRendezvous):
		return unconfigured(f)
	case m.Err != nil:
		return skipped("%s", m.Err)
	case m.Answered == 0:
		return skipped("no packet of any size is answered: see rendezvous-udp")
	}
	inner := m.Answered - espOverhead
	mss := inner - mssHeaders
	clamp := func(x Finding) Finding {
		return x.mend("in strongswan.conf: charon.plugins.kernel-netlink { mtu = %d, mss = %d }   # for charon's routes", inner, mss).
			mend("nft 'add table inet mss; add chain inet mss f { type filter hook forward priority mangle; }; add rule inet mss f tcp flags syn tcp option maxseg size set %d'   # for pods behind this node", mss)
	}
	libipsec := f.Charon.Err == nil && f.Charon.libipsec()
	switch {
	case m.Answered < m.Tried && m.Known > m.Answered:
		return clamp(problem(Warn, "packets of more than %d bytes vanish on the way to the rendezvous, and nobody tells (%d are sent)", m.Answered, m.Tried).
			meaning("connections through tunnels stall as soon as they send much: a packet of %d bytes is the largest that fits", inner))
	case libipsec && inner < libipsecMTU:
		return clamp(problem(Warn, "packets of %d bytes fit the path, and with ESP in UDP those of the tunnel device take %d", m.Answered, libipsecMTU+espOverhead).
			meaning("they are sent in fragments, which many NATs and firewalls drop"))
	case m.Answered < m.Tried:
		return ok("%d bytes; routers on the way tell of it. Packets of up to %d fit a tunnel", m.Answered, inner)
	}
	return ok("%d bytes, all that the interface sends. Packets of up to %d fit a tunnel", m.Answered, inner)
}
