package rendezvous

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// metrics are the rendezvous' own; gauges of the moment are computed at scrape
// time by the collector of the snapshot.
type metrics struct {
	registry       *prometheus.Registry
	sessions       prometheus.Counter
	attempts       *prometheus.CounterVec
	refused        *prometheus.CounterVec
	outcomes       *prometheus.CounterVec
	demotes        prometheus.Counter
	refusedReports prometheus.Counter
	// refusedSessions are those of nodes that claim what is another's.
	refusedSessions prometheus.Counter
	addressChanges  prometheus.Counter
	timeToDirect    prometheus.Histogram
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		sessions: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bodkin_sessions_total", Help: "Agent sessions accepted."}),
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bodkin_punch_attempts_total", Help: "Punch attempts ordered, one per pair and try."}, []string{"strategy"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bodkin_candidates_refused_total", Help: "Candidates that agents named and that are passed on to nobody."}, []string{"cause"}),
		outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bodkin_reports_total", Help: "Reports of agents by outcome."}, []string{"outcome"}),
		demotes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bodkin_demotes_total", Help: "Times an end of a direct tunnel was told to leave it for the relay."}),
		refusedReports: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bodkin_reports_refused_total", Help: "Reports about pairs or attempts that were not their sender's."}),
		refusedSessions: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bodkin_sessions_refused_total", Help: "Sessions refused because the node claims subnets of another."}),
		addressChanges: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bodkin_observed_address_changes_total", Help: "Times a node was observed at another address than before."}),
		timeToDirect: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "bodkin_time_to_direct_seconds",
			Help:    "Time from an agent's punch order to bytes through the tunnel.",
			Buckets: []float64{.1, .2, .3, .5, .75, 1, 1.5, 2, 3, 5, 10},
		}),
	}
	m.registry.MustRegister(m.sessions, m.attempts, m.refused, m.outcomes, m.demotes, m.refusedReports, m.refusedSessions,
		m.addressChanges, m.timeToDirect)
	return m
}

// newExpiry is a gauge of the certificate in use.
func newExpiry(c *certificates) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "bodkin_certificate_expiry_timestamp_seconds", Help: "When the certificate ends that agents are shown, in Unix time."},
		func() float64 { return float64(c.current.Load().leaf.NotAfter.Unix()) })
}

func (m *metrics) report(r *wire.Report) {
	m.outcomes.WithLabelValues(string(r.Outcome)).Inc()
	if r.Outcome == wire.OutcomeDirect && r.Attempt != "" {
		m.timeToDirect.Observe(float64(r.ElapsedMs) / 1000)
	}
}
