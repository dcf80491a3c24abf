package store

import (
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"
)

func seen(addr, means string, at, last time.Duration) Observation {
	return Observation{Addr: netip.MustParseAddrPort(addr), Means: means, At: noon.Add(at), Last: noon.Add(last)}
}

func TestRecord(t *testing.T) {
	const a, b, six = "10.22.45.30:4500", "10.22.45.30:45001", "[2001:db8::1]:4500"
	const primary, alternate = "stun:3478", "stun:3479"
	tests := []struct {
		name    string
		history []Observation
		o       Observation
		want    []Observation
		verdict verdict
	}{
		{
			name:    "first",
			o:       Observation{Addr: netip.MustParseAddrPort(a), Means: primary, At: noon},
			want:    []Observation{seen(a, primary, 0, 0)},
			verdict: added,
		},
		{
			name:    "same address within the grain",
			history: []Observation{seen(a, primary, 0, 0)},
			o:       seen(a, primary, 59*time.Second, 0),
			want:    []Observation{seen(a, primary, 0, 0)},
			verdict: unchanged,
		},
		{
			name:    "same address after the grain",
			history: []Observation{seen(a, primary, 0, 0)},
			o:       seen(a, primary, time.Minute, 0),
			want:    []Observation{seen(a, primary, 0, time.Minute)},
			verdict: moved,
		},
		{
			name:    "same address, reported late",
			history: []Observation{seen(a, primary, 0, time.Hour)},
			o:       seen(a, primary, time.Minute, 0),
			want:    []Observation{seen(a, primary, 0, time.Hour)},
			verdict: unchanged,
		},
		{
			name:    "new address",
			history: []Observation{seen(a, primary, 0, 0)},
			o:       seen(b, primary, time.Second, 0),
			want:    []Observation{seen(b, primary, time.Second, time.Second), seen(a, primary, 0, 0)},
			verdict: added,
		},
		{
			name:    "back at an older address",
			history: []Observation{seen(b, primary, time.Hour, time.Hour), seen(a, primary, 0, 0)},
			o:       seen(a, primary, 2*time.Hour, 0),
			want: []Observation{
				seen(a, primary, 2*time.Hour, 2*time.Hour), seen(b, primary, time.Hour, time.Hour), seen(a, primary, 0, 0),
			},
			verdict: added,
		},
		{
			name:    "symmetric NAT seen by turns on two ports",
			history: []Observation{seen(b, alternate, time.Second, time.Second), seen(a, primary, 0, 0)},
			o:       seen(a, primary, 2*time.Minute, 0),
			want:    []Observation{seen(b, alternate, time.Second, time.Second), seen(a, primary, 0, 2*time.Minute)},
			verdict: moved,
		},
		{
			name:    "both address families by turns on one port",
			history: []Observation{seen(six, primary, time.Second, time.Second), seen(a, primary, 0, 0)},
			o:       seen(a, primary, 2*time.Minute, 0),
			want:    []Observation{seen(six, primary, time.Second, time.Second), seen(a, primary, 0, 2*time.Minute)},
			verdict: moved,
		},
		{
			name: "full history drops the oldest",
			history: []Observation{
				seen(b, primary, 2*time.Hour, 2*time.Hour), seen(a, primary, time.Hour, time.Hour), seen(b, primary, 0, 0),
			},
			o: seen(a, primary, 3*time.Hour, 0),
			want: []Observation{
				seen(a, primary, 3*time.Hour, 3*time.Hour), seen(b, primary, 2*time.Hour, 2*time.Hour), seen(a, primary, time.Hour, time.Hour),
			},
			verdict: added,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, verdict := record(slices.Clone(tt.history), tt.o, 3)
			if verdict != tt.verdict || !reflect.DeepEqual(got, tt.want) {
				t.Errorf("verdict %d, want %d\n got %+v\nwant %+v", verdict, tt.verdict, got, tt.want)
			}
		})
	}
}

func TestObserveReportsChange(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "rendezvous.db"), Options{})
	steps := []struct {
		addr    string
		at      time.Duration
		changed bool
	}{
		{"10.22.45.30:4500", 0, true},
		{"10.22.45.30:4500", time.Second, false},
		{"10.22.45.30:4500", time.Hour, false},
		{"10.22.45.30:4501", 2 * time.Hour, true},
	}
	for _, step := range steps {
		changed, err := s.Observe("beijing.edge1", seen(step.addr, "stun:3478", step.at, 0))
		if err != nil || changed != step.changed {
			t.Errorf("%s at %s: changed %t, %v, want %t", step.addr, step.at, changed, err, step.changed)
		}
	}
	wantList(t, "history", func() ([]Observation, error) { return s.Observations("beijing.edge1") }, []Observation{
		seen("10.22.45.30:4501", "stun:3478", 2*time.Hour, 2*time.Hour),
		seen("10.22.45.30:4500", "stun:3478", 0, time.Hour),
	})
	wantList(t, "history of a stranger", func() ([]Observation, error) { return s.Observations("beijing.edge2") }, nil)
}

func TestObserveWithinGrainLeavesDiskAlone(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "rendezvous.db"), Options{})
	observe := func(at time.Duration) {
		t.Helper()
		if _, err := s.Observe("beijing.edge1", seen("10.22.45.30:4500", "stun:3478", at, 0)); err != nil {
			t.Fatal(err)
		}
	}
	observe(0)
	stats := s.db.Stats()
	before := stats.TxStats.GetWrite()
	observe(30 * time.Second)
	stats = s.db.Stats()
	if after := stats.TxStats.GetWrite(); after != before {
		t.Errorf("%d page writes for an address that was just seen", after-before)
	}
	observe(90 * time.Second)
	stats = s.db.Stats()
	if after := stats.TxStats.GetWrite(); after == before {
		t.Error("no page write for an entry that moved: the count shows nothing")
	}
}

func TestHistoryIsBounded(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "rendezvous.db"), Options{History: 4})
	for i := range 10 {
		addr := netip.AddrPortFrom(netip.MustParseAddr("10.22.45.30"), uint16(4500+i))
		if _, err := s.Observe("beijing.edge1", Observation{Addr: addr, At: noon}); err != nil {
			t.Fatal(err)
		}
	}
	history, err := s.Observations("beijing.edge1")
	if err != nil {
		t.Fatal(err)
	}
	if len(history) != 4 || history[0].Addr.Port() != 4509 || history[3].Addr.Port() != 4506 {
		t.Errorf("kept %+v, want ports 4509 to 4506", history)
	}
}

func TestObserveRefusesNoAddress(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "rendezvous.db"), Options{})
	if _, err := s.Observe("beijing.edge1", Observation{At: noon}); err == nil {
		t.Error("recorded an observation without an address")
	}
}
