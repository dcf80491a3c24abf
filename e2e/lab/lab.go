// Package lab builds small internets out of network namespaces: hosts and NAT
// routers, joined by a user-space router with delay, jitter and loss, each
// host with a charon of its own where wanted. Nothing leaves the machine and
// nothing is left behind: what a killed lab could not remove, Sweep does.
//
// It needs root, the ip, nft, conntrack and ping programs, and for charon
// strongSwan with the kernel-libipsec plugin.
package lab

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
)

// Errors a caller may want to tell apart.
var (
	ErrClosed       = errors.New("lab is closed")
	ErrNameTaken    = errors.New("name is taken")
	ErrAddressTaken = errors.New("address is taken")
	ErrNoLink       = errors.New("not attached to the internet directly")
	ErrNotRoot      = errors.New("needs root: run as root (make test does)")
)

// DefaultHops is the number of routers a packet passes between any two
// attachments of the internet: with two, a packet sent to die early can leave
// its own NAT and still not reach the peer's.
const DefaultHops = 2

// Options describe a lab. The zero value is a good one.
type Options struct {
	// Name is part of the namespaces' names: bdk-NAME-HOST. Lower-case
	// letters and digits; empty picks an unused one.
	Name string
	// Dir receives logs, certificates and sockets. Empty makes a temporary
	// one that Close removes; a directory given is kept. Paths of UNIX
	// sockets are limited to 107 bytes, so it must not be deep.
	Dir string
	// Hops replaces DefaultHops when positive.
	Hops int
	// KernelESP leaves ESP to the kernel, which must have it. Otherwise charon
	// does it in user space (kernel-libipsec).
	KernelESP bool
	// Log receives what the lab does; nil discards it.
	Log *slog.Logger
}

// Lab is one internet with its hosts. All methods may be called from any
// goroutine; hosts can be added at any time until Close.
type Lab struct {
	name      string
	dir       string
	kernelESP bool
	log       *slog.Logger
	ctx       context.Context // ends with the lab; bounds its own commands and charons
	cancel    context.CancelFunc
	entry     *registration
	internet  *internet
	pki       *PKI

	waiters   sync.WaitGroup // one per running process
	closeOnce sync.Once
	closeErr  error

	mu         sync.Mutex // guards the fields below
	closed     bool
	hosts      map[string]*Host
	processes  map[*Process]*namespace // that they were started in
	namespaces []*namespace
	lans       int // LAN prefixes handed out
	publics    int // public addresses handed out
}

