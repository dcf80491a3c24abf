package lab

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"
)

// What a host asks for by NAT-PMP leads in through the router's firewall, and
// ends when the daemon starts anew.
func TestMiniupnpd(t *testing.T) {
	l := newLab(t, Options{})
	r := addRouter(t, l, "router", RouterOptions{NAT: Symmetric})
	inside := listen(t, addHost(t, l, "inside", HostOptions{Router: r}), 4500)
	outside := listen(t, addHost(t, l, "outside", HostOptions{}), 1000)
	daemon, err := r.StartMiniupnpd(t.Context(), MiniupnpdOptions{PCP: true, UPnP: true})
	if err != nil {
		t.Fatal(err)
	}
	if text, err := r.PortMappings(t.Context()); err != nil || text != "" {
		t.Fatalf("mappings before any was asked for: %q, %v", text, err)
	}

	// RFC 6886 section 3.3: UDP, from 4500 to 6000, for 100 s.
	inside.send(netip.AddrPortFrom(r.Gateway(), 5351), "\x00\x01\x00\x00\x11\x94\x17\x70\x00\x00\x00\x64")
	reply, _ := inside.receive()
	if len(reply) != 16 || reply[1] != 0x81 || binary.BigEndian.Uint16([]byte(reply[2:])) != 0 {
		t.Fatalf("reply %x, log:\n%s", reply, daemon.Log())
	}
	outside.send(netip.AddrPortFrom(r.WAN(), 6000), "unasked")
	if text, from := inside.receive(); text != "unasked" {
		t.Errorf("received %q from %s", text, from)
	}
	text, err := r.PortMappings(t.Context())
	if err != nil || strings.Count(text, "\n") != 0 || !strings.Contains(text, "6000") {
		t.Errorf("mappings %q, %v; want one, of port 6000", text, err)
	}
	daemon.Kill()
	if _, err := r.StartMiniupnpd(t.Context(), MiniupnpdOptions{UPnP: true}); err != nil {
		t.Fatal(err)
	}
	if text, err := r.PortMappings(t.Context()); err != nil || text != "" {
		t.Errorf("mappings after another start: %q, %v", text, err)
	}
}

func TestMiniupnpdRefusals(t *testing.T) {
	l := newLab(t, Options{})
	r := addRouter(t, l, "router", RouterOptions{NAT: None})
	if _, err := r.StartMiniupnpd(t.Context(), MiniupnpdOptions{PCP: true}); err == nil {
		t.Error("a router without NAT maps ports")
	}
}

func TestRoutable(t *testing.T) {
	for from, want := range map[string]string{"203.0.113.9": "25.0.0.9", "192.0.2.255": "25.0.2.255", "100.64.0.2": "100.64.0.2"} {
		got, other := routable(netip.MustParseAddr(from))
		if got.String() != want || other != (from != want) {
			t.Errorf("%s becomes %s (%t), want %s", from, got, other, want)
		}
	}
}
