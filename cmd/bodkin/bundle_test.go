package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bodkin-net/bodkin/internal/pki"
)

// planted are secrets, each in a form in which it may turn up.
type planted struct{ secret, text string }

func plantSecrets(t *testing.T) []planted {
	t.Helper()
	key, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	block, err := pki.EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(block), "\n")
	join := "bodkin-join-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc"
	return []planted{
		{lines[1], string(block)},
		{lines[2], lines[0] + "\n" + lines[1] + "\n" + lines[2]}, // cut off
		{strings.TrimPrefix(join, "bodkin-join-"), "level=INFO msg=join token=" + join},
		{"q83vEjRWeJCrze8SNFZ4kA", "found bodkin-access-q83vEjRWeJCrze8SNFZ4kA in the environment"},
		{"c2VzYW1lLW9wZW4tbm93", `GET /api/v1/nodes Authorization: Bearer c2VzYW1lLW9wZW4tbm93`},
		{"dXNlcjpodW50ZXIy", `"Authorization": "Basic dXNlcjpodW50ZXIy"`},
		{"stun-hunter2", `{"stunUsername": "beijing.edge1", "stunPassword": "stun-hunter2 \" with a quote", "stunPorts": [3478]}`},
		{"ice-hunter3", `msg=order local="{Ufrag:abcd Pwd:ice-hunter3}"`},
		{"psk-hunter4", "ike-1:\n  secret = psk-hunter4\n"},
		{"block-hunter5", "password: |\n  block-hunter5\n  and more\nnext: line\n"},
		{"hunter6", "rendezvous: https://operator:hunter6@connector:7443"},
		{"session-hunter7", "Set-Cookie: bodkin=session-hunter7; HttpOnly"},
		{"5f1a2b3c4d5e6f708192a3b4c5d6e7f8", "\taead rfc4106(gcm(aes)) 0x5f1a2b3c4d5e6f708192a3b4c5d6e7f8a1b2c3d4 128"},
		{"9A BC DE F0 12 34", "09[IKE] SK_ei => 32 bytes @ 0x7f\n09[IKE]    0: 9A BC DE F0 12 34 56 78 9A BC DE F0 12 34 56 78  .....\n09[IKE] done"},
	}
}

func TestScrub(t *testing.T) {
	for _, p := range plantSecrets(t) {
		got := string(scrub([]byte("before\n" + p.text + "\nafter")))
		if strings.Contains(got, p.secret) || !strings.HasPrefix(got, "before\n") {
			t.Errorf("%q is still in\n%s", p.secret, got)
		}
	}
	const harmless = `tokenFile: /etc/bodkin/token
key: /etc/bodkin/node.key
{"tokens": [], "localSPI": "da14230995406a58", "in": {"spi": "cfeeafca"}, "certificateSHA256": "5f1a2b3c4d5e6f708192a3b4c5d6e7f85f1a2b3c4d5e6f708192a3b4c5d6e7f8"}
src 10.0.0.1 dst 10.0.0.2 proto esp spi 0xcfeeafca reqid 1 mode tunnel mark 0x42/0x42
level=INFO msg=pair pair="beijing.edge1|beijing.edge2" state=direct
-----BEGIN CERTIFICATE-----
MIIB
-----END CERTIFICATE-----
`
	if got := string(scrub([]byte(harmless))); got != harmless {
		t.Errorf("taken away too much:\n%s", got)
	}
	// JSON stays JSON.
	var v map[string]any
	if err := json.Unmarshal(scrub([]byte(`{"token": "abc", "user": "edge1", "password": "d\"ef"}`)), &v); err != nil || v["user"] != "edge1" || v["token"] != removed {
		t.Errorf("%v, %v", err, v)
	}
}

// unpack reads an archive by the names below its folder.
func unpack(t *testing.T, b []byte) map[string]string {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		_, name, ok := strings.Cut(h.Name, "/")
		if !ok || h.Mode != 0o600 {
			t.Errorf("%s, mode %o: want it in a folder, for its owner only", h.Name, h.Mode)
		}
		files[name] = string(content)
	}
}

// tools puts commands before all others that print text, whatever they are asked.
func tools(t *testing.T, text string, names ...string) {
	t.Helper()
	dir := t.TempDir()
	content := filepath.Join(dir, "text")
	if err := os.WriteFile(content, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		script := fmt.Sprintf("#!/bin/sh\necho %s \"$@\"\ncat %s\n", name, content)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":/usr/bin:/bin")
}

