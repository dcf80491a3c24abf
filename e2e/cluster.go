// Package e2e runs the whole of Bodkin on real parts: the built binary, real
// charon daemons and real NATs, in the lab's network namespaces. Its tests and
// the demo, matrix and benchmark programs share what is here.
package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

// Ports of the rendezvous and of charon in the lab.
const (
	signalPort = 7443
	ikePort    = 4500
)

// stunPorts are the two that agents ask, and behind each the one that answers
// from elsewhere come from.
var stunPorts = []uint16{3478, 3479, 3480, 3481}

// connectorAddr6 is the connector's IPv6 address, where it has one.
var connectorAddr6 = netip.MustParseAddr("2001:db8::c")

// StatusAddr is the rendezvous' status listener, on its own host's loopback.
const StatusAddr = "127.0.0.1:7480"

// poll is between looks at something that is about to happen.
const poll = 20 * time.Millisecond

// fwmark is what charon's own socket carries in a lab where ESP is done in user
// space: packets without it to a selector's addresses go into the tunnel.
const fwmark = 0x42

// Cluster is a FabEdge cluster in a lab: a connector with the rendezvous, and
// edges.
type Cluster struct {
	*lab.Lab
	Name      string
	Connector *Node
	// PublicAddr and PublicPort are where edges reach the connector's charon,
	// PublicAddr6 as well if it is not zero.
	PublicAddr  netip.Addr
	PublicAddr6 netip.Addr
	PublicPort  uint16
	// AdminSocket is where the rendezvous takes changes.
	AdminSocket string

	bin        string
	host       *lab.Host // the connector's
	rendezvous *lab.Process
	config     string
	admin      *http.Client
	logLevel   string
	mark       int // of charon's socket, 0 for none
	next       int
	nodes      map[string]*Node
}

// Node is a machine with charon and an agent.
type Node struct {
	*lab.Host
	// Name is cluster.host, Pod an address inside Subnet.
	Name   string
	Subnet netip.Prefix
	Pod    netip.Addr

	cluster *Cluster
	config  string
	agent   *lab.Process
	joins   int // how many were started
}

// ClusterOptions describe a cluster.
type ClusterOptions struct {
	Lab lab.Options
	// Bin is the built binary.
	Bin string
	// PublicPort other than 4500 puts the connector behind a router that maps
	// it to 4500, as in FabEdge's article.
	PublicPort uint16
	// IPv6 makes the connector dual-stack. It needs public port 4500.
	IPv6 bool
	// Link is the connector's.
	Link     lab.Link
	LogLevel string
	// CommunitiesDir is passed to the rendezvous.
	CommunitiesDir string
	// NoRelay leaves what is not direct down.
	NoRelay bool
	// OwnCA has the rendezvous make a CA with `bodkin rendezvous init`, and the
	// nodes join with tokens. Otherwise the lab's CA is an existing one.
	OwnCA bool
	// NoConnector leaves the connector without charon and agent.
	NoConnector bool
	// Rendezvous is appended to the rendezvous' configuration.
	Rendezvous string
}

// NewCluster starts a lab with a connector, and on it charon, the rendezvous
// and an agent. Close must be called, on error too if the cluster is not nil.
func NewCluster(ctx context.Context, o ClusterOptions) (*Cluster, error) {
	l, err := lab.New(ctx, o.Lab)
	if err != nil {
		return nil, err
	}
	c := &Cluster{Lab: l, Name: "beijing", bin: o.Bin, PublicPort: ikePort, logLevel: o.LogLevel, nodes: map[string]*Node{}}
	if c.logLevel == "" {
		c.logLevel = "debug"
	}
	if !o.Lab.KernelESP {
		c.mark = fwmark
	}
	host, err := c.connectorHost(o)
	if err != nil {
		return c, err
	}
	c.host = host
	if err := host.EnableForwarding(); err != nil { // it relays between edges
		return c, err
	}
	if err := c.startRendezvous(ctx, host, o); err != nil {
		return c, err
	}
	if o.NoConnector {
		return c, nil
	}
	if o.OwnCA {
		c.Connector, err = c.joinNode(ctx, host, "connector", "Connector")
		return c, err
	}
	c.Connector, err = c.addNode(ctx, host, "connector", "Connector")
	return c, err
}

