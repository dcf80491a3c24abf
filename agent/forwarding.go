package agent

import (
	"errors"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"sync"

	"github.com/bodkin-net/bodkin/agent/forward"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// errNotTold: a connector that does not know who may reach whom relays nothing.
var errNotTold = errors.New("the rendezvous has not said yet between whom this connector relays")

// forwardFilter is a connector's filter of what it relays. The table in the
// kernel outlives the agent: tunnels do, too, and what was permitted stays so
// until the rendezvous says otherwise. Its methods may be called from any
// goroutine.
type forwardFilter struct {
	log *slog.Logger

	mu    sync.Mutex
	table *forward.Table // nil until there is something to filter
	// groups are what the rendezvous has said, nil before it has, and storeID the
	// store it had them from.
	groups  []wire.Group
	storeID string
	// decided are the edges whose packets the table decides on, by their subnets.
	decided map[wire.NodeName][]netip.Prefix
	policy  forward.Policy // in force, or what was to be
	err     error          // why nothing may be relayed
}

// ForwardingStatus is what a connector's filter does.
type ForwardingStatus struct {
	Edges int `json:"edges"`
	// Dropped is how many packets were dropped because no community permits them.
	Dropped uint64 `json:"dropped"`
	// Error is why nothing is relayed, empty when all is well.
	Error string `json:"error,omitempty"`
}

func newForwardFilter(log *slog.Logger) *forwardFilter {
	return &forwardFilter{log: log, err: errNotTold}
}

// forwarding puts in force between whom this connector relays: what the rendezvous
// has just said, or, m being nil, what it said before to other peers than now. Only
// runs that this concerns hear of it: each asks charon then.
func (d *Daemon) forwarding(m *wire.Forwarding) {
	if d.id.endpoint.Type != wire.Connector {
		return
	}
	var edges []wire.Peer
	for _, t := range d.sorted() {
		if t.peer.Endpoint.Type == wire.Edge {
			edges = append(edges, t.peer)
		}
	}
	storeID := ""
	if d.link != nil {
		storeID = d.link.welcome.StoreID
	}
	for _, name := range d.filter.set(m, storeID, d.id.endpoint, edges) {
		if r := d.runs[name]; r != nil {
			signal(r.wake)
		}
	}
}

// set takes what the rendezvous of a store says. One that was set up anew and knows
// no community yet does not end what its predecessor's permitted. It returns the
// edges for which holds may say something else now.
func (f *forwardFilter) set(m *wire.Forwarding, storeID string, self wire.Endpoint, edges []wire.Peer) []wire.NodeName {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m != nil && (len(m.Groups) > 0 || len(f.groups) == 0 || f.storeID == storeID) {
		f.groups, f.storeID = slices.Concat([]wire.Group{}, m.Groups), storeID
	}
	if f.groups == nil {
		return nil
	}
	policy := policyOf(f.groups, self, edges)
	if len(policy.Range) == 0 && f.table == nil {
		return nil
	}
	if f.err == nil && f.table != nil && reflect.DeepEqual(policy, f.policy) {
		return nil
	}
	f.policy = policy
	failed, decided := f.err, f.decided
	if f.err = f.apply(); f.err != nil {
		f.log.Error("connector does not relay", "err", f.err)
	} else {
		f.decided = map[wire.NodeName][]netip.Prefix{}
		for _, e := range edges {
			f.decided[e.Endpoint.Name] = e.Endpoint.Subnets
		}
		f.log.Debug("filter of what is relayed set", "edges", len(edges), "groups", len(policy.Groups), "range", policy.Range)
	}
	return concerned(edges, decided, f.decided, failed != nil || f.err != nil)
}

// concerned are the edges that the filter decides on in another way than before;
// with all, it did not work before or does not now.
func concerned(edges []wire.Peer, before, now map[wire.NodeName][]netip.Prefix, all bool) (names []wire.NodeName) {
	for _, e := range edges {
		if name := e.Endpoint.Name; all || !slices.Equal(before[name], now[name]) {
			names = append(names, name)
		}
	}
	return names
}

func (f *forwardFilter) apply() (err error) {
	if f.table == nil {
		if f.table, err = forward.Open(); err != nil {
			return err
		}
	}
	return f.table.Set(f.policy)
}

// restore puts the filter in force again after somebody has flushed it.
func (f *forwardFilter) restore() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.table == nil {
		return
	}
	if is, err := f.table.Present(); is && f.err == nil || err != nil {
		return // an error is for the next change to report
	}
	f.log.Warn("filter of what is relayed was gone: setting it again")
	if f.err = f.apply(); f.err != nil {
		f.log.Error("connector does not relay", "err", f.err)
	}
}

// policyOf is what the rendezvous' groups mean in addresses.
func policyOf(groups []wire.Group, self wire.Endpoint, edges []wire.Peer) forward.Policy {
	p := forward.Policy{Own: slices.Concat(self.Subnets, self.NodeSubnets)}
	subnets := map[wire.NodeName][]netip.Prefix{}
	for _, e := range edges {
		subnets[e.Endpoint.Name] = e.Endpoint.Subnets
		p.Edges = append(p.Edges, e.Endpoint.Subnets...)
		for _, r := range e.Relay {
			if !slices.Contains(p.Range, r) {
				p.Range = append(p.Range, r)
			}
		}
	}
	for _, g := range groups {
		var members []netip.Prefix
		for _, n := range g.Nodes {
			members = append(members, subnets[n]...)
		}
		p.Groups = append(p.Groups, members)
	}
	return p
}

// holds says why an edge cannot be relayed for, or must not: as long as the filter
// does not decide on its packets, nobody does.
func (f *forwardFilter) holds(edge wire.Peer) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	if err := forward.Enabled(f.policy.Range); err != nil {
		return err
	}
	if !slices.Equal(f.decided[edge.Endpoint.Name], edge.Endpoint.Subnets) {
		return errNotTold
	}
	return nil
}

// status is nil where nothing was ever filtered.
func (f *forwardFilter) status() *ForwardingStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.table == nil {
		return nil
	}
	s := &ForwardingStatus{Edges: len(f.decided)}
	var err error
	if s.Dropped, err = f.table.Dropped(); err == nil {
		err = f.err
	}
	if err == nil {
		err = forward.Enabled(f.policy.Range)
	}
	if err != nil {
		s.Error = err.Error()
	}
	return s
}

// remove takes the table away, when the tunnels go as well.
func (f *forwardFilter) remove() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.table == nil {
		return
	}
	if err := f.table.Remove(); err != nil {
		f.log.Error("filter of what was relayed not removed", "err", err)
	}
}

func (f *forwardFilter) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.table == nil {
		return
	}
	if err := f.table.Close(); err != nil {
		f.log.Warn("filter of what is relayed not closed", "err", err)
	}
}
