package agent

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

var (
	t0 = time.Date(2024, 2, 1, 8, 0, 0, 0, time.UTC)

	icePeer = wire.Peer{
		Endpoint: wire.Endpoint{Name: "beijing.edge2", Type: wire.Edge, Subnets: prefixList("10.233.67.0/24")},
		Plan:     wire.PlanICE, Role: wire.Controlling,
	}
	publicPeer = wire.Peer{
		Endpoint: wire.Endpoint{Name: "beijing.connector", Type: wire.Connector, PublicAddresses: []string{"10.40.20.181"}, Port: 45000},
		Plan:     wire.PlanPublic, Role: wire.Controlling,
	}
	path1 = wire.Path{Kind: wire.PathServerReflexive,
		Local: netip.MustParseAddrPort("10.22.46.30:4500"), Remote: netip.MustParseAddrPort("203.0.113.2:4500")}
	path2 = wire.Path{Kind: wire.PathPeerReflexive,
		Local: path1.Local, Remote: netip.MustParseAddrPort("203.0.113.2:50123")}
)

func orderFor(peer wire.Peer, attempt wire.AttemptID) *wire.Punch {
	return &wire.Punch{Attempt: attempt, Peer: peer}
}

// counter hands out run IDs as the daemon does.
type counter runID

func (c *counter) next() runID {
	*c++
	return runID(*c)
}

// iceIn returns a tunnel that is punched, in the named state. Its last run is 2.
func iceIn(state string) *tunnel {
	t := newTunnel(icePeer, "store", t0)
	switch state {
	case "idle":
	case "adopted":
		t.adopted(t0, path1)
	case "punching":
		t.ordered(t0, orderFor(icePeer, "a2"), 2)
	case "nominated":
		t.ordered(t0, orderFor(icePeer, "a2"), 2)
		t.nominated(2, path1)
	case "direct":
		t.ordered(t0, orderFor(icePeer, "a2"), 2)
		t.nominated(2, path1)
		t.direct(t0, 2, path1, 80*time.Millisecond)
	case "re-punching":
		t.ordered(t0, orderFor(icePeer, "a1"), 1)
		t.direct(t0, 1, path1, 80*time.Millisecond)
		t.ordered(t0, orderFor(icePeer, "a2"), 2)
	case "unwatched":
		t.ordered(t0, orderFor(icePeer, "a1"), 1)
		t.direct(t0, 1, path1, 80*time.Millisecond)
		t.ordered(t0, orderFor(icePeer, "a2"), 2)
		t.failed(t0, 2, "no path", false)
	default:
		panic(state)
	}
	t.flush()
	return t
}

// iceEvents are all that can happen to a punched tunnel, a second after it was
// made.
var iceEvents = map[string]func(t *tunnel) []effect{
	"wanted":          func(t *tunnel) []effect { return t.wanted(t0.Add(time.Second), icePeer, "store", nil) },
	"ordered":         func(t *tunnel) []effect { return t.ordered(t0.Add(time.Second), orderFor(icePeer, "a3"), 3) },
	"cancelled":       func(t *tunnel) []effect { return t.cancelled(t0.Add(time.Second), "a2", "peer gave up") },
	"cancelled other": func(t *tunnel) []effect { return t.cancelled(t0.Add(time.Second), "a1", "peer gave up") },
	"nominated":       func(t *tunnel) []effect { return t.nominated(2, path2) },
	"direct": func(t *tunnel) []effect {
		return t.direct(t0.Add(time.Second), 2, path2, 90*time.Millisecond)
	},
	"failed": func(t *tunnel) []effect { return t.failed(t0.Add(time.Second), 2, "no path", false) },
	"lost":   func(t *tunnel) []effect { return t.lost(t0.Add(time.Second), 2, "silent") },
	"gone":   func(t *tunnel) []effect { return t.gone(t0.Add(time.Second), "charon ended it") },
	"due":    func(t *tunnel) []effect { return t.due(t0.Add(time.Hour), nil) },
	"stale": func(t *tunnel) []effect {
		var out []effect
		for _, effects := range [][]effect{
			t.nominated(1, path2), t.direct(t0, 1, path2, 0), t.failed(t0, 1, "old", true), t.lost(t0, 1, "old"),
		} {
			out = append(out, effects...)
		}
		return out
	},
}

