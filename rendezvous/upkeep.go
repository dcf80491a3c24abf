package rendezvous

import (
	"context"
	"crypto"
	"crypto/x509"
	"fmt"
	"os"
	"time"

	"github.com/bodkin-net/bodkin/internal/pki"
)

// upkeepPause is between looks at what expires: lists and certificates that live
// for weeks.
const upkeepPause = time.Hour

// maintain keeps what expires in order until ctx is done: records, the list of
// the revoked, and the rendezvous' own certificate.
func (s *Server) maintain(ctx context.Context) {
	look := time.NewTicker(upkeepPause)
	defer look.Stop()
	for {
		s.upkeep(ctx, time.Now())
		select {
		case <-look.C:
		case <-ctx.Done():
			return
		}
	}
}

// upkeep does what is due.
func (s *Server) upkeep(ctx context.Context, now time.Time) {
	renewed, err := s.authority.Maintain(now)
	if err != nil {
		s.log.Error("expired records not removed, list of the revoked not renewed", "err", err)
	}
	if renewed {
		s.distribute(ctx)
	}
	cert, err := s.cfg.RenewCertificate(now, s.authority.CA, false)
	switch {
	case err != nil:
		s.log.Warn("the rendezvous' certificate is due and was not renewed: `bodkin rendezvous init --renew`", "err", err)
	case cert:
		s.log.Info("the rendezvous' certificate was renewed", "file", s.cfg.Certificate)
		s.certs.ask()
	}
}

// RenewCertificate writes another certificate for the rendezvous' key and hosts in
// place of the present one, if the CA has issued that and two thirds of its life
// are over, or now if that is asked for. It reports whether it did.
func (c Config) RenewCertificate(now time.Time, ca *pki.CA, asked bool) (renewed bool, err error) {
	if ca == nil {
		return false, nil
	}
	present, key, err := c.own()
	if err != nil {
		return false, err
	}
	if present.CheckSignatureFrom(ca.Certificate) != nil || !asked && now.Before(renewalOf(present)) {
		return false, nil
	}
	cert, err := ca.Server(now, pki.Hosts(present), key.Public())
	if err != nil {
		return false, err
	}
	if err := pki.WriteFile(c.Certificate, pki.EncodeCertificate(cert.Raw), 0o644); err != nil {
		return false, fmt.Errorf("certificate: %w", err)
	}
	return true, nil
}

// renewalOf is when two thirds of a certificate's life are over.
func renewalOf(cert *x509.Certificate) time.Time {
	return cert.NotAfter.Add(-cert.NotAfter.Sub(cert.NotBefore) / 3)
}

// own are the rendezvous' certificate and key.
func (c Config) own() (*x509.Certificate, crypto.Signer, error) {
	text, err := os.ReadFile(c.Certificate)
	if err != nil {
		return nil, nil, fmt.Errorf("certificate: %w", err)
	}
	cert, err := pki.ParseCertificate(text)
	if err != nil {
		return nil, nil, fmt.Errorf("certificate %s: %w", c.Certificate, err)
	}
	if text, err = os.ReadFile(c.Key); err != nil {
		return nil, nil, fmt.Errorf("key: %w", err)
	}
	key, err := pki.ParseKey(text)
	if err != nil {
		return nil, nil, fmt.Errorf("key %s: %w", c.Key, err)
	}
	return cert, key, nil
}
