package join

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/bodkin-net/bodkin/agent"
	"github.com/bodkin-net/bodkin/internal/pki"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// ErrOtherCA marks that who answers is not the rendezvous that the token is for.
var ErrOtherCA = errors.New("another CA than the token says")

// meetRendezvous fetches the CA. Nobody is believed yet: the token's hash decides.
func (j *joining) meetRendezvous(ctx context.Context) (string, error) {
	unverified := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13} //nolint:gosec // the hash is checked below, and no secret sent before
	text, err := agent.Enrolment{Host: j.host, TLS: unverified}.Get(ctx, wire.PathCA)
	if err != nil {
		return "", err
	}
	if j.ca, err = pki.ParseCertificate(text); err != nil {
		return "", fmt.Errorf("https://%s answers, but not with a CA: %w: is it a rendezvous?", j.host, err)
	}
	if pki.Hash(j.ca) != j.token.CAHash {
		return "", fmt.Errorf("the rendezvous at %s has %w: somebody is in between, or the token is another rendezvous'", j.host, ErrOtherCA)
	}
	// That its certificate is for this URL is found out before there is a key.
	if _, err := j.enrolment().Get(ctx, wire.PathCA); err != nil {
		return "", err
	}
	return fmt.Sprintf("https://%s has the CA that the token names: %s", j.host, j.ca.Subject.CommonName), nil
}

// haveKey makes the node's key, which never leaves the machine, or keeps the one
// that is there.
func (j *joining) haveKey(context.Context) (string, error) {
	if j.key = j.found.key; j.key != nil {
		return j.files.Key + " kept", nil
	}
	key, err := pki.NewKey()
	if err != nil {
		return "", err
	}
	text, err := pki.EncodeKey(key)
	if err != nil {
		return "", err
	}
	if err := write(j.files.Key, text, 0o600); err != nil {
		return "", err
	}
	j.key = key
	return j.files.Key + " made, ECDSA P-256; it stays on this machine", nil
}

// getCertificate has the rendezvous sign the key: by the certificate that is here,
// if it is still good there, for the token may have expired since; else by the
// token.
func (j *joining) getCertificate(ctx context.Context) (string, error) {
	request, err := pki.EncodeRequest(j.key)
	if err != nil {
		return "", err
	}
	if name, ok := j.found.joined(j.token.CAHash, time.Now()); ok {
		if j.Name != "" && name != j.Name {
			return "", fmt.Errorf("this machine has joined as %s: remove %s and %s to join as %s", name, j.files.Certificate, j.files.Config, j.Name)
		}
		until, err := j.renew(ctx, name, request)
		if err == nil {
			return fmt.Sprintf("this machine is %s already; renewed until %s", name, date(until)), nil
		}
		refused, ok := errors.AsType[*agent.RefusedError](err)
		if !ok {
			return "", err
		}
		j.warn(StepCertificate, "the certificate of %s that is here is not good any more (%s); joining with the token", name, refused.Words)
	}
	until, err := j.joinWithToken(ctx, request)
	if err != nil {
		return "", err
	}
	text := fmt.Sprintf("this machine is %s, until %s", j.issued.Name, date(until))
	if j.pending {
		j.warn(StepCertificate, "an operator has to approve it: bodkin node approve %s, on the rendezvous", j.issued.Name)
	}
	return text, nil
}

func date(t time.Time) string { return t.UTC().Format(time.DateTime) + " UTC" }

func (j *joining) renew(ctx context.Context, name wire.NodeName, request []byte) (until time.Time, err error) {
	present := tls.Certificate{Certificate: [][]byte{j.found.certificate.Raw}, PrivateKey: j.key}
	var answer wire.RenewAnswer
	if err := j.enrolment(present).Post(ctx, wire.PathRenew, wire.RenewRequest{CSR: string(request)}, &answer); err != nil {
		return until, err
	}
	j.issued = wire.JoinAnswer{Name: name, Certificate: answer.Certificate, CA: answer.CA}
	return j.checkIssued()
}

func (j *joining) joinWithToken(ctx context.Context, request []byte) (until time.Time, err error) {
	ask := wire.JoinRequest{
		TokenID: j.token.TokenID(), Secret: fmt.Sprintf("%x", j.token.Secret),
		Name: j.Name, CSR: string(request), Subnets: j.Subnets, Type: j.Type,
	}
	if err := j.enrolment().Post(ctx, wire.PathJoin, ask, &j.issued); err != nil {
		return until, err
	}
	j.pending = j.issued.Pending
	if until, err = j.checkIssued(); err != nil {
		return until, err
	}
	if len(j.issued.Subnets) == 0 {
		return until, errors.New("neither the token nor --subnets says which subnets are behind this node: give them, such as --subnets 10.233.66.0/24")
	}
	return until, j.found.hasSubnets(j.issued.Subnets, j.files)
}

// enrolment is the rendezvous, believed by its CA, with this node's certificate if
// it is given.
func (j *joining) enrolment(present ...tls.Certificate) agent.Enrolment {
	pool := x509.NewCertPool()
	pool.AddCert(j.ca)
	return agent.Enrolment{Host: j.host, TLS: &tls.Config{RootCAs: pool, Certificates: present, MinVersion: tls.VersionTLS13}}
}

// checkIssued is an error unless the certificate is for our key, by the CA that we
// trust, and good now.
func (j *joining) checkIssued() (until time.Time, err error) {
	cert, err := pki.ParseCertificate([]byte(j.issued.Certificate))
	if err != nil {
		return until, fmt.Errorf("the rendezvous answers with a certificate that is none: %w", err)
	}
	switch name, err := wire.NameOf(cert); {
	case err != nil || name != j.issued.Name:
		return until, fmt.Errorf("the rendezvous answers with a certificate for %q, and says it is for %q", cert.Subject.CommonName, j.issued.Name)
	case j.Name != "" && name != j.Name:
		return until, fmt.Errorf("the rendezvous answers with a certificate for %s, and %s was asked for", name, j.Name)
	case !sameKey(cert.PublicKey, j.key):
		return until, errors.New("the rendezvous answers with a certificate for another key")
	}
	if now := time.Now(); now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
		return until, fmt.Errorf("the rendezvous answers with a certificate valid from %s to %s, and this machine's clock says %s: set the clock",
			date(cert.NotBefore), date(cert.NotAfter), date(now))
	}
	if err := verify(cert, j.ca, time.Now()); err != nil {
		return until, fmt.Errorf("the rendezvous answers with a certificate that its CA has not signed: %w", err)
	}
	return cert.NotAfter, nil
}
