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
	"syscall"
	"time"

	"github.com/bodkin-net/bodkin/agent/charon"
	"github.com/bodkin-net/bodkin/internal/unixsock"
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
	// metricsListener is nil unless configured.
	metricsListener net.Listener

	// What follows belongs to the goroutine of Run.
	port *punch.Port
	// renewal follows the certificate, key and CA.
	renewal *renewal
	// unloadedAt is when to look next whether charon has our connections.
	unloadedAt time.Time
	// reissue asks for a new certificate before the present one ends.
	reissue *reissue
	// revocations is what the CA has revoked.
	revocations *revocations
	// stateRetry is when the file of our connections is written again; zero
	// while it is as it should be.
	stateRetry time.Time
	tunnels    map[wire.NodeName]*tunnel
	runs       map[wire.NodeName]*running
	// listed: the rendezvous has told who our peers are.
	listed  bool
	lastRun runID
	// signalling keeps link, the session; nil without one.
	signalling *link
	linkEvents chan linkEvent
	link       *linkUp
	linkErr    error
	linkSince  time.Time
	charonUp   bool
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
	// relayUp: the tunnel with the connector relays; relayWanted: it shall. For the
	// runs.
	relayUp, relayWanted atomic.Bool
	// localNAT is net's, for the runs, who explain failures with it.
	localNAT atomic.Pointer[wire.NAT]
	// sessionAddr is where this session was observed last; zero until then.
	sessionAddr netip.Addr
	// mappedAt is where each family was observed last, in whichever session.
	mappedAt [2]netip.AddrPort
	// remapped is when that last changed, and when the time before.
	remapped [2][2]time.Time
	watches  []*networkWatch
	rewrites rewrites
	// filter is of what this node, a connector, relays.
	filter *forwardFilter
	// ending are the connections taken out of charon, and when, whose rewrites
	// stand until it is done with them.
	ending    map[string]time.Time
	predictor predictor
	// traffic judges the tunnels that stand, by what charon has counted.
	traffic   map[wire.NodeName]*traffic
	snapshots chan []charon.SA
	// suspected is when that last gave reason to look at more than one path.
	suspected time.Time
	// usage is what standing still costs.
	usage usage
	// ways are those to the peers and to the rendezvous; looked is when they and
	// the addresses were last looked at.
	ways       ways
	looked     time.Time
	roamEvents chan roamEvent
	runEvents  chan runEvent
	netEvents  chan networkSeen
	counts     counts
	// answers are the questions of the rendezvous that are worked on; answering
	// bounds how many.
	answers   sync.WaitGroup
	answering chan struct{}
	// queries are what others want the daemon's goroutine to do for them.
	queries chan func()
	stopNet func()
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
		linkEvents:  make(chan linkEvent),
		linkErr:     errors.New("connecting"),
		linkSince:   time.Now(),
		charonErr:   errors.New("connecting"),
		predictor:   newPredictor(),
		ending:      map[string]time.Time{},
		traffic:     map[wire.NodeName]*traffic{},
		snapshots:   make(chan []charon.SA),
		roamEvents:  make(chan roamEvent),
		runEvents:   make(chan runEvent),
		netEvents:   make(chan networkSeen),
		queries:     make(chan func()),
		stopNet:     func() {},
		renewal:     newRenewal(o.names()),
		reissue:     newReissue(),
		answering:   make(chan struct{}, answersAtOnce),
	}
	if d.revocations, err = newRevocations(cfg.StateDir, id.credentials()); err != nil {
		log.Warn("no list of revoked certificates until the rendezvous sends one", "err", err)
	}
	d.filter = newForwardFilter(log)
	d.signalling = newLink(cfg, id, log, d.linkEvents)
	switch d.api, err = listenAPI(cfg.Socket); {
	case errors.Is(err, unixsock.ErrServed): // until that process ends
		return nil, fmt.Errorf("socket: %w", err)
	case err != nil:
		return nil, fmt.Errorf("%w: socket: %w", ErrConfig, err)
	}
	switch d.metricsListener, err = listenMetrics(cfg.Metrics); {
	case errors.Is(err, syscall.EADDRINUSE):
		d.api.Close()
		return nil, fmt.Errorf("metrics: %w", err)
	case err != nil:
		d.api.Close()
		return nil, fmt.Errorf("%w: metrics: %w", ErrConfig, err)
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
	defer d.answers.Wait()
	defer d.reissue.running.Wait()
	defer cancel()
	services.Go(func() { d.serveAPI(ctx) })
	if d.metricsListener != nil {
		services.Go(func() { d.serveMetricsTCP(ctx) })
	}

	if err := d.openPort(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	defer d.port.Close()
	d.rewrites = openRewrites(d.log, d.owned.has)
	defer d.rewrites.close()
	defer d.filter.close()
	if err := sweepPins(); err != nil {
		d.log.Error("traffic may stay in the relay", "err", err)
	}
	services.Go(func() { d.predictor.run(ctx) })
	d.watches = d.newWatches()
	d.portMapping = d.watchPortMapping(ctx)
	defer func() { d.portMapping.stop() }() // the one that is kept then

	// charon's client outlives ctx: a teardown still needs it.
	viciCtx, stopVICI := context.WithCancel(context.WithoutCancel(ctx))
	var vici sync.WaitGroup
	vici.Go(func() { _ = d.vici.Run(viciCtx) })
	defer vici.Wait()
	defer stopVICI()

	defer d.startTraffic(ctx)()
	defer d.startRoaming(ctx)()

	var linkStarted sync.Once
	startLink := func() { linkStarted.Do(func() { services.Go(func() { d.signalling.run(ctx) }) }) }
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
				d.startDue(ctx, time.Now())
			}
			// What charon has decides what the hello says, so charon first.
			startLink()
		case e := <-d.linkEvents:
			d.linkEvent(ctx, e)
		case e := <-d.runEvents:
			d.runEvent(ctx, e)
			d.startDue(ctx, time.Now()) // what is to be tried again at once
		case e := <-d.roamEvents:
			d.roamed(ctx, time.Now(), e)
		case sas := <-d.snapshots:
			d.trafficSeen(ctx, time.Now(), sas)
		case m := <-d.predictor.out:
			d.send(m)
		case n := <-d.netEvents:
			d.networkEvent(ctx, n)
		case m := <-d.portMapping.found:
			d.mappingEvent(m)
		case q := <-d.queries:
			q()
		case now := <-ticker.C:
			d.startDue(ctx, now)
			d.sweep(ctx)
			d.filter.restore()
			d.endRewrites(ctx, now)
			d.reportUsage(now)
			if now.Sub(d.looked) >= addressInterval {
				d.looked = now
				d.roamed(ctx, now, roamEvent{})
			}
			d.followReissue(ctx, now)
			d.findUnloaded(ctx, now)
			d.followCredentials(ctx, now)
			d.loadRevocations(ctx, now)
			d.keepState(now)
		}
	}
}

