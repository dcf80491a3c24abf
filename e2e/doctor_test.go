//go:build !kernelesp

// What the doctor says of what is wrong, where ESP is done in user space.

package e2e

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/agent/charon"
	"github.com/bodkin-net/bodkin/e2e/lab"
)

// patient is a host in the hands of the doctor.
type patient struct {
	*testing.T
	ctx context.Context
	c   *Cluster
	h   *lab.Host
	// config is the good one.
	config string
}

// has fails the test unless a check comes to a verdict, with words in what it
// says. A problem has to come with a meaning and a remedy.
func (p patient) has(config, check, verdict, words string, before ...string) {
	p.Helper()
	d, err := p.c.examine(p.ctx, p.h, config, []string{check}, before...)
	if err != nil {
		p.Errorf("%s: %v", check, err)
		return
	}
	x := d.Checks[0]
	said := strings.Join(append([]string{x.Found, x.Means}, x.Mend...), "\n")
	if x.Verdict != verdict || !strings.Contains(said, words) {
		p.Errorf("%s: %s, want %s with %q:\n%s", check, x.Verdict, verdict, words, said)
	}
	if bad := verdict == "fail" || verdict == "warn"; bad && (x.Means == "" || len(x.Mend) == 0) {
		p.Errorf("%s: %s without what it means or how to mend it:\n%s", check, x.Verdict, said)
	}
}

// healthy fails the test if the check finds anything.
func (p patient) healthy(checks ...string) {
	p.Helper()
	for _, check := range checks {
		p.has(p.config, check, "ok", "")
	}
}

// until waits until a check comes to a verdict, with words in what was found.
func (p patient) until(what, check, verdict, words string) {
	p.Helper()
	must(p.T, p.c.until(p.ctx, what, func() (bool, error) {
		d, err := p.c.examine(p.ctx, p.h, p.config, []string{check})
		return err == nil && d.Checks[0].Verdict == verdict && strings.Contains(d.Checks[0].Found, words), nil
	}))
}

// with is the good configuration, altered.
func (p patient) with(name string, replacements ...string) string {
	p.Helper()
	b, err := os.ReadFile(p.config)
	must(p.T, err)
	path := filepath.Join(p.h.Dir(), name+".yaml")
	must(p.T, os.WriteFile(path, []byte(strings.NewReplacer(replacements...).Replace(string(b))), 0o600))
	return path
}

// setting is the line of the good configuration that begins with key.
func (p patient) setting(key string) string {
	p.Helper()
	b, err := os.ReadFile(p.config)
	must(p.T, err)
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, key+":") {
			return strings.TrimSpace(line)
		}
	}
	p.Fatalf("no %s in\n%s", key, b)
	return ""
}

// sh runs a command on the host.
func (p patient) sh(command string) {
	p.Helper()
	_, err := p.h.Run(p.ctx, "sh", "-c", command)
	must(p.T, err)
}

// provoke has a check come to a verdict by one command, and mends it by another.
func (p patient) provoke(check, verdict, words, command, mend string) {
	p.Helper()
	p.sh(command)
	p.has(p.config, check, verdict, words)
	p.sh(mend)
	p.healthy(check)
}

// What the doctor says of nodes on which all is well, and of each thing that can be
// wrong on one.
func TestDoctor(t *testing.T) {
	// A program with the race detector in it waits for a second at its end.
	t.Setenv("GORACE", "atexit_sleep_ms=0")
	ctx, c := start(t, ClusterOptions{})
	edge1, router := edge(ctx, t, c, "edge1", lab.PortRestricted)
	edge2, _ := edge(ctx, t, c, "edge2", lab.PortRestricted)
	must(t, c.Apply(ctx, "all", c.Connector, edge1, edge2))
	direct(ctx, t, c, edge1, edge2)
	sick, err := c.Host("sick", lab.HostOptions{})
	must(t, err)
	_, err = c.prepareNode(sick, "sick", "Edge")
	must(t, err)

	at := func(t *testing.T, n *Node) patient { return patient{t, ctx, c, n.Host, n.config} }
	t.Run("no false alarm", func(t *testing.T) {
		for _, n := range []*Node{edge1, edge2, c.Connector} {
			noFalseAlarm(ctx, t, c, n)
		}
	})
	t.Run("files", func(t *testing.T) { doctorFiles(at(t, edge1)) })
	t.Run("rights", func(t *testing.T) { doctorRights(at(t, edge1)) })
	t.Run("competitors", func(t *testing.T) { doctorCompetitors(at(t, edge1), edge2) })
	t.Run("kernel", func(t *testing.T) { doctorKernel(at(t, edge1), edge2) })
	t.Run("conntrack", func(t *testing.T) { doctorConntrack(at(t, edge1)) })
	t.Run("connector", func(t *testing.T) { doctorConnector(at(t, c.Connector)) })
	t.Run("network", func(t *testing.T) { doctorNetwork(at(t, edge1), router) })
	t.Run("charon", func(t *testing.T) { doctorCharon(at(t, c.nodes["beijing.sick"])) })
	t.Run("agent", func(t *testing.T) {
		p := at(t, edge1)
		edge1.Agent().Kill()
		p.has(p.config, "agent", "warn", "does not run")
		must(t, edge1.StartAgent(ctx))
		direct(ctx, t, c, edge1, edge2)
		p.until("the agent is back", "agent", "ok", "connected")
		c.Rendezvous().Kill()
		p.has(p.config, "rendezvous-tcp", "fail", "connection refused")
		p.has(c.nodes["beijing.sick"].config, "rendezvous-udp", "fail", "no answer from")
		p.until("the agent has noticed", "agent", "fail", "not connected to the rendezvous")
	})
}

