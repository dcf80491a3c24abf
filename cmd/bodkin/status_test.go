package main

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/agent"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

var statusNow = time.Date(2024, 2, 1, 8, 0, 0, 0, time.UTC)

// goodStatus is edge1 with a tunnel to the connector, which relays for it, one to
// edge2 on its LAN, none to edge3 and edge4; the latter is of another cluster.
func goodStatus() agent.Status {
	path := func(kind wire.PathKind, remote string) wire.Path {
		return wire.Path{Kind: kind, Local: netip.MustParseAddrPort("10.22.46.30:4500"), Remote: netip.MustParseAddrPort(remote)}
	}
	return agent.Status{
		Node: "beijing.edge1", Identity: "C=CN, O=fabedge.io, CN=beijing.edge1", Version: "v0.1.0",
		Rendezvous:  agent.ConnectionStatus{Address: "wss://10.40.20.181:7443/v1/agent", Connected: true, Since: statusNow.Add(-90 * time.Second)},
		Charon:      agent.ConnectionStatus{Address: "/var/run/charon.vici", Connected: true},
		Local:       []netip.AddrPort{netip.MustParseAddrPort("10.22.46.30:4500")},
		Mapped:      netip.MustParseAddrPort("203.0.113.7:41000"),
		NAT:         wire.NAT{Present: true, Mapping: wire.EndpointIndependent},
		Listed:      true,
		Certificate: agent.CertificateStatus{Serial: "5f1c", NotBefore: statusNow, NotAfter: statusNow.Add(30 * 24 * time.Hour)},
		Tunnels: []agent.TunnelStatus{
			{Peer: "beijing.connector", State: "direct", Plan: wire.PlanPublic, Path: path(wire.PathPublic, "10.40.20.181:45000"), Relays: true,
				Since: statusNow.Add(-time.Hour), TimeToDirectMs: 35},
			{Peer: "beijing.edge2", State: "direct", Plan: wire.PlanICE, Path: path(wire.PathHost, "10.22.46.28:4500"), Monitored: true,
				Since: statusNow.Add(-62 * time.Second), TimeToDirectMs: 81, Communities: []string{"all-edges"}},
			{Peer: "beijing.edge3", State: "relayed", Relay: "beijing.connector", Plan: wire.PlanICE, Reason: "punching", Since: statusNow},
			{Peer: "shanghai.edge4", State: "down", Plan: wire.PlanICE, Reason: "consent lost", Since: statusNow},
		},
	}
}

