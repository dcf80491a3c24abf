package charon

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait for something that normally takes milliseconds;
// it is only reached when a test fails.
const patience = 60 * time.Second

func needsRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: run as root (make test does)")
	}
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	t.Cleanup(cancel)
	return ctx
}

// eventually polls until cond is nil.
func eventually(t *testing.T, what string, cond func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if err = cond(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

func run(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}

// node is a network namespace with a charon in it.
type node struct {
	t       *testing.T
	name    string
	netns   string
	dir     string
	addr    string // on the veth to the other node
	inside  string // inside its traffic selector
	process *exec.Cmd
}

// newPair joins two namespaces by a veth. Each node also has an address inside
// its selectors, without which kernel-libipsec cannot install a route.
func newPair(t *testing.T) (a, b *node) {
	needsRoot(t)
	a = newNode(t, "a", "192.0.2.1", "10.233.66.1")
	b = newNode(t, "b", "192.0.2.2", "10.233.67.1")
	run(t, "ip", "link", "add", "eth0", "netns", a.netns, "type", "veth", "peer", "name", "eth0", "netns", b.netns)
	for _, n := range []*node{a, b} {
		run(t, "ip", "-n", n.netns, "addr", "add", n.addr+"/24", "dev", "eth0")
		run(t, "ip", "-n", n.netns, "addr", "add", n.inside+"/32", "dev", "lo")
		run(t, "ip", "-n", n.netns, "link", "set", "lo", "up")
		run(t, "ip", "-n", n.netns, "link", "set", "eth0", "up")
	}
	return a, b
}

func newNode(t *testing.T, name, addr, inside string) *node {
	sweep(t)
	n := &node{t: t, name: name, addr: addr, inside: inside, dir: t.TempDir()}
	n.netns = fmt.Sprintf("bdkc-%d-%s", os.Getpid(), name)
	run(t, "ip", "netns", "add", n.netns)
	t.Cleanup(func() { run(t, "ip", "netns", "del", n.netns) })
	return n
}

// sweep removes namespaces of test runs that were killed before they could.
func sweep(t *testing.T) {
	left, err := filepath.Glob("/run/netns/bdkc-*")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range left {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(path), "bdkc-"), "-")
		if _, err := os.Stat("/proc/" + pid); errors.Is(err, fs.ErrNotExist) {
			run(t, "ip", "netns", "del", filepath.Base(path))
		}
	}
}

func (n *node) socket() string { return filepath.Join(n.dir, "charon.vici") }

// config is a strongswan.conf: ESP in user space, because not every kernel has it.
func (n *node) config() string {
	return fmt.Sprintf(`charon {
  load = random nonce drbg x509 revocation constraints pubkey pkcs1 pkcs8 pem openssl gmp gcm aes sha1 sha2 hmac kdf curve25519 kernel-libipsec kernel-netlink socket-default vici
  install_virtual_ip = no
  plugins {
    vici { socket = unix://%s }
    kernel-libipsec { allow_peer_ts = yes }
    kernel-netlink { fwmark = !0x42 }
    socket-default { fwmark = 0x42 }
  }
  filelog { log { path = %s
    default = 1
    time_format = %%H:%%M:%%S
    flush_line = yes } }
}
`, n.socket(), n.log())
}

func (n *node) log() string { return filepath.Join(n.dir, "charon.log") }

// start runs charon until stop or the end of the test. It does not wait for it
// to be ready: that is what EventUp is for.
func (n *node) start() {
	n.t.Helper()
	conf := filepath.Join(n.dir, "strongswan.conf")
	if err := os.WriteFile(conf, []byte(n.config()), 0o600); err != nil {
		n.t.Fatal(err)
	}
	// charon's pid file is in /run, one for all: so it gets a /run of its own.
	n.process = exec.Command("ip", "netns", "exec", n.netns, "unshare", "-m", "sh", "-c",
		"mount -t tmpfs tmpfs /run && exec /usr/lib/ipsec/charon")
	n.process.Env = append(os.Environ(), "STRONGSWAN_CONF="+conf)
	n.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := n.process.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		n.stop()
		if n.t.Failed() {
			log, _ := os.ReadFile(n.log())
			n.t.Logf("charon of %s:\n%s", n.name, log)
		}
	})
}

// stop kills charon as a crash would.
func (n *node) stop() {
	if n.process == nil {
		return
	}
	n.process.Process.Kill()
	n.process.Wait() // it says "killed"
	n.process = nil
}

// client starts a client for the node's charon and waits until it is up.
func (n *node) client() *Client {
	n.t.Helper()
	c := startClient(n.t, Options{Socket: n.socket()})
	waitEvent(n.t, c, "charon is up", func(e Event) bool { return e.Kind == EventUp })
	return c
}

func (n *node) ping(dst string, count int) error {
	out, err := exec.Command("ip", "netns", "exec", n.netns,
		"ping", "-n", "-c", fmt.Sprint(count), "-i", "0.05", "-W", "5", "-I", n.inside, dst).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ping %s: %w\n%s", dst, err, out)
	}
	return nil
}

func startClient(t *testing.T, o Options) *Client {
	t.Helper()
	c := New(o)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
	return c
}

// waitEvent reads events until one matches.
func waitEvent(t *testing.T, c *Client, what string, match func(Event) bool) Event {
	t.Helper()
	timeout := time.After(patience)
	var seen []string
	for {
		select {
		case e, ok := <-c.Events():
			if !ok {
				t.Fatalf("waiting for %s: events closed", what)
			}
			if match(e) {
				return e
			}
			seen = append(seen, fmt.Sprintf("%s %s %s %v", e.Kind, e.Name, e.Child, e.Err))
		case <-timeout:
			t.Fatalf("waiting for %s: saw %q", what, seen)
		}
	}
}

// authority issues certificates as FabEdge's does: C=CN, O=fabedge.io, CN=name.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *rsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	ca := &authority{t: t}
	var der []byte
	ca.key, der = ca.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "test CA"},
		IsCA:    true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign,
	})
	var err error
	if ca.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	ca.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return ca
}

// sign fills in what all certificates share; the first one signs itself.
func (ca *authority) sign(template *x509.Certificate) (*rsa.PrivateKey, []byte) {
	ca.t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		ca.t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore = time.Now().Add(-time.Hour)
	template.NotAfter = time.Now().Add(24 * time.Hour)
	issuer, issuerKey := ca.cert, ca.key
	if issuer == nil {
		issuer, issuerKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), issuerKey)
	if err != nil {
		ca.t.Fatal(err)
	}
	return key, der
}

func (ca *authority) issue(name string) Credentials {
	ca.t.Helper()
	key, der := ca.sign(&x509.Certificate{
		Subject:  pkix.Name{Country: []string{"CN"}, Organization: []string{"fabedge.io"}, CommonName: name},
		DNSNames: []string{name},
	})
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		ca.t.Fatal(err)
	}
	return Credentials{
		CertPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		KeyPEM:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}),
		CAPEMs:  [][]byte{ca.pem},
	}
}
