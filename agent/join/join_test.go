package join

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/bodkin-net/bodkin/agent"
	"github.com/bodkin-net/bodkin/internal/pki"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// complete checks that a machine is a node that an agent can run as, and returns
// its files by name.
func complete(t *testing.T, o Options, name wire.NodeName) map[string][]byte {
	t.Helper()
	f := FilesIn(o.Dir)
	cfg, err := agent.LoadConfig(f.Config)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Rendezvous != o.Rendezvous || cfg.Socket != o.Socket || cfg.StateDir != o.StateDir || cfg.VICISocket != o.VICISocket || !cfg.LoadCredentials {
		t.Errorf("configuration %+v; want that of %+v", cfg, o)
	}
	cert, err := pki.ParseCertificate(mustRead(t, f.Certificate))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := wire.NameOf(cert); err != nil || got != name {
		t.Errorf("certificate of %s (%v); want %s", got, err, name)
	}
	modes := map[string]fs.FileMode{"agent.yaml": 0o644, "node.key": 0o600, "node.crt": 0o644, "ca.crt": 0o644}
	out := map[string][]byte{}
	entries, err := os.ReadDir(o.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if want, ok := modes[e.Name()]; err != nil || !ok || info.Mode() != want {
			t.Errorf("%s has mode %v (%v); want %v", e.Name(), info.Mode(), err, want)
		}
		out[e.Name()] = mustRead(t, filepath.Join(o.Dir, e.Name()))
	}
	if len(out) != len(modes) {
		t.Errorf("files %v; want exactly those of %v", entries, modes)
	}
	return out
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	return must(t, b, err)
}

func TestJoin(t *testing.T) {
	r := newRendezvous(t)
	o := r.options()
	result, told, err := joinTo(t, o, "")
	if err != nil {
		t.Fatal(err)
	}
	if result.Name != "beijing.edge1" || result.Pending || result.Config != filepath.Join(o.Dir, "agent.yaml") {
		t.Errorf("result %+v", result)
	}
	var seen []Step
	for _, line := range told {
		if line.Mark != Done || strings.Contains(line.Text, "\n") {
			t.Errorf("told %+v; want one line of what was done", line)
		}
		seen = append(seen, line.Step)
	}
	want := []Step{StepToken, StepMachine, StepRendezvous, StepKey, StepCertificate, StepConfiguration, StepFiles, StepService}
	if !slices.Equal(seen, want) {
		t.Errorf("steps told: %v; want %v", seen, want)
	}
	complete(t, o, "beijing.edge1")
}

func TestJoinConnector(t *testing.T) {
	r := newRendezvous(t)
	o := r.options()
	o.Type, o.Name, o.PublicAddresses, o.PublicPort = wire.Connector, "beijing.connector", []string{"198.51.100.1", "2001:db8::1"}, 45000
	if _, _, err := joinTo(t, o, ""); err != nil {
		t.Fatal(err)
	}
	complete(t, o, "beijing.connector")
	cfg, err := agent.ReadConfig(FilesIn(o.Dir).Config)
	if e := cfg.Endpoint; err != nil || e.Type != "Connector" || !slices.Equal(e.PublicAddresses, o.PublicAddresses) || e.Port != 45000 {
		t.Errorf("endpoint %+v, %v", e, err)
	}
}

// A join that ends after any of its steps goes on when it is run again: with the
// same key, the same token, and nothing left over.
func TestJoinCutShort(t *testing.T) {
	for i, s := range steps[:len(steps)-1] {
		t.Run(string(s.step), func(t *testing.T) {
			r := newRendezvous(t)
			o := r.options()
			_, told, err := joinTo(t, o, s.step)
			if i < len(steps)-2 {
				mustFail(t, err, "stopped before the "+string(steps[i+1].step), nil)
			}
			if len(told) != i+1 {
				t.Fatalf("told %v; want %d steps", told, i+1)
			}
			key, _ := os.ReadFile(FilesIn(o.Dir).Key)
			// The token alone is good for the same key until it expires; the
			// certificate is for longer.
			if s.step == StepFiles || s.step == StepService {
				r.refuse = "the token has expired"
			}
			if _, _, err := joinTo(t, o, ""); err != nil {
				t.Fatal(err)
			}
			files := complete(t, o, "beijing.edge1")
			if key != nil && !bytes.Equal(files["node.key"], key) {
				t.Error("another key after the second run")
			}
			// And once more, on a node that has joined.
			_, told, err = joinTo(t, o, "")
			if err != nil || !strings.Contains(told.find(StepCertificate, Done), "beijing.edge1 already") {
				t.Errorf("third run: %v, told %v", err, told)
			}
			if again := complete(t, o, "beijing.edge1"); !bytes.Equal(again["node.key"], files["node.key"]) || !bytes.Equal(again["agent.yaml"], files["agent.yaml"]) {
				t.Error("the third run has changed key or configuration")
			}
		})
	}
}

