package doctor

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/bodkin-net/bodkin/agent/charon"
)

// oldest is the strongSwan that Bodkin needs at least.
var oldest = [3]int{5, 9, 2}

const operatingDoc = "docs/operating.md, strongSwan"

func noCharon() Finding { return skipped("charon does not answer: see vici") }

func judgeVICI(f *Facts) Finding {
	socket, err := f.Config.Config.VICISocket, f.Charon.Err
	const effect = "the agent cannot reach charon: no tunnel is made"
	switch {
	case errors.Is(err, fs.ErrPermission):
		return problem(Fail, "%s", err).meaning("who runs this may not open charon's socket; the agent has to").
			mend("sudo bodkin doctor").mend("an agent that is not root: charon.user and charon.group in strongswan.conf, or its unit's SupplementaryGroups=")
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED):
		return problem(Fail, "%s", err).meaning(effect).
			mend("%s", f.Units.charon("enable --now")).
			mend("apt-get install strongswan-swanctl   # has the vici plugin").
			mend("elsewhere than %s: viciSocket in agent.yaml, charon.plugins.vici.socket in strongswan.conf", socket)
	case err != nil:
		return problem(Fail, "%s", err).meaning(effect).
			mend("its log: journalctl -n 50 -t charon -t ipsec -t charon-systemd").mend("%s", f.Units.charon("restart"))
	}
	v := f.Charon.Version
	if older(v.Version, oldest) {
		return problem(Fail, "strongSwan %s", v.Version).
			meaning("Bodkin needs %d.%d.%d or later; older ones lack VICI's port settings or misread them", oldest[0], oldest[1], oldest[2]).
			mend("apt-get install --only-upgrade strongswan-charon   # or from the distribution's backports")
	}
	return ok("%s %s on Linux %s, %d connections, %d IKE SAs", v.Daemon, v.Version, v.Release, len(f.Charon.Conns), len(f.Charon.SAs))
}

// older compares versions such as 5.9.8, or 6.0.0beta1. What is no version is not
// old.
func older(version string, than [3]int) bool {
	for i, part := range strings.SplitN(version, ".", len(than)) {
		digits := strings.IndexFunc(part, func(r rune) bool { return r < '0' || r > '9' })
		if digits >= 0 {
			part = part[:digits]
		}
		n, err := strconv.Atoi(part)
		if err != nil || n != than[i] {
			return err == nil && n < than[i]
		}
	}
	return false
}

// libipsec reports whether charon does ESP itself.
func (c CharonFacts) libipsec() bool { return slices.Contains(c.Plugins, "kernel-libipsec") }

// need is a set of plugins of which one is enough.
type need struct {
	plugins  []string
	packages string // Debian's
	without  string
}

// needs are those of this node, by its certificate and by who does ESP.
func needs(f *Facts) []need {
	list := []need{
		{[]string{"curve25519", "openssl", "botan", "wolfssl"}, "libstrongswan-extra-plugins", "no x25519, which the tunnels negotiate first"},
		{[]string{"aes", "openssl", "botan", "wolfssl", "gcrypt", "af-alg", "aesni"}, "libstrongswan", "no AES: no IKE SA"},
		{[]string{"x509", "openssl", "botan", "wolfssl"}, "libstrongswan", "certificates cannot be read"},
		{[]string{"pem"}, "libstrongswan", "certificates cannot be read"},
		{[]string{"kernel-netlink"}, "libstrongswan", "no addresses, routes and policies"},
	}
	if f.Charon.libipsec() {
		list = append(list, need{[]string{"gcm", "openssl", "botan", "wolfssl", "aesni"}, "libstrongswan-standard-plugins",
			"no AES-GCM in user space: every CHILD SA fails"})
	}
	if f.Cert.Leaf == nil {
		return list
	}
	for _, algorithm := range []x509.PublicKeyAlgorithm{f.Cert.Leaf.PublicKeyAlgorithm, signerOf(f.Cert.Leaf)} {
		switch algorithm {
		case x509.ECDSA:
			list = append(list, need{[]string{"openssl", "botan", "wolfssl"}, "libstrongswan-standard-plugins", "no ECDSA certificates, such as this node's"})
		case x509.Ed25519:
			list = append(list, need{[]string{"curve25519", "openssl", "botan", "wolfssl"}, "libstrongswan-extra-plugins", "no Ed25519 certificates, such as this node's"})
		case x509.RSA:
			list = append(list, need{[]string{"gmp", "openssl", "botan", "wolfssl", "gcrypt"}, "libstrongswan", "no RSA certificates, such as this node's"})
		}
	}
	return list
}