var (
	labName  = regexp.MustCompile(`^[a-z0-9]{1,16}$`)
	hostName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{0,40}$`)
)

// New removes what dead labs left and starts an empty internet. When ctx ends,
// hosts can no longer be added and every charon is killed, but Close must
// still be called.
func New(ctx context.Context, opts Options) (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, ErrNotRoot
	}
	if opts.Name == "" {
		opts.Name = strings.ToLower(rand.Text()[:8])
	}
	if !labName.MatchString(opts.Name) {
		return nil, fmt.Errorf("lab name %q: want 1 to 16 lower-case letters and digits", opts.Name)
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Hops <= 0 {
		opts.Hops = DefaultHops
	}
	entry, err := claim(opts)
	if err != nil {
		return nil, err
	}
	pki, err := NewPKI(filepath.Join(entry.Dir, "pki"))
	if err != nil {
		return nil, errors.Join(err, entry.reclaim())
	}
	l := &Lab{
		name: opts.Name, dir: entry.Dir, kernelESP: opts.KernelESP, log: opts.Log.With("lab", opts.Name), entry: entry, pki: pki,
		internet:  newInternet(uint8(opts.Hops)),
		hosts:     make(map[string]*Host),
		processes: make(map[*Process]*namespace),
	}
	l.ctx, l.cancel = context.WithCancel(ctx)
	l.log.Info("lab started", "dir", l.dir, "hops", opts.Hops)
	return l, nil
}

// claim sweeps, makes the directory and registers the lab in one step under
// the registry's lock, so that no Sweep sees a lab without an owner.
func claim(opts Options) (*registration, error) {
	unlock, err := lockRegistry()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := sweepLocked(); err != nil {
		opts.Log.Warn("leftovers of a dead lab stay", "err", err)
	}
	dir, made := opts.Dir, opts.Dir == ""
	if made {
		if dir, err = os.MkdirTemp("", "bdk-"); err != nil {
			return nil, fmt.Errorf("lab directory: %w", err)
		}
	}
	dir, err = filepath.Abs(dir)
	if err == nil {
		err = os.MkdirAll(dir, 0o755)
	}
	if err != nil {
		return nil, fmt.Errorf("lab directory: %w", err)
	}
	entry, err := register(opts.Name, dir, made)
	if err != nil && made {
		err = errors.Join(err, os.Remove(dir))
	}
	return entry, err
}

// Name is the lab's name, as in its namespaces.
func (l *Lab) Name() string { return l.name }

// Dir is the directory that holds logs, certificates and sockets.
func (l *Lab) Dir() string { return l.dir }

// PKI is the lab's certificate authority.
func (l *Lab) PKI() *PKI { return l.pki }

// Close kills every process, stops the internet and removes namespaces and
// files, and waits for all of it. Calling it again returns the same error.
func (l *Lab) Close() error {
	l.closeOnce.Do(func() { l.closeErr = l.close() })
	return l.closeErr
}

func (l *Lab) close() error {
	l.mu.Lock()
	l.closed = true
	for p := range l.processes {
		p.cmd.Process.Kill()
	}
	l.mu.Unlock()
	l.waiters.Wait()
	l.cancel()
	l.internet.close()
	for _, ns := range l.namespaces {
		ns.close()
	}
	unlock, err := lockRegistry()
	if err != nil {
		return err
	}
	defer unlock()
	err = l.entry.reclaim()
	l.log.Info("lab closed", "err", err)
	return err
}

// addNamespace makes the namespace of a node and remembers it for Close.
func (l *Lab) addNamespace(node string) (*namespace, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, ErrClosed
	}
	ns, err := openNamespace(l.ctx, namespacePrefix+l.name+"-"+node)
	if err != nil {
		return nil, err
	}
	l.namespaces = append(l.namespaces, ns)
	return ns, nil
}

// reserve takes a name for a host or router.
func (l *Lab) reserve(h *Host) error {
	if !hostName.MatchString(h.name) {
		return fmt.Errorf("host name %q: want lower-case letters, digits, dots and dashes", h.name)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	if _, taken := l.hosts[h.name]; taken {
		return fmt.Errorf("host %q: %w", h.name, ErrNameTaken)
	}
	l.hosts[h.name] = h
	return nil
}

// launch starts p on the namespace's thread, records it for Sweep and waits
// for it in the background.
func (l *Lab) launch(ns *namespace, p *Process) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	if err := ns.do(p.cmd.Start); err != nil {
		return err
	}
	l.processes[p] = ns
	l.waiters.Go(func() {
		p.err = p.cmd.Wait()
		close(p.done)
		l.mu.Lock()
		delete(l.processes, p)
		l.mu.Unlock()
	})
	if err := l.entry.addChild(p.PID()); err != nil {
		p.cmd.Process.Kill()
		return err
	}
	l.log.Debug("process started", "namespace", ns.name, "name", p.name, "pid", p.PID())
	return nil
}

// nextPublic hands out 203.0.113.1 to .254, which is more than a lab needs,
// leaving 198.51.100.0/24 and 192.0.2.0/24 to callers that choose themselves.
func (l *Lab) nextPublic() netip.Addr {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.publics++
	return netip.AddrFrom4([4]byte{203, 0, 113, byte(l.publics)})
}

// nextLAN hands out 192.168.1.0/24 and on.
func (l *Lab) nextLAN() netip.Prefix {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lans++
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(l.lans), 0}), 24)
}