// No secret leaves the machine, wherever it was planted.
func TestBundle(t *testing.T) {
	secrets := plantSecrets(t)
	var all strings.Builder
	for _, p := range secrets {
		all.WriteString(p.text + "\n")
	}
	text := all.String()
	tools(t, text, "ip", "nft", "journalctl", "swanctl", "ss")
	t.Setenv(asMain, "1") // for the doctor
	agentSocket := daemon(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "%s\n%s", r.URL.Path, text) })
	admin := daemon(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/api/v1/audit" {
			w.WriteHeader(http.StatusInternalServerError)
			fmt.Fprintf(w, `{"error": "the store is damaged: token=%s"}`, secrets[3].secret)
			return
		}
		fmt.Fprintf(w, "%s\n%s", r.URL.RequestURI(), text)
	})
	config := writeFile(t, "agent.yaml", "rendezvous: https://connector:7443\n"+text)
	file := filepath.Join(t.TempDir(), "edge1.tar.gz")
	out, err := run(t, "", "bundle", "--file", file, "--socket", agentSocket, "--rendezvous-socket", admin, "--config", config,
		"--rendezvous-config", filepath.Join(t.TempDir(), "absent.yaml"), "--log", config, "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v: want a file for its owner only", err, info)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	files := unpack(t, b)
	for name, content := range files {
		for _, p := range secrets {
			if strings.Contains(content, p.secret) {
				t.Errorf("%s holds %q", name, p.secret)
			}
		}
	}
	for name, want := range map[string]string{
		"agent/status.json": "/v1/status", "agent/sas.json": "/v1/sas", "agent/metrics.txt": "/metrics", "config/agent.yaml": "rendezvous: https://connector:7443",
		"system/xfrm-states.txt": "ip -s xfrm state list nokeys", "system/nftables.txt": "nft list ruleset", "log/bodkin-agent.txt": "journalctl",
		"system/sysctls.txt": "net.ipv4.ip_forward = ", "rendezvous/pairs.json": "/api/v1/pairs", "rendezvous/events.json": "/api/v1/events?limit=1000",
		"version.json": `"platform"`, "charon/stats.txt": "swanctl --stats", "doctor.json": `"checks"`,
	} {
		if !strings.Contains(files[name], want) {
			t.Errorf("%s lacks %q:\n%.300s", name, want, files[name])
		}
	}
	checkManifest(t, out, files)
}

// checkManifest: it is printed, it is in the archive, and it says what is missing.
func checkManifest(t *testing.T, out string, files map[string]string) {
	t.Helper()
	var printed, m bundleManifest
	if err := errors.Join(json.Unmarshal([]byte(out), &printed), json.Unmarshal([]byte(files["manifest.json"]), &m)); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if len(printed.Sections) != len(m.Sections) {
		t.Errorf("%d sections printed, %d in the archive", len(printed.Sections), len(m.Sections))
	}
	said := map[string]bundleSection{}
	for _, s := range m.Sections {
		said[s.Name] = s
		if content, ok := files[s.Name]; ok != (s.Bytes > 0) || len(content) != s.Bytes {
			t.Errorf("%+v; the archive has %d bytes", s, len(content))
		}
	}
	for name, want := range map[string]string{
		"rendezvous/audit.json": "the store is damaged", "config/rendezvous.yaml": "absent.yaml", "charon/version.json": "charon",
	} {
		if s := said[name]; !strings.Contains(s.Error, want) {
			t.Errorf("%s: %+v; want the error to say %q", name, s, want)
		}
	}
}

// A section that is too long keeps its beginning, a log its end; one that takes
// too long is given up, and the rest is there all the same.
func TestBundleBounds(t *testing.T) {
	const most = 4 * secretMax
	long := bytes.Repeat([]byte("0123456789abcde\n"), most/16+1)
	key := plantSecrets(t)[0] // across the cut, at either end
	text := append(append([]byte("first\n"), long[:most-100]...), key.text...)
	text = append(append(text, long[:most-100]...), "last\n"...)
	file := writeFile(t, "long.log", string(text))
	head, tail := filePart("a", file), filePart("b", file)
	head.most, tail.most, tail.tail = most, most, true
	slow := commandPart("c", "sleep", "60")
	slow.timeout = 1
	var m bundleManifest
	var out bytes.Buffer
	if err := writeBundle(t.Context(), &out, []part{head, tail, slow, filePart("d", file+".absent")}, &m); err != nil {
		t.Fatal(err)
	}
	files := unpack(t, out.Bytes())
	if a := files["a"]; len(a) > most || len(a) < most/2 || !strings.HasPrefix(a, "first") {
		t.Errorf("%d bytes that begin with %.5q", len(a), a)
	}
	if b := files["b"]; len(b) > most || len(b) < most/2 || !strings.HasSuffix(b, "last\n") {
		t.Errorf("%d bytes of the log", len(b))
	}
	for name, content := range files {
		for line := range strings.SplitSeq(strings.TrimSpace(key.text), "\n") {
			if strings.Contains(content, line) && !strings.HasPrefix(line, "-----") {
				t.Errorf("%s holds a line of the key", name)
			}
		}
	}
	for i, s := range m.Sections {
		if over := i < 2; (s.Dropped > 0) != over || (s.Error == "") != over {
			t.Errorf("%+v", s)
		}
	}
}
