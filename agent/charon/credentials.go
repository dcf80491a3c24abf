package charon

import (
	"context"
	"encoding/pem"
	"fmt"
)

// Credentials are what a node proves itself with and whom it believes, as PEM.
type Credentials struct {
	CertPEM []byte   // the node's certificate; only the first block is used
	KeyPEM  []byte   // its private key: PKCS#8, SEC 1 or PKCS#1, not encrypted
	CAPEMs  [][]byte // certificate authorities; each may hold several
}

// LoadCredentials gives charon the node's certificate and key, and the
// authorities to trust. Loading the same again changes nothing. charon keeps
// them until it restarts; there is no way to unload only ours.
func (c *Client) LoadCredentials(ctx context.Context, creds Credentials) error {
	loads, err := creds.loads()
	if err != nil {
		return err
	}
	return c.do(ctx, func(x *exchange) error {
		for _, load := range loads {
			args, err := load.args.message()
			if err != nil {
				return err
			}
			if _, err := x.command(load.command, args); err != nil {
				return fmt.Errorf("%s: %w", load.what, err)
			}
		}
		return nil
	})
}

// LoadCRL gives charon the list of certificates that an authority has revoked, in
// DER (RFC 5280 section 5): it refuses peers that are on it from then on, and
// leaves what stands. Of several lists of one authority charon keeps the newest
// until it restarts.
func (c *Client) LoadCRL(ctx context.Context, der []byte) error {
	text := pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
	args, err := section{{"type", "X509_CRL"}, {"flag", "NONE"}, {"data", string(text)}}.message()
	if err != nil {
		return err
	}
	// What charon has verified once it finds in a cache first, an old list too:
	// without the second command it would go on by that.
	flush, err := section{{"type", "X509_CRL"}}.message()
	if err != nil {
		return err
	}
	return c.do(ctx, func(x *exchange) error {
		if _, err := x.command("load-cert", args); err != nil {
			return fmt.Errorf("CRL: %w", err)
		}
		if _, err := x.command("flush-certs", flush); err != nil {
			return fmt.Errorf("CRL: %w", err)
		}
		return nil
	})
}

// load is one VICI command that gives charon a credential.
type load struct {
	what, command string
	args          section
}

// loads is what must be sent to charon. It looks into the PEM because charon
// answers a wrong file with "parsing failed" alone.
func (creds Credentials) loads() ([]load, error) {
	cert, err := certificates("certificate", creds.CertPEM)
	if err != nil {
		return nil, err
	}
	if block, _ := pem.Decode(creds.KeyPEM); block == nil {
		return nil, fmt.Errorf("%w private key: no PEM block found", ErrInvalid)
	}
	loads := []load{
		{"certificate", "load-cert", section{{"type", "X509"}, {"flag", "NONE"}, {"data", cert[0]}}},
		{"private key", "load-key", section{{"type", "any"}, {"data", string(creds.KeyPEM)}}},
	}
	for _, file := range creds.CAPEMs {
		cas, err := certificates("CA certificate", file)
		if err != nil {
			return nil, err
		}
		for _, ca := range cas {
			loads = append(loads, load{"CA certificate", "load-cert", section{{"type", "X509"}, {"flag", "CA"}, {"data", ca}}})
		}
	}
	return loads, nil
}

// certificates splits a file into its certificates, each as PEM: charon reads
// only the first of several.
func certificates(what string, file []byte) ([]string, error) {
	var certs []string
	for {
		var block *pem.Block
		block, file = pem.Decode(file)
		if block == nil {
			break
		}
		if block.Type == "CERTIFICATE" {
			certs = append(certs, string(pem.EncodeToMemory(block)))
		}
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("%w %s: no PEM block CERTIFICATE found", ErrInvalid, what)
	}
	return certs, nil
}