func TestPrintStatus(t *testing.T) {
	apart := goodStatus()
	apart.Rendezvous = agent.ConnectionStatus{Address: "wss://r:7443/v1/agent", Error: "connection refused"}
	apart.Charon = agent.ConnectionStatus{Address: "/run/charon.vici", Error: "no such file"}
	apart.Mapped, apart.NAT, apart.Listed, apart.Tunnels = netip.AddrPort{}, wire.NAT{}, false, nil
	alone := goodStatus()
	alone.Tunnels = nil
	full := alone
	full.Mapped6 = netip.MustParseAddrPort("[2001:db8::7]:4500")
	full.NAT.Allocation = wire.Preserving
	full.PortMapping = &agent.PortMappingStatus{Protocol: "PCP", Outside: full.Mapped}
	gate := alone
	gate.Certificate.Problem = "ends in 3 days: issue a new one"
	gate.Forwarding = &agent.ForwardingStatus{Edges: 12, Dropped: 7}
	shut := gate
	shut.Certificate.Problem = ""
	shut.Forwarding = &agent.ForwardingStatus{Edges: 12, Error: "net.ipv4.ip_forward is 0"}
	tests := []struct {
		name   string
		status agent.Status
		want   string
	}{
		{"a connector", gate, `node        beijing.edge1 (C=CN, O=fabedge.io, CN=beijing.edge1)
rendezvous  wss://10.40.20.181:7443/v1/agent, connected 1m30s ago
charon      /var/run/charon.vici, connected
certificate ends in 3 days: issue a new one
observed    203.0.113.7[41000], NAT: endpoint-independent mapping, unknown filtering
relay       for 12 edges, 7 packets dropped that no community permits

no peers yet: no edge of its cluster has joined
`},
		{"a connector that cannot relay", shut, `node        beijing.edge1 (C=CN, O=fabedge.io, CN=beijing.edge1)
rendezvous  wss://10.40.20.181:7443/v1/agent, connected 1m30s ago
charon      /var/run/charon.vici, connected
observed    203.0.113.7[41000], NAT: endpoint-independent mapping, unknown filtering
relay       none: net.ipv4.ip_forward is 0

no peers yet: no edge of its cluster has joined
`},
		{"in no community", alone, `node        beijing.edge1 (C=CN, O=fabedge.io, CN=beijing.edge1)
rendezvous  wss://10.40.20.181:7443/v1/agent, connected 1m30s ago
charon      /var/run/charon.vici, connected
observed    203.0.113.7[41000], NAT: endpoint-independent mapping, unknown filtering

no peers: no community names this node
`},
		{"both families and a port mapping", full, `node        beijing.edge1 (C=CN, O=fabedge.io, CN=beijing.edge1)
rendezvous  wss://10.40.20.181:7443/v1/agent, connected 1m30s ago
charon      /var/run/charon.vici, connected
observed    203.0.113.7[41000], NAT: endpoint-independent mapping, unknown filtering
            2001:db8::7[4500]
            preserving ports
mapped      203.0.113.7[41000] by PCP

no peers: no community names this node
`},
		{"good", goodStatus(), `
node        beijing.edge1 (C=CN, O=fabedge.io, CN=beijing.edge1)
rendezvous  wss://10.40.20.181:7443/v1/agent, connected 1m30s ago
charon      /var/run/charon.vici, connected
observed    203.0.113.7[41000], NAT: endpoint-independent mapping, unknown filtering

PEER               STATE    PATH    PEER ADDRESS         TIME TO DIRECT  SINCE       REASON
beijing.connector  direct   public  10.40.20.181[45000]  35 ms           1h0m0s ago  -
beijing.edge2      direct   host    10.22.46.28[4500]    81 ms           1m2s ago    -
beijing.edge3      relayed  relay   beijing.connector    -               0s ago      punching
shanghai.edge4     down     -       -                    -               0s ago      consent lost

4 peers: 2 direct, 1 relayed, 1 down
`},
		{"nothing there", apart, `
node        beijing.edge1 (C=CN, O=fabedge.io, CN=beijing.edge1)
rendezvous  wss://r:7443/v1/agent, not connected: connection refused
charon      /run/charon.vici, not connected: no such file
observed    not yet

no peers known: the rendezvous has not been reached since the agent started
`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := printed(func(p *printer) { printStatus(p, tt.status) })
			if want := strings.TrimPrefix(tt.want, "\n"); got != want {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

func TestObserved(t *testing.T) {
	mapped := netip.MustParseAddrPort("203.0.113.7:4500")
	tests := []struct {
		status agent.Status
		want   string
	}{
		{agent.Status{}, "not yet"},
		{agent.Status{Mapped: mapped}, "203.0.113.7[4500], behind a NAT: being measured"},
		{agent.Status{Mapped: mapped, Local: []netip.AddrPort{mapped}}, "203.0.113.7[4500], no NAT"},
		{agent.Status{Mapped: mapped, NAT: wire.NAT{Mapping: wire.EndpointIndependent}}, "203.0.113.7[4500], no NAT"},
		{agent.Status{Mapped: mapped, NAT: wire.NAT{Present: true, Mapping: wire.AddressAndPortDependent, Filtering: wire.AddressDependent}},
			"203.0.113.7[4500], NAT: address-and-port-dependent mapping, address-dependent filtering"},
		{agent.Status{NAT: wire.NAT{Blocked: "no answer over UDP"}}, "nowhere: no answer over UDP"},
	}
	for _, tt := range tests {
		if got := observed(tt.status); got != tt.want {
			t.Errorf("observed(%+v) = %q; want %q", tt.status, got, tt.want)
		}
	}
}

func TestNATDetails(t *testing.T) {
	tests := []struct {
		nat  wire.NAT
		want string
	}{
		{wire.NAT{}, ""},
		{wire.NAT{Present: true, Mapping: wire.EndpointIndependent, Filtering: wire.EndpointIndependent}, ""},
		{wire.NAT{Allocation: wire.Sequential, Step: -2, Hairpin: wire.Yes, Poisoned: wire.Yes, Hops: 2, LifetimeSeconds: 50},
			"sequential ports in steps of -2, remembers early packets (poisoned), hairpins, left with TTL 2, mappings live 50 s or longer"},
		{wire.NAT{Allocation: wire.Random, Hairpin: wire.No, Poisoned: wire.No}, "random ports, does not hairpin"},
	}
	for _, tt := range tests {
		if got := natDetails(tt.nat); got != tt.want {
			t.Errorf("natDetails(%+v) = %q; want %q", tt.nat, got, tt.want)
		}
	}
}

func TestStatusCommand(t *testing.T) {
	socket := daemon(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.URL.Path != "/v1/status" {
			http.NotFound(w, r)
			return
		}
		if err := json.NewEncoder(w).Encode(goodStatus()); err != nil {
			t.Error(err)
		}
	})
	out, err := run(t, "", "status", "--socket", socket, "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var got agent.Status
	if err := json.Unmarshal([]byte(out), &got); err != nil || !reflect.DeepEqual(got, goodStatus()) {
		t.Errorf("json: %v\n got %+v\nwant %+v", err, got, goodStatus())
	}
	out, err = run(t, "", "status", "--socket", socket)
	if err != nil || !strings.Contains(out, "beijing.edge2") || !strings.Contains(out, "10.40.20.181[45000]") {
		t.Errorf("table: %v\n%s", err, out)
	}
}

// The keys are an interface: scripts read them.
func TestStatusJSON(t *testing.T) {
	s := goodStatus()
	s.Tunnels = s.Tunnels[1:2]
	var out strings.Builder
	if err := printJSON(&out, s); err != nil {
		t.Fatal(err)
	}
	const want = `{
  "node": "beijing.edge1",
  "identity": "C=CN, O=fabedge.io, CN=beijing.edge1",
  "version": "v0.1.0",
  "rendezvous": {
    "address": "wss://10.40.20.181:7443/v1/agent",
    "connected": true,
    "since": "2024-02-01T07:58:30Z"
  },
  "charon": {
    "address": "/var/run/charon.vici",
    "connected": true
  },
  "local": [
    "10.22.46.30:4500"
  ],
  "mapped": "203.0.113.7:41000",
  "nat": {
    "present": true,
    "mapping": "endpoint-independent"
  },
  "listed": true,
  "certificate": {
    "serial": "5f1c",
    "notBefore": "2024-02-01T08:00:00Z",
    "notAfter": "2024-03-02T08:00:00Z"
  },
  "tunnels": [
    {
      "peer": "beijing.edge2",
      "state": "direct",
      "plan": "ice",
      "path": {
        "kind": "host",
        "local": "10.22.46.30:4500",
        "remote": "10.22.46.28:4500"
      },
      "monitored": true,
      "since": "2024-02-01T07:58:58Z",
      "timeToDirectMs": 81,
      "communities": [
        "all-edges"
      ]
    }
  ]
}
`
	if out.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", out.String(), want)
	}
}
