package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/strongswan/govici/vici"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

const (
	// mediationPoll is between looks at charon's SAs.
	mediationPoll = 20 * time.Millisecond
	// mediationTimeout is for an SA to come or go, repetitions included.
	mediationTimeout = 20 * time.Second
	// swanctlTimeout is the same for swanctl, in its own notation.
	swanctlTimeout = "20"
)

// mediation is the anchor: strongSwan's IKEv2 mediation extension the way
// FabEdge uses it with connectorAsMediator. A mediation server on a public
// address, and two clients behind NATs that keep an SA with it; one of them
// initiates the connection to the other through it.
type mediation struct {
	left, right mediated
	initiator   *vici.Session
}

// mediated is a client of the mediation server.
type mediated struct {
	side
	node string // its certificate's name
}

// Names in swanctl.conf must not have dots, so these do without the cluster.
const (
	mediatorConn = "mediator"
	mediatedConn = "peer"
	mediatedNet  = "peer-p2p"
)

// mediationOptions say where the two clients stand.
type mediationOptions struct {
	nats [2]lab.NATKind
	link lab.Link
	// dpd is charon's dead peer detection delay, 0 for none.
	dpd time.Duration
}

// newMediation starts server and clients in l, and returns when both mediation
// SAs are up.
func newMediation(ctx context.Context, l *lab.Lab, o mediationOptions) (*mediation, error) {
	server, err := l.Host("med", lab.HostOptions{})
	if err != nil {
		return nil, err
	}
	const serverNode = "beijing.mediator"
	if _, err := server.StartCharon(lab.CharonOptions{Node: serverNode, Swanctl: mediatorConf(serverNode)}); err != nil {
		return nil, err
	}
	m := &mediation{left: mediated{node: "beijing.left"}, right: mediated{node: "beijing.right"}}
	for i, end := range []*mediated{&m.left, &m.right} {
		end.pods = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 234, byte(i), 0}), 24)
		end.pod = end.pods.Addr().Next()
		if err := end.build(l, fmt.Sprintf("m%d", i), o.nats[i], o.link); err != nil {
			return nil, err
		}
	}
	for _, ends := range [][2]*mediated{{&m.left, &m.right}, {&m.right, &m.left}} {
		conf := mediatedConf(server.Addr(), serverNode, *ends[0], *ends[1], o.dpd)
		if err := ends[0].register(ctx, conf); err != nil {
			return nil, err
		}
	}
	m.initiator, err = vici.NewSession(vici.WithAddr("unix", m.left.host.VICISocket()))
	return m, err
}

// build makes the client's router and host.
func (e *mediated) build(l *lab.Lab, name string, kind lab.NATKind, link lab.Link) (err error) {
	if e.router, err = l.Router(name+"x", lab.RouterOptions{NAT: kind}); err != nil {
		return err
	}
	if err := e.router.SetLink(link); err != nil {
		return err
	}
	if e.host, err = l.Host(name, lab.HostOptions{Router: e.router}); err != nil {
		return err
	}
	return e.host.AddAddress(netip.PrefixFrom(e.pod, 24))
}

// register starts the client's charon and returns when its mediation SA is up.
func (e *mediated) register(ctx context.Context, conf string) error {
	if _, err := e.host.StartCharon(lab.CharonOptions{Node: e.node, Swanctl: conf}); err != nil {
		return err
	}
	if out, err := e.host.Swanctl(ctx, "--initiate", "--ike", mediatorConn, "--timeout", swanctlTimeout); err != nil {
		return fmt.Errorf("mediation SA of %s: %w: %s", e.node, err, out)
	}
	return nil
}

func (m *mediation) Close() error {
	if m.initiator == nil {
		return nil
	}
	return m.initiator.Close()
}

// initiate asks the left charon for the tunnel and does not wait for it.
func (m *mediation) initiate(context.Context) error {
	in := vici.NewMessage()
	err := errors.Join(in.Set("ike", mediatedConn), in.Set("child", mediatedNet), in.Set("timeout", "-1"))
	if err != nil {
		return err
	}
	if _, err := m.initiator.CommandRequest("initiate", in); err != nil {
		return fmt.Errorf("initiate %s: %w", mediatedNet, err)
	}
	return nil
}

// run measures one tunnel, and takes it away again.
func (m *mediation) run(ctx context.Context) (time.Duration, error) {
	took, err := timeToPing(ctx, m.left.host, m.left.pod, m.right.pod, m.initiate)
	if err != nil {
		return 0, fmt.Errorf("mediation: %w", err)
	}
	return took, m.reset(ctx)
}

// reset ends the tunnel at both ends and makes the NATs forget it; the
// mediation SAs stay.
func (m *mediation) reset(ctx context.Context) error {
	if out, err := m.left.host.Swanctl(ctx, "--terminate", "--ike", mediatedConn, "--timeout", swanctlTimeout); err != nil {
		return fmt.Errorf("terminate: %w: %s", err, out)
	}
	for _, end := range []mediated{m.left, m.right} {
		if err := end.waitGone(ctx, mediatedConn); err != nil {
			return err
		}
	}
	return forgetFlows(ctx, m.left.router, m.right.router)
}

func (e mediated) waitGone(ctx context.Context, conn string) error {
	ctx, cancel := context.WithTimeout(ctx, mediationTimeout)
	defer cancel()
	ticker := time.NewTicker(mediationPoll)
	defer ticker.Stop()
	for {
		out, err := e.host.Swanctl(ctx, "--list-sas", "--ike", conn)
		if err != nil {
			return err
		}
		if !strings.Contains(out, conn+":") {
			return nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("%s of %s is still there: %w: %s", conn, e.node, ctx.Err(), out)
		}
	}
}

func subject(node string) string { return fmt.Sprintf("%q", "C=CN, O=fabedge.io, CN="+node) }

func mediatorConf(node string) string {
	return fmt.Sprintf(`connections {
  %s {
    version = 2
    mediation = yes
    local {
      auth = pubkey
      certs = node.pem
      id = %s
    }
    remote {
      auth = pubkey
    }
  }
}
`, mediatorConn, subject(node))
}

// mediatedConf has the shape of Bodkin's own connections where mediation does
// not need another: ports, proposals, selectors.
func mediatedConf(server netip.Addr, serverNode string, self, peer mediated, dpd time.Duration) string {
	return fmt.Sprintf(`connections {
  %[1]s {
    version = 2
    mediation = yes
    mobike = no
    dpd_delay = %[12]ds
    local_port = 4500
    remote_port = 4500
    remote_addrs = %[2]s
    local {
      auth = pubkey
      certs = node.pem
      id = %[3]s
    }
    remote {
      auth = pubkey
      id = %[4]s
    }
  }
  %[5]s {
    version = 2
    mobike = no
    dpd_delay = %[12]ds
    local_port = 4500
    proposals = %[10]s
    mediated_by = %[1]s
    mediation_peer = %[6]s
    local {
      auth = pubkey
      certs = node.pem
      id = %[3]s
    }
    remote {
      auth = pubkey
      id = %[6]s
    }
    children {
      %[7]s {
        local_ts = %[8]s
        remote_ts = %[9]s
        esp_proposals = %[11]s
      }
    }
  }
}
`, mediatorConn, server, subject(self.node), subject(serverNode), mediatedConn, subject(peer.node),
		mediatedNet, self.pods, peer.pods, ikeProposals, espProposals, int(dpd.Seconds()))
}
