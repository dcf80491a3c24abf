package ruleset

import (
	"net/netip"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"

	"github.com/bodkin-net/bodkin/internal/nstest"
)

// answerTo is a STUN answer to the shared port, firstFrom a peer's first packet to
// it.
var (
	answerTo = Packet{
		Src: netip.MustParseAddrPort("203.0.113.1:3478"), Dst: netip.MustParseAddrPort("192.168.1.2:4500"),
		Protocol: 17, In: &Interface{1, "lo"}, State: Established, Local: true,
	}
	firstFrom = Packet{
		Src: netip.MustParseAddrPort("198.51.100.7:4500"), Dst: netip.MustParseAddrPort("192.168.1.2:4500"),
		Protocol: 17, In: &Interface{1, "lo"}, State: New, Local: true,
	}
	first6 = Packet{
		Src: netip.MustParseAddrPort("[2001:db8::7]:4500"), Dst: netip.MustParseAddrPort("[2001:db8::2]:4500"),
		Protocol: 17, In: &Interface{1, "lo"}, State: New, Local: true,
	}
)

// Rules as the kernel gives them back, and what they do to the two packets.
func TestInput(t *testing.T) {
	const in = "type filter hook input priority 0; "
	for _, tt := range []struct {
		name, rules      string
		established, new Fate
		six              Fate
	}{
		{"empty", ``, Passes, Passes, Passes},
		{"port", `table inet f { chain in { ` + in + `udp dport 4500 drop; }; }`, Dropped, Dropped, Dropped},
		{"ports", `table inet f { chain in { ` + in + `udp dport { 500, 4500 } counter reject; }; }`, Dropped, Dropped, Dropped},
		{"other ports", `table inet f { chain in { ` + in + `udp dport { 500, 4501 } drop; tcp dport 4500 drop; }; }`, Passes, Passes, Passes},
		{"range", `table inet f { chain in { ` + in + `udp dport 4000-5000 drop; }; }`, Dropped, Dropped, Dropped},
		{"ranges", `table inet f { chain in { ` + in + `udp dport { 100-200, 4400-4499, 4600-4700 } drop; }; }`, Passes, Passes, Passes},
		{"ranges that hold", `table inet f { chain in { ` + in + `udp dport { 100-200, 4400-4500 } drop; }; }`, Dropped, Dropped, Dropped},
		{"stateful", `table inet f { chain in { ` + in + `policy drop; ct state established,related accept; }; }`, Passes, Dropped, Dropped},
		{"stateful by map", `table inet f { chain in { ` + in + `policy drop; ct state vmap { established : accept, invalid : drop }; }; }`, Passes, Dropped, Dropped},
		{"jump by map", `table inet f { chain web { drop; }; chain ike { accept; }; chain in { ` + in + `policy drop; udp dport vmap { 80 : jump web, 4500 : jump ike }; }; }`, Passes, Passes, Passes},
		{"jump", `table inet f { chain ike { meta l4proto udp th dport 4500 accept; }; chain in { ` + in + `policy drop; jump ike; }; }`, Passes, Passes, Passes},
		{"goto and return", `table inet f { chain ike { return; }; chain in { ` + in + `policy drop; goto ike; accept; }; }`, Dropped, Dropped, Dropped},
		{"sources", `table ip f { set bad { type ipv4_addr; flags interval; elements = { 198.51.100.0/24 }; }; chain in { ` + in + `ip saddr @bad drop; }; }`, Passes, Dropped, Passes},
		{"other sources", `table ip f { chain in { ` + in + `ip saddr != 203.0.113.0/24 drop; }; }`, Passes, Dropped, Passes},
		{"interface", `table inet f { chain in { ` + in + `iifname "lo" accept; drop; }; }`, Passes, Passes, Passes},
		{"interfaces", `table inet f { chain in { ` + in + `iifname "eth*" drop; iif "lo" drop; }; }`, Dropped, Dropped, Dropped},
		{"family", `table inet f { chain in { ` + in + `meta nfproto ipv6 drop; }; }`, Passes, Passes, Dropped},
		{"limited", `table inet f { chain in { ` + in + `udp dport 4500 limit rate over 10/second drop; }; }`, Perhaps, Perhaps, Perhaps},
		{"perhaps accepted", `table inet f { chain in { ` + in + `policy drop; meta skuid 0 accept; }; }`, Perhaps, Perhaps, Perhaps},
		{"translated only", `table inet f { chain in { ` + in + `ct status dnat accept; drop; }; }`, Dropped, Dropped, Dropped},
		{"perhaps returned", `table inet f { chain logs { limit rate 3/minute return; }; chain in { ` + in + `jump logs; udp dport 4500 drop; }; }`, Dropped, Dropped, Dropped},
		{"perhaps returned before", `table inet f { chain some { meta skuid 0 return; drop; }; chain in { ` + in + `jump some; }; }`, Perhaps, Perhaps, Perhaps},
		{"perhaps there", `table inet f { chain web { tcp dport 80 accept; }; chain in { ` + in + `meta skuid 0 jump web; drop; }; }`, Dropped, Dropped, Dropped},
		{"perhaps accepted there", `table inet f { chain ike { accept; }; chain in { ` + in + `meta skuid 0 jump ike; drop; }; }`, Perhaps, Perhaps, Perhaps},
		{"perhaps dropped there", `table inet f { chain bad { drop; }; chain in { ` + in + `meta skuid 0 jump bad; }; }`, Perhaps, Perhaps, Perhaps},
		// As firewalld makes them: accepted when the service is in the zone.
		{"zones", `table inet firewalld { chain allow { udp dport 500 accept; }; chain zone { jump allow; reject with icmpx admin-prohibited; };
		    chain in { ` + in + `ct state { established, related } accept; ct status dnat accept; ct state invalid drop; iifname "lo" goto zone; reject; }; }`, Passes, Dropped, Dropped},
		{"late", `table inet f { chain in { ` + in + `accept; }; }
		          table inet g { chain in { type filter hook input priority 10; udp dport 4500 drop; }; }`, Dropped, Dropped, Dropped},
		{"ours", `table inet bodkin-relay { chain in { ` + in + `drop; }; }`, Passes, Passes, Passes},
		{"concatenation", `table ip f { chain in { ` + in + `ip saddr . udp dport { 198.51.100.7 . 4500 } drop; }; }`, Passes, Dropped, Passes},
		{"local", `table inet f { chain in { ` + in + `fib daddr type local accept; drop; }; }`, Passes, Passes, Passes},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := load(t, tt.rules)
			for _, p := range []struct {
				name   string
				packet Packet
				want   Fate
			}{{"an answer", answerTo, tt.established}, {"a first packet", firstFrom, tt.new}, {"one of IPv6", first6, tt.six}} {
				got := r.At(nftables.ChainHookInput, p.packet)
				if got.Fate != p.want {
					t.Errorf("%s: %v at %s; want %v\n%s", p.name, got.Fate, got.Place, p.want, tt.rules)
				}
				if (got.Fate == Passes) != (got.Place == Place{}) {
					t.Errorf("%s: fate %v at %q", p.name, got.Fate, got.Place)
				}
			}
		})
	}
}

