package main

import (
	"context"
	"slices"
	"time"

	"github.com/bodkin-net/bodkin/e2e"
	"github.com/bodkin-net/bodkin/e2e/lab"
)

// diagram is the demo's network as sites and openCluster build it.
const diagram = `
                    the lab's internet: two routers on every way
        ┌───────────────────┬──────────┴────────┬────────────────────┐
 ┌──────┴──────┐   ┌────────┴────────┐   ┌──────┴──────┐   ┌─────────┴──────────┐
 │   gateway   │   │      nat1       │   │    nat2     │   │        nat3        │
 │ 45000→4500  │   │ port-restricted │   │  symmetric  │   │     full cone      │
 └──────┬──────┘   └────────┬────────┘   └──────┬──────┘   └────┬──────────┬────┘
    connector             edge1               edge2           edge3      edge4
    rendezvous
`

// site is a NAT with the edges on its LAN.
type site struct {
	router string
	nat    lab.NATKind
	edges  []string
}

// sites has a NAT that lets a symmetric one through, nat3, and one that does
// not, nat1. nat3 is a full cone because that is also what discovery can tell
// from a rendezvous with one address.
var sites = []site{
	{"nat1", lab.PortRestricted, []string{"edge1"}},
	{"nat2", lab.Symmetric, []string{"edge2"}},
	{"nat3", lab.FullCone, []string{"edge3", "edge4"}},
}

// cluster is the first part of every node's name, connector one host's.
const (
	cluster   = "beijing"
	connector = "connector"
)

// publicPort is where the article's gateway takes IKE for the connector.
const publicPort = 45000

// Delays, one way: lines as people have them, so that times are not those of a
// machine talking to itself.
var (
	connectorLine = lab.Link{Delay: 2 * time.Millisecond}
	edgeLine      = lab.Link{Delay: 10 * time.Millisecond}
)

// nodePair is a pair by its hosts' names.
type nodePair [2]string

// cutPair is the pair whose way is cut to show what happens then.
var cutPair = nodePair{"edge1", "edge3"}

// demoPairs are all pairs there shall be: the edges among each other, as the
// community says, and each with the connector, as FabEdge does.
func demoPairs() []nodePair {
	edges := edgeNames()
	var pairs []nodePair
	for i, a := range edges {
		for _, b := range edges[i+1:] {
			pairs = append(pairs, nodePair{a, b})
		}
	}
	for _, e := range edges {
		pairs = append(pairs, nodePair{e, connector})
	}
	return pairs
}

// communityFile is the article's all-edges.yaml with the demo's edges.
func communityFile() string {
	text := "apiVersion: fabedge.io/v1alpha1\nkind: Community\nmetadata:\n  name: all-edges\nspec:\n  members:\n"
	for _, e := range edgeNames() {
		text += "    - " + cluster + "." + e + "\n"
	}
	return text
}

func edgeNames() []string {
	var names []string
	for _, s := range sites {
		names = append(names, s.edges...)
	}
	return names
}

// network is the demo's cluster with its nodes and NATs by host name.
type network struct {
	*e2e.Cluster
	nodes map[string]*e2e.Node
	nats  map[string]*lab.Router
}

// openNetwork starts the lab with the connector alone. Unless the network is
// nil it must be closed, on error too.
func openNetwork(ctx context.Context, bin string) (*network, error) {
	c, err := e2e.NewCluster(ctx, e2e.ClusterOptions{
		Bin: bin, PublicPort: publicPort, Link: connectorLine, LogLevel: "info",
	})
	if c == nil {
		return nil, err
	}
	return &network{
		Cluster: c,
		nodes:   map[string]*e2e.Node{connector: c.Connector},
		nats:    map[string]*lab.Router{},
	}, err
}

// addSites starts the edges behind their NATs.
func (n *network) addSites(ctx context.Context) error {
	for _, s := range sites {
		r, err := n.Router(s.router, lab.RouterOptions{NAT: s.nat})
		if err != nil {
			return err
		}
		if err := r.SetLink(edgeLine); err != nil {
			return err
		}
		n.nats[s.router] = r
		for _, name := range s.edges {
			if n.nodes[name], err = n.AddEdge(ctx, name, r); err != nil {
				return err
			}
		}
	}
	return nil
}

// all lists the nodes, the connector first.
func (n *network) all() []*e2e.Node {
	nodes := []*e2e.Node{n.Connector}
	for _, name := range edgeNames() {
		nodes = append(nodes, n.nodes[name])
	}
	return nodes
}

// find picks a pair out of what the rendezvous lists, nil if it is not there.
func (n *network) find(pairs []e2e.Pair, p nodePair) *e2e.Pair {
	a, b := n.nodes[p[0]].Name, n.nodes[p[1]].Name
	i := slices.IndexFunc(pairs, func(q e2e.Pair) bool {
		return q.Nodes == [2]string{a, b} || q.Nodes == [2]string{b, a}
	})
	if i < 0 {
		return nil
	}
	return &pairs[i]
}
