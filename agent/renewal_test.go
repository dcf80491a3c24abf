package agent

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/e2e/lab"
	"github.com/bodkin-net/bodkin/internal/certfile"
)

// renewable is a daemon whose files can be renewed, without charon.
func renewable(t *testing.T) (*Daemon, *lab.PKI) {
	t.Helper()
	pki := newPKI(t)
	values := goodConfig(t, pki, t.TempDir())
	values["loadCredentials"] = "false"
	cfg, err := LoadConfig(writeConfig(t, values))
	if err != nil {
		t.Fatal(err)
	}
	id, err := newIdentity(cfg)
	if err != nil {
		t.Fatal(err)
	}
	d := testDaemon(t, "store")
	d.cfg, d.id, d.renewal = cfg, id, newRenewal(nil)
	return d, pki
}

func (d *Daemon) serialInUse() string { return serial(d.id.credentials().leaf) }

func mustIssue(t *testing.T, pki *lab.PKI, node string, o lab.CertOptions) (cert, key []byte) {
	t.Helper()
	certPath, keyPath, err := pki.Issue(node, o)
	if err != nil {
		t.Fatal(err)
	}
	return mustRead(t, certPath), mustRead(t, keyPath)
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustWrite(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Changed files are taken at the next look, and at once when somebody asks.
func TestRenewalTaken(t *testing.T) {
	d, pki := renewable(t)
	now := time.Now()
	d.followCredentials(t.Context(), now)
	first := d.serialInUse()
	mustIssue(t, pki, "beijing.edge1", lab.CertOptions{}) // in the place of the first
	d.followCredentials(t.Context(), now.Add(certfile.Poll-time.Second))
	if got := d.serialInUse(); got != first {
		t.Errorf("serial %s before it was time to look; want %s", got, first)
	}
	d.followCredentials(t.Context(), now.Add(certfile.Poll))
	second := d.serialInUse()
	if second == first {
		t.Error("the new certificate was not taken")
	}
	mustIssue(t, pki, "beijing.edge1", lab.CertOptions{})
	d.Reload()
	d.followCredentials(t.Context(), now.Add(certfile.Poll+time.Second))
	if got := d.serialInUse(); got == second {
		t.Error("asked to look, the agent did not")
	}
}

// Files that do not fit are somebody writing them: nothing is said for a while,
// and then it is.
func TestRenewalHalfWritten(t *testing.T) {
	d, pki := renewable(t)
	oldKey := mustRead(t, d.cfg.Key)
	now := time.Now()
	d.followCredentials(t.Context(), now)
	first := d.serialInUse()
	_, newKey := mustIssue(t, pki, "beijing.edge1", lab.CertOptions{})
	mustWrite(t, d.cfg.Key, oldKey)

	began := now.Add(certfile.Poll)
	problem := func(after time.Duration) string {
		d.followCredentials(t.Context(), began.Add(after))
		return d.renewal.status(d.id.credentials(), began.Add(after)).Problem
	}
	for _, after := range []time.Duration{0, renewalRetry, certfile.Patience - time.Second} {
		if got := problem(after); got != "" {
			t.Errorf("after %v: %q; want nothing said yet", after, got)
		}
	}
	if got := problem(certfile.Patience + renewalRetry); !strings.Contains(got, d.cfg.Certificate) || !strings.Contains(got, "does not match") {
		t.Errorf("after %v: %q; want it said that the key does not match", certfile.Patience, got)
	}
	if got := d.serialInUse(); got != first {
		t.Errorf("serial %s in use; want %s", got, first)
	}
	mustWrite(t, d.cfg.Key, newKey)
	if got := problem(certfile.Patience + 2*renewalRetry); got != "" || d.serialInUse() == first {
		t.Errorf("after the key was written: problem %q, serial %s; want the new one in use", got, d.serialInUse())
	}
}

// What must not be taken, asked for or not.
func TestRenewalRefused(t *testing.T) {
	now := time.Now()
	for name, tt := range map[string]struct {
		write func(t *testing.T, d *Daemon, pki *lab.PKI)
		want  string
	}{
		"another node's": {func(t *testing.T, d *Daemon, pki *lab.PKI) {
			cert, key := mustIssue(t, pki, "beijing.edge2", lab.CertOptions{})
			mustWrite(t, d.cfg.Certificate, cert)
			mustWrite(t, d.cfg.Key, key)
		}, "is beijing.edge2's"},
		"expired": {func(t *testing.T, d *Daemon, pki *lab.PKI) {
			mustIssue(t, pki, "beijing.edge1", lab.CertOptions{NotBefore: now.Add(-2 * time.Hour), NotAfter: now.Add(-time.Hour)})
		}, "expired on"},
		"not yet valid": {func(t *testing.T, d *Daemon, pki *lab.PKI) {
			mustIssue(t, pki, "beijing.edge1", lab.CertOptions{NotBefore: now.Add(time.Hour)})
		}, "not valid before"},
		"a stranger's": {func(t *testing.T, d *Daemon, _ *lab.PKI) {
			cert, key := mustIssue(t, newPKI(t), "beijing.edge1", lab.CertOptions{})
			mustWrite(t, d.cfg.Certificate, cert)
			mustWrite(t, d.cfg.Key, key)
		}, "is not signed by"},
		"gone": {func(t *testing.T, d *Daemon, _ *lab.PKI) {
			if err := os.Remove(d.cfg.CA); err != nil {
				t.Fatal(err)
			}
		}, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			d, pki := renewable(t)
			first := d.serialInUse()
			tt.write(t, d, pki)
			d.Reload()
			d.followCredentials(t.Context(), now)
			if got := d.renewal.status(d.id.credentials(), now).Problem; !strings.Contains(got, tt.want) {
				t.Errorf("problem %q; want %q in it", got, tt.want)
			}
			if got := d.serialInUse(); got != first {
				t.Errorf("serial %s in use; want %s", got, first)
			}
		})
	}
}

// A machine that starts with its clock behind takes its certificate, and says
// what is wrong as long as it is.
func TestStartBeforeValidity(t *testing.T) {
	d, pki := renewable(t)
	from := time.Now().Add(time.Hour)
	mustIssue(t, pki, "beijing.edge1", lab.CertOptions{NotBefore: from})
	id, err := newIdentity(d.cfg)
	if err != nil {
		t.Fatal(err)
	}
	d.id = id
	for _, tt := range []struct {
		at   time.Time
		want string
	}{{from.Add(-time.Minute), "is not valid before"}, {from.Add(time.Minute), ""}} {
		d.Reload()
		d.followCredentials(t.Context(), tt.at)
		got := d.renewal.status(d.id.credentials(), tt.at).Problem
		if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) || strings.Contains(got, "not renewed") {
			t.Errorf("at %v: problem %q; want %q", tt.at, got, tt.want)
		}
	}
}
