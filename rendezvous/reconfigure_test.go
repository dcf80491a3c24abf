package rendezvous

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/bodkin-net/bodkin/internal/yamlfile"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// Of every key somebody has decided whether a running rendezvous takes it on.
func TestAdopt(t *testing.T) {
	file := Config{
		Listen: ":1", Store: "/x", Approval: ApprovalManual, CertificateLifetime: "24h", PublicAddresses: []string{"198.51.100.1"}, Connectors: []string{"a.b"},
		Relay: RelayConfig{Enabled: true, Ranges: []string{"10.0.0.0/8"}}, LogLevel: "debug",
	}
	var now, later []string
	for _, c := range yamlfile.Diff(Config{}, adopt(Config{}, file)) {
		now = append(now, c.Key)
	}
	for _, c := range yamlfile.Diff(adopt(Config{}, file), file) {
		later = append(later, c.Key)
	}
	if got, want := strings.Join(now, " "), "approval certificateLifetime publicAddresses connectors relay.enabled relay.ranges logLevel"; got != want {
		t.Errorf("taken on at once: %s; want %s", got, want)
	}
	if got, want := strings.Join(later, " "), "listen store"; got != want {
		t.Errorf("at the next start: %s; want %s", got, want)
	}
}

func TestReconfigure(t *testing.T) {
	r := newSite(t).start()
	r.apply(community("all", edge1, edge2))
	gate := r.join(connector)
	gate.expectPeers()
	one, two := r.join(edge1), r.join(edge2)
	two.expectPeers(connector, edge1)
	r.until("both edges told", func(s Snapshot) bool { return len(s.Pairs) == 3 })

	file := r.server.cfg
	file.Relay.Enabled = !file.Relay.Enabled
	file.PublicAddresses = []string{"198.51.100.7"}
	if err := r.server.Reconfigure(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	// The edge is told that the connector's tunnel does, or no longer does, relay.
	for {
		uplink := expect[*wire.Peers](one).Peers[0]
		if relays := len(uplink.Relay) > 0; relays == file.Relay.Enabled {
			break
		}
	}
	two = r.dial(edge2)
	if want := []netip.Addr{netip.MustParseAddr("198.51.100.7")}; !slices.Equal(two.welcome.STUNAddrs, want) {
		t.Errorf("a new session is told STUN at %v; want %v", two.welcome.STUNAddrs, want)
	}

	file.LogLevel = "loud"
	err := r.server.Reconfigure(t.Context(), file)
	if !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "logLevel") || strings.Contains(err.Error(), "\n") {
		t.Errorf("a wrong configuration: %v", err)
	}
	if h, err := r.server.Health(t.Context()); err != nil || h.Nodes != 3 || h.Pairs != 3 {
		t.Errorf("health %+v, %v; want three nodes and their pairs", h, err)
	}
}
