package rendezvous

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

// What the admin socket can change. Each change runs on the hub's goroutine.

// applyCommunities puts a file's communities in force and into the store: all
// of them, or on error none.
func (s *Server) applyCommunities(ctx context.Context, file string, r io.Reader) ([]string, error) {
	cs, err := ParseCommunities(file, r)
	if err != nil {
		return nil, err
	}
	var names []string
	var failed error
	err = s.hub.call(ctx, func(now time.Time) []action {
		var records []store.Community
		merged := slices.Clone(s.applied)
		for _, c := range cs {
			if indexOf(s.files, c.Name) >= 0 {
				failed = fmt.Errorf("%w: community %s is kept in a file of %s: change it there", ErrConflict, c.Name, s.cfg.CommunitiesDir)
				return nil
			}
			if i := indexOf(merged, c.Name); i >= 0 {
				merged[i] = c
			} else {
				merged = append(merged, c)
			}
			records = append(records, store.Community{Name: c.Name, Members: c.Members, Punch: string(c.Punch), Source: file, Updated: now})
			names = append(names, c.Name)
		}
		if failed = s.store.ApplyCommunities(records); failed != nil {
			return nil
		}
		s.applied = merged
		return s.hub.coordinator.Communities(now, s.communities())
	})
	return names, errors.Join(err, failed)
}

// deleteCommunity removes a community that was applied.
func (s *Server) deleteCommunity(ctx context.Context, name string) error {
	var failed error
	err := s.hub.call(ctx, func(now time.Time) []action {
		if indexOf(s.files, name) >= 0 {
			failed = fmt.Errorf("%w: community %s is kept in a file of %s: remove it there", ErrConflict, name, s.cfg.CommunitiesDir)
			return nil
		}
		if failed = s.store.DeleteCommunity(name); failed != nil {
			return nil
		}
		s.applied = slices.DeleteFunc(s.applied, func(c Community) bool { return c.Name == name })
		return s.hub.coordinator.Communities(now, s.communities())
	})
	return errors.Join(err, failed)
}

// setFiles replaces the communities of communitiesDir.
func (s *Server) setFiles(ctx context.Context, cs []Community) {
	_ = s.hub.call(ctx, func(now time.Time) []action {
		s.files = cs
		return s.hub.coordinator.Communities(now, s.communities())
	})
}

// communities is the union; a file's wins over one applied by the same name.
func (s *Server) communities() []Community {
	all := slices.Clone(s.files)
	for _, c := range s.applied {
		if indexOf(all, c.Name) < 0 {
			all = append(all, c)
		}
	}
	slices.SortFunc(all, func(a, b Community) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return all
}

func indexOf(cs []Community, name string) int {
	return slices.IndexFunc(cs, func(c Community) bool { return c.Name == name })
}

// deleteNode forgets a node that is gone for good.
func (s *Server) deleteNode(ctx context.Context, name string) error {
	var failed error
	err := s.hub.call(ctx, func(now time.Time) []action {
		node := wire.NodeName(name)
		if s.hub.sessions[node] != nil {
			failed = fmt.Errorf("%w: node %s is online: stop its agent first", ErrConflict, name)
			return nil
		}
		if s.hub.details[node] == nil {
			failed = fmt.Errorf("node %q: %w", name, store.ErrNotFound)
			return nil
		}
		delete(s.hub.details, node)
		// By way of the recorder, or a record that waits there would bring the
		// node back.
		s.hub.recorder.forgetNode(node)
		return s.hub.coordinator.Forget(now, node)
	})
	return errors.Join(err, failed)
}
