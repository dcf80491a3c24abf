package main

import (
	"cmp"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bodkin-net/bodkin/internal/pki"
	"github.com/bodkin-net/bodkin/rendezvous"
	"github.com/bodkin-net/bodkin/rendezvous/access"
	"github.com/bodkin-net/bodkin/rendezvous/enrol"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

// firstCredential is the name of the admin credential that init makes.
const firstCredential = "admin"

// initFlags are those of `bodkin rendezvous init`.
type initFlags struct {
	dir, stateDir, cluster, status, ca string
	hosts                              []string
	renew                              bool
}

func newInit() *cobra.Command {
	var f initFlags
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make what a rendezvous needs: CA, certificate, configuration, admin credential",
		Long: "Init makes a CA and the rendezvous' certificate (ECDSA P-256), a configuration with comments,\n" +
			"the store and a first admin credential. What is there already is kept: run again, it says what\n" +
			"that is and makes what is missing.\n\n" +
			"With --ca an existing CA, such as FabEdge's, is used as it is: init then writes no keys.",
		Example: "  sudo bodkin rendezvous init --host connector.example --cluster beijing\n" +
			"  sudo bodkin rendezvous init --host 198.51.100.1,2001:db8::1 --status 0.0.0.0:7480\n" +
			"  sudo bodkin rendezvous init --ca /etc/fabedge/ca.crt\n" +
			"  sudo bodkin rendezvous init --renew",
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s := &setup{initFlags: f, out: newPrinter(cmd), now: time.Now()}
			err := s.run()
			return errors.Join(err, s.out.flush())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.dir, "dir", "/etc/bodkin", "directory of keys, certificates and configuration")
	flags.StringVar(&f.stateDir, "state-dir", "/var/lib/bodkin", "directory of the store")
	flags.StringSliceVar(&f.hosts, "host", nil, "name or address that edges reach the rendezvous at, repeatable (this machine's public addresses)")
	flags.StringVar(&f.cluster, "cluster", "", "the cluster whose connector this is; CLUSTER.connector may be a Connector (in each cluster)")
	flags.StringVar(&f.status, "status", rendezvous.DefaultConfig().Status, "address of the status page and API")
	flags.StringVar(&f.ca, "ca", "", "certificate of an existing CA, to be used as it is")
	flags.BoolVar(&f.renew, "renew", false, "issue the rendezvous' certificate anew, with --host for other hosts")
	return cmd
}

// setup makes a rendezvous, one thing after another. Each is whole or not there,
// so that a run that was cut short is continued by the next.
type setup struct {
	initFlags
	out *printer
	now time.Time
	// authority is nil with an existing CA.
	authority *pki.CA
}

func (s *setup) path(name string) string { return filepath.Join(s.dir, name) }

func (s *setup) tell(what, format string, args ...any) {
	s.out.printf("%-22s %s\n", what, fmt.Sprintf(format, args...))
}