func doctorFiles(p patient) {
	pki := p.c.PKI()
	p.has(filepath.Join(p.h.Dir(), "none.yaml"), "config", "skipped", "bodkin join")
	p.has(p.with("unknown", "logLevel:", "loglevel:"), "config", "fail", "loglevel")
	p.has(p.with("bits", "/24]", "/16]"), "config", "fail", "bits set behind its mask")
	p.healthy("config")

	certificate, key := p.setting("certificate"), p.setting("key")
	issued := func(name string, o lab.CertOptions) string {
		crt, k, err := pki.Issue("beijing."+name, o)
		must(p.T, err)
		return p.with(name, certificate, "certificate: "+crt, key, "key: "+k)
	}
	expired := issued("expired", lab.CertOptions{NotAfter: time.Now().Add(-time.Minute)})
	p.has(expired, "certificate", "fail", "expired")
	p.has(expired, "config", "ok", "what the agent would refuse is the certificate")
	p.has(issued("early", lab.CertOptions{NotBefore: time.Now().Add(time.Hour)}), "certificate", "fail", "not valid before")
	p.has(issued("soon", lab.CertOptions{NotAfter: time.Now().Add(time.Hour)}), "certificate", "warn", "expires on")
	p.has(p.with("mixed", key, "key: "+filepath.Join(p.c.Dir(), "pki", "beijing.soon.key.pem")), "certificate", "fail", "private key does not match")
	other, err := lab.NewPKI(filepath.Join(p.h.Dir(), "other"))
	must(p.T, err)
	stranger := p.with("stranger", p.setting("ca"), "ca: "+other.CAPath())
	p.has(stranger, "certificate", "fail", "is not signed by")
	p.has(stranger, "rendezvous-tcp", "fail", "another CA, or a proxy on the way")
	keyFile := strings.TrimPrefix(key, "key: ")
	p.provoke("certificate", "warn", "chmod 600", "chmod 644 "+keyFile, "chmod 600 "+keyFile)

	state := strings.TrimPrefix(p.setting("stateDir"), "stateDir: ")
	file := filepath.Join(state, "agent.json")
	p.provoke("state", "fail", "damaged", "mv "+file+" "+file+".good && echo '{' > "+file, "mv "+file+".good "+file)
	p.has(p.config, "state", "fail", "read-only file system", "unshare", "-m", "sh", "-c", "mount -t tmpfs -o ro tmpfs "+state+` && exec "$0" "$@"`)
	p.has(p.config, "state", "fail", "no space left", "unshare", "-m", "sh", "-c",
		"mount -t tmpfs -o size=16k tmpfs "+state+" && { dd if=/dev/zero of="+state+`/full 2>/dev/null; exec "$0" "$@"; }`)
	p.healthy("state")
}

func doctorRights(p patient) {
	p.has(p.config, "capabilities", "fail", "CAP_NET_RAW", "setpriv", "--bounding-set", "-net_raw")
	p.has(p.config, "port-rewrite", "warn", "symmetric NAT", "setpriv", "--bounding-set", "-net_admin")
	p.healthy("capabilities", "port-rewrite")
}

