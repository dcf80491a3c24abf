package store

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

var entry = Audit{At: noon, Who: "alice", Action: "test"}

func change(t *testing.T, s *Store, f func(*Tx) error) {
	t.Helper()
	a := entry
	if err := s.Change(&a, f); err != nil {
		t.Fatal(err)
	}
}

// enrolled is all that a store holds of enrolment.
type enrolled struct {
	tokens       []Token
	admissions   []Admission
	certificates []Certificate
}

func enrolledIn(t *testing.T, s *Store) (e enrolled) {
	t.Helper()
	err := s.View("test", func(tx *Tx) error {
		var err1, err2, err3 error
		e.tokens, err1 = tx.Tokens()
		e.admissions, err2 = tx.Admissions()
		e.certificates, err3 = tx.Certificates()
		return errors.Join(err1, err2, err3)
	})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestReopenKeepsEnrolment(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rendezvous.db")
	want := enrolled{
		tokens: []Token{
			{ID: "00", SecretSHA256: "ab", Name: "beijing.edge1", Subnets: []string{"10.233.1.0/24"}, Connector: true, Replace: true, MaxUses: 2,
				Uses: []TokenUse{{Node: "beijing.edge1", KeySHA256: "cd", At: noon}}, Created: noon, Expires: noon.Add(time.Hour), By: "alice"},
			{ID: "01", SecretSHA256: "ef", MaxUses: 1, Created: noon, Expires: noon, By: "unix socket"},
		},
		admissions: []Admission{
			{Name: "beijing.edge1", State: Approved, Since: noon, By: "token 00", Subnets: []string{"10.233.1.0/24"}, Punch: "never", Note: "till", KeySHA256: "cd"},
			{Name: "beijing.edge2", State: Revoked, Since: noon, By: "alice", Reason: "stolen"},
		},
		certificates: []Certificate{
			{Serial: "2a", Node: "beijing.edge1", NotBefore: noon, NotAfter: noon.Add(time.Hour)},
			{Serial: "2b", Node: "beijing.edge2", NotBefore: noon, NotAfter: noon.Add(time.Hour), Revoked: noon},
		},
	}
	s := mustOpen(t, path, Options{})
	change(t, s, func(tx *Tx) error {
		var err error
		for i := range 2 { // backwards, so that sorted listings are the store's doing
			err = errors.Join(err, tx.PutToken(want.tokens[1-i]), tx.PutAdmission(want.admissions[1-i]), tx.PutCertificate(want.certificates[1-i]))
		}
		return err
	})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, path, Options{})
	if got := enrolledIn(t, s); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	err := s.View("test", func(tx *Tx) error {
		token, err1 := tx.Token("00")
		admission, err2 := tx.Admission("beijing.edge2")
		certificate, err3 := tx.Certificate("2b")
		if !reflect.DeepEqual(token, want.tokens[0]) || !reflect.DeepEqual(admission, want.admissions[1]) || certificate != want.certificates[1] {
			t.Errorf("%+v, %+v, %+v", token, admission, certificate)
		}
		return errors.Join(err1, err2, err3)
	})
	if err != nil {
		t.Error(err)
	}
}

func TestEnrolmentNotFound(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "db"), Options{})
	change(t, s, func(tx *Tx) error {
		_, err1 := tx.Token("nonesuch")
		_, err2 := tx.Admission("nonesuch")
		_, err3 := tx.Certificate("nonesuch")
		for _, err := range []error{err1, err2, err3, tx.DeleteToken("nonesuch"), tx.DeleteAdmission("nonesuch"), tx.DeleteCertificate("nonesuch")} {
			if !errors.Is(err, ErrNotFound) {
				t.Errorf("%v, want %v", err, ErrNotFound)
			}
		}
		return nil
	})
}

// A join that fails in the middle leaves nothing, not even its audit entry.
func TestChangeIsAllOrNothing(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "db"), Options{})
	failed := errors.New("the CA has no ink")
	a := entry
	err := s.Change(&a, func(tx *Tx) error {
		if err := errors.Join(tx.PutToken(Token{ID: "00"}), tx.PutAdmission(Admission{Name: "beijing.edge1"}), tx.PutCertificate(Certificate{Serial: "2a"})); err != nil {
			return err
		}
		return failed
	})
	if !errors.Is(err, failed) {
		t.Errorf("%v", err)
	}
	if got := enrolledIn(t, s); !reflect.DeepEqual(got, enrolled{}) {
		t.Errorf("left behind: %+v", got)
	}
	if got, err := s.Audits(0); err != nil || len(got) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
}

// The number of a list of the revoked only grows, over a restart too, and when the
// store is emptied.
func TestNextCRL(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	now := time.Unix(1_700_000_000, 0)
	var last uint64
	for i := range 4 {
		if i == 3 {
			now = now.Add(time.Minute)
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
		s := mustOpen(t, path, Options{})
		for range 2 {
			change(t, s, func(tx *Tx) error {
				number, err := tx.NextCRL(now)
				if number <= last {
					t.Errorf("%d after %d", number, last)
				}
				last = number
				return errors.Join(err, tx.PutCertificate(Certificate{Serial: "2a"}), tx.DeleteCertificate("2a"))
			})
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
