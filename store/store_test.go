package store

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

func mustOpen(t *testing.T, path string, o Options) *Store {
	t.Helper()
	s, err := Open(path, o)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func mustClose(t *testing.T, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
}

// wantError fails unless Open refuses path with target, naming path and text.
func wantError(t *testing.T, path string, target error, text ...string) {
	t.Helper()
	s, err := Open(path, Options{LockTimeout: 100 * time.Millisecond})
	if err == nil {
		_ = s.Close()
		t.Fatalf("opened, want %v", target)
	}
	if !errors.Is(err, target) {
		t.Errorf("error %q, want %v", err, target)
	}
	for _, want := range append(text, path) {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not mention %q", err, want)
		}
	}
}

func TestOpenCreatesPrivateFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rendezvous.db")
	mustOpen(t, path, Options{})
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o600 {
		t.Errorf("mode %o, want 600", got)
	}
}

func TestOpenWantsDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "absent")
	wantError(t, filepath.Join(dir, "rendezvous.db"), os.ErrNotExist, "directory "+dir+" must exist")
}

func TestIDTellsEmptiedStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rendezvous.db")
	s := mustOpen(t, path, Options{})
	first := s.ID()
	if !s.Created() {
		t.Error("a new file is not told from one that was there")
	}
	mustClose(t, s)

	s = mustOpen(t, path, Options{})
	if s.ID() != first || first == "" || s.Created() {
		t.Errorf("reopened store has ID %q, was %q; created %v", s.ID(), first, s.Created())
	}
	mustClose(t, s)

	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if s = mustOpen(t, path, Options{}); s.ID() == first {
		t.Errorf("a new file kept ID %q", first)
	}
}

func TestSecondOpenIsLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rendezvous.db")
	s := mustOpen(t, path, Options{})
	wantError(t, path, ErrLocked, "held by another process (waited 100ms)", "`store`")
	mustClose(t, s)
	mustOpen(t, path, Options{})
}

func TestClosedStoreRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rendezvous.db")
	s := mustOpen(t, path, Options{})
	mustClose(t, s)
	if err := s.PutNode(Node{Name: "beijing.edge1"}); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("write to a closed store: %v, want an error naming the file", err)
	}
}

func TestSchemaRefused(t *testing.T) {
	tests := []struct {
		name   string
		change func(*bbolt.Tx) error
		target error
		text   []string
	}{
		{
			name:   "newer",
			change: func(tx *bbolt.Tx) error { return tx.Bucket(metaBucket).Put(schemaKey, []byte("7")) },
			target: ErrSchema,
			text:   []string{"has schema 7", "reads schema 2"},
		},
		{
			name: "foreign",
			change: func(tx *bbolt.Tx) error {
				if _, err := tx.CreateBucket([]byte("registry")); err != nil {
					return err
				}
				return tx.DeleteBucket(metaBucket)
			},
			target: ErrSchema,
			text:   []string{"bodkin did not make", "reads schema 2"},
		},
		{
			name:   "no number",
			change: func(tx *bbolt.Tx) error { return tx.Bucket(metaBucket).Put(schemaKey, []byte("one")) },
			target: ErrCorrupt,
		},
		{
			name:   "no identifier",
			change: func(tx *bbolt.Tx) error { return tx.Bucket(metaBucket).Delete(idKey) },
			target: ErrCorrupt,
		},
		{
			name:   "bucket missing",
			change: func(tx *bbolt.Tx) error { return tx.DeleteBucket(pairsBucket) },
			target: ErrCorrupt,
			text:   []string{`"pairs"`},
		},
		{
			name: "unreadable record",
			change: func(tx *bbolt.Tx) error {
				return tx.Bucket(nodesBucket).Put([]byte("beijing.edge1"), []byte(`{"name":`))
			},
			target: ErrCorrupt,
			text:   []string{`"beijing.edge1"`, `"nodes"`},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "rendezvous.db")
			mustClose(t, mustOpen(t, path, Options{}))
			edit(t, path, tt.change)
			wantError(t, path, tt.target, tt.text...)
		})
	}
}

// edit changes the file as another bbolt program would.
func edit(t *testing.T, path string, change func(*bbolt.Tx) error) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Update(change), db.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestCreationCutShortStartsOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rendezvous.db")
	edit(t, path, func(*bbolt.Tx) error { return nil })
	if s := mustOpen(t, path, Options{}); s.ID() == "" {
		t.Error("no identifier")
	}
}
