package punch

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/transport/v5/vnet"

	"github.com/bodkin-net/bodkin/punch/nat"
)

// behindNAT is a port of a host behind a NAT of that type, or on the WAN itself
// with none, on a network whose clock synctest owns. Each packet takes delay to
// get across the WAN.
func behindNAT(t *testing.T, typ *vnet.NATType, delay time.Duration, start func(*internet)) (*Port, *internet) {
	in := newInternetWith(t, delay)
	router, host := in.wan, "203.0.113.5"
	if typ != nil {
		router, host = in.addSite("203.0.113.10", "192.168.1", *typ), "192.168.1.10"
	}
	n := in.addHost(router, host)
	in.fresh = func() (net.PacketConn, error) { return n.ListenPacket("udp4", host+":0") }
	start(in)
	return openPort(t, listen(t, n, host+":4500")), in
}

// startBodkin is a STUN server like the rendezvous': its alternates are known.
func startBodkin(in *internet) { in.start(stunCred) }

func discover(t *testing.T, p *Port, in *internet) (Network, time.Duration) {
	t.Helper()
	o := DiscoverOptions{From: p.Local()[0], Credential: in.stun.cred, Fresh: in.fresh}
	copy(o.Servers[:], in.stun.all()[:2])
	began := time.Now()
	got, err := Discover(t.Context(), p, o)
	must(t, err)
	return got, time.Since(began)
}

// What each combination of mapping and filtering looks like from a server of
// one address, and from one of two.
func TestDiscover(t *testing.T) {
	kinds := []nat.Behaviour{nat.EndpointIndependent, nat.AddressDependent, nat.AddressAndPortDependent}
	const roundTrip = 150 * time.Millisecond
	for _, mapping := range kinds {
		for _, filtering := range kinds {
			typ := vnet.NATType{MappingBehavior: vnetKinds[mapping], FilteringBehavior: vnetKinds[filtering]}
			// vnet's WAN sends a packet back to the NAT it came from, which lets it
			// in as it would anybody's.
			twoAddrs := nat.NAT{Present: true, Mapping: mapping, Filtering: filtering, Hairpin: nat.No}
			if mapping == nat.EndpointIndependent || filtering == nat.EndpointIndependent {
				twoAddrs.Hairpin = nat.Yes
			}
			switch mapping {
			case nat.EndpointIndependent:
				twoAddrs.Poisoned = nat.No
			case nat.AddressAndPortDependent: // vnet's count
				twoAddrs.Allocation, twoAddrs.Step = nat.Sequential, 1
			}
			oneAddr := twoAddrs
			if mapping == nat.AddressDependent {
				oneAddr.Mapping, oneAddr.Poisoned = nat.EndpointIndependent, nat.No
			}
			if filtering == nat.AddressDependent {
				oneAddr.Filtering = nat.EndpointIndependent
			}
			for server, tc := range map[string]struct {
				start func(*internet)
				want  nat.NAT
			}{
				"one address":   {startBodkin, oneAddr},
				"two addresses": {func(in *internet) { in.startTwoAddrs(STUNCredential{}) }, twoAddrs},
			} {
				t.Run(string(mapping)+", "+string(filtering)+", "+server, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						p, in := behindNAT(t, &typ, roundTrip/2, tc.start)
						got, took := discover(t, p, in)
						if got.NAT != tc.want || got.Mapped.Addr().String() != "203.0.113.10" {
							t.Errorf("\ngot  %+v\nwant %+v", got, tc.want)
						}
						if took > 4*time.Second {
							t.Errorf("took %s", took)
						}
					})
				})
			}
		}
	}
}

var vnetKinds = map[nat.Behaviour]vnet.EndpointDependencyType{
	nat.EndpointIndependent:     vnet.EndpointIndependent,
	nat.AddressDependent:        vnet.EndpointAddrDependent,
	nat.AddressAndPortDependent: vnet.EndpointAddrPortDependent,
}

func TestDiscoverWithoutNAT(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, in := behindNAT(t, nil, 0, startBodkin)
		got, _ := discover(t, p, in)
		want := Network{
			NAT: nat.NAT{Mapping: nat.EndpointIndependent, Filtering: nat.EndpointIndependent}, Mapped: p.Local()[0],
		}
		if got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
	})
}

// Lost answers from where nobody had asked are not taken for filtering.
func TestDiscoverUnderLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, in := behindNAT(t, &fullCone, 10*time.Millisecond, startBodkin)
		in.losses.Store(int32(insistent.requests) - 1)
		if got, _ := discover(t, p, in); got.NAT.Filtering != nat.EndpointIndependent {
			t.Errorf("%+v, want filtering %s", got.NAT, nat.EndpointIndependent)
		}
	})
}

