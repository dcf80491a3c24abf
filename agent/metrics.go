package agent

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// counts are what the daemon has counted since it started. They belong to its
// goroutine.
type counts struct {
	// punches is by strategy and outcome; last is the attempt that was counted last
	// of each peer, which may be told as direct more than once.
	punches map[punchKind]uint64
	last    map[wire.NodeName]wire.AttemptID
}

type punchKind struct {
	strategy wire.Strategy
	outcome  wire.Outcome
}

// told counts a report on an attempt of that strategy, if it ended with it.
func (c *counts) told(r *wire.Report, s wire.Strategy) {
	if r.Attempt == "" || r.Outcome != wire.OutcomeDirect && r.Outcome != wire.OutcomeFailed || c.last[r.Peer] == r.Attempt {
		return
	}
	if c.last == nil {
		c.last, c.punches = map[wire.NodeName]wire.AttemptID{}, map[punchKind]uint64{}
	}
	c.last[r.Peer] = r.Attempt
	c.punches[punchKind{strategyOf(s), r.Outcome}]++
}

// metrics is the state of the daemon in numbers, made on its goroutine.
func (d *Daemon) metrics() []metric {
	s := d.status()
	states := map[string]float64{stateDirect: 0, stateRelayed: 0, stateDown: 0}
	for _, t := range s.Tunnels {
		states[t.State]++
	}
	tunnels := gaugeOf("bodkin_agent_tunnels", "Tunnels by state.")
	for _, state := range slices.Sorted(maps.Keys(states)) {
		tunnels.add(states[state], "state", state)
	}
	punches := counterOf("bodkin_agent_punch_total", "Attempts that ended, by strategy and outcome.")
	kinds := slices.SortedFunc(maps.Keys(d.counts.punches), func(a, b punchKind) int {
		return cmp.Or(cmp.Compare(a.strategy, b.strategy), cmp.Compare(a.outcome, b.outcome))
	})
	for _, k := range kinds {
		punches.add(float64(d.counts.punches[k]), "strategy", string(k.strategy), "outcome", string(k.outcome))
	}
	vici := counterOf("bodkin_agent_vici_errors_total", "Commands that charon refused or did not answer, by command.")
	failed := d.vici.Errors()
	for _, command := range slices.Sorted(maps.Keys(failed)) {
		vici.add(float64(failed[command]), "command", command)
	}
	return []metric{
		tunnels,
		gaugeOf("bodkin_agent_connected", "1 while there is a session with the rendezvous.").with(one(s.Rendezvous.Connected)),
		gaugeOf("bodkin_agent_charon_connected", "1 while charon can be reached over VICI.").with(one(s.Charon.Connected)),
		vici,
		counterOf("bodkin_agent_keepalive_bytes_total", "IP bytes, both ways, that keep idle tunnels and the session alive; charon's share is reckoned.").
			with(d.usage.total() + float64(d.signalling.bytes())),
		punches,
		gaugeOf("bodkin_agent_certificate_expiry_timestamp_seconds", "When this node's certificate ends, in Unix time.").
			with(float64(s.Certificate.NotAfter.Unix())),
	}
}

// total is what checks, keepalives and dead peer detection have cost so far, in IP
// bytes.
func (u *usage) total() (sum float64) {
	for _, m := range u.meters {
		_, all := m.total()
		sum += all
	}
	return sum
}

func one(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// metric is one in the text format of Prometheus, which is all that is needed of
// its library here.
type metric struct {
	name, kind, help string
	samples          []string
}

func gaugeOf(name, help string) metric { return metric{name: name, kind: "gauge", help: help} }

func counterOf(name, help string) metric { return metric{name: name, kind: "counter", help: help} }

func (m metric) with(value float64) metric {
	m.add(value)
	return m
}

// add appends a sample. labels are names and values by turns.
func (m *metric) add(value float64, labels ...string) {
	var pairs []string
	for i := 0; i+1 < len(labels); i += 2 {
		pairs = append(pairs, labels[i]+`="`+labelEscapes.Replace(labels[i+1])+`"`)
	}
	set := ""
	if len(pairs) > 0 {
		set = "{" + strings.Join(pairs, ",") + "}"
	}
	m.samples = append(m.samples, m.name+set+" "+strconv.FormatFloat(value, 'g', -1, 64))
}

var labelEscapes = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

func (d *Daemon) serveMetrics(w http.ResponseWriter, r *http.Request) {
	var list []metric
	if err := d.inDaemon(r.Context(), func() { list = d.metrics() }); err != nil {
		d.reply(w, nil, err)
		return
	}
	var b bytes.Buffer
	for _, m := range list {
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", m.name, m.help, m.name, m.kind)
		for _, s := range m.samples {
			b.WriteString(s + "\n")
		}
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_, _ = b.WriteTo(w) // a scraper that is gone needs no answer
}

// listenMetrics opens the listener of the configuration, nil for none.
func listenMetrics(addr string) (net.Listener, error) {
	if addr == "" {
		return nil, nil
	}
	return net.Listen("tcp", addr)
}

// serveMetricsTCP serves what needs no permission: metrics, and nothing else.
func (d *Daemon) serveMetricsTCP(ctx context.Context) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", d.serveMetrics)
	d.serve(ctx, d.metricsListener, mux)
}
