package agent

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/e2e/lab"
	"github.com/bodkin-net/bodkin/internal/unixsock"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// goodConfig are the lines of a configuration that works, by key; the endpoint
// section comes last.
func goodConfig(t *testing.T, pki *lab.PKI, dir string) map[string]string {
	t.Helper()
	cert, key, err := pki.Issue("beijing.edge1", lab.CertOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return map[string]string{
		"rendezvous": "https://203.0.113.1", "certificate": cert, "key": key, "ca": pki.CAPath(),
		"socket": filepath.Join(dir, "agent.sock"), "stateDir": filepath.Join(dir, "state"),
		"viciSocket": filepath.Join(dir, "charon.vici"),
		"endpoint":   "{subnets: [10.233.66.0/24], nodeSubnets: [10.22.46.30/32]}",
	}
}

func newPKI(t *testing.T) *lab.PKI {
	t.Helper()
	pki, err := lab.NewPKI(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return pki
}

func writeConfig(t *testing.T, values map[string]string) string {
	t.Helper()
	var lines []string
	for k, v := range values {
		lines = append(lines, k+": "+v+"\n")
	}
	slices.Sort(lines)
	return writeFile(t, "agent.yaml", strings.Join(lines, ""))
}

func writeFile(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLoadConfig(t *testing.T) {
	values := goodConfig(t, newPKI(t), t.TempDir())
	values["endpoint"] = "\n  id: C=CN,O=fabedge.io,CN=beijing.edge1\n  name: beijing.edge1\n" +
		"  subnets: [10.233.66.0/24]\n  nodeSubnets: [10.22.46.30/32]\n  type: Connector\n" +
		"  publicAddresses: [10.40.20.181]\n  port: 45000"
	values["mark"], values["loadCredentials"] = "0x42", "false"
	values["punch"], values["probe"] = "ice-only", "{rate: 100}"
	cfg, err := LoadConfig(writeConfig(t, values))
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Mark != 0x42 || cfg.LoadCredentials || cfg.LogLevel != "info" {
		t.Errorf("mark %#x, loadCredentials %v, logLevel %s; want 0x42, false, and info by default", cfg.Mark, cfg.LoadCredentials, cfg.LogLevel)
	}
	if want := (ProbeConfig{Rate: 100, Ports: 256, Max: 2400}); cfg.Punch != wire.PolicyICEOnly || cfg.Probe != want {
		t.Errorf("punch %s, probe %+v; want %s, %+v", cfg.Punch, cfg.Probe, wire.PolicyICEOnly, want)
	}
	id, err := newIdentity(cfg)
	if err != nil {
		t.Fatal(err)
	}
	want := articleConnector
	want.ID, want.Name = articleEdge1.ID, articleEdge1.Name
	want.Subnets, want.NodeSubnets = articleEdge1.Subnets, articleEdge1.NodeSubnets
	if got := fmt.Sprint(id.endpoint); got != fmt.Sprint(want) {
		t.Errorf("endpoint %v; want %v", got, want)
	}
	if id.url != "wss://203.0.113.1:7443/v1/agent" {
		t.Errorf("rendezvous at %s", id.url)
	}
}

// Every mistake is answered by one line with the file, the key, and what would
// be right.
func TestLoadConfigRefuses(t *testing.T) {
	pki, stranger := newPKI(t), newPKI(t)
	issue := func(p *lab.PKI, name string, o lab.CertOptions) [2]string {
		cert, key, err := p.Issue(name, o)
		if err != nil {
			t.Fatal(err)
		}
		return [2]string{cert, key}
	}
	now := time.Now()
	expired := issue(pki, "beijing.old", lab.CertOptions{NotBefore: now.Add(-48 * time.Hour), NotAfter: now.Add(-time.Hour)})
	foreign := issue(stranger, "beijing.edge1", lab.CertOptions{})
	badName := issue(pki, "Beijing_Edge", lab.CertOptions{})
	garbage := writeFile(t, "garbage.pem", "no PEM\n")

	endpoint := func(s string) map[string]string { return map[string]string{"endpoint": s} }
	pair := func(p [2]string) map[string]string { return map[string]string{"certificate": p[0], "key": p[1]} }
	one := func(key, value string) map[string]string { return map[string]string{key: value} }
	tests := []struct {
		name   string
		change map[string]string
		want   []string
	}{
		{"unknown key", one("rendevouz", "x"), []string{"line 5", "rendevouz", "unknown key", "want one of", "rendezvous"}},
		{"unknown key in a section", endpoint("{subnet: [10.233.66.0/24]}"), []string{"endpoint.subnet", "unknown key", "nodeSubnets"}},
		{"not a number", one("ikePort", "four"), []string{"ikePort", "want a number from 0 to 65535"}},
		{"number too large", one("ikePort", "70000"), []string{"ikePort", "want a number from 0 to 65535"}},
		{"not a bool", one("loadCredentials", "maybe"), []string{"loadCredentials", "want true or false"}},
		{"list for one value", one("socket", "[a, b]"), []string{"socket", "want one value"}},
		{"one value for a list", endpoint("{subnets: {a: b}}"), []string{"endpoint.subnets", "want a list"}},
		{"section is a value", endpoint("beijing.edge1"), []string{"endpoint", "want keys", "subnets"}},
		{"twice", one("stateDir", "/a\nstateDir: /b"), []string{"stateDir", "already"}},
		{"no YAML", one("socket", "[a"), []string{"yaml: line"}},

		{"no rendezvous", one("rendezvous", ""), []string{"rendezvous", "want https://host:7443"}},
		{"rendezvous without scheme", one("rendezvous", "203.0.113.1:7443"), []string{"rendezvous", "want https://host:7443"}},
		{"rendezvous in the clear", one("rendezvous", "http://203.0.113.1"), []string{"rendezvous", "want https://host:7443"}},
		{"other port", one("ikePort", "500"), []string{"ikePort", "500", "4500"}},

		{"unknown policy", one("punch", "ice"), []string{"punch", `"ice"`, "want auto, ice-only or never"}},
		{"search too fast", one("probe", "{rate: 1001}"), []string{"probe.rate", "1001", "want 1 to 1000"}},
		{"too many ports", one("probe", "{ports: 1025}"), []string{"probe.ports", "1025", "want 1 to 1024"}},
		{"too many packets", one("probe", "{max: 20001}"), []string{"probe.max", "20001", "want 1 to 20000"}},
		{"no packets", one("probe", "{max: 0}"), []string{"probe.max", "want 1 to 20000", "ice-only"}},

		{"no certificate", one("certificate", "/nonexistent.crt"), []string{"certificate", "/nonexistent.crt", "no such file"}},
		{"no key", one("key", "/nonexistent.key"), []string{"key", "/nonexistent.key", "no such file"}},
		{"key is a directory", one("key", t.TempDir()), []string{"key", "is a directory"}},
		{"key is no PEM", one("key", garbage), []string{"key " + garbage, "PEM"}},
		{"no CA", one("ca", "/nonexistent.ca"), []string{"ca", "/nonexistent.ca", "no such file"}},
		{"CA is no PEM", one("ca", garbage), []string{"ca: " + garbage, "no PEM certificate"}},
		{"key of another certificate", one("key", expired[1]), []string{"key " + expired[1], "does not match"}},
		{"expired", pair(expired), []string{"certificate", expired[0], "expired on", "issue a new one"}},
		{"wrong CA", pair(foreign), []string{"certificate", foreign[0], "not signed by", pki.CAPath()}},
		{"name that is none", pair(badName), []string{"Beijing_Edge", "lower-case DNS name"}},

		{"another node's name", endpoint("{name: beijing.edge2, subnets: [10.233.66.0/24]}"),
			[]string{"endpoint.name", "beijing.edge2", "use beijing.edge1"}},
		{"another node's id", endpoint("{id: 'C=CN, O=fabedge.io, CN=beijing.edge2', subnets: [10.233.66.0/24]}"),
			[]string{"endpoint.id", "C=CN, O=fabedge.io, CN=beijing.edge1", "use that"}},
		{"no subnets", endpoint("{}"), []string{"endpoint.subnets", "want the subnets"}},
		{"endpoint left empty", endpoint(""), []string{"endpoint.subnets", "want the subnets"}},
		{"no CIDR", endpoint("{subnets: [10.233.66.0]}"), []string{"endpoint.subnets", "10.233.66.0", "no CIDR", "want something like"}},
		{"host bits", endpoint("{subnets: [10.233.66.1/24]}"), []string{"endpoint.subnets", "10.233.66.1/24", "want 10.233.66.0/24"}},
		{"host bits in nodeSubnets", endpoint("{subnets: [10.233.66.0/24], nodeSubnets: [10.22.46.30/24]}"),
			[]string{"endpoint.nodeSubnets", "want 10.22.46.0/24"}},
		{"everything", endpoint("{subnets: [0.0.0.0/0]}"), []string{"endpoint.subnets", "too many addresses"}},
		{"type", endpoint("{subnets: [10.233.66.0/24], type: Cloud}"), []string{"endpoint.type", "Cloud", "want Edge or Connector"}},
		{"connector without addresses", endpoint("{subnets: [10.233.66.0/24], type: Connector}"), []string{"endpoint.publicAddresses", "empty"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			values := goodConfig(t, pki, t.TempDir())
			maps.Copy(values, tt.change)
			path := writeConfig(t, values)
			_, err := LoadConfig(path)
			if !errors.Is(err, ErrConfig) {
				t.Fatalf("LoadConfig: %v; want ErrConfig", err)
			}
			for _, w := range append(tt.want, path) {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not say %q", err, w)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("%q is more than a line", err)
			}
		})
	}
}

func TestLoadConfigMissingFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.yaml")
	_, err := LoadConfig(path)
	if !errors.Is(err, ErrConfig) || !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("LoadConfig: %v; want ErrConfig and os.ErrNotExist, naming %s", err, path)
	}
}

// An agent that runs keeps its socket; one that was killed does not.
func TestNewOneAgentPerSocket(t *testing.T) {
	cfg, err := LoadConfig(writeConfig(t, goodConfig(t, newPKI(t), t.TempDir())))
	if err != nil {
		t.Fatal(err)
	}
	first, err := New(cfg, "test", discardLog)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(cfg, "test", discardLog); !errors.Is(err, unixsock.ErrServed) || errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), cfg.Socket) {
		t.Errorf("second agent: %v; want ErrServed naming %s, and no ErrConfig", err, cfg.Socket)
	}
	unix, ok := first.api.(interface{ SetUnlinkOnClose(bool) })
	if !ok {
		t.Fatalf("the status socket is a %T", first.api)
	}
	unix.SetUnlinkOnClose(false) // as after a kill
	if err := first.api.Close(); err != nil {
		t.Fatal(err)
	}
	second, err := New(cfg, "test", discardLog)
	if err != nil {
		t.Fatalf("agent after one that was killed: %v", err)
	}
	if err := second.api.Close(); err != nil {
		t.Error(err)
	}
}
