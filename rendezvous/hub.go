package rendezvous

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/enrol"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

var (
	// errStopped is returned by calls that come after the hub has ended.
	errStopped = errors.New("the rendezvous is stopping")
	// errRefused marks an endpoint that is not let in as it is.
	errRefused = errors.New("refused")
)

// hub is the one owner of the coordinator and of the table of sessions: all
// that happens passes through its goroutine, one thing after another.
type hub struct {
	log         *slog.Logger
	coordinator *coordinator
	recorder    *recorder
	metrics     *metrics
	journal     *journal
	boards      boards
	storeID     string
	stunPorts   []uint16 // of STUNServer.Addrs
	// mayConnect tells who may be a Connector.
	mayConnect func(wire.NodeName) bool
	// admit says who is let in, revocations is the list of the revoked, if any.
	admit       func(time.Time, enrol.Presented) (store.Admission, error)
	revocations func() []byte

	calls chan func(now time.Time) []action
	done  chan struct{}

	// sessions holds the current session of each node, details what the page
	// shows of it. Both belong to run's goroutine.
	sessions map[wire.NodeName]*session
	details  map[wire.NodeName]*NodeView

	// credentials is read by the STUN service on its own goroutines.
	mu          sync.RWMutex
	credentials map[string]*session
	stunAddrs   []netip.Addr // Config.PublicAddresses
	// sightings wait for the hub; sighted says that there are some.
	sightings map[sighting]Observation
	sighted   chan struct{}
}

// sighting is what of two observations the newer one replaces: a session's, in
// one address family.
type sighting struct {
	session *session
	v4      bool
}

func newHub(log *slog.Logger, c *coordinator, rec *recorder, m *metrics, storeID string) *hub {
	return &hub{
		log: log, coordinator: c, recorder: rec, metrics: m, journal: newJournal(log, m, rec), storeID: storeID,
		calls: make(chan func(time.Time) []action), done: make(chan struct{}),
		sessions: map[wire.NodeName]*session{}, details: map[wire.NodeName]*NodeView{},
		credentials: map[string]*session{},
		sightings:   map[sighting]Observation{}, sighted: make(chan struct{}, 1),
	}
}

// run is the hub's goroutine; it returns when ctx is done.
func (h *hub) run(ctx context.Context) {
	defer close(h.done)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case fn := <-h.calls:
			h.perform(fn(time.Now()))
		case <-h.sighted:
			h.perform(h.look(time.Now()))
		case <-timer.C:
			h.perform(h.coordinator.Tick(time.Now()))
		case <-ctx.Done():
			return
		}
		timer.Stop()
		if next := h.coordinator.Next(); !next.IsZero() {
			timer.Reset(max(0, time.Until(next)))
		}
	}
}

// call runs fn on the hub's goroutine and waits for it.
func (h *hub) call(ctx context.Context, fn func(now time.Time) []action) error {
	ran := make(chan struct{})
	select {
	case h.calls <- func(now time.Time) []action { defer close(ran); return fn(now) }:
		<-ran
		return nil
	case <-h.done:
		return errStopped
	case <-ctx.Done():
		return ctx.Err()
	}
}

// perform does what the coordinator decided.
func (h *hub) perform(actions []action) {
	now := time.Now()
	for _, a := range actions {
		switch a := a.(type) {
		case send:
			if s := h.sessions[a.to]; s != nil {
				s.send(a.msg)
			}
			h.note(a)
		case refuse:
			h.log.Warn("candidate refused", "node", a.node, "kind", a.candidate.Kind, "candidate", a.candidate.Addr, "reason", a.reason)
			h.metrics.refused.WithLabelValues(string(a.cause)).Inc()
		case refuseReport:
			h.refused(now, a)
		case ordered:
			h.journal.order(now, a)
		case ended:
			h.journal.end(now, a)
		case record:
			h.journal.pair(now, a.pair)
			h.recorder.pair(a.pair)
		case forget:
			h.log.Info("pair ended: no community holds both nodes, or one is not let in", "pair", a.id)
			h.journal.forget(a.id)
			h.recorder.forget(a.id)
		}
	}
	if len(actions) > 0 {
		h.boards.version.Add(1)
	}
}

// note keeps what is worth it of what is sent.
func (h *hub) note(s send) {
	switch m := s.msg.(type) {
	case *wire.Trickle:
		h.journal.chronicle.trickle(s.to, m)
	case *wire.Demote:
		h.log.Info("node told to leave a direct tunnel", "node", s.to, "peer", m.Peer, "reason", m.Reason)
		h.metrics.demotes.Inc()
	}
}

