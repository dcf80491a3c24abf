package rendezvous

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/bodkin-net/bodkin/internal/pki"
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
	// CAKey is the CA's private key, by which the rendezvous issues the nodes'
	// certificates. Empty: an existing CA is used as it is, and nothing is issued.
	CAKey string `yaml:"caKey"`
	// Approval is auto, or manual: an operator has to approve each node.
	Approval Approval `yaml:"approval"`
	// CertificateLifetime is a node certificate's, such as 2160h.
	CertificateLifetime string `yaml:"certificateLifetime"`
	// STUN are the two UDP addresses of the STUN service. Two ports tell what
	// kind of mapping a NAT makes.
	STUN []string `yaml:"stun"`
	// STUNAlternates are two more UDP ports of the STUN service, one beside
	// each of STUN on the same address: what comes from there unasked tells
	// what a NAT lets in.
	STUNAlternates []uint16 `yaml:"stunAlternates"`
	// PublicAddresses are addresses the rendezvous is reached at from outside.
	// Agents that dialled it over IPv6 find the STUN service over IPv4 there,
	// and the other way round.
	PublicAddresses []string `yaml:"publicAddresses"`
	// Status is the TCP address of the status page and API. Other than on
	// loopback it speaks TLS and demands a credential of `bodkin access`.
	Status string `yaml:"status"`
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
	// Relay is what is done for pairs that are not direct.
	Relay RelayConfig `yaml:"relay"`
	// LogLevel is debug, info, warn or error.
	LogLevel string `yaml:"logLevel"`
}

// Approval says what lets a node in that has a certificate.
type Approval string

// Approvals.
const (
	ApprovalAuto   Approval = "auto"
	ApprovalManual Approval = "manual"
)

// minLifetime is a certificate's least: agents ask for the next one after two
// thirds of it, and may be away for a while just then.
const minLifetime = time.Minute

// RelayConfig says whether connectors carry what has no direct path.
type RelayConfig struct {
	// Enabled gives each edge a way through its cluster's connector to those it
	// shares a community with.
	Enabled bool `yaml:"enabled"`
	// Ranges are the networks that this way leads to, in CIDR. Empty is what
	// follows from the members' subnets.
	Ranges []string `yaml:"ranges"`
}

// parse checks what a Peers message must be able to carry.
func (r RelayConfig) parse() (relaying, error) {
	out := relaying{enabled: r.Enabled}
	if len(r.Ranges) > wire.MaxSubnets {
		return out, fmt.Errorf("relay.ranges: %d ranges: want at most %d", len(r.Ranges), wire.MaxSubnets)
	}
	for _, text := range r.Ranges {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return out, fmt.Errorf("relay.ranges: %q is no CIDR: want something like 10.233.0.0/16", text)
		}
		if p != p.Masked() {
			return out, fmt.Errorf("relay.ranges: %s has bits set behind its mask: want %s", p, p.Masked())
		}
		widest := widestRange4
		if p.Addr().Is6() {
			widest = widestRange6
		}
		if p.Bits() < widest {
			return out, fmt.Errorf("relay.ranges: %s would draw too many addresses into the tunnels: want /%d or longer", p, widest)
		}
		out.ranges = append(out.ranges, p)
	}
	return out, nil
}

