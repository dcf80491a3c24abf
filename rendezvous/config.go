package rendezvous

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/bodkin-net/bodkin/internal/yamlfile"
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
	// Connectors are the nodes that may be endpoints of type Connector, to
	// whom every edge of their cluster keeps a tunnel. Empty is FabEdge's
	// name for it, CLUSTER.connector, in each cluster.
	Connectors []string `yaml:"connectors"`
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
		Connectors:  []string{},
		LogLevel:    "info",
	}
}

// LoadConfig reads a configuration file over the defaults.
func LoadConfig(path string) (Config, error) {
	cfg := DefaultConfig()
	if err := yamlfile.Load(path, &cfg); err != nil {
		return cfg, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if err := cfg.check(); err != nil {
		return cfg, fmt.Errorf("%w: %s: %w", ErrConfig, path, err)
	}
	return cfg, nil
}

func (c Config) check() error {
	for _, at := range []struct{ key, addr string }{{"listen", c.Listen}, {"status", c.Status}} {
		_, port, err := net.SplitHostPort(at.addr)
		if _, errPort := strconv.ParseUint(port, 10, 16); err != nil || errPort != nil {
			return fmt.Errorf("%s: %q is no address: want host:port, such as 127.0.0.1:7480 or :7443", at.key, at.addr)
		}
	}
	if _, err := c.stunAddrs(); err != nil {
		return err
	}
	if c.STUN[0] == c.STUN[1] && !strings.HasSuffix(c.STUN[0], ":0") {
		return fmt.Errorf("stun: %s twice: want two ports", c.STUN[0])
	}
	for _, name := range c.Connectors {
		if err := wire.NodeName(name).Validate(); err != nil {
			return fmt.Errorf("connectors: %w", err)
		}
	}
	if c.Store == "" {
		return errors.New("store: empty: want the path of the database file")
	}
	if c.AdminSocket == "" {
		return errors.New("adminSocket: empty: want the path of a unix socket")
	}
	if new(slog.Level).UnmarshalText([]byte(c.LogLevel)) != nil {
		return fmt.Errorf("logLevel: %q: want debug, info, warn or error", c.LogLevel)
	}
	if !c.statusIsLocal() && c.StatusTokenFile == "" {
		return fmt.Errorf("status: %s is reachable from outside: set statusTokenFile too, or listen on 127.0.0.1", c.Status)
	}
	return nil
}

// mayConnect reports whether a node may be a Connector. A node's own word is not
// enough: every edge of its cluster would open a tunnel to it.
func (c Config) mayConnect(name wire.NodeName) bool {
	if len(c.Connectors) == 0 {
		return string(name) == name.Cluster()+".connector"
	}
	return slices.Contains(c.Connectors, string(name))
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