// A repeated discovery finds the same, however soon: it has left no way open.
func TestDiscoverAgain(t *testing.T) {
	for name, typ := range map[string]vnet.NATType{"port-restricted": portRestricted, "symmetric": symmetricNAT} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, in := behindNAT(t, &typ, 75*time.Millisecond, startBodkin)
				first, _ := discover(t, p, in)
				if again, _ := discover(t, p, in); again.NAT != first.NAT {
					t.Errorf("%+v the second time, want %+v", again.NAT, first.NAT)
				}
			})
		})
	}
}

// An address that changes in the middle is not taken for a symmetric NAT.
func TestDiscoverChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, in := behindNAT(t, &portRestricted, 10*time.Millisecond, startBodkin)
		in.stun.moveAfter(1)
		got, _ := discover(t, p, in)
		want := nat.NAT{Present: true, Mapping: nat.EndpointIndependent, Filtering: nat.AddressAndPortDependent, Poisoned: nat.No, Hairpin: nat.No}
		if got.NAT != want || got.Mapped.Addr() != movedTo {
			t.Errorf("%+v, want %+v behind %s", got, want, movedTo)
		}
	})
}

// cutOff is a socket of a host that has no way to one address.
type cutOff struct {
	net.PacketConn
	from string
}

func (c cutOff) WriteTo(b []byte, to net.Addr) (int, error) {
	if to.String() == c.from {
		return 0, os.NewSyscallError("sendto", syscall.ENETUNREACH)
	}
	return c.PacketConn.WriteTo(b, to)
}

// That an alternate cannot be asked takes nothing away from what the others
// tell; that nobody can be asked is no blocked network.
func TestDiscoverNoWay(t *testing.T) {
	for no, want := range map[string]error{"203.0.113.2:3478": nil, "203.0.113.1:3478": syscall.ENETUNREACH} {
		synctest.Test(t, func(t *testing.T) {
			in := newInternetWith(t, 10*time.Millisecond)
			n := in.addHost(in.addSite("203.0.113.10", "192.168.1", symmetricNAT), "192.168.1.10")
			in.startTwoAddrs(STUNCredential{})
			p := openPort(t, cutOff{listen(t, n, "192.168.1.10:4500"), no})
			o := DiscoverOptions{From: p.Local()[0], Servers: [4]netip.AddrPort{in.stun.addrs()[0], in.stun.addrs()[1]}}
			got, err := Discover(t.Context(), p, o)
			if !errors.Is(err, want) || want == nil && (got.NAT.Mapping != nat.AddressAndPortDependent || got.NAT.Filtering != nat.AddressAndPortDependent) {
				t.Errorf("no way to %s: %+v, %v; want %v", no, got, err, want)
			}
		})
	}
}

// A server that knows nothing of RFC 5780 tells the mapping, and nothing that
// rests on its other port.
func TestDiscoverPlainServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, in := behindNAT(t, &portRestricted, 10*time.Millisecond, func(in *internet) {
			in.startWith(STUNCredential{}, nil, "203.0.113.1:3478", "203.0.113.2:3478")
		})
		got, _ := discover(t, p, in)
		if want := (nat.NAT{Present: true, Mapping: nat.EndpointIndependent, Hairpin: nat.Yes}); got.NAT != want {
			t.Errorf("%+v, want %+v", got.NAT, want)
		}
	})
}

// The alternates may be told beforehand, and be wrong: then they do not answer.
func TestDiscoverAlternatesSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, in := behindNAT(t, &portRestricted, 10*time.Millisecond, startBodkin)
		o := DiscoverOptions{From: p.Local()[0], Credential: stunCred}
		copy(o.Servers[:], in.stun.all()[:2])
		o.Servers[2] = netip.MustParseAddrPort("203.0.113.1:9999")
		got, err := Discover(t.Context(), p, o)
		must(t, err)
		want := nat.NAT{Present: true, Mapping: nat.EndpointIndependent, Filtering: nat.AddressAndPortDependent, Hairpin: nat.Yes}
		if got.NAT != want {
			t.Errorf("%+v, want %+v", got.NAT, want)
		}
	})
}

func TestDiscoverBlockedAndUnauthorised(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, from, server := onTheWAN(t, stunCred)
		server.deaf.Store(true)
		o := DiscoverOptions{From: from, Servers: [4]netip.AddrPort(server.all()[:4]), Credential: stunCred}
		got, err := Discover(t.Context(), p, o)
		must(t, err)
		if got.NAT.Blocked == "" || got.Mapped.IsValid() {
			t.Errorf("silent server: %+v, want blocked", got)
		}
		server.deaf.Store(false)
		o.Credential = STUNCredential{"x", "y"}
		if _, err := Discover(t.Context(), p, o); !errors.Is(err, ErrUnauthorised) {
			t.Errorf("wrong credential: %v, want %v", err, ErrUnauthorised)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		server.deaf.Store(true)
		if _, err := Discover(ctx, p, o); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("out of time: %v, want %v", err, context.DeadlineExceeded)
		}
	})
}