// refused makes a report that was not its sender's to make visible. Some cross
// with a change of the communities; of one that sends many, few are worth a line.
func (h *hub) refused(now time.Time, r refuseReport) {
	d := h.detail(r.node)
	d.RefusedReports++
	h.metrics.refusedReports.Inc()
	if n := d.RefusedReports; n&(n-1) == 0 {
		h.log.Warn("report refused", "node", r.node, "peer", r.report.Peer, "outcome", r.report.Outcome, "attempt", r.report.Attempt,
			"reason", r.reason, "refused", n)
		h.journal.events.add(now, EventView{
			Kind: EventRefused, Node: r.node, Pair: wire.NewPairID(string(r.node), string(r.report.Peer)),
			Text: fmt.Sprintf("report refused: %s; %d so far", r.reason, n),
		})
	}
}

// turnedAway makes visible that a node was not let in, though its certificate is
// good.
func (h *hub) turnedAway(node wire.NodeName, err error) {
	d := h.detail(node)
	d.RefusedSessions++
	refusal := wire.Clip(err.Error())
	if d.Refusal != refusal { // it comes again and again
		h.journal.events.add(time.Now(), EventView{Kind: EventRefused, Node: node, Text: "session refused: " + refusal})
	}
	d.Refusal = refusal
	h.metrics.refusedSessions.Inc()
}

// setSTUNAddrs has the next sessions look for the STUN service there, too.
func (h *hub) setSTUNAddrs(addrs []netip.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stunAddrs = addrs
}

// welcome opens the conversation and makes the session's STUN credential valid.
func (h *hub) welcome(s *session) {
	h.mu.Lock()
	h.credentials[s.username] = s
	addrs := h.stunAddrs
	h.mu.Unlock()
	s.send(&wire.Welcome{
		Node: s.node, StoreID: h.storeID,
		STUNPorts: h.stunPorts, STUNAddrs: addrs, STUNUsername: s.username, STUNPassword: s.password,
	})
}

// join admits a session after its hello. The newest session of a name wins.
func (h *hub) join(ctx context.Context, s *session, hello *wire.Hello, delay time.Duration) error {
	if hello.Endpoint.Name != s.node {
		return fmt.Errorf("%w: endpoint.name is %s, the certificate is %s's: use %s", errRefused, hello.Endpoint.Name, s.node, s.node)
	}
	if !wire.SameIdentity(hello.Endpoint.ID, s.identity) {
		return fmt.Errorf("%w: endpoint.id is %q, the certificate's subject is %q: use that", errRefused, hello.Endpoint.ID, s.identity)
	}
	hello.Endpoint.ID = s.identity // which may differ in blanks, and goes to peers
	hello.AgentVersion, hello.NoProbe = wire.Clip(hello.AgentVersion), wire.Clip(hello.NoProbe)
	var refused error
	var broken error
	err := h.call(ctx, func(now time.Time) []action {
		admission, err := h.admit(now, s.presented)
		switch {
		case errors.Is(err, enrol.ErrRevoked), errors.Is(err, enrol.ErrPending): // a moment ago
			refused = fmt.Errorf("%w: %w", errRefused, err)
			return nil
		case err != nil:
			broken = err
			return nil
		}
		if refused = h.grant(hello, admission); refused != nil {
			return nil
		}
		if err := h.coordinator.Admit(hello.Endpoint); err != nil {
			refused = fmt.Errorf("%w: %w", errRefused, err)
			h.turnedAway(s.node, err)
			return nil
		}
		if old := h.sessions[s.node]; old != nil {
			old.close(&wire.Bye{Reason: "a newer session of " + string(s.node) + " took over"})
		}
		h.sessions[s.node] = s
		d := h.detail(s.node)
		d.Online, d.Since, d.LastSeen = true, now, now
		d.Endpoint, d.AgentVersion, d.Fingerprint = hello.Endpoint, hello.AgentVersion, s.fingerprint
		d.Punch, d.NoProbe, d.Metered, d.Refusal = hello.Punch, hello.NoProbe, hello.Metered, ""
		d.Admission = admission.State
		h.recorder.node(*d)
		s.answers = hello.Answers
		h.sendRevocations(s)
		h.log.Info("node joined", "node", s.node, "remote", s.conn.RemoteAddr().String(), "agent", hello.AgentVersion)
		h.journal.online(now, s.node, true, "online, agent "+hello.AgentVersion)
		actions := h.coordinator.Bar(now, s.node, false) // approved a moment ago
		actions = append(actions, h.coordinator.Online(now, hello, delay)...)
		for _, o := range s.observations {
			actions = append(actions, h.observe(now, s, o)...)
		}
		s.observations = nil
		return actions
	})
	return errors.Join(err, broken, refused)
}

