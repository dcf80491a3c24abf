package rendezvous

import (
	"slices"

	"github.com/bodkin-net/bodkin/punch/nat"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// What a verdict can say beside package nat's words.
const (
	// expectUnknown: one of the two nodes has never been online.
	expectUnknown nat.Expectation = "unknown"
	// strategyPublic: nothing is punched, the edge goes to its connector.
	strategyPublic nat.Strategy = "public"
)

// VerdictView is what is expected of a pair, as the API and the page show it.
type VerdictView struct {
	// Expect is direct, relay, or unknown.
	Expect nat.Expectation `json:"expect"`
	// Strategy is ice, openers, predict, probe, none, or public; empty while
	// nothing is known.
	Strategy nat.Strategy `json:"strategy,omitempty"`
	// Reason is a sentence a person can act on.
	Reason string `json:"reason"`
}

func viewOf(v nat.Verdict) VerdictView {
	return VerdictView{Expect: v.Expect, Strategy: v.Strategy, Reason: v.Reason}
}

// known is what the registry knows of a node, for verdicts.
type known struct {
	site   nat.Site
	kind   wire.EndpointType
	online bool
	inner  bool
}

func (n *node) known() *known {
	if n == nil {
		return nil
	}
	return &known{site: n.site, kind: n.endpoint.Type, online: n.online, inner: n.inner}
}

// limit is the strictest policy of a pair's communities, and which one sets it.
type limit struct {
	policy    nat.Policy
	community string
}

// strictness orders the policies; what is not given is nat.Auto.
func strictness(p nat.Policy) int {
	return slices.Index([]nat.Policy{nat.Auto, nat.ICEOnly, nat.Never}, p)
}

// limitOf finds the strictest policy of the named communities.
func limitOf(names []string, policies map[string]nat.Policy) limit {
	var l limit
	for _, name := range names {
		if strictness(policies[name]) > max(0, strictness(l.policy)) {
			l = limit{policies[name], name}
		}
	}
	return l
}

// policies are those of the communities that set one, by name.
func policies(cs []Community) map[string]nat.Policy {
	set := map[string]nat.Policy{}
	for _, c := range cs {
		if c.Punch != "" {
			set[c.Name] = nat.Policy(c.Punch)
		}
	}
	return set
}

// judge is the verdict on two nodes; nil is a node that has never been online.
func judge(names [2]wire.NodeName, nodes [2]*known, l limit) nat.Verdict {
	for i, n := range nodes {
		if n == nil {
			return nat.Verdict{Expect: expectUnknown, Reason: string(names[i]) + " has never been online, or was deleted: nothing is known of its NAT"}
		}
	}
	for i, n := range nodes {
		if blocked := nodes[1-i].site.NAT.Blocked; n.kind == wire.Connector && blocked != "" {
			return nat.Verdict{Expect: nat.Relay, Strategy: strategyPublic, Reason: "UDP does not leave the network of " + string(names[1-i]) + ": " + blocked}
		}
		if n.kind == wire.Connector {
			return nat.Verdict{Expect: nat.Direct, Strategy: strategyPublic, Reason: string(names[i]) + " is a connector, reached at its public address"}
		}
	}
	a, b := nodes[0].site, nodes[1].site
	// On one carrier's network each reaches what the other's router forwards.
	if a.Public.IsValid() && a.Public == b.Public {
		a.Mapped, b.Mapped = a.Mapped || nodes[0].inner, b.Mapped || nodes[1].inner
	}
	v := nat.Judge(a, b)
	if l.policy == "" {
		return v
	}
	for _, s := range []*nat.Site{&a, &b} {
		if strictness(l.policy) > strictness(s.Policy) {
			s.Policy = l.policy
		}
	}
	if limited := nat.Judge(a, b); limited != v {
		limited.Reason += ", by community " + l.community
		return limited
	}
	return v
}

// verdict judges a pair.
func (c *coordinator) verdict(p *pair) nat.Verdict {
	nodes := [2]*known{c.nodes[p.names[0]].known(), c.nodes[p.names[1]].known()}
	if p.sixFailed && nodes[0] != nil && nodes[1] != nil && nodes[0].site.V4 && nodes[1].site.V4 {
		nodes[0].site.V6, nodes[1].site.V6 = false, false
	}
	return judge(p.names, nodes, p.limit)
}

// policy is the strictest that holds for a pair.
func (c *coordinator) policy(p *pair) nat.Policy {
	strictest := p.limit.policy
	for _, name := range p.names {
		if said := nat.Policy(c.nodes[name].policy); strictness(said) > strictness(strictest) {
			strictest = said
		}
	}
	return strictest
}

// rank orders strategies by how much they can do; what differs in rank may be
// tried right after the other.
func rank(s nat.Strategy) int {
	switch s {
	case nat.Predict:
		return 1
	case nat.Probe:
		return 2
	}
	return 0
}

// ranks is the number of values of rank.
const ranks = 3

// better reports whether a pair that was tried, or given up, on the verdict
// "was" has a chance that it had not.
func better(was, is nat.Verdict) bool {
	return is.Expect == nat.Direct && (was.Expect == nat.Relay || was.Expect == nat.Direct && rank(is.Strategy) > rank(was.Strategy))
}

// counts reports whether the node's next mapping can be asked for and computed.
func (s known) counts() bool { return s.hidden() && s.site.NAT.Allocation == nat.Sequential }

// hidden reports whether nobody can be told where the node's packets will come
// from.
func (s known) hidden() bool { return s.site.NAT.Symmetric() && !s.site.Mapped }
