package rendezvous

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// communitySettle lets a burst of writes, or the several renames of a
	// ConfigMap update, pass before the directory is read.
	communitySettle = 200 * time.Millisecond
	// communityReread covers file systems that do not notify (NFS, FUSE) and
	// a directory that was itself replaced.
	communityReread = 30 * time.Second
)

// loadCommunities reads the *.yaml and *.yml files in dir and returns them and
// their union. An error in any of them is an error: nothing is known to stay in
// force in its place, and without its communities the tunnels of their members
// would be taken down.
func loadCommunities(dir string) (communityFiles, []Community, error) {
	read, err := readCommunityDir(dir)
	if err != nil {
		return nil, nil, err
	}
	var files communityFiles
	union, reports := files.update(read)
	for _, r := range reports {
		if r.err != nil {
			return nil, nil, r.err
		}
	}
	return files, union, nil
}

// watchCommunities keeps the communities of the *.yaml and *.yml files in dir
// in force until ctx ends. It calls apply, never twice at once, with the union
// of all files: once at the start, and again whenever that union has changed.
// files is what was loaded before.
//
// A file with an error is logged once per change, and what it held when it
// last was good stays in force. The same holds for a file that names a
// community which a file before it, in name order, already has.
//
// It returns an error only if dir cannot be read at the start.
func watchCommunities(ctx context.Context, dir string, files communityFiles, log *slog.Logger, apply func([]Community)) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch communitiesDir %s: %w", dir, err)
	}
	defer func() { _ = watcher.Close() }()
	// Watched before it is read first, so that no change falls between.
	if err := watcher.Add(dir); err != nil {
		return fmt.Errorf("communitiesDir %s must be a readable directory: %w", dir, err)
	}
	reread := time.NewTicker(communityReread)
	defer reread.Stop()
	w := &communityWatch{
		dir: dir, log: log, apply: apply, files: files,
		events: watcher.Events, errors: watcher.Errors, reread: reread.C,
		// A directory put in the place of the watched one is another inode.
		rewatch: func() error { return watcher.Add(dir) },
	}
	return w.run(ctx)
}

// communityWatch is owned by the goroutine in run.
type communityWatch struct {
	dir     string
	log     *slog.Logger
	apply   func([]Community)
	events  <-chan fsnotify.Event
	errors  <-chan error
	reread  <-chan time.Time
	rewatch func() error

	files   communityFiles
	applied []Community
	dirErr  string // last error of the directory itself, to log it once
}

func (w *communityWatch) run(ctx context.Context) error {
	read, err := readCommunityDir(w.dir)
	if err != nil {
		return err
	}
	w.applied = w.update(read)
	w.apply(w.applied)

	var settled <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.events:
			// Not restarted by further events: a file that is written all the
			// time must not hold up the others.
			if settled == nil {
				settled = time.After(communitySettle)
			}
		case err := <-w.errors:
			w.log.Warn("watching communities", "dir", w.dir, "err", err)
			if settled == nil { // events may have been lost
				settled = time.After(communitySettle)
			}
		case <-settled:
			settled = nil
			w.refresh()
		case <-w.reread:
			w.refresh()
		}
	}
}

// refresh reads the directory again. While that fails all files stay in force:
// a mount that went away is not the wish to part all edges.
func (w *communityWatch) refresh() {
	read, err := readCommunityDir(w.dir)
	if err == nil {
		err = w.rewatch()
	}
	if err != nil {
		if w.dirErr != err.Error() {
			w.dirErr = err.Error()
			w.log.Error("communities directory unreadable, its last content stays in force", "dir", w.dir, "err", err)
		}
		return
	}
	w.dirErr = ""
	if union := w.update(read); !reflect.DeepEqual(union, w.applied) {
		w.applied = union
		w.apply(union)
	}
}

// update folds what was read into the files and logs what is new about them.
func (w *communityWatch) update(read map[string]fileRead) []Community {
	union, reports := w.files.update(read)
	for _, r := range reports {
		var ce *CommunityError
		switch {
		case r.err == nil:
			w.log.Info("community file good again", "file", r.file)
		case errors.As(r.err, &ce):
			w.log.Error("community file refused, its last good content stays in force",
				"file", ce.File, "document", ce.Document, "line", ce.Line, "field", ce.Field, "problem", ce.Problem)
		default:
			w.log.Error("community file unreadable, its last good content stays in force", "file", r.file, "err", r.err)
		}
	}
	return union
}

// fileRead is what an attempt to read a file gave.
type fileRead struct {
	data []byte
	err  error
}

// readCommunityDir reads every *.yaml and *.yml file of dir, by path. Only a
// failure to list dir is an error of its own.
func readCommunityDir(dir string) (map[string]fileRead, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err // names dir
	}
	read := map[string]fileRead{}
	for _, entry := range entries {
		name := entry.Name()
		ext := filepath.Ext(name)
		// Dot files are editors' and Kubernetes' own bookkeeping.
		if strings.HasPrefix(name, ".") || ext != ".yaml" && ext != ".yml" {
			continue
		}
		path := filepath.Join(dir, name)
		data, err := readCommunityFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since it was listed
		}
		read[path] = fileRead{data, err}
	}
	return read, nil
}

// readCommunityFile reads no more than ParseCommunities needs to refuse it.
func readCommunityFile(path string) ([]byte, error) {
	// Opening a named pipe would wait for a writer.
	if info, err := os.Stat(path); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return io.ReadAll(io.LimitReader(f, maxCommunityFile+1))
}

// communityFiles holds, by path, what is in force. Its zero value is an empty
// directory.
type communityFiles map[string]communityFile

type communityFile struct {
	data    []byte      // present content
	problem string      // what is wrong with it; empty if nothing is
	good    []Community // content when it last was without error
}

// fileReport says that a file has an error that it did not have before, or
// with a nil error that it has none any more.
type fileReport struct {
	file string
	err  error
}

// update takes the present content of the directory. It returns the
// communities in force, in order of file and document, and what is to be
// reported. It does no I/O.
func (files *communityFiles) update(read map[string]fileRead) ([]Community, []fileReport) {
	next := communityFiles{}
	owners := map[string]string{} // community → file
	var union []Community
	var reports []fileReport
	for _, path := range slices.Sorted(maps.Keys(read)) {
		before, now := (*files)[path], communityFile{data: read[path].data}
		cs, err := read[path].parse(path, owners)
		if err != nil {
			now.problem, now.good = err.Error(), before.good
		} else {
			now.good = cs
		}
		if now.problem != before.problem || err != nil && !bytes.Equal(now.data, before.data) {
			reports = append(reports, fileReport{path, err})
		}
		for _, c := range now.good {
			// A file's last good content may name what another has since taken.
			if _, taken := owners[c.Name]; !taken {
				owners[c.Name] = path
				union = append(union, c)
			}
		}
		next[path] = now
	}
	*files = next
	return union, reports
}

func (r fileRead) parse(path string, owners map[string]string) ([]Community, error) {
	if r.err != nil {
		return nil, r.err
	}
	return parseCommunities(path, bytes.NewReader(r.data), owners)
}
