package store

import (
	"errors"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

func TestCredentials(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rendezvous.db")
	s := mustOpen(t, path, Options{})
	anna := Credential{Name: "anna", Role: "admin", SecretSHA256: "ab12", Created: noon, By: "unix socket"}
	bert := Credential{Name: "bert", Role: "viewer", SecretSHA256: "cd34", Created: noon, Expires: noon.Add(time.Hour), By: "anna"}
	change := func(f func(*Tx) error) error { return s.Change(&Audit{Action: "test"}, f) }
	for _, c := range []Credential{bert, anna} {
		if err := change(func(tx *Tx) error { return tx.PutCredential(c) }); err != nil {
			t.Fatal(err)
		}
	}
	mustClose(t, s)
	s = mustOpen(t, path, Options{})
	credentials := func() (list []Credential) {
		t.Helper()
		if err := s.View("look", func(tx *Tx) (err error) { list, err = tx.Credentials(); return err }); err != nil {
			t.Fatal(err)
		}
		return list
	}
	if got := credentials(); !reflect.DeepEqual(got, []Credential{anna, bert}) {
		t.Errorf("%+v, want %+v and %+v", got, anna, bert)
	}
	if err := change(func(tx *Tx) error { return tx.DeleteCredential("anna") }); err != nil {
		t.Error(err)
	}
	if err := change(func(tx *Tx) error { return tx.DeleteCredential("anna") }); !errors.Is(err, ErrNotFound) {
		t.Errorf("deleted twice: %v", err)
	}
	if got := credentials(); !reflect.DeepEqual(got, []Credential{bert}) {
		t.Errorf("%+v, want %+v", got, bert)
	}
}