func doctorCompetitors(p patient, peer *Node) {
	run, stop := context.WithCancel(p.ctx)
	vici := charon.New(charon.Options{Socket: p.h.VICISocket()})
	ended := make(chan error, 1)
	go func() { ended <- vici.Run(run) }()
	defer func() {
		stop()
		<-ended
	}()
	to := func(subnet string) []charon.Child {
		return []charon.Child{{Name: "net", LocalTS: []netip.Prefix{netip.MustParsePrefix("172.29.0.0/16")}, RemoteTS: []netip.Prefix{netip.MustParsePrefix(subnet)}}}
	}
	id := "C=CN, O=fabedge.io, CN=" + peer.Name
	for _, tt := range []struct {
		conn           charon.Connection
		verdict, words string
	}{
		{charon.Connection{Name: "office", RemoteAddrs: []string{"192.0.2.9"}, RemoteID: "CN=office", Children: to("172.30.0.0/16")}, "ok", "office"},
		{charon.Connection{Name: "old", RemoteAddrs: []string{"192.0.2.9"}, RemoteID: id, Children: to("172.30.0.0/16")}, "fail", "with the peer " + peer.Name},
		{charon.Connection{Name: "vpn", RemoteAddrs: []string{"192.0.2.9"}, RemoteID: "CN=office", Children: to("10.233.0.0/16")}, "fail", "its child net has 10.233.0.0/16"},
		{charon.Connection{Name: "anybody", RemoteAddrs: []string{"%any"}, RemoteID: "%any", Children: to("172.30.0.0/16")}, "warn", "anybody from anywhere"},
	} {
		tt.conn.LocalID = "CN=local"
		must(p.T, vici.Load(p.ctx, tt.conn))
		p.has(p.config, "competitors", tt.verdict, tt.words)
		must(p.T, vici.Unload(p.ctx, tt.conn.Name))
	}
	p.healthy("competitors")

	// What swanctl.conf lacks, swanctl unloads.
	_, err := p.h.Swanctl(p.ctx, "--load-conns")
	must(p.T, err)
	p.has(p.config, "competitors", "warn", "gone from charon")
	for _, name := range []string{peer.Name, p.c.Connector.Name} {
		_, err := p.h.Swanctl(p.ctx, "--terminate", "--ike", name)
		must(p.T, err)
	}
	p.until("the agent has made its tunnels again", "subnets", "ok", "no overlap with 2 peers")
	p.healthy("competitors")

	// A process is known by its name.
	pluto := filepath.Join(p.h.Dir(), "pluto")
	p.sh("cp $(command -v sleep) " + pluto)
	rival, err := p.h.Start(p.ctx, "pluto", nil, pluto, "600")
	must(p.T, err)
	must(p.T, p.c.until(p.ctx, "pluto runs", func() (bool, error) {
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", rival.PID()))
		return string(name) == "pluto\n", err
	}))
	p.has(p.config, "competitors", "fail", "another IKE daemon, runs")
	rival.Kill()
	p.healthy("competitors")
}

