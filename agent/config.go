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

// Config is the agent's configuration file. docs/configuration.md is made of the
// fields' comments (make docs): what an operator should know of a key stands there.
type Config struct {
	// Rendezvous is the URL of the rendezvous, https://host or https://host:port;
	// the port is 7443 unless given, a path is ignored. Required.
	Rendezvous string `yaml:"rendezvous"`
	// Certificate is the PEM file of the node's certificate, which says who the
	// node is: the name is its first subjectAltName of type DNS, or else its
	// common name, and the IKE identity is its subject. It, `key` and `ca` are
	// read again when they change.
	Certificate string `yaml:"certificate"`
	// Key is the PEM file of its private key, not encrypted.
	Key string `yaml:"key"`
	// CA is the PEM file of the authorities that have signed the node's
	// certificate, the rendezvous' and those of the peers.
	CA string `yaml:"ca"`
	// LoadCredentials gives the three to charon over VICI. `false` where they are
	// in charon's own configuration.
	LoadCredentials bool `yaml:"loadCredentials"`
	// Endpoint is what this node is to the others, in FabEdge's fields.
	Endpoint EndpointConfig `yaml:"endpoint"`
	// VICISocket is the path of charon's control socket.
	VICISocket string `yaml:"viciSocket"`
	// IKEPort is charon's UDP port for peers behind NAT; nothing but 4500 is
	// accepted.
	IKEPort uint16 `yaml:"ikePort"`
	// Punch is how far this node punches: `auto`; `ice-only`, openers and checks to
	// addresses that were named, but no prediction of and no search for ports; or
	// `never`. A community's annotation `bodkin.net/punch` and `bodkin node set`
	// can only restrict it further.
	Punch wire.Policy `yaml:"punch"`
	// Probe bounds the search for a port of a symmetric NAT.
	Probe ProbeConfig `yaml:"probe"`
	// PortMapping has this node's router forward a UDP port to `ikePort`, by PCP,
	// NAT-PMP or UPnP, where it speaks one of them: peers reach the node there even
	// through a symmetric NAT. Only the default gateway is asked. Renewed while the
	// agent runs, given back when it stops; a Connector never asks.
	PortMapping bool `yaml:"portMapping"`
	// Metered says that somebody pays for this node's bytes: an idle path is
	// checked every 5 min instead of every 30 s, or within 0.8 of the lifetime that
	// the NATs' mappings are known to have, and the rendezvous pings every 2 min.
	// With traffic a dead path is noticed as fast as elsewhere, an idle one later.
	// It holds for both ends of each of the node's pairs.
	Metered bool `yaml:"metered"`
	// DirectMark is put on what comes out of a direct tunnel. Not used with
	// kernel-libipsec.
	DirectMark DirectMark `yaml:"directMark"`
	// Mark is the socket mark (SO_MARK) that charon's own socket carries,
	// `charon.plugins.socket-default.fwmark`; 0 for none. Needed with
	// kernel-libipsec, see [how it works](how-it-works.md#the-shared-port).
	Mark uint32 `yaml:"mark"`
	// Socket is the path of the unix socket of `bodkin status`, `sas` and `ping`,
	// mode 0660; its directory is made.
	Socket string `yaml:"socket"`
	// Metrics is the TCP address of `GET /metrics`, such as 127.0.0.1:7481, open to
	// whoever can connect; empty for the unix socket alone.
	Metrics string `yaml:"metrics"`
	// StateDir is the directory of `agent.json`, the list of charon's connections
	// that are Bodkin's, and of `crl.der`, the rendezvous' list of revoked
	// certificates; made if it is not there.
	StateDir string `yaml:"stateDir"`
	// Renew has the agent ask the rendezvous for a new certificate when two thirds
	// of the present one's life are over, where the rendezvous issues certificates.
	// The files are written where `certificate` says.
	Renew bool `yaml:"renew"`
	// TeardownOnExit ends the tunnels when the agent stops; also the flag
	// `--teardown-on-exit`.
	TeardownOnExit bool `yaml:"teardownOnExit"`
	// LogLevel is `debug`, `info`, `warn` or `error`.
	LogLevel string `yaml:"logLevel"`
}

// DirectMark is a mark (and the bits of it that count) on packets that came out
// of a direct tunnel, so that the kernel does not hold those that came through
// the relay against the direct tunnel's policy.
type DirectMark struct {
	// Value is the mark that the kernel puts on what comes out of a direct tunnel,
	// so that packets which still come through the relay are not held against that
	// tunnel's policy. Not 0. Change it where something else on the node uses the
	// bit. Not used with kernel-libipsec.
	Value uint32 `yaml:"value"`
	// Mask has the bits of `directMark.value` that count.
	Mask uint32 `yaml:"mask"`
}

// defaultDirectMark is a bit that neither kube-proxy nor the common CNIs use.
const defaultDirectMark = 0x1000_0000

// ProbeConfig bounds the search for a port of a symmetric NAT.
type ProbeConfig struct {
	// Rate is in packets per second, of a search for a port of a peer's symmetric
	// NAT, 1 to 1000.
	Rate uint16 `yaml:"rate"`
	// Ports is how many this node opens when it is the symmetric side of a search,
	// 1 to 1024.
	Ports uint16 `yaml:"ports"`
	// Max is how many packets one search may send, 1 to 20000. An attempt lasts
	// 12 s; what `probe.rate` has not sent by then is not sent.
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
	// ID is the IKE identity; if set, it must be the certificate's subject.
	ID string `yaml:"id"`
	// Name is `cluster.node`; if set, it must be the certificate's name.
	Name string `yaml:"name"`
	// Subnets are the networks behind this node (pods), in CIDR. At least one; none
	// may overlap a subnet of another node.
	Subnets []string `yaml:"subnets"`
	// NodeSubnets are the node's own addresses in CIDR, usually one /32. They may be
	// the same as another node's (private addresses in different networks), but then
	// the pair gets no `-p2n` and `-n2p`.
	NodeSubnets []string `yaml:"nodeSubnets"`
	// PublicAddresses are IP addresses or host names at which edges reach this
	// node's charon; required for a Connector.
	PublicAddresses []string `yaml:"publicAddresses"`
	// Type is `Edge` or `Connector`.
	Type string `yaml:"type"`
	// Port is the UDP port that belongs to `endpoint.publicAddresses`; 0 is 4500.
	Port uint16 `yaml:"port"`
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
