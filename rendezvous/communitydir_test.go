package rendezvous

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// communityWait bounds what a test waits for; only a failing test waits so long.
const communityWait = 20 * time.Second

func communityFileOf(name string, members ...string) string {
	return fmt.Sprintf("apiVersion: %s\nkind: %s\nmetadata: {name: %s}\nspec: {members: [%s]}\n",
		communityAPIVersion, communityKind, name, strings.Join(members, ", "))
}

func TestCommunityFilesUpdate(t *testing.T) {
	type dir map[string]string
	one := communityFileOf("one", "a.1", "b.1")
	two := communityFileOf("two", "c.1", "d.1")
	tests := []struct {
		name  string
		steps []dir
		// want names the communities in force after the last step, reports the
		// text of what that step had to say.
		want    []string
		reports []string
	}{
		{"in name order", []dir{{"b.yaml": one, "a.yaml": two}}, []string{"two", "one"}, nil},
		{"removed file", []dir{{"a.yaml": one, "b.yaml": two}, {"b.yaml": two}}, []string{"two"}, nil},
		{"bad from the start", []dir{{"a.yaml": "kind: X\n", "b.yaml": two}}, []string{"two"}, []string{"a.yaml: document 1, line 1: apiVersion"}},
		{"goes bad", []dir{{"a.yaml": one}, {"a.yaml": "kind: X\n"}}, []string{"one"}, []string{"a.yaml: document 1, line 1: apiVersion"}},
		{"still bad", []dir{{"a.yaml": one}, {"a.yaml": "kind: X\n"}, {"a.yaml": "kind: X\n"}}, []string{"one"}, nil},
		{"bad in another way", []dir{{"a.yaml": one}, {"a.yaml": ""}, {"a.yaml": "kind: X\n"}}, []string{"one"}, []string{"a.yaml: document 1, line 1: apiVersion"}},
		{"changed and bad in the same way", []dir{{"a.yaml": ""}, {"a.yaml": "#\n"}}, nil, []string{"a.yaml: no document"}},
		{"good again", []dir{{"a.yaml": one}, {"a.yaml": ""}, {"a.yaml": two}}, []string{"two"}, []string{"a.yaml: good"}},
		{"bad then removed", []dir{{"a.yaml": one}, {"a.yaml": ""}, {}}, nil, nil},
		{"name in two files", []dir{{"a.yaml": one, "b.yaml": two + "---\n" + one}}, []string{"one"},
			[]string{`b.yaml: document 2, line 8: metadata.name: "one" is in a.yaml already`}},
		{"an earlier file takes a name", []dir{{"b.yaml": one + "---\n" + two}, {"a.yaml": one, "b.yaml": one + "---\n" + two}},
			[]string{"one", "two"}, []string{`b.yaml: document 1, line 3: metadata.name: "one" is in a.yaml already`}},
		{"and gives it back", []dir{{"a.yaml": one, "b.yaml": one}, {"b.yaml": one}}, []string{"one"}, []string{"b.yaml: good"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var files communityFiles
			var union []Community
			var reports []fileReport
			for _, step := range tt.steps {
				read := map[string]fileRead{}
				for name, content := range step {
					read[name] = fileRead{data: []byte(content)}
				}
				union, reports = files.update(read)
			}
			if got := communityNames(union); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("in force %q, want %q", got, tt.want)
			}
			if len(reports) != len(tt.reports) {
				t.Fatalf("reports %+v, want %q", reports, tt.reports)
			}
			for i, r := range reports {
				text := r.file + ": good"
				if r.err != nil {
					text = r.err.Error()
				}
				if !strings.HasPrefix(text, tt.reports[i]) {
					t.Errorf("report %q, want %q", text, tt.reports[i])
				}
			}
		})
	}
}

func communityNames(cs []Community) (names []string) {
	for _, c := range cs {
		names = append(names, c.Name)
	}
	return names
}