// TestTunnelPunched has every event in every state: what the daemon is told to
// do, and what the tunnel is then.
func TestTunnelPunched(t *testing.T) {
	const nothing = ""
	tests := []struct{ state, event, effects, after string }{
		{"idle", "wanted", nothing, "down: waiting for the rendezvous"},
		{"idle", "ordered", "begin 3 a3", "down: punching, run"},
		{"idle", "cancelled", nothing, "down: waiting for the rendezvous"},
		{"idle", "nominated", nothing, "down: waiting for the rendezvous"},
		{"idle", "direct", nothing, "down: waiting for the rendezvous"},
		{"idle", "failed", nothing, "down: waiting for the rendezvous"},
		{"idle", "lost", nothing, "down: waiting for the rendezvous"},
		{"idle", "gone", nothing, "down: waiting for the rendezvous"},
		{"idle", "due", nothing, "down: waiting for the rendezvous"},

		{"adopted", "wanted", nothing, "standing on 1"},
		{"adopted", "ordered", "begin 3 a3", "standing on 1, run"},
		{"adopted", "cancelled", nothing, "standing on 1"},
		{"adopted", "failed", nothing, "standing on 1"},
		{"adopted", "gone", `lost "" "charon ended it"`, "down: charon ended it"},
		{"adopted", "due", nothing, "standing on 1"},

		{"punching", "wanted", nothing, "down: punching, run"},
		{"punching", "ordered", "stop; begin 3 a3", "down: punching, run"},
		{"punching", "cancelled", `failed a2 "peer gave up" 1s; stop`, "down: peer gave up"},
		{"punching", "cancelled other", nothing, "down: punching, run"},
		{"punching", "nominated", "nominated a2 on 2", "down: path found, strongSwan is connecting, run"},
		{"punching", "direct", "direct a2 on 2 90ms", "standing on 2, run, monitored"},
		{"punching", "failed", `failed a2 "no path" 1s`, "down: no path"},
		{"punching", "gone", nothing, "down: punching, run"},
		{"punching", "due", nothing, "down: punching, run"},
		{"punching", "stale", nothing, "down: punching, run"},

		{"nominated", "ordered", "stop; begin 3 a3", "down: punching, run"},
		{"nominated", "cancelled", `failed a2 "peer gave up" 1s; stop`, "down: peer gave up"},
		{"nominated", "nominated", "nominated a2 on 2", "down: path found, strongSwan is connecting, run"},
		{"nominated", "direct", "direct a2 on 2 90ms", "standing on 2, run, monitored"},
		{"nominated", "failed", `failed a2 "no path" 1s`, "down: no path"},
		{"nominated", "gone", nothing, "down: path found, strongSwan is connecting, run"},

		{"direct", "wanted", nothing, "standing on 1, run, monitored"},
		{"direct", "ordered", "stop; begin 3 a3", "standing on 1, run"},
		{"direct", "cancelled", nothing, "standing on 1, run, monitored"},
		{"direct", "nominated", "nominated a2 on 2", "standing on 1, run, monitored"},
		{"direct", "direct", "direct a2 on 2 90ms", "standing on 2, run, monitored"},
		{"direct", "lost", `lost a2 "silent"`, "down: silent"},
		{"direct", "gone", `lost a2 "charon ended it"; stop`, "down: charon ended it"},
		{"direct", "due", nothing, "standing on 1, run, monitored"},
		{"direct", "stale", nothing, "standing on 1, run, monitored"},

		{"re-punching", "ordered", "stop; begin 3 a3", "standing on 1, run"},
		{"re-punching", "cancelled", `failed a2 "peer gave up" 1s; stop`, "standing on 1"},
		{"re-punching", "cancelled other", nothing, "standing on 1, run"},
		{"re-punching", "nominated", "nominated a2 on 2", "standing on 1, run"},
		{"re-punching", "direct", "direct a2 on 2 90ms", "standing on 2, run, monitored"},
		{"re-punching", "failed", `failed a2 "no path" 1s`, "standing on 1"},
		{"re-punching", "gone", `lost "" "charon ended it"`, "down: charon ended it, run"},
		{"re-punching", "stale", nothing, "standing on 1, run"},

		{"unwatched", "wanted", nothing, "standing on 1"},
		{"unwatched", "ordered", "begin 3 a3", "standing on 1, run"},
		{"unwatched", "cancelled", nothing, "standing on 1"},
		{"unwatched", "failed", nothing, "standing on 1"},
		{"unwatched", "gone", `lost "" "charon ended it"`, "down: charon ended it"},
		{"unwatched", "due", nothing, "standing on 1"},
	}
	for _, tt := range tests {
		t.Run(tt.state+"/"+tt.event, func(t *testing.T) {
			tun := iceIn(tt.state)
			if got := brief(iceEvents[tt.event](tun)); got != tt.effects {
				t.Errorf("effects %q; want %q", got, tt.effects)
			}
			if got := summary(tun); got != tt.after {
				t.Errorf("then %q; want %q", got, tt.after)
			}
		})
	}
}

