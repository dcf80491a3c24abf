package rendezvous

import (
	"math"
	"slices"
	"sync"
	"time"

	"github.com/bodkin-net/bodkin/store"
)

// timeToDirectMs are the upper bounds of the buckets that times to direct are
// counted in, in milliseconds: as fine as people feel, up to an attempt's end.
var timeToDirectMs = []int{100, 200, 300, 500, 750, 1000, 1500, 2000, 3000, 5000, 10_000}

// hours is what came of the attempts of the last day, by the hour in which they
// ended. The hub writes, readers are on goroutines of their own.
type hours struct {
	mu      sync.Mutex
	byStart map[time.Time]store.Hour // UTC, on the hour
}

func newHours(stored []store.Hour) *hours {
	h := &hours{byStart: map[time.Time]store.Hour{}}
	for _, hour := range stored {
		if len(hour.TimeToDirect) > len(timeToDirectMs)+1 {
			hour.TimeToDirect = nil // of other buckets
		}
		h.byStart[hour.Start.UTC()] = hour
	}
	return h
}

// count takes in an attempt that ended now, direct or failed, and returns its hour.
func (h *hours) count(now time.Time, outcome AttemptOutcome, took time.Duration) store.Hour {
	h.mu.Lock()
	defer h.mu.Unlock()
	start := now.UTC().Truncate(time.Hour)
	hour := h.byStart[start]
	hour.Start = start
	if outcome == AttemptDirect {
		hour.Direct++
		counts := make([]int, len(timeToDirectMs)+1)
		copy(counts, hour.TimeToDirect)
		counts[bucketOf(took)]++
		hour.TimeToDirect = counts
	} else {
		hour.Failed++
	}
	h.byStart[start] = hour
	for at := range h.byStart {
		if now.Sub(at) > 2*overviewHours*time.Hour {
			delete(h.byStart, at)
		}
	}
	return hour
}

func bucketOf(took time.Duration) int {
	i, _ := slices.BinarySearch(timeToDirectMs, int(min(took.Milliseconds(), math.MaxInt32)))
	return i
}

func newDistribution() Distribution {
	return Distribution{LeMs: timeToDirectMs, Counts: make([]int, len(timeToDirectMs)+1)}
}

func (d *Distribution) add(counts []int) {
	for i, n := range counts {
		d.Counts[i] += n
	}
}

// summarise finds the median and the 95th percentile. What took longer than the
// last bound is said to have taken that.
func (d *Distribution) summarise() {
	total := 0
	for _, n := range d.Counts {
		total += n
	}
	quantile := func(q float64) int {
		need, seen := int(math.Ceil(q*float64(total))), 0
		for i, n := range d.Counts {
			if seen += n; seen >= need && n > 0 {
				return d.LeMs[min(i, len(d.LeMs)-1)]
			}
		}
		return 0
	}
	d.MedianMs, d.P95Ms = quantile(0.5), quantile(0.95)
}
