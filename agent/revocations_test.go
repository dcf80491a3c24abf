package agent

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/internal/pki"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// The newest list of our CA counts, also for the next agent; another's does not.
func TestRevocations(t *testing.T) {
	o := newOwnCA(t)
	d := testDaemon(t, "store")
	d.id = o.id
	dir := t.TempDir()
	var err error
	if d.revocations, err = newRevocations(dir, o.id.credentials()); err != nil || d.revocations.crl != nil {
		t.Fatalf("in an empty directory: %v, %v", d.revocations.crl, err)
	}
	crl := func(ca *pki.CA, number uint64) []byte {
		der, err := ca.CRL(o.now, time.Hour, number, []pki.Revoked{{Serial: "4a", At: o.now}})
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	stranger, err := pki.NewCA(o.now)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		what string
		crl  []byte
		want int64 // the number in use then
	}{
		{"the first", crl(o.ca, 2), 2},
		{"an older one", crl(o.ca, 1), 2},
		{"a stranger's", crl(stranger, 9), 2},
		{"no list", []byte("none"), 2},
		{"a newer one", crl(o.ca, 3), 3},
	} {
		d.revoked(t.Context(), &wire.Revocations{CRL: step.crl})
		next, err := newRevocations(dir, o.id.credentials())
		if err != nil {
			t.Fatalf("%s: %v", step.what, err)
		}
		for who, r := range map[string]*revocations{"this agent": d.revocations, "the next": next} {
			if r.crl == nil || r.crl.Number.Int64() != step.want || r.loaded {
				t.Errorf("%s: %s has %+v; want number %d, not loaded yet", step.what, who, r.crl, step.want)
			}
		}
	}
	// Another CA in the place of ours begins to count anew.
	other := newOwnCA(t)
	d.id = other.id
	d.revoked(t.Context(), &wire.Revocations{CRL: crl(other.ca, 1)})
	if d.revocations.crl.Number.Int64() != 1 {
		t.Errorf("of another CA than the list before: number %v; want 1", d.revocations.crl.Number)
	}
	mustWrite(t, filepath.Join(dir, crlFile), []byte("damaged"))
	if r, err := newRevocations(dir, o.id.credentials()); err == nil || r.crl != nil {
		t.Errorf("a damaged file: %v, %v; want an error and no list", r.crl, err)
	}
	// A disk that takes nothing keeps nobody from using the list.
	d.revocations.path = filepath.Join(dir, "gone", crlFile)
	d.revoked(t.Context(), &wire.Revocations{CRL: crl(other.ca, 4)})
	if d.revocations.crl.Number.Int64() != 4 {
		t.Errorf("number %v; want 4", d.revocations.crl.Number)
	}
	if _, err := os.Stat(d.revocations.path); err == nil {
		t.Error("written where there is no directory")
	}
}

// A list that was made anew is no news, and neither is the first if it is empty.
func TestSameRevoked(t *testing.T) {
	o := newOwnCA(t)
	list := func(number uint64, serials ...string) *x509.RevocationList {
		var revoked []pki.Revoked
		for _, serial := range serials {
			revoked = append(revoked, pki.Revoked{Serial: serial, At: o.now})
		}
		der, err := o.ca.CRL(o.now, time.Hour, number, revoked)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := o.id.credentials().revocationList(der)
		if err != nil {
			t.Fatal(err)
		}
		return parsed
	}
	for i, tt := range []struct {
		was, is *x509.RevocationList
		want    bool
	}{
		{nil, list(1), true},
		{nil, list(1, "4a"), false},
		{list(1, "4a"), list(2, "4a"), true},
		{list(1, "4a"), list(2, "4a", "4b"), false},
		{list(1, "4a"), list(2, "4b"), false},
	} {
		if got := sameRevoked(tt.was, tt.is); got != tt.want {
			t.Errorf("%d: %v", i, got)
		}
	}
}

// A charon that does not take the list is given it again after a while, not each
// second; one that is new, or a new list, at once.
func TestRevocationsTriedAgain(t *testing.T) {
	o := newOwnCA(t)
	d, _ := servedDaemon(t)
	d.id, d.charonUp = o.id, true
	var err error
	if d.revocations, err = newRevocations(t.TempDir(), o.id.credentials()); err != nil {
		t.Fatal(err)
	}
	der, err := o.ca.CRL(o.now, time.Hour, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	list, err := o.id.credentials().revocationList(der)
	if err != nil {
		t.Fatal(err)
	}
	d.revocations.take(list)
	now := time.Now()
	for _, step := range []struct {
		after time.Duration
		want  bool
	}{{0, true}, {time.Second, false}, {crlRetry - time.Second, false}, {crlRetry, true}, {crlRetry + time.Second, false}} {
		before := d.revocations.retryAt
		d.loadRevocations(t.Context(), now.Add(step.after))
		if tried := d.revocations.retryAt != before; tried != step.want {
			t.Errorf("after %v: tried %v; want %v", step.after, tried, step.want)
		}
	}
	if d.revocations.unload(); !d.revocations.retryAt.IsZero() {
		t.Error("a charon that is new has to wait")
	}
}
