// Package agent is the daemon on every node: it keeps the link to the
// rendezvous, punches from strongSwan's own port, and hands each punched path
// to charon.
//
//	link ──messages──▶ daemon ◀──events── charon
//	                     │  one tunnel (pure) per peer decides
//	                     ▼
//	                    run: punch → handoff → confirm → watch
//
// The daemon's one goroutine owns all tunnels; each run is a goroutine of its
// own that reports back. Tunnels live in charon: they outlast the agent.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bodkin-net/bodkin/agent/charon"
	"github.com/bodkin-net/bodkin/punch"
	"github.com/bodkin-net/bodkin/punch/portmap"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// Timing of the daemon.
const (
	// addressRetry is between looks for a usable address at start: an edge
	// may boot before its network does.
	addressRetry = 2 * time.Second
	// teardownTimeout bounds ending the tunnels when asked to on exit.
	teardownTimeout = 5 * time.Second
	// endingTimeout is how long the rewrite of a deleted connection stands at
	// most: charon repeats a lost deletion after 4 s.
	endingTimeout = 10 * time.Second
	// endingPoll is between looks whether charon is done with one at exit.
	endingPoll = 20 * time.Millisecond
	// tick is how often tunnels are asked for what is due; nothing that is
	// retried is retried faster.
	tick = time.Second
)

// Daemon is an agent.
type Daemon struct {
	cfg     Config
	version string
	log     *slog.Logger
	id      *identity
	owned   *owned
	vici    *charon.Client
	api     net.Listener

	// What follows belongs to the goroutine of Run.
	port *punch.Port
	// addresses tells when port has to move.
	addresses addresses
	tunnels   map[wire.NodeName]*tunnel
	runs      map[wire.NodeName]*running
	// listed: the rendezvous has told who our peers are.
	listed    bool
	lastRun   runID
	link      *linkUp
	linkErr   error
	linkSince time.Time
	charonUp  bool
	// charonReady tells the runs what charonUp tells the daemon.
	charonReady *gate
	charonErr   error
	net         networks
	// told is the last network message of this session, nil before it.
	told *wire.Network
	// mapping is the router's mapping of the shared port, zero without one;
	// portMapping keeps it.
	mapping     portmap.Mapping
	portMapping *portMapping
	// localNAT is net's, for the runs, who explain failures with it.
	localNAT atomic.Pointer[wire.NAT]
	// sessionAddr is where this session was observed last; zero until then.
	sessionAddr netip.Addr
	// publicAt is where each family was observed last, in whichever session.
	publicAt [2]netip.Addr
	watches  []*networkWatch
	rewrites rewrites
	// ending are the connections taken out of charon, and when, whose rewrites
	// stand until it is done with them.
	ending    map[string]time.Time
	predictor predictor
	runEvents chan runEvent
	netEvents chan networkSeen
	queries   chan chan<- Status
	stopNet   func()
}

// running is a run and how to end it.
type running struct {
	*run
	stop func() // cancels and waits
}

// New reads what the configuration names and opens the status socket, so that
// what cannot work is said at once.
func New(cfg Config, version string, log *slog.Logger) (*Daemon, error) {
	id, err := newIdentity(cfg)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	o, err := openOwned(cfg.StateDir)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	d := &Daemon{
		cfg: cfg, version: version, log: log, id: id, owned: o,
		vici:        charon.New(charon.Options{Socket: cfg.VICISocket, Log: log}),
		charonReady: newGate(),
		tunnels:     map[wire.NodeName]*tunnel{},
		runs:        map[wire.NodeName]*running{},
		linkErr:     errors.New("connecting"),
		linkSince:   time.Now(),
		charonErr:   errors.New("connecting"),
		predictor:   newPredictor(),
		ending:      map[string]time.Time{},
		runEvents:   make(chan runEvent),
		netEvents:   make(chan networkSeen),
		queries:     make(chan chan<- Status),
		stopNet:     func() {},
	}
	if d.api, err = listenAPI(cfg.Socket); err != nil {
		return nil, fmt.Errorf("%w: socket: %w", ErrConfig, err)
	}
	return d, nil
}

