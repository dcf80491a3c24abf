package main

import (
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

// allCommands are a command and all below it.
func allCommands(cmd *cobra.Command) []*cobra.Command {
	out := []*cobra.Command{cmd}
	for _, c := range cmd.Commands() {
		out = append(out, allCommands(c)...)
	}
	return out
}

// remoteAPI serves handler over TLS, and returns its URL and a file with its CA.
func remoteAPI(t *testing.T, handler http.HandlerFunc) (url, ca string) {
	t.Helper()
	srv := httptest.NewTLSServer(handler)
	t.Cleanup(srv.Close)
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	return srv.URL, writeFile(t, "ca.crt", string(block))
}

// Whatever goes wrong has its exit code and the daemon's own words.
func TestExitCodes(t *testing.T) {
	for _, tt := range []struct {
		status int
		body   string
		code   int
		want   string
	}{
		{http.StatusBadRequest, `{"error": "limit: want a number"}`, exitConfig, "limit: want a number"},
		{http.StatusUnprocessableEntity, `{"error": "unknown state"}`, exitConfig, "unknown state"},
		{http.StatusUnauthorized, `{"error": "no token"}`, exitRefused, "no token (--token-file FILE or $BODKIN_TOKEN)"},
		{http.StatusForbidden, `{"error": "viewers may not"}`, exitRefused, "viewers may not"},
		{http.StatusTooManyRequests, `{"error": "wait 12 s"}`, exitRefused, "wait 12 s"},
		{http.StatusNotFound, `{"error": "node x not found"}`, exitFailed, "node x not found"},
		{http.StatusConflict, `{"error": "is direct already"}`, exitFailed, "is direct already"},
		{http.StatusGatewayTimeout, `{"error": "beijing.edge1 did not answer"}`, exitUnreachable, "beijing.edge1 did not answer"},
		{http.StatusInternalServerError, "<html>", exitFailed, "Internal Server Error"},
		{http.StatusFound, "", exitFailed, "Found"}, // the token goes nowhere else
	} {
		socket := daemon(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(tt.status)
			fmt.Fprint(w, tt.body)
		})
		_, err := run(t, "", "nodes", "--socket", socket)
		if exitCode(err) != tt.code || err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%d %s: %v, exit code %d; want %d", tt.status, tt.body, err, exitCode(err), tt.code)
		}
	}
}

// Plain HTTP where TLS is spoken is the command line's fault.
func TestPlainToTLS(t *testing.T) {
	url, _ := remoteAPI(t, func(http.ResponseWriter, *http.Request) {})
	_, err := run(t, "", "nodes", "--server", strings.Replace(url, "https:", "http:", 1))
	if exitCode(err) != exitConfig || err == nil || !strings.Contains(err.Error(), "speaks TLS: want https://") {
		t.Errorf("%v, exit code %d; want %d", err, exitCode(err), exitConfig)
	}
}

func TestRemote(t *testing.T) {
	var authorization string
	url, ca := remoteAPI(t, func(w http.ResponseWriter, r *http.Request) {
		authorization = r.Header.Get("Authorization")
		fmt.Fprint(w, `{"at": "2024-02-01T08:00:00Z", "nodes": []}`)
	})
	token := writeFile(t, "token", "bodkin-access-abc\n")
	for _, args := range [][]string{
		{"nodes", "--server", url, "--ca", ca, "--token-file", token},
		{"pairs", "--server", url + "/", "--ca", ca, "--token-file", token},
	} {
		authorization = ""
		if out, err := run(t, "", args...); err != nil || authorization != "Bearer bodkin-access-abc" {
			t.Errorf("%v: %v, %q\n%s", args, err, authorization, out)
		}
	}
	t.Setenv(envServer, url)
	t.Setenv(envCA, ca)
	t.Setenv(envToken, "from-env")
	if _, err := run(t, "", "nodes"); err != nil || authorization != "Bearer from-env" {
		t.Errorf("from the environment: %v, %q", err, authorization)
	}
	// A socket that is named wins over the environment.
	if _, err := run(t, "", "nodes", "--socket", filepath.Join(t.TempDir(), "absent")); exitCode(err) != exitUnreachable {
		t.Errorf("a socket that is not there: %v", err)
	}
	t.Setenv(envCA, "")
	if _, err := os.Stat(nodeCA); err != nil {
		if _, err := run(t, "", "nodes"); exitCode(err) != exitUnreachable || !strings.Contains(err.Error(), "certificate") {
			t.Errorf("a certificate of nobody's: %v", err)
		}
	}
}

