package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func newCA(t *testing.T, now time.Time) *CA {
	t.Helper()
	ca, err := NewCA(now)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// existingCA is one that other tools made: with any key, and as they like it.
func existingCA(t *testing.T, key crypto.Signer, change func(*x509.Certificate)) (cert, keyText []byte) {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "fabedge CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if keyText, err = EncodeKey(key); err != nil {
		t.Fatal(err)
	}
	return EncodeCertificate(der), keyText
}

func verify(t *testing.T, ca *CA, cert *x509.Certificate, at time.Time, usage x509.ExtKeyUsage) error {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(ca.Certificate)
	_, err := cert.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{usage}})
	return err
}

func TestNode(t *testing.T) {
	now := time.Now()
	ca := newCA(t, now)
	cert, err := ca.Node(now, "beijing.edge1", newKey(t).Public(), NodeLifetime)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []time.Time{now, now.Add(-30 * time.Minute), now.Add(89 * 24 * time.Hour)} {
		if err := verify(t, ca, cert, at, x509.ExtKeyUsageClientAuth); err != nil {
			t.Errorf("at %s: %v", at, err)
		}
	}
	// Its name may be the one that a rendezvous is reached at.
	if err := verify(t, ca, cert, now, x509.ExtKeyUsageServerAuth); err == nil {
		t.Error("a node's certificate passes for a rendezvous'")
	}
	if err := verify(t, ca, cert, now.Add(91*24*time.Hour), x509.ExtKeyUsageClientAuth); err == nil {
		t.Error("good after its end")
	}
	if got := cert.Subject.String(); got != "CN=beijing.edge1,O=bodkin" || !slices.Equal(cert.DNSNames, []string{"beijing.edge1"}) {
		t.Errorf("subject %s, names %q", got, cert.DNSNames)
	}
	if cert.IsCA || RoleOf(cert) != "" || len(Serial(cert)) != 32 {
		t.Errorf("CA %v, role %q, serial %s", cert.IsCA, RoleOf(cert), Serial(cert))
	}
	// One that lives for minutes is not two thirds through at once.
	short, err := ca.Node(now, "beijing.edge1", newKey(t).Public(), time.Minute)
	if err != nil || now.Sub(short.NotBefore) > time.Minute+time.Second {
		t.Errorf("not before %s, %v", short.NotBefore, err)
	}
}

func TestServer(t *testing.T) {
	now := time.Now()
	ca := newCA(t, now)
	hosts := []string{"198.51.100.1", "rendezvous.example", "2001:db8::1"}
	cert, err := ca.Server(now, hosts, newKey(t).Public())
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"198.51.100.1", "rendezvous.example", "[2001:db8::1]"} {
		if err := cert.VerifyHostname(host); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	if err := verify(t, ca, cert, now, x509.ExtKeyUsageServerAuth); err != nil {
		t.Error(err)
	}
	if err := verify(t, ca, cert, now, x509.ExtKeyUsageClientAuth); err == nil {
		t.Error("a server's certificate passes for a node's")
	}
	if got := Hosts(cert); len(got) != 3 || got[0] != "198.51.100.1" || !slices.Contains(got, "2001:db8::1") {
		t.Errorf("hosts %q, want %q", got, hosts)
	}
	if _, err := ca.Server(now, nil, newKey(t).Public()); err == nil {
		t.Error("a server without a host")
	}
}

