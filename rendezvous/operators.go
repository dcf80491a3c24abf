package rendezvous

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/bodkin-net/bodkin/internal/pki"
	"github.com/bodkin-net/bodkin/rendezvous/access"
	"github.com/bodkin-net/bodkin/rendezvous/enrol"
	"github.com/bodkin-net/bodkin/store"
)

// operatorLifetime is that of an operator's certificate: as a node's, since nobody
// renews it by itself.
const operatorLifetime = pki.NodeLifetime

// operatorPrefix marks the certificates that are operators' in the store. No node
// is called so.
const operatorPrefix = "operator:"

// CertificateRequest is the body of POST /api/v1/access/{name}/certificate.
type CertificateRequest struct {
	Role access.Role `json:"role"`
	CSR  string      `json:"csr"` // PEM; only its key and signature count
}

// OperatorCertificate is the answer to it.
type OperatorCertificate struct {
	Name        string      `json:"name"`
	Role        access.Role `json:"role"`
	Certificate string      `json:"certificate"` // PEM
	CA          string      `json:"ca"`          // PEM
	Expires     time.Time   `json:"expires"`
}

// postOperator signs an operator's certificate, whose key stays with the operator.
func (s *Server) postOperator(r *http.Request) (any, error) {
	spec, err := body[CertificateRequest](r)
	if err != nil {
		return nil, err
	}
	name := r.PathValue("name")
	if err := checkCredential(name, spec.Role); err != nil {
		return nil, err
	}
	if !s.authority.Issues() {
		return nil, fmt.Errorf("%w: %w: have its CA issue one with the organizational unit bodkin:%s", ErrConflict, enrol.ErrNotIssuing, spec.Role)
	}
	request, err := pki.ParseRequest([]byte(spec.CSR))
	if err != nil {
		return nil, fmt.Errorf("%w: csr: %w", errInvalid, err)
	}
	cert, err := s.authority.CA.Operator(time.Now(), name, string(spec.Role), request.PublicKey, operatorLifetime)
	if err != nil {
		return nil, err
	}
	err = s.change(r.Context(), "issue operator certificate", name, func(a *store.Audit, tx *store.Tx) error {
		a.Detail = fmt.Sprintf("role %s, serial %s", spec.Role, pki.Serial(cert))
		return tx.PutCertificate(store.Certificate{
			Serial: pki.Serial(cert), Node: operatorPrefix + name, NotBefore: cert.NotBefore.UTC(), NotAfter: cert.NotAfter.UTC(),
		})
	})
	if err != nil {
		return nil, err
	}
	return OperatorCertificate{
		Name: name, Role: spec.Role, Expires: cert.NotAfter.UTC(),
		Certificate: string(pki.EncodeCertificate(cert.Raw)), CA: string(pki.EncodeCertificate(s.authority.CA.Certificate.Raw)),
	}, nil
}

// deleteAccess ends what an operator gets in with: the credential of that name, and
// the certificates.
func (s *Server) deleteAccess(r *http.Request) (any, error) {
	name, now := r.PathValue("name"), time.Now().UTC()
	err := s.change(r.Context(), "delete credential", name, func(a *store.Audit, tx *store.Tx) error {
		revoked, err := revokeOperator(tx, name, now)
		if err != nil {
			return err
		}
		if revoked > 0 {
			a.Detail = fmt.Sprintf("%d certificates revoked", revoked)
		}
		err = tx.DeleteCredential(name)
		if errors.Is(err, store.ErrNotFound) && revoked > 0 {
			return nil
		}
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		err = fmt.Errorf("credential %s: %w", clip(name), store.ErrNotFound) // without the store's path
	}
	return nil, err
}

func revokeOperator(tx *store.Tx, name string, now time.Time) (revoked int, err error) {
	all, err := tx.Certificates()
	for _, c := range all {
		if c.Node != operatorPrefix+name || !c.Revoked.IsZero() {
			continue
		}
		c.Revoked = now
		if err := tx.PutCertificate(c); err != nil {
			return revoked, err
		}
		revoked++
	}
	return revoked, err
}

// operator tells whose a client certificate is that the CA has signed. One that is
// a node's gives no role.
func (s *Server) operator(cert *x509.Certificate) (access.Caller, error) {
	role := access.Role(pki.RoleOf(cert))
	if role == access.Nobody {
		return access.Caller{}, nil
	}
	var known store.Certificate
	err := s.store.View("certificate", func(tx *store.Tx) (err error) {
		known, err = tx.Certificate(pki.Serial(cert))
		if errors.Is(err, store.ErrNotFound) {
			return nil // of an existing CA
		}
		return err
	})
	if err == nil && !known.Revoked.IsZero() {
		err = fmt.Errorf("%w; the certificate of %s was revoked on %s", access.ErrUnauthenticated, quote(cert.Subject.CommonName), known.Revoked.Format(time.RFC1123))
	}
	return access.Caller{Who: cert.Subject.CommonName, Role: role}, err
}
