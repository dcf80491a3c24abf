package rendezvous

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/bodkin-net/bodkin/store"
)

// What can be changed of the communities. Each change runs on the hub's goroutine.

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
		failed = s.change(ctx, "apply communities", strings.Join(names, ", "), func(a *store.Audit, tx *store.Tx) error {
			a.Detail = "from " + clip(file)
			for _, c := range records {
				if err := tx.PutCommunity(c); err != nil {
					return err
				}
			}
			return nil
		})
		if failed != nil {
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
		failed = s.change(ctx, "delete community", name, func(_ *store.Audit, tx *store.Tx) error {
			return tx.DeleteCommunity(name)
		})
		if errors.Is(failed, store.ErrNotFound) {
			failed = fmt.Errorf("community %s: %w", clip(name), store.ErrNotFound) // without the store's path
		}
		if failed != nil {
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
		s.events.add(now, EventView{Kind: EventCommunity, Text: fmt.Sprintf("%d communities in the files of %s", len(cs), s.cfg.CommunitiesDir)})
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

// communitySources says of each community where it is kept.
func (s *Server) communitySources(ctx context.Context) (map[string]string, error) {
	applied, err := s.store.Communities()
	if err != nil {
		return nil, err
	}
	sources := make(map[string]string, len(applied))
	for _, c := range applied {
		sources[c.Name] = c.Source
	}
	err = s.hub.call(ctx, func(time.Time) []action {
		for _, c := range s.files {
			sources[c.Name] = s.cfg.CommunitiesDir
		}
		return nil
	})
	return sources, err
}
