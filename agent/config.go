package agent

import (
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/bodkin-net/bodkin/agent/charon"
	"github.com/bodkin-net/bodkin/internal/certfile"
	"github.com/bodkin-net/bodkin/internal/yamlfile"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// ErrConfig marks an error of the configuration: starting again unchanged
// cannot help.
var ErrConfig = errors.New("configuration")

// Config is the agent's configuration file. docs/configuration.md explains
// each key.
type Config struct {
	// Rendezvous is the URL of the signalling service, https://host:7443.
	Rendezvous string `yaml:"rendezvous"`
	// Certificate, Key and CA are PEM files, the same that strongSwan uses.
	Certificate string `yaml:"certificate"`
	Key         string `yaml:"key"`
	CA          string `yaml:"ca"`
	// LoadCredentials gives the three to charon too. Turn it off where they
	// are in charon's own configuration.
	LoadCredentials bool `yaml:"loadCredentials"`
	// Endpoint describes this node, in FabEdge's fields.
	Endpoint EndpointConfig `yaml:"endpoint"`
	// VICISocket is charon's control socket.
	VICISocket string `yaml:"viciSocket"`
	// IKEPort is the UDP port charon listens on for NATed peers.
	IKEPort uint16 `yaml:"ikePort"`
	// Punch is how far punching may go.
	Punch wire.Policy `yaml:"punch"`
	// Probe bounds the search for a port of a symmetric NAT.
	Probe ProbeConfig `yaml:"probe"`
	// PortMapping has the router asked to forward a port to IKEPort.
	PortMapping bool `yaml:"portMapping"`
	// Metered: somebody pays for each byte. What keeps tunnels known to be alive
	// is sent as seldom as the node's NAT permits.
	Metered bool `yaml:"metered"`
	// DirectMark marks what came out of a direct tunnel, see there. With ESP in
	// the kernel only.
	DirectMark DirectMark `yaml:"directMark"`
	// Mark is the socket mark (SO_MARK) charon's own socket carries, 0 for
	// none. Needed with kernel-libipsec.
	Mark uint32 `yaml:"mark"`
	// Socket is the unix socket of `bodkin status`.
	Socket string `yaml:"socket"`
	// Metrics is the TCP address that GET /metrics is served at, empty for the unix
	// socket alone.
	Metrics string `yaml:"metrics"`
	// StateDir keeps the list of connections that are ours.
	StateDir string `yaml:"stateDir"`
	// Renew has the agent ask for a new certificate before the present one ends,
	// where the rendezvous issues certificates.
	Renew bool `yaml:"renew"`
	// TeardownOnExit ends the tunnels when the agent stops.
	TeardownOnExit bool `yaml:"teardownOnExit"`
	// LogLevel is debug, info, warn or error.
	LogLevel string `yaml:"logLevel"`
}

// DirectMark is a mark (and the bits of it that count) on packets that came out
// of a direct tunnel, so that the kernel does not hold those that came through
// the relay against the direct tunnel's policy. The bits must not be used by
// anything else on the node.
type DirectMark struct {
	Value uint32 `yaml:"value"`
	Mask  uint32 `yaml:"mask"`
}

// defaultDirectMark is a bit that neither kube-proxy nor the common CNIs use.
const defaultDirectMark = 0x1000_0000

// ProbeConfig bounds the search for a port of a symmetric NAT.
type ProbeConfig struct {
	// Rate is in packets per second.
	Rate uint16 `yaml:"rate"`
	// Ports is how many are opened on the symmetric side.
	Ports uint16 `yaml:"ports"`
	// Max is how many packets one attempt may send from the other side.
	Max uint16 `yaml:"max"`
}

// Defaults and bounds of a search. With 256 of 64,512 ports open, 2,400 probes
// miss them all once in 16,000 attempts; at 300 a second, 25 kB/s on the wire,
// they take 8 s. The bounds keep a search from looking like an attack, and its
// sockets below what a process may open.
const (
	probeRate, probeRateMax   = 300, 1000
	probePorts, probePortsMax = 256, 1024
	probeMax, probeMaxMax     = 2400, 20_000
)

// EndpointConfig is FabEdge's endpoint. ID and Name default to what the
// certificate says.
type EndpointConfig struct {
	ID              string   `yaml:"id"`
	Name            string   `yaml:"name"`
	Subnets         []string `yaml:"subnets"`
	NodeSubnets     []string `yaml:"nodeSubnets"`
	PublicAddresses []string `yaml:"publicAddresses"`
	Type            string   `yaml:"type"`
	Port            uint16   `yaml:"port"`
}

// DefaultConfig is what a key that is not given means.
func DefaultConfig() Config {
	return Config{
		Certificate:     "/etc/bodkin/node.crt",
		Key:             "/etc/bodkin/node.key",
		CA:              "/etc/bodkin/ca.crt",
		LoadCredentials: true,
		Endpoint:        EndpointConfig{Type: string(wire.Edge)},
		VICISocket:      charon.DefaultSocket,
		IKEPort:         charon.DefaultPort,
		Punch:           wire.PolicyAuto,
		PortMapping:     true,
		DirectMark:      DirectMark{Value: defaultDirectMark, Mask: defaultDirectMark},
		Probe:           ProbeConfig{Rate: probeRate, Ports: probePorts, Max: probeMax},
		Socket:          "/run/bodkin/agent.sock",
		StateDir:        "/var/lib/bodkin",
		Renew:           true,
		LogLevel:        "info",
	}
}

// LoadConfig reads a configuration file over the defaults, and checks that an
// agent can run with it.
func LoadConfig(path string) (Config, error) {
	cfg, err := ReadConfig(path)
	if err != nil {
		return cfg, err
	}
	if _, err := newIdentity(cfg); err != nil {
		return cfg, fmt.Errorf("%w: %s: %w", ErrConfig, path, err)
	}
	return cfg, nil
}

// ReadConfig reads a configuration file over the defaults, without the files that
// it names.
func ReadConfig(path string) (Config, error) {
	cfg := DefaultConfig()
	if err := yamlfile.Load(path, &cfg); err != nil {
		return cfg, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return cfg, nil
}

// identity is what the configuration comes to: who this node is and where it
// goes.
type identity struct {
	endpoint wire.Endpoint
	host     string // of the rendezvous, with its port
	url      string // wss://host:port/v1/agent
	// current changes when the certificate is renewed; the rest does not.
	current atomic.Pointer[credentials]
}

func newIdentity(cfg Config) (*identity, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	id := &identity{}
	var err error
	if id.host, err = ParseRendezvous(cfg.Rendezvous); err != nil {
		return nil, err
	}
	id.url = "wss://" + id.host + "/v1/agent"
	now := time.Now()
	creds, err := readCredentials(cfg, now)
	if err != nil {
		return nil, err
	}
	// A clock that is behind may be set any moment, as after the start of a
	// machine without a battery for it; a certificate does not grow younger.
	if certfile.ValidityOf(creds.leaf, now) == certfile.Expired {
		return nil, fmt.Errorf("%w; a node that joined with a token joins again with another: bodkin join", creds.validNow(cfg, now))
	}
	if id.endpoint, err = cfg.Endpoint.resolve(creds.leaf); err != nil {
		return nil, err
	}
	id.current.Store(creds)
	return id, nil
}

// check is what can be said without the files that the configuration names.
func (cfg Config) check() error {
	if _, err := ParseRendezvous(cfg.Rendezvous); err != nil {
		return err
	}
	if cfg.IKEPort != charon.DefaultPort {
		return fmt.Errorf("ikePort: %d: charon has to be on UDP %d: a peer reached on another port would not expect the non-ESP marker (RFC 3948)",
			cfg.IKEPort, charon.DefaultPort)
	}
	if m := cfg.DirectMark; m.Value == 0 || m.Value&^m.Mask != 0 {
		return fmt.Errorf("directMark: %#x/%#x: want a value other than 0 inside its mask", m.Value, m.Mask)
	}
	if new(slog.Level).UnmarshalText([]byte(cfg.LogLevel)) != nil {
		return fmt.Errorf("logLevel: %q: want debug, info, warn or error", cfg.LogLevel)
	}
	return cfg.validatePunch()
}

func (cfg Config) validatePunch() error {
	if cfg.Punch.Validate() != nil {
		return fmt.Errorf("punch: %q: want %s, %s or %s", cfg.Punch, wire.PolicyAuto, wire.PolicyICEOnly, wire.PolicyNever)
	}
	for _, n := range []struct {
		key        string
		value, max uint16
	}{
		{"rate", cfg.Probe.Rate, probeRateMax}, {"ports", cfg.Probe.Ports, probePortsMax}, {"max", cfg.Probe.Max, probeMaxMax},
	} {
		if n.value < 1 || n.value > n.max {
			return fmt.Errorf("probe.%s: %d: want 1 to %d; punch: %s searches for no ports", n.key, n.value, n.max, wire.PolicyICEOnly)
		}
	}
	return nil
}

// ParseRendezvous is the host and port of a rendezvous' URL.
func ParseRendezvous(s string) (host string, err error) {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "wss" {
		return "", fmt.Errorf("rendezvous: %q is no URL: want https://host:7443", s)
	}
	if u.Port() == "" {
		u.Host = net.JoinHostPort(u.Hostname(), "7443")
	}
	return u.Host, nil
}

// resolve turns the endpoint section into the wire's, and holds it against the
// certificate: what the certificate does not say, the rendezvous refuses.
func (e EndpointConfig) resolve(cert *x509.Certificate) (wire.Endpoint, error) {
	name, err := wire.NameOf(cert)
	if err != nil {
		return wire.Endpoint{}, err
	}
	subject, err := wire.IdentityOf(cert)
	if err != nil {
		return wire.Endpoint{}, err
	}
	if e.Name != "" && e.Name != string(name) {
		return wire.Endpoint{}, fmt.Errorf("endpoint.name: %s, but the certificate is %s's: use %s or that node's certificate", e.Name, name, name)
	}
	if e.ID != "" && !wire.SameIdentity(e.ID, subject) {
		return wire.Endpoint{}, fmt.Errorf("endpoint.id: %q, but the certificate's subject is %q: use that, or leave it out", e.ID, subject)
	}
	out := wire.Endpoint{
		ID: subject, Name: name, Type: wire.EndpointType(e.Type),
		PublicAddresses: e.PublicAddresses, Port: e.Port,
	}
	if out.Subnets, err = prefixes("endpoint.subnets", e.Subnets); err != nil {
		return wire.Endpoint{}, err
	}
	if out.NodeSubnets, err = prefixes("endpoint.nodeSubnets", e.NodeSubnets); err != nil {
		return wire.Endpoint{}, err
	}
	if len(out.Subnets) == 0 {
		return wire.Endpoint{}, errors.New("endpoint.subnets: empty: want the subnets behind this node, such as 10.233.66.0/24")
	}
	if out.Type == wire.Connector && len(out.PublicAddresses) == 0 {
		return wire.Endpoint{}, errors.New("endpoint.publicAddresses: empty: a Connector needs an address edges can reach")
	}
	return out, out.Validate()
}

func prefixes(key string, texts []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range texts {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("%s: %q is no CIDR: want something like 10.233.66.0/24", key, s)
		}
		if p.Masked() != p {
			return nil, fmt.Errorf("%s: %s has bits set behind its mask: want %s", key, p, p.Masked())
		}
		out = append(out, p)
	}
	return out, nil
}
