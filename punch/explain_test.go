package punch

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/bodkin-net/bodkin/punch/nat"
)

var (
	portNAT     = nat.NAT{Present: true, Mapping: nat.EndpointIndependent, Filtering: nat.AddressAndPortDependent, Allocation: nat.Preserving, Poisoned: nat.No}
	randomNAT   = nat.NAT{Present: true, Mapping: nat.AddressAndPortDependent, Filtering: nat.AddressAndPortDependent, Allocation: nat.Random}
	countingNAT = nat.NAT{Present: true, Mapping: nat.AddressAndPortDependent, Filtering: nat.AddressAndPortDependent, Allocation: nat.Sequential, Step: 1}
)

func behind(name string, n nat.NAT) nat.Site { return nat.Site{Name: name, NAT: n} }

func to(addr string, p PairStats) PairStats {
	p.Remote.Addr = netip.MustParseAddrPort(addr)
	return p
}

func TestExplain(t *testing.T) {
	silent := Stats{Pairs: []PairStats{to("192.0.2.1:1", PairStats{RequestsSent: 80}), to("192.0.2.1:2", PairStats{RequestsSent: 4})}}
	with := func(change func(*Stats)) Stats {
		st := silent
		change(&st)
		return st
	}
	here, there := behind("a.here", portNAT), behind("a.there", portNAT)
	for _, tc := range []struct {
		name string
		attempt
		want string
	}{
		{"blocked here", attempt{local: behind("a.here", nat.NAT{Blocked: "no answer from X"}), remote: there, stats: silent},
			"UDP does not leave this network: no answer from X"},
		{"blocked there", attempt{local: here, remote: behind("a.there", nat.NAT{Blocked: "no answer from Y"}), stats: silent},
			"UDP does not leave the peer's network: no answer from Y"},
		{"nothing to check", attempt{local: here, remote: there},
			"no check could be sent: the peer named no address that may be tried"},
		{"nothing to check, expected", attempt{local: here, remote: there, hopeless: "no common address family"},
			"no common address family"},
		{"peer arrives", attempt{local: here, remote: there, hopeless: "hopeless", stats: Stats{Pairs: []PairStats{{RequestsSent: 9, RequestsReceived: 3}}}},
			"the peer's checks arrive here, but neither our answers nor our checks reach it: something on the way to the peer drops them"},
		{"answered", attempt{local: here, remote: there, stats: Stats{Pairs: []PairStats{{RequestsSent: 9, ResponsesReceived: 1}}}},
			"checks were answered, but the attempt ended before both sides agreed on a path"},
		{"silence", attempt{local: here, remote: there, stats: silent},
			"84 checks sent to 2 addresses, nothing came back: a firewall drops UDP between the two, or the peer did not start"},
		{"hopeless", attempt{local: here, remote: there, hopeless: "both NATs are symmetric", stats: silent},
			"both NATs are symmetric"},
		{"hopeless and blocked", attempt{local: here, remote: behind("a.there", nat.NAT{Blocked: "no answer"}), hopeless: "UDP does not leave the network of a.there: no answer"},
			"UDP does not leave the network of a.there: no answer"},
		{"trouble", attempt{local: behind("a.here", randomNAT), remote: there, strategy: nat.Probe, trouble: errors.New("nftables: operation not permitted"), stats: silent},
			"this side could not do its part: nftables: operation not permitted"},
		{"both random", attempt{local: behind("a.here", randomNAT), remote: behind("a.there", randomNAT), stats: silent},
			"both NATs are symmetric with random ports: neither side's port can be known or found"},
		{"searched", attempt{local: here, remote: behind("a.there", randomNAT), strategy: nat.Probe, stats: with(func(s *Stats) { s.Probes = 2400 })},
			"2400 probes sent to the peer's NAT, none hit a port that the peer holds open"},
		{"opened", attempt{local: behind("a.here", randomNAT), remote: there, strategy: nat.Probe, stats: with(func(s *Stats) { s.Openers, s.Forged = 257, 2 })},
			"257 ports opened towards the peer, none of its probes hit one; 2 packets that came in ignored, since they were not the peer's"},
		{"predicted", attempt{local: here, remote: behind("a.there", countingNAT), strategy: nat.Predict, stats: silent},
			"84 checks sent to predicted ports, nothing came back: other traffic may have taken the ports"},
		{"not searched", attempt{local: here, remote: behind("a.there", randomNAT), strategy: nat.ICE, stats: silent},
			"a.there is behind a symmetric NAT with random ports: a.here looks for one of many it opens; this attempt did not"},
	} {
		if got := Explain(tc.made()); got != tc.want {
			t.Errorf("%s:\ngot  %q\nwant %q", tc.name, got, tc.want)
		}
	}
}

// attempt is Attempt with names short enough for a table.
type attempt struct {
	local, remote nat.Site
	strategy      nat.Strategy
	hopeless      string
	trouble       error
	stats         Stats
}

func (a attempt) made() Attempt {
	return Attempt{Local: a.local, Remote: a.remote, Strategy: a.strategy, Hopeless: a.hopeless, Trouble: a.trouble, Stats: a.stats}
}

// Whatever nat.Judge calls impossible is explained in its words, and nothing
// else is blamed on the NATs.
func TestExplainAgreesWithJudge(t *testing.T) {
	nats := map[string]nat.NAT{"port": portNAT, "random": randomNAT, "counting": countingNAT, "unknown": {},
		"open": {Mapping: nat.EndpointIndependent, Filtering: nat.EndpointIndependent}}
	tried := Stats{Pairs: []PairStats{{RequestsSent: 84}}}
	for l, local := range nats {
		for r, remote := range nats {
			a := Attempt{Local: behind("l", local), Remote: behind("r", remote), Strategy: nat.ICE, Stats: tried}
			verdict, got := nat.Judge(a.Local, a.Remote), Explain(a)
			blames := !strings.Contains(got, "nothing came back")
			if want := verdict.Expect == nat.Relay || verdict.Strategy == nat.Probe || verdict.Strategy == nat.Predict; blames != want {
				t.Errorf("%s × %s: %q, verdict %s", l, r, got, verdict)
			}
			if blames && !strings.HasPrefix(got, verdict.Reason) {
				t.Errorf("%s × %s: %q, want it to begin with %q", l, r, got, verdict.Reason)
			}
		}
	}
}
