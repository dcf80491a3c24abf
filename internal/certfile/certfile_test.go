package certfile

import (
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestMarks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node.crt")
	marks := func() Marks { return MarksOf(path, "/nonexistent/key", "/nonexistent/ca") }
	steps := map[string]func() error{
		"written": func() error { return os.WriteFile(path, []byte("one"), 0o600) },
		"longer":  func() error { return os.WriteFile(path, []byte("three"), 0o600) },
		"opened":  func() error { return os.Chmod(path, 0o644) },
		"touched": func() error { return os.Chtimes(path, time.Time{}, time.Now().Add(time.Hour)) },
		"gone":    func() error { return os.Remove(path) },
	}
	for _, name := range []string{"written", "longer", "opened", "touched", "gone"} {
		before := marks()
		if marks() != before {
			t.Errorf("before it is %s: two looks differ", name)
		}
		if err := steps[name](); err != nil {
			t.Fatal(err)
		}
		if marks() == before {
			t.Errorf("%s: not seen", name)
		}
	}
}

func TestWatch(t *testing.T) {
	one, other := Marks{{size: 1}}, Marks{{size: 2}}
	now := time.Now()
	bad := errors.New("half a key")
	var w Watch
	if !w.Due(one, false) {
		t.Error("files that were never taken are not due")
	}
	if w.Taken(one); w.Due(one, false) || !w.Due(one, true) || !w.Due(other, false) {
		t.Error("due are others and what is asked for, and nothing else")
	}
	for _, tt := range []struct {
		after      time.Duration
		asked, say bool
	}{
		{0, false, false},
		{Patience - time.Second, false, false},
		{Patience, false, true},
		{Patience + time.Second, false, false},
		{Patience + time.Second, true, true},
	} {
		if got := w.Refused(now.Add(tt.after), bad, tt.asked); got != tt.say {
			t.Errorf("refused after %v, asked %v: said %v, want %v", tt.after, tt.asked, got, tt.say)
		}
		if said := w.Problem() != ""; said != (tt.after >= Patience) {
			t.Errorf("after %v: problem %q", tt.after, w.Problem())
		}
		if !w.Due(one, false) {
			t.Errorf("after %v: what was refused is not looked at again", tt.after)
		}
	}
	if !w.Taken(other) || w.Problem() != "" || w.Due(other, false) {
		t.Error("what was said is not taken back")
	}
	if w.Refused(now, bad, false); w.Taken(other) {
		t.Error("taken back what was never said")
	}
}

func TestValidity(t *testing.T) {
	const day = 24 * time.Hour
	from := time.Now()
	for _, tt := range []struct {
		life, at time.Duration
		want     Validity
		says     string
	}{
		{730 * day, day, Valid, ""},
		{730 * day, 699 * day, Valid, ""},
		{730 * day, 701 * day, EndsSoon, "expires on"},
		{730 * day, 731 * day, Expired, "nobody comes: issue a new one"},
		{730 * day, -time.Second, NotYetValid, "nobody comes: set the clock"},
		{3 * day, 2*day - time.Minute, Valid, ""},
		{3 * day, 2*day + time.Minute, EndsSoon, "issue a new one"},
	} {
		leaf, now := &x509.Certificate{NotBefore: from, NotAfter: from.Add(tt.life)}, from.Add(tt.at)
		got := ValidityOf(leaf, now)
		if got != tt.want || got.Holds() != (tt.want == Valid || tt.want == EndsSoon) {
			t.Errorf("%v into %v: %q; want %q", tt.at, tt.life, got, tt.want)
		}
		if said := got.Explain(leaf, now, "nobody comes"); (said == "") != (got == Valid) || !strings.Contains(said, tt.says) {
			t.Errorf("%v into %v: explained by %q; want %q in it", tt.at, tt.life, said, tt.says)
		}
	}
}
