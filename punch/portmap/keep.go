package portmap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"
)

// Keep keeps a mapping of the inside port on the default gateway until ctx
// ends, then gives it back and returns, a second later at most. found is called
// with each mapping that is new, and with the zero Mapping when there is none
// any more; never from another goroutine than Keep's.
//
// No error ends it: a router may come to map ports, and another router may
// come. What stands in the way is logged.
func Keep(ctx context.Context, o Options, found func(Mapping)) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	k := &keeper{Options: o, found: found, protocols: protocols, router: func() (router, error) { return findRouter(o) }}
	k.run(ctx)
}

// keeper belongs to the goroutine of Keep.
type keeper struct {
	Options
	found     func(Mapping)
	protocols []protocol
	router    func() (router, error)
	told      Mapping // found was called with it last
	// held is what to release at the end, nil for nothing.
	held mapper
	// wanted is the outside address to ask for: the one there was.
	wanted netip.AddrPort
	// why there is no mapping, as it was logged last.
	why string
}

func (k *keeper) run(ctx context.Context) {
	retry := retryMin
	for ctx.Err() == nil {
		r, mapping, err := k.acquire(ctx)
		if err == nil {
			retry = retryMin
			k.tell(mapping)
			err = k.hold(ctx, r, mapping)
			k.Log.Debug("port mapping to be made anew", "err", err)
			continue
		}
		if ctx.Err() == nil {
			k.none(err)
			k.rest(ctx, retry)
			retry = min(2*retry, retryMax)
		}
	}
	if k.held != nil {
		k.release(ctx, k.held)
	}
}

// acquire makes a mapping by the first protocol that does.
func (k *keeper) acquire(ctx context.Context) (router, Mapping, error) {
	r, err := k.router()
	if err != nil {
		return r, Mapping{}, err
	}
	s := site{router: r, inside: k.Inside.Port(), nonce: newNonce(k.Secret, r.addr)}
	search := startSearch(ctx, s, k.protocols)
	defer search.stop()
	suggested := k.wanted
	if suggested.Port() == 0 {
		suggested = netip.AddrPortFrom(netip.IPv4Unspecified(), s.inside)
	}
	var why error
	for i, p := range k.protocols {
		m, err := search.result(i)
		if err != nil {
			why = errors.Join(why, fmt.Errorf("%s: %w", p.name, err))
			continue
		}
		mapping, err := request(ctx, m, suggested)
		if err == nil || ctx.Err() != nil { // the latter may have made one, too
			k.held = m
			return r, mapping, err
		}
		k.release(ctx, m)
		why = errors.Join(why, fmt.Errorf("%s: %w", p.name, err))
	}
	return r, Mapping{}, why
}

func request(ctx context.Context, m mapper, suggested netip.AddrPort) (Mapping, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return m.request(ctx, suggested)
}

// hold looks after a mapping until ctx ends or it has to be made anew.
func (k *keeper) hold(ctx context.Context, r router, mapping Mapping) error {
	granted := time.Now()
	silent := 0
	for {
		looked, ok := k.wait(ctx, untilNext(time.Since(granted), mapping.Lifetime, silent))
		if !ok {
			return ctx.Err()
		}
		if now, err := k.router(); err != nil || now != r {
			return fmt.Errorf("%w: the default gateway is another", errLost)
		}
		var err error
		if looked || renewalDue(time.Since(granted), mapping.Lifetime) {
			var renewed Mapping
			if renewed, err = request(ctx, k.held, mapping.Outside); err == nil {
				granted, mapping = time.Now(), renewed
				k.tell(mapping)
			}
		} else {
			err = k.held.check(ctx)
		}
		if silent = countSilence(silent, err); err != nil && (silent == 0 || silent >= silences) {
			return err
		}
	}
}

// untilNext is how long to wait for the next look at a mapping that is age old.
func untilNext(age, lifetime time.Duration, silent int) time.Duration {
	if silent > 0 {
		return recheckInterval
	}
	if lifetime == 0 {
		return checkInterval
	}
	return min(checkInterval, max(lifetime/2, shortestRenewal)-age)
}

// renewalDue: at half the lifetime. What never ends needs no renewal.
func renewalDue(age, lifetime time.Duration) bool {
	return lifetime > 0 && age >= max(lifetime/2, shortestRenewal)
}

// countSilence counts the silences in a row. Any answer, a refusal too, ends
// the row.
func countSilence(before int, err error) int {
	if errors.Is(err, ErrSilent) {
		return before + 1
	}
	return 0
}

// wait waits for d or a request to look; ok is false when ctx ended.
func (k *keeper) wait(ctx context.Context, d time.Duration) (looked, ok bool) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return false, true
	case <-k.Look:
		return true, true
	case <-ctx.Done():
		return false, false
	}
}

// rest waits before the next search. A request to look cuts it short, though
// not below the shortest rest: requests come with every path that fails.
func (k *keeper) rest(ctx context.Context, d time.Duration) {
	started := time.Now()
	if looked, _ := k.wait(ctx, d); looked {
		select {
		case <-time.After(retryMin - time.Since(started)):
		case <-ctx.Done():
		}
	}
}

func (k *keeper) tell(m Mapping) {
	k.why = ""
	k.wanted = m.Outside
	if m.Protocol == k.told.Protocol && m.Outside == k.told.Outside {
		return // renewed
	}
	k.Log.Info("port mapped", "protocol", m.Protocol, "outside", m.Outside, "inside", k.Inside.Port(), "lifetime", m.Lifetime)
	k.told = m
	k.found(m)
}

// none tells that there is no mapping, and each reason once.
func (k *keeper) none(err error) {
	if why := err.Error(); why != k.why {
		k.why = why
		k.Log.Info("no port mapping", "err", err)
	}
	k.held = nil
	if k.told != (Mapping{}) {
		k.told = Mapping{}
		k.found(Mapping{})
	}
}

func (k *keeper) release(ctx context.Context, m mapper) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	if err := m.release(ctx); err != nil {
		k.Log.Debug("port mapping not released: it ends with its lifetime", "err", err)
	}
}

// search asks for all protocols at once, so that one a router is silent about
// does not cost the others' time.
type search struct {
	cancel  context.CancelFunc
	done    sync.WaitGroup
	results []chan finding
}

type finding struct {
	mapper
	err error
}

func startSearch(ctx context.Context, s site, protocols []protocol) *search {
	ctx, cancel := context.WithTimeout(ctx, searchTimeout)
	q := &search{cancel: cancel, results: make([]chan finding, len(protocols))}
	for i, p := range protocols {
		q.results[i] = make(chan finding, 1)
		q.done.Go(func() {
			m, err := p.find(ctx, s)
			q.results[i] <- finding{m, err}
		})
	}
	return q
}

// result waits for protocol number i; once for each.
func (q *search) result(i int) (mapper, error) {
	f := <-q.results[i]
	return f.mapper, f.err
}

// stop ends what still searches, and waits for it.
func (q *search) stop() {
	q.cancel()
	q.done.Wait()
}