func TestUnreadableCommunityFile(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "b.yaml"), communityFileOf("one", "a.1", "b.1"))
	write(t, filepath.Join(dir, ".b.yaml"), "editor's own")
	write(t, filepath.Join(dir, "README"), "not ours")
	if err := os.Symlink("absent", filepath.Join(dir, "dangling.yaml")); err != nil {
		t.Fatal(err)
	}
	// Opening a named pipe for reading waits for a writer that never comes.
	if err := syscall.Mkfifo(filepath.Join(dir, "a.yaml"), 0o600); err != nil {
		t.Fatal(err)
	}
	read, err := readCommunityDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var files communityFiles
	union, reports := files.update(read)
	if got := communityNames(union); !reflect.DeepEqual(got, []string{"one"}) {
		t.Errorf("in force %q", got)
	}
	if len(reports) != 1 || !strings.Contains(reports[0].err.Error(), "a.yaml is not a regular file") {
		t.Errorf("reports %+v", reports)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// watched is a running watch under test.
type watched struct {
	t       *testing.T
	applied chan []string // names of communities per call of apply
	logged  chan string
}

func newWatched(t *testing.T) *watched {
	return &watched{t: t, applied: make(chan []string, 64), logged: make(chan string, 64)}
}

func (w *watched) apply(cs []Community) { w.applied <- communityNames(cs) }

// Write takes the log, a line per call.
func (w *watched) Write(line []byte) (int, error) {
	w.logged <- string(line)
	return len(line), nil
}

func (w *watched) logger() *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

// start runs f until the test ends and then waits for it.
func (w *watched) start(run func(context.Context) error) {
	w.t.Helper()
	before := goleak.IgnoreCurrent()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("watch: %v", err)
		}
		goleak.VerifyNone(w.t, before)
	})
}

// waitFor reads applied states until one is want: what is written in several
// steps may be seen in between.
func (w *watched) waitFor(want ...string) {
	w.t.Helper()
	timeout := time.After(communityWait)
	for {
		select {
		case got := <-w.applied:
			if reflect.DeepEqual(got, want) {
				return
			}
		case <-timeout:
			w.t.Fatalf("%q was never applied", want)
		}
	}
}

func (w *watched) waitForLog(text ...string) {
	w.t.Helper()
	timeout := time.After(communityWait)
next:
	for {
		select {
		case line := <-w.logged:
			for _, part := range text {
				if !strings.Contains(line, part) {
					continue next
				}
			}
			return
		case <-timeout:
			w.t.Fatalf("%q was never logged", text)
		}
	}
}

func TestWatchCommunities(t *testing.T) {
	dir := t.TempDir()
	a := filepath.Join(dir, "a.yaml")
	write(t, a, communityFileOf("one", "a.1", "b.1"))
	w := newWatched(t)
	w.start(func(ctx context.Context) error { return watchCommunities(ctx, dir, nil, w.logger(), w.apply) })
	w.waitFor("one")

	write(t, filepath.Join(dir, "b.yml"), communityFileOf("two", "a.1", "c.1"))
	w.waitFor("one", "two")

	write(t, a, "kind: X\n")
	w.waitForLog("level=ERROR", "file="+a, "document=1", "field=apiVersion")

	if err := os.Rename(filepath.Join(dir, "b.yml"), filepath.Join(dir, "b.off")); err != nil {
		t.Fatal(err)
	}
	w.waitFor("one") // the last good content of a.yaml

	write(t, a, communityFileOf("three", "a.1", "b.1"))
	w.waitFor("three")
}

