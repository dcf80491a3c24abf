package e2e

import (
	"context"
	"debug/elf"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

// installPatience bounds a test of packages, which begins by building them.
const installPatience = 4 * time.Minute

const (
	agentUnit      = "bodkin-agent.service"
	rendezvousUnit = "bodkin-rendezvous.service"
)

// packages builds the Debian packages and returns where they are, by
// architecture.
func packages(t *testing.T) map[string]string {
	t.Helper()
	if prebuilt != "" {
		t.Skip("needs Go, which the guest does not have")
	}
	cmd := exec.CommandContext(t.Context(), "make", "packages")
	cmd.Dir = ".."
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("make packages: %v\n%s", err, out)
	}
	debs := map[string]string{}
	for line := range strings.Lines(string(out)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "created package: "); ok {
			_, arch, _ := strings.Cut(strings.TrimSuffix(path, ".deb"), "_")
			debs[arch[strings.LastIndex(arch, "_")+1:]] = filepath.Join("..", path)
		}
	}
	if len(debs) != 2 {
		t.Fatalf("packages %v; want amd64 and arm64:\n%s", debs, out)
	}
	return debs
}

// Both packages hold the same, and each a binary of its own architecture.
func TestPackageContents(t *testing.T) {
	machines := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}
	var lists []string
	for arch, deb := range packages(t) {
		list, err := exec.CommandContext(t.Context(), "sh", "-c", `dpkg-deb --contents "$0" | awk '{print $1, $2, $6}'`, deb).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", deb, err, list)
		}
		for _, want := range []string{
			"-rwxr-xr-x root/root ./usr/bin/bodkin\n", "./usr/lib/systemd/system/bodkin-agent.service\n", "./usr/lib/systemd/system/bodkin-rendezvous.service\n",
			"./usr/lib/sysusers.d/bodkin.conf\n", "./usr/lib/tmpfiles.d/bodkin.conf\n", "./usr/share/man/man1/bodkin.1.gz\n", "./usr/share/man/man1/bodkin-agent.1.gz\n",
			"./usr/share/bash-completion/completions/bodkin\n", "./usr/share/zsh/vendor-completions/_bodkin\n", "./usr/share/fish/vendor_completions.d/bodkin.fish\n",
			"./usr/share/doc/bodkin/examples/agent-edge.yaml\n", "./usr/share/doc/bodkin/start.md\n", "./usr/share/doc/bodkin/copyright\n",
		} {
			if !strings.Contains(string(list), want) {
				t.Errorf("%s lacks %s", filepath.Base(deb), want)
			}
		}
		lists = append(lists, string(list))
		if machine, libs := binaryIn(t, deb); machine != machines[arch] || len(libs) > 0 {
			t.Errorf("%s: a binary for %v with libraries %v; want %v with none", filepath.Base(deb), machine, libs, machines[arch])
		}
		name, err := exec.CommandContext(t.Context(), "dpkg-deb", "--field", deb, "Architecture").Output()
		if err != nil || strings.TrimSpace(string(name)) != arch {
			t.Errorf("%s says it is for %s, %v", filepath.Base(deb), name, err)
		}
	}
	if lists[0] != lists[1] {
		t.Errorf("the packages differ:\n%s\n%s", lists[0], lists[1])
	}
}

