package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/bodkin-net/bodkin/agent/charon"
)

// loaded is a charon with connections of these names.
type loaded []string

func (l loaded) Connections(context.Context) ([]charon.ConnectionInfo, error) {
	var infos []charon.ConnectionInfo
	for _, name := range l {
		infos = append(infos, charon.ConnectionInfo{Name: name})
	}
	return infos, nil
}

// unreachable is a charon that is not there.
type unreachable struct{}

func (unreachable) Connections(context.Context) ([]charon.ConnectionInfo, error) {
	return nil, charon.ErrUnreachable
}

func mustOpenOwned(t *testing.T, dir string) *owned {
	t.Helper()
	o, err := openOwned(dir)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestOwnedSurvivesReopening(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	o := mustOpenOwned(t, dir)
	for _, name := range []string{"beijing.edge3", "beijing.edge2"} {
		if err := o.claim(t.Context(), loaded{"somebody-elses"}, name, "store1"); err != nil {
			t.Fatal(err)
		}
	}
	o.set("beijing.edge3", "store2")
	o = mustOpenOwned(t, dir)
	if got, want := o.names(), []string{"beijing.edge2", "beijing.edge3"}; !slices.Equal(got, want) {
		t.Errorf("after reopening: %v; want %v", got, want)
	}
	if got := [2]string{o.storeID("beijing.edge2"), o.storeID("beijing.edge3")}; got != [2]string{"store1", "store2"} {
		t.Errorf("stores %v; want store1, store2", got)
	}
	o.drop("beijing.edge2")
	o = mustOpenOwned(t, dir)
	if got, want := o.names(), []string{"beijing.edge3"}; !slices.Equal(got, want) {
		t.Errorf("after a drop: %v; want %v", got, want)
	}
}

func TestClaim(t *testing.T) {
	o := mustOpenOwned(t, t.TempDir())
	err := o.claim(t.Context(), loaded{"beijing.edge2"}, "beijing.edge2", "store")
	if err == nil || !strings.Contains(err.Error(), "beijing.edge2") {
		t.Errorf("claim of a connection somebody else loaded: %v; want it refused by name", err)
	}
	if o.has("beijing.edge2") {
		t.Error("a refused connection is ours")
	}
	if err := o.claim(t.Context(), unreachable{}, "beijing.edge2", "store"); err == nil || o.has("beijing.edge2") {
		t.Errorf("claim without asking charon: %v; want an error", err)
	}
	if err := o.claim(t.Context(), loaded{}, "beijing.edge2", "store"); err != nil {
		t.Fatal(err)
	}
	if err := o.claim(t.Context(), loaded{"beijing.edge2"}, "beijing.edge2", "store"); err != nil {
		t.Errorf("claim of our own: %v", err)
	}
}

func TestOwnedDamaged(t *testing.T) {
	for name, content := range map[string]string{
		"empty": "", "cut off": `{"connections": {"a.b": "st`, "not ours": `[1, 2]`, "no list": `{}`,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), stateFile)
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := openOwned(filepath.Dir(path))
			if err == nil || !strings.Contains(err.Error(), path) {
				t.Errorf("openOwned: %v; want an error naming %s", err, path)
			}
		})
	}
}

// Whoever has made a name its own finds it in the file, however many do so at once.
func TestOwnedTogether(t *testing.T) {
	dir := t.TempDir()
	o := mustOpenOwned(t, dir)
	var claiming sync.WaitGroup
	for i := range 20 {
		claiming.Go(func() {
			name := fmt.Sprintf("beijing.edge%d", i)
			if err := o.claim(t.Context(), loaded{}, name, "old"); err != nil {
				t.Error(err)
			}
			if again, err := openOwned(dir); err != nil || !again.has(name) {
				t.Errorf("%s is not in the file (%v)", name, err)
			}
		})
	}
	claiming.Wait()
	o.asked([]string{"beijing.edge1", "beijing.stranger"}, "new")
	again := mustOpenOwned(t, dir)
	if names := again.names(); len(names) != 20 || again.storeID("beijing.edge1") != "new" || again.storeID("beijing.edge2") != "old" {
		t.Errorf("%d connections, stores %q and %q; want 20, the first asked for by the new one",
			len(names), again.storeID("beijing.edge1"), again.storeID("beijing.edge2"))
	}
}

// A file that cannot be written keeps nobody from having a tunnel; it is written
// when it can be.
func TestOwnedNotWritable(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	o := mustOpenOwned(t, dir)
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if err := o.claim(t.Context(), loaded{}, "beijing.edge2", "store"); err != nil {
		t.Errorf("claim: %v; want it ours all the same", err)
	}
	if err := o.problem(); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("problem: %v; want one naming %s", err, dir)
	}
	if err := o.retry(); err == nil {
		t.Error("written although the directory is not there")
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := o.retry(); err != nil || o.problem() != nil {
		t.Errorf("retry: %v, problem %v; want neither", err, o.problem())
	}
	if o = mustOpenOwned(t, dir); !o.has("beijing.edge2") {
		t.Error("what was kept is not in the file")
	}
}
