package store

import (
	"errors"
	"path/filepath"
	"reflect"
	"strconv"
	"testing"
	"time"
)

func openTemp(t *testing.T) *Store {
	t.Helper()
	return mustOpen(t, filepath.Join(t.TempDir(), "rendezvous.db"), Options{})
}

// A change and its entry are written together, or neither is.
func TestChange(t *testing.T) {
	s := openTemp(t)
	local := time.FixedZone("CEST", 2*60*60)
	entry := Audit{At: noon.In(local), Who: "anna", From: "198.51.100.7", Action: "create credential", Object: "bert"}
	err := s.Change(&entry, func(tx *Tx) error {
		entry.Detail = "role viewer"
		return tx.PutCredential(Credential{Name: "bert", Role: "viewer"})
	})
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("no")
	err = s.Change(&Audit{At: noon, Who: "anna", Action: "create credential", Object: "carla"}, func(tx *Tx) error {
		return errors.Join(tx.PutCredential(Credential{Name: "carla"}), broken)
	})
	if !errors.Is(err, broken) {
		t.Errorf("%v, want what the function returned", err)
	}
	entries, err := s.Audits(0)
	want := []Audit{{At: noon, Who: "anna", From: "198.51.100.7", Action: "create credential", Object: "bert", Detail: "role viewer"}}
	if err != nil || !reflect.DeepEqual(entries, want) {
		t.Errorf("%+v, %v; want %+v", entries, err, want)
	}
	err = s.View("look", func(tx *Tx) error {
		if _, err := tx.Credential("bert"); err != nil {
			t.Errorf("bert: %v", err)
		}
		if _, err := tx.Credential("carla"); !errors.Is(err, ErrNotFound) {
			t.Errorf("carla: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// The newest entries are kept, and given newest first.
func TestAuditsAreBounded(t *testing.T) {
	s := openTemp(t)
	// In one transaction: ten thousand of them take a minute on a slow disk.
	err := s.Change(&Audit{Action: "fill"}, func(tx *Tx) error {
		for i := range auditLimit + 50 {
			if err := appendBounded(tx.tx.Bucket(auditBucket), Audit{Action: "entry", Object: strconv.Itoa(i)}, auditLimit); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	all, err := s.Audits(0)
	if err != nil || len(all) != auditLimit || all[0].Action != "fill" || all[auditLimit-1].Object != "51" {
		t.Errorf("%d entries, from %+v to %+v, %v", len(all), all[0], all[len(all)-1], err)
	}
	two, err := s.Audits(2)
	if err != nil || !reflect.DeepEqual(two, all[:2]) {
		t.Errorf("%+v, %v", two, err)
	}
}
