package rendezvous

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

func TestLoadConfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rendezvous.yaml")
	write(t, path, `# a full one
listen: 198.51.100.1:7443
certificate: /a.crt
key: /a.key
ca: /ca.crt
stun: ["198.51.100.1:3478", "198.51.100.2:3479"]
stunAlternates: [3480, 0]
publicAddresses: [198.51.100.1, "2001:db8::1"]
status: "[::1]:7480"
adminSocket: /a.sock
store: /a.db
communitiesDir: /communities
connectors: [beijing.gate]
relay:
  enabled: false
  ranges: [10.233.0.0/16]
logLevel: debug
`)
	got, err := LoadConfig(path)
	want := Config{
		Listen: "198.51.100.1:7443", Certificate: "/a.crt", Key: "/a.key", CA: "/ca.crt", Approval: ApprovalAuto, CertificateLifetime: "2160h",
		STUN: []string{"198.51.100.1:3478", "198.51.100.2:3479"}, STUNAlternates: []uint16{3480, 0},
		PublicAddresses: []string{"198.51.100.1", "2001:db8::1"},
		Status:          "[::1]:7480",
		AdminSocket:     "/a.sock", Store: "/a.db", CommunitiesDir: "/communities",
		Connectors: []string{"beijing.gate"}, Relay: RelayConfig{Ranges: []string{"10.233.0.0/16"}}, LogLevel: "debug",
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestConfigDefaults(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rendezvous.yaml")
	for _, content := range []string{"", "# nothing\n", "{}\n", "listen:\n"} {
		write(t, path, content)
		if got, err := LoadConfig(path); err != nil || !reflect.DeepEqual(got, DefaultConfig()) {
			t.Errorf("%q: %+v, %v", content, got, err)
		}
	}
}

// Each error is one line that names file and key and says what would be right.
func TestConfigErrors(t *testing.T) {
	tests := []struct{ name, content, want string }{
		{"no YAML", "listen: [\n", "yaml: line"},
		{"no mapping", "- listen\n", "line 1: the file: want keys: listen, "},
		{"unknown key", "store: /a\nlisten_on: :7443\n", "line 2: listen_on: unknown key: want one of listen, certificate, key, ca"},
		{"key of a Go field", "Listen: :7443\n", "line 1: Listen: unknown key"},
		{"a key twice", "store: /a\nstore: /b\n", "already defined"},
		{"list for a text", "listen: [a, b]\n", "line 1: listen: want one value"},
		{"text for a list", "store: /a\nstun: \":3478\"\n", "line 2: stun: want a list"},
		{"listen without a port", "listen: 198.51.100.1\n", `listen: "198.51.100.1" is no address: want host:port`},
		{"listen on a port that is none", "listen: :seven\n", `listen: ":seven" is no address`},
		{"status without a port", "status: localhost\n", `status: "localhost" is no address`},
		{"a key of former versions", "status: :7480\nstatusTokenFile: /token\n", "line 2: statusTokenFile: is no key any more: create credentials with `bodkin access create`"},
		{"one STUN port", "stun: [\":3478\"]\n", "stun: 1 addresses: want two ports"},
		{"three STUN ports", "stun: [\":1\", \":2\", \":3\"]\n", "stun: 3 addresses: want two ports"},
		{"STUN host name", "stun: [\"stun.example.com:3478\", \":3479\"]\n", `stun: "stun.example.com:3478" is no address: want IP:port or :port`},
		{"STUN port out of range", "stun: [\":3478\", \":65536\"]\n", `stun: ":65536" is no address`},
		{"one STUN port twice", "stun: [\":3478\", \":3478\"]\n", "stun, stunAlternates: [::]:3478 twice: want four different ports"},
		{"an alternate that is asked", "stunAlternates: [3479, 3481]\n", "stun, stunAlternates: [::]:3479 twice: want four"},
		{"one alternate twice", "stunAlternates: [3480, 3480]\n", "stun, stunAlternates: [::]:3480 twice: want four"},
		{"one alternate", "stunAlternates: [3480]\n", "stunAlternates: 1 ports: want two, such as [3480, 3481]"},
		{"alternate out of range", "stunAlternates: [3480, 65536]\n", "line 1: stunAlternates: want a list"},
		{"public host name", "publicAddresses: [stun.example.com]\n", `publicAddresses: "stun.example.com": want an address that agents reach`},
		{"public address with a port", "publicAddresses: [\"198.51.100.1:3478\"]\n", `publicAddresses: "198.51.100.1:3478": want an address`},
		{"no public address", "publicAddresses: [0.0.0.0]\n", `publicAddresses: "0.0.0.0": want an address`},
		{"five public addresses", "publicAddresses: [192.0.2.1, 192.0.2.2, 192.0.2.3, 192.0.2.4, 192.0.2.5]\n", "publicAddresses: 5 addresses: want at most 4"},
		{"no store", "store: \"\"\n", "store: empty: want the path"},
		{"no admin socket", "adminSocket: \"\"\n", "adminSocket: empty: want the path"},
		{"connector that is no name", "connectors: [\"Beijing Connector\"]\n", "connectors: "},
		{"relay range that is no CIDR", "relay: {ranges: [10.233.0.0]}\n", `relay.ranges: "10.233.0.0" is no CIDR: want something like 10.233.0.0/16`},
		{"relay range with host bits", "relay: {ranges: [10.233.1.0/16]}\n", "relay.ranges: 10.233.1.0/16 has bits set behind its mask: want 10.233.0.0/16"},
		{"relay range of everything", "relay: {ranges: [0.0.0.0/0]}\n", "relay.ranges: 0.0.0.0/0 would draw too many addresses into the tunnels: want /8 or longer"},
		{"relay range of all of IPv6", "relay: {ranges: [\"fd00::/8\"]}\n", "relay.ranges: fd00::/8 would draw too many addresses into the tunnels: want /32 or longer"},
		{"unknown key of relay", "relay: {range: []}\n", "relay.range: unknown key: want one of enabled, ranges"},
		{"log level", "logLevel: loud\n", `logLevel: "loud": want debug, info, warn or error`},
	}
	path := filepath.Join(t.TempDir(), "rendezvous.yaml")
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			write(t, path, tt.content)
			_, err := LoadConfig(path)
			wantConfigError(t, err, "configuration: "+path+": ", tt.want)
		})
	}
	_, err := LoadConfig(path + ".absent")
	wantConfigError(t, err, "configuration: ", path+".absent", "no such file")
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func wantConfigError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if !errors.Is(err, ErrConfig) {
		t.Fatalf("%v, want an ErrConfig", err)
	}
	text := err.Error()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("error %q lacks %q", text, part)
		}
	}
	if strings.Contains(text, "\n") {
		t.Errorf("more than one line: %q", text)
	}
}

