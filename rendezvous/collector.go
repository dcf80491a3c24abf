package rendezvous

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bodkin-net/bodkin/punch/nat"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// scrapeTimeout bounds the wait for the hub. Prometheus gives up after 10 s by
// default; half of that leaves time to say what failed.
const scrapeTimeout = 5 * time.Second

// reasonLabels bounds the reasons that are series of their own.
const reasonLabels = 20

// collector computes at scrape time what is true of the moment, so that no
// gauge can drift from what the page shows.
type collector struct {
	src                                            source
	stun                                           func() STUNStats
	nodes, pairs, storeOK                          *prometheus.Desc
	nats, verdicts, idle, idlePerPeer, keepalive   *prometheus.Desc
	sessions, admission, punching, reasons         *prometheus.Desc
	stunRequests, stunResponses, stunSendingFailed *prometheus.Desc
}

func newCollector(src source, stun func() STUNStats) *collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return &collector{
		src: src, stun: stun,
		nodes:             desc("bodkin_nodes", "Nodes that have joined at least once.", "online"),
		pairs:             desc("bodkin_pairs", "Pairs of nodes that shall have a tunnel.", "state"),
		nats:              desc("bodkin_node_nats", "Nodes by what the NATs before them do, RFC 4787.", "mapping", "filtering", "allocation"),
		verdicts:          desc("bodkin_pair_verdicts", "Pairs by what is expected of them, whatever has happened so far.", "expect", "strategy"),
		idle:              desc("bodkin_node_idle_bytes_per_day", "What a node costs while nothing flows through its tunnels, in IP bytes a day.", "node", "part"),
		idlePerPeer:       desc("bodkin_node_idle_peer_bytes_per_day", "The mean of it for one of the node's peers.", "node"),
		keepalive:         desc("bodkin_node_keepalive_bytes_per_day", "What a node costs while nothing flows through its tunnels, all parts together, in IP bytes a day.", "node"),
		sessions:          desc("bodkin_sessions", "Agents that are connected now."),
		admission:         desc("bodkin_nodes_admission", "Nodes by what operators have said about them; of an existing CA only those they have said something about.", "state"),
		punching:          desc("bodkin_pairs_punching", "Pairs that are not direct and being tried."),
		reasons:           desc("bodkin_pairs_by_reason", "Pairs that are not direct, by why: the most frequent reasons, without names and times, and all others as \"other\".", "state", "reason"),
		storeOK:           desc("bodkin_store_ok", "1 while the store takes writes, else 0."),
		stunRequests:      desc("bodkin_stun_requests_total", "STUN packets received, by what became of them.", "result"),
		stunResponses:     desc("bodkin_stun_responses_total", "STUN responses sent, errors among them."),
		stunSendingFailed: desc("bodkin_stun_send_failures_total", "STUN responses the system would not send."),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.nodes, c.nats, c.pairs, c.verdicts, c.idle, c.idlePerPeer, c.keepalive,
		c.sessions, c.admission, c.punching, c.reasons, c.storeOK, c.stunRequests, c.stunResponses, c.stunSendingFailed} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}

	storeOK := 1
	if c.src.ready() != nil {
		storeOK = 0
	}
	gauge(c.storeOK, storeOK)

	stun := c.stun()
	counter(c.stunRequests, stun.Plain, "plain")
	counter(c.stunRequests, stun.Authenticated, "authenticated")
	counter(c.stunRequests, stun.Malformed, "malformed")
	counter(c.stunRequests, stun.Refused, "refused")
	counter(c.stunRequests, stun.Unauthorised, "unauthorised")
	counter(c.stunRequests, stun.RateLimited, "rate_limited")
	counter(c.stunResponses, stun.Responses)
	counter(c.stunSendingFailed, stun.SendFailures)

	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	_, nodes, err := c.src.nodeViews(ctx)
	if err != nil {
		ch <- prometheus.NewInvalidMetric(c.nodes, err)
		return
	}
	online := 0
	nats := map[[3]string]int{}
	for _, n := range nodes {
		if n.Online {
			online++
		}
		nats[natLabels(n.NAT)]++
		if u := n.Usage; u != nil {
			var peers int64
			for _, bytes := range u.Peers {
				peers += bytes
			}
			gauge(c.idle, int(u.Signalling), string(n.Name), "signalling")
			gauge(c.idle, int(u.STUN), string(n.Name), "stun")
			gauge(c.idle, int(peers), string(n.Name), "peers")
			gauge(c.keepalive, int(u.Signalling+u.STUN+peers), string(n.Name))
			gauge(c.idlePerPeer, int(u.perPeer()), string(n.Name))
		}
	}
	for labels, n := range nats {
		gauge(c.nats, n, labels[:]...)
	}
	gauge(c.nodes, online, "true")
	gauge(c.nodes, len(nodes)-online, "false")
	gauge(c.sessions, online)
	if states, err := c.src.admissionStates(); err != nil {
		ch <- prometheus.NewInvalidMetric(c.admission, err)
	} else {
		for state, n := range states {
			gauge(c.admission, n, string(state))
		}
	}
	b, err := c.src.board(ctx)
	if err != nil {
		ch <- prometheus.NewInvalidMetric(c.pairs, err)
		return
	}
	// A state nobody is in counts zero: a series that vanishes fires no alert.
	count := b.counts()
	gauge(c.pairs, count.Direct, string(Direct))
	gauge(c.pairs, count.Relayed, string(Relayed))
	gauge(c.pairs, count.Down, string(Down))
	gauge(c.punching, count.Punching)
	verdicts := map[[2]string]int{{string(nat.Relay), string(nat.ICE)}: 0}
	for _, p := range b.pairs {
		verdicts[[2]string{string(p.verdict.Expect), cmp.Or(string(p.verdict.Strategy), "unknown")}]++
	}
	for labels, n := range verdicts {
		gauge(c.verdicts, n, labels[:]...)
	}
	for _, r := range bounded(b.reasons(inGeneral)) {
		gauge(c.reasons, r.Pairs, string(r.State), r.Reason)
	}
}

// bounded are the most frequent reasons, and by state all others as one.
func bounded(reasons []ReasonCount) []ReasonCount {
	if len(reasons) <= reasonLabels {
		return reasons
	}
	rest := map[State]int{}
	for _, r := range reasons[reasonLabels:] {
		rest[r.State] += r.Pairs
	}
	out := slices.Clone(reasons[:reasonLabels])
	for state, n := range rest {
		out = append(out, ReasonCount{State: state, Reason: "other", Pairs: n})
	}
	return out
}

// natLabels are mapping, filtering and allocation. A node without a NAT has no
// mapping; one that UDP does not leave has a mapping "blocked".
func natLabels(n wire.NAT) [3]string {
	if n.Blocked != "" {
		return [3]string{"blocked", "unknown", "unknown"}
	}
	mapping, allocation := cmp.Or(string(n.Mapping), "unknown"), cmp.Or(string(n.Allocation), "unknown")
	if !n.Present && n.Mapping != "" {
		mapping, allocation = "none", "none"
	}
	return [3]string{mapping, cmp.Or(string(n.Filtering), "unknown"), allocation}
}
