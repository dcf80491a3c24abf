package main

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/internal/pki"
	"github.com/bodkin-net/bodkin/rendezvous"
	"github.com/bodkin-net/bodkin/rendezvous/access"
	"github.com/bodkin-net/bodkin/store"
)

func TestAccessCommands(t *testing.T) {
	now := time.Now()
	anna := rendezvous.CredentialView{Name: "anna", Role: access.Admin, Created: now, By: "unix socket"}
	old := rendezvous.CredentialView{Name: "intern", Role: access.Viewer, Created: now, Expires: now.Add(-time.Hour), By: "anna"}
	var asked []string
	socket := enrolmentAPI(t, &asked, map[string]any{
		"POST /api/v1/access":        rendezvous.CreatedCredential{CredentialView: anna, Token: "bodkin-access-ABC"},
		"GET /api/v1/access":         rendezvous.CredentialList{Credentials: []rendezvous.CredentialView{anna, old}},
		"DELETE /api/v1/access/anna": nil,
		"GET /api/v1/audit": rendezvous.AuditList{Entries: []store.Audit{
			{At: now, Who: "anna", From: "198.51.100.7", Action: "revoke node", Object: "beijing.edge1", Detail: "stolen"},
		}},
	})
	for _, tt := range []struct {
		args, asked string
		words       []string
	}{
		{"access create anna --role admin", `POST /api/v1/access {"name":"anna","role":"admin"}`, []string{"bodkin-access-ABC\n", "For anna, role admin, without end", "shown this once"}},
		{"access create anna --role admin --ttl 1h -o json", `POST /api/v1/access {"name":"anna","role":"admin","ttlSeconds":3600}`, []string{`"token": "bodkin-access-ABC"`}},
		{"access list", "GET /api/v1/access", []string{"anna", "admin", "good", "never", "intern", "expired"}},
		{"access delete anna", "DELETE /api/v1/access/anna", []string{"access of anna deleted"}},
		{"audit --limit 7", "GET /api/v1/audit", []string{"anna", "198.51.100.7", "revoke node", "beijing.edge1", "stolen"}},
		{"audit -o yaml", "GET /api/v1/audit", []string{"who: anna"}},
	} {
		asked = nil
		out, err := run(t, "", append(strings.Fields(tt.args), "--socket", socket)...)
		if err != nil || !reflect.DeepEqual(asked, []string{tt.asked}) {
			t.Errorf("%s: %v, asked %q, want %q", tt.args, err, asked, tt.asked)
		}
		for _, word := range tt.words {
			if !strings.Contains(out, word) {
				t.Errorf("%s: no %q in\n%s", tt.args, word, out)
			}
		}
	}
	for _, wrong := range []string{
		"access create anna", "access create anna --role root", "access create --role admin", "access create anna --role admin --ttl 1ms",
		"access create anna --role admin --ttl -1h", "access delete", "access certificate anna", "access certificate ../anna --role admin", "audit --limit 0", "audit extra",
	} {
		asked = nil
		if _, err := run(t, "", append(strings.Fields(wrong), "--socket", socket)...); !errors.As(err, new(usageError)) || asked != nil {
			t.Errorf("%s: %v, asked %q", wrong, err, asked)
		}
	}
}

func TestAccessCertificate(t *testing.T) {
	dir := t.TempDir()
	var asked []string
	made := rendezvous.OperatorCertificate{Name: "anna", Role: access.Admin, Certificate: "-----BEGIN CERTIFICATE-----\n", Expires: time.Now().Add(time.Hour)}
	socket := enrolmentAPI(t, &asked, map[string]any{"POST /api/v1/access/anna/certificate": made})
	args := []string{"access", "certificate", "anna", "--role", "admin", "--dir", dir, "--socket", socket}
	out, err := run(t, "", args...)
	if err != nil || !strings.Contains(out, filepath.Join(dir, "anna.crt")) {
		t.Fatalf("%v\n%s", err, out)
	}
	key, err := os.ReadFile(filepath.Join(dir, "anna.key"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pki.ParseKey(key); err != nil {
		t.Error(err)
	}
	info, err := os.Stat(filepath.Join(dir, "anna.key"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key: %v, %v", info.Mode(), err)
	}
	if strings.Contains(strings.Join(asked, ""), "PRIVATE") || !strings.Contains(asked[0], "CERTIFICATE REQUEST") {
		t.Errorf("asked %q", asked)
	}
	if cert, err := os.ReadFile(filepath.Join(dir, "anna.crt")); err != nil || string(cert) != made.Certificate {
		t.Errorf("%q, %v", cert, err)
	}
	// A key that is there is left alone, and one that came to nothing is removed.
	if _, err := run(t, "", args...); !errors.As(err, new(usageError)) || !strings.Contains(err.Error(), "is there already") {
		t.Errorf("again: %v", err)
	}
	args[2] = "bert"
	if _, err := run(t, "", args...); err == nil {
		t.Error("refused by the rendezvous, and no error")
	}
	if _, err := os.Stat(filepath.Join(dir, "bert.key")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("bert.key: %v", err)
	}
}