func doctorKernel(p patient, peer *Node) {
	rendezvous, own := p.c.PublicAddr, p.h.Addr()
	const table, gone = "nft 'table inet f { chain c { type %s; %s; }; }'", "nft delete table inet f"
	rules := func(hook, rule string) string { return fmt.Sprintf(table, hook, rule) }
	const input, output = "filter hook input priority 0", "filter hook output priority 0"
	p.provoke("host-firewall", "fail", "table inet f, chain c, rule with handle", rules(input, "udp dport { 500, 4500 } drop"), gone)
	p.provoke("host-firewall", "fail", "table inet f, chain c, its policy", rules(input, "policy drop; iif lo accept; tcp dport 22 accept"), gone)
	p.provoke("host-firewall", "fail", "packets from UDP 4500 to peers are dropped", rules(output, "udp sport 4500 reject"), gone)
	p.provoke("host-firewall", "fail", "are sent elsewhere", rules("nat hook prerouting priority dstnat", "udp dport 4500 redirect to :9"), gone)
	p.sh(rules(input, "policy drop; ct state established,related accept; iif lo accept"))
	p.has(p.config, "host-firewall", "ok", "no obstacle")
	p.sh(gone)

	p.provoke("tunnel-firewall", "fail", "is masqueraded by table inet f", rules("nat hook postrouting priority srcnat", "ip saddr 10.233.0.0/16 masquerade"), gone)

	policy := fmt.Sprintf("src %s dst %s dir out", own, rendezvous)
	p.provoke("ipsec-capture", "fail", "demands IPsec for what goes from", "ip xfrm policy add "+policy+
		fmt.Sprintf(" tmpl src %s dst %s proto esp mode tunnel", own, rendezvous), "ip xfrm policy delete "+policy)
	p.provoke("ipsec-capture", "fail", "blocks what goes from", fmt.Sprintf("ip xfrm policy add src 0.0.0.0/0 dst %s dir out action block", rendezvous),
		fmt.Sprintf("ip xfrm policy delete src 0.0.0.0/0 dst %s dir out", rendezvous))

	// Without the mark the way to the rendezvous leads into the tunnel with the
	// connector, whose address is inside its selectors.
	unmarked := p.with("unmarked", p.setting("mark"), "mark: 0")
	p.has(unmarked, "ipsec-capture", "fail", "leads into the tunnel device ipsec0")
	p.has(unmarked, "socket-mark", "fail", "agent.yaml has mark: 0x0")

	p.provoke("rp-filter", "fail", "the way back to the rendezvous leads into ipsec0", "sysctl -w net.ipv4.conf.all.rp_filter=1", "sysctl -w net.ipv4.conf.all.rp_filter=0")
	rule := "not from all fwmark 0x42 lookup 220 priority 220"
	p.provoke("table-220", "fail", "nothing is routed into the tunnels", "ip rule del "+rule, "ip rule add "+rule)

	pods := p.c.nodes["beijing.edge1"].Subnet
	p.sh("ip link add cni0 type bridge && ip link set cni0 up && ip address add " + netip.PrefixFrom(pods.Addr().Next().Next(), pods.Bits()).String() + " dev cni0")
	p.has(p.config, "forwarding", "fail", "ip_forward is 0, and cni0 has addresses of subnets")
	p.provoke("forwarding", "warn", "forwarding is 0 on cni0", "sysctl -w net.ipv4.ip_forward=1 && sysctl -w net.ipv4.conf.cni0.forwarding=0", "sysctl -w net.ipv4.conf.cni0.forwarding=1")
	p.provoke("tunnel-firewall", "fail", "the tunnel stands and carries nothing", rules("filter hook forward priority 0", "policy drop; iifname docker0 accept"), gone)
	p.sh("ip link delete cni0 && sysctl -w net.ipv4.ip_forward=0")
	p.healthy("forwarding")

	clash := netip.PrefixFrom(peer.Pod.Next(), 32).String()
	p.provoke("subnets", "fail", "of "+peer.Name+" meets "+clash, "ip address add "+clash+" dev eth0", "ip address del "+clash+" dev eth0")
	p.has(p.with("lan", pods.String(), netip.PrefixFrom(own, 24).Masked().String()), "subnets", "fail", "the network of eth0 that leads out")
}

// doctorConntrack shows the doctor another bound than the machine's own.
func doctorConntrack(p patient) {
	few := filepath.Join(p.h.Dir(), "nf_conntrack_max")
	must(p.T, os.WriteFile(few, []byte("1\n"), 0o600))
	p.has(p.config, "conntrack", "fail", "nf_conntrack_max", "unshare", "-m", "sh", "-c",
		"mount --bind "+few+` /proc/sys/net/netfilter/nf_conntrack_max && exec "$0" "$@"`)
	p.healthy("conntrack")
}

func doctorConnector(p patient) {
	p.provoke("forwarding", "fail", "on a connector", "sysctl -w net.ipv4.ip_forward=0", "sysctl -w net.ipv4.ip_forward=1")
	// Edges come unasked.
	p.provoke("host-firewall", "fail", "peers' first packets to UDP 4500 are dropped",
		"nft 'table inet f { chain c { type filter hook input priority 0; policy drop; ct state established,related accept; iif lo accept; }; }'", "nft delete table inet f")
}

