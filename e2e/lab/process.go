package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// Process is a program running inside a host. It ends at the latest when its
// lab is closed. All methods may be called at any time from any goroutine.
type Process struct {
	name    string
	cmd     *exec.Cmd
	logPath string
	done    chan struct{} // closed after err is set
	err     error
}

// Start runs argv on the host with env added to the lab's own environment.
// Standard output and error are appended to a log file named after name. The
// process is killed when ctx ends.
func (h *Host) Start(ctx context.Context, name string, env []string, argv ...string) (*Process, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = childAttributes()
	return h.start(name, cmd)
}

func (h *Host) start(name string, cmd *exec.Cmd) (*Process, error) {
	p := &Process{name: name, cmd: cmd, logPath: filepath.Join(h.dir, name+".log"), done: make(chan struct{})}
	log, err := os.OpenFile(p.logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s on %s: %w", name, h.name, err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := h.lab.launch(h.ns, p); err != nil {
		return nil, fmt.Errorf("start %s on %s: %w", name, h.name, err)
	}
	return p, nil
}

// Signal sends sig to the process itself, not to children of its own.
func (p *Process) Signal(sig os.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("signal %s: %w", p.name, err)
	}
	return nil
}

// Kill kills the process (SIGKILL) and waits until it is gone. A process that
// has ended already is no error.
func (p *Process) Kill() {
	p.cmd.Process.Kill()
	<-p.done
}

// Stop asks the process to end (SIGTERM) and waits until it has; when ctx
// ends first it is killed.
func (p *Process) Stop(ctx context.Context) error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		<-p.done // only one that has ended refuses a signal
		return nil
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		p.Kill()
		return fmt.Errorf("stop %s: it did not end on SIGTERM and was killed: %w", p.name, ctx.Err())
	}
}

// Wait waits for the process to end and returns how it did: nil for exit
// status 0, an *exec.ExitError for any other, ctx's error when that came first.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("wait for %s: %w", p.name, ctx.Err())
	}
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// PID is the process's id, the same inside and outside of the host.
func (p *Process) PID() int { return p.cmd.Process.Pid }

func (p *Process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// LogPath is the file that holds the process's output, and that of earlier
// processes of the same name on the same host.
func (p *Process) LogPath() string { return p.logPath }

// Log returns the content of the log file so far.
func (p *Process) Log() string {
	text, err := os.ReadFile(p.logPath)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// Run runs a command on the host to its end and returns its standard output
// and error together. It is killed when ctx ends.
func (h *Host) Run(ctx context.Context, argv ...string) (string, error) {
	return h.ns.command(ctx, nil, "", argv...)
}