// brief writes effects as the tables do.
func brief(effects []effect) string {
	s := ""
	for i, e := range effects {
		if i > 0 {
			s += "; "
		}
		switch e := e.(type) {
		case stop:
			s += "stop"
		case renew:
			s += "renew"
		case begin:
			if e.leave {
				s += fmt.Sprintf("leave %d at %s", e.run, e.at.Sub(t0))
				continue
			}
			s += fmt.Sprintf("begin %d", e.run)
			if e.order != nil {
				s += " " + string(e.order.Attempt)
			}
			if e.encap {
				s += " encap"
			}
			if e.fresh {
				s += " fresh"
			}
		case tell:
			s += string(e.report.Outcome)
			if e.report.Attempt != "" || e.report.Outcome == wire.OutcomeLost {
				s += " " + orQuotes(string(e.report.Attempt))
			}
			s += onPath(e.report.Path)
			if e.report.Reason != "" {
				s += fmt.Sprintf(" %q", e.report.Reason)
			}
			if e.report.ElapsedMs != 0 {
				s += " " + (time.Duration(e.report.ElapsedMs) * time.Millisecond).String()
			}
		}
	}
	return s
}

func orQuotes(s string) string {
	if s == "" {
		return `""`
	}
	return s
}

func onPath(p wire.Path) string {
	switch p {
	case path1:
		return " on 1"
	case path2:
		return " on 2"
	case wire.Path{}:
		return ""
	}
	return fmt.Sprint(" on ", p)
}

// summary writes a tunnel's state as the tables do.
func summary(t *tunnel) string {
	s := "down: " + t.reason
	if t.standing {
		s = "standing" + onPath(t.path)
	}
	if t.run != 0 {
		s += ", run"
	}
	if t.monitored {
		s += ", monitored"
	}
	return s
}

// The tunnel to the connector is the agent's own to retry.
func TestTunnelPublicRetries(t *testing.T) {
	var ids counter
	now := t0
	tun := newTunnel(publicPeer, "", now)
	if got := brief(tun.wanted(now, publicPeer, "store", ids.next)); got != "begin 1" {
		t.Fatalf("wanted: %q; want the first run", got)
	}
	if got := brief(tun.wanted(now, publicPeer, "store", ids.next)); got != "" {
		t.Errorf("wanted again, unchanged: %q; want nothing", got)
	}
	for _, wait := range []time.Duration{1, 2, 4, 8, 16, 30, 30} {
		wait *= time.Second
		if got := brief(tun.failed(now, tun.run, "no answer", false)); got != `failed "no answer"` {
			t.Fatalf("failed: %q", got)
		}
		if got := brief(tun.due(now.Add(wait-1), ids.next)); got != "" {
			t.Errorf("tried again before %v: %q", wait, got)
		}
		now = now.Add(wait)
		if got, want := brief(tun.due(now, ids.next)), fmt.Sprintf("begin %d", ids); got != want {
			t.Fatalf("due after %v: %q; want %q", wait, got, want)
		}
		tun.started = now // elapsed stays 0
	}
	tun.direct(now, tun.run, path1, time.Second)
	if got := brief(tun.gone(now, "charon ended it")); got != `lost "" "charon ended it"; stop` {
		t.Errorf("gone: %q", got)
	}
	if got := brief(tun.due(now.Add(publicRetryMin), ids.next)); got == "" {
		t.Error("a success did not reset the back-off")
	}
}

func TestTunnelPublicChanges(t *testing.T) {
	var ids counter
	moved := publicPeer
	moved.Endpoint.Port = 4500
	asICE := publicPeer
	asICE.Plan = wire.PlanICE

	tun := newTunnel(publicPeer, "store", t0)
	tun.wanted(t0, publicPeer, "store", ids.next)
	if got := brief(tun.wanted(t0, moved, "store", ids.next)); got != "stop; begin 2" {
		t.Errorf("the connector's port changed: %q; want a new run", got)
	}
	tun.failed(t0, 2, "no answer", false)
	if got := brief(tun.wanted(t0, asICE, "store", ids.next)); got != "" {
		t.Errorf("to be punched from now on: %q; want nothing until the order", got)
	}
	if got := brief(tun.due(t0.Add(time.Hour), ids.next)); got != "" {
		t.Errorf("a run without an order: %q", got)
	}
	if got := brief(tun.wanted(t0, publicPeer, "store", ids.next)); got != "begin 3" {
		t.Errorf("public again: %q", got)
	}
}

