package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"testing"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

// TestPortMapping: two symmetric NATs, of which nobody can guess a port, are no
// obstacle where one router maps one when asked.
func TestPortMapping(t *testing.T) {
	for name, speaks := range map[string]lab.MiniupnpdOptions{"PCP": {PCP: true}, "UPnP": {UPnP: true}} {
		t.Run(name, func(t *testing.T) {
			ctx, c := start(t, ClusterOptions{})
			r, err := c.Router("edge1-nat", lab.RouterOptions{NAT: lab.Symmetric})
			must(t, err)
			_, err = r.StartMiniupnpd(ctx, speaks)
			must(t, err)
			a, err := c.AddEdge(ctx, "edge1", r)
			must(t, err)
			b, _ := edge(ctx, t, c, "edge2", lab.Symmetric)
			must(t, c.WaitDiscovered(ctx, a, b))
			must(t, c.until(ctx, "a port is mapped", func() (bool, error) {
				at, err := portMapping(ctx, a)
				return at == netip.AddrPortFrom(r.WAN(), ikePort), err
			}))
			must(t, c.Apply(ctx, "all-edges", a, b))

			p := direct(ctx, t, c, a, b)
			want := netip.AddrPortFrom(r.WAN(), ikePort)
			if got := p.Paths[b.Name]; got.Kind != "mapped" || got.Remote != want {
				t.Errorf("path of %s is %+v, want mapped %s", b.Name, got, want)
			}
			pings(ctx, t, a, b)
			pings(ctx, t, b, a)

			if mappings(ctx, t, r) == "" {
				t.Error("the router maps no port while the agent runs")
			}
			must(t, a.Agent().Stop(ctx))
			if left := mappings(ctx, t, r); left != "" {
				t.Errorf("the agent has left on the router:\n%s", left)
			}
		})
	}
}

func mappings(ctx context.Context, t *testing.T, r *lab.Router) string {
	t.Helper()
	text, err := r.PortMappings(ctx)
	must(t, err)
	return text
}

// TestPortMappingTurnedOff: the operator's word counts, the router is not asked.
func TestPortMappingTurnedOff(t *testing.T) {
	ctx, c := start(t, ClusterOptions{})
	a, r := edge(ctx, t, c, "edge1", lab.PortRestricted)
	must(t, a.Agent().Stop(ctx))
	conf, err := os.ReadFile(a.config)
	must(t, err)
	must(t, os.WriteFile(a.config, append(conf, "portMapping: false\n"...), 0o600))
	asked := answer(t, r, 5351, func([]byte) [][]byte { return nil })
	must(t, a.StartAgent(ctx))
	must(t, c.WaitDiscovered(ctx, a))
	if n := asked(); n != 0 {
		t.Errorf("the router was asked %d times", n)
	}
}

// TestRouterTalksNonsense: what a broken router answers is ignored, and nothing
// else suffers.
func TestRouterTalksNonsense(t *testing.T) {
	ctx, c := start(t, ClusterOptions{})
	a, r := edge(ctx, t, c, "edge1", lab.PortRestricted)
	b, _ := edge(ctx, t, c, "edge2", lab.PortRestricted)
	// Anything of any length; the request turned into a reply, of success, with
	// zeros for all that was asked.
	junk := func(request []byte) [][]byte {
		echo := append([]byte{request[0], request[min(1, len(request)-1)] | 0x80}, make([]byte, 58)...)
		return [][]byte{nil, {2}, echo, echo[:24], echo[:16], echo[:12], make([]byte, 1400)}
	}
	asked := answer(t, r, 5351, junk)
	answer(t, r, 1900, func([]byte) [][]byte {
		return [][]byte{[]byte("HTTP/1.1 200 OK\r\nLOCATION: http://198.51.100.1:80/\r\n\r\n"), []byte("HTTP/1.1\r\n"), {0}}
	})
	must(t, a.Agent().Stop(ctx)) // it asks when it starts
	must(t, a.StartAgent(ctx))
	must(t, c.WaitOnline(ctx, c.Connector, a, b))
	must(t, c.Apply(ctx, "all-edges", a, b))
	direct(ctx, t, c, a, b)
	pings(ctx, t, a, b)
	if asked() == 0 {
		t.Error("the router was never asked")
	}
	if at, err := portMapping(ctx, a); err != nil || at.IsValid() {
		t.Errorf("the agent believes in a mapping at %s (error %v)", at, err)
	}
}

// portMapping is what the node's agent says its router maps.
func portMapping(ctx context.Context, n *Node) (netip.AddrPort, error) {
	out, err := n.Run(ctx, n.cluster.bin, "status", "--socket", n.Socket(), "-o", "json")
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%w: %s", err, out)
	}
	var status struct {
		PortMapping struct {
			Outside netip.AddrPort `json:"outside"`
		} `json:"portMapping"`
	}
	err = json.Unmarshal([]byte(out), &status)
	return status.PortMapping.Outside, err
}

// answer replies on a UDP port of the router's LAN to each packet with some, and
// counts what came.
func answer(t *testing.T, r *lab.Router, port uint16, reply func(request []byte) [][]byte) (asked func() int) {
	t.Helper()
	conn, err := r.ListenUDP(netip.AddrPortFrom(r.Gateway(), port))
	must(t, err)
	var (
		serving sync.WaitGroup
		mu      sync.Mutex
		count   int
	)
	serving.Go(func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			mu.Lock()
			count++
			mu.Unlock()
			for _, b := range reply(buf[:max(n, 1)]) {
				_, _ = conn.WriteToUDPAddrPort(b, from)
			}
		}
	})
	t.Cleanup(func() {
		conn.Close()
		serving.Wait()
	})
	return func() int {
		mu.Lock()
		defer mu.Unlock()
		return count
	}
}
