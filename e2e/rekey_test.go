package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// streams has pings run between pairs of nodes, both ways, while f does.
func streams(ctx context.Context, t *testing.T, f func(), pairs ...[2]*Node) (sent, lost int) {
	t.Helper()
	all := map[[2]*Node]*Stream{}
	for _, p := range pairs {
		for _, ends := range [][2]*Node{{p[0], p[1]}, {p[1], p[0]}} {
			s, err := ends[0].StartStream(ctx, ends[1])
			must(t, err)
			all[ends] = s
		}
	}
	begun := time.Now()
	f()
	for ends, s := range all {
		echos := s.Stop()
		sent, lost = sent+len(echos), lost+echos.Lost()
		for _, i := range echos.interruptions() {
			t.Logf("%s → %s interrupted after %v for %v", ends[0].Name, ends[1].Name,
				i.from.Sub(begun).Round(time.Millisecond), i.length().Round(time.Millisecond))
		}
	}
	return sent, lost
}

// saNumbers are the numbers of a node's IKE SAs and CHILD SAs with a peer.
type saNumbers struct {
	ike      []string
	children map[string][]string // by the child's name
}

var (
	ikeLine   = regexp.MustCompile(`^(\S+): #(\d+), (\S+),`)
	childLine = regexp.MustCompile(`^  (\S+): #(\d+), reqid \d+, (\S+),`)
)

// listSAs leaves out what has been replaced or is being ended.
func listSAs(ctx context.Context, t *testing.T, n, peer *Node) saNumbers {
	t.Helper()
	out, err := n.Swanctl(ctx, "--list-sas")
	must(t, err)
	s := saNumbers{children: map[string][]string{}}
	ours := false
	for line := range strings.Lines(out) {
		if m := ikeLine.FindStringSubmatch(line); m != nil {
			if ours = m[1] == peer.Name && m[3] != "DELETING" && m[3] != "REKEYED"; ours {
				s.ike = append(s.ike, m[2])
			}
		} else if m := childLine.FindStringSubmatch(line); m != nil && ours && m[3] == "INSTALLED" {
			s.children[m[1]] = append(s.children[m[1]], m[2])
		}
	}
	return s
}

// single: there is one IKE SA, and one CHILD SA of each name.
func (s saNumbers) single() bool {
	for _, ids := range s.children {
		if len(ids) != 1 {
			return false
		}
	}
	return len(s.ike) == 1 && len(s.children) > 0
}

// rekeying is a way to have charon replace keys.
type rekeying struct {
	name  string
	times int
	args  func(peer *Node) []string
	// done compares the SAs before with those after.
	done func(before, after saNumbers, child string) bool
	// mayLose is how many pings each may cost.
	mayLose int
}

func newIKE(b, a saNumbers, _ string) bool { return !slices.Equal(b.ike, a.ike) }

var (
	rekeyChild = rekeying{"CHILD SA", 8,
		func(p *Node) []string { return []string{"--rekey", "--child", p.Name + "-p2p"} },
		func(b, a saNumbers, child string) bool { return !slices.Equal(b.children[child], a.children[child]) }, 0}
	rekeyIKE = rekeying{"IKE SA", 8, func(p *Node) []string { return []string{"--rekey", "--ike", p.Name} }, newIKE, 0}
	// A responder sends through a new CHILD SA before its initiator has
	// installed it. Rekeying has a remedy, reauthentication has none (RFC 7296
	// section 2.8.3 tells of the former).
	reauthenticate = rekeying{"reauthentication", 3, func(p *Node) []string { return []string{"--rekey", "--reauth", "--ike", p.Name} }, newIKE, 2}
)

// rekey has the charon of each of from replace keys, and waits until both ends
// of the tunnel have done with it.
func rekey(ctx context.Context, t *testing.T, c *Cluster, how rekeying, a, b *Node, from ...*Node) {
	t.Helper()
	peer := map[*Node]*Node{a: b, b: a}
	before := map[*Node]saNumbers{a: listSAs(ctx, t, a, b), b: listSAs(ctx, t, b, a)}
	var all sync.WaitGroup
	for _, n := range from {
		all.Go(func() {
			if out, err := n.Swanctl(ctx, how.args(peer[n])...); err != nil {
				t.Errorf("%s: %v: %s", n.Name, err, out)
			}
		})
	}
	all.Wait()
	for _, n := range []*Node{a, b} {
		var last saNumbers
		err := c.until(ctx, how.name+" replaced at "+n.Name, func() (bool, error) {
			last = listSAs(ctx, t, n, peer[n])
			return last.single() && len(last.children) == len(before[n].children) &&
				how.done(before[n], last, peer[n].Name+"-p2p"), nil
		})
		if err != nil {
			t.Fatalf("%v: before %+v, now %+v", err, before[n], last)
		}
	}
}

