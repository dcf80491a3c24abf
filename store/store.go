// Package store keeps what the rendezvous must not forget across a restart:
// nodes, the addresses they were observed at, communities and the outcome of
// each pair. Records are JSON in a bbolt file, one bucket per kind, keyed by
// the record's name, so listings come out sorted.
//
// The json tags of the record types are the format on disk: renaming one, or
// changing what a field means, asks for a new schema version.
package store

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// schemaVersion is the layout this program writes. It reads schema 1 too, which
// lacks some buckets, and makes them: from then on the file is of schema 2.
const schemaVersion = 2

const (
	// defaultLockTimeout covers a restart, where the old process is still
	// closing the file, and is short enough for an operator to wait out.
	defaultLockTimeout = 2 * time.Second
	// defaultHistory covers about a month of daily forced reconnects, the
	// shortest renewal that DSL providers commonly impose.
	defaultHistory = 32
)

var (
	// ErrLocked says that another process, or another Store, has the file open.
	ErrLocked = errors.New("held by another process")
	// ErrNotFound says that there is no record under the given name.
	ErrNotFound = errors.New("not found")
	// ErrSchema says that the file is sound but not of this program's schema.
	ErrSchema = errors.New("unknown schema")
	// ErrCorrupt says that the file is damaged, or no database at all.
	ErrCorrupt = errors.New("corrupt")
)

var (
	metaBucket = []byte("bodkin-rendezvous")
	schemaKey  = []byte("schema")
	idKey      = []byte("id")
)

// recordBuckets lists every bucket of records with the check that one of its
// values is readable.
var recordBuckets = []struct {
	name  []byte
	check func(value []byte) error
}{
	{nodesBucket, readable[Node]},
	{observationsBucket, readable[[]Observation]},
	{communitiesBucket, readable[Community]},
	{pairsBucket, readable[Pair]},
	{tokensBucket, readable[Token]},
	{admissionsBucket, readable[Admission]},
	{certificatesBucket, readable[Certificate]},
	{accessBucket, readable[Credential]},
	{auditBucket, readable[Audit]},
	{eventsBucket, readable[Event]},
	{attemptsBucket, readable[Attempt]},
	{attemptOrderBucket, readable[string]},
	{hoursBucket, readable[Hour]},
}

// schema1 is how many of recordBuckets there were in schema 1.
const schema1 = 4

// Options tunes Open; zero values stand for the defaults.
type Options struct {
	// LockTimeout is how long Open waits for another holder of the file;
	// 2 s if zero.
	LockTimeout time.Duration
	// History is the number of observations kept per node; 32 if zero.
	History int
}

// Store is an open database file. It is safe for concurrent use: bbolt admits
// one writer at a time and gives every reader a consistent snapshot, and the
// fields here do not change after Open.
//
// Every write is on disk when its method returns. Every error names the file.
// Times come back in UTC.
type Store struct {
	db      *bbolt.DB
	path    string
	id      string
	history int
	created bool
}

// Open opens the store at path, creating the file (mode 0600) if there is
// none; its directory must exist. It reads the whole file once, so that damage
// is found here and not in the middle of the day.
//
// Errors: ErrLocked, ErrSchema, ErrCorrupt, or the operating system's.
func Open(path string, o Options) (*Store, error) {
	if o.LockTimeout <= 0 {
		o.LockTimeout = defaultLockTimeout
	}
	if o.History <= 0 {
		o.History = defaultHistory
	}
	db, err := openFile(path, o.LockTimeout)
	if err != nil {
		return nil, openError(path, o.LockTimeout, err)
	}
	s := &Store{db: db, path: path, history: o.History}
	if err := guard(s.load); err != nil {
		err = openError(path, o.LockTimeout, err)
		return nil, errors.Join(err, db.Close())
	}
	return s, nil
}

// ID is a random identifier made when the file was created. A different ID
// under the same path means that the store was emptied.
func (s *Store) ID() string { return s.id }

// Created reports whether Open found nothing at the path: no record is older.
func (s *Store) Created() bool { return s.created }

// Close waits for running transactions and releases the file.
func (s *Store) Close() error {
	if err := s.db.Close(); err != nil {
		return s.wrap("close", err)
	}
	return nil
}

// openFile opens the bbolt file. bbolt panics on some damage and would leave
// the file locked; the descriptor is therefore taken on its way in.
func openFile(path string, lockTimeout time.Duration) (db *bbolt.DB, err error) {
	var file *os.File
	var created bool
	options := &bbolt.Options{
		Timeout: lockTimeout,
		OpenFile: func(path string, _ int, mode os.FileMode) (_ *os.File, err error) {
			file, created, err = openOrCreate(path, mode)
			return file, err
		},
	}
	err = guard(func() error {
		db, err = bbolt.Open(path, 0o600, options)
		return err
	})
	if err == nil {
		return db, nil
	}
	if file != nil {
		// bbolt has done both unless it panicked. Closing alone does not
		// unlock, because the leaked memory map still refers to the file.
		_ = syscall.Flock(int(file.Fd()), syscall.LOCK_UN)
		_ = file.Close()
	}
	if created && !errors.Is(err, bolterrors.ErrTimeout) {
		// A first start on a full disk must not look like damage to the next.
		_ = os.Remove(path)
	}
	return nil, err
}

// openOrCreate tells a file that is new from one that lost its content: bbolt
// takes both for a new database.
func openOrCreate(path string, mode os.FileMode) (f *os.File, created bool, err error) {
	f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, mode)
	if !errors.Is(err, fs.ErrExist) {
		return f, err == nil, err
	}
	if f, err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
		return nil, false, err
	}
	info, err := f.Stat()
	if err == nil && info.Size() == 0 {
		err = fmt.Errorf("%w: the file is there but empty", ErrCorrupt)
	}
	if err != nil {
		_ = f.Close()
		return nil, false, err
	}
	return f, false, nil
}

