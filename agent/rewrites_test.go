package agent

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/bodkin-net/bodkin/punch/rewrite"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// fakeTable keeps rules as nftables would; what it does with packets is the
// rewrite package's own to test.
type fakeTable struct {
	mu    sync.Mutex
	rules map[string]rewrite.Rule
	err   error
}

func newFakeTable(rules ...rewrite.Rule) *fakeTable {
	f := &fakeTable{rules: map[string]rewrite.Rule{}}
	for _, r := range rules {
		f.rules[r.Owner] = r
	}
	return f
}

func (f *fakeTable) owners() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Sorted(maps.Keys(f.rules))
}

func (f *fakeTable) Sweep(keep func(string) bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	maps.DeleteFunc(f.rules, func(owner string, _ rewrite.Rule) bool { return !keep(owner) })
	return f.err
}

func (f *fakeTable) Set(owner string, flow rewrite.Flow, port uint16) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules[owner] = rewrite.Rule{Owner: owner, Flow: flow, Port: port}
	return f.err
}

func (f *fakeTable) Remove(owner string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.rules, owner)
	return f.err
}

func (f *fakeTable) Rules() ([]rewrite.Rule, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Values(f.rules)), f.err
}

func (f *fakeTable) Close() error { return f.err }

func ruleFor(owner string, path wire.Path) rewrite.Rule {
	return rewrite.Rule{Owner: owner, Flow: rewrite.Flow{Local: path.Local, Peer: path.Remote}, Port: 40_000}
}

func TestSettleKeepsTheRuleOfThePath(t *testing.T) {
	otherBase := path1
	otherBase.Local = netip.MustParseAddrPort("10.22.46.31:4500")
	for name, tc := range map[string]struct {
		path wire.Path
		want []string
	}{
		"through the rule":   {path1, []string{"a.mine", "a.other"}},
		"to another address": {path2, []string{"a.other"}},
		"from another base":  {otherBase, []string{"a.other"}},
	} {
		table := newFakeTable(ruleFor("a.mine", path1), ruleFor("a.other", path1))
		rewrites{table: table, log: discardLog}.settle("a.mine", tc.path)
		if got := table.owners(); !slices.Equal(got, tc.want) {
			t.Errorf("%s: rules of %v left, want %v", name, got, tc.want)
		}
	}
}

// When charon has told what it has, a rule stays if a tunnel runs through it or
// a run may be about to make one.
func TestInUse(t *testing.T) {
	standing := func(d *Daemon, name wire.NodeName, path wire.Path) {
		d.tunnels[name] = newTunnel(wire.Peer{Endpoint: wire.Endpoint{Name: name}}, "store", t0)
		d.tunnels[name].adopted(t0, path)
	}
	d := testDaemon(t, "store")
	standing(d, "a.through", path1)
	standing(d, "a.beside", path2)
	d.tunnels["a.down"] = newTunnel(icePeer, "store", t0)
	d.tunnels["a.trying"] = newTunnel(icePeer, "store", t0)
	d.runs["a.trying"] = &running{}
	table := newFakeTable()
	for _, owner := range []string{"a.through", "a.beside", "a.down", "a.trying", "a.unknown"} {
		table.rules[owner] = ruleFor(owner, path1)
	}
	d.rewrites = rewrites{table: table, log: discardLog}
	d.rewrites.keepOnly(d.inUse)
	if got, want := table.owners(), []string{"a.through", "a.trying"}; !slices.Equal(got, want) {
		t.Errorf("rules of %v left, want %v", got, want)
	}
}

// Without nftables everything else works, and the reason is told.
func TestRewritesUnavailable(t *testing.T) {
	w := rewrites{why: errors.New("nftables: operation not permitted"), log: discardLog}
	w.settle("a.peer", path1)
	w.remove("a.peer")
	w.close()
	if w.has("a.peer") {
		t.Error("there is a rule without a table")
	}
	if _, err := w.flow("a.peer", rewrite.Flow{}); err == nil || !strings.Contains(err.Error(), w.unavailable()) {
		t.Errorf("flow: %v, want the reason %q", err, w.unavailable())
	}
	if got := w.unavailable(); got != "nftables: operation not permitted" {
		t.Errorf("unavailable: %q", got)
	}
	if got := (rewrites{table: newFakeTable()}).unavailable(); got != "" {
		t.Errorf("with a table: unavailable: %q", got)
	}
}

func TestFlowBelongsToItsConnection(t *testing.T) {
	table := newFakeTable()
	flow := rewrite.Flow{Local: path1.Local, Peer: path1.Remote}
	f, err := rewrites{table: table, log: discardLog}.flow("a.peer", flow)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Set(40_000); err != nil {
		t.Fatal(err)
	}
	if got, want := table.rules["a.peer"], (rewrite.Rule{Owner: "a.peer", Flow: flow, Port: 40_000}); got != want {
		t.Errorf("rule %+v, want %+v", got, want)
	}
}

// The rule of an attempt that comes to nothing goes, unless the tunnel that
// stands runs through it.
func TestRuleOfAnEndedAttempt(t *testing.T) {
	fails := func(d *Daemon, run runID) {
		d.runEvent(t.Context(), runEvent{peer: icePeer.Endpoint.Name, run: run, outcome: wire.OutcomeFailed, reason: "no path"})
	}
	for name, tc := range map[string]struct {
		standing wire.Path // none when zero
		end      func(d *Daemon)
		kept     bool
	}{
		"failed":                         {wire.Path{}, func(d *Daemon) { fails(d, 1) }, false},
		"failed beside a tunnel":         {path2, func(d *Daemon) { fails(d, 1) }, false},
		"failed, the tunnel is the rule": {path1, func(d *Daemon) { fails(d, 1) }, true},
		"an older run failed":            {wire.Path{}, func(d *Daemon) { fails(d, 7) }, true},
		"cancelled":                      {wire.Path{}, func(d *Daemon) { d.message(t.Context(), &wire.Cancel{Attempt: "a1"}) }, false},
		"cancelled beside a tunnel":      {path2, func(d *Daemon) { d.message(t.Context(), &wire.Cancel{Attempt: "a1"}) }, false},
		"another one cancelled":          {wire.Path{}, func(d *Daemon) { d.message(t.Context(), &wire.Cancel{Attempt: "a2"}) }, true},
		"no peer any more":               {wire.Path{}, func(d *Daemon) { d.message(t.Context(), &wire.Peers{}) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			d := testDaemon(t, "store")
			tun := newTunnel(icePeer, "store", t0)
			if tc.standing.Remote.IsValid() {
				tun.adopted(t0, tc.standing)
			}
			tun.ordered(t0, orderFor(icePeer, "a1"), 1)
			d.tunnels[tun.name()] = tun
			owner := string(tun.name())
			table := newFakeTable(ruleFor(owner, path1))
			d.rewrites = rewrites{table: table, log: discardLog}
			tc.end(d)
			if kept := slices.Contains(table.owners(), owner); kept != tc.kept {
				t.Errorf("rule kept: %v; want %v", kept, tc.kept)
			}
		})
	}
}
