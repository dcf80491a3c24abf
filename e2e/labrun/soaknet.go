package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bodkin-net/bodkin/agent/charon"
	"github.com/bodkin-net/bodkin/e2e"
	"github.com/bodkin-net/bodkin/e2e/lab"
)

// soakNATs are what the edges stand behind at first.
var soakNATs = []lab.NATKind{lab.PortRestricted, lab.Symmetric, lab.FullCone, lab.AddressRestricted}

const soakCommunity = "soak"

const (
	// soakStart is for all pairs to be reachable at first.
	soakStart = 30 * time.Second
	// askTimeout bounds asking one charon, which may be down.
	askTimeout = 2 * time.Second
)

// soakNet is the network under test. Its methods may be called from any
// goroutine.
type soakNet struct {
	*e2e.Cluster
	nodes   []*e2e.Node   // by number, the connector first
	routers []*lab.Router // of edges, by the edge's number less one
	charons []*charon.Client
	asking  sync.WaitGroup
	stop    context.CancelFunc

	mu      sync.Mutex // guards processes being replaced, and what follows
	members []int
	moves   int // public addresses handed out
	kinds   int // NAT kinds handed out
}

// openSoak starts the network, with all pairs reachable. Unless it is nil it
// must be closed, on error too.
func openSoak(ctx context.Context, bin string) (*soakNet, error) {
	c, err := e2e.NewCluster(ctx, e2e.ClusterOptions{Bin: bin, Link: connectorLine, LogLevel: "debug"})
	if c == nil {
		return nil, err
	}
	n := &soakNet{Cluster: c, nodes: []*e2e.Node{c.Connector}, stop: func() {}}
	if err != nil {
		return n, err
	}
	for i, kind := range soakNATs {
		name := soakNode(i + 1)
		r, err := c.Router(name+"x", lab.RouterOptions{NAT: kind})
		if err != nil {
			return n, err
		}
		if err := r.SetLink(edgeLine); err != nil {
			return n, err
		}
		edge, err := c.AddEdge(ctx, name, r)
		if err != nil {
			return n, err
		}
		n.nodes, n.routers = append(n.nodes, edge), append(n.routers, r)
		n.members = append(n.members, i+1)
	}
	ctx, n.stop = context.WithCancel(ctx)
	for _, node := range n.nodes {
		client := charon.New(charon.Options{Socket: node.VICISocket()})
		n.charons = append(n.charons, client)
		n.asking.Go(func() { _ = client.Run(ctx) })
		n.asking.Go(func() {
			for range client.Events() { // charon would wait for who does not read
			}
		})
	}
	limited, cancel := context.WithTimeout(ctx, soakStart)
	defer cancel()
	if err := c.WaitDiscovered(limited, n.nodes[1:]...); err != nil {
		return n, err
	}
	if err := n.apply(limited); err != nil {
		return n, err
	}
	for _, p := range n.pairs() {
		if _, err := c.WaitPair(limited, n.nodes[p[0]], n.nodes[p[1]], func(p *e2e.Pair) bool { return p.State != "down" }); err != nil {
			return n, err
		}
	}
	return n, nil
}

func (n *soakNet) close() error {
	n.stop()
	n.asking.Wait()
	return n.Close()
}

// pairs are those of the edges, by number.
func (n *soakNet) pairs() [][2]int {
	var pairs [][2]int
	for i := 1; i < len(n.nodes); i++ {
		for j := i + 1; j < len(n.nodes); j++ {
			pairs = append(pairs, [2]int{i, j})
		}
	}
	return pairs
}

func soakPair(p [2]int) nodePair { return nodePair{soakNode(p[0]), soakNode(p[1])} }

// apply puts the community of the members in force.
func (n *soakNet) apply(ctx context.Context) error {
	var members []*e2e.Node
	for _, i := range n.members {
		members = append(members, n.nodes[i])
	}
	return n.Apply(ctx, soakCommunity, members...)
}

// befallen are the pairs that a fault touches. What the connector suffers,
// direct pairs do not notice.
func (n *soakNet) befallen(ctx context.Context, s soakStep) (map[nodePair]bool, error) {
	touched := map[nodePair]bool{}
	for _, p := range n.pairs() {
		switch {
		case s.kind.at == betweenEdges:
			touched[soakPair(p)] = p == [2]int{s.node, s.other} || p == [2]int{s.other, s.node}
		case s.node != 0:
			touched[soakPair(p)] = p[0] == s.node || p[1] == s.node
		case s.kind.name == rendezvousKilled:
			touched[soakPair(p)] = true
		case s.kind.name == hubCharonKilled:
			pair, err := n.Pair(ctx, n.nodes[p[0]], n.nodes[p[1]])
			if err != nil {
				return nil, err
			}
			touched[soakPair(p)] = pair == nil || !e2e.IsDirect(pair)
		}
	}
	return touched, nil
}

