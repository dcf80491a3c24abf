package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// populated returns the bytes of a store whose buckets span several pages.
func populated(t *testing.T) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "rendezvous.db")
	s := mustOpen(t, path, Options{})
	for i := range 40 {
		name := fmt.Sprintf("beijing.edge%d", i)
		addr := netip.AddrPortFrom(netip.MustParseAddr("10.22.45.30"), uint16(4500+i))
		_, err := s.Observe(name, Observation{Addr: addr, At: noon, Means: "stun:3478"})
		if err := errors.Join(err, s.PutNode(edge(name))); err != nil {
			t.Fatal(err)
		}
	}
	mustClose(t, s)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func writeFile(t *testing.T, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "rendezvous.db")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDamagedFileIsRefused(t *testing.T) {
	sound := populated(t)
	page := os.Getpagesize()
	tests := map[string][]byte{
		"empty":               {},
		"text":                []byte(strings.Repeat("not a database\n", 2000)),
		"short text":          []byte("x"),
		"zeros":               make([]byte, len(sound)),
		"first page only":     sound[:page],
		"meta pages only":     sound[:2*page],
		"last pages cut off":  sound[:len(sound)/2],
		"meta pages wiped":    append(make([]byte, 2*page), sound[2*page:]...),
		"everything but meta": append(bytes.Clone(sound[:2*page]), make([]byte, len(sound)-2*page)...),
	}
	for name, data := range tests {
		t.Run(name, func(t *testing.T) {
			path := writeFile(t, data)
			wantError(t, path, ErrCorrupt, "corrupt", "backup")
			after, err := os.ReadFile(path)
			if err != nil || !bytes.Equal(after, data) {
				t.Errorf("the refused file was changed (%v)", err)
			}
		})
	}
}

// TestDamagedPage overwrites one page at a time: a page in use must be missed,
// a free one may be, and neither may crash or go through with fewer records.
func TestDamagedPage(t *testing.T) {
	sound := populated(t)
	page := os.Getpagesize()
	noise := make([]byte, page)
	source := rand.NewChaCha8([32]byte{})
	if _, err := io.ReadFull(source, noise); err != nil {
		t.Fatal(err)
	}
	refused := 0
	for _, fill := range [][]byte{make([]byte, page), bytes.Repeat([]byte{0xff}, page), noise} {
		for start := 0; start+page <= len(sound); start += page {
			data := bytes.Clone(sound)
			copy(data[start:], fill)
			path := writeFile(t, data)
			s, err := Open(path, Options{LockTimeout: 100 * time.Millisecond})
			switch {
			case errors.Is(err, ErrCorrupt):
				refused++
			case err != nil:
				t.Errorf("page %d: %v, want ErrCorrupt", start/page, err)
			default:
				nodes, err := s.Nodes()
				// The loss of one meta page is the loss of one commit.
				if want := 40; err != nil || len(nodes) != want && start/page > 1 || len(nodes) < want-1 {
					t.Errorf("page %d: opened with %d nodes, %v, want %d", start/page, len(nodes), err, want)
				}
				mustClose(t, s)
			}
		}
	}
	if refused == 0 {
		t.Error("no damage was found")
	}
}

func TestRefusedFileIsNotLeftLocked(t *testing.T) {
	sound := populated(t)
	page := os.Getpagesize()
	path := writeFile(t, append(bytes.Clone(sound[:2*page]), make([]byte, len(sound)-2*page)...))
	wantError(t, path, ErrCorrupt)
	if err := os.WriteFile(path, sound, 0o600); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, path, Options{LockTimeout: 100 * time.Millisecond})
}

// helperEnv makes this test binary play the other process of a test.
const helperEnv = "BODKIN_STORE_TEST_HELPER"

func TestMain(m *testing.M) {
	role, path, _ := strings.Cut(os.Getenv(helperEnv), ":")
	switch role {
	case "":
		os.Exit(m.Run())
	case "hold":
		exit(holdStore(path))
	case "fill":
		exit(fillDisk(path))
	}
	exit(fmt.Errorf("unknown role %q", role))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func helper(t *testing.T, role, path string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), helperEnv+"="+role+":"+path)
	cmd.Stderr = os.Stderr
	return cmd
}

// holdStore opens the store, says so, and holds it until standard input ends.
func holdStore(path string) error {
	s, err := Open(path, Options{})
	if err != nil {
		return err
	}
	fmt.Println("held")
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	return s.Close()
}

func TestOtherProcessIsLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rendezvous.db")
	cmd := helper(t, "hold", path)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(stdout, make([]byte, len("held\n"))); err != nil {
		t.Fatalf("the other process did not open the store: %v", err)
	}
	wantError(t, path, ErrLocked)
	if err := errors.Join(stdin.Close(), cmd.Wait()); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, path, Options{})
}

func TestFullAndReadOnlyDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: run as root (make test does)")
	}
	cmd := helper(t, "fill", t.TempDir())
	// Mounts in a namespace of its own end with the process.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
}

// fillDisk mounts a small file system on dir and writes until it is full.
func fillDisk(dir string) error {
	if err := syscall.Mount("bodkin-test", dir, "tmpfs", 0, "size=128k"); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	path := filepath.Join(dir, "rendezvous.db")
	if err := firstStartOnFullDisk(path); err != nil {
		return err
	}
	s, err := Open(path, Options{})
	if err != nil {
		return err
	}
	written := 0
	for err == nil && written < 1000 {
		n := edge(fmt.Sprintf("beijing.edge%03d", written))
		n.AgentVersion = strings.Repeat("x", 4096)
		if err = s.PutNode(n); err == nil {
			written++
		}
	}
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), path) {
		return fmt.Errorf("full disk: error %v, want ENOSPC and the path", err)
	}
	nodes, err := s.Nodes()
	if err != nil || len(nodes) != written {
		return fmt.Errorf("full disk: %d nodes of %d left, %v", len(nodes), written, err)
	}
	if err := s.Close(); err != nil {
		return err
	}
	if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("remount: %w", err)
	}
	if _, err = Open(path, Options{}); !errors.Is(err, syscall.EROFS) || !strings.Contains(err.Error(), path) {
		return fmt.Errorf("read-only disk: error %v, want EROFS and the path", err)
	}
	return nil
}

// firstStartOnFullDisk must not leave a stump that looks like a damaged store.
func firstStartOnFullDisk(path string) error {
	filler, err := os.Create(filepath.Join(filepath.Dir(path), "filler"))
	if err != nil {
		return err
	}
	_, err = io.Copy(filler, io.LimitReader(zeros{}, 1<<20))
	if closeErr := filler.Close(); closeErr != nil || !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("filling the disk: %v, %v", err, closeErr)
	}
	if _, err := Open(path, Options{}); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), path) {
		return fmt.Errorf("first start on a full disk: error %v, want ENOSPC and the path", err)
	}
	if err := os.Remove(filler.Name()); err != nil {
		return err
	}
	s, err := Open(path, Options{})
	if err != nil {
		return fmt.Errorf("second start after making room: %w", err)
	}
	return s.Close()
}

// zeros reads as zeros without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