// connectorHost is a host on the internet, or behind a port mapping.
func (c *Cluster) connectorHost(o ClusterOptions) (*lab.Host, error) {
	if o.PublicPort == 0 || o.PublicPort == ikePort {
		if o.IPv6 {
			c.PublicAddr6 = connectorAddr6
		}
		h, err := c.Host("connector", lab.HostOptions{Addr6: c.PublicAddr6})
		if err != nil {
			return nil, err
		}
		c.PublicAddr = h.Addr()
		return h, h.SetLink(o.Link)
	}
	r, err := c.Router("gateway", lab.RouterOptions{NAT: lab.PortRestricted})
	if err != nil {
		return nil, err
	}
	if err := r.SetLink(o.Link); err != nil {
		return nil, err
	}
	h, err := c.Host("connector", lab.HostOptions{Router: r})
	if err != nil {
		return nil, err
	}
	c.PublicAddr, c.PublicPort = r.WAN(), o.PublicPort
	if err := r.ForwardPort("udp", o.PublicPort, h, ikePort); err != nil {
		return nil, err
	}
	if err := r.ForwardPort("tcp", signalPort, h, signalPort); err != nil {
		return nil, err
	}
	for _, port := range stunPorts {
		if err := r.ForwardPort("udp", port, h, port); err != nil {
			return nil, err
		}
	}
	return h, nil
}

func (c *Cluster) startRendezvous(ctx context.Context, h *lab.Host, o ClusterOptions) error {
	credentials, err := c.rendezvousCredentials(ctx, h, o)
	if err != nil {
		return err
	}
	c.AdminSocket = filepath.Join(h.Dir(), "rdv.sock")
	c.config = filepath.Join(h.Dir(), "rendezvous.yaml")
	conf := fmt.Sprintf("%sstore: %s\nadminSocket: %s\nlogLevel: %s\ncommunitiesDir: %q\nstatus: %s\n%s",
		credentials, filepath.Join(h.Dir(), "rendezvous.db"), c.AdminSocket, c.logLevel, o.CommunitiesDir, StatusAddr, o.Rendezvous)
	if o.NoRelay {
		conf += "relay:\n  enabled: false\n"
	}
	if c.PublicAddr6.IsValid() {
		conf += fmt.Sprintf("publicAddresses: %s\n", yamlList(c.publicAddrs()))
	}
	if err := os.WriteFile(c.config, []byte(conf), 0o600); err != nil {
		return err
	}
	c.admin = overUnix(c.AdminSocket)
	return c.RestartRendezvous(ctx, h)
}

// overUnix asks whoever serves a unix socket, whatever the host in the URL.
func overUnix(socket string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
}

// rendezvousCredentials are the keys of a configuration for what the rendezvous
// proves itself with, after they were made.
func (c *Cluster) rendezvousCredentials(ctx context.Context, h *lab.Host, o ClusterOptions) (string, error) {
	if o.OwnCA {
		return c.initRendezvous(ctx, h)
	}
	cert, key, err := c.PKI().Issue("rendezvous."+c.Name, lab.CertOptions{Addrs: append(c.publicAddrs(), h.Addr())})
	return fmt.Sprintf("certificate: %s\nkey: %s\nca: %s\n", cert, key, c.PKI().CAPath()), err
}

// publicAddrs are where the connector can be reached, IPv4 first.
func (c *Cluster) publicAddrs() []netip.Addr {
	addrs := []netip.Addr{c.PublicAddr}
	if c.PublicAddr6.IsValid() {
		addrs = append(addrs, c.PublicAddr6)
	}
	return addrs
}

// yamlList quotes, for an IPv6 address has colons.
func yamlList[T fmt.Stringer](items []T) string {
	quoted := make([]string, len(items))
	for i, item := range items {
		quoted[i] = strconv.Quote(item.String())
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// RestartRendezvous kills a running rendezvous (SIGKILL) and starts it again on
// the same store. h is nil for where it ran before.
func (c *Cluster) RestartRendezvous(ctx context.Context, h *lab.Host) error {
	if h == nil {
		h = c.host
	}
	if c.rendezvous != nil {
		c.rendezvous.Kill()
	}
	var err error
	if c.rendezvous, err = h.Start(ctx, "rendezvous", nil, c.bin, "rendezvous", "--config", c.config); err != nil {
		return err
	}
	return c.until(ctx, "the rendezvous answers", func() (bool, error) {
		var health any
		return c.get(ctx, "/healthz", &health) == nil, ended(c.rendezvous)
	})
}

// ended is an error with the log's tail when the process is not running.
func ended(p *lab.Process) error {
	select {
	case <-p.Done():
		return fmt.Errorf("process ended:\n%s", p.Log())
	default:
		return nil
	}
}

// AddEdge adds an edge on a router's LAN, or with r nil on the internet itself,
// with charon and agent running.
func (c *Cluster) AddEdge(ctx context.Context, name string, r *lab.Router) (*Node, error) {
	return c.AddEdgeAt(ctx, name, lab.HostOptions{Router: r})
}

// AddEdgeAt adds an edge anywhere, with charon and agent running. One without
// IPv4 needs a cluster with IPv6.
func (c *Cluster) AddEdgeAt(ctx context.Context, name string, at lab.HostOptions) (*Node, error) {
	h, err := c.Host(name, at)
	if err != nil {
		return nil, err
	}
	return c.addNode(ctx, h, name, "Edge")
}

func (c *Cluster) addNode(ctx context.Context, h *lab.Host, name, typ string) (*Node, error) {
	n, err := c.prepareNode(h, name, typ)
	if err != nil {
		return nil, err
	}
	return n, n.StartAgent(ctx)
}

// newNode makes a node of a host: charon runs and knows nothing.
func (c *Cluster) newNode(h *lab.Host, name string) (*Node, error) {
	n := &Node{Host: h, Name: c.Name + "." + name, cluster: c}
	n.Subnet = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 233, byte(64 + c.next), 0}), 24)
	n.Pod = n.Subnet.Addr().Next()
	c.next++
	if err := h.AddAddress(netip.PrefixFrom(n.Pod, 24)); err != nil {
		return nil, err
	}
	if _, err := h.StartCharon(lab.CharonOptions{}); err != nil {
		return nil, err
	}
	c.nodes[n.Name] = n
	return n, nil
}

