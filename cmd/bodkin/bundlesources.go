package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/bodkin-net/bodkin/agent"
	"github.com/bodkin-net/bodkin/agent/charon"
)

const (
	// journalLines are kept of each unit: some days of an agent that has nothing to
	// complain of.
	journalLines = 5000
	// charonTimeout bounds asking charon, which answers in milliseconds.
	charonTimeout = 3 * time.Second
)

// units are those whose journal is of interest: ours, and charon's under the
// names that distributions give it.
var units = []string{"bodkin-agent", "bodkin-rendezvous", "strongswan", "strongswan-starter", "charon-systemd"}

// bundleSources say where a bundle's parts come from.
type bundleSources struct {
	agent                    agentFlags
	config, rendezvousConfig string
	log                      []string
}

// parts are all parts of a bundle on this machine.
func (s *bundleSources) parts(server *rendezvousFlags) []part {
	parts := []part{
		jsonPart("version.json", func(context.Context) (any, error) { return buildInfo(), nil }),
		s.get("agent/status.json", "/v1/status"),
		s.get("agent/sas.json", "/v1/sas"),
		s.get("agent/metrics.txt", "/metrics"),
		doctorPart(s.config),
		filePart("config/agent.yaml", s.config),
		s.charonPart(),
		commandPart("charon/stats.txt", "swanctl", "--stats", "--uri", "unix://"+s.viciSocket()),
		commandPart("charon/conns.txt", "swanctl", "--list-conns", "--uri", "unix://"+s.viciSocket()),
	}
	parts = append(parts, systemParts()...)
	for _, path := range s.log {
		p := filePart("log/"+strings.ReplaceAll(strings.Trim(path, "/"), "/", "-"), path)
		p.tail = true
		parts = append(parts, p)
	}
	return append(parts, s.rendezvousParts(server)...)
}

func systemParts() []part {
	parts := []part{
		commandPart("system/uname.txt", "uname", "-a"),
		filePart("system/os-release.txt", "/etc/os-release"),
		commandPart("system/addresses.txt", "ip", "-d", "address"),
		commandPart("system/routes.txt", "ip", "route", "show", "table", "all"),
		commandPart("system/routes6.txt", "ip", "-6", "route", "show", "table", "all"),
		commandPart("system/rules.txt", "ip", "rule"),
		commandPart("system/rules6.txt", "ip", "-6", "rule"),
		commandPart("system/xfrm-policies.txt", "ip", "-s", "xfrm", "policy"),
		commandPart("system/xfrm-states.txt", "ip", "-s", "xfrm", "state", "list", "nokeys"),
		filePart("system/xfrm-errors.txt", "/proc/net/xfrm_stat"),
		commandPart("system/nftables.txt", "nft", "list", "ruleset"),
		commandPart("system/udp-ports.txt", "ss", "-ulnp"),
		filePart("system/modules.txt", "/proc/modules"),
		{name: "system/sysctls.txt", read: readSysctls},
	}
	for _, u := range units {
		p := commandPart("log/"+u+".txt", "journalctl", "--no-pager", "--unit", u, "--lines", strconv.Itoa(journalLines), "--output", "short-iso-precise")
		p.tail = true
		parts = append(parts, p)
	}
	return parts
}

// rendezvousParts are what a rendezvous knows, where one is to be asked.
func (s *bundleSources) rendezvousParts(server *rendezvousFlags) []part {
	c, err := server.client()
	if err != nil {
		return []part{{name: "rendezvous", read: func(context.Context) ([]byte, error) { return nil, err }}}
	}
	if strings.HasPrefix(c.where, "/") {
		if _, err := os.Stat(c.where); errors.Is(err, fs.ErrNotExist) {
			return nil // an edge
		}
	}
	parts := []part{filePart("config/rendezvous.yaml", s.rendezvousConfig)}
	for _, what := range []string{"overview", "nodes", "pairs", "communities", "events?limit=1000", "audit?limit=1000"} {
		name, _, _ := strings.Cut(what, "?")
		parts = append(parts, rawPart("rendezvous/"+name+".json", c, "/api/v1/"+what))
	}
	return append(parts, rawPart("rendezvous/metrics.txt", c, "/metrics"))
}