// binaryIn is for which machine a package's binary is, and what it is linked to.
func binaryIn(t *testing.T, deb string) (elf.Machine, []string) {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "dpkg-deb", "--extract", deb, dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	f, err := elf.Open(filepath.Join(dir, "usr/bin/bodkin"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	libs, err := f.ImportedLibraries()
	if err != nil {
		t.Fatal(err)
	}
	return f.Machine, libs
}

// The package on machines of their own, with systemd: from nothing to a tunnel
// between two edges, and to nothing again.
func TestPackage(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: run as root (make test does)")
	}
	if kernelESP {
		t.Skip("needs Go, which the guest does not have")
	}
	deb := packages(t)["amd64"]
	ctx, cancel := context.WithTimeout(t.Context(), installPatience)
	defer cancel()
	l, err := lab.New(ctx, lab.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	host, err := l.Host("connector", lab.HostOptions{})
	if err != nil {
		t.Fatal(err)
	}
	connector := newMachine(ctx, t, host)
	connector.install(deb)
	connector.checkIdle()
	connector.startRendezvous()

	// A port of a symmetric NAT is found by rules in the kernel, through
	// connection tracking, from raw sockets: all that the unit must permit.
	one := connector.addEdge(l, deb, "edge1", lab.Symmetric, 66)
	two := connector.addEdge(l, deb, "edge2", lab.PortRestricted, 67)
	connector.write("/srv/community.yaml", "apiVersion: fabedge.io/v1alpha1\nkind: Community\nmetadata: {name: all}\nspec: {members: [beijing.edge1, beijing.edge2]}\n")
	connector.run("bodkin", "community", "apply", "-f", "/srv/community.yaml")
	for _, e := range []*Machine{one, two} {
		e.awaitDirect()
		e.checkConfined(agentUnit, "0000000000003000") // CAP_NET_ADMIN, CAP_NET_RAW
	}
	if out := one.run("nft", "list", "table", "ip", "bodkin"); !strings.Contains(out, "4500") {
		t.Errorf("the rewrite of a found port is not in the kernel:\n%s", out)
	}
	ping(t, one, 66, 67)
	connector.checkConfined(rendezvousUnit, "0000000000000400") // CAP_NET_BIND_SERVICE

	one.checkReload()
	connector.checkWatchdog()

	// An upgrade restarts what runs, and the tunnel stands meanwhile.
	before := []string{one.property(agentUnit, "MainPID"), connector.property(rendezvousUnit, "MainPID")}
	one.install(deb)
	connector.install(deb)
	ping(t, one, 66, 67)
	for i, after := range []string{one.property(agentUnit, "MainPID"), connector.property(rendezvousUnit, "MainPID")} {
		if after == before[i] || after == "0" {
			t.Errorf("process %s before the upgrade, %s after it; want another", before[i], after)
		}
	}
	one.awaitDirect()

	for _, m := range []*Machine{one, connector} {
		m.checkRemoval()
	}
}

// traces are all files of Bodkin's name, but for what dpkg and systemd note for
// themselves.
const traces = `find /etc /usr /var /run -name '*bodkin*' -not -path '/var/log/*' -not -path '/run/log/*' | sort`

func (m *Machine) install(deb string) {
	m.t.Helper()
	b, err := os.ReadFile(deb)
	if err != nil {
		m.t.Fatal(err)
	}
	m.write("/srv/bodkin.deb", string(b))
	m.run("dpkg", "--install", "/srv/bodkin.deb")
}

// write writes a file of the machine's in /srv.
func (m *Machine) write(path, text string) {
	m.t.Helper()
	if err := os.WriteFile(filepath.Join(m.Dir(), filepath.Base(path)), []byte(text), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

// checkIdle: what has no configuration is not started, and does not fail when it
// is asked to.
func (m *Machine) checkIdle() {
	m.t.Helper()
	for _, unit := range []string{agentUnit, rendezvousUnit} {
		m.run("systemd-analyze", "verify", "--man=no", "/usr/lib/systemd/system/"+unit)
		enabled, _ := m.try("systemctl", "is-enabled", unit)
		m.run("systemctl", "start", unit)
		if got := m.active(unit); got != "inactive" || strings.TrimSpace(enabled) != "disabled" {
			m.t.Errorf("%s without a configuration is %s and %s; want inactive, disabled", unit, got, enabled)
		}
	}
	want := "/etc/bodkin 1775 root bodkin\n/run/bodkin 3775 root bodkin\n/var/lib/bodkin 1770 root bodkin"
	if got := m.sh("stat -c '%n %a %U %G' /etc/bodkin /run/bodkin /var/lib/bodkin"); got != want {
		m.t.Errorf("directories:\n%s\nwant\n%s", got, want)
	}
}

func (m *Machine) startRendezvous() {
	m.t.Helper()
	m.run("bodkin", "rendezvous", "init", "--host", m.Addr().String(), "--cluster", "beijing")
	m.run("systemctl", "enable", "--now", rendezvousUnit) // returns when it says that it is ready
	if got := m.active(rendezvousUnit); got != "active" {
		m.t.Fatalf("%s is %s:\n%s", rendezvousUnit, got, m.journal())
	}
	if got := m.property(rendezvousUnit, "StatusText"); got != "nodes online 0/0, pairs direct 0/0" {
		m.t.Errorf("status %q", got)
	}
	if got := m.sh("stat -c '%a %U %G' /run/bodkin/rendezvous.sock"); got != "660 bodkin bodkin" {
		m.t.Errorf("the socket: %s; want 660 bodkin bodkin", got)
	}
}

// addEdge makes a machine behind a NAT, with charon beside it, and joins it.
func (m *Machine) addEdge(l *lab.Lab, deb, name string, kind lab.NATKind, third int) *Machine {
	m.t.Helper()
	r, err := l.Router(name+"x", lab.RouterOptions{NAT: kind})
	if err != nil {
		m.t.Fatal(err)
	}
	h, err := l.Host(name, lab.HostOptions{Router: r})
	if err != nil {
		m.t.Fatal(err)
	}
	if err := h.AddAddress(pod(third)); err != nil {
		m.t.Fatal(err)
	}
	if _, err := h.StartCharon(lab.CharonOptions{}); err != nil {
		m.t.Fatal(err)
	}
	e := newMachine(m.ctx, m.t, h)
	e.install(deb)
	var created struct {
		Token string `json:"token"`
	}
	if err := json.Unmarshal([]byte(m.run("bodkin", "token", "create", "--name", "beijing."+name, "-o", "json")), &created); err != nil {
		m.t.Fatal(err)
	}
	e.write("/srv/token", created.Token)
	e.run("bodkin", "join", fmt.Sprintf("https://%s:7443", m.Addr()), "--token-file", "/srv/token",
		"--subnets", pod(third).Masked().String(), "--vici", "/srv/charon.vici")
	if got := e.sh("systemctl is-enabled " + agentUnit); got != "enabled" {
		e.t.Errorf("after the join the agent is %s; want enabled", got)
	}
	// What a charon needs that does ESP itself; see docs/operating.md.
	e.sh(fmt.Sprintf("echo 'mark: %d' >> /etc/bodkin/agent.yaml && systemctl restart %s", fwmark, agentUnit))
	return e
}

func pod(third int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 233, byte(third), 1}), 24)
}

// awaitDirect waits until the only peer is direct.
func (m *Machine) awaitDirect() {
	m.t.Helper()
	m.await("a direct tunnel", func() bool {
		out, err := m.try("bodkin", "status", "-o", "json")
		var s struct {
			Tunnels []struct{ State string }
		}
		return err == nil && json.Unmarshal([]byte(out), &s) == nil && len(s.Tunnels) == 1 && s.Tunnels[0].State == "direct"
	})
}

func ping(t *testing.T, from *Machine, a, b int) {
	t.Helper()
	from.run("ping", "-c", "3", "-i", "0.2", "-W", "2", "-I", pod(a).Addr().String(), pod(b).Addr().String())
}

// checkConfined: a daemon has the capabilities of its unit and can gain no more.
func (m *Machine) checkConfined(unit, capabilities string) {
	m.t.Helper()
	status := m.run("cat", "/proc/"+m.property(unit, "MainPID")+"/status")
	for _, want := range []string{"CapEff:\t" + capabilities, "CapBnd:\t" + capabilities, "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !slices.Contains(strings.Split(status, "\n"), want) {
			m.t.Errorf("%s: want %q in\n%s", unit, want, status)
		}
	}
}