func TestHairpin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, from, _ := onTheWAN(t, stunCred)
		d := discovery{DiscoverOptions: DiscoverOptions{From: from}, port: p}
		if got := d.hairpin(t.Context(), from); got != nat.Yes {
			t.Errorf("%q to an address that leads back here, want %q", got, nat.Yes)
		}
		if got := d.hairpin(t.Context(), netip.MustParseAddrPort("203.0.113.77:4500")); got != nat.No {
			t.Errorf("%q to an address that leads nowhere, want %q", got, nat.No)
		}
	})
}

func TestHops(t *testing.T) {
	mapped := netip.MustParseAddr("203.0.113.10")
	for name, tc := range map[string]struct {
		routers []string // by TTL from 1 on; empty ones do not answer
		want    int
	}{
		"one NAT":                 {[]string{"192.168.1.1", "198.18.0.1"}, 2},
		"carrier":                 {[]string{"192.168.1.1", "100.64.0.1", "198.18.0.1"}, 3},
		"the NAT's outside":       {[]string{"203.0.113.10", "198.18.0.1"}, 2},
		"a silent router between": {[]string{"192.168.1.1", "", "198.18.0.1"}, 3},
		"silent beyond":           {[]string{"192.168.1.1"}, 0},
		"too far":                 {[]string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "198.18.0.1"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				got := hops(t.Context(), func(ctx context.Context, ttl int) (netip.Addr, error) {
					if ttl > len(tc.routers) || tc.routers[ttl-1] == "" {
						<-ctx.Done()
						return netip.Addr{}, ctx.Err()
					}
					return netip.MustParseAddr(tc.routers[ttl-1]), nil
				}, mapped)
				if got != tc.want {
					t.Errorf("%d, want %d", got, tc.want)
				}
				if took := time.Since(began); took > hopsWait {
					t.Errorf("took %s", took)
				}
			})
		})
	}
	if got := hops(t.Context(), nil, mapped); got != 0 {
		t.Errorf("%d without a way to measure, want 0", got)
	}
}

func TestNextPort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := newInternetWith(t, 10*time.Millisecond)
		n := in.addHost(in.addSite("203.0.113.10", "192.168.1", symmetricNAT), "192.168.1.10")
		in.start(stunCred)
		o := NextPortOptions{
			Listen: func() (net.PacketConn, error) { return n.ListenPacket("udp4", "192.168.1.10:0") },
			Server: in.stun.addrs()[0], Credential: stunCred, Log: testLog(t),
		}
		next, step, err := NextPort(t.Context(), o)
		must(t, err)
		p := openPort(t, listen(t, n, "192.168.1.10:4500"))
		res, err := p.Bind(t.Context(), p.Local()[0], in.stun.addrs()[0], BindOptions{Credential: stunCred})
		must(t, err)
		if step != 1 || res.Mapped.Port() != next {
			t.Errorf("%d in steps of %d was foretold, %s came", next, step, res.Mapped)
		}
		in.stun.deaf.Store(true)
		if _, _, err := NextPort(t.Context(), o); !errors.Is(err, ErrTimeout) {
			t.Errorf("silent server: %v, want %v", err, ErrTimeout)
		}
		refused := errors.New("no sockets left")
		o.Listen = func() (net.PacketConn, error) { return nil, refused }
		if _, _, err := NextPort(t.Context(), o); !errors.Is(err, refused) {
			t.Errorf("no socket: %v, want %v", err, refused)
		}
	})
}

func TestFollowing(t *testing.T) {
	for name, tc := range map[string]struct {
		first, second string
		known         int
		next          uint16
		step          int
	}{
		"up":                         {"203.0.113.10:9000", "203.0.113.10:9002", 0, 9004, 2},
		"down":                       {"203.0.113.10:9000", "203.0.113.10:8999", 0, 8998, -1},
		"a neighbour in between":     {"203.0.113.10:9000", "203.0.113.10:9006", 2, 9008, 2},
		"the other way than known":   {"203.0.113.10:9000", "203.0.113.10:9006", -2, 9012, 6},
		"random":                     {"203.0.113.10:9000", "203.0.113.10:41234", 1, 0, 0},
		"the same":                   {"203.0.113.10:9000", "203.0.113.10:9000", 1, 0, 0},
		"of several public ones":     {"203.0.113.10:9000", "203.0.113.11:9001", 1, 0, 0},
		"the last port":              {"203.0.113.10:65534", "203.0.113.10:65535", 1, 0, 0},
		"the first port, going down": {"203.0.113.10:2", "203.0.113.10:1", 0, 0, 0},
	} {
		next, step, err := following(netip.MustParseAddrPort(tc.first), netip.MustParseAddrPort(tc.second), tc.known)
		if next != tc.next || step != tc.step || errors.Is(err, ErrNoStep) != (tc.next == 0) {
			t.Errorf("%s: %d, step %d, %v; want %d, %d", name, next, step, err, tc.next, tc.step)
		}
	}
}
