package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/strongswan/govici/vici"
)

// Where Debian's packages put the daemon and its plugins.
const (
	charonPath = "/usr/lib/ipsec/charon"
	pluginDir  = "/usr/lib/ipsec/plugins"
)

const (
	// charonStartTimeout is how long charon may take to answer over VICI.
	// Alone it takes 0.1 s; eight starting at once under the race detector on
	// two cores take seconds.
	charonStartTimeout = 20 * time.Second
	// charonStopTimeout leaves charon time to send its deletes to every peer.
	charonStopTimeout = 10 * time.Second
	// charonPoll is how often a charon that is starting is asked.
	charonPoll = 10 * time.Millisecond
	// maxSocketPath is the longest path a UNIX socket can have, sun_path of
	// unix(7) without its closing zero.
	maxSocketPath = 107
)

// swanctlFolders are those swanctl complains about when they are missing.
var swanctlFolders = []string{
	"x509", "x509ca", "x509ocsp", "x509aa", "x509ac", "x509crl", "pubkey",
	"private", "rsa", "ecdsa", "bliss", "pkcs8", "pkcs12",
}

// CharonOptions say what a charon is given beyond the lab's own settings.
type CharonOptions struct {
	// Node makes the lab's CA issue a certificate of that name and puts it,
	// the key and the CA where `swanctl --load-creds` finds them. Empty: none.
	Node string
	// Swanctl is the text of swanctl.conf, loaded (--load-all) before
	// StartCharon returns. Empty with an empty Node loads nothing.
	Swanctl string
	// Strongswan is appended to strongswan.conf and overrides what stands
	// before it, such as "charon { retransmit_tries = 2 }".
	Strongswan string
}

// VICISocket is the path of charon's VICI socket. It is outside of charon's
// private /run, so any process on the machine can use it.
func (h *Host) VICISocket() string { return filepath.Join(h.dir, "charon.vici") }

// SwanctlDir is what /etc/swanctl is to swanctl on this host.
func (h *Host) SwanctlDir() string { return filepath.Join(h.dir, "swanctl") }

func (h *Host) strongswanConf() string { return filepath.Join(h.dir, "strongswan.conf") }

// StartCharon starts charon on the host and returns once it answers over
// VICI. It listens on UDP 500 and 4500. A charon that ended may be started
// again; certificates of the same Node are then issued anew.
func (h *Host) StartCharon(opts CharonOptions) (*Process, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.charon != nil && !h.charon.ended() {
		return nil, fmt.Errorf("charon on %s: already running with pid %d", h.name, h.charon.PID())
	}
	if err := h.writeCharonFiles(opts); err != nil {
		return nil, fmt.Errorf("charon on %s: %w", h.name, err)
	}
	// charon keeps its pid file in /run, so several need one each; the new
	// mount namespace's changes are private to it.
	cmd := exec.CommandContext(h.lab.ctx, "sh", "-c", `mount -t tmpfs tmpfs /run && exec "$0"`, charonPath)
	cmd.Env = append(os.Environ(), "STRONGSWAN_CONF="+h.strongswanConf())
	cmd.SysProcAttr = childAttributes()
	cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS
	p, err := h.start("charon", cmd)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(h.lab.ctx, charonStartTimeout)
	defer cancel()
	if err := awaitVICI(ctx, h.VICISocket(), p); err != nil {
		p.Kill()
		return nil, fmt.Errorf("charon on %s: %w; its log: %s", h.name, err, p.Log())
	}
	if opts.Node != "" || opts.Swanctl != "" {
		if err := h.loadSwanctlConf(ctx); err != nil {
			p.Kill()
			return nil, fmt.Errorf("charon on %s: %w", h.name, err)
		}
	}
	h.charon = p
	return p, nil
}

// loadSwanctlConf also fails on a syntax error, after which swanctl loads
// nothing and exits with 0.
func (h *Host) loadSwanctlConf(ctx context.Context) error {
	out, err := h.Swanctl(ctx, "--load-all")
	if err != nil {
		return err
	}
	if strings.Contains(out, "invalid config file") {
		return fmt.Errorf("load swanctl.conf: %s", out)
	}
	return nil
}

// StopCharon ends charon in order: it deletes its SAs at the peers first.
// Without a charon it does nothing.
func (h *Host) StopCharon() error {
	p := h.takeCharon()
	if p == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), charonStopTimeout)
	defer cancel()
	return p.Stop(ctx)
}

// KillCharon ends charon as a crash does: peers are told nothing.
func (h *Host) KillCharon() {
	if p := h.takeCharon(); p != nil {
		p.Kill()
	}
}

func (h *Host) takeCharon() *Process {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.charon
	h.charon = nil
	return p
}

