package e2e

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

// boot makes the rest of a machine in a host's network namespace: this machine's
// files under a layer of memory, so that packages are installed into it and into
// nothing else, without the services that are enabled here, and systemd as the
// first process. $1 is the host's directory, which is /srv inside, $2 a control
// group of its own, $3 its name.
const boot = `set -e
echo $$ > "$2/cgroup.procs"
exec unshare --mount --pid --fork --kill-child --uts --ipc --cgroup --propagation private sh -e -c '
layer=$(mktemp -d)
mount -t tmpfs tmpfs $layer
mkdir $layer/upper $layer/work $layer/root
mount -t overlay overlay -o lowerdir=/,upperdir=$layer/upper,workdir=$layer/work $layer/root
root=$layer/root
rm -rf $root/etc/systemd/system/*.wants $root/etc/rc?.d $root/etc/bodkin $root/var/lib/bodkin
: > $root/etc/machine-id
echo "$2" > $root/etc/hostname
mount -t proc proc $root/proc
mount -t sysfs -o ro sysfs $root/sys
mount -t cgroup2 cgroup2 $root/sys/fs/cgroup
mount -t tmpfs tmpfs $root/run
mount -t tmpfs tmpfs $root/tmp
mount --bind "$1" $root/srv
mount -t tmpfs -o mode=755 tmpfs $root/dev
mkdir -p $root/dev/net $root/dev/pts $root/dev/shm
for node in null zero full random urandom tty net/tun; do
	: > $root/dev/$node && mount --bind /dev/$node $root/dev/$node
done
mount -t devpts devpts $root/dev/pts -o newinstance,ptmxmode=0666
ln -s pts/ptmx $root/dev/ptmx
: > $root/dev/console
cd $root
mkdir -p old && pivot_root . old && umount -l old
exec env -i container=bodkin-lab PATH=/usr/sbin:/usr/bin:/sbin:/bin \
	/lib/systemd/systemd --system --unit=basic.target --log-target=console --show-status=no
' sh "$1" "$3"
`

// Machine is a host of the lab with a root of its own and systemd in it.
type Machine struct {
	*lab.Host
	t    *testing.T
	ctx  context.Context
	init int // process id of systemd, seen from here
	// traces are files of Bodkin's name that were there before its package.
	traces string
}

// newMachine boots a machine on a host, and ends it with the test.
func newMachine(ctx context.Context, t *testing.T, h *lab.Host) *Machine {
	t.Helper()
	m := &Machine{Host: h, t: t, ctx: ctx}
	group := filepath.Join(cgroup2(t), h.Namespace())
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	p, err := h.Start(ctx, "systemd", nil, "sh", "-c", boot, "sh", h.Dir(), group, h.Name())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill() // unshare, whose child dies with it, and everything in there with that
		m.removeGroup(group)
	})
	m.init = m.child(p.PID())
	m.await("systemd", func() bool {
		out, _ := m.try("systemctl", "is-system-running")
		out = strings.TrimSpace(out)
		return out == "running" || out == "degraded"
	})
	m.traces = m.sh(traces)
	return m
}

// cgroup2 is where control groups of version 2 are, beside those of version 1 or
// alone.
func cgroup2(t *testing.T) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			return f[1]
		}
	}
	t.Fatal("systemd needs control groups of version 2: mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified")
	return ""
}

// removeGroup waits for the end of what is in a control group, and removes it.
func (m *Machine) removeGroup(group string) {
	var err error
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(poll) {
		var groups []string
		_ = filepath.WalkDir(group, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				groups = append([]string{path}, groups...) // children first
			}
			return nil
		})
		err = nil
		for _, g := range groups {
			err = errors.Join(err, os.Remove(g))
		}
		if err == nil {
			return
		}
	}
	m.t.Error(err)
}

// child is the only child of a process.
func (m *Machine) child(pid int) int {
	m.t.Helper()
	var child int
	m.await("child of unshare", func() bool {
		b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "task", strconv.Itoa(pid), "children"))
		if err != nil {
			m.t.Fatal(err)
		}
		child, err = strconv.Atoi(strings.TrimSpace(string(b)))
		return err == nil
	})
	return child
}

func (m *Machine) await(what string, cond func() bool) {
	m.t.Helper()
	for !cond() {
		select {
		case <-m.ctx.Done():
			m.t.Fatalf("%s: waiting for %s: %v\n%s", m.Name(), what, m.ctx.Err(), m.journal())
		case <-time.After(poll):
		}
	}
}

// try runs a command on the machine.
func (m *Machine) try(argv ...string) (string, error) {
	return m.Run(m.ctx, append([]string{"nsenter", "--target", strconv.Itoa(m.init), "--mount", "--uts", "--ipc", "--pid", "--cgroup", "--root", "--wdns=/",
		"env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive"}, argv...)...)
}

// run runs a command that must succeed.
func (m *Machine) run(argv ...string) string {
	m.t.Helper()
	out, err := m.try(argv...)
	if err != nil {
		m.t.Fatalf("%s: %v\n%s", m.Name(), err, m.journal())
	}
	return strings.TrimSpace(out)
}

// sh runs a line of shell, for what it prints.
func (m *Machine) sh(line string) string {
	m.t.Helper()
	return m.run("sh", "-c", line)
}

// journal is what the daemons and systemd have said.
func (m *Machine) journal() string {
	if m.init != 0 {
		if out, err := m.try("journalctl", "--no-pager", "--output", "cat"); err == nil {
			return out
		}
	}
	b, err := os.ReadFile(filepath.Join(m.Dir(), "systemd.log"))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// active is systemd's word on a unit.
func (m *Machine) active(unit string) string {
	out, _ := m.try("systemctl", "is-active", unit)
	return strings.TrimSpace(out)
}

// property is one of a unit's.
func (m *Machine) property(unit, name string) string {
	m.t.Helper()
	return m.run("systemctl", "show", "--value", "--property", name, unit)
}
