package agent

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/pion/stun/v4"

	"github.com/bodkin-net/bodkin/punch"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// changeRequest is RFC 5780 section 7.2's attribute.
const changeRequest stun.AttrType = 0x0003

// natted is a STUN service behind which every client appears at one address, as
// behind an endpoint-independent NAT. It has two ports and answers a change
// request from the other.
func natted(t *testing.T, mapped netip.AddrPort) [2]netip.AddrPort {
	t.Helper()
	var conns [2]*net.UDPConn
	var addrs [2]netip.AddrPort
	for i := range conns {
		conns[i] = listenUDP(t, "127.0.0.1:0")
		addrs[i] = conns[i].LocalAddr().(*net.UDPAddr).AddrPort()
	}
	var serving sync.WaitGroup
	for i := range conns {
		serving.Go(func() {
			b := make([]byte, 1500)
			for {
				n, from, err := conns[i].ReadFromUDPAddrPort(b)
				if err != nil {
					return
				}
				request := &stun.Message{Raw: append([]byte(nil), b[:n]...)}
				if request.Decode() != nil {
					continue
				}
				answer, err := stun.Build(stun.NewTransactionIDSetter(request.TransactionID), stun.BindingSuccess,
					&stun.XORMappedAddress{IP: mapped.Addr().AsSlice(), Port: int(mapped.Port())})
				if err != nil {
					t.Errorf("answer: %v", err)
					return
				}
				out := conns[i]
				if request.Contains(changeRequest) {
					out = conns[1-i]
				}
				_, _ = out.WriteToUDPAddrPort(answer.Raw, from)
			}
		})
	}
	t.Cleanup(func() {
		conns[0].Close()
		conns[1].Close()
		serving.Wait()
	})
	return addrs
}

func listenUDP(t *testing.T, addr string) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr)))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// watch runs a networkWatch from local until the test ends.
func watch(t *testing.T, local string, servers [2]netip.AddrPort) <-chan network {
	t.Helper()
	port, err := punch.NewPort([]net.PacketConn{listenUDP(t, local)}, discardLog)
	if err != nil {
		t.Fatal(err)
	}
	out := make(chan network)
	ctx, cancel := context.WithCancel(t.Context())
	w := &networkWatch{port: port, servers: servers, dialer: outsideDialer(0, nil), out: out}
	var running sync.WaitGroup
	running.Go(func() { w.run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
		port.Close()
	})
	return out
}

// The mapped address is told as soon as it is known, the behaviour when it is.
func TestNetworkWatch(t *testing.T) {
	mapped := netip.MustParseAddrPort("203.0.113.7:41000")
	events := watch(t, "127.0.0.1:0", natted(t, mapped))
	if n := receive(t, events, "observation"); n.mapped != mapped || n.discovered {
		t.Errorf("first %+v; want the mapped address %s alone", n, mapped)
	}
	want := wire.NAT{Present: true, Mapping: wire.EndpointIndependent, Filtering: wire.EndpointIndependent}
	if n := receive(t, events, "discovery"); n.mapped != mapped || !n.discovered || n.nat != want {
		t.Errorf("then %+v; want %+v", n, want)
	}
}

func TestNetworkWatchSaysWhyNot(t *testing.T) {
	t.Run("no STUN service", func(t *testing.T) {
		t.Parallel() // waits for all retransmissions
		silent := listenUDP(t, "127.0.0.1:0")
		t.Cleanup(func() { silent.Close() })
		addr := silent.LocalAddr().(*net.UDPAddr).AddrPort()
		n := receive(t, watch(t, "127.0.0.1:0", [2]netip.AddrPort{addr, addr}), "word on the network")
		if !n.discovered || !strings.Contains(n.nat.Blocked, "STUN service does not answer") {
			t.Errorf("network %+v; want blocked, in words", n)
		}
	})
	t.Run("another route", func(t *testing.T) {
		t.Parallel()
		server := netip.MustParseAddrPort("127.0.0.1:3478")
		n := receive(t, watch(t, "127.0.0.2:0", [2]netip.AddrPort{server, server}), "word on the network")
		if !strings.Contains(n.nat.Blocked, "leaves from 127.0.0.1") {
			t.Errorf("network %+v; want blocked, naming the address", n)
		}
	})
}

// A new public address means that the session's TCP connection is dead; a new
// port does not.
func TestNetworkEventRestartsSession(t *testing.T) {
	at := func(addr string) network { return network{mapped: netip.MustParseAddrPort(addr)} }
	unseen := network{nat: wire.NAT{Blocked: "no answer"}}
	tests := []struct {
		name   string
		events []network // in one session
		want   bool
	}{
		{"first observation", []network{at("203.0.113.7:4500")}, false},
		{"the same", []network{at("203.0.113.7:4500"), at("203.0.113.7:4500")}, false},
		{"another port", []network{at("203.0.113.7:4500"), at("203.0.113.7:50000")}, false},
		{"another address", []network{at("203.0.113.7:4500"), at("203.0.113.8:4500")}, true},
		{"not seen", []network{at("203.0.113.7:4500"), unseen}, false},
		{"not seen for a while", []network{at("203.0.113.7:4500"), unseen, at("203.0.113.8:4500")}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := testDaemon(t, "store")
			var why error
			d.link.restart = func(err error) { why = err }
			// What an earlier session was seen at is no reason.
			d.net = at("203.0.113.99:4500")
			for _, n := range tt.events {
				d.networkEvent(n)
			}
			if (why != nil) != tt.want {
				t.Errorf("restarted for %v; want a restart: %v", why, tt.want)
			}
			if why != nil && !strings.Contains(why.Error(), "from 203.0.113.7 to 203.0.113.8") {
				t.Errorf("restarted for %q; want both addresses named", why)
			}
		})
	}
}

// The behaviour stays known while only the mapped address is seen anew, and the
// rendezvous hears of the network when it is known whole.
func TestNetworkEventTells(t *testing.T) {
	d := testDaemon(t, "store")
	port, err := punch.NewPort([]net.PacketConn{listenUDP(t, "127.0.0.1:0")}, discardLog)
	if err != nil {
		t.Fatal(err)
	}
	defer port.Close()
	d.port = port
	var sent []wire.Message
	d.link.send = func(m wire.Message) { sent = append(sent, m) }
	nat := wire.NAT{Present: true, Mapping: wire.EndpointIndependent}
	mapped := netip.MustParseAddrPort("203.0.113.7:4500")

	d.networkEvent(network{mapped: mapped, nat: nat, discovered: true})
	if len(sent) != 1 || sent[0].(*wire.Network).NAT != nat {
		t.Errorf("told %v; want the network once", sent)
	}
	d.networkEvent(network{mapped: netip.AddrPortFrom(mapped.Addr(), 50000)})
	if len(sent) != 1 || d.net.nat != nat {
		t.Errorf("told %v, NAT %+v; want nothing told and %+v kept", sent[1:], d.net.nat, nat)
	}
}
