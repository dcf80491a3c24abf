package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// docs/cli.md is what the commands say of themselves.
func TestManualIsCurrent(t *testing.T) {
	want, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := writeMarkdown(&got, newRoot()); err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Error("docs/cli.md is out of date: make docs")
	}
}

// Each command, and each help topic, has a man page.
func TestManPages(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("SOURCE_DATE_EPOCH", "86400")
	if err := writeMan(newRoot(), dir); err != nil {
		t.Fatal(err)
	}
	for page, want := range map[string]string{
		"bodkin.1":            "bodkin-status(1)",
		"bodkin-agent.1":      "teardown-on-exit",
		"bodkin-exit-codes.1": "What the exit codes mean",
	} {
		b, err := os.ReadFile(filepath.Join(dir, page))
		if err != nil {
			t.Error(err)
			continue
		}
		if text := strings.ReplaceAll(string(b), `\-`, "-"); !strings.Contains(text, want) || !strings.Contains(text, "1970") {
			t.Errorf("%s lacks %q or its date:\n%s", page, want, text)
		}
	}
	topic := read(t, dir, "bodkin-files.1")
	if !strings.Contains(topic, "\n  /etc/bodkin/agent.yaml           the agent's configuration\n") ||
		strings.Contains(topic, "SYNOPSIS") || strings.Contains(topic, "OPTIONS") || !strings.Contains(topic, ".SH SEE ALSO") {
		t.Errorf("bodkin-files.1 is not the topic's text as it stands:\n%s", topic)
	}
	if _, err := os.Stat(filepath.Join(dir, "bodkin-docs.1")); err == nil {
		t.Error("a hidden command has a man page")
	}
}
