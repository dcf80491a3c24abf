package agent

import (
	"net/netip"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/punch"
	"github.com/bodkin-net/bodkin/punch/nat"
)

func TestFindings(t *testing.T) {
	at := netip.MustParseAddrPort
	known := findings{mapped: at("203.0.113.7:4500"), at: t0}
	tests := []struct {
		name      string
		found     findings
		mapped    string
		after     time.Duration
		hold, due bool
	}{
		{"nothing known", findings{}, "203.0.113.7:4500", 0, false, true},
		{"unchanged", known, "203.0.113.7:4500", time.Hour, true, false},
		{"another port, too early", known, "203.0.113.7:5000", rediscover - 1, true, false},
		{"another port", known, "203.0.113.7:5000", rediscover, true, true},
		{"another address", known, "203.0.113.8:4500", time.Second, false, true},
	}
	for _, tt := range tests {
		if hold, due := tt.found.holdFor(at(tt.mapped)), tt.found.due(at(tt.mapped), t0.Add(tt.after)); hold != tt.hold || due != tt.due {
			t.Errorf("%s: hold %v, due %v; want %v, %v", tt.name, hold, due, tt.hold, tt.due)
		}
	}
}

// A lifetime that was learnt outlasts a new discovery of the same NAT.
func TestFindingsDiscovered(t *testing.T) {
	seen := func(addr string) punch.Network {
		return punch.Network{NAT: nat.NAT{Present: true}, Mapped: netip.MustParseAddrPort(addr)}
	}
	before := findings{}.discovered(seen("203.0.113.7:4500"), t0)
	if before.nat.LifetimeSeconds != 0 {
		t.Errorf("at first: lifetime %d s; want none", before.nat.LifetimeSeconds)
	}
	before.life.Result(true)
	for _, tt := range []struct {
		name, mapped string
		want         time.Duration
	}{
		{"another port", "203.0.113.7:5000", before.life.Lifetime()},
		{"another address", "203.0.113.8:4500", 0},
	} {
		got := before.discovered(seen(tt.mapped), t0.Add(rediscover))
		if lifetime := time.Duration(got.nat.LifetimeSeconds) * time.Second; lifetime != tt.want || got.life.Lifetime() != tt.want {
			t.Errorf("%s: lifetime %v; want %v", tt.name, lifetime, tt.want)
		}
		if got.mapped.String() != tt.mapped || !got.at.Equal(t0.Add(rediscover)) || !got.nat.Present {
			t.Errorf("%s: %+v", tt.name, got)
		}
	}
}
