package join

import (
	"cmp"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/bodkin-net/bodkin/agent"
	"github.com/bodkin-net/bodkin/internal/pki"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// found is what an earlier join, or somebody else, has left on the machine; nil is
// what is not there.
type found struct {
	key         crypto.Signer
	certificate *x509.Certificate
	ca          *x509.Certificate
	config      *agent.Config
}

// look reads what is there. A key or configuration that cannot be read, or that
// somebody else may know or change, is an error: whoever wrote it has to decide
// what becomes of it.
func look(f Files) (found, error) {
	var out found
	if err := cmp.Or(ours(f.Key, 0o077), ours(f.Config, 0o022)); err != nil {
		return out, err
	}
	if text, err := readIfThere(f.Key); err != nil {
		return out, err
	} else if text != nil {
		if out.key, err = pki.ParseKey(text); err != nil {
			return out, fmt.Errorf("%s: %w: remove it to have a new key made", f.Key, err)
		}
	}
	switch cfg, err := agent.ReadConfig(f.Config); {
	case err == nil:
		out.config = &cfg
	case !errors.Is(err, fs.ErrNotExist):
		return out, err
	}
	// Certificates can be had again.
	for path, cert := range map[string]**x509.Certificate{f.Certificate: &out.certificate, f.CA: &out.ca} {
		text, err := readIfThere(path)
		if err != nil {
			return out, err
		}
		*cert, _ = pki.ParseCertificate(text)
	}
	return out, nil
}

// ours is an error unless a file that is there is this user's or root's, and
// nobody else's by its mode: the directory may be one that others put files into.
func ours(path string, forbidden fs.FileMode) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; owner != 0 && int(owner) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d: remove it, or make it yours", path, owner)
	}
	if mode := info.Mode(); mode.IsRegular() && mode&forbidden != 0 {
		return fmt.Errorf("%s has mode %04o: others may read or change it: remove it, or chmod %04o it if you know who made it", path, mode.Perm(), mode.Perm()&^forbidden)
	}
	return nil
}

func readIfThere(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

// mayBecome is an error when the configuration that is there is of another node
// than the one wanted: an operator's work is not overwritten.
func (f found) mayBecome(o Options, host string, files Files) error {
	if f.config == nil {
		return nil
	}
	c := f.config
	differs := func(key, is, want string) error {
		return fmt.Errorf("%s: %s is %s, and this join is for %s: change it there, or remove the file to have it written anew",
			files.Config, key, is, want)
	}
	if is, err := agent.ParseRendezvous(c.Rendezvous); err != nil || is != host {
		return differs("rendezvous", c.Rendezvous, "https://"+host)
	}
	for _, p := range []struct{ key, is, want string }{
		{"certificate", c.Certificate, files.Certificate}, {"key", c.Key, files.Key}, {"ca", c.CA, files.CA},
		{"endpoint.type", c.Endpoint.Type, string(o.Type)},
	} {
		if p.is != p.want {
			return differs(p.key, p.is, p.want)
		}
	}
	if name := wire.NodeName(c.Endpoint.Name); name != "" && o.Name != "" && name != o.Name {
		return differs("endpoint.name", string(name), string(o.Name))
	}
	return f.hasSubnets(o.Subnets, files)
}

// hasSubnets is an error when the configuration has other subnets than those, if
// there are any of those.
func (f found) hasSubnets(want []netip.Prefix, files Files) error {
	if f.config == nil || len(want) == 0 {
		return nil
	}
	is := slices.Sorted(slices.Values(f.config.Endpoint.Subnets))
	should := slices.Sorted(slices.Values(texts(want)))
	if !slices.Equal(is, should) {
		return fmt.Errorf("%s: endpoint.subnets are %v, and this node's are %v: change them there, or remove the file to have it written anew",
			files.Config, is, should)
	}
	return nil
}

func texts(ps []netip.Prefix) []string {
	out := make([]string, len(ps))
	for i, p := range ps {
		out[i] = p.String()
	}
	return out
}

// joined reports whether the machine is a node of that CA already, as far as it can
// tell by itself, and which.
func (f found) joined(caHash [32]byte, now time.Time) (wire.NodeName, bool) {
	if f.key == nil || f.certificate == nil || f.ca == nil || f.config == nil {
		return "", false
	}
	name, err := wire.NameOf(f.certificate)
	if err != nil || pki.Hash(f.ca) != caHash || !sameKey(f.certificate.PublicKey, f.key) {
		return "", false
	}
	return name, verify(f.certificate, f.ca, now) == nil
}

func sameKey(public crypto.PublicKey, key crypto.Signer) bool {
	own, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && own.Equal(public)
}

// verify is an error unless the CA has signed the certificate and both are good
// now.
func verify(cert, ca *x509.Certificate, now time.Time) error {
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	_, err := cert.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err
}