// DefaultConfig is what a key that is not given means.
func DefaultConfig() Config {
	return Config{
		Listen:              ":7443",
		Certificate:         "/etc/bodkin/rendezvous.crt",
		Key:                 "/etc/bodkin/rendezvous.key",
		CA:                  "/etc/bodkin/ca.crt",
		Approval:            ApprovalAuto,
		CertificateLifetime: inHours(pki.NodeLifetime),
		STUN:                []string{":3478", ":3479"},
		STUNAlternates:      []uint16{3480, 3481},
		PublicAddresses:     []string{},
		Status:              "127.0.0.1:7480",
		AdminSocket:         "/run/bodkin/rendezvous.sock",
		Store:               "/var/lib/bodkin/rendezvous.db",
		Connectors:          []string{},
		Relay:               RelayConfig{Enabled: true, Ranges: []string{}},
		LogLevel:            "info",
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

// Retired are the keys of former versions, and what to do instead.
func (Config) Retired() map[string]string {
	return map[string]string{
		"statusTokenFile": "create credentials with `bodkin access create`, by which the page and the API are then reached over https",
	}
}

func (c Config) check() error {
	for _, at := range []struct{ key, addr string }{{"listen", c.Listen}, {"status", c.Status}} {
		_, port, err := net.SplitHostPort(at.addr)
		if _, errPort := strconv.ParseUint(port, 10, 16); err != nil || errPort != nil {
			return fmt.Errorf("%s: %q is no address: want host:port, such as 127.0.0.1:7480 or :7443", at.key, at.addr)
		}
	}
	if _, err := c.stun(); err != nil {
		return err
	}
	if _, err := c.publicAddrs(); err != nil {
		return err
	}
	if _, err := c.Relay.parse(); err != nil {
		return err
	}
	if c.Approval != ApprovalAuto && c.Approval != ApprovalManual {
		return fmt.Errorf("approval: %q: want %s or %s", c.Approval, ApprovalAuto, ApprovalManual)
	}
	if _, err := c.certificateLifetime(); err != nil {
		return err
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
	return nil
}

// certificateLifetime is CertificateLifetime, parsed.
func (c Config) certificateLifetime() (time.Duration, error) {
	d, err := time.ParseDuration(c.CertificateLifetime)
	if err != nil || d < minLifetime {
		return 0, fmt.Errorf("certificateLifetime: %q: want a duration of %s or more, such as %s", c.CertificateLifetime, minLifetime, inHours(pki.NodeLifetime))
	}
	return d, nil
}

func inHours(d time.Duration) string { return strconv.Itoa(int(d.Hours())) + "h" }

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

// stun is where the STUN service is to listen.
func (c Config) stun() (STUNConfig, error) {
	var out STUNConfig
	if len(c.STUN) != len(out.Listen) {
		return out, fmt.Errorf("stun: %d addresses: want two ports, such as [\":3478\", \":3479\"]", len(c.STUN))
	}
	if len(c.STUNAlternates) != len(out.Alternates) {
		return out, fmt.Errorf("stunAlternates: %d ports: want two, such as [3480, 3481]", len(c.STUNAlternates))
	}
	out.Alternates = [2]uint16(c.STUNAlternates)
	for i, a := range c.STUN {
		host, port, err := net.SplitHostPort(a)
		n, errPort := strconv.ParseUint(port, 10, 16)
		addr := netip.IPv6Unspecified()
		var errAddr error
		if host != "" {
			addr, errAddr = netip.ParseAddr(host)
		}
		if err != nil || errPort != nil || errAddr != nil {
			return out, fmt.Errorf("stun: %q is no address: want IP:port or :port", a)
		}
		out.Listen[i] = netip.AddrPortFrom(addr, uint16(n))
	}
	places := out.places()
	for i, at := range places {
		if at.Port() != 0 && slices.Contains(places[:i], at) {
			return out, fmt.Errorf("stun, stunAlternates: %s twice: want four different ports", at)
		}
	}
	return out, nil
}

// publicAddrs are PublicAddresses, parsed. A Welcome must be able to carry them.
func (c Config) publicAddrs() ([]netip.Addr, error) {
	const most = 4
	if len(c.PublicAddresses) > most {
		return nil, fmt.Errorf("publicAddresses: %d addresses: want at most %d", len(c.PublicAddresses), most)
	}
	var out []netip.Addr
	for _, text := range c.PublicAddresses {
		a, err := netip.ParseAddr(text)
		if err != nil || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" {
			return nil, fmt.Errorf("publicAddresses: %q: want an address that agents reach, such as 198.51.100.1 or 2001:db8::1", text)
		}
		out = append(out, a.Unmap())
	}
	return out, nil
}