// signerOf is the kind of key that signed a certificate.
func signerOf(c *x509.Certificate) x509.PublicKeyAlgorithm {
	switch c.SignatureAlgorithm {
	case x509.PureEd25519:
		return x509.Ed25519
	case x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512:
		return x509.ECDSA
	case x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA, x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS:
		return x509.RSA
	}
	return x509.UnknownPublicKeyAlgorithm
}

func judgePlugins(f *Facts) Finding {
	if f.Charon.Err != nil {
		return noCharon()
	}
	plugins := f.Charon.Plugins
	has := func(name string) bool { return slices.Contains(plugins, name) }
	var missing, effects, install []string
	for _, n := range needs(f) {
		name := strings.Join(n.plugins[:min(2, len(n.plugins))], " or ")
		if slices.ContainsFunc(n.plugins, has) || slices.Contains(missing, name) {
			continue
		}
		missing, effects = append(missing, name), append(effects, n.without)
		if !slices.Contains(install, n.packages) {
			install = append(install, n.packages)
		}
	}
	if len(missing) > 0 {
		return problem(Fail, "not loaded: %s", strings.Join(missing, ", ")).
			meaning("%s", strings.Join(effects, "; ")).
			mend("apt-get install %s   # or add it to charon.load in strongswan.conf", strings.Join(install, " ")).
			mend("%s", f.Units.charon("restart"))
	}
	if own, kernel := slices.Index(plugins, "kernel-libipsec"), slices.Index(plugins, "kernel-netlink"); own > kernel {
		return problem(Fail, "kernel-libipsec is loaded after kernel-netlink").
			meaning("the first one does ESP: on a kernel without it, no tunnel").
			mend("in charon.load of strongswan.conf, or by charon.plugins.*.load priorities: kernel-libipsec before kernel-netlink").
			mend("%s", f.Units.charon("restart"))
	}
	return ok("all that is needed, of %d", len(plugins))
}

func judgePorts(f *Facts) Finding {
	p := f.Ports
	if p.Err != nil {
		return skipped("%s", p.Err)
	}
	foreign := func(h Holder) bool { return h.PID != 0 && !slices.Contains(charons, h.Name) }
	const effect = "charon has no port that peers reach: no tunnel"
	switch i := slices.IndexFunc(p.IKE, foreign); {
	case i >= 0:
		h := p.IKE[i]
		return problem(Fail, "UDP %s is held by %s (pid %d), not by charon", h.Addr, h.Name, h.PID).
			meaning(effect).
			mend("ss -ulpn 'sport = :%d'   # who it is", ikePort).
			mend("stop %s: kill %d", h.Name, h.PID).mend("%s", f.Units.charon("restart"))
	case len(p.IKE) == 0 && len(p.Others) > 0:
		return problem(Fail, "charon (pid %d) has UDP %s and nobody has %d", p.Others[0].PID, portList(p.Others), ikePort).
			meaning("peers on another port than %d do not expect what IKE has before each packet there (RFC 3948)", ikePort).
			mend("in strongswan.conf: charon { port_nat_t = %d }", ikePort).mend("%s", f.Units.charon("restart"))
	case len(p.IKE) == 0:
		return problem(Fail, "nobody holds UDP %d", ikePort).
			meaning(effect+", and this machine answers checks with ICMP port unreachable").
			mend("%s", f.Units.charon("enable --now")).mend("its log says why it could not bind: journalctl -t charon -t ipsec -t charon-systemd | grep -i socket")
	}
	if i := slices.IndexFunc(p.IKE500, foreign); i >= 0 {
		return problem(Warn, "UDP 500 is held by %s (pid %d): another IKE daemon?", p.IKE500[i].Name, p.IKE500[i].PID).
			meaning("Bodkin needs 4500 only, but two IKE daemons undo each other's policies").
			mend("stop and disable it").mend("%s", f.Units.charon("restart"))
	}
	if p.IKE[0].PID == 0 {
		return ok("UDP %d is held by a process that cannot be seen from here", ikePort)
	}
	return ok("UDP %d is held by %s (pid %d)", ikePort, p.IKE[0].Name, p.IKE[0].PID)
}

func portList(list []Holder) string {
	var ports []string
	for _, h := range list {
		ports = append(ports, strconv.Itoa(int(h.Addr.Port())))
	}
	slices.Sort(ports)
	return strings.Join(slices.Compact(ports), ", ")
}

