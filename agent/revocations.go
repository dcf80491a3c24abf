package agent

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/bodkin-net/bodkin/internal/pki"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

const (
	// crlFile keeps the list of revoked certificates in the state directory, for
	// charon's next start: the rendezvous may be away then.
	crlFile = "crl.der"
	// crlTimeout bounds giving charon the list; it answers in milliseconds.
	crlTimeout = 3 * time.Second
	// crlRetry is between tries of a charon that does not take it: one that hangs
	// must not hold up the daemon each second.
	crlRetry = time.Minute
)

// revocations is the list of certificates that the CA has revoked, for charon to
// refuse. It belongs to the daemon's goroutine.
type revocations struct {
	path string
	// crl is the newest list, nil as long as there is none.
	crl *x509.RevocationList
	// loaded: charon has it; retryAt is when to give it again to one that did not
	// take it.
	loaded  bool
	retryAt time.Time
}

// newRevocations reads the list that an earlier agent has kept. One that cannot be
// used is replaced by the next that the rendezvous sends.
func newRevocations(stateDir string, c *credentials) (*revocations, error) {
	r := &revocations{path: filepath.Join(stateDir, crlFile)}
	der, err := os.ReadFile(r.path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		r.crl, err = c.revocationList(der)
	}
	if err != nil {
		return r, fmt.Errorf("%s: %w", r.path, err)
	}
	return r, nil
}

// revocationList reads a list and checks that an authority of ours has signed it.
func (c *credentials) revocationList(der []byte) (*x509.RevocationList, error) {
	err := errors.New("no CA to check a revocation list with")
	for _, text := range c.charon.CAPEMs {
		cas, parseErr := pki.ParseCertificates(text)
		if parseErr != nil {
			err = parseErr
		}
		for _, ca := range cas {
			var list *x509.RevocationList
			if list, err = pki.ParseCRL(der, ca); err == nil {
				return list, nil
			}
		}
	}
	return nil, err
}

// take makes a list the present one unless its authority has made it before that,
// and reports whether it is another.
func (r *revocations) take(list *x509.RevocationList) bool {
	if old := r.crl; old != nil && bytes.Equal(old.AuthorityKeyId, list.AuthorityKeyId) &&
		old.Number != nil && (list.Number == nil || list.Number.Cmp(old.Number) <= 0) {
		return false
	}
	r.crl = list
	r.unload()
	return true
}

// unload notes that charon lacks the list, and has it given at once.
func (r *revocations) unload() { r.loaded, r.retryAt = false, time.Time{} }

// revoked takes the rendezvous' list into use and keeps it. The rendezvous is not
// trusted with it further than the CA is.
func (d *Daemon) revoked(ctx context.Context, m *wire.Revocations) {
	r := d.revocations
	list, err := d.id.credentials().revocationList(m.CRL)
	if err != nil {
		d.log.Warn("list of revoked certificates not taken", "err", err)
		return
	}
	was := r.crl
	if !r.take(list) {
		return
	}
	if err := pki.WriteFile(r.path, list.Raw, 0o600); err != nil {
		d.log.Error("list of revoked certificates not kept: charon lacks it after a restart until the rendezvous sends it", "err", err)
	}
	level := slog.LevelInfo
	if sameRevoked(was, list) {
		level = slog.LevelDebug // made anew before it runs out
	}
	d.log.Log(ctx, level, "certificates revoked", "number", list.Number, "count", len(list.RevokedCertificateEntries))
	d.loadRevocations(ctx, time.Now())
}

// sameRevoked reports whether two lists, the first nil for none, revoke the same.
func sameRevoked(was, is *x509.RevocationList) bool {
	var before []x509.RevocationListEntry
	if was != nil {
		before = was.RevokedCertificateEntries
	}
	return slices.EqualFunc(before, is.RevokedCertificateEntries, func(a, b x509.RevocationListEntry) bool {
		return a.SerialNumber.Cmp(b.SerialNumber) == 0
	})
}

// loadRevocations gives charon the list if it lacks it. It is called again each
// tick: charon may be away.
func (d *Daemon) loadRevocations(ctx context.Context, now time.Time) {
	r := d.revocations
	if r.crl == nil || r.loaded || !d.charonUp || now.Before(r.retryAt) {
		return
	}
	r.retryAt = now.Add(crlRetry)
	ctx, cancel := context.WithTimeout(ctx, crlTimeout)
	defer cancel()
	if err := d.vici.LoadCRL(ctx, r.crl.Raw); err != nil {
		d.log.Error("list of revoked certificates not loaded into charon; trying again", "err", err)
		return
	}
	r.loaded = true
	d.log.Debug("list of revoked certificates loaded into charon", "number", r.crl.Number)
}