// A file that cannot be written leaves the others as they were, and the join goes
// on when it can be.
func TestJoinFilesInTheWay(t *testing.T) {
	for _, name := range []string{"node.key", "agent.yaml", "ca.crt", "node.crt"} {
		t.Run(name, func(t *testing.T) {
			r := newRendezvous(t)
			o := r.options()
			path := filepath.Join(o.Dir, name)
			// A directory that is not empty cannot be replaced by a file, not even by root.
			if err := os.MkdirAll(filepath.Join(path, "x"), 0o755); err != nil {
				t.Fatal(err)
			}
			_, _, err := joinTo(t, o, "")
			mustFail(t, err, path, nil)
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
			if _, _, err := joinTo(t, o, ""); err != nil {
				t.Fatal(err)
			}
			complete(t, o, "beijing.edge1")
		})
	}
}

// What somebody else has put there, or may know, does not become the node's.
func TestJoinStrangersFiles(t *testing.T) {
	key, err := pki.NewKey()
	must(t, key, err)
	text, err := pki.EncodeKey(key)
	must(t, text, err)
	for _, tt := range []struct {
		name  string
		mode  fs.FileMode
		owner int
		want  string
	}{
		{"node.key", 0o644, 0, "has mode 0644"},
		{"node.key", 0o640, 0, "has mode 0640"},
		{"node.key", 0o600, 4242, "belongs to user 4242"},
		{"agent.yaml", 0o664, 0, "has mode 0664"},
		{"agent.yaml", 0o644, 4242, "belongs to user 4242"},
	} {
		if tt.owner != 0 && os.Geteuid() != 0 {
			t.Skip("needs root: run as root (make test does)")
		}
		r := newRendezvous(t)
		o := r.options()
		path := filepath.Join(o.Dir, tt.name)
		if err := os.MkdirAll(o.Dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.WriteFile(path, text, 0o600), os.Chmod(path, tt.mode), os.Lchown(path, cmp.Or(tt.owner, os.Geteuid()), -1)); err != nil {
			t.Fatal(err)
		}
		_, _, err := joinTo(t, o, "")
		mustFail(t, err, path+" "+tt.want, nil)
		if r.joins != 0 {
			t.Errorf("%s: joined with it", tt.name)
		}
	}
}

// Whoever answers in the rendezvous' place has the terminal do nothing.
func TestJoinWordsOfAStranger(t *testing.T) {
	for _, body := range []string{`{"error":"no \u001b]0;x\u0007"}`, "no \x1b[2J\r"} {
		s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, body, http.StatusForbidden) }))
		t.Cleanup(s.Close)
		o := newRendezvous(t).options()
		o.Rendezvous = s.URL
		_, _, err := joinTo(t, o, "")
		mustFail(t, err, "no ", nil)
		if strings.ContainsFunc(err.Error(), unicode.IsControl) {
			t.Errorf("%q", err)
		}
	}
}

// A node that was deleted joins anew with the key it has.
func TestJoinAnew(t *testing.T) {
	r := newRendezvous(t)
	o := r.options()
	if _, _, err := joinTo(t, o, ""); err != nil {
		t.Fatal(err)
	}
	before := complete(t, o, "beijing.edge1")
	cert, err := pki.ParseCertificate(before["node.crt"])
	if err != nil {
		t.Fatal(err)
	}
	r.revoked[pki.Serial(cert)] = true
	_, told, err := joinTo(t, o, "")
	if err != nil || !strings.Contains(told.find(StepCertificate, Warning), "was deleted") || r.joins != 2 {
		t.Errorf("%v, told %v, %d joins; want a second join with the token", err, told, r.joins)
	}
	after := complete(t, o, "beijing.edge1")
	if !bytes.Equal(after["node.key"], before["node.key"]) || bytes.Equal(after["node.crt"], before["node.crt"]) {
		t.Error("want the same key and another certificate")
	}
}