func TestServerFlags(t *testing.T) {
	absent := filepath.Join(t.TempDir(), "absent")
	empty := writeFile(t, "empty.crt", "")
	t.Setenv(envToken, "")
	for args, want := range map[string]string{
		"nodes --server connector:7480":                              "want https://HOST:PORT",
		"nodes --server ftp://connector":                             "want https://HOST:PORT",
		"nodes --server https://c:7480/api":                          "want https://HOST:PORT",
		"nodes --server https://c:7480 --socket /s":                  "want one of them",
		"nodes --server https://c:7480 --token-file " + absent:       absent,
		"nodes --server https://c:7480 --ca " + absent:               absent,
		"nodes --server https://c:7480 --ca " + empty:                "no certificate in it",
		"nodes --server https://c:7480 --cert " + empty:              "both or neither",
		"nodes --server http://192.0.2.1:7480 --token-file " + empty: "",
	} {
		_, err := run(t, "", strings.Fields(args)...)
		if want == "" {
			continue // an empty token is none, and crosses no network
		}
		if err == nil || exitCode(err) != exitConfig || !strings.Contains(err.Error(), want) {
			t.Errorf("bodkin %s: %v; want %q", args, err, want)
		}
	}
	t.Setenv(envToken, "secret")
	if _, err := run(t, "", "nodes", "--server", "http://192.0.2.1:7480"); exitCode(err) != exitConfig || !strings.Contains(err.Error(), "want https") {
		t.Errorf("a token without TLS: %v", err)
	}
}

func TestCompletion(t *testing.T) {
	socket := daemon(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/api/v1/nodes":
			fmt.Fprint(w, `{"nodes": [{"name": "beijing.edge1"}, {"name": "beijing.edge2"}]}`)
		case "/api/v1/pairs":
			fmt.Fprint(w, `{"pairs": [{"nodes": ["beijing.edge1", "beijing.edge2"]}, {"nodes": ["beijing.edge1", "beijing.edge3"]}]}`)
		case "/api/v1/communities":
			fmt.Fprint(w, `{"communities": [{"name": "all-edges"}]}`)
		case "/v1/status":
			fmt.Fprint(w, `{"tunnels": [{"peer": "beijing.edge2"}]}`)
		default:
			http.NotFound(w, r)
		}
	})
	for line, want := range map[string]string{
		"pair show --socket SOCKET ":                         "beijing.edge1 beijing.edge2 beijing.edge3",
		"pair show --socket SOCKET beijing.edge1 ":           "beijing.edge2 beijing.edge3",
		"punch --socket SOCKET beijing.edge3 ":               "beijing.edge1",
		"punch --socket SOCKET beijing.edge3 beijing.edge1 ": "",
		"pairs --socket SOCKET --node ":                      "beijing.edge1 beijing.edge2",
		"pairs --state ":                                     "direct relayed down punching",
		"ping --socket SOCKET ":                              "beijing.edge2",
		"nodes -o ":                                          "table wide json yaml",
		"nodes --color ":                                     "auto always never",
		"community get --socket SOCKET ":                     "all-edges",
		"forecast --socket SOCKET ":                          "all-edges",
	} {
		fields := strings.Split(strings.ReplaceAll(line, "SOCKET", socket), " ")
		began := time.Now()
		out, err := run(t, "", append([]string{"__completeNoDesc"}, fields...)...)
		words, _, _ := strings.Cut(out, ":")
		if got := strings.Join(strings.Fields(words), " "); err != nil || got != want {
			t.Errorf("%q: %v, %q after %s; want %q", line, err, got, time.Since(began), want)
		}
	}
}
