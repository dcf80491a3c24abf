package rendezvous

import (
	"errors"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/bodkin-net/bodkin/rendezvous/access"
)

func sampleSTUN() STUNStats {
	return STUNStats{Plain: 3, Authenticated: 120, Malformed: 2, Refused: 1, Unauthorised: 4, RateLimited: 9, Responses: 128, SendFailures: 5}
}

func TestCollector(t *testing.T) {
	const want = `
# HELP bodkin_node_idle_bytes_per_day What a node costs while nothing flows through its tunnels, in IP bytes a day.
# TYPE bodkin_node_idle_bytes_per_day gauge
bodkin_node_idle_bytes_per_day{node="beijing.edge2",part="peers"} 1.2e+06
bodkin_node_idle_bytes_per_day{node="beijing.edge2",part="signalling"} 812345
bodkin_node_idle_bytes_per_day{node="beijing.edge2",part="stun"} 9000
# HELP bodkin_node_idle_peer_bytes_per_day The mean of it for one of the node's peers.
# TYPE bodkin_node_idle_peer_bytes_per_day gauge
bodkin_node_idle_peer_bytes_per_day{node="beijing.edge2"} 600000
# HELP bodkin_node_keepalive_bytes_per_day What a node costs while nothing flows through its tunnels, all parts together, in IP bytes a day.
# TYPE bodkin_node_keepalive_bytes_per_day gauge
bodkin_node_keepalive_bytes_per_day{node="beijing.edge2"} 2.021345e+06
# HELP bodkin_node_nats Nodes by what the NATs before them do, RFC 4787.
# TYPE bodkin_node_nats gauge
bodkin_node_nats{allocation="none",filtering="address-and-port-dependent",mapping="none"} 1
bodkin_node_nats{allocation="random",filtering="address-and-port-dependent",mapping="address-and-port-dependent"} 1
bodkin_node_nats{allocation="unknown",filtering="address-and-port-dependent",mapping="endpoint-independent"} 1
bodkin_node_nats{allocation="unknown",filtering="unknown",mapping="unknown"} 1
# HELP bodkin_nodes Nodes that have joined at least once.
# TYPE bodkin_nodes gauge
bodkin_nodes{online="false"} 1
bodkin_nodes{online="true"} 3
# HELP bodkin_nodes_admission Nodes by what operators have said about them; of an existing CA only those they have said something about.
# TYPE bodkin_nodes_admission gauge
bodkin_nodes_admission{state="approved"} 3
bodkin_nodes_admission{state="pending"} 1
# HELP bodkin_pair_verdicts Pairs by what is expected of them, whatever has happened so far.
# TYPE bodkin_pair_verdicts gauge
bodkin_pair_verdicts{expect="direct",strategy="ice"} 1
bodkin_pair_verdicts{expect="direct",strategy="probe"} 1
bodkin_pair_verdicts{expect="direct",strategy="public"} 1
bodkin_pair_verdicts{expect="relay",strategy="ice"} 1
bodkin_pair_verdicts{expect="unknown",strategy="unknown"} 1
# HELP bodkin_pairs Pairs of nodes that shall have a tunnel.
# TYPE bodkin_pairs gauge
bodkin_pairs{state="direct"} 2
bodkin_pairs{state="down"} 2
bodkin_pairs{state="relayed"} 1
# HELP bodkin_pairs_by_reason Pairs that are not direct, by why: the most frequent reasons, without names and times, and all others as "other".
# TYPE bodkin_pairs_by_reason gauge
bodkin_pairs_by_reason{reason="NODE is offline",state="down"} 1
bodkin_pairs_by_reason{reason="NODE: consent lost",state="relayed"} 1
bodkin_pairs_by_reason{reason="both NATs are symmetric (address-and-port-dependent mapping): the port to aim at changes per destination",state="down"} 1
# HELP bodkin_pairs_punching Pairs that are not direct and being tried.
# TYPE bodkin_pairs_punching gauge
bodkin_pairs_punching 0
# HELP bodkin_sessions Agents that are connected now.
# TYPE bodkin_sessions gauge
bodkin_sessions 3
# HELP bodkin_store_ok 1 while the store takes writes, else 0.
# TYPE bodkin_store_ok gauge
bodkin_store_ok 1
# HELP bodkin_stun_requests_total STUN packets received, by what became of them.
# TYPE bodkin_stun_requests_total counter
bodkin_stun_requests_total{result="authenticated"} 120
bodkin_stun_requests_total{result="malformed"} 2
bodkin_stun_requests_total{result="plain"} 3
bodkin_stun_requests_total{result="rate_limited"} 9
bodkin_stun_requests_total{result="refused"} 1
bodkin_stun_requests_total{result="unauthorised"} 4
# HELP bodkin_stun_responses_total STUN responses sent, errors among them.
# TYPE bodkin_stun_responses_total counter
bodkin_stun_responses_total 128
# HELP bodkin_stun_send_failures_total STUN responses the system would not send.
# TYPE bodkin_stun_send_failures_total counter
bodkin_stun_send_failures_total 5
`
	if err := testutil.CollectAndCompare(newCollector(sampleSource(), sampleSTUN), strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}

func TestCollectorNamesStatesNobodyIsIn(t *testing.T) {
	src := sampleSource()
	src.snap.Pairs = nil
	src.notReady = errors.New("disk full")
	const want = `
# HELP bodkin_pair_verdicts Pairs by what is expected of them, whatever has happened so far.
# TYPE bodkin_pair_verdicts gauge
bodkin_pair_verdicts{expect="relay",strategy="ice"} 0
# HELP bodkin_pairs Pairs of nodes that shall have a tunnel.
# TYPE bodkin_pairs gauge
bodkin_pairs{state="direct"} 0
bodkin_pairs{state="down"} 0
bodkin_pairs{state="relayed"} 0
# HELP bodkin_store_ok 1 while the store takes writes, else 0.
# TYPE bodkin_store_ok gauge
bodkin_store_ok 0
`
	if err := testutil.CollectAndCompare(newCollector(src, sampleSTUN), strings.NewReader(want), "bodkin_pairs", "bodkin_pair_verdicts", "bodkin_store_ok"); err != nil {
		t.Error(err)
	}
}

func TestMetricsLint(t *testing.T) {
	m := newMetrics()
	m.registry.MustRegister(newCollector(sampleSource(), sampleSTUN))
	problems, err := testutil.GatherAndLint(m.registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// What needs the hub is missing when it has stopped, the rest is still told.
func TestMetricsWithoutSnapshot(t *testing.T) {
	src := sampleSource()
	src.failing = errStopped
	m := newMetrics()
	m.registry.MustRegister(newCollector(src, sampleSTUN))
	w := apiCall(t, as(access.Socket, src, m), "GET", "/metrics", nil)
	body := w.Body.String()
	if w.Code != 200 || !strings.Contains(body, "bodkin_stun_responses_total 128") || strings.Contains(body, "bodkin_nodes{") {
		t.Errorf("%d\n%s", w.Code, body)
	}
}
