package rendezvous

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// ErrConfig marks an error of the configuration: starting again unchanged
// cannot help.
var ErrConfig = errors.New("configuration")

// Config is the rendezvous' configuration file. docs/configuration.md explains
// each key.
type Config struct {
	// Listen is the TCP address of the signalling service (HTTPS, websocket).
	Listen string `yaml:"listen"`
	// Certificate, Key and CA are PEM files. Agents are let in whose
	// certificate the CA has signed.
	Certificate string `yaml:"certificate"`
	Key         string `yaml:"key"`
	CA          string `yaml:"ca"`
	// STUN are the two UDP addresses of the STUN service. Two ports tell what
	// kind of mapping a NAT makes.
	STUN []string `yaml:"stun"`
	// Status is the TCP address of the status page and API. Other than on
	// loopback it demands the token in StatusTokenFile.
	Status          string `yaml:"status"`
	StatusTokenFile string `yaml:"statusTokenFile"`
	// AdminSocket is the unix socket of the commands that change something.
	AdminSocket string `yaml:"adminSocket"`
	// Store is the database file.
	Store string `yaml:"store"`
	// CommunitiesDir is a directory of Community files, watched; "" for none.
	CommunitiesDir string `yaml:"communitiesDir"`
	// LogLevel is debug, info, warn or error.
	LogLevel string `yaml:"logLevel"`
}

// DefaultConfig is what a key that is not given means.
func DefaultConfig() Config {
	return Config{
		Listen:      ":7443",
		Certificate: "/etc/bodkin/rendezvous.crt",
		Key:         "/etc/bodkin/rendezvous.key",
		CA:          "/etc/bodkin/ca.crt",
		STUN:        []string{":3478", ":3479"},
		Status:      "127.0.0.1:7480",
		AdminSocket: "/run/bodkin/rendezvous.sock",
		Store:       "/var/lib/bodkin/rendezvous.db",
		LogLevel:    "info",
	}
}

// LoadConfig reads a configuration file over the defaults.
func LoadConfig(path string) (Config, error) {
	cfg := DefaultConfig()
	b, err := os.ReadFile(path)
	if err != nil {
		return cfg, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	if err := dec.Decode(&cfg); err != nil && !errors.Is(err, io.EOF) {
		return cfg, fmt.Errorf("%w %s: %s", ErrConfig, path, oneLine(err))
	}
	if err := cfg.check(); err != nil {
		return cfg, fmt.Errorf("%w %s: %w", ErrConfig, path, err)
	}
	return cfg, nil
}

// oneLine is a YAML error without its line breaks.
func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

func (c Config) check() error {
	for key, addr := range map[string]string{"listen": c.Listen, "status": c.Status} {
		if _, _, err := net.SplitHostPort(addr); err != nil {
			return fmt.Errorf("%s: %q is no address: want host:port, such as 127.0.0.1:7480 or :7443", key, addr)
		}
	}
	if _, err := c.stunAddrs(); err != nil {
		return err
	}
	if c.Store == "" {
		return errors.New("store: empty: want the path of the database file")
	}
	if !c.statusIsLocal() && c.StatusTokenFile == "" {
		return fmt.Errorf("status: %s is reachable from outside: set statusTokenFile too, or listen on 127.0.0.1", c.Status)
	}
	return nil
}

func (c Config) statusIsLocal() bool {
	host, _, _ := net.SplitHostPort(c.Status)
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

func (c Config) stunAddrs() ([]netip.AddrPort, error) {
	if len(c.STUN) != 2 {
		return nil, fmt.Errorf("stun: %d addresses: want two ports, such as [\":3478\", \":3479\"]", len(c.STUN))
	}
	var out []netip.AddrPort
	for _, a := range c.STUN {
		host, port, err := net.SplitHostPort(a)
		n, errPort := strconv.ParseUint(port, 10, 16)
		addr := netip.IPv6Unspecified()
		var errAddr error
		if host != "" {
			addr, errAddr = netip.ParseAddr(host)
		}
		if err != nil || errPort != nil || errAddr != nil {
			return nil, fmt.Errorf("stun: %q is no address: want IP:port or :port", a)
		}
		out = append(out, netip.AddrPortFrom(addr, uint16(n)))
	}
	return out, nil
}

func (c Config) statusToken() (string, error) {
	if c.StatusTokenFile == "" {
		return "", nil
	}
	b, err := os.ReadFile(c.StatusTokenFile)
	if err != nil {
		return "", fmt.Errorf("%w: statusTokenFile: %w", ErrConfig, err)
	}
	token := strings.TrimSpace(string(b))
	if len(token) < 16 {
		return "", fmt.Errorf("%w: statusTokenFile %s: %d characters: want 16 or more", ErrConfig, c.StatusTokenFile, len(token))
	}
	return token, nil
}

// tlsConfig demands a certificate of our CA from every client.
func (c Config) tlsConfig() (*tls.Config, error) {
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
	return &tls.Config{
		Certificates: []tls.Certificate{cert},
		ClientCAs:    pool,
		ClientAuth:   tls.RequireAndVerifyClientCert,
		MinVersion:   tls.VersionTLS13,
		NextProtos:   []string{"http/1.1"}, // a websocket upgrade needs HTTP/1.1
	}, nil
}

// identify is the node a TLS client is, by its certificate.
func identify(cert *x509.Certificate) (name wire.NodeName, identity, fingerprint string, err error) {
	if name, err = wire.NameOf(cert); err != nil {
		return "", "", "", err
	}
	identity, err = wire.IdentityOf(cert)
	return name, identity, fingerprintOf(cert), err
}