func TestJoinPending(t *testing.T) {
	r := newRendezvous(t)
	r.pending = true
	result, told, err := joinTo(t, r.options(), "")
	if err != nil || !result.Pending || !strings.Contains(told.find(StepCertificate, Warning), "bodkin node approve beijing.edge1") {
		t.Errorf("%+v, %v, told %v", result, err, told)
	}
}

func TestJoinRefused(t *testing.T) {
	hour := time.Hour
	for name, tt := range map[string]struct {
		prepare func(r *rendezvous, o *Options)
		want    string
		is      error
	}{
		"no token":              {func(_ *rendezvous, o *Options) { o.Token = "hunter2" }, "not a join token", wire.ErrJoinToken},
		"no URL":                {func(_ *rendezvous, o *Options) { o.Rendezvous = "connector" }, "want https://host:7443", agent.ErrConfig},
		"no name":               {func(_ *rendezvous, o *Options) { o.Name = "Edge 1" }, "is not a lower-case DNS name", agent.ErrConfig},
		"connector nowhere":     {func(_ *rendezvous, o *Options) { o.Type = wire.Connector }, "--public-address", agent.ErrConfig},
		"another CA":            {func(r *rendezvous, o *Options) { other := r.token; other.CAHash[0]++; o.Token = other.String() }, "somebody is in between", ErrOtherCA},
		"token refused":         {func(r *rendezvous, _ *Options) { r.refuse = "the token has expired on 2026-11-23" }, "the token has expired on 2026-11-23", nil},
		"token used by another": {func(r *rendezvous, _ *Options) { r.usedBy = "somebody" }, "the token was used already", nil},
		"nobody there":          {func(r *rendezvous, _ *Options) { r.server.Close() }, "connection refused", agent.ErrUnreachable},
		"no such name":          {func(_ *rendezvous, o *Options) { o.Rendezvous = "https://rendezvous.invalid" }, "no address for rendezvous.invalid", agent.ErrUnreachable},
		"certificate for another host": {func(r *rendezvous, o *Options) {
			o.Rendezvous = r.serve([]string{"198.51.100.1", "connector.example"}, 0).URL
		},
			"is for connector.example, 198.51.100.1", nil},
		"clock far off": {func(r *rendezvous, o *Options) {
			o.Rendezvous = r.serve([]string{"127.0.0.1"}, pki.ServerLifetime+hour).URL
		},
			"this machine's clock says", nil},
		"no TLS": {func(r *rendezvous, o *Options) {
			plain := &http.Server{ReadHeaderTimeout: time.Second}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			must(r.T, l, err)
			go plain.Serve(l)
			r.Cleanup(func() { plain.Close() })
			o.Rendezvous = "https://" + l.Addr().String()
		}, "speaks no TLS", agent.ErrUnreachable},
		"no subnets":     {func(_ *rendezvous, o *Options) { o.Subnets = nil }, "--subnets", nil},
		"no certificate": {func(r *rendezvous, _ *Options) { r.mangle = func(a *wire.JoinAnswer) { a.Certificate = "" } }, "certificate that is none", nil},
		"another's name": {func(r *rendezvous, _ *Options) { r.mangle = func(a *wire.JoinAnswer) { a.Name = "beijing.edge2" } }, `says it is for "beijing.edge2"`, nil},
		"another's key": {func(r *rendezvous, _ *Options) {
			r.mangle = func(a *wire.JoinAnswer) {
				key, err := pki.NewKey()
				must(r.T, key, err)
				cert, err := r.ca.Node(time.Now(), string(a.Name), key.Public(), hour)
				a.Certificate = string(pki.EncodeCertificate(must(r.T, cert, err).Raw))
			}
		}, "for another key", nil},
		"charon's key file": {func(_ *rendezvous, o *Options) {
			os.MkdirAll(o.Dir, 0o755)
			os.WriteFile(filepath.Join(o.Dir, "node.key"), []byte("half"), 0o600)
		}, "remove it to have a new key made", nil},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRendezvous(t)
			o := r.options()
			tt.prepare(r, &o)
			_, _, err := joinTo(t, o, "")
			mustFail(t, err, tt.want, tt.is)
			files := []string{"agent.yaml", "ca.crt", "node.crt"}
			if strings.HasPrefix(name, "certificate for another") {
				files = append(files, "node.key")
			}
			for _, name := range files {
				if _, err := os.Stat(filepath.Join(o.Dir, name)); err == nil {
					t.Errorf("%s was written", name)
				}
			}
		})
	}
}

