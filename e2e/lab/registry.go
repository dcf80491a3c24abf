package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// registry holds one folder per lab, so that Sweep finds every lab wherever
// its own directory is. Each has ownerFile, and childrenFile with one
// "PID START" a line.
const (
	registry     = "/run/bodkin-lab"
	ownerFile    = "owner.json"
	childrenFile = "children"
)

// namespacePrefix marks our namespaces; LAB and HOST in "bdk-LAB-HOST" are
// told apart by the dash, which a lab's name cannot hold.
const namespacePrefix = "bdk-"

// registration is a lab's entry in the registry.
type registration struct {
	name string

	PID       int    `json:"pid"`
	Start     uint64 `json:"start"`
	Dir       string `json:"dir"`
	RemoveDir bool   `json:"removeDir"` // Dir was made by the lab

	mu sync.Mutex // guards appends to childrenFile
}

func (r *registration) path() string { return filepath.Join(registry, r.name) }

// lockRegistry keeps creation and Sweep of all labs on the machine apart.
func lockRegistry() (unlock func(), err error) {
	if err := os.MkdirAll(registry, 0o755); err != nil {
		return nil, fmt.Errorf("lab registry: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(registry, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lab registry: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock lab registry %s: %w", registry, err)
	}
	return func() { f.Close() }, nil
}

// register enters a lab of this process. The caller holds the registry's lock.
func register(name, dir string, removeDir bool) (*registration, error) {
	self, err := identify(os.Getpid())
	if err != nil {
		return nil, err
	}
	r := &registration{name: name, PID: self.pid, Start: self.start, Dir: dir, RemoveDir: removeDir}
	if err := os.Mkdir(r.path(), 0o755); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("lab %q: %w", name, ErrNameTaken)
		}
		return nil, fmt.Errorf("lab %q: %w", name, err)
	}
	text, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("lab %q: %w", name, err)
	}
	if err := os.WriteFile(filepath.Join(r.path(), ownerFile), text, 0o644); err != nil {
		return nil, errors.Join(fmt.Errorf("lab %q: %w", name, err), os.RemoveAll(r.path()))
	}
	return r, nil
}

// addChild records a process that must not outlive the lab.
func (r *registration) addChild(pid int) error {
	id, err := identify(pid)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // ended already
	}
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	f, err := os.OpenFile(filepath.Join(r.path(), childrenFile), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("record process %d: %w", pid, err)
	}
	defer f.Close()
	if _, err := fmt.Fprintln(f, id); err != nil {
		return fmt.Errorf("record process %d: %w", pid, err)
	}
	return nil
}

// readRegistration reads an entry; one left half-written by a crash comes back
// without an owner.
func readRegistration(name string) *registration {
	r := &registration{name: name}
	text, err := os.ReadFile(filepath.Join(r.path(), ownerFile))
	if err != nil || json.Unmarshal(text, r) != nil {
		return &registration{name: name}
	}
	return r
}

func (r *registration) ownerAlive() bool { return processID{r.PID, r.Start}.alive() }

// reclaim removes everything the lab left: processes, namespaces, directories
// and at last the entry itself, so that an error leaves it for the next Sweep.
func (r *registration) reclaim() error {
	err := errors.Join(r.killChildren(), removeNamespaces(func(lab string) bool { return lab == r.name }))
	if r.RemoveDir {
		err = errors.Join(err, os.RemoveAll(r.Dir))
	}
	if err != nil {
		return fmt.Errorf("remove lab %q: %w", r.name, err)
	}
	if err := os.RemoveAll(r.path()); err != nil {
		return fmt.Errorf("remove lab %q: %w", r.name, err)
	}
	return nil
}

func (r *registration) killChildren() error {
	text, err := os.ReadFile(filepath.Join(r.path(), childrenFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for line := range strings.Lines(string(text)) {
		id, err := parseProcessID(line)
		if err != nil {
			continue // the last line of a lab that was killed while writing it
		}
		errs = append(errs, id.kill())
	}
	return errors.Join(errs...)
}

// removeNamespaces deletes the network namespaces of the labs for which
// doomed is true, and kills whoever still runs in them, such as children of
// the lab's children.
func removeNamespaces(doomed func(lab string) bool) error {
	names, err := labNamespaces(doomed)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		members, err := membersOf(name)
		errs = append(errs, err)
		for _, m := range members {
			errs = append(errs, m.kill())
		}
		if out, err := exec.Command("ip", "netns", "del", name).CombinedOutput(); err != nil {
			errs = append(errs, commandError("ip netns del "+name, out, err))
		}
	}
	return errors.Join(errs...)
}

func labNamespaces(match func(lab string) bool) ([]string, error) {
	entries, err := os.ReadDir(netnsDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	var names []string
	for _, e := range entries {
		rest, ours := strings.CutPrefix(e.Name(), namespacePrefix)
		lab, _, named := strings.Cut(rest, "-")
		if ours && named && match(lab) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Sweep removes what labs left whose process was killed: namespaces,
// processes and directories. Labs of living processes are not touched.
func Sweep() error {
	unlock, err := lockRegistry()
	if err != nil {
		return err
	}
	defer unlock()
	return sweepLocked()
}

func sweepLocked() error {
	entries, err := os.ReadDir(registry)
	if err != nil {
		return fmt.Errorf("lab registry: %w", err)
	}
	living := make(map[string]bool)
	var errs []error
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		r := readRegistration(e.Name())
		if r.ownerAlive() {
			living[r.name] = true
			continue
		}
		errs = append(errs, r.reclaim())
	}
	// Namespaces without an entry: the registry was lost, as by a reboot of a
	// container that kept them mounted.
	errs = append(errs, removeNamespaces(func(lab string) bool { return !living[lab] }))
	return errors.Join(errs...)
}
