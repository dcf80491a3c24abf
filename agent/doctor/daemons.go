package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/bodkin-net/bodkin/agent/charon"
)

// gatherCharon asks charon what it is and has.
func gatherCharon(ctx context.Context, f *Facts) {
	client := charon.New(charon.Options{Socket: f.Config.Config.VICISocket, Timeout: sourceTimeout})
	run, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { _ = client.Run(run) }) // ends with its context, and says so
	defer running.Wait()
	defer stop()

	c := &f.Charon
	if c.Version, c.Err = client.Version(ctx); c.Err != nil {
		return
	}
	if c.Plugins, c.Err = client.Plugins(ctx); c.Err != nil {
		return
	}
	if c.Conns, c.Err = client.Connections(ctx); c.Err != nil {
		return
	}
	c.SAs, c.Err = client.SAs(ctx, "")
}

// service is the agent's systemd unit.
const service = "bodkin-agent.service"

// gatherAgent asks the running agent for its status.
func gatherAgent(ctx context.Context, f *Facts) {
	a := &f.Agent
	a.Service = serviceState(ctx)
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, "unix", f.Config.Config.Socket)
			if err == nil {
				a.PID = peerOf(conn)
			}
			return conn, err
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://bodkin/v1/status", nil)
	if err != nil {
		a.Err = err
		return
	}
	resp, err := client.Do(req)
	if err != nil {
		if op, is := errors.AsType[*net.OpError](err); is {
			err = op.Err
		}
		a.Err = fmt.Errorf("%s: %w", f.Config.Config.Socket, err)
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		a.Err = fmt.Errorf("%s: %s", f.Config.Config.Socket, resp.Status)
		return
	}
	if err := json.NewDecoder(resp.Body).Decode(&a.Status); err != nil {
		a.Err = fmt.Errorf("%s: %w", f.Config.Config.Socket, err)
		return
	}
	if a.PID != 0 {
		a.Lacks = lacks(a.PID)
	}
}

// peerOf is the process at the other end of a unix socket, 0 if it is not known.
func peerOf(conn net.Conn) (pid int) {
	sc, is := conn.(syscall.Conn)
	if !is {
		return 0
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) { // an error leaves 0
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid
}

// serviceState is systemd's word on the agent's unit, empty where there is no
// systemd or no such unit.
func serviceState(ctx context.Context) string {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return ""
	}
	out, err := exec.CommandContext(ctx, "systemctl", "show", "--property=LoadState,ActiveState", service).Output()
	if err != nil || !strings.Contains(string(out), "LoadState=loaded") {
		return ""
	}
	for line := range strings.Lines(string(out)) {
		if state, is := strings.CutPrefix(line, "ActiveState="); is {
			return strings.TrimSpace(state)
		}
	}
	return ""
}
