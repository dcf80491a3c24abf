package rendezvous

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/bodkin-net/bodkin/internal/certfile"
)

// withoutCertificate is what follows from a certificate that is not good now.
const withoutCertificate = "no agent gets in"

// certificates are what the rendezvous proves itself with to agents, and whose
// signatures it accepts of them. They follow their files: sessions that stand
// are not touched, new ones are made with what was good last.
type certificates struct {
	cfg Config
	log *slog.Logger
	// current and problem, why newer files were not taken, are read by others;
	// files belongs to run's goroutine.
	current atomic.Pointer[credentials]
	problem atomic.Pointer[string]
	files   certfile.Watch
	asked   chan struct{}
}

type credentials struct {
	tls  *tls.Config
	leaf *x509.Certificate
}

func newCertificates(cfg Config, log *slog.Logger) (*certificates, error) {
	c := &certificates{cfg: cfg, log: log, asked: make(chan struct{}, 1)}
	marks := c.marks()
	first, err := cfg.credentials()
	if err != nil {
		return nil, err
	}
	c.files.Taken(marks)
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
	poll := time.NewTicker(certfile.Poll)
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
	if !c.files.Due(marks, asked) {
		return
	}
	next, err := c.cfg.credentials()
	if err == nil {
		err = validAt(next.leaf, now)
	}
	if err != nil {
		if c.files.Refused(now, err, asked) {
			c.log.Warn("certificate not renewed; the one before stays in use", "err", err)
			text := "certificate not renewed: " + err.Error()
			c.problem.Store(&text)
		}
		return
	}
	if c.files.Taken(marks) {
		c.log.Info("certificate, key and CA are good again")
	}
	c.problem.Store(nil)
	was := c.current.Swap(next)
	level := slog.LevelInfo
	if was.leaf.Equal(next.leaf) && was.tls.ClientCAs.Equal(next.tls.ClientCAs) {
		level = slog.LevelDebug
	}
	c.log.Log(context.Background(), level, "certificate taken into use", "serial", fmt.Sprintf("%x", next.leaf.SerialNumber), "until", next.leaf.NotAfter.UTC())
}

// trouble is what an operator should know of the certificate, empty if nothing.
func (c *certificates) trouble(now time.Time) string {
	if problem := c.problem.Load(); problem != nil {
		return *problem
	}
	leaf := c.current.Load().leaf
	return certfile.ValidityOf(leaf, now).Explain(leaf, now, withoutCertificate)
}

func (c *certificates) marks() certfile.Marks {
	return certfile.MarksOf(c.cfg.Certificate, c.cfg.Key, c.cfg.CA)
}

// validAt is an error outside of the certificate's time.
func validAt(leaf *x509.Certificate, now time.Time) error {
	if v := certfile.ValidityOf(leaf, now); !v.Holds() {
		return errors.New(v.Explain(leaf, now, "not taken"))
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
		ClientAuth:   tls.VerifyClientCertIfGiven, // who joins has none yet
		MinVersion:   tls.VersionTLS13,
		NextProtos:   []string{"http/1.1"}, // a websocket upgrade needs HTTP/1.1
		// A ticket would let in whom a CA has signed that is no longer ours.
		SessionTicketsDisabled: true,
	}}, nil
}
