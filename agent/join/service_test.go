package join

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// systemctl puts a script in the place of systemctl that notes what it is asked, and
// fails with these words if there are any.
func systemctl(t *testing.T, words string) (asked string) {
	t.Helper()
	dir := t.TempDir()
	asked = filepath.Join(dir, "asked")
	script := "#!/bin/sh\necho \"$*\" >> " + asked + "\n"
	if words != "" {
		script += "echo '" + words + "' >&2\nexit 1\n"
	}
	if err := os.WriteFile(filepath.Join(dir, "systemctl"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	return asked
}

func TestSystemd(t *testing.T) {
	asked := systemctl(t, "")
	if done, err := (Systemd{}).Start(t.Context()); err != nil || done != "bodkin-agent.service enabled and started" {
		t.Errorf("%q, %v", done, err)
	}
	if got := string(mustRead(t, asked)); got != "enable bodkin-agent.service\nrestart bodkin-agent.service\n" {
		t.Errorf("systemctl was asked to\n%s", got)
	}
}

func TestSystemdWithoutUnit(t *testing.T) {
	systemctl(t, "Failed to enable unit:\nUnit file bodkin-agent.service does not exist.")
	_, err := Systemd{}.Start(t.Context())
	mustFail(t, err, "Unit file bodkin-agent.service does not exist: install Bodkin", nil)
	t.Setenv("PATH", t.TempDir())
	if _, err := (Systemd{}).Start(t.Context()); err == nil || !strings.Contains(err.Error(), "no systemctl") {
		t.Errorf("without systemctl: %v", err)
	}
}
