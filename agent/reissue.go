package agent

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/bodkin-net/bodkin/internal/certfile"
	"github.com/bodkin-net/bodkin/internal/pki"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// When a new certificate is asked for.
const (
	// A node asks when this part of its certificate's life is over: at a moment of
	// its own, for nodes that joined together not to come together, and before
	// anybody is told that the certificate ends soon.
	reissueFrom, reissueUntil = 0.6, 2.0 / 3
	// reissueShare of what is left is waited after a failure, between
	// reissueMin and reissueMax.
	reissueShare = 8
	reissueMin   = 5 * time.Second
	reissueMax   = time.Hour
	// reissueForeign is for a rendezvous that issues no certificates: its operator
	// may let it.
	reissueForeign = 24 * time.Hour
)

// reissue asks the rendezvous for a new certificate before the present one ends. It
// belongs to the daemon's goroutine; asking is another's, one at a time.
type reissue struct {
	// leaf is the certificate that at was reckoned for.
	leaf *x509.Certificate
	at   time.Time
	// asking: an answer is due in done.
	asking  bool
	done    chan error
	running sync.WaitGroup
	// problem is why the last asking failed, nil if it did not.
	problem error
}

func newReissue() *reissue { return &reissue{done: make(chan error, 1)} }

// due reports whether to ask now. share, 0 to 1, is where in the span of moments
// this node asks.
func (r *reissue) due(now time.Time, leaf *x509.Certificate, share float64) bool {
	if r.leaf == nil || !r.leaf.Equal(leaf) {
		r.leaf, r.problem = leaf, nil
		life := float64(leaf.NotAfter.Sub(leaf.NotBefore))
		r.at = leaf.NotBefore.Add(time.Duration(life * (reissueFrom + share*(reissueUntil-reissueFrom))))
	}
	return !r.asking && !now.Before(r.at)
}

// ended notes how asking went and reckons when to ask next. A certificate that was
// written is another soon; if it is not taken, asking goes on.
func (r *reissue) ended(now time.Time, err error) {
	r.asking, r.problem = false, err
	pause := min(max(r.leaf.NotAfter.Sub(now)/reissueShare, reissueMin), reissueMax)
	if issuesNone(err) {
		r.problem, pause = nil, reissueForeign
	}
	r.at = now.Add(pause)
}

// explain adds to what is wrong with the certificate why there is no other.
func (r *reissue) explain(problem string) string {
	if problem == "" || r.problem == nil {
		return problem
	}
	return problem + "; asked for one: " + r.problem.Error()
}

// issuesNone: the rendezvous uses a CA that others issue with.
func issuesNone(err error) bool {
	refused, ok := errors.AsType[*RefusedError](err)
	return ok && (refused.Status == http.StatusNotFound || refused.Status == http.StatusConflict)
}

// followReissue asks for a new certificate when it is time, and has it taken into
// use when it is there.
func (d *Daemon) followReissue(ctx context.Context, now time.Time) {
	r := d.reissue
	select {
	case err := <-r.done:
		r.ended(now, err)
		switch {
		case err == nil:
			d.renewal.asked.Store(true)
		case issuesNone(err):
			d.log.Debug("the rendezvous issues no certificates", "err", err)
		default:
			d.log.Warn("no new certificate; asking again", "err", err, "until", r.leaf.NotAfter.UTC())
		}
	default:
	}
	// Without a session asking would fail too; an expired certificate gets none.
	leaf := d.id.credentials().leaf
	if !d.cfg.Renew || d.link == nil || !certfile.ValidityOf(leaf, now).Holds() || !r.due(now, leaf, rand.Float64()) {
		return
	}
	r.asking = true
	cfg, id, rendezvous := d.cfg, d.id, Enrolment{Host: d.id.host, Dial: d.signalling.dial}
	r.running.Go(func() { r.done <- renewCertificate(ctx, rendezvous, cfg, id) })
}

// renewCertificate asks for a certificate for the present key and puts it in the
// place of the present one.
func renewCertificate(ctx context.Context, rendezvous Enrolment, cfg Config, id *identity) error {
	present := id.credentials()
	key, err := pki.ParseKey(present.charon.KeyPEM)
	if err != nil {
		return fmt.Errorf("key: %s: %w", cfg.Key, err)
	}
	request, err := pki.EncodeRequest(key)
	if err != nil {
		return err
	}
	rendezvous.TLS = present.tls
	var answer wire.RenewAnswer
	if err := rendezvous.Post(ctx, wire.PathRenew, wire.RenewRequest{CSR: string(request)}, &answer); err != nil {
		return err
	}
	// Nothing that could not be used is written over what can.
	now := time.Now()
	next, err := parseCredentials(cfg, []byte(answer.Certificate), present.charon.KeyPEM, bytes.Join(present.charon.CAPEMs, nil), now)
	if err == nil {
		err = errors.Join(next.validNow(cfg, now), id.holds(next.leaf, cfg.Certificate))
	}
	if err != nil {
		return fmt.Errorf("the rendezvous' answer: %w", err)
	}
	info, err := os.Stat(cfg.Certificate)
	if err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	if err := pki.WriteFile(cfg.Certificate, []byte(answer.Certificate), info.Mode().Perm()); err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	return nil
}