func judgeESP(f *Facts) Finding {
	switch {
	case f.ICMP.Err != nil:
		return skipped("%s", f.ICMP.Err)
	case f.Ports.Err == nil && len(f.Ports.IKE) == 0:
		return skipped("nobody holds UDP %d: see ike-port", ikePort)
	case f.ICMP.Refused:
		return problem(Fail, "the kernel answers packets to UDP %d with ICMP port unreachable: it has no ESP handler", ikePort).
			meaning("no ESP in the kernel, and peers take the ICMP errors for a closed port: punching fails").
			mend("modprobe -a esp4 esp6").
			mend("printf 'esp4\\nesp6\\n' > /etc/modules-load.d/bodkin.conf   # at each start").
			mend("a kernel without these modules: kernel-libipsec (%s)", operatingDoc)
	case f.Charon.Err != nil:
		return ok("the kernel does not refuse checks; who does ESP is not known, see vici")
	case f.Charon.libipsec():
		return ok("in user space (kernel-libipsec)")
	}
	return ok("in the kernel")
}

func judgeMark(f *Facts) Finding {
	switch {
	case f.Charon.Err != nil:
		return noCharon()
	case !f.Charon.libipsec() && f.ICMP.Refused:
		return skipped("nobody does ESP: see esp")
	case !f.Charon.libipsec():
		return ok("not needed: ESP is done in the kernel")
	case f.Kernel.Err != nil:
		return skipped("%s", f.Kernel.Err)
	}
	const effect = "IKE and ESP packets to addresses inside the tunnels are routed into the tunnel that they carry: it stalls as soon as it is up"
	mark := f.Config.Config.Mark
	conf := func(m uint32) string {
		return fmt.Sprintf("charon.plugins in strongswan.conf: kernel-netlink { fwmark = !%#x }, socket-default { fwmark = %#x }, kernel-libipsec { allow_peer_ts = yes }", m, m)
	}
	i := slices.IndexFunc(f.Kernel.Rules, func(r TableRule) bool { return r.Invert && r.Mark != 0 })
	switch {
	case i < 0:
		return problem(Fail, "ESP is done in user space, and no routing rule leads marked packets around table %d", charonTable).
			meaning(effect).mend("%s", conf(0x42)).mend("in agent.yaml: mark: 0x42").
			mend("%s", f.Units.charon("restart")).mend("%s", f.Units.restartAgent())
	case f.Config.readable() && f.Kernel.Rules[i].Mark != mark:
		return problem(Fail, "charon's rule spares packets with mark %#x, and agent.yaml has mark: %#x", f.Kernel.Rules[i].Mark, mark).
			meaning("the agent's packets are routed into the tunnels: no checks, no session").
			mend("in agent.yaml: mark: %#x", f.Kernel.Rules[i].Mark).mend("%s", f.Units.restartAgent())
	}
	return ok("mark %#x passes by the tunnels", f.Kernel.Rules[i].Mark)
}

// tunnelTo is what charon's connections say of a peer.
type tunnelTo struct {
	peer    string
	subnets []netip.Prefix
}

// podChild is what the name of the child between pods ends in.
const podChild = "-p2p"

// tunnels are those of Bodkin's connections, with the peers' subnets.
func (f *Facts) tunnels() (out []tunnelTo) {
	for _, c := range f.Charon.Conns {
		if !slices.Contains(f.State.Owned, c.Name) {
			continue
		}
		for _, child := range c.Children {
			if child.Name == c.Name+podChild {
				out = append(out, tunnelTo{c.Name, selectorPrefixes(child.RemoteTS)})
			}
		}
	}
	return out
}

func selectorPrefixes(list []charon.Selector) (out []netip.Prefix) {
	for _, s := range list {
		if p, is := s.Prefix(); is {
			out = append(out, p)
		}
	}
	return out
}

func judgeCompetitors(f *Facts) Finding {
	if x, found := rivals(f.Ports.Daemons); found {
		return x
	}
	if f.Charon.Err != nil {
		return noCharon()
	}
	if x, found := unloaded(f); found {
		return x
	}
	var foreign []string
	for _, c := range f.Charon.Conns {
		if slices.Contains(f.State.Owned, c.Name) {
			continue
		}
		if x, found := meets(f, c); found {
			return x
		}
		foreign = append(foreign, c.Name)
	}
	if len(foreign) > 0 {
		return ok("other connections in charon, which meet none of Bodkin's: %s", strings.Join(foreign, ", "))
	}
	return ok("no other connections in charon")
}

