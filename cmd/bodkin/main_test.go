package main

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

// asMain makes the test binary behave as bodkin: daemons are tested as
// processes, with their exit codes.
const asMain = "BODKIN_TEST_AS_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asMain) != "" {
		main()
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// run executes a command line in this process.
func run(t *testing.T, stdin string, args ...string) (stdout string, err error) {
	t.Helper()
	var out bytes.Buffer
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(strings.NewReader(stdin))
	root.SetOut(&out)
	root.SetErr(&out)
	err = root.ExecuteContext(t.Context())
	return out.String(), err
}

// printed is what text prints for people at statusNow, without colours.
func printed(text func(p *printer)) string {
	p := printer{now: statusNow}
	text(&p)
	return p.text.String()
}

// daemon serves handler on a unix socket, as agent and rendezvous do.
func daemon(t *testing.T, handler http.HandlerFunc) (socket string) {
	t.Helper()
	// Paths of unix sockets are short; those of t.TempDir need not be.
	dir, err := os.MkdirTemp("", "bodkin")
	if err != nil {
		t.Fatal(err)
	}
	socket = filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: handler}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() {
		srv.Close()
		<-done
		os.RemoveAll(dir)
	})
	return socket
}

func writeFile(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestUsageErrors(t *testing.T) {
	badKey := writeFile(t, "bad.yaml", "foo: bar\n")
	tests := []struct {
		args string
		want string
	}{
		{"dance", `unknown command "dance": see bodkin --help`},
		{"tokn", `unknown command "tokn" (did you mean join or token?): see bodkin --help`},
		{"token creat", "did you mean create?"},
		{"help nonsense", `unknown command "nonsense": see bodkin --help`},
		{"help pair nonsense", `unknown command "nonsense": see bodkin pair --help`},
		{"pair show beijing.edge1", "got 1 argument: want bodkin pair show NODE NODE"},
		{"--dance", "unknown flag: --dance"},
		{"status now", "bodkin status"},
		{"status -o xml", "want table, wide, json or yaml"},
		{"community dance", "bodkin community"},
		{"community apply", "-f FILE is missing"},
		{"community apply -f /nonexistent.yaml", "/nonexistent.yaml"},
		{"community get a b", "bodkin community get"},
		{"community get -o xml", "want table, wide, json or yaml"},
		{"community delete", "bodkin community delete"},
		{"community delete a b", "bodkin community delete"},
		{"version 2", "bodkin version"},
		{"agent now", "bodkin agent"},
		{"agent --config /nonexistent.yaml", "/nonexistent.yaml"},
		{"agent --config " + badKey, badKey + ": line 1: foo: unknown key"},
		{"rendezvous now", "bodkin rendezvous"},
		{"rendezvous --config /nonexistent.yaml", "/nonexistent.yaml"},
		{"rendezvous --config " + badKey, badKey},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			_, err := run(t, "", strings.Fields(tt.args)...)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error %v; want %q", err, tt.want)
			}
			if got := exitCode(err); got != exitConfig {
				t.Errorf("exit code %d for %v; want %d", got, err, exitConfig)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("%q is more than a line", err)
			}
		})
	}
}

// A level that does not exist is found after the rest of the file was good.
func TestAgentLogLevel(t *testing.T) {
	dir := t.TempDir()
	pki, err := lab.NewPKI(dir)
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := pki.Issue("beijing.edge1", lab.CertOptions{})
	if err != nil {
		t.Fatal(err)
	}
	config := writeFile(t, "agent.yaml", fmt.Sprintf("rendezvous: https://127.0.0.1\ncertificate: %s\nkey: %s\nca: %s\nsocket: %s\nstateDir: %s\n"+
		"logLevel: loud\nendpoint: {subnets: [10.233.66.0/24]}\n", cert, key, pki.CAPath(), filepath.Join(dir, "s"), dir))
	_, err = run(t, "", "agent", "--config", config)
	if err == nil || exitCode(err) != exitConfig {
		t.Fatalf("error %v; want exit code %d", err, exitConfig)
	}
	for _, want := range []string{config, "logLevel", "loud", "want debug, info, warn or error"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
}

func TestHelp(t *testing.T) {
	for _, args := range [][]string{nil, {"community"}, {"--help"}} {
		out, err := run(t, "", args...)
		if err != nil || !strings.Contains(out, "Usage:") {
			t.Errorf("bodkin %v: %v, %q; want the usage", args, err, out)
		}
	}
}

func TestVersion(t *testing.T) {
	defer func(v string) { version = v }(version)
	version = "v0.1.0-test"
	for args, want := range map[string]string{"version": "bodkin v0.1.0-test\n", "--version": "bodkin version v0.1.0-test\n"} {
		if out, err := run(t, "", args); err != nil || out != want {
			t.Errorf("bodkin %s: %q, %v; want %q", args, out, err, want)
		}
	}
}

func TestNoDaemon(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "absent.sock")
	for args, want := range map[string]string{"status": "is it running", "community get": "no rendezvous runs on this machine"} {
		_, err := run(t, "", append(strings.Fields(args), "--socket", socket)...)
		if err == nil || exitCode(err) != exitUnreachable || !strings.Contains(err.Error(), socket) || !strings.Contains(err.Error(), want) {
			t.Errorf("bodkin %s: %v; want exit code %d, the socket's path and %q", args, err, exitUnreachable, want)
		}
	}
}
