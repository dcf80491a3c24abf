package main

import (
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/bodkin-net/bodkin/punch/nat"
	"github.com/bodkin-net/bodkin/rendezvous"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

func TestMeaning(t *testing.T) {
	const everybody = "direct with everybody whose network lets UDP out"
	const ei, ad, apd = nat.EndpointIndependent, nat.AddressDependent, nat.AddressAndPortDependent
	for name, tc := range map[string]struct {
		nat     nat.NAT
		mapping bool
		want    string
	}{
		"no NAT":          {nat.NAT{Mapping: ei, Filtering: ei}, false, everybody},
		"port-restricted": {nat.NAT{Present: true, Mapping: ei, Filtering: apd, Poisoned: nat.Yes}, false, everybody},
		"symmetric, random": {
			nat.NAT{Present: true, Mapping: apd, Filtering: apd, Allocation: nat.Random}, false,
			everybody + ", except behind symmetric NATs that count and symmetric NATs with random ports",
		},
		"symmetric, random, with port mapping": {
			nat.NAT{Present: true, Mapping: apd, Filtering: apd, Allocation: nat.Random, Hops: 2}, true, everybody,
		},
		"symmetric, random, with port mapping before a carrier's NAT": {
			nat.NAT{Present: true, Mapping: apd, Filtering: apd, Allocation: nat.Random, Hops: 3}, true,
			"at least, " + everybody + ", except behind symmetric NATs that count and symmetric NATs with random ports",
		},
		"port-restricted, with port mapping before a carrier's NAT": {
			nat.NAT{Present: true, Mapping: ei, Filtering: apd, Hops: 3}, true, everybody,
		},
		"symmetric by address": {
			nat.NAT{Present: true, Mapping: ad, Filtering: ad, Allocation: nat.Random}, false,
			everybody + ", except behind symmetric NATs that count and symmetric NATs with random ports",
		},
		"symmetric, counting": {
			nat.NAT{Present: true, Mapping: apd, Filtering: apd, Allocation: nat.Sequential, Step: 1}, false,
			everybody + ", except behind symmetric NATs with random ports",
		},
		"filtering not known": {nat.NAT{Present: true, Mapping: ei}, false, "at least, " + everybody},
		"nothing known": {
			nat.NAT{Present: true}, false,
			"at least, " + everybody + ", except behind symmetric NATs that count and symmetric NATs with random ports",
		},
		"blocked": {nat.NAT{Blocked: "no answer"}, true, "direct with nobody: UDP does not leave this network"},
	} {
		if got := meaning(tc.nat, tc.mapping); got != tc.want {
			t.Errorf("%s:\ngot  %s\nwant %s", name, got, tc.want)
		}
	}
}

func TestPrintNetcheck(t *testing.T) {
	at := netip.MustParseAddrPort
	report := func(n nat.NAT, mapped string, protocols ...string) *netcheckReport {
		r := &netcheckReport{Local: at("192.168.1.10:4500"), Servers: []netip.AddrPort{at("203.0.113.1:3478"), at("203.0.113.1:3479")}, nat: n}
		if mapped != "" {
			r.Mapped = at(mapped)
		}
		r.finish(protocols)
		return r
	}
	const header = "from          192.168.1.10[4500]\nserver        203.0.113.1[3478]\nserver        203.0.113.1[3479]\n"
	counting := report(nat.NAT{
		Present: true, Mapping: nat.AddressAndPortDependent, Filtering: nat.AddressAndPortDependent,
		Allocation: nat.Sequential, Step: -2, Hairpin: nat.No, Hops: 3,
	}, "203.0.113.2:20001")
	for name, tc := range map[string]struct {
		report *netcheckReport
		want   string
	}{
		"all known": {
			report(nat.NAT{
				Present: true, Mapping: nat.EndpointIndependent, Filtering: nat.AddressAndPortDependent,
				Allocation: nat.Preserving, Hairpin: nat.Yes, Poisoned: nat.No, Hops: 2,
			}, "203.0.113.2:4500", "PCP", "UPnP"),
			header + `UDP           passes
mapped        203.0.113.2[4500]
mapping       endpoint-independent
filtering     address-and-port-dependent
allocation    preserving
hairpin       yes
poisoned      no
hops          2 (the least TTL that leaves all NATs)
port mapping  PCP, UPnP

direct with everybody whose network lets UDP out
`,
		},
		"symmetric": {
			counting,
			header + `UDP           passes
mapped        203.0.113.2[20001]
mapping       address-and-port-dependent
filtering     address-and-port-dependent
allocation    sequential, step -2
hairpin       no
hops          3 (the least TTL that leaves all NATs)
port mapping  none offered (PCP, NAT-PMP, UPnP)

direct with everybody whose network lets UDP out, except behind symmetric NATs with random ports
`,
		},
		"plain server": {
			report(nat.NAT{Present: true, Mapping: nat.EndpointIndependent}, "203.0.113.2:4500"),
			header + `UDP           passes
mapped        203.0.113.2[4500]
mapping       endpoint-independent
filtering     not known: the server has no other port to answer from (RFC 5780)
allocation    not known
hairpin       not known
poisoned      not known: the server has no other port to answer from (RFC 5780)
hops          not known: no router beyond the NAT answered
port mapping  none offered (PCP, NAT-PMP, UPnP)

at least, direct with everybody whose network lets UDP out
`,
		},
		"blocked": {
			report(nat.NAT{Blocked: "no answer from a nor b over UDP"}, ""),
			header + `UDP           does not pass: no answer from a nor b over UDP
port mapping  none offered (PCP, NAT-PMP, UPnP)

direct with nobody: UDP does not leave this network
`,
		},
	} {
		if got := printed(func(p *printer) { printNetcheck(p, tc.report) }); got != tc.want {
			t.Errorf("%s:\n%s\nwant\n%s", name, got, tc.want)
		}
	}
}

func TestNetcheckUsage(t *testing.T) {
	absent := filepath.Join(t.TempDir(), "absent.yaml")
	for args, want := range map[string]string{
		"netcheck now":                                        "bodkin netcheck",
		"netcheck --stun 192.0.2.1:3478":                      "want two",
		"netcheck --stun 192.0.2.1 --stun 192.0.2.2:3478":     `--stun "192.0.2.1": want HOST:PORT`,
		"netcheck -4 -6":                                      "-4 and -6",
		"netcheck --port 0":                                   "want the port that strongSwan uses",
		"netcheck --timeout 0s":                               "want some time",
		"netcheck -o xml":                                     "want table, wide, json or yaml",
		"netcheck --config " + absent:                         "--stun HOST:PORT",
		"netcheck --config " + absent + " --stun 192.0.2.1:1": "want two",
	} {
		_, err := run(t, "", strings.Fields(args)...)
		if err == nil || !strings.Contains(err.Error(), want) || exitCode(err) != exitConfig {
			t.Errorf("bodkin %s: %v (exit code %d); want %q and %d", args, err, exitCode(err), want, exitConfig)
		}
	}
	if _, err := run(t, "", "netcheck", "--stun", "127.0.0.1:3478", "--stun", "127.0.0.1:3478"); err == nil || !strings.Contains(err.Error(), "are the same") {
		t.Errorf("the same server twice: %v", err)
	}
}

// On loopback, from a port that nobody has bound, and from one that somebody has.
func TestNetcheck(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: run as root (make test does)")
	}
	for _, loopback := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(loopback, func(t *testing.T) {
			anyPort := netip.MustParseAddrPort(loopback)
			servers := stunServers(t, anyPort)
			holder, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(anyPort))
			if err != nil {
				t.Fatal(err)
			}
			from := holder.LocalAddr().(*net.UDPAddr).AddrPort()
			checkLoopback(t, servers, from)
			if err := holder.Close(); err != nil {
				t.Fatal(err)
			}
			checkLoopback(t, servers, from)
		})
	}
}

// stunServers runs the rendezvous' STUN service until the test ends.
func stunServers(t *testing.T, at netip.AddrPort) []string {
	t.Helper()
	server, err := rendezvous.ListenSTUN(rendezvous.STUNConfig{Listen: [2]netip.AddrPort{at, at}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	addrs := server.Addrs()
	return []string{addrs[0].String(), addrs[1].String()}
}

func checkLoopback(t *testing.T, servers []string, from netip.AddrPort) {
	t.Helper()
	out, err := run(t, "", "netcheck", "--stun", servers[0], "--stun", servers[1], "--port", strconv.Itoa(int(from.Port())), "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var got netcheckReport
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	want := wire.NAT{Mapping: wire.EndpointIndependent, Filtering: wire.EndpointIndependent}
	if got.NAT != want || !got.UDP || got.Mapped != from || got.Local != from {
		t.Errorf("%s\nwant no NAT before %s", out, from)
	}
}