// What an operator wrote is kept, and a join that would need another is refused
// before the token is used.
func TestJoinKeepsConfiguration(t *testing.T) {
	for name, tt := range map[string]struct {
		edit func(string) string
		o    func(*Options)
		want string
	}{
		"a key more":         {func(s string) string { return s + "metered: true\n" }, func(*Options) {}, ""},
		"another rendezvous": {nil, func(o *Options) { o.Rendezvous = "https://other.example:7443" }, "rendezvous is https://127.0.0.1"},
		"another type":       {nil, func(o *Options) { o.Type, o.PublicAddresses = wire.Connector, []string{"198.51.100.1"} }, "endpoint.type is Edge"},
		"other subnets":      {nil, func(o *Options) { o.Subnets = []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")} }, "this node's are [10.9.0.0/16]"},
		"another name":       {nil, func(o *Options) { o.Name = "beijing.edge2" }, "this machine has joined as beijing.edge1"},
		"not YAML":           {func(string) string { return "rendezvous: [" }, func(*Options) {}, "agent.yaml"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRendezvous(t)
			o := r.options()
			if _, _, err := joinTo(t, o, ""); err != nil {
				t.Fatal(err)
			}
			path := FilesIn(o.Dir).Config
			text := string(mustRead(t, path))
			if tt.edit != nil {
				text = tt.edit(text)
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			again := o
			tt.o(&again)
			_, _, err := joinTo(t, again, "")
			if tt.want == "" && err != nil {
				t.Error(err)
			} else if tt.want != "" {
				mustFail(t, err, tt.want, nil)
			}
			if got := string(mustRead(t, path)); got != text {
				t.Errorf("the configuration was changed to\n%s", got)
			}
			if r.joins != 1 {
				t.Errorf("the token was used %d times", r.joins)
			}
		})
	}
}

func TestWithoutCharon(t *testing.T) {
	r := newRendezvous(t)
	o := r.options()
	o.VICISocket = filepath.Join(t.TempDir(), "none")
	if _, told, err := joinTo(t, o, ""); err != nil || !strings.Contains(told.find(StepMachine, Warning), "apt install") {
		t.Errorf("%v, told %v; want it done, and said what to install", err, told)
	}
}

// agentAt is an agent's status socket that answers with one status after another,
// the last one for ever.
func agentAt(t *testing.T, socket string, statuses ...agent.Status) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	must(t, l, err)
	srv := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(statuses[0])
		if len(statuses) > 1 {
			statuses = statuses[1:]
		}
	})}
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(l) }()
	t.Cleanup(func() { srv.Close(); <-done })
}

func TestOnline(t *testing.T) {
	r := newRendezvous(t)
	o := r.options()
	o.Wait = time.Minute
	o.Service = startedBy(func() {
		cert, err := pki.ParseCertificate(mustRead(t, FilesIn(o.Dir).Certificate))
		must(t, cert, err)
		var s agent.Status
		s.Node = "beijing.edge1"
		s.Rendezvous.Error = "connecting"
		before := s
		before.Certificate.Serial = "1"
		s.Certificate.Serial = cert.SerialNumber.Text(16)
		connected := s
		connected.Rendezvous.Connected = true
		seen := connected
		seen.Mapped = netip.MustParseAddrPort("203.0.113.5:4500")
		agentAt(t, o.Socket, before, s, connected, seen)
	})
	result, told, err := joinTo(t, o, "")
	if err != nil || result.Status == nil || !result.Status.Mapped.IsValid() || !strings.Contains(told.find(StepOnline, Done), "seen at 203.0.113.5:4500") {
		t.Errorf("%+v, %v, told %v", result, err, told)
	}
}

type startedBy func()

func (f startedBy) Start(context.Context) (string, error) { f(); return "started", nil }

func TestNotOnline(t *testing.T) {
	r := newRendezvous(t)
	o := r.options()
	o.Wait = time.Millisecond
	_, _, err := joinTo(t, o, "")
	mustFail(t, err, "is it started?", ErrNotOnline)
	complete(t, o, "beijing.edge1")
}
