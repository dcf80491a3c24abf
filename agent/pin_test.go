package agent

import (
	"net"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/bodkin-net/bodkin/internal/nstest"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// outPolicy is a policy as charon installs them.
func outPolicy(src, dst string, priority, reqid int) netlink.XfrmPolicy {
	return netlink.XfrmPolicy{
		Src: ipNet(netip.MustParsePrefix(src)), Dst: ipNet(netip.MustParsePrefix(dst)), Dir: netlink.XFRM_DIR_OUT, Priority: priority,
		Tmpls: []netlink.XfrmPolicyTmpl{{
			Src: net.IPv4(10, 22, 46, 30), Dst: net.IPv4(203, 0, 113, 1), Proto: netlink.XFRM_PROTO_ESP,
			Mode: netlink.XFRM_MODE_TUNNEL, Reqid: reqid, Spi: 0xc0ffee,
		}},
	}
}

var pinMark = DirectMark{Value: defaultDirectMark, Mask: defaultDirectMark}

func TestPinsFor(t *testing.T) {
	const direct, relay, other, bypass = 1, 2, 3, 4
	standing := []netlink.XfrmPolicy{
		outPolicy("10.1.0.0/24", "10.2.0.0/24", 375423, direct),
		outPolicy("10.1.0.0/24", "10.2.0.0/16", 379519, relay),
		outPolicy("10.9.0.0/24", "10.2.0.0/16", 379519, other),
		outPolicy("10.1.0.0/24", "0.0.0.0/0", 387711, other),
		outPolicy("fd00:1::/64", "fd00::/16", 350000, relay),
	}
	passes := outPolicy("10.1.0.0/24", "10.0.0.0/8", 100, bypass)
	passes.Tmpls = nil
	tests := []struct {
		name      string
		own, peer []netip.Prefix
		policies  []netlink.XfrmPolicy
		want      []string // selectors
		err       string
	}{
		{"the one before the widest", prefixList("10.1.0.0/24"), prefixList("10.2.0.0/24"), standing, []string{"10.1.0.0/24 10.2.0.0/24"}, ""},
		{"a policy that protects nothing is no relay", prefixList("10.1.0.0/24"), prefixList("10.2.0.0/24"), append(standing[:4:4], passes),
			[]string{"10.1.0.0/24 10.2.0.0/24"}, ""},
		{"each address family", prefixList("10.1.0.0/24", "fd00:1::/64"), prefixList("10.2.0.0/24", "fd00:2::/64"), standing,
			[]string{"10.1.0.0/24 10.2.0.0/24", "fd00:1::/64 fd00:2::/64"}, ""},
		{"several subnets", prefixList("10.1.0.0/24"), prefixList("10.2.0.0/24", "10.2.1.0/24"), standing,
			[]string{"10.1.0.0/24 10.2.0.0/24", "10.1.0.0/24 10.2.1.0/24"}, ""},
		{"no relay", prefixList("10.1.0.0/24"), prefixList("10.2.0.0/24"), standing[:1], nil, "no policy of a relay from 10.1.0.0/24 to 10.2.0.0/24"},
		{"a relay of only some", prefixList("10.1.0.0/24", "10.8.0.0/24"), prefixList("10.2.0.0/24"), standing, nil, "from 10.8.0.0/24"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			pins, err := pinsFor(tt.own, tt.peer, pinMark, tt.policies)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error %v, want one with %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var selectors []string
			for _, p := range pins {
				selectors = append(selectors, p.Src.String()+" "+p.Dst.String())
				if len(p.Tmpls) != 1 || p.Tmpls[0].Reqid != relay || p.Tmpls[0].Spi != 0 {
					t.Errorf("template %v, want the relay's, whatever the SPI", p.Tmpls)
				}
			}
			if !reflect.DeepEqual(selectors, tt.want) {
				t.Errorf("pins %v, want %v", selectors, tt.want)
			}
		})
	}
}

// TestPin: the kernel keeps pins beside charon's policies of the same selectors,
// and those are as they were afterwards.
func TestPin(t *testing.T) {
	nstest.Enter(t)
	for _, p := range []netlink.XfrmPolicy{
		outPolicy("10.1.0.0/24", "10.2.0.0/24", 375423, 1), outPolicy("10.1.0.0/24", "10.2.0.0/16", 379519, 2),
	} {
		if err := netlink.XfrmPolicyAdd(&p); err != nil {
			t.Fatal(err)
		}
	}
	before := policies(t)
	newRun := func() *run {
		r := &run{shared: &shared{id: &identity{endpoint: wire.Endpoint{Subnets: prefixList("10.1.0.0/24")}}, directMark: pinMark}}
		r.peer.Endpoint.Subnets = prefixList("10.2.0.0/24")
		if err := r.pin(); err != nil {
			t.Fatal(err)
		}
		return r
	}
	pinned := func() {
		t.Helper()
		var pins []netlink.XfrmPolicy
		for _, p := range policies(t) {
			if p.Priority == pinPriority {
				pins = append(pins, p)
			}
		}
		if len(pins) != 1 || pins[0].Tmpls[0].Reqid != 2 || pins[0].Mark == nil || pins[0].Mark.Mask != pinMark.Mask || pins[0].Mark.Value != 0 {
			t.Errorf("pins %v, want one to the relay for all but what bears the mark", pins)
		}
	}
	restored := func() {
		t.Helper()
		if after := policies(t); !reflect.DeepEqual(after, before) {
			t.Errorf("policies\n%v\nwant as before\n%v", after, before)
		}
	}

	r := newRun()
	pinned()
	r.unpin()
	restored()
	r.unpin()

	newRun() // and its agent is killed
	r = newRun()
	pinned()
	if err := sweepPins(); err != nil {
		t.Error(err)
	}
	restored()
	r.unpin()
	restored()
}

func policies(t *testing.T) []netlink.XfrmPolicy {
	t.Helper()
	out, err := outPolicies()
	if err != nil {
		t.Fatal(err)
	}
	return out
}
