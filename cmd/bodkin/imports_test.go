package main

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const modulePath = "github.com/bodkin-net/bodkin"

// room is what a package may import, tests aside. Rooms are packages of this
// module, modules are prefixes of import paths outside of it.
type room struct {
	rooms, modules []string
}

// rooms is the table of the design: who knows whom. wire, punch, store and
// agent/charon do not know each other, and agent knows nothing of rendezvous
// but the wire.
var rooms = map[string]room{
	"rendezvous/wire": {},
	"rendezvous": {
		rooms: []string{"rendezvous/wire", "rendezvous/access", "rendezvous/enrol", "rendezvous/page", "punch/nat", "store",
			"internal/pki", "internal/certfile", "internal/yamlfile", "internal/unixsock"},
		modules: []string{
			"github.com/pion/stun/v4", "github.com/gorilla/websocket",
			"go.yaml.in/yaml/v3",                  // communities
			"github.com/prometheus/client_golang", // metrics
			"github.com/fsnotify/fsnotify",        // communitiesDir
		},
	},
	// Who may do what over the API, who may join, and what a browser gets: three
	// rooms that know nothing of sessions and pairs.
	"rendezvous/access": {rooms: []string{"store"}, modules: []string{"golang.org/x/time"}},
	"rendezvous/enrol":  {rooms: []string{"rendezvous/wire", "store", "internal/pki"}},
	"rendezvous/page":   {},
	// What NATs do and what follows: measured by punch, judged by the
	// rendezvous, so neither owns it.
	"punch/nat": {},
	"punch": {
		rooms: []string{"punch/nat"},
		modules: []string{
			"github.com/pion/ice/v4", "github.com/pion/stun/v4",
			"github.com/pion/logging", "github.com/pion/transport/v5", // in the interfaces of pion/ice
		},
	},
	// The two ways of making a router or this host's own netfilter help.
	"punch/portmap": {modules: []string{"github.com/huin/goupnp", "github.com/vishvananda/netlink"}},
	"punch/rewrite": {modules: []string{"github.com/google/nftables", "github.com/vishvananda/netlink", "golang.org/x/sys"}},
	"punch/rawudp":  {modules: []string{"golang.org/x/sys", "golang.org/x/net"}},
	"agent": {
		rooms: []string{"rendezvous/wire", "punch", "punch/nat", "punch/rawudp", "punch/rewrite", "punch/portmap", "agent/charon", "agent/forward",
			"internal/pki", "internal/certfile", "internal/yamlfile", "internal/unixsock"},
		modules: []string{
			"github.com/gorilla/websocket",
			"github.com/vishvananda/netlink", // addresses and routes
			"golang.org/x/sys",               // SO_MARK
		},
	},
	// Who may talk to whom through the connector, in the host's netfilter.
	"agent/forward": {modules: []string{"github.com/google/nftables", "golang.org/x/sys"}},
	"agent/charon":  {modules: []string{"github.com/strongswan/govici"}},
	// Becoming a node, before there is an agent: `bodkin join`.
	"agent/join": {rooms: []string{"rendezvous/wire", "agent", "internal/pki"}, modules: []string{"go.yaml.in/yaml/v3"}},
	// What can be wrong on a machine: `bodkin doctor`.
	"agent/doctor": {
		rooms: []string{"agent", "agent/charon", "agent/doctor/ruleset", "punch/rawudp", "rendezvous/wire", "internal/certfile",
			"punch",          // STUN from the shared port
			"punch/rewrite"}, // tries the rules, without a trace
		modules: []string{"github.com/vishvananda/netlink", "github.com/google/nftables", "golang.org/x/sys", "golang.org/x/net", "github.com/pion/stun/v4"},
	},
	// What the host's firewall would do with a packet: knows nothing of Bodkin.
	"agent/doctor/ruleset": {modules: []string{"github.com/google/nftables"}},
	// Both daemons read their configuration alike, and do not know each other.
	"internal/yamlfile": {modules: []string{"go.yaml.in/yaml/v3"}},
	// Keys, requests and certificates as both ends of a join make them, and files of
	// them as both daemons follow them.
	"internal/pki":      {},
	"internal/certfile": {rooms: []string{"internal/pki"}},
	// Both open a command socket alike.
	"internal/unixsock": {},
	// The tables of docs/configuration.md.
	"internal/configdoc": {rooms: []string{"agent", "rendezvous"}},
	// Network namespaces, for tests of what belongs to a whole host.
	"internal/nstest": {modules: []string{"golang.org/x/sys"}},
	"store":           {modules: []string{"go.etcd.io/bbolt"}},
	"cmd/bodkin": {
		rooms: []string{"rendezvous", "rendezvous/wire", "rendezvous/access", "rendezvous/enrol", "agent", "agent/charon", "agent/join", "agent/doctor",
			"punch", "punch/nat", "punch/portmap", "punch/rawudp", "store", "internal/pki", "internal/yamlfile"},
		modules: []string{
			"github.com/spf13/cobra", "github.com/coreos/go-systemd/v22",
			"go.yaml.in/yaml/v3", // -o yaml
			"golang.org/x/term",  // colours only there
			"golang.org/x/sys",   // the clock that systemd counts by
		},
	},
	// The lab stands beside Bodkin: what it tests is the built binary.
	"e2e/lab": {modules: []string{"github.com/strongswan/govici", "golang.org/x/sys", "golang.org/x/net"}},
	"e2e":     {rooms: []string{"e2e/lab"}, modules: []string{"golang.org/x/net"}},
	"e2e/labrun": {
		rooms: []string{"e2e", "e2e/lab", "agent/charon",
			"agent", "rendezvous/wire"}, // a thousand agents, without tunnels
		modules: []string{
			"github.com/spf13/cobra", "github.com/strongswan/govici", "golang.org/x/sys", "golang.org/x/net",
			"github.com/gorilla/websocket",
			"github.com/chromedp/chromedp", "github.com/chromedp/cdproto", // how fast the page is, is a browser's to say
		},
	},
}

