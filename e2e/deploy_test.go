package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// leastConfined is the exposure, of 10.0, that systemd-analyze may find in a unit.
// What is left of the agent's is that it is root in the host's network, without
// which it is no use.
var leastConfined = map[string]string{agentUnit: "2.4", rendezvousUnit: "1.7"}

func TestUnitsAreConfined(t *testing.T) {
	for unit, most := range leastConfined {
		threshold := strings.ReplaceAll(most, ".", "") // in tenths
		out, err := exec.CommandContext(t.Context(), "systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold="+threshold,
			filepath.Join("..", "deploy", "systemd", unit)).CombinedOutput()
		if err != nil {
			t.Errorf("%s is more exposed than %s: %v\n%s", unit, most, err, out)
		}
	}
}

// The alert rules, against series that fire each of them and series that fire
// none.
func TestAlerts(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "promtool", "test", "rules", "alerts_test.yaml")
	cmd.Dir = "../deploy/prometheus"
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// metric is a name as it stands in an expression; a histogram's has endings.
var metric = regexp.MustCompile(`\bbodkin_[a-z_]+`)

func metricsIn(t *testing.T, text string) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	for _, name := range metric.FindAllString(text, -1) {
		names[strings.TrimSuffix(name, "_bucket")] = true
	}
	if len(names) == 0 {
		t.Fatal("no metrics found")
	}
	return names
}

// Each metric of the dashboard and of the alerts is one that a daemon has, by
// that name.
func TestMetricsExist(t *testing.T) {
	var source strings.Builder
	for _, dir := range []string{"../rendezvous", "../agent"} {
		files, err := filepath.Glob(dir + "/*.go")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if !strings.HasSuffix(f, "_test.go") {
				b, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				source.Write(b)
			}
		}
	}
	for _, file := range []string{"grafana/bodkin.json", "prometheus/alerts.yaml"} {
		text, err := os.ReadFile(filepath.Join("../deploy", file))
		if err != nil {
			t.Fatal(err)
		}
		for name := range metricsIn(t, string(text)) {
			if !strings.Contains(source.String(), `"`+name+`"`) {
				t.Errorf("%s: %s: no daemon has a metric of that name", file, name)
			}
		}
	}
}

// The dashboard's panels are where they do not cover each other, and each asks
// something.
func TestDashboard(t *testing.T) {
	text, err := os.ReadFile("../deploy/grafana/bodkin.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			ID          int
			Title, Type string
			GridPos     struct{ X, Y, W, H int }
			Targets     []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	taken, ids := map[[2]int]string{}, map[int]bool{}
	for _, p := range dashboard.Panels {
		if ids[p.ID] {
			t.Errorf("%s: id %d twice", p.Title, p.ID)
		}
		ids[p.ID] = true
		if p.Type != "row" && (len(p.Targets) == 0 || p.Targets[0].Expr == "") {
			t.Errorf("%s asks nothing", p.Title)
		}
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" {
					t.Fatalf("%s covers %s", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
	}
}

// What Git says of a tree is a version that Debian takes, and that comes after
// those of earlier trees.
func TestDebianVersion(t *testing.T) {
	var before string
	for _, tt := range []struct{ describe, epoch, want string }{
		{"4b35894", "1795436111", "0~20261123121511.4b35894"},
		{"5c46905-dirty", "1795436112", "0~20261123121512.5c46905+dirty"},
		{"v1.2.3-rc1", "0", "1.2.3~rc1"},
		{"v1.2.3-rc1-4-gabcdef0", "0", "1.2.3~rc1+4.gabcdef0"},
		{"v1.2.3", "0", "1.2.3"},
		{"v1.2.3-dirty", "0", "1.2.3+dirty"},
		{"v1.2.4", "0", "1.2.4"},
		{"v1.2.4-12-gabcdef0-dirty", "0", "1.2.4+12.gabcdef0+dirty"},
	} {
		out, err := exec.CommandContext(t.Context(), "../deploy/debian/version", tt.describe, tt.epoch).Output()
		got := strings.TrimSpace(string(out))
		if err != nil || got != tt.want {
			t.Errorf("%s: %q, %v; want %s", tt.describe, got, err, tt.want)
		}
		if before != "" {
			if err := exec.CommandContext(t.Context(), "dpkg", "--compare-versions", before, "lt", got).Run(); err != nil {
				t.Errorf("%s does not come before %s: %v", before, got, err)
			}
		}
		before = got
	}
}