// guard runs f on a file that may be damaged. bbolt answers damage with
// panics, and a page that lies outside a truncated file with a memory fault;
// both become ErrCorrupt.
func guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", ErrCorrupt, r)
		}
	}()
	return f()
}

// load makes a new file ours, or verifies one that has content.
func (s *Store) load() error {
	var fresh, old bool
	err := s.db.View(func(tx *bbolt.Tx) error {
		if err := checkSize(tx, s.path); err != nil {
			return err
		}
		// bbolt writes its first pages before our first transaction: a
		// database without any bucket is one whose creation was cut short.
		if key, _ := tx.Cursor().First(); key == nil {
			fresh = true
			return nil
		}
		var err error
		old, err = s.verify(tx)
		return err
	})
	switch {
	case err != nil:
		return err
	case fresh:
		s.created = true
		return s.db.Update(s.initialise)
	case old:
		return s.db.Update(upgrade)
	}
	return nil
}

// upgrade makes a file of schema 1 one of schema 2.
func upgrade(tx *bbolt.Tx) error {
	for _, b := range recordBuckets[schema1:] {
		if _, err := tx.CreateBucketIfNotExists(b.name); err != nil {
			return err
		}
	}
	return tx.Bucket(metaBucket).Put(schemaKey, strconv.AppendInt(nil, schemaVersion, 10))
}

// checkSize finds truncation, which later would be a memory fault.
func checkSize(tx *bbolt.Tx, path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Size() < tx.Size() {
		return fmt.Errorf("%w: truncated to %d of %d bytes", ErrCorrupt, info.Size(), tx.Size())
	}
	return nil
}

// initialise lays out an empty database.
func (s *Store) initialise(tx *bbolt.Tx) error {
	meta, err := tx.CreateBucket(metaBucket)
	if err != nil {
		return err
	}
	s.id = rand.Text()
	if err := meta.Put(schemaKey, strconv.AppendInt(nil, schemaVersion, 10)); err != nil {
		return err
	}
	if err := meta.Put(idKey, []byte(s.id)); err != nil {
		return err
	}
	for _, b := range recordBuckets {
		if _, err := tx.CreateBucket(b.name); err != nil {
			return err
		}
	}
	return nil
}

// verify reads the schema, the identifier and every record. old says that the
// file is of schema 1.
func (s *Store) verify(tx *bbolt.Tx) (old bool, err error) {
	meta := tx.Bucket(metaBucket)
	if meta == nil {
		return false, fmt.Errorf("%w: a database that bodkin did not make, this bodkin reads schema %d: set another `store`",
			ErrSchema, schemaVersion)
	}
	version, err := strconv.Atoi(string(meta.Get(schemaKey)))
	if err != nil {
		return false, fmt.Errorf("%w: schema version %q is no number", ErrCorrupt, meta.Get(schemaKey))
	}
	if version != schemaVersion && version != 1 {
		return false, fmt.Errorf("%w: the file has schema %d, this bodkin reads schema %d: run the bodkin that wrote it, or set another `store`",
			ErrSchema, version, schemaVersion)
	}
	if s.id = string(meta.Get(idKey)); s.id == "" {
		return false, fmt.Errorf("%w: no identifier", ErrCorrupt)
	}
	buckets := recordBuckets
	if old = version == 1; old {
		buckets = buckets[:schema1]
	}
	for _, b := range buckets {
		bucket := tx.Bucket(b.name)
		if bucket == nil {
			return false, fmt.Errorf("%w: no bucket %q", ErrCorrupt, b.name)
		}
		err := bucket.ForEach(func(key, value []byte) error {
			if err := b.check(value); err != nil {
				return fmt.Errorf("%w: record %q in %q: %w", ErrCorrupt, key, b.name, err)
			}
			return nil
		})
		if err != nil {
			return false, err
		}
	}
	return old, checkPages(tx)
}

// checkPages finds pages that are in use and free at once, which the next
// write would overwrite. It runs last: bbolt checks in a goroutine of its own,
// out of guard's reach, and by now every page has been read once.
func checkPages(tx *bbolt.Tx) error {
	var first error
	for err := range tx.Check() { // drained to the end, or its goroutine stays
		if first == nil {
			first = fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
	}
	return first
}

// openError says in words why path could not be opened and what to do.
func openError(path string, lockTimeout time.Duration, err error) error {
	var errno syscall.Errno
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return fmt.Errorf("store %s is %w (waited %s): stop the other rendezvous or set another `store`",
			path, ErrLocked, lockTimeout)
	case errors.Is(err, ErrSchema):
		return fmt.Errorf("store %s: %w", path, err)
	case errors.Is(err, ErrCorrupt):
		return corruptError(path, err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("store %s: directory %s must exist: %w", path, filepath.Dir(path), err)
	case errors.As(err, &errno):
		return fmt.Errorf("store %s: %w", path, err)
	default:
		// What bbolt says of its own about a file that it could read.
		return corruptError(path, fmt.Errorf("%w: %w", ErrCorrupt, err))
	}
}

func corruptError(path string, err error) error {
	return fmt.Errorf("store %s: %w: put a backup in its place, or move it away to start empty (communities must then be applied again)", path, err)
}

// wrap names the file and the operation that failed.
func (s *Store) wrap(operation string, err error) error {
	return fmt.Errorf("store %s: %s: %w", s.path, operation, err)
}

// readable reports whether value decodes as a T.
func readable[T any](value []byte) error {
	var v T
	return json.Unmarshal(value, &v)
}
