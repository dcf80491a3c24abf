package agent

import (
	"context"
	"slices"
	"time"
)

const (
	// unloadedPoll is between looks whether charon still has our connections. It
	// tells nobody when one is taken out; a look is one short message.
	unloadedPoll = 15 * time.Second
	// unloadedTimeout bounds a look; charon answers in milliseconds.
	unloadedTimeout = 2 * time.Second
)

// findUnloaded finds our connections that somebody else has taken out of charon,
// as `swanctl --load-conns` does with all that swanctl.conf lacks, and has them
// loaded again. Their SAs stand, but a peer that begins anew would be refused.
func (d *Daemon) findUnloaded(ctx context.Context, now time.Time) {
	if !d.charonUp || now.Before(d.unloadedAt) {
		return
	}
	d.unloadedAt = now.Add(unloadedPoll)
	ctx, cancel := context.WithTimeout(ctx, unloadedTimeout)
	defer cancel()
	loaded, err := d.vici.ConnectionNames(ctx)
	if err != nil {
		d.log.Debug("charon's connections not listed", "err", err)
		return
	}
	lost := missingFrom(loaded, d.owned.names())
	if len(lost) == 0 {
		return
	}
	d.log.Warn("connections taken out of charon, as swanctl --load-conns does: loading them again", "connections", lost)
	d.renewal.outdated(lost)
}

// missingFrom are the names that are not loaded.
func missingFrom(loaded, names []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return slices.Contains(loaded, n) })
}
