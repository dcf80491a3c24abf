package join

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// Unit is the agent's unit of systemd.
const Unit = "bodkin-agent.service"

// Systemd keeps the agent running by its unit.
type Systemd struct{}

// SystemdRuns reports whether systemd runs this machine, as sd_booted(3) does.
func SystemdRuns() bool {
	info, err := os.Lstat("/run/systemd/system")
	return err == nil && info.IsDir()
}

// Start implements Service. Restarting an agent touches no tunnel.
func (Systemd) Start(ctx context.Context) (string, error) {
	for _, verb := range []string{"enable", "restart"} {
		out, err := exec.CommandContext(ctx, "systemctl", verb, Unit).CombinedOutput()
		if errors.Is(err, exec.ErrNotFound) {
			return "", fmt.Errorf("systemd runs, but there is no systemctl: use --no-service and start the agent yourself")
		}
		if err != nil {
			return "", fmt.Errorf("systemctl %s %s: %s: install Bodkin's package, or use --no-service", verb, Unit, strings.TrimSuffix(strings.Join(strings.Fields(string(out)), " "), "."))
		}
	}
	return Unit + " enabled and started", nil
}