// What the configuration names is looked at before anything is opened.
func TestNewErrors(t *testing.T) {
	tests := []struct {
		name   string
		change func(t *testing.T, c *Config)
		want   []string
	}{
		{"no certificate", func(t *testing.T, c *Config) { c.Certificate += ".absent" }, []string{"certificate ", ".absent", "no such file"}},
		{"another's key", func(t *testing.T, c *Config) { c.Key = newSite(t).config.Key }, []string{"certificate ", "key ", "does not match"}},
		{"no CA", func(t *testing.T, c *Config) { c.CA += ".absent" }, []string{"ca: ", "no such file"}},
		{"a CA that is none", func(t *testing.T, c *Config) { c.CA = c.Key }, []string{"ca: ", "holds no PEM certificate"}},
		{"a key out of place", func(t *testing.T, c *Config) { c.STUN = nil }, []string{"stun: 0 addresses"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := newSite(t).config
			tt.change(t, &cfg)
			leaks := goleak.IgnoreCurrent()
			server, err := New(cfg, slog.New(slog.DiscardHandler))
			if server != nil {
				server.Close()
			}
			wantConfigError(t, err, append(tt.want, "configuration: ")...)
			goleak.VerifyNone(t, leaks)
		})
	}
}

// A port that is taken is no error of the configuration: waiting may heal it.
func TestNewGivesBackWhatItOpened(t *testing.T) {
	s := newSite(t)
	running := newSite(t).start()
	for key, change := range map[string]func(*Config){
		"listen: ": func(c *Config) { c.Listen = running.server.agents.Addr().String() },
		"status: ": func(c *Config) { c.Status = running.server.status.Addr().String() },
		"stun: ":   func(c *Config) { c.STUN[0] = running.server.stun.Addrs()[0].String() },
		"adminSocket: ": func(c *Config) {
			c.AdminSocket = filepath.Join(filepath.Dir(c.AdminSocket), "absent", "sock")
		},
	} {
		cfg := s.config
		cfg.STUN = []string{"127.0.0.1:0", "127.0.0.1:0"} // its own: change writes to it
		change(&cfg)
		server, err := New(cfg, slog.New(slog.DiscardHandler))
		if server != nil || err == nil || !strings.HasPrefix(err.Error(), key) || errors.Is(err, ErrConfig) {
			t.Errorf("%v, want an error of %s", err, key)
		}
	}
	s.start() // the store is free, and so is the socket
}

func TestSTUNOfConfig(t *testing.T) {
	tests := []struct {
		name       string
		stun       []string
		alternates []uint16
		want       stunPlaces
	}{
		{
			"all addresses and one", []string{":3478", "198.51.100.1:3479"}, []uint16{3480, 3481},
			stunTestPlaces("[::]:3478", "198.51.100.1:3479", "[::]:3480", "198.51.100.1:3481"),
		},
		{
			"two addresses, the same ports", []string{"198.51.100.1:3478", "198.51.100.2:3478"}, []uint16{3480, 3480},
			stunTestPlaces("198.51.100.1:3478", "198.51.100.2:3478", "198.51.100.1:3480", "198.51.100.2:3480"),
		},
		{
			"any ports", []string{"127.0.0.1:0", "127.0.0.1:0"}, []uint16{0, 0},
			stunTestPlaces("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"),
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Config{STUN: tt.stun, STUNAlternates: tt.alternates}.stun()
			if err != nil || got.places() != tt.want {
				t.Errorf("%v, %v, want %v", got.places(), err, tt.want)
			}
		})
	}
}

func TestMayConnect(t *testing.T) {
	tests := []struct {
		connectors []string
		name       wire.NodeName
		want       bool
	}{
		{nil, "beijing.connector", true},
		{nil, "shanghai.connector", true},
		{nil, "beijing.edge1", false},
		{nil, "beijing.edge1.connector", false},
		{nil, "connector", false},
		{[]string{"beijing.gate"}, "beijing.gate", true},
		{[]string{"beijing.gate"}, "beijing.connector", false},
	}
	for _, tt := range tests {
		if got := (Config{Connectors: tt.connectors}).mayConnect(tt.name); got != tt.want {
			t.Errorf("connectors %q: %s: %v, want %v", tt.connectors, tt.name, got, tt.want)
		}
	}
}