// Swanctl runs swanctl with the given arguments against the host's charon and
// returns what it printed.
func (h *Host) Swanctl(ctx context.Context, args ...string) (string, error) {
	argv := append([]string{"swanctl"}, args...)
	argv = append(argv, "--uri", "unix://"+h.VICISocket())
	env := []string{"SWANCTL_DIR=" + h.SwanctlDir(), "STRONGSWAN_CONF=" + h.strongswanConf()}
	return h.ns.command(ctx, env, "", argv...)
}

// awaitVICI asks until charon answers, charon ends or ctx does. The socket
// exists before charon serves it, so only an answer counts.
func awaitVICI(ctx context.Context, socket string, p *Process) error {
	tick := time.NewTicker(charonPoll)
	defer tick.Stop()
	for {
		err := askVersion(ctx, socket)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-p.Done():
			return errors.New("it ended while starting")
		case <-ctx.Done():
			return fmt.Errorf("no answer over vici: %w: %w", ctx.Err(), err)
		}
	}
}

// askVersion is bounded by ctx's deadline, on the connection: govici's calls
// take no context.
func askVersion(ctx context.Context, socket string) error {
	dial := func(_ context.Context, network, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		if deadline, ok := ctx.Deadline(); ok && err == nil {
			err = conn.SetDeadline(deadline)
		}
		return conn, err
	}
	session, err := vici.NewSession(vici.WithAddr("unix", socket), vici.WithDialContext(dial))
	if err != nil {
		return err
	}
	defer session.Close()
	_, err = session.CommandRequest("version", nil)
	return err
}

// writeCharonFiles lays out strongswan.conf and the swanctl folder.
func (h *Host) writeCharonFiles(opts CharonOptions) error {
	if len(h.VICISocket()) > maxSocketPath {
		return fmt.Errorf("vici socket %s: path is longer than %d bytes: give the lab a shorter Dir", h.VICISocket(), maxSocketPath)
	}
	if err := os.Remove(h.VICISocket()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	conf := strongswanConf(h.VICISocket(), h.lab.kernelESP) + opts.Strongswan + "\n"
	if err := os.WriteFile(h.strongswanConf(), []byte(conf), 0o644); err != nil {
		return err
	}
	for _, folder := range swanctlFolders {
		if err := os.MkdirAll(filepath.Join(h.SwanctlDir(), folder), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(h.SwanctlDir(), "swanctl.conf"), []byte(opts.Swanctl+"\n"), 0o644); err != nil {
		return err
	}
	if opts.Node == "" {
		return nil
	}
	return h.installCertificate(opts.Node)
}

func (h *Host) installCertificate(node string) error {
	cert, key, err := h.lab.pki.Issue(node, CertOptions{})
	if err != nil {
		return err
	}
	for from, to := range map[string]string{
		h.lab.pki.CAPath(): "x509ca/ca.pem",
		cert:               "x509/node.pem",
		key:                "private/node.pem",
	} {
		text, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(h.SwanctlDir(), to), text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// libipsecSettings go with the kernel-libipsec plugin, user-space ESP for
// kernels without it, which must come before kernel-netlink. The mark keeps
// charon's own UDP packets out of the routes into libipsec's TUN device;
// without it they would be sent through the tunnel they carry.
const libipsecSettings = `
    kernel-libipsec {
      allow_peer_ts = yes
    }
    kernel-netlink {
      fwmark = !0x42
    }
    socket-default {
      fwmark = 0x42
    }`

// strongswanConf names every plugin, since the machine's own configuration
// loads some that reach outside of the lab.
func strongswanConf(viciSocket string, kernelESP bool) string {
	optional := installedPlugins("openssl", "gcm")
	dataPlane, dataPlaneSettings := "kernel-libipsec kernel-netlink", libipsecSettings
	if kernelESP {
		dataPlane, dataPlaneSettings = "kernel-netlink", ""
	}
	return `charon {
  load = random nonce aes sha1 sha2 hmac kdf drbg mgf1 gmp curve25519 chapoly ccm x509 pubkey pkcs1 pkcs8 pem constraints revocation ` + optional + ` ` + dataPlane + ` socket-default vici updown
  make_before_break = yes
  filelog {
    stderr {
      default = 1
      ike_name = yes
      time_format = %H:%M:%S
      flush_line = yes
    }
  }
  plugins {` + dataPlaneSettings + `
    vici {
      socket = unix://` + viciSocket + `
    }
  }
}
swanctl {
  load = random sha1 sha2 curve25519 gmp x509 pubkey pkcs1 pkcs8 pem ` + optional + `
}
`
}

// installedPlugins leaves out plugins that this machine lacks: charon and
// swanctl complain about each of them at every start. Without openssl there is
// no ECDSA, without either no AES-GCM, which charon proposes for ESP all the
// same unless told otherwise.
func installedPlugins(names ...string) string {
	installed := slices.DeleteFunc(names, func(name string) bool {
		_, err := os.Stat(filepath.Join(pluginDir, "libstrongswan-"+name+".so"))
		return err != nil
	})
	return strings.Join(installed, " ")
}
