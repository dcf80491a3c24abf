package doctor

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/agent"
	"github.com/bodkin-net/bodkin/agent/charon"
	"github.com/bodkin-net/bodkin/agent/doctor/ruleset"
	"github.com/bodkin-net/bodkin/punch/rawudp"
	"github.com/bodkin-net/bodkin/punch/rewrite"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func subnet(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// well are the facts of an edge on which all is well, with ESP in the kernel.
func well() Facts {
	f := Facts{Now: now, Version: "v1"}
	cfg := agent.DefaultConfig()
	cfg.Rendezvous = "https://203.0.113.1:7443"
	f.Config = ConfigFacts{Path: "/etc/bodkin/agent.yaml", Config: cfg, Subnets: []netip.Prefix{subnet("10.1.0.0/24")}}
	f.Cert = CertFacts{KeyMode: 0o600, Leaf: &x509.Certificate{
		Subject: pkix.Name{CommonName: "beijing.edge1"}, NotBefore: now.AddDate(0, -1, 0), NotAfter: now.AddDate(1, 0, 0),
		PublicKeyAlgorithm: x509.ECDSA, SignatureAlgorithm: x509.ECDSAWithSHA256,
	}}
	f.Units = UnitFacts{Systemd: true, Charon: starterUnit}
	f.Target = TargetFacts{Host: "203.0.113.1", Port: "7443", Addrs: []netip.Addr{netip.MustParseAddr("203.0.113.1")}}
	f.Agent = AgentFacts{PID: 7, Service: "active", Status: agent.Status{
		Node: "beijing.edge1", Version: "v1",
		Rendezvous: agent.ConnectionStatus{Connected: true}, Charon: agent.ConnectionStatus{Connected: true},
		Mapped:  netip.MustParseAddrPort("198.51.100.9:4500"),
		Tunnels: []agent.TunnelStatus{{Peer: "beijing.edge2", State: "direct"}},
	}}
	f.Charon = CharonFacts{
		Version: charon.Version{Daemon: "charon", Version: "5.9.8"},
		Plugins: strings.Fields("aes x509 pem openssl kernel-netlink vici"),
		Conns: []charon.ConnectionInfo{{Name: "beijing.edge2", RemoteID: "C=CN, O=fabedge.io, CN=beijing.edge2", Children: []charon.ChildInfo{
			{Name: "beijing.edge2-p2p", LocalTS: []charon.Selector{"10.1.0.0/24"}, RemoteTS: []charon.Selector{"10.2.0.0/24"}},
			{Name: "beijing.edge2-relay", RemoteTS: []charon.Selector{"10.0.0.0/8"}},
		}}},
		SAs: []charon.SA{{Name: "beijing.edge2"}},
	}
	daemon := Process{42, "charon"}
	f.Ports = PortFacts{
		IKE: []Holder{{netip.MustParseAddrPort("0.0.0.0:4500"), daemon}}, IKE500: []Holder{{netip.MustParseAddrPort("0.0.0.0:500"), daemon}},
		Daemons: []Process{daemon, {41, "starter"}},
	}
	out := Route{Interface: ruleset.Interface{Index: 2, Name: "eth0"}, Source: netip.MustParseAddr("192.168.1.2"), MTU: 1500}
	f.Kernel = KernelFacts{
		Networks: []Network{{"lo", true, subnet("127.0.0.1/8")}, {"eth0", false, subnet("192.168.1.2/24")}, {"cni0", false, subnet("10.1.0.1/24")}},
		Plain:    out, Marked: out, Source: out.Source, Defaults: []string{"eth0"}, Rules: []TableRule{{}},
		Policies: []Policy{{Src: subnet("10.1.0.0/24"), Dst: subnet("10.2.0.0/24"), Out: true, Priority: 100, Transforms: true}},
		Settings: map[string]int{"ipv4/ip_forward": 1, "ipv4/conf/eth0/rp_filter": 2, "netfilter/nf_conntrack_count": 5, "netfilter/nf_conntrack_max": 1000},
	}
	f.Netfilter.Rules = &ruleset.Ruleset{}
	f.TCP = TCPFacts{Status: 200, Date: now, At: now.Add(300 * time.Millisecond)}
	mapped := STUNAnswer{Server: netip.MustParseAddrPort("203.0.113.1:3478"), Mapped: netip.MustParseAddrPort("198.51.100.9:4500")}
	other := mapped
	other.Server = netip.MustParseAddrPort("203.0.113.1:3479")
	f.UDP = UDPFacts{Shared: []STUNAnswer{mapped, other}, Fresh: []STUNAnswer{mapped, other}}
	f.MTU = MTUFacts{Answered: 1500, Tried: 1500, Known: 1500}
	f.State = StateFacts{Dir: "/var/lib/bodkin", Free: 1 << 30, Owned: []string{"beijing.edge2"}}
	return f
}

// libipsec has charon do ESP itself, as it shall.
func libipsec(f *Facts) {
	f.Charon.Plugins = append([]string{"kernel-libipsec", "gcm"}, f.Charon.Plugins...)
	f.Config.Config.Mark = 0x42
	f.Kernel.Rules = []TableRule{{Mark: 0x42, Invert: true}}
	f.Kernel.Policies = nil
}

func silence(list []STUNAnswer, which ...int) {
	for _, i := range which {
		list[i].Mapped, list[i].Err = netip.AddrPort{}, errors.New("no answer")
	}
}

func TestAllIsWell(t *testing.T) {
	for name, change := range map[string]func(*Facts){
		"ESP in the kernel":     func(*Facts) {},
		"ESP in user space":     libipsec,
		"charon without a name": func(f *Facts) { f.Ports.IKE[0].Process = Process{}; f.Ports.Daemons = nil },
		"connector": func(f *Facts) {
			f.Config.Config.Endpoint.Type, f.Target.Here = string(wire.Connector), true
		},
		"another VPN in charon": func(f *Facts) {
			f.Charon.Conns = append(f.Charon.Conns, charon.ConnectionInfo{Name: "office", RemoteID: "CN=office", RemoteAddrs: []string{"192.0.2.1"},
				Children: []charon.ChildInfo{{RemoteTS: []charon.Selector{"172.16.0.0/12"}}}})
		},
		"a child that relays meets everything": func(f *Facts) {
			f.Charon.Conns[0].Children[1].RemoteTS = []charon.Selector{"0.0.0.0/0"}
		},
		"a policy for one protocol": func(f *Facts) {
			f.Kernel.Policies = append(f.Kernel.Policies, Policy{Src: subnet("192.168.1.2/32"), Dst: subnet("203.0.113.1/32"), Out: true, Transforms: true, Narrow: true})
		},
		"a pass before a policy": func(f *Facts) {
			all := subnet("0.0.0.0/0")
			f.Kernel.Policies = append(f.Kernel.Policies, Policy{Src: all, Dst: all, Out: true, Priority: 9, Transforms: true}, Policy{Src: all, Dst: all, Out: true, Priority: 1})
		},
		"PPPoE, and routers tell": func(f *Facts) { f.MTU = MTUFacts{Answered: 1492, Tried: 1500, Known: 1492} },
		"an edge without pods": func(f *Facts) {
			f.Kernel.Networks, f.Kernel.Settings["ipv4/ip_forward"] = f.Kernel.Networks[:2], 0
		},
	} {
		f := well()
		change(&f)
		for _, c := range checks {
			got := c.judge(&f)
			if got.Verdict != OK && got.Verdict != Skipped || got.Found == "" || got.Means != "" {
				t.Errorf("%s: %s: %+v", name, c.id, got)
			}
		}
	}
}

func TestVerdicts(t *testing.T) {
	refused := &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	policy := func(src, dst string, out bool) Policy {
		return Policy{Src: subnet(src), Dst: subnet(dst), Out: out, Transforms: true}
	}
	conn := func(c charon.ConnectionInfo) func(*Facts) {
		return func(f *Facts) { f.Charon.Conns = append(f.Charon.Conns, c) }
	}
	for _, tt := range []struct {
		check  ID
		change func(*Facts)
		want   Verdict
		words  string
	}{
		{"config", func(f *Facts) { f.Config.Missing = true }, Skipped, "bodkin join"},
		{"config", func(f *Facts) { f.Config.Err = errors.New("agent.yaml: line 3: no such key") }, Fail, "line 3"},
		{"config", func(f *Facts) { f.Config.Whole = errors.New("rendezvous: no URL") }, Fail, "the agent does not start"},

		{"certificate", func(f *Facts) { f.Cert = CertFacts{Err: fs.ErrPermission} }, Skipped, "as root"},
		{"certificate", func(f *Facts) { f.Cert = CertFacts{Err: fs.ErrNotExist} }, Fail, "nothing to prove itself"},
		{"certificate", func(f *Facts) { f.Cert = CertFacts{Err: fs.ErrNotExist}; f.Config.Missing = true }, Skipped, "no configuration"},
		{"certificate", func(f *Facts) { f.Cert.Untrusted = errors.New("unknown authority") }, Fail, "is not signed by"},
		{"certificate", func(f *Facts) { f.Now = now.AddDate(2, 0, 0) }, Fail, "expired on"},
		{"certificate", func(f *Facts) { f.Now = now.AddDate(1, 0, -10) }, Warn, "expires on"},
		{"certificate", func(f *Facts) { f.Cert.KeyMode = 0o640 }, Warn, "chmod 600"},

		{"clock", func(f *Facts) { f.TCP.Date = now.Add(time.Hour) }, Warn, " behind the rendezvous'"},
		{"clock", func(f *Facts) { f.TCP.Date = now.Add(-time.Hour) }, Warn, "ahead of the rendezvous'"},
		{"clock", func(f *Facts) { f.Now = now.AddDate(-5, 0, 0); f.TCP.At = f.Now }, Fail, "this machine's clock is wrong"},
		{"clock", func(f *Facts) { f.Now = now.AddDate(-5, 0, 0); f.TCP = TCPFacts{} }, Fail, "before the certificate's begin"},
		{"clock", func(f *Facts) {
			f.TCP.Date, f.TCP.TLS = now.Add(time.Hour), &tls.CertificateVerificationError{Err: x509.CertificateInvalidError{Reason: x509.Expired}}
		}, Fail, "the rendezvous' certificate is not valid"},
		{"clock", func(f *Facts) { f.TCP, f.Cert = TCPFacts{}, CertFacts{} }, Skipped, "does not tell"},

		{"capabilities", func(f *Facts) { f.Raw = fmt.Errorf("rawudp: %w", rawudp.ErrPermission) }, Fail, "sudo bodkin doctor"},
		{"capabilities", func(f *Facts) { f.Raw = syscall.EAFNOSUPPORT }, Fail, "forbids raw sockets"},
		{"capabilities", func(f *Facts) { f.Agent.Lacks = []string{"CAP_NET_RAW"} }, Fail, "AmbientCapabilities"},

		{"vici", func(f *Facts) { f.Charon.Err = fmt.Errorf("VICI: %w", fs.ErrNotExist) }, Fail, "systemctl enable --now strongswan-starter"},
		{"vici", func(f *Facts) {
			f.Units.Charon, f.Charon.Err = strongswanUnit, fs.ErrNotExist
		}, Fail, "systemctl enable --now strongswan\n"},
		{"vici", func(f *Facts) { f.Units.Charon, f.Charon.Err = "", fs.ErrNotExist }, Fail, "# with charon-systemd: strongswan"},
		{"vici", func(f *Facts) { f.Units, f.Charon.Err = UnitFacts{}, fs.ErrNotExist }, Fail, "ipsec restart"},
		{"vici", func(f *Facts) { f.Charon.Err = fmt.Errorf("VICI: %w", fs.ErrPermission) }, Fail, "sudo bodkin doctor"},
		{"vici", func(f *Facts) { f.Charon.Err = charon.ErrTimeout }, Fail, "journalctl -n 50 -t charon"},
		{"vici", func(f *Facts) { f.Charon.Version.Version = "5.8.4" }, Fail, "needs 5.9.2"},

		{"plugins", func(f *Facts) { f.Charon.Plugins = strings.Fields("aes x509 pem kernel-netlink curve25519") }, Fail, "no ECDSA"},
		{"plugins", func(f *Facts) { f.Charon.Plugins = strings.Fields("openssl pem") }, Fail, "kernel-netlink"},
		{"plugins", func(f *Facts) {
			f.Cert.Leaf = nil
			f.Charon.Plugins = strings.Fields("aes x509 pem curve25519 kernel-libipsec kernel-netlink")
		}, Fail, "no AES-GCM in user space"},
		{"plugins", func(f *Facts) { f.Charon.Plugins = strings.Fields("openssl pem kernel-netlink kernel-libipsec") }, Fail, "loaded after"},

		{"ike-port", func(f *Facts) { f.Ports.IKE[0].Process = Process{9, "socat"} }, Fail, "is held by socat (pid 9)"},
		{"ike-port", func(f *Facts) { f.Ports.IKE = nil }, Fail, "nobody holds UDP 4500"},
		{"ike-port", func(f *Facts) {
			f.Ports.IKE, f.Ports.Others = nil, []Holder{{netip.MustParseAddrPort("0.0.0.0:14500"), Process{42, "charon"}}}
		}, Fail, "has UDP 14500 and nobody has 4500"},
		{"ike-port", func(f *Facts) { f.Ports.IKE500[0].Process = Process{9, "iked"} }, Warn, "another IKE daemon?"},

		{"esp", func(f *Facts) { f.ICMP.Refused = true }, Fail, "modprobe -a esp4 esp6"},
		{"esp", func(f *Facts) { f.ICMP.Refused, f.Ports.IKE = true, nil }, Skipped, "see ike-port"},

		{"socket-mark", func(f *Facts) { f.ICMP.Refused = true }, Skipped, "see esp"},
		{"socket-mark", func(f *Facts) { libipsec(f); f.Kernel.Rules = []TableRule{{}} }, Fail, "fwmark = !0x42"},
		{"socket-mark", func(f *Facts) { libipsec(f); f.Config.Config.Mark = 0 }, Fail, "in agent.yaml: mark: 0x42"},
		{"socket-mark", func(f *Facts) { libipsec(f); f.Config = ConfigFacts{Missing: true} }, OK, "0x42"},

		{"competitors", func(f *Facts) { f.Ports.Daemons = append(f.Ports.Daemons, Process{9, "pluto"}) }, Fail, "pluto (pid 9)"},
		{"competitors", func(f *Facts) { f.Ports.Daemons = append(f.Ports.Daemons, Process{9, "charon-systemd"}) }, Fail, "two charons"},
		{"competitors", func(f *Facts) { f.Ports.Daemons = append(f.Ports.Daemons, Process{9, "fabedge-agent"}) }, Fail, "FabEdge"},
		{"competitors", func(f *Facts) { f.State.Owned = nil }, Fail, "of the name of a peer"},
		{"competitors", func(f *Facts) { f.Charon.Conns = nil }, Warn, "swanctl --terminate --ike beijing.edge2"},
		{"competitors", conn(charon.ConnectionInfo{Name: "old", RemoteID: "CN=beijing.edge2"}), Fail, "with the peer beijing.edge2"},
		{"competitors", conn(charon.ConnectionInfo{Name: "vpn", RemoteID: "x", Children: []charon.ChildInfo{{Name: "n", RemoteTS: []charon.Selector{"10.2.0.0/16"}}}}), Fail, "meets 10.2.0.0/24"},
		{"competitors", conn(charon.ConnectionInfo{Name: "rw", RemoteAddrs: []string{"%any"}}), Warn, "anybody from anywhere"},

		{"host-firewall", func(f *Facts) { f.Netfilter.Err = syscall.EPERM }, Skipped, "not permitted"},
		{"ipsec-capture", func(f *Facts) { f.Kernel.Policies = []Policy{policy("0.0.0.0/0", "203.0.113.0/24", true)} }, Fail, "dir out"},
		{"ipsec-capture", func(f *Facts) { f.Kernel.Policies = []Policy{policy("0.0.0.0/0", "192.168.1.2/32", false)} }, Fail, "dir in"},
		{"ipsec-capture", func(f *Facts) {
			f.Kernel.Marked.Tunnel, f.Kernel.Marked.Interface.Name = true, "ipsec0"
		}, Fail, "leads into the tunnel device ipsec0"},

		{"table-220", func(f *Facts) { f.Kernel.Rules = nil }, Warn, "install_routes"},
		{"table-220", func(f *Facts) { libipsec(f); f.Kernel.Rules = nil }, Fail, "nothing is routed"},
		{"rp-filter", func(f *Facts) { f.Kernel.Settings["ipv4/conf/eth0/rp_filter"] = 1 }, OK, "the only way out"},
		{"rp-filter", func(f *Facts) {
			f.Kernel.Settings["ipv4/conf/eth0/rp_filter"], f.Kernel.Defaults = 1, []string{"wwan0", "eth0", "eth0"}
		}, Warn, "eth0 and wwan0"},
		{"rp-filter", func(f *Facts) { libipsec(f); f.Kernel.Settings["ipv4/conf/eth0/rp_filter"] = 1 }, Warn, "user space"},
		{"rp-filter", func(f *Facts) {
			libipsec(f)
			f.Kernel.Plain.Tunnel, f.Kernel.Settings["ipv4/conf/eth0/rp_filter"] = true, 1
		}, Fail, "rp_filter=2"},
		{"forwarding", func(f *Facts) { f.Kernel.Settings["ipv4/ip_forward"] = 0 }, Fail, "cni0"},
		{"forwarding", func(f *Facts) {
			f.Config.Config.Endpoint.Type, f.Kernel.Settings["ipv4/ip_forward"] = string(wire.Connector), 0
		}, Fail, "relays nothing"},
		{"forwarding", func(f *Facts) { f.Kernel.Settings["ipv4/conf/cni0/forwarding"] = 0 }, Warn, "on cni0"},
		{"forwarding", func(f *Facts) { f.Config.Subnets = append(f.Config.Subnets, subnet("fd00::/64")) }, Warn, "IPv6"},

		{"subnets", func(f *Facts) { f.Config.Subnets = []netip.Prefix{subnet("192.168.0.0/16")} }, Fail, "the network of eth0 that leads out"},
		{"subnets", func(f *Facts) { f.Config.Subnets = []netip.Prefix{subnet("10.2.0.0/25")} }, Fail, "10.2.0.0/24 of beijing.edge2 overlap"},
		{"subnets", func(f *Facts) { f.Kernel.Networks[1].Prefix = subnet("10.2.0.9/24") }, Fail, "an address of this node's eth0"},

		{"rendezvous-tcp", func(f *Facts) { f.TCP = TCPFacts{Connect: refused} }, Fail, "connection refused"},
		{"rendezvous-tcp", func(f *Facts) { f.TCP = TCPFacts{Connect: &net.DNSError{Err: "no such host"}} }, Fail, "is not resolved"},
		{"rendezvous-tcp", func(f *Facts) { f.TCP = TCPFacts{Connect: errTimeout{}} }, Fail, "let TCP 7443 out"},
		{"rendezvous-tcp", func(f *Facts) { f.TCP = TCPFacts{Connect: errTimeout{}}; f.UDP = UDPFacts{} }, Fail, "nc -vz"},
		{"rendezvous-tcp", func(f *Facts) { f.TCP.TLS = x509.UnknownAuthorityError{} }, Fail, "opens TLS"},
		{"rendezvous-tcp", func(f *Facts) {
			f.TCP.Server = &x509.Certificate{DNSNames: []string{"hub.example"}}
			f.TCP.TLS = x509.HostnameError{Certificate: f.TCP.Server, Host: "203.0.113.1"}
		}, Fail, "one of hub.example"},
		{"rendezvous-tcp", func(f *Facts) { f.TCP.TLS = x509.CertificateInvalidError{Reason: x509.Expired} }, Fail, "--check clock"},
		{"rendezvous-tcp", func(f *Facts) { f.TCP.HTTP = errors.New("remote error: tls: bad certificate") }, Fail, "bad certificate"},

		{"rendezvous-udp", func(f *Facts) { silence(f.UDP.Shared, 0, 1) }, Fail, "but not UDP 4500"},
		{"rendezvous-udp", func(f *Facts) { silence(f.UDP.Shared, 1) }, Warn, "no answer from UDP 3479"},
		{"rendezvous-udp", func(f *Facts) { silence(f.UDP.Shared, 0, 1); silence(f.UDP.Fresh, 0, 1) }, Warn, "a moment ago"},
		{"rendezvous-udp", func(f *Facts) {
			silence(f.UDP.Shared, 0, 1)
			silence(f.UDP.Fresh, 0, 1)
			f.Agent = AgentFacts{Err: fs.ErrNotExist}
		}, Fail, "UDP does not leave this network"},
		{"rendezvous-udp", func(f *Facts) { f.UDP = UDPFacts{Err: rawudp.ErrPermission} }, Skipped, "see capabilities"},

		{"mtu", func(f *Facts) { f.MTU.Answered = 1400 }, Warn, "mss = 1295"},
		{"mtu", func(f *Facts) { f.MTU = MTUFacts{Tried: 1500} }, Skipped, "see rendezvous-udp"},
		{"mtu", func(f *Facts) { libipsec(f); f.MTU = MTUFacts{Answered: 1460, Tried: 1460, Known: 1460} }, Warn, "in fragments"},

		{"port-rewrite", func(f *Facts) { f.Rewrite = rewrite.ErrUnavailable }, Warn, "modprobe"},
		{"port-rewrite", func(f *Facts) { f.Rewrite, f.Config.Config.Punch = rewrite.ErrUnavailable, wire.PolicyICEOnly }, Skipped, "not searched"},
		{"port-rewrite", func(f *Facts) { f.Rewrite = syscall.EPERM }, Skipped, "as root"},
		{"state", func(f *Facts) { f.State.Err = syscall.EACCES }, Skipped, "as root"},
		{"conntrack", func(f *Facts) { f.Kernel.Settings["netfilter/nf_conntrack_count"] = 850 }, Warn, "85 %"},
		{"conntrack", func(f *Facts) { f.Kernel.Settings["netfilter/nf_conntrack_count"] = 1000 }, Fail, "100 %"},
		{"conntrack", func(f *Facts) { f.Kernel.Settings = nil }, OK, "not in use"},

		{"state", func(f *Facts) { f.State.Err = syscall.EROFS }, Fail, "read-only"},
		{"state", func(f *Facts) { f.State.OwnedErr = errors.New("agent.json: unexpected end") }, Fail, "damaged"},
		{"state", func(f *Facts) { f.State.Free = 1 << 20 }, Warn, "1024 kB free"},
		{"state", func(f *Facts) { f.Agent.Status.StateProblem = "no space left" }, Warn, "no space left"},
		{"state", func(f *Facts) { f.State.Missing = true }, OK, "the agent makes it"},

		{"agent", func(f *Facts) { f.Agent = AgentFacts{Err: fs.ErrNotExist, Service: "failed"} }, Fail, "journalctl"},
		{"agent", func(f *Facts) { f.Agent = AgentFacts{Err: fs.ErrNotExist, Service: "inactive"} }, Warn, "systemctl enable"},
		{"agent", func(f *Facts) { f.Agent = AgentFacts{Err: fs.ErrNotExist} }, Warn, "bodkin agent --config /etc/bodkin"},
		{"agent", func(f *Facts) { f.Agent = AgentFacts{Err: fs.ErrPermission} }, Skipped, "as root"},
		{"agent", func(f *Facts) {
			f.Agent.Status.Rendezvous = agent.ConnectionStatus{Error: "dial tcp: connection refused"}
		}, Fail, "mend what rendezvous-tcp"},
		{"agent", func(f *Facts) {
			f.Agent.Status.Rendezvous = agent.ConnectionStatus{Error: "beijing.edge1 was revoked on 2026-02-28 (stolen)"}
		}, Fail, "bodkin node delete beijing.edge1"},
		{"certificate", func(f *Facts) {
			f.Agent.Status.Rendezvous = agent.ConnectionStatus{Error: "the rendezvous refuses: certificate 5f of beijing.edge1 was revoked on 2026-02-28: it has to join anew"}
		}, Fail, "bodkin token create --name beijing.edge1 --replace"},
		{"agent", func(f *Facts) { f.Agent.Status.Charon.Connected = false }, Fail, "does not reach charon"},
		{"agent", func(f *Facts) { f.Agent.Status.Version = "v0" }, Warn, "restart bodkin-agent"},
		{"agent", func(f *Facts) { f.Agent.Status.Version, f.Units = "v0", UnitFacts{} }, Warn, "bodkin agent"},
	} {
		f := well()
		tt.change(&f)
		got := judge(t, tt.check, &f)
		said := strings.Join(append([]string{got.Found, got.Means}, got.Mend...), "\n")
		if got.Verdict != tt.want || !strings.Contains(said, tt.words) {
			t.Errorf("%s: %s, want %s with %q:\n%s", tt.check, got.Verdict, tt.want, tt.words, said)
		}
		if (tt.want == Fail || tt.want == Warn) && (got.Means == "" || len(got.Mend) == 0) {
			t.Errorf("%s: %s without what it means or how to mend it", tt.check, got.Verdict)
		}
	}
}

type errTimeout struct{}

func (errTimeout) Error() string { return "i/o timeout" }
func (errTimeout) Timeout() bool { return true }

func judge(t *testing.T, id ID, f *Facts) Finding {
	t.Helper()
	for _, c := range checks {
		if c.id == id {
			return c.judge(f)
		}
	}
	t.Fatalf("no check %s", id)
	return Finding{}
}