// startDue begins what is to be tried again by now.
func (d *Daemon) startDue(ctx context.Context, now time.Time) {
	for _, t := range d.tunnels {
		d.perform(ctx, t, t.due(now, d.nextRun))
	}
}

func (d *Daemon) nextRun() runID {
	d.lastRun++
	return d.lastRun
}

// perform does what a tunnel decided. Most often that is nothing.
func (d *Daemon) perform(ctx context.Context, t *tunnel, effects []effect) {
	if len(effects) == 0 {
		return
	}
	for _, e := range effects {
		switch e := e.(type) {
		case stop:
			d.stopRun(t.name())
		case begin:
			d.beginRun(ctx, e)
		case renew:
			if r := d.runs[t.name()]; r != nil {
				r.renewed.Store(&e.peer)
				signal(r.wake)
			}
		case tell:
			d.send(e.report)
			d.counts.told(e.report, e.strategy)
			d.log.Info("tunnel", "peer", t.name(), "outcome", e.report.Outcome, "path", e.report.Path.Kind,
				"remote", e.report.Path.Remote, "reason", e.report.Reason, "elapsed_ms", e.report.ElapsedMs)
		}
	}
	d.followRelay(ctx)
}

// followRelay notes whether this node can be reached through its connector.
func (d *Daemon) followRelay(ctx context.Context) {
	wanted := false
	for _, t := range d.tunnels {
		wanted = wanted || len(t.peer.Relay) > 0
	}
	d.relayWanted.Store(wanted)
	if up := d.relay() != ""; d.relayUp.Swap(up) != up && up {
		d.leaveDead(ctx)
	}
	d.logStates()
}

// relay is the connector whose tunnel relays for this node, if there is one.
func (d *Daemon) relay() wire.NodeName {
	for name, t := range d.tunnels {
		if t.standing && t.relay && d.id.endpoint.Type != wire.Connector {
			return name
		}
	}
	return ""
}

func (d *Daemon) send(m wire.Message) {
	if d.link != nil {
		d.link.send(m)
	}
}

// stop ends all runs; the tunnels stay unless configured otherwise.
func (d *Daemon) stop() {
	d.stopNet()
	d.hasten(func(wire.NodeName) bool { return true })
	for name := range maps.Clone(d.runs) {
		d.stopRun(name)
	}
	if d.cfg.TeardownOnExit {
		d.filter.remove()
		if err := forgetOwn(d.id.endpoint.Subnets); err != nil {
			d.log.Error("routes beside the relay not removed", "err", err)
		}
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
