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
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/bodkin-net/bodkin/agent/charon"
	"github.com/bodkin-net/bodkin/punch"
	"github.com/bodkin-net/bodkin/punch/rawudp"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// Timing of the daemon.
const (
	// addressRetry is between looks for a usable address at start: an edge
	// may boot before its network does.
	addressRetry = 2 * time.Second
	// teardownTimeout bounds ending the tunnels when asked to on exit.
	teardownTimeout = 5 * time.Second
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
	port      *punch.Port
	tunnels   map[wire.NodeName]*tunnel
	runs      map[wire.NodeName]*running
	lastRun   runID
	link      *linkUp
	linkErr   error
	linkSince time.Time
	charonUp  bool
	// charonReady tells the runs what charonUp tells the daemon.
	charonReady *gate
	charonErr   error
	net         network
	// sessionAddr is where this session was observed last; zero until then.
	sessionAddr netip.Addr
	look        chan struct{}
	runEvents   chan runEvent
	netEvents   chan network
	queries     chan chan<- Status
	stopNet     func()
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
		runEvents:   make(chan runEvent),
		netEvents:   make(chan network),
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
	defer d.port.Close()

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
			l := &link{id: d.id, dial: markedDialer(d.cfg.Mark).DialContext, log: d.log, events: links}
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
		case n := <-d.netEvents:
			d.networkEvent(n)
		case q := <-d.queries:
			q <- d.status()
		case now := <-ticker.C:
			for _, t := range d.tunnels {
				d.perform(ctx, t, t.due(now, d.nextRun))
			}
		}
	}
}

