package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/bodkin-net/bodkin/agent/charon"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// PingTimeoutMax is the longest an answer may be waited for: less than what a
// command waits for the agent.
const PingTimeoutMax = 8 * time.Second

// PingAnswer is the answer to POST /v1/ping?peer=NAME; its JSON is stable.
type PingAnswer struct {
	Peer wire.NodeName `json:"peer"`
	// From is inside this node's subnets, To inside the peer's.
	From netip.Addr `json:"from"`
	To   netip.Addr `json:"to"`
	// Answered: an echo reply came, after RTTMs milliseconds.
	Answered bool    `json:"answered"`
	RTTMs    float64 `json:"rttMs,omitempty"`
	// Problem is what somebody on the way said instead: an ICMP error.
	Problem string `json:"problem,omitempty"`
	// State, Path and Relay are the tunnel's, as in TunnelStatus: what the packets
	// took.
	State string        `json:"state"`
	Path  wire.Path     `json:"path,omitzero"`
	Relay wire.NodeName `json:"relay,omitempty"`
}

// statusError is an error with the HTTP status that it is told with.
type statusError struct {
	status int
	error
}

func statusf(status int, format string, args ...any) error {
	return statusError{status, fmt.Errorf(format, args...)}
}

// ping sends one echo request to a peer and waits for the reply. It is called on a
// goroutine of its own.
func (d *Daemon) ping(ctx context.Context, name wire.NodeName, timeout time.Duration) (*PingAnswer, error) {
	peer, tunnel, err := d.peerOf(ctx, name)
	if err != nil {
		return nil, err
	}
	answer := &PingAnswer{Peer: name, State: tunnel.State, Path: tunnel.Path, Relay: tunnel.Relay}
	if tunnel.State == stateDown {
		return nil, statusf(http.StatusConflict, "%s is down: %s", name, tunnel.Reason)
	}
	var ok bool
	if answer.From, answer.To, ok = probeAddrs(pingChildren(d.id.endpoint, peer, tunnel.State), localPrefixes()); !ok {
		return nil, statusf(http.StatusConflict, "no address of this node is inside its own subnets (%v), so nothing from here enters the tunnel with %s", d.id.endpoint.Subnets, name)
	}
	rtt, err := echo(ctx, answer.From, answer.To, timeout)
	switch {
	case err == nil:
		answer.Answered, answer.RTTMs = true, float64(rtt.Microseconds())/1000
	case errors.Is(err, errNoEcho):
	default:
		if answer.Problem = icmpError(err); answer.Problem == "" {
			return nil, fmt.Errorf("ping from %s to %s: %w", answer.From, answer.To, err)
		}
	}
	// The tunnel may have changed meanwhile: what is told is what an answer took.
	if _, now, err := d.peerOf(ctx, name); err == nil {
		answer.State, answer.Path, answer.Relay = now.State, now.Path, now.Relay
	}
	return answer, nil
}

// pingChildren are the selectors that a ping may choose its addresses from. The
// peer's own addresses answer more surely than the first one of its pods', but the
// relay is for subnets alone.
func pingChildren(self, peer wire.Endpoint, state string) []charon.Child {
	children := carriers(self, peer)
	if state == stateDirect {
		single := func(c charon.Child) bool {
			return slices.ContainsFunc(c.RemoteTS, netip.Prefix.IsSingleIP)
		}
		slices.SortStableFunc(children, func(a, b charon.Child) int {
			switch {
			case single(a) == single(b):
				return 0
			case single(a):
				return -1
			}
			return 1
		})
		return children
	}
	return slices.DeleteFunc(children, func(c charon.Child) bool {
		return !slices.Equal(c.LocalTS, self.Subnets) || !slices.Equal(c.RemoteTS, peer.Subnets)
	})
}

// peerOf is what the daemon knows of a peer.
func (d *Daemon) peerOf(ctx context.Context, name wire.NodeName) (peer wire.Endpoint, s TunnelStatus, err error) {
	err = d.inDaemon(ctx, func() {
		if t := d.tunnels[name]; t != nil {
			peer, s = t.peer.Endpoint, t.status(d.relay())
		}
	})
	if err == nil && s.Peer == "" {
		err = statusf(http.StatusNotFound, "%s is no peer of %s: no community holds both", name, d.id.endpoint.Name)
	}
	return peer, s, err
}

// errNoEcho: nothing came back in time.
var errNoEcho = errors.New("no answer")

// echoHeader is the length of an echo's header, in bytes: type, code, checksum,
// identifier, sequence number.
const echoHeader = 8

// echo sends an ICMP echo request (RFC 792, RFC 4443) and returns how long the
// reply took.
func echo(ctx context.Context, from, to netip.Addr, timeout time.Duration) (time.Duration, error) {
	network, request, reply := "ip4:icmp", byte(8), byte(0)
	if from.Is6() {
		network, request, reply = "ip6:ipv6-icmp", 128, 129
	}
	conn, err := net.DialIP(network, &net.IPAddr{IP: from.AsSlice()}, &net.IPAddr{IP: to.AsSlice()})
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })() // fails only when closed
	if err := conn.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return 0, err
	}
	id := uint16(rand.N(1<<16 - 1))
	sent := time.Now()
	if _, err := conn.Write(echoMessage(request, id)); err != nil {
		return 0, err
	}
	buf := make([]byte, 1<<10)
	for {
		n, _, err := conn.ReadFrom(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) || ctx.Err() == nil && !isTimeout(err) {
				return 0, err
			}
			return 0, errNoEcho
		}
		if n >= echoHeader && buf[0] == reply && binary.BigEndian.Uint16(buf[4:]) == id {
			return time.Since(sent), nil
		}
	}
}

// icmpError is what the kernel makes of an ICMP error (RFC 1122 section 4.1.3.3),
// in its words; empty for another error.
func icmpError(err error) string {
	switch errno, _ := errors.AsType[syscall.Errno](err); errno {
	case syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EACCES:
		return errno.Error()
	}
	return ""
}

func isTimeout(err error) bool {
	t, ok := errors.AsType[net.Error](err)
	return ok && t.Timeout()
}
