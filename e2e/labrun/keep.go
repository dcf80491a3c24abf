package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

// keptFile holds the process id of the demo that was left running. That demo
// has it locked: the lock, unlike the file, cannot outlive it.
const keptFile = "/run/bodkin-demo.pid"

// stopTimeout is how long a demo may take to clean up after itself: some
// hundred milliseconds, and seconds on a busy machine.
const stopTimeout = 30 * time.Second

// stopPoll is between looks whether it has ended.
const stopPoll = 50 * time.Millisecond

// claimKept makes this process the demo that stays, until the file is closed.
func claimKept() (*os.File, error) {
	f, err := os.OpenFile(keptFile, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	locked, err := lock(f)
	if err == nil && !locked {
		err = errors.New("a demo is running already: end it with make demo-stop")
	}
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = fmt.Fprintln(f, os.Getpid())
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// lock reports whether the file could be locked.
func lock(f *os.File) (bool, error) {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return true, nil
}

func demoStopCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "demo-stop",
		Short: "End a demo that was left running, and remove what killed labs left",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if os.Geteuid() != 0 {
				return lab.ErrNotRoot
			}
			said, err := stopKept(cmd.Context())
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), said)
			return lab.Sweep()
		},
	}
}

// stopKept ends the demo that was left running, if there is one, waits for it,
// and says what it did.
func stopKept(ctx context.Context) (string, error) {
	f, err := os.OpenFile(keptFile, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer f.Close()
	locked, err := lock(f)
	if err != nil || locked {
		return "No demo is running.", err
	}
	text, err := io.ReadAll(f)
	if err != nil {
		return "", err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return "", fmt.Errorf("%s: want the demo's process id: %w", keptFile, err)
	}
	if err := unix.Kill(pid, syscall.SIGTERM); err != nil {
		return "", fmt.Errorf("end the demo, process %d: %w", pid, err)
	}
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	tick := time.NewTicker(stopPoll)
	defer tick.Stop()
	for {
		if locked, err = lock(f); err != nil || locked {
			return "The demo has ended.", err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return "", fmt.Errorf("the demo, process %d, has not ended yet: %w", pid, ctx.Err())
		}
	}
}
