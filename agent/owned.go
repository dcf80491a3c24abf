package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/bodkin-net/bodkin/agent/charon"
)

// stateFile lists the connections in charon that are ours.
const stateFile = "agent.json"

// owned knows which of charon's connections are Bodkin's: those in its file.
// A name is written to the file before it is loaded, so a crash cannot leave a
// connection that nobody claims; everything else in charon belongs to somebody
// else and is never touched.
//
// A file that cannot be written keeps nobody from having a tunnel: what is
// certain then weighs more than what an agent that crashed as well would not
// find.
type owned struct {
	path string

	// mu is never held while the disk works; writing is, one write at a time.
	mu    sync.Mutex
	state ownedState // its map is replaced, never changed
	// version counts the changes of state, written is the one in the file, and
	// unwritten why that is not the present one.
	version, written uint64
	unwritten        error

	writing sync.Mutex
}

type ownedState struct {
	// StoreIDs maps a connection to the rendezvous' store that asked for it.
	StoreIDs map[string]string `json:"connections"`
}

func openOwned(dir string) (*owned, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("stateDir: %w", err)
	}
	o := &owned{path: filepath.Join(dir, stateFile), state: ownedState{StoreIDs: map[string]string{}}}
	b, err := os.ReadFile(o.path)
	if errors.Is(err, fs.ErrNotExist) {
		return o, nil
	}
	if err != nil {
		return nil, fmt.Errorf("stateDir: %w", err)
	}
	var state ownedState
	if err := json.Unmarshal(b, &state); err != nil || state.StoreIDs == nil {
		return nil, fmt.Errorf("stateDir: %s is damaged: remove it and end the tunnels it listed with `swanctl --terminate`", o.path)
	}
	o.state = state
	return o, nil
}

// names are all connections that are ours.
func (o *owned) names() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var names []string
	for n := range o.state.StoreIDs {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

func (o *owned) storeID(name string) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.state.StoreIDs[name]
}

func (o *owned) has(name string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, ours := o.state.StoreIDs[name]
	return ours
}

// connectionLister is what claim needs of charon.
type connectionLister interface {
	Connections(ctx context.Context) ([]charon.ConnectionInfo, error)
}

// claim makes name ours on behalf of a rendezvous' store, unless charon has it
// from somebody else.
func (o *owned) claim(ctx context.Context, vici connectionLister, name, storeID string) error {
	if o.has(name) {
		o.set(name, storeID)
		return nil
	}
	conns, err := vici.Connections(ctx)
	if err != nil {
		return failf("%v", err)
	}
	if slices.ContainsFunc(conns, func(c charon.ConnectionInfo) bool { return c.Name == name }) {
		return failf("charon already has a connection %s that Bodkin did not load: remove or rename it", name)
	}
	o.set(name, storeID)
	return nil
}

// set records name with the store that asked for it.
func (o *owned) set(name, storeID string) {
	o.change(func(ids map[string]string) { ids[name] = storeID })
}

// asked records that a store asks for those of names that are ours.
func (o *owned) asked(names []string, storeID string) {
	o.change(func(ids map[string]string) {
		for _, name := range names {
			if _, ours := ids[name]; ours {
				ids[name] = storeID
			}
		}
	})
}

// drop forgets name, after charon has.
func (o *owned) drop(name string) {
	o.change(func(ids map[string]string) { delete(ids, name) })
}

// change is in the file when it returns, if that can be.
func (o *owned) change(f func(ids map[string]string)) {
	o.mu.Lock()
	ids := maps.Clone(o.state.StoreIDs)
	f(ids)
	changed := !maps.Equal(ids, o.state.StoreIDs)
	if changed {
		o.state.StoreIDs = ids
		o.version++
	}
	o.mu.Unlock()
	if changed {
		o.write()
	}
}

// write brings the file up to date, unless another's write has done so meanwhile.
func (o *owned) write() {
	o.writing.Lock()
	defer o.writing.Unlock()
	o.mu.Lock()
	state, version, done := o.state, o.version, o.written == o.version
	o.mu.Unlock()
	if done {
		return
	}
	err := o.save(state)
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.unwritten = err; err == nil {
		o.written = version
	}
}

// retry writes what could not be written, and returns why it still cannot.
func (o *owned) retry() error {
	o.write()
	return o.problem()
}

// problem is why the file lacks something, nil if it does not.
func (o *owned) problem() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.unwritten
}

// save replaces the file in one step, also across a power cut.
func (o *owned) save(state ownedState) error {
	b, err := json.MarshalIndent(state, "", "  ")
	if err != nil {
		return err
	}
	tmp := o.path + ".new"
	if err := writeSynced(tmp, b); err != nil {
		return fmt.Errorf("stateDir: %w", err)
	}
	if err := os.Rename(tmp, o.path); err != nil {
		return fmt.Errorf("stateDir: %w", err)
	}
	return nil
}

// writeSynced writes a file whose bytes are on the disk when it returns: a
// rename may otherwise overtake them, and leave an empty file.
func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

// stateRetryInterval is between tries of a state directory that takes no file: a
// disk that is full stays so for a while.
const stateRetryInterval = 5 * time.Second

// keepState writes the list of our connections again if that has failed, and
// says so once.
func (d *Daemon) keepState(now time.Time) {
	err := d.owned.problem()
	switch {
	case err == nil && d.stateRetry.IsZero(), err != nil && now.Before(d.stateRetry):
		return
	case err != nil && d.stateRetry.IsZero():
		d.log.Error("state not written; tunnels work, and writing is tried again", "err", err)
	}
	if err = d.owned.retry(); err == nil {
		d.log.Info("state written")
		d.stateRetry = time.Time{}
		return
	}
	d.stateRetry = now.Add(stateRetryInterval)
}
