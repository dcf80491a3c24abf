package agent

import (
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
	mustWrite(t, filepath.Join(dir, crlFile), []byte("damaged"))
	if r, err := newRevocations(dir, o.id.credentials()); err == nil || r.crl != nil {
		t.Errorf("a damaged file: %v, %v; want an error and no list", r.crl, err)
	}
	// A disk that takes nothing keeps nobody from using the list.
	d.revocations.path = filepath.Join(dir, "gone", crlFile)
	d.revoked(t.Context(), &wire.Revocations{CRL: crl(o.ca, 4)})
	if d.revocations.crl.Number.Int64() != 4 {
		t.Errorf("number %v; want 4", d.revocations.crl.Number)
	}
	if _, err := os.Stat(d.revocations.path); err == nil {
		t.Error("written where there is no directory")
	}
}
