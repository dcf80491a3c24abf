package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/bodkin-net/bodkin/e2e"
	"github.com/bodkin-net/bodkin/e2e/lab"
)

const (
	// fabedgeDPD is the dead peer detection delay of FabEdge's connections. The
	// retransmissions that follow are charon's default, 165 s in all.
	fabedgeDPD = 10 * time.Second
	// fabedgeSync is how often FabEdge's agent looks whether each tunnel is there,
	// and has it initiated where it is not.
	fabedgeSync = 30 * time.Second
	// anchorPatience is when nobody waits for mediation any longer.
	anchorPatience = 5 * time.Minute
	// anchorSettled is for how long pings must be answered to count as mended, and
	// anchorWatched how long they are watched at least: until dead peer detection
	// has had its turn.
	anchorSettled = 2 * time.Second
	anchorWatched = 3 * fabedgeDPD
)

// anchors measures mediation under every fault of a router, beside everything
// else and each in a lab of its own: its minutes are spent waiting.
type anchors struct {
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu    sync.Mutex
	costs map[string]e2e.Cost // by fault
	errs  []error
}

func measureAnchors(ctx context.Context, o faultOptions) *anchors {
	a := &anchors{costs: map[string]e2e.Cost{}}
	ctx, a.cancel = context.WithCancel(ctx)
	for _, f := range e2e.Faults() {
		if o.noAnchor || !strings.Contains(f.Name, o.only) || f.Router == nil {
			continue
		}
		a.running.Go(func() {
			cost, err := breakMediation(ctx, f)
			a.mu.Lock()
			defer a.mu.Unlock()
			if err != nil {
				a.errs = append(a.errs, fmt.Errorf("mediation: %s: %w", f.Name, err))
				return
			}
			slog.Info("mediation", "fault", f.Name, "interrupted", cost.Interrupted, "direct", cost.Direct, "lost", cost.Lost, "of", cost.Sent)
			a.costs[f.Name] = cost
		})
	}
	return a
}

// stop ends what still runs and waits for it.
func (a *anchors) stop() {
	a.cancel()
	a.running.Wait()
}

// fill waits for all and puts the figures beside ours.
func (a *anchors) fill(rows []*faultRow) error {
	a.running.Wait()
	a.cancel()
	for _, r := range rows {
		if cost, ok := a.costs[r.Fault]; ok {
			r.AnchorLostMs, r.AnchorDirectMs = limitMs(cost.Interrupted), limitMs(cost.Direct)
		}
	}
	return errors.Join(a.errs...)
}

// breakMediation does to a mediated pair what f does to one of ours, on the
// first of its victims.
func breakMediation(ctx context.Context, f e2e.Fault) (cost e2e.Cost, err error) {
	l, err := lab.New(ctx, lab.Options{})
	if err != nil {
		return cost, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	m, err := newMediation(ctx, l, mediationOptions{nats: f.NATs, link: edgeLine, dpd: fabedgeDPD})
	if m != nil {
		defer func() { err = errors.Join(err, m.Close()) }()
	}
	if err != nil {
		return cost, err
	}
	if _, err := timeToPing(ctx, m.left.host, m.left.pod, m.right.pod, m.initiate); err != nil {
		return cost, err
	}
	ends := [2]mediated{m.left, m.right}
	var streams []*e2e.Stream
	defer func() {
		for _, s := range streams {
			s.Stop()
		}
	}()
	for from := range ends {
		if f.FromOutside && from == f.Victims[0] {
			continue
		}
		s, err := e2e.StartStream(ctx, ends[from].host, ends[from].pod, ends[1-from].pod)
		if err != nil {
			return cost, err
		}
		streams = append(streams, s)
	}
	began := time.Now()
	if err := f.Router(ends[f.Victims[0]].router); err != nil {
		return cost, err
	}
	mended, err := m.keepInSync(ctx, streams, began)
	if err != nil {
		return cost, err
	}
	cost.Direct = max(0, mended.Sub(began))
	for _, s := range streams {
		cost.Add(s.Decided(began), false)
	}
	return cost, nil
}

// keepInSync does what FabEdge's agents do, until pings are answered again or
// patience ends, and returns when that was.
func (m *mediation) keepInSync(ctx context.Context, streams []*e2e.Stream, began time.Time) (mended time.Time, err error) {
	look, sync := time.NewTicker(anchorSettled/4), time.NewTicker(fabedgeSync)
	defer look.Stop()
	defer sync.Stop()
	for {
		select {
		case <-ctx.Done():
			return mended, ctx.Err()
		case <-sync.C:
			if err := m.sync(ctx); err != nil {
				return mended, err
			}
		case now := <-look.C:
			mended = began
			for _, s := range streams {
				if at := s.Decided(began).Mended(); at.After(mended) {
					mended = at
				}
			}
			if now.Sub(began) > anchorPatience || now.Sub(began) > anchorWatched && now.Sub(mended) > anchorSettled {
				return mended, nil
			}
		}
	}
}

// sync has the tunnel initiated if the initiator has none.
func (m *mediation) sync(ctx context.Context) error {
	out, err := m.left.host.Swanctl(ctx, "--list-sas", "--ike", mediatedConn)
	if err != nil {
		return err
	}
	if strings.Contains(out, mediatedConn+":") {
		return nil
	}
	return m.initiate(ctx)
}