// prepareNode makes a node of a host: all but the agent runs.
func (c *Cluster) prepareNode(h *lab.Host, name, typ string) (*Node, error) {
	n, err := c.newNode(h, name)
	if err != nil {
		return nil, err
	}
	cert, key, err := c.PKI().Issue(n.Name, lab.CertOptions{})
	if err != nil {
		return nil, err
	}
	conf := fmt.Sprintf("rendezvous: https://%s\ncertificate: %s\nkey: %s\nca: %s\nviciSocket: %s\nmark: %d\nsocket: %s\nstateDir: %s\nlogLevel: %s\n"+
		"endpoint:\n  type: %s\n  subnets: [%s]\n  nodeSubnets: %s\n",
		c.rendezvousFor(h, typ), cert, key, c.PKI().CAPath(), h.VICISocket(), c.mark, n.Socket(), filepath.Join(h.Dir(), "state"), c.logLevel,
		typ, n.Subnet, yamlList(c.nodeSubnets(h, typ)))
	if typ == "Connector" {
		conf += fmt.Sprintf("  publicAddresses: %s\n  port: %d\n", yamlList(c.publicAddrs()), c.PublicPort)
	}
	n.config = filepath.Join(h.Dir(), "agent.yaml")
	if err := os.WriteFile(n.config, []byte(conf), 0o600); err != nil {
		return nil, err
	}
	return n, nil
}

// nodeSubnets are the host's own address, which the other nodes' pods may talk
// to. ESP in user space routes by destination alone: with an edge's public
// address among its selectors, what the rendezvous sends to that edge would end
// in the tunnel.
func (c *Cluster) nodeSubnets(h *lab.Host, typ string) []netip.Prefix {
	public := h.Outside() == h || h.Addr().Is6()
	if c.mark != 0 && public && typ != "Connector" {
		return nil
	}
	return []netip.Prefix{netip.PrefixFrom(h.Addr(), h.Addr().BitLen())}
}

// rendezvousFor is where a host reaches the rendezvous: in its own family, and
// on the connector itself not by a port mapping, which need not work from
// inside.
func (c *Cluster) rendezvousFor(h *lab.Host, typ string) netip.AddrPort {
	addr := c.PublicAddr
	switch {
	case typ == "Connector":
		addr = h.Addr()
	case h.Addr().Is6():
		addr = c.PublicAddr6
	}
	return netip.AddrPortFrom(addr, signalPort)
}

// Socket is the agent's unix socket.
func (n *Node) Socket() string { return filepath.Join(n.Dir(), "agent.sock") }

// ConfigFile is the agent's configuration.
func (n *Node) ConfigFile() string { return n.config }

// StartAgent starts the node's agent, with flags besides --config.
func (n *Node) StartAgent(ctx context.Context, flags ...string) (err error) {
	argv := append([]string{n.cluster.bin, "agent", "--config", n.config}, flags...)
	n.agent, err = n.Start(ctx, "agent", nil, argv...)
	return err
}

// Agent is the agent's process.
func (n *Node) Agent() *lab.Process { return n.agent }

// Rendezvous is the rendezvous' process.
func (c *Cluster) Rendezvous() *lab.Process { return c.rendezvous }

// WriteSwanctl replaces the node's swanctl.conf.
func (n *Node) WriteSwanctl(text string) error {
	if err := os.MkdirAll(n.SwanctlDir(), 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(n.SwanctlDir(), "swanctl.conf"), []byte(text), 0o600)
}

// FreeAddr is a public address nobody in the lab has.
func (c *Cluster) FreeAddr() netip.Addr { return freeAddr }

var freeAddr = netip.MustParseAddr("198.51.100.77")