// checkReload: a changed key is logged, and a wrong one changes nothing.
func (m *Machine) checkReload() {
	m.t.Helper()
	reload := func(line, logged string) {
		m.t.Helper()
		m.sh("echo '" + line + "' >> /etc/bodkin/agent.yaml")
		m.run("systemctl", "reload", agentUnit)
		m.await(logged, func() bool { return strings.Contains(m.journal(), logged) })
	}
	reload("metered: true", `msg="configuration changed" key=metered before=false after=true`)
	pid := m.property(agentUnit, "MainPID")
	reload("nonsense: 1", "nonsense: unknown key")
	m.sh("sed -i /nonsense/d /etc/bodkin/agent.yaml")
	if m.active(agentUnit) != "active" || m.property(agentUnit, "MainPID") != pid {
		m.t.Error("the agent did not survive a wrong configuration")
	}
	m.awaitDirect()
}

// checkWatchdog: who hangs is started anew.
func (m *Machine) checkWatchdog() {
	m.t.Helper()
	dir := "/run/systemd/system/" + rendezvousUnit + ".d"
	m.sh("mkdir -p " + dir + " && printf '[Service]\\nWatchdogSec=4\\n' > " + dir + "/watchdog.conf && systemctl daemon-reload && systemctl restart " + rendezvousUnit)
	pid := m.property(rendezvousUnit, "MainPID")
	m.run("kill", "-STOP", pid)
	m.await("a restart of the hung rendezvous", func() bool {
		return m.property(rendezvousUnit, "MainPID") != pid && m.active(rendezvousUnit) == "active"
	})
	m.sh("rm -r " + dir + " && systemctl daemon-reload && systemctl restart " + rendezvousUnit)
}

// checkRemoval: removed, the package leaves configuration and state; purged,
// nothing.
func (m *Machine) checkRemoval() {
	m.t.Helper()
	m.run("dpkg", "--remove", "bodkin")
	for _, unit := range []string{agentUnit, rendezvousUnit} {
		if got := m.active(unit); got != "inactive" {
			m.t.Errorf("%s is %s after the removal", unit, got)
		}
	}
	if m.sh("ls /etc/bodkin/ca.crt; ls /usr/bin/bodkin || true") != "/etc/bodkin/ca.crt\nls: cannot access '/usr/bin/bodkin': No such file or directory" {
		m.t.Error("removed: want the configuration there and the binary gone")
	}
	m.run("dpkg", "--purge", "bodkin")
	if got := m.sh(traces); got != m.traces {
		m.t.Errorf("the purged package leaves\n%s\nbeside what was there:\n%s", got, m.traces)
	}
	if out := m.sh("getent passwd bodkin || getent group bodkin || true"); out != "" {
		m.t.Errorf("the purged package leaves %s", out)
	}
}
