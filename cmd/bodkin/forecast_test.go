package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/bodkin-net/bodkin/punch/nat"
	"github.com/bodkin-net/bodkin/rendezvous"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

func forecastPair(a, b wire.NodeName, v rendezvous.VerdictView, offline ...wire.NodeName) rendezvous.ForecastPair {
	return rendezvous.ForecastPair{Nodes: [2]wire.NodeName{a, b}, Verdict: v, Offline: offline}
}

func TestForecast(t *testing.T) {
	const both = "both NATs are symmetric with random ports"
	answer := rendezvous.Forecast{
		Pairs: []rendezvous.ForecastPair{
			forecastPair("beijing.edge1", "beijing.edge2", rendezvous.VerdictView{Expect: nat.Direct, Strategy: nat.Probe, Reason: "a search"}),
			forecastPair("beijing.edge2", "beijing.edge3", rendezvous.VerdictView{Expect: nat.Relay, Strategy: nat.ICE, Reason: both}, "beijing.edge3"),
			forecastPair("beijing.edge2", "beijing.edge9", rendezvous.VerdictView{Expect: "unknown", Reason: "never online"}),
		},
		Summary: rendezvous.ForecastSummary{Pairs: 3, Direct: 1, Relay: 1, Unknown: 1, Reasons: []rendezvous.ForecastReason{
			{Expect: nat.Relay, Reason: both, Pairs: 1}, {Expect: "unknown", Reason: "never online", Pairs: 1},
		}},
	}
	const table = `NODE           NODE           EXPECTED  STRATEGY  REASON
beijing.edge1  beijing.edge2  direct    probe     a search
beijing.edge2  beijing.edge3  relay     -         both NATs are symmetric with random ports (beijing.edge3 is offline: as last known)
beijing.edge2  beijing.edge9  unknown   -         never online

1 of 3 pairs cannot be judged: 1 × never online
1 of 3 pairs cannot be direct: 1 × both NATs are symmetric with random ports
`
	var asked string
	socket := daemon(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		asked = fmt.Sprintf("%s %s %s", r.Method, r.URL.RequestURI(), body)
		if strings.HasSuffix(r.URL.Path, "/west") {
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"error": "community west: not found"}`)
			return
		}
		if err := json.NewEncoder(w).Encode(answer); err != nil {
			t.Error(err)
		}
	})
	file := writeFile(t, "east.yaml", communityYAML)
	for _, tt := range []struct {
		name, asked, want string
		args              []string
		code              int // 0 for success
	}{
		{"a file", "POST /api/v1/forecast?file=" + strings.ReplaceAll(file, "/", "%2F") + " " + communityYAML, table, []string{"-f", file}, 0},
		{"standard input", "POST /api/v1/forecast?file=- from stdin", table, []string{"-f", "-"}, 0},
		{"in force", "GET /api/v1/forecast/a%2Fb ", table, []string{"a/b"}, 0},
		{"not in force", "GET /api/v1/forecast/west ", "community west: not found", []string{"west"}, exitFailed},
		{"neither", "", "forecast: want either -f FILE or the name of a community", nil, exitConfig},
		{"both", "", "forecast: want either -f FILE or the name of a community", []string{"-f", file, "east"}, exitConfig},
		{"no such file", "", "open /nonexistent.yaml: no such file or directory", []string{"-f", "/nonexistent.yaml"}, exitConfig},
	} {
		t.Run(tt.name, func(t *testing.T) {
			asked = ""
			out, err := run(t, "from stdin", append([]string{"forecast", "--socket", socket}, tt.args...)...)
			code := 0
			if err != nil {
				out, code = err.Error(), exitCode(err)
			}
			if out != tt.want || code != tt.code || asked != tt.asked {
				t.Errorf("exit code %d, asked %q, %q\nwant %d, %q, %q", code, asked, out, tt.code, tt.asked, tt.want)
			}
		})
	}

	out, err := run(t, "", "forecast", "--socket", socket, "-o", "json", "east")
	var got rendezvous.Forecast
	if err != nil || json.Unmarshal([]byte(out), &got) != nil || got.Summary.Relay != 1 || len(got.Pairs) != 3 {
		t.Errorf("%v: %s", err, out)
	}
}

func TestConclusion(t *testing.T) {
	all := rendezvous.ForecastSummary{Pairs: 45, Direct: 45}
	if got := conclusion(all); got != "45 of 45 pairs are expected to be direct" {
		t.Errorf("%q", got)
	}
	some := rendezvous.ForecastSummary{Pairs: 45, Direct: 42, Relay: 3, Reasons: []rendezvous.ForecastReason{
		{Expect: nat.Relay, Reason: "both random", Pairs: 2}, {Expect: nat.Relay, Reason: "UDP blocked", Pairs: 1},
	}}
	if got := conclusion(some); got != "3 of 45 pairs cannot be direct: 2 × both random; 1 × UDP blocked" {
		t.Errorf("%q", got)
	}
}
