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

// Config is the rendezvous' configuration file. docs/configuration.md is made of
// the fields' comments (make docs): what an operator should know of a key stands
// there.
type Config struct {
	// Listen is the TCP address agents connect to, `host:port` or `:port`.
	Listen string `yaml:"listen"`
	// Certificate is the PEM file of the rendezvous' certificate; it must hold the
	// address or name that agents dial as subjectAltName. It, `key` and `ca` are
	// read again when they change. With `caKey` the rendezvous renews it by itself.
	Certificate string `yaml:"certificate"`
	// Key is the PEM file of its private key, not encrypted.
	Key string `yaml:"key"`
	// CA is the PEM file of the authorities; an agent is let in with a certificate
	// that one of them has signed.
	CA string `yaml:"ca"`
	// CAKey is the PEM file of the CA's private key, by which nodes join with
	// tokens and renew their certificates. Empty: an existing CA, such as
	// FabEdge's, is used as it is and nothing is issued.
	CAKey string `yaml:"caKey"`
	// Approval is what lets a node in that has a certificate: `auto`, nothing more;
	// `manual`, `bodkin node approve`. It holds for nodes that are known already
	// and were never approved, too; sessions that stand are not ended by it.
	Approval Approval `yaml:"approval"`
	// CertificateLifetime is how long a node's certificate is good, in Go's form
	// (`2160h`), 1m or more. Agents renew theirs when two thirds are over.
	CertificateLifetime string `yaml:"certificateLifetime"`
	// STUN are the two UDP addresses of the STUN service, `IP:port` or `:port`;
	// without an IP it serves IPv4 and IPv6 and answers from the address that was
	// asked. The port numbers are told to agents as they stand, who use all of them
	// with the address they dialled: a port mapping in front must not change them,
	// and agents need all ports on one address. Two different IPs of one family are
	// for other clients (change-IP, RFC 5780).
	STUN []string `yaml:"stun"`
	// STUNAlternates are two more UDP ports of the STUN service, one for each of
	// `stun` on the same IP: what comes from there unasked shows what a NAT lets in.
	// Told to agents, and to be mapped, like those of `stun`; 0 is a port of the
	// system's choice.
	STUNAlternates []uint16 `yaml:"stunAlternates"`
	// PublicAddresses are IPs, at most 4, under which the STUN service is reached
	// from outside, the ports unchanged: an agent that dialled over IPv6 asks there
	// for its IPv4 address, and the other way round. Leave it empty where the
	// rendezvous has only one family.
	PublicAddresses []string `yaml:"publicAddresses"`
	// Status is the TCP address of the status page, the JSON API and the metrics.
	// On loopback (`localhost` too) it speaks HTTP, and who has no credential may
	// read; elsewhere it speaks HTTPS with `certificate` and asks for one
	// (`bodkin access`).
	Status string `yaml:"status"`
	// AdminSocket is the path of the unix socket that the commands use which ask the
	// rendezvous, mode 0660; its directory must exist.
	AdminSocket string `yaml:"adminSocket"`
	// Store is the path of the database, made with mode 0600 if there is none; its
	// directory must exist.
	Store string `yaml:"store"`
	// CommunitiesDir is a directory of Community files (`*.yaml`, `*.yml`, no dot
	// files) that is watched; empty for none.
	CommunitiesDir string `yaml:"communitiesDir"`
	// Connectors are the nodes that may call themselves `type: Connector`, to whom
	// every edge of their cluster keeps a tunnel; empty means FabEdge's name for it,
	// `CLUSTER.connector`, in each cluster.
	Connectors []string `yaml:"connectors"`
	// Relay is what is done for pairs that are not direct.
	Relay RelayConfig `yaml:"relay"`
	// LogLevel is `debug`, `info`, `warn` or `error`.
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
	// Enabled has members of a community that have no direct tunnel reach each
	// other through the connector of their cluster; `false`: they do not reach each
	// other.
	Enabled bool `yaml:"enabled"`
	// Ranges are the networks that the relay leads to, at most 64, of /8 (IPv6: /32)
	// or longer. Each member's subnets must lie inside and be narrower, or the
	// member is not relayed. Empty is worked out: each member's subnet widened to
	// the /16 (IPv6: /48) around it, by one bit if it is as wide already. Set it
	// where pods use other addresses of those networks for something else: what they
	// send there would go to the connector, and be dropped.
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
	return map[string]string{ //nolint:gosec // names, no credentials
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