func (s *setup) run() error {
	if err := s.check(); err != nil {
		return usageError{err}
	}
	for _, dir := range []string{s.dir, s.stateDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	steps := []func() error{s.makeCA, s.makeCertificate, s.makeConfig, s.makeCredential}
	if s.ca != "" {
		steps = []func() error{s.makeConfig, s.makeCredential}
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	s.sayNext()
	return nil
}

// check refuses flags that do not go together, and completes them.
func (s *setup) check() error {
	if s.ca != "" && s.renew {
		return errors.New("--renew: with --ca nothing is issued here: have that CA issue the certificate")
	}
	for _, host := range s.hosts {
		if _, err := netip.ParseAddr(host); err != nil && wire.NodeName(strings.ToLower(host)).Validate() != nil {
			return fmt.Errorf("--host %q: want a DNS name or an IP address, without a port", host)
		}
	}
	if s.cluster != "" && (wire.NodeName(s.cluster).Validate() != nil || strings.Contains(s.cluster, ".")) {
		return fmt.Errorf("--cluster %q: want one word in lower case, such as beijing", s.cluster)
	}
	if _, _, err := net.SplitHostPort(s.status); err != nil {
		return fmt.Errorf("--status %q: want host:port, such as 127.0.0.1:7480", s.status)
	}
	if s.ca == "" {
		return nil
	}
	text, err := os.ReadFile(s.ca)
	if err != nil {
		return fmt.Errorf("--ca: %w", err)
	}
	if _, err := pki.ParseCertificate(text); err != nil {
		return fmt.Errorf("--ca %s: %w", s.ca, err)
	}
	s.ca, err = filepath.Abs(s.ca)
	return err
}

// makeCA makes the CA, its key first: a key without a certificate is what a run
// that was cut short leaves.
func (s *setup) makeCA() error {
	keyText, errKey := os.ReadFile(s.path("ca.key"))
	certText, errCert := os.ReadFile(s.path("ca.crt"))
	noKey, noCert := errors.Is(errKey, fs.ErrNotExist), errors.Is(errCert, fs.ErrNotExist)
	switch {
	case errKey != nil && !noKey, errCert != nil && !noCert:
		return errors.Join(errKey, errCert)
	case !noKey && !noCert:
		ca, err := pki.ParseCA(certText, keyText)
		if err != nil {
			return fmt.Errorf("%s, %s: %w", s.path("ca.crt"), s.path("ca.key"), err)
		}
		s.authority = ca
		s.tell("CA", "is there: %s, until %s", ca.Certificate.Subject.CommonName, ca.Certificate.NotAfter.UTC().Format(time.DateOnly))
		return nil
	case !noCert:
		return fmt.Errorf("%s is there without its key %s: put that there, or use an existing CA with --ca %s", s.path("ca.crt"), s.path("ca.key"), s.path("ca.crt"))
	case !noKey && exists(s.path("rendezvous.crt")):
		return fmt.Errorf("%s is missing, though certificates were issued with %s: restore it", s.path("ca.crt"), s.path("ca.key"))
	}
	key, err := s.key("ca.key")
	if err != nil {
		return err
	}
	if s.authority, err = pki.CAOf(s.now, key); err != nil {
		return err
	}
	cert := s.authority.Certificate
	if err := pki.WriteFile(s.path("ca.crt"), pki.EncodeCertificate(cert.Raw), 0o644); err != nil {
		return err
	}
	s.tell("CA", "made: %s, until %s", cert.Subject.CommonName, cert.NotAfter.UTC().Format(time.DateOnly))
	s.tell("", "%s; its key %s signs every node: back it up, show it to nobody", s.path("ca.crt"), s.path("ca.key"))
	return nil
}

// key is the key in a file, which is made if it is not there.
func (s *setup) key(name string) (crypto.Signer, error) {
	text, err := os.ReadFile(s.path(name))
	if err == nil {
		key, err := pki.ParseKey(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.path(name), err)
		}
		return key, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	key, err := pki.NewKey()
	if err != nil {
		return nil, err
	}
	if text, err = pki.EncodeKey(key); err != nil {
		return nil, err
	}
	return key, pki.WriteFile(s.path(name), text, 0o600)
}

// makeCertificate makes the rendezvous' own.
func (s *setup) makeCertificate() error {
	path := s.path("rendezvous.crt")
	hosts := s.hosts
	if text, err := os.ReadFile(path); err == nil {
		present, err := pki.ParseCertificate(text)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		has := pki.Hosts(present)
		if len(hosts) == 0 {
			hosts = has
		}
		if !s.renew {
			s.tell("certificate", "is there: for %s, until %s", strings.Join(has, ", "), present.NotAfter.UTC().Format(time.DateOnly))
			if other := lacking(hosts, has); other != "" {
				return usageError{fmt.Errorf("%s is not for %s: `bodkin rendezvous init --renew --host …` issues one that is", path, other)}
			}
			s.hosts = has
			return nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(hosts) == 0 {
		if hosts = publicAddresses(); len(hosts) == 0 {
			return usageError{errors.New("--host: this machine has no public address of its own: want the name or address that edges reach it at")}
		}
		s.tell("--host", "not given: %s, this machine's public addresses", strings.Join(hosts, ", "))
	}
	key, err := s.key("rendezvous.key")
	if err != nil {
		return err
	}
	cert, err := s.authority.Server(s.now, hosts, key.Public())
	if err != nil {
		return err
	}
	if err := pki.WriteFile(path, pki.EncodeCertificate(cert.Raw), 0o644); err != nil {
		return err
	}
	s.hosts = hosts
	s.tell("certificate", "made: for %s, until %s; the rendezvous renews it by itself", strings.Join(hosts, ", "), cert.NotAfter.UTC().Format(time.DateOnly))
	return nil
}

// lacking is the first host that a certificate is not for.
func lacking(hosts, has []string) string {
	for _, host := range hosts {
		if a, err := netip.ParseAddr(host); err == nil {
			host = a.Unmap().String()
		}
		if !slices.ContainsFunc(has, func(h string) bool { return strings.EqualFold(h, host) }) {
			return host
		}
	}
	return ""
}

// publicAddresses are those of this machine that the internet may know it by.
func publicAddresses() (out []string) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	carriers := netip.MustParsePrefix("100.64.0.0/10") // RFC 6598
	for _, addr := range addrs {
		p, err := netip.ParsePrefix(addr.String())
		if a := p.Addr(); err == nil && a.IsGlobalUnicast() && !a.IsPrivate() && !carriers.Contains(a) {
			out = append(out, a.String())
		}
	}
	return out
}

// makeConfig writes the configuration.
func (s *setup) makeConfig() error {
	path := s.path("rendezvous.yaml")
	if exists(path) {
		if _, err := rendezvous.LoadConfig(path); err != nil {
			return err
		}
		s.tell("configuration", "is there: %s", path)
		return nil
	}
	if err := pki.WriteFile(path, []byte(s.config()), 0o644); err != nil {
		return err
	}
	s.tell("configuration", "made: %s", path)
	return nil
}

// storePath is where the rendezvous keeps its store, by its configuration.
func (s *setup) storePath() (string, error) {
	cfg, err := rendezvous.LoadConfig(s.path("rendezvous.yaml"))
	return cfg.Store, err
}

// makeCredential makes the store and the first admin credential in it. The file
// is written first: the store holds only the hash.
func (s *setup) makeCredential() error {
	path, err := s.storePath()
	if err != nil {
		return err
	}
	file := s.path("admin.token")
	db, err := store.Open(path, store.Options{})
	if errors.Is(err, store.ErrLocked) {
		s.tell("store", "is in use: the rendezvous runs; `bodkin access` on it manages credentials")
		return nil
	}
	if err != nil {
		return err
	}
	defer db.Close()
	var has []store.Credential
	if err := db.View("credentials", func(tx *store.Tx) error { has, err = tx.Credentials(); return err }); err != nil {
		return err
	}
	if len(has) > 0 {
		s.tell("credentials", "are there: %s", plural(len(has), "credential"))
		return db.Close()
	}
	token, made, err := adminToken(file)
	if err != nil {
		return err
	}
	record := store.Credential{Name: firstCredential, Role: string(access.Admin), SecretSHA256: access.Hash(token), Created: s.now.UTC(), By: "bodkin rendezvous init"}
	entry := store.Audit{At: s.now, Who: record.By, Action: "create credential", Object: record.Name, Detail: "role admin, kept in " + file}
	if err := db.Change(&entry, func(tx *store.Tx) error { return tx.PutCredential(record) }); err != nil {
		return err
	}
	s.tell("store", "made: %s", path)
	if forgotten := enrol.New(db, s.authority, enrol.Rules{}).Forgotten(s.now); forgotten != "" {
		s.tell("", "%s", s.out.styled("! "+forgotten, warn))
	}
	if made {
		s.tell("admin credential", "made: %s", token)
	} else {
		s.tell("admin credential", "taken from a run before")
	}
	s.tell("", "it is in %s, too, for --token-file and the page's login; on this machine root needs none", file)
	return db.Close()
}

// adminToken is the token in a file, or a new one that is put there.
func adminToken(file string) (token string, made bool, err error) {
	text, err := os.ReadFile(file)
	if token = strings.TrimSpace(string(text)); err == nil && token != "" {
		return token, false, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", false, err
	}
	token, _ = access.NewToken()
	return token, true, pki.WriteFile(file, []byte(token+"\n"), 0o600)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// sayNext says what is left to a person.
func (s *setup) sayNext() {
	s.out.printf("\n")
	if s.ca != "" {
		s.out.printf("Next: have the CA of %s issue a certificate for what edges reach this machine at, put it and its key\n"+
			"into %s and %s, and start the rendezvous. Nodes get in with a certificate of that CA; no token is needed.\n",
			s.ca, s.path("rendezvous.crt"), s.path("rendezvous.key"))
		return
	}
	sum := sha256.Sum256(s.authority.Certificate.Raw)
	s.out.printf("CA SHA-256 %s\n", hex.EncodeToString(sum[:]))
	s.out.printf("Next: open TCP 7443 and UDP 3478-3481 to the internet, start the rendezvous, and let nodes join:\n"+
		"  systemctl enable --now bodkin-rendezvous   # or: bodkin rendezvous --config %s\n"+
		"  bodkin token create --name %s.edge1 --subnets 10.233.66.0/24\n", s.path("rendezvous.yaml"), cmp.Or(s.cluster, "beijing"))
}