// What iptables-nft writes for its own matches.
func TestExtensions(t *testing.T) {
	any16 := [2]uint16{0, 0xffff}
	state := func(bits uint16, invert xt.ConntrackFlags) *xt.ConntrackMtinfo3 {
		return &xt.ConntrackMtinfo3{ConntrackMtinfo2: xt.ConntrackMtinfo2{
			ConntrackMtinfoBase: xt.ConntrackMtinfoBase{MatchFlags: uint16(xt.ConntrackState), InvertFlags: uint16(invert)}, StateMask: bits,
		}}
	}
	w := walk{packet: firstFrom}
	for _, tt := range []struct {
		info xt.InfoAny
		want answer
	}{
		{&xt.Udp{SrcPorts: any16, DstPorts: [2]uint16{4500, 4500}}, yes},
		{&xt.Udp{SrcPorts: any16, DstPorts: [2]uint16{500, 500}}, no},
		{&xt.Udp{SrcPorts: any16, DstPorts: [2]uint16{500, 500}, InvFlags: xt.UdpInvDestPorts}, yes},
		{&xt.Tcp{}, no},
		{state(2|4, 0), no},
		{state(8, 0), yes},
		{state(8, xt.ConntrackState), no},
		{&xt.ConntrackMtinfo3{ConntrackMtinfo2: xt.ConntrackMtinfo2{ConntrackMtinfoBase: xt.ConntrackMtinfoBase{MatchFlags: uint16(xt.ConntrackProto)}}}, perhaps},
		{&xt.AddrTypeV1{Dest: uint16(xt.AddrTypeLocal)}, yes},
		{&xt.AddrTypeV1{Dest: uint16(xt.AddrTypeMulticast)}, no},
		{&xt.AddrTypeV1{Dest: uint16(xt.AddrTypeLocal), Flags: invertDest}, no},
		{&xt.AddrTypeV1{Source: uint16(xt.AddrTypeLocal)}, perhaps},
		{new(xt.Unknown), perhaps},
	} {
		if got := w.extension(&expr.Match{Info: tt.info}); got != tt.want {
			t.Errorf("%+v: %v, want %v", tt.info, got, tt.want)
		}
	}
}

func load(t *testing.T, rules string) (r *Ruleset) {
	t.Helper()
	ns := nstest.New(t)
	ns.Nft(t, rules)
	var err error
	ns.Do(func() { r, err = Read("bodkin") })
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Pods' traffic into a tunnel that a CNI masquerades, unless it is told not to.
func TestPostrouting(t *testing.T) {
	pods := Packet{
		Src: netip.MustParseAddrPort("10.1.0.5:0"), Dst: netip.MustParseAddrPort("10.2.0.5:0"),
		Protocol: 1, Out: &Interface{2, "eth0"}, State: New,
	}
	for rules, want := range map[string]Fate{
		`ip saddr 10.1.0.0/16 ip daddr != 10.1.0.0/16 masquerade`:      Rewritten,
		`oifname "eth0" snat to 192.0.2.1`:                             Rewritten,
		`ip daddr 10.2.0.0/16 accept; ip saddr 10.1.0.0/16 masquerade`: Passes,
		`ip daddr 10.2.0.0/16 return; oifname "eth0" masquerade`:       Passes,
		`oifname "eth1" masquerade`:                                    Passes,
		`meta skuid 0 accept; oifname "eth0" masquerade`:               Perhaps,
	} {
		r := load(t, `table ip n { chain post { type nat hook postrouting priority 100; `+rules+`; }; }`)
		got := r.At(nftables.ChainHookPostrouting, pods)
		if got.Fate != want {
			t.Errorf("%v at %s; want %v\n%s", got.Fate, got.Place, want, rules)
		}
		if want == Rewritten && (got.Place.Table != "n" || got.Place.Chain != "post" || got.Place.Handle == 0) {
			t.Errorf("%s: at %s", rules, got.Place)
		}
	}
}
