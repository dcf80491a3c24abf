package forward

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
)

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func text(spans []span) string {
	var out []string
	for _, s := range spans {
		out = append(out, s.first.String()+"-"+s.last.String())
	}
	return strings.Join(out, " ")
}

func TestSpans(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   []netip.Prefix
		is   func(netip.Addr) bool
		want string
	}{
		{"none", nil, netip.Addr.Is4, ""},
		{"in order", prefixes("10.0.2.0/24", "10.0.0.0/24"), netip.Addr.Is4, "10.0.0.0-10.0.0.255 10.0.2.0-10.0.2.255"},
		{"side by side", prefixes("10.0.0.0/24", "10.0.1.0/24"), netip.Addr.Is4, "10.0.0.0-10.0.1.255"},
		{"one in the other", prefixes("10.0.0.0/16", "10.0.3.0/24", "10.0.0.0/24"), netip.Addr.Is4, "10.0.0.0-10.0.255.255"},
		{"twice", prefixes("10.0.0.1/32", "10.0.0.1/32"), netip.Addr.Is4, "10.0.0.1-10.0.0.1"},
		{"host bits", prefixes("10.0.0.7/24"), netip.Addr.Is4, "10.0.0.0-10.0.0.255"},
		{"to the end", prefixes("255.255.255.0/24", "255.255.255.0/25"), netip.Addr.Is4, "255.255.255.0-255.255.255.255"},
		{"IPv4 alone", prefixes("10.0.0.0/24", "fd00::/64"), netip.Addr.Is4, "10.0.0.0-10.0.0.255"},
		{"IPv6 alone", prefixes("10.0.0.0/24", "fd00::/64"), netip.Addr.Is6, "fd00::-fd00::ffff:ffff:ffff:ffff"},
	} {
		if got := text(spans(tt.in, tt.is)); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

// Netfilter's intervals leave their end out; one that ends with the address space
// has none.
func TestElements(t *testing.T) {
	for _, tt := range []struct {
		prefix string
		want   []string
	}{
		{"10.0.0.0/24", []string{"10.0.0.0", "10.0.1.0 end"}},
		{"255.255.255.0/24", []string{"255.255.255.0"}},
	} {
		var got []string
		for _, e := range elements(spans(prefixes(tt.prefix), netip.Addr.Is4)) {
			a, _ := netip.AddrFromSlice(e.Key)
			s := a.String()
			if e.IntervalEnd {
				s += " end"
			}
			got = append(got, s)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.prefix, got, tt.want)
		}
	}
}

// decide is what netfilter makes of a ruleset.
func decide(rs ruleset, src, dst string) string {
	in := func(name string, a netip.Addr) bool {
		return slices.ContainsFunc(rs.sets, func(s set) bool {
			return s.name == name && slices.ContainsFunc(s.spans, func(p span) bool {
				return p.first.Compare(a) <= 0 && a.Compare(p.last) <= 0
			})
		})
	}
	from, to := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	for _, r := range rs.rules {
		if r.family.is(from) && in(r.from, from) && in(r.to, to) {
			if r.accept {
				return "accept"
			}
			return "drop"
		}
	}
	return "left alone"
}

var edge1, edge2, edge3, connector = "10.233.65.1", "10.233.66.1", "10.233.67.1", "10.233.64.1"

func twoOfThree() Policy {
	return Policy{
		Groups: [][]netip.Prefix{prefixes("10.233.65.0/24", "fd00:65::/64", "10.233.66.0/24", "fd00:66::/64")},
		Edges:  prefixes("10.233.65.0/24", "fd00:65::/64", "10.233.66.0/24", "fd00:66::/64", "10.233.67.0/24", "fd00:67::/64"),
		Own:    prefixes("10.233.64.0/24", "203.0.113.1/32"),
		Range:  prefixes("10.233.0.0/16", "fd00::/16"),
	}
}

func TestCompile(t *testing.T) {
	noGroups := twoOfThree()
	noGroups.Groups = nil
	for _, tt := range []struct {
		name     string
		policy   Policy
		src, dst string
		want     string
	}{
		{"members", twoOfThree(), edge1, edge2, "accept"},
		{"members, IPv6", twoOfThree(), "fd00:65::1", "fd00:66::1", "accept"},
		{"to a stranger", twoOfThree(), edge1, edge3, "drop"},
		{"from a stranger", twoOfThree(), edge3, edge2, "drop"},
		{"from a stranger, IPv6", twoOfThree(), "fd00:67::1", "fd00:66::1", "drop"},
		{"no groups", noGroups, edge1, edge2, "drop"},
		{"to the connector's pods", twoOfThree(), edge3, connector, "accept"},
		{"from the connector's pods", twoOfThree(), connector, edge3, "accept"},
		{"to the rest of the range", twoOfThree(), edge1, "10.233.9.9", "drop"},
		{"from the rest of the range", twoOfThree(), "10.233.9.9", edge1, "drop"},
		{"within the rest of the range", twoOfThree(), "10.233.9.9", "10.233.8.8", "left alone"},
		{"to somewhere else", twoOfThree(), edge1, "192.0.2.1", "left alone"},
		{"nothing to relay", Policy{}, edge1, edge2, "left alone"},
	} {
		if got := decide(compile(tt.policy), tt.src, tt.dst); got != tt.want {
			t.Errorf("%s: %s → %s: %s, want %s", tt.name, tt.src, tt.dst, got, tt.want)
		}
	}
}

// Every edge that is not in a group with another one is cut off from it, whatever
// the order of the groups.
func TestCompileGroupsDoNotMix(t *testing.T) {
	p := twoOfThree()
	p.Groups = [][]netip.Prefix{prefixes("10.233.65.0/24", "10.233.66.0/24"), prefixes("10.233.66.0/24", "10.233.67.0/24")}
	for _, tt := range []struct{ src, dst, want string }{
		{edge1, edge2, "accept"}, {edge2, edge3, "accept"}, {edge3, edge2, "accept"}, {edge1, edge3, "drop"}, {edge3, edge1, "drop"},
	} {
		if got := decide(compile(p), tt.src, tt.dst); got != tt.want {
			t.Errorf("%s → %s: %s, want %s", tt.src, tt.dst, got, tt.want)
		}
	}
	if got := compile(p).sets[0].family.key; got != nftables.TypeIPAddr {
		t.Errorf("the first sets are of %v, want IPv4", got)
	}
}
