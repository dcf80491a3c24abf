package rendezvous

import (
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

func TestPace(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	var p pace
	for i := range wire.MaxPeers {
		if wait := p.take(now, costOf(&wire.Report{})); wait != 0 {
			t.Fatalf("report %d at once waits %v", i, wait)
		}
	}
	p = pace{}
	atOnce := int(paceDepth / networkCost)
	for i := range atOnce {
		if wait := p.take(now, costOf(&wire.Network{})); wait != 0 {
			t.Fatalf("message %d at once waits %v", i, wait)
		}
	}
	// From here on an agent that does as it is told gets one per networkCost.
	for i := range 10 {
		wait := p.take(now, costOf(&wire.Network{}))
		if wait != networkCost {
			t.Fatalf("message %d beyond waits %v, want %v", i, wait, networkCost)
		}
		now = now.Add(wait)
	}
	now = now.Add(paceDepth)
	for i := range atOnce {
		if wait := p.take(now, costOf(&wire.Network{})); wait != 0 {
			t.Fatalf("message %d after a rest waits %v", i, wait)
		}
	}
}
