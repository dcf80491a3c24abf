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

	"github.com/bodkin-net/bodkin/agent/charon"
)

// stateFile lists the connections in charon that are ours.
const stateFile = "agent.json"

// owned knows which of charon's connections are Bodkin's: those in its file.
// A name is written to the file before it is loaded, so a crash cannot leave a
// connection that nobody claims; everything else in charon belongs to somebody
// else and is never touched.
type owned struct {
	path string

	mu    sync.Mutex
	state ownedState
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
		return o.set(name, storeID)
	}
	conns, err := vici.Connections(ctx)
	if err != nil {
		return failf("%v", err)
	}
	if slices.ContainsFunc(conns, func(c charon.ConnectionInfo) bool { return c.Name == name }) {
		return failf("charon already has a connection %s that Bodkin did not load: remove or rename it", name)
	}
	return o.set(name, storeID)
}

// set records name with the store that asked for it.
func (o *owned) set(name, storeID string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if old, ok := o.state.StoreIDs[name]; ok && old == storeID {
		return nil
	}
	ids := maps.Clone(o.state.StoreIDs)
	ids[name] = storeID
	return o.save(ownedState{StoreIDs: ids})
}

// drop forgets name, after charon has.
func (o *owned) drop(name string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	ids := maps.Clone(o.state.StoreIDs)
	delete(ids, name)
	return o.save(ownedState{StoreIDs: ids})
}

// save replaces the file in one step, also across a power cut. What could not
// be written does not count.
func (o *owned) save(state ownedState) error {
	b, err := json.MarshalIndent(state, "", "  ")
	if err != nil {
		return err
	}
	tmp := o.path + ".new"
	if err := writeSynced(tmp, b); err != nil {
		return failf("stateDir: %v", err)
	}
	if err := os.Rename(tmp, o.path); err != nil {
		return failf("stateDir: %v", err)
	}
	o.state = state
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
