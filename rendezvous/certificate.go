package rendezvous

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"
)

// Timing of a renewal, as the agents'.
const (
	// certificatePoll is between looks whether certificate, key or CA have
	// changed: certificates live for months, and a look is three calls of stat.
	certificatePoll = 30 * time.Second
	// certificatePatience is how long files may not fit together until that is
	// said: whoever writes them needs moments for all three.
	certificatePatience = time.Minute
	// certificateNotice is how long before the certificate's end the page says
	// so; of one that lives for less than three times that, its last third.
	certificateNotice = 30 * 24 * time.Hour
)

// certificates are what the rendezvous proves itself with to agents, and whose
// signatures it accepts of them. They follow their files: sessions that stand
// are not touched, new ones are made with what was good last.
type certificates struct {
	cfg Config
	log *slog.Logger
	// current and problem, why newer files were not taken, are read by others;
	// all else belongs to run's goroutine.
	current atomic.Pointer[credentials]
	problem atomic.Pointer[string]
	// files are as they were when they were last read, since is when they were
	// first found wrong, zero if they are not.
	files [3]fileMark
	since time.Time
	asked chan struct{}
}

type credentials struct {
	tls  *tls.Config
	leaf *x509.Certificate
}

// fileMark tells a file's content from another without reading it.
type fileMark struct {
	modified time.Time
	size     int64
}

func newCertificates(cfg Config, log *slog.Logger) (*certificates, error) {
	c := &certificates{cfg: cfg, log: log, asked: make(chan struct{}, 1)}
	c.files = c.marks() // first: what changes while it is read is seen next time
	first, err := cfg.credentials()
	if err != nil {
		return nil, err
	}
	c.current.Store(first)
	return c, nil
}

// tlsConfig is what listeners use.
func (c *certificates) tlsConfig() *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return c.current.Load().tls, nil },
	}
}

// ask has run look at the files now.
func (c *certificates) ask() {
	select {
	case c.asked <- struct{}{}:
	default: // it is about to
	}
}

// run follows the files until ctx is done.
func (c *certificates) run(ctx context.Context) {
	poll := time.NewTicker(certificatePoll)
	defer poll.Stop()
	for {
		select {
		case <-c.asked:
			c.look(time.Now(), true)
		case <-poll.C:
			c.look(time.Now(), false)
		case <-ctx.Done():
			return
		}
	}
}

// look takes the files if they have changed, and keeps what is in use if they are
// not good. asked says that somebody waits for the outcome.
func (c *certificates) look(now time.Time, asked bool) {
	marks := c.marks()
	if !asked && c.since.IsZero() && marks == c.files {
		return
	}
	c.files = marks
	next, err := c.cfg.credentials()
	if err == nil {
		err = validAt(next.leaf, now)
	}
	if err != nil {
		c.refused(now, err, asked)
		return
	}
	if !c.since.IsZero() {
		c.log.Info("certificate, key and CA are good again")
	}
	c.since = time.Time{}
	c.problem.Store(nil)
	c.current.Store(next)
	c.log.Info("certificate taken into use", "serial", fmt.Sprintf("%x", next.leaf.SerialNumber), "until", next.leaf.NotAfter.UTC())
}

// refused says why the files are not taken: once, and not while they may be half
// written, unless somebody has asked.
func (c *certificates) refused(now time.Time, err error, asked bool) {
	if c.since.IsZero() {
		c.since = now
	}
	said := c.problem.Load() != nil
	if !asked && (said || now.Sub(c.since) < certificatePatience) {
		return
	}
	c.log.Warn("certificate not renewed; the one before stays in use", "err", err)
	text := "certificate not renewed: " + err.Error()
	c.problem.Store(&text)
}

// trouble is what an operator should know of the certificate, empty if nothing.
func (c *certificates) trouble(now time.Time) string {
	leaf := c.current.Load().leaf
	left, life := leaf.NotAfter.Sub(now), leaf.NotAfter.Sub(leaf.NotBefore)
	switch problem := c.problem.Load(); {
	case problem != nil:
		return *problem
	case left < 0 || now.Before(leaf.NotBefore):
		return validAt(leaf, now).Error() + ": no agent gets in"
	case left < min(certificateNotice, life/3):
		return "the certificate expires on " + leaf.NotAfter.UTC().Format(time.DateTime) + ": issue a new one and replace the files"
	}
	return ""
}

func (c *certificates) marks() (marks [3]fileMark) {
	for i, path := range []string{c.cfg.Certificate, c.cfg.Key, c.cfg.CA} {
		if info, err := os.Stat(path); err == nil {
			marks[i] = fileMark{info.ModTime(), info.Size()}
		}
	}
	return marks
}

// validAt is an error outside of the certificate's time.
func validAt(leaf *x509.Certificate, now time.Time) error {
	if now.After(leaf.NotAfter) || now.Before(leaf.NotBefore) {
		return fmt.Errorf("the certificate is valid from %s to %s, and this machine's clock says %s",
			leaf.NotBefore.UTC().Format(time.DateTime), leaf.NotAfter.UTC().Format(time.DateTime), now.UTC().Format(time.DateTime))
	}
	return nil
}

// credentials reads the files. Every client must have a certificate of our CA.
func (c Config) credentials() (*credentials, error) {
	cert, err := tls.LoadX509KeyPair(c.Certificate, c.Key)
	if err != nil {
		return nil, fmt.Errorf("%w: certificate %s, key %s: %w", ErrConfig, c.Certificate, c.Key, err)
	}
	pem, err := os.ReadFile(c.CA)
	if err != nil {
		return nil, fmt.Errorf("%w: ca: %w", ErrConfig, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%w: ca: %s holds no PEM certificate", ErrConfig, c.CA)
	}
	return &credentials{leaf: cert.Leaf, tls: &tls.Config{
		Certificates: []tls.Certificate{cert},
		ClientCAs:    pool,
		ClientAuth:   tls.RequireAndVerifyClientCert,
		MinVersion:   tls.VersionTLS13,
		NextProtos:   []string{"http/1.1"}, // a websocket upgrade needs HTTP/1.1
		// A ticket would let in whom a CA has signed that is no longer ours.
		SessionTicketsDisabled: true,
	}}, nil
}