func doctorNetwork(p patient, router *lab.Router) {
	p.has(p.with("port", ":7443", ":7444"), "rendezvous-tcp", "fail", "connection refused")
	p.has(p.with("name", p.setting("rendezvous"), "rendezvous: https://rendezvous.invalid:7443"), "rendezvous-tcp", "fail", "is not resolved")
	date := fakeClock(p, 2*time.Hour)
	late := p.with("late", p.setting("rendezvous"), "rendezvous: https://"+date.String())
	p.has(late, "clock", "warn", "behind the rendezvous' clock")
	crt, key, err := p.c.PKI().Issue("beijing.morning", lab.CertOptions{NotBefore: time.Now().Add(time.Hour)})
	must(p.T, err)
	p.has(p.with("morning", p.setting("rendezvous"), "rendezvous: https://"+date.String(), p.setting("certificate"), "certificate: "+crt, p.setting("key"), "key: "+key),
		"clock", "fail", "this machine's clock is wrong")
	p.healthy("clock", "rendezvous-tcp")

	// On the router, for what the host itself cannot see.
	onRouter := func(rule string) {
		p.Helper()
		_, err := router.Run(p.ctx, "nft", "table inet way { chain c { type filter hook forward priority -10; "+rule+"; }; }")
		must(p.T, err)
	}
	open := func() {
		p.Helper()
		_, err := router.Run(p.ctx, "nft", "delete table inet way")
		must(p.T, err)
	}
	for _, tt := range []struct{ rule, check, verdict, words string }{
		{"udp dport { 3478, 3479 } drop", "rendezvous-udp", "warn", "UDP has just stopped to pass"},
		{"udp sport 4500 drop", "rendezvous-udp", "fail", "but not UDP 4500"},
		{"udp dport 3479 drop", "rendezvous-udp", "warn", "no answer from UDP 3479"},
		{"udp dport 3478 meta length > 1400 drop", "mtu", "warn", "packets of more than 1400 bytes vanish"},
		{"tcp dport 7443 drop", "rendezvous-tcp", "fail", "no answer"},
	} {
		onRouter(tt.rule)
		p.has(p.config, tt.check, tt.verdict, tt.words)
		open()
		p.healthy(tt.check)
	}
	p.provoke("mtu", "warn", "with ESP in UDP", "ip link set eth0 mtu 1400", "ip link set eth0 mtu 1500")
}

// fakeClock is a rendezvous whose clock is ahead.
func fakeClock(p patient, by time.Duration) netip.AddrPort {
	at := netip.AddrPortFrom(p.c.PublicAddr, 8443)
	crt, key, err := p.c.PKI().Issue("clock", lab.CertOptions{Addrs: []netip.Addr{at.Addr()}})
	must(p.T, err)
	listener, err := p.c.Connector.Listen(p.ctx, "tcp", at.String())
	must(p.T, err)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", time.Now().Add(by).UTC().Format(http.TimeFormat))
	})}
	ended := make(chan error, 1)
	go func() { ended <- server.ServeTLS(listener, crt, key) }()
	p.Cleanup(func() {
		_ = server.Close()
		<-ended
	})
	return at
}

func doctorCharon(p patient) {
	restart := func(strongswan string) {
		p.Helper()
		must(p.T, p.h.StopCharon())
		_, err := p.h.StartCharon(lab.CharonOptions{Strongswan: strongswan})
		must(p.T, err)
	}
	all := []string{"vici", "plugins", "ike-port", "esp", "socket-mark", "table-220"}
	p.healthy(all...)

	must(p.T, p.h.StopCharon())
	p.has(p.config, "vici", "fail", "charon is not reachable")
	p.has(p.config, "ike-port", "fail", "nobody holds UDP 4500")
	squatter, err := p.h.Start(p.ctx, "squatter", nil, "perl", "-MIO::Socket::INET", "-e", `$s = IO::Socket::INET->new(Proto => "udp", LocalPort => 4500) or die; sleep`)
	must(p.T, err)
	must(p.T, p.c.until(p.ctx, "the port is taken", func() (bool, error) {
		out, err := p.h.Run(p.ctx, "ss", "-uln", "sport = :4500")
		return strings.Contains(out, ":4500"), err
	}))
	p.has(p.config, "ike-port", "fail", "is held by perl")
	squatter.Kill()

	restart("charon { port_nat_t = 4501 }")
	p.has(p.config, "ike-port", "fail", "charon { port_nat_t = 4500 }")
	restart("charon { plugins { kernel-netlink { fwmark = 0x43 } } }")
	p.has(p.config, "socket-mark", "fail", "fwmark = !0x42")
	conf, err := os.ReadFile(filepath.Join(p.h.Dir(), "strongswan.conf"))
	must(p.T, err)
	_, load, _ := strings.Cut(string(conf), "load = ")
	load, _, _ = strings.Cut(load, "\n")
	without := func(names ...string) string {
		kept := " " + load + " "
		for _, name := range names {
			kept = strings.ReplaceAll(kept, " "+name+" ", " ")
		}
		return "charon { load = " + kept + " }"
	}
	restart(without("curve25519", "openssl"))
	p.has(p.config, "plugins", "fail", "libstrongswan-extra-plugins")
	restart("charon { load = " + strings.Replace(load, "kernel-libipsec kernel-netlink", "kernel-netlink kernel-libipsec", 1) + " }")
	p.has(p.config, "plugins", "fail", "kernel-libipsec is loaded after kernel-netlink")
	// The lab's kernel has no ESP, so that is what an unloaded module is like.
	restart(without("kernel-libipsec"))
	p.has(p.config, "esp", "fail", "ICMP port unreachable")
	restart("")
	p.healthy(all...)
}