type goPackage struct {
	ImportPath string
	Imports    []string
}

func listPackages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports", modulePath+"/...")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var pkgs []goPackage
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

func TestImports(t *testing.T) {
	for _, p := range listPackages(t) {
		for _, complaint := range breaches(p) {
			t.Error(complaint)
		}
	}
}

// breaches says how a package breaks the table.
func breaches(p goPackage) []string {
	name := strings.TrimPrefix(p.ImportPath, modulePath+"/")
	for element := range strings.SplitSeq(name, "/") {
		if slices.Contains([]string{"util", "utils", "common", "helper", "helpers"}, element) {
			return []string{"package " + name + ": a name that says nothing: call it by what it holds"}
		}
	}
	allowed, ok := rooms[name]
	if !ok {
		return []string{"package " + name + " is not in the table of rooms: add it there, with what it may import and the reason it exists"}
	}
	var out []string
	for _, path := range p.Imports {
		if !mayImport(allowed, path) {
			out = append(out, "package "+name+" imports "+strings.TrimPrefix(path, modulePath+"/")+
				", which the table of rooms does not allow: move the code, or change the table and say why")
		}
	}
	return out
}

func mayImport(r room, path string) bool {
	if own, ok := strings.CutPrefix(path, modulePath+"/"); ok {
		return slices.Contains(r.rooms, own)
	}
	if first, _, _ := strings.Cut(path, "/"); !strings.Contains(first, ".") {
		return true // the standard library
	}
	return slices.ContainsFunc(r.modules, func(m string) bool { return path == m || strings.HasPrefix(path, m+"/") })
}

// The rules themselves, on packages that break them.
func TestBreaches(t *testing.T) {
	tests := []struct {
		name, imports, want string // want is empty where all is well
	}{
		{"store", "fmt go.etcd.io/bbolt go.etcd.io/bbolt/errors", ""},
		{"store", "go.etcd.io/bbolt2", "imports go.etcd.io/bbolt2"},
		{"agent", modulePath + "/rendezvous/wire", ""},
		{"agent", modulePath + "/rendezvous", "agent imports rendezvous"},
		{"agent", modulePath + "/store", "agent imports store"},
		{"punch", modulePath + "/punch/rawudp", "punch imports punch/rawudp"},
		{"rendezvous/wire", "github.com/pion/stun/v4", "imports github.com/pion/stun/v4"},
		{"rendezvous", modulePath + "/cmd/bodkin", "imports cmd/bodkin"},
		{"cmd/bodkin", modulePath + "/e2e/lab", "imports e2e/lab"},
		{"agent/util", "fmt", "a name that says nothing"},
		{"gossip", "fmt", "add it there"},
	}
	for _, tt := range tests {
		got := strings.Join(breaches(goPackage{ImportPath: modulePath + "/" + tt.name, Imports: strings.Fields(tt.imports)}), "\n")
		if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
			t.Errorf("%s importing %s: %q; want %q", tt.name, tt.imports, got, tt.want)
		}
	}
}