// Run works until ctx is done. It returns an error only for what waiting
// cannot heal. All goroutines have ended when it returns; tunnels stay unless
// the configuration says otherwise.
func (d *Daemon) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var services sync.WaitGroup
	defer services.Wait()
	defer cancel()
	services.Go(func() { d.serveAPI(ctx) })

	if err := d.openPort(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	defer func() { d.port.Close() }() // the one that is open then
	d.rewrites = openRewrites(d.log, d.owned.has)
	defer d.rewrites.close()
	services.Go(func() { d.predictor.run(ctx) })
	d.watches = d.newWatches()
	d.portMapping = d.watchPortMapping(ctx)
	defer d.portMapping.stop()

	// charon's client outlives ctx: a teardown still needs it.
	viciCtx, stopVICI := context.WithCancel(context.WithoutCancel(ctx))
	var vici sync.WaitGroup
	vici.Go(func() { _ = d.vici.Run(viciCtx) })
	defer vici.Wait()
	defer stopVICI()

	links := make(chan linkEvent)
	linkStarted := false
	startLink := func() {
		if !linkStarted {
			linkStarted = true
			l := &link{id: d.id, dial: outsideDialer(d.cfg.Mark, d.id.endpoint.Subnets).DialContext, log: d.log, events: links}
			services.Go(func() { l.run(ctx) })
		}
	}
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	d.log.Info("agent running", "node", d.id.endpoint.Name, "identity", d.id.endpoint.ID,
		"rendezvous", d.id.url, "local", fmt.Sprint(d.port.Local()))
	for {
		select {
		case <-ctx.Done():
			d.stop()
			return nil
		case e, ok := <-d.vici.Events():
			if ok {
				d.charonEvent(ctx, e)
			}
			// What charon has decides what the hello says, so charon first.
			startLink()
		case e := <-links:
			d.linkEvent(ctx, e)
		case e := <-d.runEvents:
			d.runEvent(ctx, e)
		case m := <-d.predictor.out:
			d.send(m)
		case n := <-d.netEvents:
			d.networkEvent(n)
		case m := <-d.portMapping.found:
			d.mappingEvent(m)
		case q := <-d.queries:
			q <- d.status()
		case now := <-ticker.C:
			for _, t := range d.tunnels {
				d.perform(ctx, t, t.due(now, d.nextRun))
			}
			d.sweep(ctx)
			d.endRewrites(ctx, now)
			d.followAddresses(ctx, now)
		}
	}
}

func (d *Daemon) nextRun() runID {
	d.lastRun++
	return d.lastRun
}

// perform does what a tunnel decided.
func (d *Daemon) perform(ctx context.Context, t *tunnel, effects []effect) {
	for _, e := range effects {
		switch e := e.(type) {
		case stop:
			d.stopRun(t.name())
		case begin:
			d.beginRun(ctx, e)
		case tell:
			d.send(e.report)
			d.log.Info("tunnel", "peer", t.name(), "outcome", e.report.Outcome, "path", e.report.Path.Kind,
				"remote", e.report.Path.Remote, "reason", e.report.Reason, "elapsed_ms", e.report.ElapsedMs)
		}
	}
}

func (d *Daemon) send(m wire.Message) {
	if d.link != nil {
		d.link.send(m)
	}
}

func (d *Daemon) beginRun(ctx context.Context, b begin) {
	name := b.peer.Endpoint.Name
	d.stopRun(name)
	r := &run{
		begin: b, name: string(name), started: time.Now(),
		log:     d.log.With("peer", name),
		trickle: make(chan *wire.Trickle, 8), wake: make(chan struct{}, 1), hurry: make(chan struct{}, 1),
		shared: &shared{
			id: d.id, vici: d.vici, owned: d.owned, charonReady: d.charonReady, port: d.port, mark: d.cfg.Mark, events: d.runEvents,
			localNAT: &d.localNAT, punch: d.cfg.Punch, probe: d.cfg.Probe, rewrites: d.rewrites,
		},
		here: d.whereabouts(),
	}
	if b.order != nil {
		r.forbidden = d.forbidden(publicOf(b.order.Candidates).Addr())
	}
	rctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.do(rctx)
	}()
	d.runs[name] = &running{run: r, stop: func() { cancel(); <-done }}
}

func (d *Daemon) stopRun(name wire.NodeName) {
	if r := d.runs[name]; r != nil {
		delete(d.runs, name)
		r.stop()
	}
}

// runEvent passes a run's word to its tunnel.
func (d *Daemon) runEvent(ctx context.Context, e runEvent) {
	t := d.tunnels[e.peer]
	if t == nil {
		return
	}
	now := time.Now()
	t.sent(e.run, e.packets)
	switch e.outcome {
	case wire.OutcomeNominated:
		d.perform(ctx, t, t.nominated(e.run, e.path))
	case wire.OutcomeDirect:
		d.perform(ctx, t, t.direct(now, e.run, e.path, e.elapsed))
	case wire.OutcomeFailed:
		if e.run == t.run {
			// A port that nothing came of, or that a router has forgotten since:
			// checks that leave from it could not find another way.
			d.dropUnused(t)
		}
		d.perform(ctx, t, t.failed(now, e.run, e.reason, e.plainESP))
	case wire.OutcomeLost:
		d.lookAgain()
		d.perform(ctx, t, t.lost(now, e.run, e.reason))
	}
}

// stop ends all runs; the tunnels stay unless configured otherwise.
func (d *Daemon) stop() {
	d.stopNet()
	for name := range maps.Clone(d.runs) {
		d.stopRun(name)
	}
	if d.cfg.TeardownOnExit {
		ctx, cancel := context.WithTimeout(context.Background(), teardownTimeout)
		defer cancel()
		for _, name := range d.owned.names() {
			d.unload(ctx, name)
		}
		for len(d.ending) > 0 && ctx.Err() == nil {
			d.endRewrites(ctx, time.Now())
			select {
			case <-time.After(endingPoll):
			case <-ctx.Done():
			}
		}
		for name := range d.ending {
			d.rewrites.remove(name)
		}
	}
}

func (d *Daemon) sorted() []*tunnel {
	return slices.SortedFunc(maps.Values(d.tunnels), func(a, b *tunnel) int {
		if a.name() < b.name() {
			return -1
		}
		return 1
	})
}
