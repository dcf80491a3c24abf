package main

import (
	"crypto/ecdsa"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/internal/pki"
	"github.com/bodkin-net/bodkin/rendezvous"
	"github.com/bodkin-net/bodkin/rendezvous/access"
	"github.com/bodkin-net/bodkin/store"
)

// initFiles are those that init makes, in that order.
var initFiles = []string{"ca.key", "ca.crt", "rendezvous.key", "rendezvous.crt", "rendezvous.yaml", "admin.token"}

// runInit runs init on dir.
func runInit(t *testing.T, dir string, more ...string) (string, error) {
	t.Helper()
	return run(t, "", append([]string{"rendezvous", "init", "--dir", dir, "--state-dir", filepath.Join(dir, "state")}, more...)...)
}

func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Type().IsRegular() {
			out[e.Name()] = read(t, dir, e.Name())
		}
	}
	return out
}

// checkMade checks that what init made fits together.
func checkMade(t *testing.T, dir string) {
	t.Helper()
	files := contents(t, dir)
	if got := slices.Sorted(maps.Keys(files)); !slices.Equal(got, slices.Sorted(slices.Values(initFiles))) {
		t.Errorf("files %q, want %q", got, initFiles)
	}
	for _, name := range []string{"ca.key", "rendezvous.key", "admin.token"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	ca, err := pki.ParseCA([]byte(files["ca.crt"]), []byte(files["ca.key"]))
	if err != nil {
		t.Fatal(err)
	}
	cert, err := pki.ParseCertificate([]byte(files["rendezvous.crt"]))
	if err != nil || cert.CheckSignatureFrom(ca.Certificate) != nil || cert.VerifyHostname("rendezvous.example") != nil {
		t.Errorf("certificate %v, %v", cert, err)
	}
	if key, err := pki.ParseKey([]byte(files["rendezvous.key"])); err != nil || !cert.PublicKey.(*ecdsa.PublicKey).Equal(key.Public()) {
		t.Errorf("the key is another: %v", err)
	}
	s, err := store.Open(filepath.Join(dir, "state", "rendezvous.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	err = s.View("test", func(tx *store.Tx) error {
		c, err := tx.Credential(firstCredential)
		if c.SecretSHA256 != access.Hash(strings.TrimSpace(files["admin.token"])) || c.Role != string(access.Admin) || !c.Expires.IsZero() {
			t.Errorf("credential %+v is not of %q", c, files["admin.token"])
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestInit(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etc")
	out, err := runInit(t, dir, "--host", "rendezvous.example,198.51.100.1", "--host", "2001:db8::1", "--cluster", "beijing")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	checkMade(t, dir)
	token := strings.TrimSpace(read(t, dir, "admin.token"))
	if strings.Count(out, token) != 1 || !strings.Contains(out, "bodkin token create --name beijing.edge1") {
		t.Errorf("output:\n%s", out)
	}
	cfg, err := rendezvous.LoadConfig(filepath.Join(dir, "rendezvous.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	want := rendezvous.DefaultConfig()
	want.Certificate, want.Key = filepath.Join(dir, "rendezvous.crt"), filepath.Join(dir, "rendezvous.key")
	want.CA, want.CAKey = filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key")
	want.Store = filepath.Join(dir, "state", "rendezvous.db")
	want.PublicAddresses, want.Connectors = []string{"198.51.100.1", "2001:db8::1"}, []string{"beijing.connector"}
	if !reflect.DeepEqual(cfg, want) {
		t.Errorf("configuration\n%+v, want\n%+v", cfg, want)
	}
	sameKeys(t, "what init writes", keysOf(t, read(t, dir, "rendezvous.yaml")), rendezvous.Config{})

	before := contents(t, dir)
	out, err = runInit(t, dir, "--host", "rendezvous.example")
	if err != nil || strings.Contains(out, "made") || strings.Contains(out, token) {
		t.Errorf("again: %v\n%s", err, out)
	}
	if !maps.Equal(contents(t, dir), before) {
		t.Error("run again, it has changed files")
	}
}

// A run that was killed, wherever that was, is continued.
func TestInitContinues(t *testing.T) {
	whole := filepath.Join(t.TempDir(), "etc")
	if out, err := runInit(t, whole, "--host", "rendezvous.example"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for done := range len(initFiles) + 1 {
		dir := t.TempDir()
		kept := map[string]string{}
		for _, name := range initFiles[:done] {
			kept[name] = read(t, whole, name)
			if name == "rendezvous.yaml" {
				kept[name] = strings.ReplaceAll(kept[name], whole, dir)
			}
			if err := os.WriteFile(filepath.Join(dir, name), []byte(kept[name]), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if out, err := runInit(t, dir, "--host", "rendezvous.example"); err != nil {
			t.Errorf("after %d files: %v\n%s", done, err, out)
			continue
		}
		checkMade(t, dir)
		now := contents(t, dir)
		for name, content := range kept {
			if now[name] != content {
				t.Errorf("after %d files: %s is another", done, name)
			}
		}
	}
}

func TestInitRenew(t *testing.T) {
	dir := t.TempDir()
	if out, err := runInit(t, dir, "--host", "rendezvous.example"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	before := contents(t, dir)
	if out, err := runInit(t, dir, "--renew"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	checkMade(t, dir)
	after := contents(t, dir)
	for _, name := range initFiles {
		if changed := before[name] != after[name]; changed != (name == "rendezvous.crt") {
			t.Errorf("%s changed: %v", name, changed)
		}
	}
	if out, err := runInit(t, dir, "--renew", "--host", "192.0.2.1,rendezvous.example"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	checkMade(t, dir)
	cert, err := pki.ParseCertificate([]byte(read(t, dir, "rendezvous.crt")))
	if err != nil || cert.VerifyHostname("192.0.2.1") != nil {
		t.Errorf("%v, %v", cert.IPAddresses, err)
	}
}

// An existing CA's key is not asked for, and none is made.
func TestInitWithAnExistingCA(t *testing.T) {
	dir := t.TempDir()
	ca, err := pki.NewCA(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	file := writeFile(t, "fabedge.crt", string(pki.EncodeCertificate(ca.Certificate.Raw)))
	out, err := runInit(t, dir, "--ca", file)
	if err != nil || !strings.Contains(out, "no token is needed") {
		t.Fatalf("%v\n%s", err, out)
	}
	if got := slices.Sorted(maps.Keys(contents(t, dir))); !slices.Equal(got, []string{"admin.token", "rendezvous.yaml"}) {
		t.Errorf("files %q", got)
	}
	cfg, err := rendezvous.LoadConfig(filepath.Join(dir, "rendezvous.yaml"))
	if err != nil || cfg.CA != file || cfg.CAKey != "" {
		t.Errorf("%+v, %v", cfg, err)
	}
}

func TestInitRefuses(t *testing.T) {
	noCert := writeFile(t, "ca.crt", "nonsense")
	tests := []struct {
		name  string
		files map[string]string
		args  []string
		words string
		usage bool
	}{
		{"a host with a port", nil, []string{"--host", "198.51.100.1:7443"}, "without a port", true},
		{"a cluster that is none", nil, []string{"--host", "a", "--cluster", "beijing.edge1"}, "one word", true},
		{"a status address that is none", nil, []string{"--host", "a", "--status", "7480"}, "want host:port", true},
		{"a CA that is none", nil, []string{"--ca", noCert}, "no PEM certificate", true},
		{"a CA that is not there", nil, []string{"--ca", "/nonexistent/ca"}, "no such file", true},
		{"renewal with another's CA", nil, []string{"--ca", noCert, "--renew"}, "nothing is issued here", true},
		{"a CA without its key", map[string]string{"ca.crt": "x"}, []string{"--host", "a"}, "without its key", false},
		{"a CA's certificate that was lost", map[string]string{"ca.key": "x", "rendezvous.crt": "x"}, []string{"--host", "a"}, "restore it", false},
		{"a CA that is damaged", map[string]string{"ca.key": "x", "ca.crt": "x"}, []string{"--host", "a"}, "no PEM certificate", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, content := range tt.files {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			out, err := runInit(t, dir, tt.args...)
			if err == nil || !strings.Contains(err.Error(), tt.words) || strings.Contains(err.Error(), "\n") || errors.As(err, new(usageError)) != tt.usage {
				t.Errorf("%v, want %q\n%s", err, tt.words, out)
			}
			if now := contents(t, dir); !maps.Equal(now, tt.files) && len(now)+len(tt.files) > 0 {
				t.Errorf("left behind: %q", slices.Sorted(maps.Keys(now)))
			}
		})
	}
}
