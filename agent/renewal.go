package agent

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/bodkin-net/bodkin/internal/certfile"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// Timing of a renewal.
const (
	// renewalRetry is between looks at files that do not fit together: whoever
	// writes them needs moments for all three.
	renewalRetry = 2 * time.Second
	// renewalTimeout bounds giving charon the new ones; it answers in milliseconds.
	renewalTimeout = 3 * time.Second
	// renewalBatch is how many connections are reloaded at a time, some
	// milliseconds each in which the daemon does nothing else.
	renewalBatch = 16
	// expiryReminder is between words about a certificate that ends soon.
	expiryReminder = 24 * time.Hour
)

// withoutCertificate is what follows from a certificate that is not good now.
const withoutCertificate = "tunnels stay, but nobody accepts new ones"

// CertificateStatus is the certificate this node proves itself with.
type CertificateStatus struct {
	Serial    string    `json:"serial"` // in hexadecimal, as swanctl lists it
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
	// Problem is empty while all is well: the files are another node's or do not
	// fit, or the certificate ends soon.
	Problem string `json:"problem,omitempty"`
}

// renewal follows the files that the credentials were read from. It belongs to
// the daemon's goroutine, but for asked.
type renewal struct {
	asked  atomic.Bool
	lookAt time.Time
	files  certfile.Watch
	// stale are the connections that are to be loaded again: their certificate in
	// charon may be another than the present one, or charon has them no longer.
	stale map[string]bool
	// notice is the last word on the certificate's validity.
	notice   certfile.Validity
	noticeAt time.Time
}

// newRenewal takes the connections that are in charon already: nobody knows which
// certificate they carry.
func newRenewal(loaded []string) *renewal {
	r := &renewal{stale: map[string]bool{}}
	r.outdated(loaded)
	return r
}

func (r *renewal) outdated(names []string) {
	for _, n := range names {
		r.stale[n] = true
	}
}

// Reload has the agent look at its certificate, key and CA now, instead of when
// it would do so by itself. It may be called from any goroutine.
func (d *Daemon) Reload() { d.renewal.asked.Store(true) }

// followCredentials takes new credentials from their files, and sees to it that
// charon's connections carry them. Tunnels that stand are not touched.
func (d *Daemon) followCredentials(ctx context.Context, now time.Time) {
	asked := d.renewal.asked.Swap(false)
	if asked || !now.Before(d.renewal.lookAt) {
		d.renewal.lookAt = now.Add(certfile.Poll)
		d.renew(ctx, now, asked)
		d.noticeExpiry(now)
	}
	d.refreshConnections(ctx)
}

// renew takes the credentials from their files if those have changed.
func (d *Daemon) renew(ctx context.Context, now time.Time, asked bool) {
	r := d.renewal
	marks := certfile.MarksOf(d.cfg.Certificate, d.cfg.Key, d.cfg.CA)
	if !r.files.Due(marks, asked) {
		return
	}
	next, err := readCredentials(d.cfg, now)
	if err == nil {
		err = d.take(ctx, now, next)
	}
	if err != nil {
		r.lookAt = now.Add(renewalRetry)
		if r.files.Refused(now, err, asked) {
			d.log.Warn("certificate not renewed; the one before stays in use", "err", err)
		}
		return
	}
	if r.files.Taken(marks) {
		d.log.Info("certificate, key and CA are good again")
	}
}

// take puts credentials in the place of the present ones, unless they are
// another node's or not valid. charon has them before anybody can load a
// connection with them.
func (d *Daemon) take(ctx context.Context, now time.Time, next *credentials) error {
	if next.equal(d.id.credentials()) {
		return nil
	}
	if err := next.validNow(d.cfg, now); err != nil {
		return err
	}
	if err := d.id.holds(next.leaf, d.cfg.Certificate); err != nil {
		return err
	}
	if d.cfg.LoadCredentials {
		ctx, cancel := context.WithTimeout(ctx, renewalTimeout)
		defer cancel()
		if err := d.vici.LoadCredentials(ctx, next.charon); err != nil {
			return fmt.Errorf("not loaded into charon: %w", err)
		}
	}
	d.id.current.Store(next)
	d.renewal.outdated(d.owned.names())
	d.log.Info("certificate renewed", "serial", serial(next.leaf), "until", next.leaf.NotAfter.UTC())
	return nil
}