// openPort opens the shared port on every address a peer could reach, waiting
// for the first one.
func (d *Daemon) openPort(ctx context.Context) error {
	for warned := false; ; warned = true {
		ifaces, err := punch.Interfaces()
		if err != nil {
			return fmt.Errorf("network interfaces: %w", err)
		}
		hosts := punch.HostCandidates(ifaces, d.id.endpoint.Subnets, d.cfg.IKEPort)
		if len(hosts) > 0 {
			return d.listen(hosts)
		}
		if !warned {
			d.log.Warn("no usable address on any interface yet: waiting for one")
		}
		select {
		case <-time.After(addressRetry):
		case q := <-d.queries:
			q <- d.status()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (d *Daemon) listen(hosts []netip.AddrPort) error {
	var conns []net.PacketConn
	closeAll := func() {
		for _, c := range conns {
			c.Close()
		}
	}
	for _, h := range hosts {
		c, err := rawudp.Listen(rawudp.Options{Addr: h.Addr(), Port: h.Port(), Mark: d.cfg.Mark})
		if err != nil {
			closeAll()
			return fmt.Errorf("shared port %s: %w", h, err)
		}
		conns = append(conns, c)
	}
	var err error
	if d.port, err = punch.NewPort(conns, d.log); err != nil {
		closeAll()
	}
	return err
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
	nat := d.net.nat
	r := &run{
		begin: b, name: string(name), started: time.Now(),
		log:     d.log.With("peer", name),
		trickle: make(chan []wire.Candidate, 8), wake: make(chan struct{}, 1),
		shared: &shared{
			id: d.id, vici: d.vici, owned: d.owned, charonReady: d.charonReady, port: d.port, events: d.runEvents,
			localNAT: func() wire.NAT { return nat },
		},
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
	switch e.outcome {
	case wire.OutcomeNominated:
		d.perform(ctx, t, t.nominated(e.run, e.path))
	case wire.OutcomeDirect:
		d.perform(ctx, t, t.direct(now, e.run, e.path, e.elapsed))
	case wire.OutcomeFailed:
		d.perform(ctx, t, t.failed(now, e.run, e.reason, e.plainESP))
	case wire.OutcomeLost:
		d.lookAgain()
		d.perform(ctx, t, t.lost(now, e.run, e.reason))
	}
}

// linkEvent handles the rendezvous' messages.
func (d *Daemon) linkEvent(ctx context.Context, e linkEvent) {
	switch {
	case e.up != nil:
		d.linkOpened(ctx, e.up)
	case e.down != nil:
		if d.link != nil || d.linkErr == nil {
			d.linkSince = time.Now()
		}
		d.link, d.linkErr = nil, e.down
		d.stopNet()
		d.stopNet = func() {}
	default:
		d.message(ctx, e.message)
	}
}

// linkOpened says hello with what stands, and starts looking at the network.
func (d *Daemon) linkOpened(ctx context.Context, up *linkUp) {
	d.link, d.linkErr, d.linkSince = up, nil, time.Now()
	d.sessionAddr = netip.Addr{}
	hello := &wire.Hello{
		AgentVersion: d.version, Endpoint: d.id.endpoint, Candidates: d.hosts(),
	}
	for _, t := range d.sorted() {
		if t.standing {
			hello.Tunnels = append(hello.Tunnels, wire.Tunnel{Peer: t.name(), Path: t.path, Monitored: t.monitored})
		}
	}
	d.send(hello)
	d.log.Info("joined", "rendezvous", d.id.url, "as", up.welcome.Node)
	d.stopNet()
	d.stopNet = d.watchNetwork(ctx, up)
}

func (d *Daemon) hosts() []wire.Candidate {
	var cs []wire.Candidate
	for _, a := range d.port.Local() {
		c := wire.Candidate{Kind: wire.Host, Addr: a}
		if c.Validate() == nil && !d.inTunnel(a.Addr()) {
			cs = append(cs, c)
		}
	}
	return cs
}

// inTunnel reports whether an address belongs to a peer's subnets: packets to
// it would go into a tunnel, so it cannot carry one.
func (d *Daemon) inTunnel(a netip.Addr) bool {
	for _, t := range d.tunnels {
		if slices.ContainsFunc(t.peer.Endpoint.Subnets, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return true
		}
	}
	return false
}

func (d *Daemon) message(ctx context.Context, m wire.Message) {
	now := time.Now()
	switch m := m.(type) {
	case *wire.Peers:
		d.peers(ctx, now, m)
	case *wire.Punch:
		t := d.tunnels[m.Peer.Endpoint.Name]
		if t == nil {
			d.log.Warn("order for a node that is no peer", "peer", m.Peer.Endpoint.Name)
			return
		}
		d.perform(ctx, t, t.ordered(now, m, d.nextRun()))
	case *wire.Trickle:
		for _, r := range d.runs {
			if r.order != nil && r.order.Attempt == m.Attempt {
				select {
				case r.trickle <- m.Candidates:
				default:
				}
			}
		}
	case *wire.Cancel:
		for _, t := range d.tunnels {
			d.perform(ctx, t, t.cancelled(now, m.Attempt, m.Reason))
		}
	default:
		d.log.Warn("unexpected message", "type", m.Type())
	}
}

// peers brings the tunnels in line with the complete set.
func (d *Daemon) peers(ctx context.Context, now time.Time, m *wire.Peers) {
	storeID := d.link.welcome.StoreID
	listed := map[wire.NodeName]bool{}
	for _, p := range m.Peers {
		name := p.Endpoint.Name
		listed[name] = true
		t := d.tunnels[name]
		if t == nil {
			t = newTunnel(p, storeID, now)
			d.tunnels[name] = t
		}
		if d.owned.has(string(name)) {
			if err := d.owned.set(string(name), storeID); err != nil {
				d.log.Error("state not written", "err", err)
			}
		}
		d.perform(ctx, t, t.wanted(now, p, storeID, d.nextRun))
	}
	for _, t := range d.sorted() {
		switch {
		case listed[t.name()]:
		case t.storeID != "" && t.storeID != storeID:
			d.log.Warn("tunnel kept: the rendezvous has another store than the one that asked for it", "peer", t.name())
		default:
			d.remove(ctx, t)
		}
	}
}

// remove ends a tunnel that is no longer wanted.
func (d *Daemon) remove(ctx context.Context, t *tunnel) {
	name := string(t.name())
	d.log.Info("tunnel removed: no community holds both nodes any more", "peer", name)
	d.stopRun(t.name())
	delete(d.tunnels, t.name())
	if d.owned.has(name) {
		d.unload(ctx, name)
	}
}

// unload takes a connection of ours out of charon, SAs and all.
func (d *Daemon) unload(ctx context.Context, name string) {
	for _, err := range []error{d.vici.Unload(ctx, name), d.vici.Terminate(ctx, name)} {
		if err != nil && !errors.Is(err, charon.ErrNotFound) {
			d.log.Error("connection not removed; trying again when charon is back", "connection", name, "err", err)
			return
		}
	}
	if err := d.owned.drop(name); err != nil {
		d.log.Error("state not written", "err", err)
	}
}

// charonEvent keeps the tunnels in line with charon.
func (d *Daemon) charonEvent(ctx context.Context, e charon.Event) {
	now := time.Now()
	switch e.Kind {
	case charon.EventUp:
		d.charonUp, d.charonErr = true, nil
		d.log.Info("charon reachable", "version", e.Version.Version)
		d.adopt(ctx, now)
		d.charonReady.set(true)
	case charon.EventDown:
		d.charonUp, d.charonErr = false, e.Err
		d.charonReady.set(false)
		d.log.Warn("charon not reachable", "err", e.Err)
		for _, t := range d.sorted() {
			d.perform(ctx, t, t.gone(now, "charon stopped or restarted"))
		}
	case charon.EventIKEDown, charon.EventChildDown, charon.EventOverflow:
		d.checkGone(ctx, now, e.Name)
	}
	for name, r := range d.runs {
		if e.Name == "" || e.Name == string(name) {
			select {
			case r.wake <- struct{}{}:
			default:
			}
		}
	}
}

// adopt loads the credentials into a charon that has just appeared, and takes
// up the tunnels in it that are ours.
func (d *Daemon) adopt(ctx context.Context, now time.Time) {
	if d.cfg.LoadCredentials {
		if err := d.vici.LoadCredentials(ctx, d.id.credentials); err != nil {
			d.log.Error("credentials not loaded into charon", "err", err)
		}
	}
	sas, err := d.vici.SAs(ctx, "")
	if err != nil {
		d.log.Error("SAs not listed", "err", err)
		return
	}
	for _, name := range d.owned.names() {
		node := wire.NodeName(name)
		if d.tunnels[node] == nil {
			d.tunnels[node] = newTunnel(wire.Peer{Endpoint: wire.Endpoint{Name: node}}, d.owned.storeID(name), now)
		}
		for _, sa := range sas {
			if t := d.tunnels[node]; sa.Name == name && !t.standing && measure([]charon.SA{sa}, wire.Path{}, nil).installed {
				t.adopted(now, wire.Path{Local: sa.Local, Remote: sa.Remote})
				d.log.Info("tunnel adopted from charon", "peer", name, "remote", sa.Remote)
			}
		}
	}
}

// checkGone asks charon whether a tunnel it reported on is still there.
func (d *Daemon) checkGone(ctx context.Context, now time.Time, name string) {
	for _, t := range d.sorted() {
		if !t.standing || name != "" && name != string(t.name()) {
			continue
		}
		sas, err := d.vici.SAs(ctx, string(t.name()))
		if err == nil && !measure(sas, wire.Path{}, nil).installed {
			d.perform(ctx, t, t.gone(now, "charon ended the tunnel: the peer deleted it or stopped answering"))
		}
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

// listenAPI replaces the socket of an agent that was killed, but not that of
// one that runs.
func listenAPI(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("another agent serves %s: stop it first", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	return l, os.Chmod(path, 0o660)
}