// An agent that comes back watches the tunnel to the connector again.
func TestTunnelPublicAdopted(t *testing.T) {
	var ids counter
	tun := newTunnel(wire.Peer{Endpoint: wire.Endpoint{Name: publicPeer.Endpoint.Name}}, "store", t0)
	tun.adopted(t0, path1)
	if got := brief(tun.wanted(t0, publicPeer, "store", ids.next)); got != "begin 1" {
		t.Errorf("wanted: %q", got)
	}
	if got := summary(tun); got != "standing on 1, run" {
		t.Errorf("then %q", got)
	}
}

// Where plain ESP did not get through, the next attempt puts it in UDP.
func TestTunnelRemembersPlainESPFailed(t *testing.T) {
	tun := iceIn("punching")
	tun.failed(t0, 2, "no bytes", true)
	if got := brief(tun.ordered(t0, orderFor(icePeer, "a3"), 3)); got != "begin 3 a3 encap" {
		t.Errorf("next attempt: %q", got)
	}
}

func TestTunnelBeginCarriesStore(t *testing.T) {
	tun := newTunnel(icePeer, "old", t0)
	tun.wanted(t0, icePeer, "new", nil)
	want := []effect{begin{run: 1, peer: icePeer, order: orderFor(icePeer, "a1"), storeID: "new"}}
	if got := tun.ordered(t0, orderFor(icePeer, "a1"), 1); !reflect.DeepEqual(got, want) {
		t.Errorf("effects %+v; want %+v", got, want)
	}
}

// A public run that waits for its peer has its connection in charon: when charon
// goes, the run starts again.
func TestWaitingPublicRunFollowsCharon(t *testing.T) {
	runs := runID(0)
	next := func() runID { runs++; return runs }
	edge := wire.Peer{Endpoint: wire.Endpoint{Name: "beijing.edge1"}, Plan: wire.PlanPublic, Role: wire.Controlled}
	tun := newTunnel(edge, "store", t0)
	if got := brief(tun.wanted(t0, edge, "store", next)); !strings.HasPrefix(got, "begin") {
		t.Fatalf("wanted: %q", got)
	}
	if got := brief(tun.gone(t0, "charon stopped")); got != "stop" {
		t.Errorf("charon gone: %q, want the run stopped, and nothing reported lost", got)
	}
	tun.charonBack(t0)
	if got := brief(tun.due(t0, next)); !strings.HasPrefix(got, "begin") {
		t.Errorf("charon back: %q, want a new run at once", got)
	}
}

// The other end's word starts a run that makes another tunnel; the old one stays
// until then.
func TestDoubted(t *testing.T) {
	runs := runID(0)
	next := func() runID { runs++; return runs }
	connector := wire.Peer{Endpoint: wire.Endpoint{Name: "beijing.connector"}, Plan: wire.PlanPublic, Role: wire.Controlling}
	tun := newTunnel(connector, "store", t0)
	tun.wanted(t0, connector, "store", next)
	tun.direct(t0, tun.run, wire.Path{Kind: wire.PathPublic}, time.Second)
	if got := brief(tun.doubted(t0, next())); !strings.HasPrefix(got, "stop; begin") || !strings.HasSuffix(got, "fresh") || !tun.standing {
		t.Errorf("doubted: %q, standing %v", got, tun.standing)
	}
	tun.failed(t0, tun.run, "no answer", false)
	if got := brief(tun.due(tun.retryAt, next)); !strings.HasSuffix(got, "fresh") {
		t.Errorf("the next try: %q; want another tunnel still", got)
	}
	tun.direct(t0, tun.run, wire.Path{Kind: wire.PathPublic}, time.Second)
	tun.wanted(t0, connector, "store", next)
	if got := brief(tun.gone(t0, "charon restarted")) + brief(tun.due(tun.retryAt, next)); strings.Contains(got, "fresh") {
		t.Errorf("after a new tunnel: %q; want no doubt", got)
	}
	punched := newTunnel(wire.Peer{Endpoint: wire.Endpoint{Name: "beijing.edge2"}, Plan: wire.PlanICE}, "store", t0)
	if got := punched.doubted(t0, next()); len(got) != 0 {
		t.Errorf("a punched tunnel, whose next order tells: %v", got)
	}
}