func (s *bundleSources) get(name, path string) part {
	return part{name: name, read: func(ctx context.Context) (b []byte, err error) {
		err = s.agent.client().get(ctx, path, nil, &b)
		return b, err
	}}
}

func rawPart(name string, c *client, path string) part {
	return part{name: name, read: func(ctx context.Context) (b []byte, err error) {
		err = c.get(ctx, path, nil, &b)
		return b, err
	}}
}

func filePart(name, path string) part {
	return part{name: name, read: func(context.Context) ([]byte, error) { return os.ReadFile(path) }}
}

// commandPart is what a command prints, on both its outputs.
func commandPart(name, command string, args ...string) part {
	return part{name: name, read: func(ctx context.Context) ([]byte, error) {
		cmd := exec.CommandContext(ctx, command, args...)
		cmd.Env = append(os.Environ(), "LC_ALL=C")
		cmd.WaitDelay = time.Second // a grandchild may hold the pipe
		out, err := cmd.CombinedOutput()
		if err != nil {
			return out, fmt.Errorf("%s: %w", strings.Join(cmd.Args, " "), err)
		}
		return out, nil
	}}
}

// doctorPart has another bodkin look, for it to have its own time.
func doctorPart(config string) part {
	self, err := os.Executable()
	if err != nil {
		self = "bodkin"
	}
	p := commandPart("doctor.json", self, "doctor", "--config", config, "-o", "json")
	p.timeout = bundleDoctorTimeout
	read := p.read
	p.read = func(ctx context.Context) ([]byte, error) {
		out, err := read(ctx)
		if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == exitProblems {
			err = nil // it has found something, and says so
		}
		return out, err
	}
	return p
}

// viciSocket is the configured one.
func (s *bundleSources) viciSocket() string {
	cfg, err := agent.ReadConfig(s.config)
	if err != nil || cfg.VICISocket == "" {
		return charon.DefaultSocket
	}
	return cfg.VICISocket
}

// charonPart asks charon itself, which works where there is no swanctl.
func (s *bundleSources) charonPart() part {
	return jsonPart("charon/version.json", func(ctx context.Context) (any, error) {
		ctx, cancel := context.WithTimeout(ctx, charonTimeout)
		defer cancel()
		c := charon.New(charon.Options{Socket: s.viciSocket(), Timeout: charonTimeout})
		run, stop := context.WithCancel(ctx)
		var running sync.WaitGroup
		running.Go(func() { _ = c.Run(run) }) // ends with run's error
		defer running.Wait()
		defer stop()
		version, err := c.Version(ctx)
		if err != nil {
			return nil, err
		}
		plugins, err := c.Plugins(ctx)
		return struct {
			Daemon  string   `json:"daemon"`
			Version string   `json:"version"`
			System  string   `json:"system"`
			Plugins []string `json:"plugins"`
		}{version.Daemon, version.Version, strings.Join([]string{version.System, version.Release, version.Machine}, " "), plugins}, err
	})
}

// sysctls are those that tunnels and relaying depend on, as patterns below
// /proc/sys.
var sysctls = []string{
	"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv4/conf/*/rp_filter", "net/ipv4/conf/*/forwarding",
	"net/ipv4/conf/*/disable_policy", "net/ipv4/conf/*/disable_xfrm", "net/ipv4/ip_local_port_range", "net/ipv4/ip_no_pmtu_disc",
	"net/ipv4/xfrm4_gc_thresh", "net/core/xfrm_*", "net/core/rmem_max", "net/core/wmem_max", "net/netfilter/nf_conntrack_udp_timeout*",
	"net/netfilter/nf_conntrack_max", "net/netfilter/nf_conntrack_count",
}

func readSysctls(context.Context) ([]byte, error) {
	const root = "/proc/sys/"
	var b bytes.Buffer
	for _, pattern := range sysctls {
		paths, err := filepath.Glob(root + pattern)
		if err != nil {
			return nil, err
		}
		for _, path := range paths {
			value, err := os.ReadFile(path)
			if err != nil {
				value = []byte(err.Error())
			}
			fmt.Fprintf(&b, "%s = %s\n", strings.ReplaceAll(strings.TrimPrefix(path, root), "/", "."), bytes.TrimSpace(value))
		}
	}
	return b.Bytes(), nil
}
