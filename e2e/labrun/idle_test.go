package main

import (
	"reflect"
	"testing"
	"time"
)

func TestParseCounters(t *testing.T) {
	// As nft 1.0.6 writes it.
	const listing = `{"nftables": [{"metainfo": {"version": "1.0.6", "json_schema_version": 1}},
		{"counter": {"family": "ip", "name": "peer0", "table": "idle", "handle": 1, "packets": 3, "bytes": 87}},
		{"counter": {"family": "ip", "name": "stun", "table": "idle", "handle": 2, "packets": 0, "bytes": 0}}]}`
	got, err := parseCounters([]byte(listing))
	want := map[string]uint64{"peer0": 87, "stun": 0}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	if _, err := parseCounters([]byte("Error: syntax error")); err == nil {
		t.Error("no error for what is no JSON")
	}
}

func TestPerHour(t *testing.T) {
	got := perHour(map[string]uint64{"peer0": 1000, "stun": 500}, map[string]uint64{"peer0": 4000, "stun": 500}, 4*time.Minute)
	if want := map[string]float64{"peer0": 45, "stun": 0}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestIdleFigures(t *testing.T) {
	cost := idleCost{memoryMB: 20, perHour: map[string]float64{
		"peer0": 30, "peer1": 40, "peer2": 50, "signalling": 10, "stun": 12, "connector": 30,
	}}
	var got []float64
	for _, f := range cost.figures() {
		got = append(got, f.Ours)
	}
	if want := []float64{20, 40, 52, 10, 12, 30}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestParseResident(t *testing.T) {
	got, err := parseResident("status", "Name:\tbodkin\nVmPeak:\t  90000 kB\nVmRSS:\t   20000 kB\nThreads:\t9\n")
	if err != nil || got != 20.5 {
		t.Errorf("got %g MB, %v, want 20.5", got, err)
	}
	if _, err := parseResident("status", "Name:\tbodkin\n"); err == nil {
		t.Error("no error for a status without VmRSS")
	}
}