// unloaded finds tunnels of Bodkin's whose connections somebody took out of charon.
func unloaded(f *Facts) (Finding, bool) {
	var names []string
	for _, sa := range f.Charon.SAs {
		loaded := slices.ContainsFunc(f.Charon.Conns, func(c charon.ConnectionInfo) bool { return c.Name == sa.Name })
		if !loaded && slices.Contains(f.State.Owned, sa.Name) && !slices.Contains(names, sa.Name) {
			names = append(names, sa.Name)
		}
	}
	if len(names) == 0 {
		return Finding{}, false
	}
	x := problem(Warn, "connections that Bodkin loaded are gone from charon: %s", strings.Join(names, ", ")).
		meaning("their tunnels stand, but a peer that begins anew is refused. swanctl --load-conns and --load-all do that: they unload what swanctl.conf lacks")
	for _, name := range names {
		x = x.mend("swanctl --terminate --ike %s   # the agent loads it and makes the tunnel again", name)
	}
	return x, true
}

// rivals looks at the daemons of this machine.
func rivals(daemons []Process) (Finding, bool) {
	var strongswans []Process
	for _, d := range daemons {
		switch {
		case slices.Contains(charons, d.Name):
			strongswans = append(strongswans, d)
		case d.Name == "fabedge-agent":
			return problem(Fail, "FabEdge's agent runs (pid %d)", d.PID).
				meaning("it loads connections of the same names into charon, and each undoes the other's").
				mend("take this node out of FabEdge's care, or let Bodkin alone make its tunnels"), true
		case d.Name != "starter" && !strings.HasPrefix(d.Name, "charon"):
			return problem(Fail, "%s (pid %d), another IKE daemon, runs", d.Name, d.PID).
				meaning("two IKE daemons undo each other's policies and want one port").
				mend("systemctl disable --now %s   # its unit may be called ipsec", d.Name), true
		}
	}
	if len(strongswans) > 1 {
		return problem(Fail, "two charons run: pid %d and %d", strongswans[0].PID, strongswans[1].PID).
			meaning("only one has the port; the agent may talk to the other").
			mend("systemctl disable --now strongswan-starter   # keep strongswan.service"), true
	}
	return Finding{}, false
}

// meets tells how a connection that is not Bodkin's gets into the way of those that
// are.
func meets(f *Facts, c charon.ConnectionInfo) (Finding, bool) {
	who := fmt.Sprintf("charon has a connection %s that Bodkin did not load", c.Name)
	remove := func(x Finding) (Finding, bool) {
		return x.mend("remove or rename it where it comes from: grep -rn '%s' /etc/swanctl /etc/ipsec.conf /etc/ipsec.d", c.Name).
			mend("%s", f.Units.charon("restart")).mend("not swanctl --load-conns, which unloads Bodkin's connections, too"), true
	}
	for _, t := range f.Agent.Status.Tunnels {
		switch peer := string(t.Peer); {
		case c.Name == peer:
			return remove(problem(Fail, "%s, of the name of a peer", who).meaning("the agent does not touch it, and makes no tunnel with %s", peer))
		case strings.HasSuffix(c.RemoteID, "CN="+peer):
			return remove(problem(Fail, "%s, with the peer %s", who, peer).meaning("charon may take it for that peer's tunnel, with other selectors"))
		}
	}
	for _, t := range f.tunnels() {
		for _, child := range c.Children {
			if p, q, clash := overlapping(selectorPrefixes(child.RemoteTS), t.subnets); clash && !everything(p) {
				return remove(problem(Fail, "%s; its child %s has %s, which meets %s of %s", who, child.Name, p, q, t.peer).
					meaning("two tunnels claim the same packets"))
			}
		}
	}
	if catchesAll(c) {
		return remove(problem(Warn, "%s; it takes anybody from anywhere", who).
			meaning("charon may answer Bodkin's peers by it, where its own is not loaded yet"))
	}
	return Finding{}, false
}

func everything(p netip.Prefix) bool { return p.Bits() == 0 }

// catchesAll: neither the peer's address nor its identity is bounded.
func catchesAll(c charon.ConnectionInfo) bool {
	anyone := func(s string) bool { return s == "" || s == "%any" || s == "0.0.0.0/0" || s == "::/0" }
	return anyone(c.RemoteID) && (len(c.RemoteAddrs) == 0 || slices.ContainsFunc(c.RemoteAddrs, anyone))
}

// overlapping finds the first of a that meets one of b.
func overlapping(a, b []netip.Prefix) (p, q netip.Prefix, found bool) {
	for _, p := range a {
		for _, q := range b {
			if p.Overlaps(q) {
				return p, q, true
			}
		}
	}
	return p, q, false
}
