package unixsock

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
		t.Errorf("mode %v, %v; want %o", info.Mode(), err, mode)
	}
	if _, err := Listen(path); !errors.Is(err, ErrServed) || !strings.Contains(err.Error(), path) {
		t.Errorf("while it is served: %v", err)
	}
	// A killed process leaves its socket: closing would remove it.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Listen(path)
	if err != nil {
		t.Fatalf("what a killed process left: %v", err)
	}
	again.Close()
}

// A file that is no socket, such as the store's, is not replaced.
func TestListenKeepsFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rendezvous.db")
	if err := os.WriteFile(path, []byte("records"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), path+" is there and no socket") {
		t.Errorf("%v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "records" {
		t.Errorf("the file is now %q, %v", b, err)
	}
}
