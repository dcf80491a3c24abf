package rendezvous

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the rendezvous' own; gauges of the moment are computed at scrape
// time by the collector of the snapshot.
type metrics struct {
	registry       *prometheus.Registry
	sessions       prometheus.Counter
	orders         *prometheus.CounterVec
	attempts       *prometheus.CounterVec
	refused        *prometheus.CounterVec
	outcomes       *prometheus.CounterVec
	demotes        prometheus.Counter
	refusedReports prometheus.Counter
	// refusedSessions are those of nodes whose certificate is good.
	refusedSessions prometheus.Counter
	addressChanges  prometheus.Counter
	timeToDirect    prometheus.Histogram
	loginFailures   prometheus.Counter
	requests        *prometheus.CounterVec
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		sessions: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bodkin_sessions_total", Help: "Agent sessions accepted."}),
		orders: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bodkin_punch_orders_total", Help: "Punch attempts ordered, one per pair and try."}, []string{"strategy"}),
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bodkin_punch_attempts_total", Help: "Punch attempts that ended, by how."}, []string{"strategy", "outcome"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bodkin_candidates_refused_total", Help: "Candidates that agents named and that are passed on to nobody."}, []string{"cause"}),
		outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bodkin_reports_total", Help: "Reports of agents by outcome."}, []string{"outcome"}),
		demotes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bodkin_demotes_total", Help: "Times an end of a direct tunnel was told to leave it for the relay."}),
		refusedReports: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bodkin_reports_refused_total", Help: "Reports about pairs or attempts that were not their sender's."}),
		refusedSessions: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bodkin_sessions_refused_total", Help: "Sessions of good certificates that were refused: the node waits for approval, was revoked, or claims what is another's."}),
		addressChanges: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bodkin_observed_address_changes_total", Help: "Times a node was observed at another address than before."}),
		timeToDirect: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "bodkin_time_to_direct_seconds",
			Help:    "Time from the punch order to bytes through the tunnel at both ends, as the slower end says.",
			Buckets: inSeconds(timeToDirectMs),
		}),
		loginFailures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "bodkin_login_failures_total", Help: "Credentials presented that are not known."}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bodkin_api_requests_total", Help: "Requests to the API and the page."}, []string{"method", "route", "code"}),
	}
	m.registry.MustRegister(m.sessions, m.orders, m.attempts, m.refused, m.outcomes, m.demotes, m.refusedReports, m.refusedSessions,
		m.addressChanges, m.timeToDirect, m.loginFailures, m.requests)
	return m
}

func inSeconds(ms []int) (s []float64) {
	for _, n := range ms {
		s = append(s, float64(n)/1000)
	}
	return s
}

// newExpiry is a gauge of the certificate in use.
func newExpiry(c *certificates) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "bodkin_certificate_expiry_timestamp_seconds", Help: "When the certificate ends that agents are shown, in Unix time."},
		func() float64 { return float64(c.current.Load().leaf.NotAfter.Unix()) })
}
