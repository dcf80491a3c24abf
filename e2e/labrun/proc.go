package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// clockTick is the unit of times in /proc (USER_HZ), 100 on every platform
// Linux has since 2.6.
const clockTick = time.Second / 100

// usage is what a process has used so far and holds now.
type usage struct {
	cpu          time.Duration
	rssMB        float64
	peakMB       float64 // of rssMB
	threads, fds int
}

// usageOf reads /proc, see proc(5).
func usageOf(pid int) (usage, error) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	stat, errStat := os.ReadFile(dir + "stat")
	status, errStatus := os.ReadFile(dir + "status")
	fds, errFDs := os.ReadDir(dir + "fd")
	if err := errors.Join(errStat, errStatus, errFDs); err != nil {
		return usage{}, err
	}
	u, err := parseUsage(string(stat), string(status))
	if err != nil {
		return usage{}, fmt.Errorf("process %d: %w", pid, err)
	}
	u.fds = len(fds)
	return u, nil
}

func parseUsage(stat, status string) (u usage, err error) {
	// The second field is the command in parentheses, and may hold anything.
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	const userAt, systemAt = 11, 12
	if len(fields) <= systemAt {
		return u, fmt.Errorf("stat has %d fields after the command", len(fields))
	}
	for _, at := range []int{userAt, systemAt} {
		ticks, err := strconv.ParseInt(fields[at], 10, 64)
		if err != nil {
			return u, fmt.Errorf("stat: %w", err)
		}
		u.cpu += time.Duration(ticks) * clockTick
	}
	for line := range strings.Lines(status) {
		key, value, _ := strings.Cut(line, ":")
		number, _, _ := strings.Cut(strings.TrimSpace(value), " ")
		n, errNumber := strconv.ParseFloat(number, 64)
		switch key {
		case "VmRSS":
			u.rssMB, err = round(n*1024/1e6, 1), errors.Join(err, errNumber)
		case "VmHWM":
			u.peakMB, err = round(n*1024/1e6, 1), errors.Join(err, errNumber)
		case "Threads":
			u.threads, err = int(n), errors.Join(err, errNumber)
		}
	}
	return u, err
}

// machineLoad is the machine's load average of the last minute.
func machineLoad() (float64, error) {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(text), " ")
	return strconv.ParseFloat(first, 64)
}