// leave ends a session, unless a newer one has taken its place.
func (h *hub) leave(s *session) {
	h.mu.Lock()
	delete(h.credentials, s.username)
	h.mu.Unlock()
	s.questions.end()
	// The hub outlives its sessions, so this cannot be cut short by their end.
	_ = h.call(context.Background(), func(now time.Time) []action {
		if h.sessions[s.node] != s {
			return nil
		}
		return h.end(now, s)
	})
}

// receive handles a message of a joined session.
func (h *hub) receive(ctx context.Context, s *session, m wire.Message) error {
	var wrong error
	err := h.call(ctx, func(now time.Time) []action {
		if h.sessions[s.node] != s {
			return nil
		}
		switch m := m.(type) {
		case *wire.Network:
			m.NAT.Blocked = wire.Clip(m.NAT.Blocked)
			d := h.detail(s.node)
			d.NAT = m.NAT
			h.recorder.node(*d)
			return h.coordinator.Network(now, s.node, m)
		case *wire.Prepared:
			return h.coordinator.Prepared(now, s.node, m)
		case *wire.Report:
			h.journal.report(now, s.node, m)
			return h.coordinator.Report(now, s.node, m)
		case *wire.Usage:
			h.detail(s.node).Usage = newUsageView(now, m, func(peer wire.NodeName) bool { return h.coordinator.paired(s.node, peer) })
			return nil
		case *wire.Reply:
			s.questions.answer(m)
			return nil
		}
		wrong = fmt.Errorf("%s is not an agent's message", m.Type())
		return nil
	})
	return errors.Join(err, wrong)
}

func (h *hub) delay(s *session, delay time.Duration) {
	_ = h.call(context.Background(), func(time.Time) []action {
		if h.sessions[s.node] == s {
			h.coordinator.Delay(s.node, delay)
		}
		return nil
	})
}

// credential answers the STUN service.
func (h *hub) credential(username string) (string, bool) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	s := h.credentials[username]
	if s == nil {
		return "", false
	}
	return s.password, true
}

// observed takes what the STUN service saw, without waiting: of a session's
// sightings that the hub has not come to yet, the newest of each address family
// counts. Only the first port is of interest: behind a symmetric NAT the others
// see other mappings, which are no news.
func (h *hub) observed(o Observation) {
	h.mu.Lock()
	s := h.credentials[o.Username]
	if s != nil && o.Local.Port() == h.stunPorts[0] {
		h.sightings[sighting{s, o.Addr.Addr().Is4()}] = o
	}
	h.mu.Unlock()
	select {
	case h.sighted <- struct{}{}:
	default:
	}
}

// look handles the sightings that have gathered.
func (h *hub) look(now time.Time) []action {
	h.mu.Lock()
	sightings := h.sightings
	h.sightings = map[sighting]Observation{}
	h.mu.Unlock()
	var actions []action
	for at, o := range sightings {
		if s := at.session; h.sessions[s.node] == s {
			actions = append(actions, h.observe(now, s, o)...)
		} else { // its hello is on the way: join takes it up
			s.observations = slices.DeleteFunc(s.observations, func(old Observation) bool { return old.Addr.Addr().Is4() == at.v4 })
			s.observations = append(s.observations, o)
		}
	}
	return actions
}

// observe passes a session's observation on.
func (h *hub) observe(now time.Time, s *session, o Observation) []action {
	d := h.detail(s.node)
	if before := d.observedIn(o.Addr); before.IsValid() && before != o.Addr {
		h.metrics.addressChanges.Inc()
		h.journal.events.add(now, EventView{Kind: EventAddress, Node: s.node, State: o.Addr.String(), Text: fmt.Sprintf("seen at %s, before at %s", o.Addr, before)})
	}
	if !s.observed {
		// Of a former session, and maybe of another network.
		d.Observed, d.Observed6, s.observed = netip.AddrPort{}, netip.AddrPort{}, true
	}
	d.observe(o)
	h.recorder.observe(s.node, o)
	return h.coordinator.Observed(now, s.node, o.Addr)
}

// detail is what is shown of a node, for the caller to change.
func (h *hub) detail(name wire.NodeName) *NodeView {
	h.boards.version.Add(1)
	d := h.details[name]
	if d == nil {
		d = &NodeView{Name: name}
		h.details[name] = d
	}
	return d
}