// begin does a fault, and returns how to undo it, nil for one that is over.
func (n *soakNet) begin(ctx context.Context, s soakStep) (undo func() error, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	mend, err := n.breaks(ctx, s)
	if mend == nil || err != nil {
		return nil, err
	}
	return func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		return mend()
	}, nil
}

func (n *soakNet) breaks(ctx context.Context, s soakStep) (mend func() error, err error) {
	node := n.nodes[s.node]
	switch s.kind.name {
	case rendezvousKilled:
		n.Rendezvous().Kill()
		return func() error { return n.RestartRendezvous(ctx, nil) }, nil
	case agentKilled:
		node.Agent().Kill()
		return func() error { return node.StartAgent(ctx) }, nil
	case charonKilled, hubCharonKilled:
		node.KillCharon()
		return func() error {
			_, err := node.StartCharon(lab.CharonOptions{})
			return err
		}, nil
	case memberLeft:
		all := n.members
		n.members = slices.DeleteFunc(slices.Clone(all), func(i int) bool { return i == s.node })
		return func() error {
			n.members = all
			return n.apply(ctx)
		}, n.apply(ctx)
	case pathBlocked:
		other := n.nodes[s.other]
		return func() error { return n.SetPath(node.Host, other.Host, true) }, n.SetPath(node.Host, other.Host, false)
	case cablePulled:
		return func() error { return node.SetUp(true) }, node.SetUp(false)
	case rekeyed:
		return nil, n.rekey(ctx, s.node)
	}
	return n.breakRouter(n.routers[s.node-1], s.kind.name)
}

func (n *soakNet) breakRouter(r *lab.Router, kind string) (mend func() error, err error) {
	switch kind {
	case natRebooted:
		return nil, r.Reboot()
	case addressChanged:
		n.moves++
		return nil, r.SetPublicAddr(netip.AddrFrom4([4]byte{192, 0, 2, byte(n.moves%250 + 1)}))
	case natReplaced:
		n.kinds++
		return nil, r.SetNAT(soakNATs[n.kinds%len(soakNATs)])
	case lineCut:
		return func() error { return r.SetUp(true) }, r.SetUp(false)
	case lossyLine:
		lossy := edgeLine
		lossy.Loss = 0.2
		return func() error { return r.SetLink(edgeLine) }, r.SetLink(lossy)
	}
	return nil, fmt.Errorf("fault %q is not known", kind)
}

// rekey rekeys all that a node has established. What an event took away
// meanwhile is no error.
func (n *soakNet) rekey(ctx context.Context, node int) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	client := n.charons[node]
	sas, err := client.SAs(ctx, "")
	if err != nil {
		return err
	}
	for _, sa := range sas {
		if sa.State != charon.StateEstablished {
			continue
		}
		for _, c := range sa.Children {
			if c.State == charon.StateInstalled {
				err = errors.Join(err, gone(client.RekeyChild(ctx, c.ID)))
			}
		}
		err = errors.Join(err, gone(client.Rekey(ctx, sa.ID)))
	}
	return err
}

func gone(err error) error {
	if errors.Is(err, charon.ErrNotFound) {
		return nil
	}
	return err
}

// sample asks everybody. What does not answer is left out.
func (n *soakNet) sample(ctx context.Context) soakSample {
	s := soakSample{nodes: map[string]nodeSample{}, procs: map[procID]usage{}}
	n.mu.Lock()
	for _, i := range n.members {
		s.members = append(s.members, soakNode(i))
	}
	for i, node := range n.nodes {
		s.measure(procID{soakNode(i), "agent", node.Agent().PID()})
	}
	s.measure(procID{connector, "rendezvous", n.Rendezvous().PID()})
	n.mu.Unlock()
	for i := range n.nodes {
		s.nodes[soakNode(i)] = n.ask(ctx, i)
	}
	// A rendezvous that is down tells nothing, and owes no reasons.
	s.pairs, _ = n.Pairs(ctx)
	return s
}

func (s soakSample) measure(id procID) {
	if u, err := usageOf(id.pid); err == nil { // else it has ended
		s.procs[id] = u
	}
}

func (n *soakNet) ask(ctx context.Context, node int) nodeSample {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var s nodeSample
	infos, errConns := n.charons[node].Connections(ctx)
	sas, errSAs := n.charons[node].SAs(ctx, "")
	s.asked, s.sas = errConns == nil && errSAs == nil, sas
	for _, info := range infos {
		s.connections = append(s.connections, info.Name)
	}
	text, err := n.nodes[node].Run(ctx, "nft", "list", "table", "ip", "bodkin")
	if err == nil { // else there is none
		s.rewrites = rewritesIn(text)
	}
	return s
}

var ruleComment = regexp.MustCompile(`comment "([^"]+)"`)

// rewritesIn are the connections that a listed table has rules for.
func rewritesIn(table string) []string {
	var owners []string
	for line := range strings.Lines(table) {
		if m := ruleComment.FindStringSubmatch(line); m != nil && !slices.Contains(owners, m[1]) {
			owners = append(owners, m[1])
		}
	}
	return owners
}