// equal compares what was in the files.
func (c *credentials) equal(o *credentials) bool {
	return bytes.Equal(c.charon.CertPEM, o.charon.CertPEM) && bytes.Equal(c.charon.KeyPEM, o.charon.KeyPEM) &&
		bytes.Equal(bytes.Join(c.charon.CAPEMs, nil), bytes.Join(o.charon.CAPEMs, nil))
}

// holds reports as an error that a certificate is another node's: peers know
// this one by its name.
func (id *identity) holds(leaf *x509.Certificate, path string) error {
	name, err := wire.NameOf(leaf)
	if err != nil {
		return err
	}
	subject, err := wire.IdentityOf(leaf)
	if err != nil {
		return err
	}
	if name != id.endpoint.Name || !wire.SameIdentity(subject, id.endpoint.ID) {
		return fmt.Errorf("certificate: %s is %s's (%s), and this agent runs as %s (%s): put that node's back, or restart the agent to become the other",
			path, name, subject, id.endpoint.Name, id.endpoint.ID)
	}
	return nil
}

// refreshConnections loads stale connections again. An IKE
// SA that stands keeps the configuration it was made from.
func (d *Daemon) refreshConnections(ctx context.Context) {
	if !d.charonUp || len(d.renewal.stale) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, renewalTimeout)
	defer cancel()
	left := renewalBatch
	for name := range d.renewal.stale {
		if left == 0 {
			return // the rest next time
		}
		if !d.owned.has(name) {
			delete(d.renewal.stale, name)
			continue
		}
		t, r := d.tunnels[wire.NodeName(name)], d.runs[wire.NodeName(name)]
		if t == nil || r == nil {
			continue // the next run's
		}
		path := t.path
		if t.peer.Plan == wire.PlanPublic {
			// One that waits for its peer cannot wait for it with a certificate
			// that this peer may refuse.
			path = wire.Path{Kind: wire.PathPublic}
		} else if !t.monitored {
			continue // its path is not known yet
		}
		if err := r.load(ctx, path); err != nil {
			d.log.Warn("connection not loaded again; trying again", "connection", name, "err", err)
			return
		}
		left--
		delete(d.renewal.stale, name)
		d.log.Debug("connection loaded again", "connection", name)
	}
}

// noticeExpiry logs what is worth knowing of the certificate's time, when that
// changes and every day.
func (d *Daemon) noticeExpiry(now time.Time) {
	r, leaf := d.renewal, d.id.credentials().leaf
	v := certfile.ValidityOf(leaf, now)
	if v == r.notice && (v == certfile.Valid || now.Sub(r.noticeAt) < expiryReminder) {
		return
	}
	switch {
	case v != certfile.Valid:
		d.log.Warn("the certificate needs attention", "problem", v.Explain(leaf, now, withoutCertificate), "serial", serial(leaf))
	case r.notice != certfile.Valid:
		d.log.Info("the certificate is valid again", "serial", serial(leaf), "until", leaf.NotAfter.UTC())
	}
	r.notice, r.noticeAt = v, now
}

// status is what can be said of the certificate in use.
func (r *renewal) status(c *credentials, now time.Time) CertificateStatus {
	s := CertificateStatus{Serial: serial(c.leaf), NotBefore: c.leaf.NotBefore.UTC(), NotAfter: c.leaf.NotAfter.UTC()}
	s.Problem = certfile.ValidityOf(c.leaf, now).Explain(c.leaf, now, withoutCertificate)
	if problem := r.files.Problem(); problem != "" {
		s.Problem = "not renewed: " + problem
	}
	return s
}

func serial(leaf *x509.Certificate) string { return fmt.Sprintf("%x", leaf.SerialNumber) }