// undisturbed returns what fails the test if from now on an agent takes something
// for the end of a tunnel between a, b and the connector. says are other words
// that none of their logs shall hold.
func undisturbed(ctx context.Context, t *testing.T, c *Cluster, a, b *Node, says ...string) (check func()) {
	t.Helper()
	says = append(says, "outcome=lost")
	before, err := c.Pair(ctx, a, b)
	must(t, err)
	logged := map[*Node]int{}
	for _, n := range []*Node{a, b, c.Connector} {
		logged[n] = len(n.Agent().Log())
	}
	return func() {
		t.Helper()
		if p, err := c.Pair(ctx, a, b); err != nil || p.State != "direct" || p.Attempts != before.Attempts {
			t.Errorf("pair %+v, error %v: want it direct by the same attempt as before", p, err)
		}
		for n, from := range logged {
			for line := range strings.Lines(n.Agent().Log()[from:]) {
				if slices.ContainsFunc(says, func(s string) bool { return strings.Contains(line, s) }) {
					t.Errorf("%s says: %s", n.Name, line)
				}
			}
		}
	}
}

// TestRekey: keys are replaced without anybody noticing, whichever end begins.
func TestRekey(t *testing.T) {
	ctx, c := start(t, ClusterOptions{})
	a, b, _ := trio(ctx, t, c)
	defer undisturbed(ctx, t, c, a, b, "CHILD SA gone")()
	for _, pair := range [][2]*Node{{a, b}, {a, c.Connector}} {
		for _, how := range []rekeying{rekeyChild, rekeyIKE, reauthenticate} {
			for _, from := range pair {
				if kernelESP {
					// Emulated, charon takes many milliseconds for what it does in
					// one elsewhere; one CHILD SA in thirty costs a ping then.
					how.times, how.mayLose = 2, 5*how.mayLose+1
				}
				sent, lost := streams(ctx, t, func() {
					for range how.times {
						rekey(ctx, t, c, how, pair[0], pair[1], from)
					}
				}, pair)
				t.Logf("%s – %s: %d times %s by %s: %d of %d pings lost", pair[0].Name, pair[1].Name, how.times, how.name, from.Name, lost, sent)
				if lost > how.times*how.mayLose {
					t.Errorf("%s by %s lost %d of %d pings in %d times, want at most %d each", how.name, from.Name, lost, sent, how.times, how.mayLose)
				}
			}
		}
	}
}

// TestRekeyCollisions: both ends replace keys all the time, often the same ones
// at once (RFC 7296 section 2.25).
func TestRekeyCollisions(t *testing.T) {
	const rounds, pause = 60, 100 * time.Millisecond
	ctx, c := start(t, ClusterOptions{})
	a, b, _ := trio(ctx, t, c)
	defer undisturbed(ctx, t, c, a, b)()
	sent, lost := streams(ctx, t, func() {
		for range rounds {
			var both sync.WaitGroup
			for _, ends := range [][2]*Node{{a, b}, {b, a}, {a, c.Connector}, {c.Connector, a}} {
				how := []rekeying{rekeyChild, rekeyIKE}[rand.IntN(2)]
				if rand.IntN(3) == 0 {
					continue
				}
				// One that is refused, for there is one under way, is none.
				both.Go(func() { _, _ = ends[0].Swanctl(ctx, how.args(ends[1])...) })
			}
			both.Wait()
			must(t, sleep(ctx, rand.N(pause)))
		}
	}, [2]*Node{a, b}, [2]*Node{a, c.Connector})
	t.Logf("%d of %d pings lost", lost, sent)
	if lost > 0 {
		t.Errorf("%d of %d pings lost", lost, sent)
	}
	for _, ends := range [][2]*Node{{a, b}, {b, a}, {a, c.Connector}, {c.Connector, a}} {
		must(t, c.until(ctx, fmt.Sprintf("%s has one IKE SA with %s", ends[0].Name, ends[1].Name), func() (bool, error) {
			return len(listSAs(ctx, t, ends[0], ends[1]).ike) == 1, nil
		}))
	}
}