// A file that goes bad between the start and the watch is no loss either.
func TestWatchKnowsWhatWasLoaded(t *testing.T) {
	dir := t.TempDir()
	a := filepath.Join(dir, "a.yaml")
	write(t, a, communityFileOf("one", "a.1", "b.1"))
	files, union, err := loadCommunities(dir)
	if err != nil || !reflect.DeepEqual(communityNames(union), []string{"one"}) {
		t.Fatalf("%v, %v", union, err)
	}
	write(t, a, "kind: X\n")
	w := newWatched(t)
	w.start(func(ctx context.Context) error { return watchCommunities(ctx, dir, files, w.logger(), w.apply) })
	if got := <-w.applied; !reflect.DeepEqual(got, []string{"one"}) {
		t.Errorf("in force %q", got)
	}
	w.waitForLog("level=ERROR", "file="+a)
}

// TestWatchConfigMap replays the kubelet: the files are links through ..data,
// and an update renames a new ..data over the old one.
func TestWatchConfigMap(t *testing.T) {
	dir := t.TempDir()
	publish := func(version, content string) {
		t.Helper()
		if err := os.Mkdir(filepath.Join(dir, version), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, version, "edges.yaml"), content)
		err := errors.Join(
			os.Symlink(version, filepath.Join(dir, "..data_tmp")),
			os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")),
		)
		if err != nil {
			t.Fatal(err)
		}
	}
	publish("..2022_07_01", communityFileOf("one", "a.1", "b.1"))
	if err := os.Symlink("..data/edges.yaml", filepath.Join(dir, "edges.yaml")); err != nil {
		t.Fatal(err)
	}
	w := newWatched(t)
	w.start(func(ctx context.Context) error { return watchCommunities(ctx, dir, nil, w.logger(), w.apply) })
	w.waitFor("one")
	publish("..2022_07_02", communityFileOf("two", "a.1", "b.1"))
	w.waitFor("two")
}

func TestWatchWithoutNotification(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "communities")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	w := newWatched(t)
	tick := make(chan time.Time)
	rewatched := make(chan struct{}, 64)
	watch := &communityWatch{
		dir: dir, log: w.logger(), apply: w.apply, reread: tick,
		rewatch: func() error { rewatched <- struct{}{}; return nil },
	}
	w.start(watch.run)
	w.waitFor() // applied once, though there is nothing

	write(t, filepath.Join(dir, "a.yaml"), communityFileOf("one", "a.1", "b.1"))
	tick <- time.Now()
	w.waitFor("one")
	<-rewatched

	// Without the directory everything stays in force, and it is said once.
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		tick <- time.Now()
	}
	w.waitForLog("level=ERROR", "dir="+dir)
	if len(w.logged) != 0 || len(w.applied) != 0 {
		t.Errorf("%d more lines logged and %d more applied", len(w.logged), len(w.applied))
	}

	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "a.yaml"), communityFileOf("two", "a.1", "b.1"))
	tick <- time.Now()
	w.waitFor("two")
}

func TestWatchUnchangedIsNotApplied(t *testing.T) {
	dir := t.TempDir()
	file := communityFileOf("one", "a.1", "b.1")
	write(t, filepath.Join(dir, "a.yaml"), file)
	w := newWatched(t)
	tick := make(chan time.Time)
	watch := &communityWatch{
		dir: dir, log: w.logger(), apply: w.apply, reread: tick, rewatch: func() error { return nil },
	}
	w.start(watch.run)
	w.waitFor("one")

	write(t, filepath.Join(dir, "a.yaml"), "# a comment changes nothing\n"+file)
	for range 2 { // the second is taken only when the first has been dealt with
		tick <- time.Now()
	}
	if len(w.applied) != 0 {
		t.Errorf("applied %q again", <-w.applied)
	}
}

func TestWatchWantsDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, "")
	for path, want := range map[string]error{
		filepath.Join(t.TempDir(), "absent"): os.ErrNotExist,
		file:                                 syscall.ENOTDIR,
	} {
		err := watchCommunities(t.Context(), path, nil, slog.New(slog.DiscardHandler), func([]Community) {
			t.Error("applied")
		})
		if !errors.Is(err, want) || !strings.Contains(err.Error(), path) {
			t.Errorf("error %v, want %v and %s", err, want, path)
		}
	}
}
