package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/bodkin-net/bodkin/agent"
	"github.com/bodkin-net/bodkin/agent/join"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// joinOptions are what a command line of join comes to.
func joinOptions(t *testing.T, stdin string, argv ...string) (o join.Options, err error) {
	t.Helper()
	var f joinFlags
	cmd := &cobra.Command{RunE: func(cmd *cobra.Command, a []string) error {
		o, err = f.options(cmd, a[0])
		return err
	}, SilenceErrors: true, SilenceUsage: true}
	f.register(cmd)
	cmd.SetIn(strings.NewReader(stdin))
	cmd.SetArgs(append(argv, "--no-service", "https://connector:7443"))
	return o, cmd.Execute()
}

func TestJoinFlags(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("from the file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	o, err := joinOptions(t, "", "--token", "word", "--name", "beijing.edge1", "--subnets", "10.1.0.0/16,10.2.0.0/16", "--dir", "etc")
	if err != nil || o.Token != "word" || o.Name != "beijing.edge1" || o.Type != wire.Edge || len(o.Subnets) != 2 ||
		o.Dir != filepath.Join(here, "etc") || o.Rendezvous != "https://connector:7443" || o.Wait != 0 || o.Service != nil {
		t.Errorf("%+v, %v", o, err)
	}
	for _, tt := range []struct{ stdin, argv, want string }{
		{"from stdin\n", "--token -", "from stdin\n"},
		{"", "--token-file " + file, "from the file\n"},
		{"", "--token x --timeout 5s --type connector", "x"},
	} {
		if o, err := joinOptions(t, tt.stdin, strings.Fields(tt.argv)...); err != nil || o.Token != tt.want {
			t.Errorf("%s: token %q, %v; want %q", tt.argv, o.Token, err, tt.want)
		} else if strings.Contains(tt.argv, "connector") && (o.Type != wire.Connector || o.Wait == 0) {
			t.Errorf("%s: %+v", tt.argv, o)
		}
	}
	for _, tt := range []struct{ argv, want string }{
		{"", "want either --token or --token-file"},
		{"--token x --token-file y", "want either --token or --token-file"},
		{"--token-file /nonexistent", "--token-file: "},
		{"--token x --type hub", "want edge or connector"},
		{"--token x --subnets 10.1.2.3/16", "is no CIDR"},
	} {
		if _, err := joinOptions(t, "", strings.Fields(tt.argv)...); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %q", tt.argv, err, tt.want)
		}
	}
}

func TestJoinExitCodes(t *testing.T) {
	wrap := func(err error) error { return joinError(fmt.Errorf("joining: %w", err)) }
	for err, want := range map[error]int{
		wrap(wire.ErrJoinToken):                exitConfig,
		wrap(agent.ErrConfig):                  exitConfig,
		wrap(agent.ErrUnreachable):             exitUnreachable,
		wrap(&agent.RefusedError{Words: "no"}): exitRefused,
		wrap(join.ErrOtherCA):                  exitRefused,
		wrap(join.ErrNotOnline):                exitFailed,
		wrap(errors.New("the disk is full")):   exitFailed,
	} {
		if got := exitCode(err); got != want {
			t.Errorf("%v: exit code %d, want %d", err, got, want)
		}
	}
}

// What comes next: a connector needs no community.
func TestAfterJoin(t *testing.T) {
	online := join.Result{Name: "beijing.x", Config: "/etc/bodkin/agent.yaml", Status: &agent.Status{}}
	tunnels, unwatched := online, online
	tunnels.Status = &agent.Status{Tunnels: []agent.TunnelStatus{{}}}
	unwatched.Status = nil
	for _, tt := range []struct {
		kind   wire.EndpointType
		result join.Result
		want   string
	}{
		{wire.Edge, unwatched, "bodkin agent --config /etc/bodkin/agent.yaml"},
		{wire.Edge, online, "who beijing.x may talk to: bodkin community apply"},
		{wire.Connector, online, "let edges join"},
		{wire.Connector, tunnels, "see its tunnels"},
	} {
		if got := afterJoin(tt.kind, tt.result); !strings.Contains(got, tt.want) || tt.kind == wire.Connector && strings.Contains(got, "community") {
			t.Errorf("%s: %q, want %q", tt.kind, got, tt.want)
		}
	}
}

// What was told before a join failed stays readable, one line each.
func TestJoinTells(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := "https://" + l.Addr().String()
	l.Close()
	dir := t.TempDir()
	token := wire.JoinToken{}.String()
	out, err := run(t, "", "join", nobody, "--token", token, "--dir", dir, "--state-dir", dir, "--vici", filepath.Join(dir, "none"), "--no-service")
	if exitCode(err) != exitUnreachable {
		t.Errorf("%v", err)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 3 || !strings.HasPrefix(lines[0], "✓  token ") || !strings.HasPrefix(lines[1], "!  machine ") || !strings.HasPrefix(lines[2], "✓  machine ") {
		t.Errorf("told:\n%s", out)
	}
}
