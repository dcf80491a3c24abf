package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

func TestMedianAndP95(t *testing.T) {
	upTo := func(n int) (v []float64) {
		for i := n; i > 0; i-- {
			v = append(v, float64(i))
		}
		return v
	}
	for _, test := range []struct {
		values      []float64
		median, p95 float64
	}{
		{[]float64{7}, 7, 7},
		{[]float64{3, 1}, 2, 3},
		{[]float64{1.1, 1.2}, 1.2, 1.2}, // 1.15, to a tenth
		{upTo(10), 5.5, 10},
		{upTo(20), 10.5, 19},
		{upTo(100), 50.5, 95},
	} {
		if got := median(test.values); got != test.median {
			t.Errorf("median of %v: got %g, want %g", test.values, got, test.median)
		}
		if got := p95(test.values); got != test.p95 {
			t.Errorf("p95 of %v: got %g, want %g", test.values, got, test.p95)
		}
	}
}

func TestFigureVerdict(t *testing.T) {
	for _, test := range []struct {
		figure figure
		want   string
	}{
		{figure{Ours: 5}, ""},
		{figure{Ours: 5, target: 5}, "met (at most 5)"},
		{figure{Ours: 5.1, target: 5}, "MISSED (at most 5)"},
	} {
		if got := test.figure.verdict(); got != test.want {
			t.Errorf("%+v: got %q, want %q", test.figure, got, test.want)
		}
	}
}

func TestTimesFigures(t *testing.T) {
	runs := times{ours: []float64{50, 60}, cold: []float64{70}, mediation: []float64{1000, 1200}}
	for _, test := range []struct {
		delay  time.Duration
		target float64
	}{{0, 275}, {25 * time.Millisecond, 0}, {75 * time.Millisecond, 900}} {
		got := runs.figures(test.delay)
		if got[0].target != test.target || got[0].Ours != 55 || *got[0].Anchor != 1100 || *got[0].Ratio != 0.05 {
			t.Errorf("delay %s: got median %+v, want ours 55, anchor 1100, ratio 0.05, target %g", test.delay, got[0], test.target)
		}
		for _, f := range got[2:] {
			if f.Anchor != nil || f.Ratio != nil {
				t.Errorf("delay %s: %s has an anchor, want none", test.delay, f.What)
			}
		}
	}
}

func TestWriteJSON(t *testing.T) {
	path := filepath.Join(t.TempDir(), "build", "bench.json")
	figures := []figure{against("time", "ms", 50, 1000, 250), {What: "memory", Unit: "MB", Ours: 20, target: 25}}
	if err := writeJSON(path, figures); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got any
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	want := []any{
		map[string]any{"what": "time", "unit": "ms", "ours": 50.0, "anchor": 1000.0, "ratio": 0.05},
		map[string]any{"what": "memory", "unit": "MB", "ours": 20.0, "anchor": nil, "ratio": nil},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