func TestOperator(t *testing.T) {
	now := time.Now()
	ca := newCA(t, now)
	cert, err := ca.Operator(now, "alice", "admin", newKey(t).Public(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if RoleOf(cert) != "admin" || len(cert.DNSNames) != 0 {
		t.Errorf("role %q, names %q", RoleOf(cert), cert.DNSNames)
	}
	if err := verify(t, ca, cert, now, x509.ExtKeyUsageClientAuth); err != nil {
		t.Error(err)
	}
	if err := verify(t, ca, cert, now, x509.ExtKeyUsageServerAuth); err == nil {
		t.Error("an operator's certificate passes for a server's")
	}
}

func TestCAEndsEverything(t *testing.T) {
	now := time.Now()
	ca := newCA(t, now)
	late := ca.Certificate.NotAfter.Add(-time.Hour)
	cert, err := ca.Node(late, "beijing.edge1", newKey(t).Public(), NodeLifetime)
	if err != nil || cert.NotAfter.After(ca.Certificate.NotAfter) {
		t.Errorf("until %s, %v; the CA until %s", cert.NotAfter, err, ca.Certificate.NotAfter)
	}
	if _, err := ca.Node(late.Add(2*time.Hour), "beijing.edge1", newKey(t).Public(), NodeLifetime); !errors.Is(err, ErrCA) {
		t.Errorf("after the CA's end: %v", err)
	}
}

func TestParseCA(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for name, key := range map[string]crypto.Signer{"RSA": rsaKey, "ECDSA": newKey(t), "Ed25519": edKey} {
		t.Run(name, func(t *testing.T) {
			for usage, change := range map[string]func(*x509.Certificate){
				"keyUsage": nil, "no keyUsage": func(c *x509.Certificate) { c.KeyUsage = 0 },
			} {
				cert, keyText := existingCA(t, key, change)
				other, _ := existingCA(t, newKey(t), nil)
				ca, err := ParseCA(slices.Concat(other, cert), keyText) // a file may hold several
				if err != nil {
					t.Fatalf("%s: %v", usage, err)
				}
				node, err := ca.Node(now, "beijing.edge1", newKey(t).Public(), time.Hour)
				if err != nil {
					t.Fatal(err)
				}
				if err := verify(t, ca, node, now, x509.ExtKeyUsageClientAuth); err != nil {
					t.Errorf("%s: %v", usage, err)
				}
				der, err := ca.CRL(now, time.Hour, 1, []Revoked{{Serial(node), now}})
				if err != nil {
					t.Fatalf("%s: %v", usage, err)
				}
				if _, err := ParseCRL(der, ca.Certificate); err != nil {
					t.Errorf("%s: %v", usage, err)
				}
			}
		})
	}
}

func TestParseCARefuses(t *testing.T) {
	key := newKey(t)
	cert, keyText := existingCA(t, key, nil)
	noCRL, _ := existingCA(t, key, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCertSign })
	leaf, _ := existingCA(t, key, func(c *x509.Certificate) { c.IsCA = false })
	_, otherKey := existingCA(t, newKey(t), nil)
	tests := []struct {
		name      string
		cert, key []byte
		want      string
		err       error
	}{
		{"another's key", cert, otherKey, "belongs to none", ErrCA},
		{"no CRLs", noCRL, keyText, "keyUsage", ErrCA},
		{"no CA", leaf, keyText, "no CA's certificate", ErrCA},
		{"no certificate", keyText, keyText, "want a block of type CERTIFICATE", ErrPEM},
		{"no key", cert, cert, "want a block of type PRIVATE KEY", ErrPEM},
		{"encrypted key", cert, []byte("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"), "encrypted", ErrPEM},
		{"nonsense in PEM", cert, []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), "PRIVATE KEY", ErrPEM},
		{"empty", nil, nil, "CERTIFICATE", ErrPEM},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseCA(tt.cert, tt.key)
			if !errors.Is(err, tt.err) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %v with %q", err, tt.err, tt.want)
			}
		})
	}
}

func TestParseKeyOfOtherTools(t *testing.T) {
	key := newKey(t)
	sec1, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	// As `openssl ecparam -genkey` writes it.
	text := slices.Concat(pem.EncodeToMemory(&pem.Block{Type: "EC PARAMETERS", Bytes: []byte{6, 8}}),
		pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1}))
	if got, err := ParseKey(text); err != nil || !key.Equal(got) {
		t.Errorf("SEC 1: %v", err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	text = pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(rsaKey)})
	if got, err := ParseKey(text); err != nil || !rsaKey.Equal(got) {
		t.Errorf("PKCS #1: %v", err)
	}
}

