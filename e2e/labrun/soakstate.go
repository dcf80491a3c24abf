package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/bodkin-net/bodkin/agent/charon"
	"github.com/bodkin-net/bodkin/e2e"
)

// soakSample is what was found at one moment.
type soakSample struct {
	at time.Duration
	// members are in the community, by host name.
	members []string
	nodes   map[string]nodeSample
	procs   map[procID]usage
	pairs   []e2e.Pair
}

// nodeSample is what charon and nftables of a node have. asked is false while
// its charon does not answer.
type nodeSample struct {
	asked       bool
	connections []string
	sas         []charon.SA
	rewrites    []string // the connections that nftables rules are for
}

// procID names a process for good.
type procID struct {
	node, program string
	pid           int
}

// How long something may be found that should not be.
const (
	// strayTimeout is for a change to reach both nodes, and for charon's
	// deletions to be answered.
	strayTimeout = 20 * time.Second
	// halfOpenLimit: charon gives up by itself after minutes.
	halfOpenLimit = time.Minute
	// reasonTimeout: there is always a reason.
	reasonTimeout = 3 * time.Second
)

// soakRule finds what should not be in a sample, each under a name that stays
// the same.
type soakRule struct {
	what  string
	limit time.Duration
	find  func(soakSample) []string
}

var soakRules = []soakRule{
	{"connection of a node that is no peer", strayTimeout, strayConnections},
	{"port rewrite without a connection", strayTimeout, strayRewrites},
	{"half-open IKE SA", halfOpenLimit, halfOpen},
	{"more than one IKE SA with one peer", halfOpenLimit, doubled},
	{"pair that is not direct and gives no reason", reasonTimeout, unexplained},
}

// peersOf are the connections a node is to have.
func (s soakSample) peersOf(node string) []string {
	if node == connector {
		return edgesOf(s.nodes)
	}
	peers := []string{connector}
	if slices.Contains(s.members, node) {
		for _, m := range s.members {
			if m != node {
				peers = append(peers, m)
			}
		}
	}
	return peers
}

func edgesOf(nodes map[string]nodeSample) []string {
	var edges []string
	for name := range nodes {
		if name != connector {
			edges = append(edges, name)
		}
	}
	return edges
}

func strayConnections(s soakSample) []string {
	var stray []string
	for node, n := range s.nodes {
		peers := s.peersOf(node)
		for _, c := range n.connections {
			if host, ok := strings.CutPrefix(c, cluster+"."); !ok || !slices.Contains(peers, host) {
				stray = append(stray, node+": "+c)
			}
		}
	}
	return stray
}

func strayRewrites(s soakSample) []string {
	var stray []string
	for node, n := range s.nodes {
		for _, r := range n.rewrites {
			if n.asked && !slices.Contains(n.connections, r) {
				stray = append(stray, node+": "+r)
			}
		}
	}
	return stray
}

func halfOpen(s soakSample) []string {
	var found []string
	for node, n := range s.nodes {
		for _, sa := range n.sas {
			if sa.State == charon.StateConnecting || sa.State == charon.StateDeleting {
				found = append(found, fmt.Sprintf("%s: %s #%d %s", node, sa.Name, sa.ID, sa.State))
			}
		}
	}
	return found
}

func doubled(s soakSample) []string {
	var found []string
	for node, n := range s.nodes {
		count := map[string]int{}
		for _, sa := range n.sas {
			if count[sa.Name]++; count[sa.Name] == 2 {
				found = append(found, node+": "+sa.Name)
			}
		}
	}
	return found
}

func unexplained(s soakSample) []string {
	var found []string
	for _, p := range s.pairs {
		if p.State != "direct" && p.Reason == "" {
			found = append(found, p.ID)
		}
	}
	return found
}

// judgeSamples is what stood for longer than it may, each told once.
func judgeSamples(samples []soakSample) []violation {
	var all []violation
	for _, rule := range soakRules {
		since := map[string]time.Duration{}
		told := map[string]bool{}
		for _, s := range samples {
			found := rule.find(s)
			maps.DeleteFunc(since, func(name string, _ time.Duration) bool { return !slices.Contains(found, name) })
			for _, name := range found {
				if _, ok := since[name]; !ok {
					since[name] = s.at
				}
				if s.at-since[name] > rule.limit && !told[name] {
					told[name] = true
					all = append(all, newViolation(since[name], fmt.Sprintf("%s: %s, for more than %v", rule.what, name, rule.limit)))
				}
			}
		}
	}
	return all
}

// Growth of a process is judged when it has lived for growthLife, from
// growthWarm on: the median of the last third of its samples against that of
// the first. A daemon that leaks something with each fault shows it in minutes.
const (
	growthLife    = 2 * time.Minute
	growthWarm    = 30 * time.Second
	growthMemory  = 6  // MB
	growthThreads = 8  // Go makes one when a system call blocks, and keeps it
	growthFiles   = 16 // sockets of attempts under way
)

// growth is how a process has grown.
type growth struct {
	procID
	lived          time.Duration
	memoryMB       [2]float64 // in the first third, and in the last
	threads, files [2]float64
}

// grown is the growth of every process that lived long enough.
func grown(samples []soakSample) []growth {
	series := map[procID][]soakSample{}
	for _, s := range samples {
		for id := range s.procs {
			series[id] = append(series[id], s)
		}
	}
	var all []growth
	for id, seen := range series {
		g := growth{procID: id, lived: seen[len(seen)-1].at - seen[0].at}
		warm := slices.DeleteFunc(slices.Clone(seen), func(s soakSample) bool { return s.at < seen[0].at+growthWarm })
		if g.lived < growthLife || len(warm) < 6 {
			continue
		}
		third := len(warm) / 3
		for i, part := range [][]soakSample{warm[:third], warm[len(warm)-third:]} {
			var memory, threads, files []float64
			for _, s := range part {
				u := s.procs[id]
				memory, threads, files = append(memory, u.rssMB), append(threads, float64(u.threads)), append(files, float64(u.fds))
			}
			g.memoryMB[i], g.threads[i], g.files[i] = median(memory), median(threads), median(files)
		}
		all = append(all, g)
	}
	slices.SortFunc(all, func(a, b growth) int { return strings.Compare(fmt.Sprint(a.procID), fmt.Sprint(b.procID)) })
	return all
}

// judgeGrowth is which process has grown too much.
func judgeGrowth(g growth, at time.Duration) []violation {
	var all []violation
	for _, of := range []struct {
		what  string
		v     [2]float64
		limit float64
	}{{"MB of memory", g.memoryMB, growthMemory}, {"threads", g.threads, growthThreads}, {"descriptors", g.files, growthFiles}} {
		if of.v[1]-of.v[0] > of.limit {
			all = append(all, newViolation(at, fmt.Sprintf("%s of %s grew from %g to %g %s in %v", g.program, g.node, of.v[0], of.v[1], of.what, g.lived.Round(time.Second))))
		}
	}
	return all
}
