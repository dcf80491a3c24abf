package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// processID names a process for good: a pid alone is given out again, a pid
// with its start time is not.
type processID struct {
	pid   int
	start uint64 // clock ticks since boot, field 22 of /proc/PID/stat
}

func (p processID) String() string { return fmt.Sprintf("%d %d", p.pid, p.start) }

func parseProcessID(s string) (processID, error) {
	var p processID
	if _, err := fmt.Sscanf(s, "%d %d", &p.pid, &p.start); err != nil {
		return processID{}, fmt.Errorf("process id %q is not \"PID START\": %w", s, err)
	}
	return p, nil
}

// identify returns the identity of a running process; one that has ended and
// is only waiting to be reaped counts as gone.
func identify(pid int) (processID, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return processID{}, fmt.Errorf("process %d: %w", pid, fs.ErrNotExist)
	}
	// The second field is the command in parentheses, and may hold anything.
	_, rest, _ := bytes.Cut(stat[bytes.LastIndexByte(stat, ')'):], []byte(" "))
	fields := strings.Fields(string(rest))
	const stateAt, startAt = 0, 19
	if len(fields) <= startAt || fields[stateAt] == "Z" || fields[stateAt] == "X" {
		return processID{}, fmt.Errorf("process %d: %w", pid, fs.ErrNotExist)
	}
	start, err := strconv.ParseUint(fields[startAt], 10, 64)
	if err != nil {
		return processID{}, fmt.Errorf("process %d: start time: %w", pid, err)
	}
	return processID{pid, start}, nil
}

func (p processID) alive() bool {
	now, err := identify(p.pid)
	return err == nil && now == p
}

// killTimeout is how long a killed process may take to go. The kernel needs
// milliseconds; a machine with many labs on few cores needs more.
const killTimeout = 10 * time.Second

// kill kills exactly p, waits until it is gone, and does nothing when it is
// already. The pidfd holds the process from check to signal, so that a pid
// given out again in between is not hit.
func (p processID) kill() error {
	fd, err := unix.PidfdOpen(p.pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("kill process %d: %w", p.pid, err)
	}
	defer unix.Close(fd)
	if !p.alive() {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", p.pid, err)
	}
	return p.awaitEnd(fd)
}

// awaitEnd waits for a pidfd to become readable, which it does when its
// process has ended.
func (p processID) awaitEnd(fd int) error {
	deadline := time.Now().Add(killTimeout)
	for left := killTimeout; left > 0; left = time.Until(deadline) {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for process %d to end: %w", p.pid, err)
		}
		if n > 0 {
			return nil
		}
	}
	return fmt.Errorf("process %d did not end within %v of being killed", p.pid, killTimeout)
}

// membersOf lists the processes whose network namespace is the named one.
func membersOf(name string) ([]processID, error) {
	var ns unix.Stat_t
	if err := unix.Stat(filepath.Join(netnsDir, name), &ns); err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", name, err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var members []processID
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		// The start time is read first: a process that gives way to another
		// with its pid in between does not pass for a member.
		id, err := identify(pid)
		if err != nil {
			continue
		}
		var own unix.Stat_t
		if unix.Stat(filepath.Join("/proc", e.Name(), "ns/net"), &own) == nil && own.Ino == ns.Ino && own.Dev == ns.Dev {
			members = append(members, id)
		}
	}
	return members, nil
}