func TestRequest(t *testing.T) {
	key := newKey(t)
	text, err := EncodeRequest(key)
	if err != nil {
		t.Fatal(err)
	}
	r, err := ParseRequest(text)
	if err != nil || !key.PublicKey.Equal(r.PublicKey) {
		t.Fatalf("%v", err)
	}
	request := func(key crypto.Signer) []byte {
		text, err := EncodeRequest(key)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	forged, _ := pem.Decode(text)
	other, _ := pem.Decode(request(newKey(t)))
	// Another's key over our signature.
	i := bytes.Index(forged.Bytes, elliptic.Marshal(elliptic.P256(), key.X, key.Y)) //nolint:staticcheck // the point's place in the DER
	j := bytes.Index(other.Bytes, []byte{0x03, 0x42, 0x00, 0x04}) + 3
	if i < 0 || j < 3 {
		t.Fatal("no key in the request")
	}
	copy(forged.Bytes[i:i+65], other.Bytes[j:j+65])
	tests := map[string][]byte{
		"not PEM":            []byte("CSR"),
		"empty":              nil,
		"another block":      bytes.ReplaceAll(text, []byte("CERTIFICATE REQUEST"), []byte("CERTIFICATE")),
		"two blocks":         slices.Concat(text, text),
		"not DER":            pem.EncodeToMemory(&pem.Block{Type: requestBlock, Bytes: []byte("nonsense")}),
		"not signed with it": pem.EncodeToMemory(forged),
		"RSA of 1024 bits":   request(weak),
		"P-224":              request(p224),
	}
	for name, text := range tests {
		if _, err := ParseRequest(text); !errors.Is(err, ErrRequest) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCRL(t *testing.T) {
	now := time.Now()
	ca := newCA(t, now)
	cert, err := ca.Node(now, "beijing.edge1", newKey(t).Public(), NodeLifetime)
	if err != nil {
		t.Fatal(err)
	}
	der, err := ca.CRL(now, time.Hour, 42, []Revoked{{Serial(cert), now}})
	if err != nil {
		t.Fatal(err)
	}
	list, err := ParseCRL(der, ca.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	if list.Number.Uint64() != 42 || len(list.RevokedCertificateEntries) != 1 || list.RevokedCertificateEntries[0].SerialNumber.Cmp(cert.SerialNumber) != 0 {
		t.Errorf("%+v", list)
	}
	if _, err := ParseCRL(der, newCA(t, now).Certificate); err == nil {
		t.Error("another CA's list is taken")
	}
	if _, err := ParseCRL(der[:len(der)-1], ca.Certificate); err == nil {
		t.Error("half a list is taken")
	}
	if _, err := ca.CRL(now, time.Hour, 1, []Revoked{{"not hexadecimal", now}}); err == nil {
		t.Error("a serial that is none")
	}
}

// strongSwan's own tool takes what is made here, and refuses what is revoked.
func TestStrongSwanVerifies(t *testing.T) {
	tool, err := exec.LookPath("pki")
	if err != nil {
		t.Skip("needs strongSwan's pki: install strongswan-pki")
	}
	now := time.Now()
	ca := newCA(t, now)
	cert, err := ca.Node(now, "beijing.edge1", newKey(t).Public(), NodeLifetime)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	caPath, certPath := write("ca.crt", EncodeCertificate(ca.Certificate.Raw)), write("node.crt", EncodeCertificate(cert.Raw))
	verify := func(revoked ...Revoked) (string, error) {
		der, err := ca.CRL(now, time.Hour, uint64(len(revoked)+1), revoked)
		if err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), tool, "--verify", "--in", certPath, "--cacert", caPath, "--crl", write("crl.der", der)).CombinedOutput()
		return string(out), err
	}
	if out, err := verify(); err != nil {
		t.Errorf("a good certificate: %v\n%s", err, out)
	}
	if out, err := verify(Revoked{Serial(cert), now}); err == nil || !strings.Contains(out, "revoked") {
		t.Errorf("a revoked certificate: %v\n%s", err, out)
	}
}

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "ca.key")
	for _, content := range []string{"one", "the second"} {
		if err := WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != content {
			t.Errorf("%q, %v, want %q", got, err, content)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	// Nothing is left of one that fails.
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "d", "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(filepath.Join(dir, "d"), []byte("x"), 0o600); err == nil {
		t.Error("a directory was written over")
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 2 {
		t.Errorf("%v, %v", names, err)
	}
}
