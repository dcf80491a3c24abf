package agent

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bodkin-net/bodkin/agent/charon"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// servedDaemon is a daemon without charon whose goroutine does nothing but what
// the API asks it for, and a client of it.
func servedDaemon(t *testing.T) (*Daemon, func(method, path string) (int, string)) {
	t.Helper()
	d := testDaemon(t, "store")
	d.id.endpoint = wire.Endpoint{Name: "a.self", Subnets: prefixList("203.0.113.0/24")}
	d.id.current.Store(&credentials{leaf: &x509.Certificate{SerialNumber: big.NewInt(7), NotBefore: t0, NotAfter: t0.Add(24 * time.Hour)}})
	d.queries, d.answering = make(chan func()), make(chan struct{}, answersAtOnce)
	d.signalling = &link{}
	d.renewal, d.reissue = newRenewal(nil), newReissue()
	d.filter = newForwardFilter(discardLog)
	d.vici = charon.New(charon.Options{Socket: filepath.Join(t.TempDir(), "absent.vici")})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = d.vici.Run(ctx) })
	running.Go(func() {
		for {
			select {
			case q := <-d.queries:
				q()
			case <-ctx.Done():
				return
			}
		}
	})
	running.Go(func() {
		for range d.vici.Events() {
		}
	})
	srv := httptest.NewServer(d.apiHandler())
	t.Cleanup(func() { srv.Close(); cancel(); running.Wait() })
	return d, func(method, path string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, srv.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
}

// What the API cannot do it says in one line, with the status that the command
// line makes an exit code of.
func TestAPIErrors(t *testing.T) {
	d, ask := servedDaemon(t)
	d.tunnels["a.peer"] = newTunnel(icePeer, "store", t0)
	d.tunnels["a.up"] = newTunnel(wire.Peer{Plan: wire.PlanICE, Endpoint: wire.Endpoint{Name: "a.up", Subnets: prefixList("198.51.100.0/24")}}, "store", t0)
	d.tunnels["a.up"].standing = true
	for _, tt := range []struct {
		method, path string
		status       int
		want         string
	}{
		{"GET", "/v1/sas", http.StatusServiceUnavailable, "charon is not reachable"},
		{"POST", "/v1/ping?peer=a.stranger", http.StatusNotFound, "a.stranger is no peer of a.self"},
		{"POST", "/v1/ping?peer=a.peer", http.StatusConflict, "is down: waiting for the rendezvous"},
		{"POST", "/v1/ping?peer=a.up", http.StatusConflict, "no address of this node is inside its own subnets"},
		{"POST", "/v1/ping?peer=a.up&timeout=1h", http.StatusUnprocessableEntity, "want some time up to"},
		{"POST", "/v1/ping?peer=a.up&timeout=soon", http.StatusUnprocessableEntity, "want some time up to"},
		{"GET", "/v1/ping?peer=a.up", http.StatusMethodNotAllowed, ""},
		{"GET", "/v1/nothing", http.StatusNotFound, ""},
	} {
		status, body := ask(tt.method, tt.path)
		var e struct{ Error string }
		if tt.want != "" && json.Unmarshal([]byte(body), &e) != nil {
			t.Errorf("%s: %s is no JSON", tt.path, body)
		}
		if status != tt.status || !strings.Contains(e.Error, tt.want) || strings.Contains(e.Error, "\n") {
			t.Errorf("%s %s: %d %s; want %d, %q", tt.method, tt.path, status, body, tt.status, tt.want)
		}
	}
}

func TestAPIStatus(t *testing.T) {
	d, ask := servedDaemon(t)
	d.tunnels["a.peer"] = newTunnel(icePeer, "store", t0)
	status, body := ask("GET", "/v1/status")
	var s Status
	if err := json.Unmarshal([]byte(body), &s); err != nil || status != http.StatusOK || s.Node != "a.self" || len(s.Tunnels) != 1 || s.Tunnels[0].State != stateDown {
		t.Errorf("%d, %v:\n%s", status, err, body)
	}
}

func TestMetrics(t *testing.T) {
	d, ask := servedDaemon(t)
	d.tunnels["a.peer"] = newTunnel(icePeer, "store", t0)
	report := func(attempt wire.AttemptID, o wire.Outcome) *wire.Report {
		return &wire.Report{Peer: "a.peer", Attempt: attempt, Outcome: o}
	}
	d.counts.told(report("1", wire.OutcomeNominated), wire.StrategyOpeners)
	d.counts.told(report("1", wire.OutcomeDirect), wire.StrategyOpeners)
	d.counts.told(report("1", wire.OutcomeDirect), wire.StrategyOpeners) // over a better path
	d.counts.told(report("", wire.OutcomeDirect), wire.StrategyICE)      // the connector's
	// An attempt that fails is counted, too: its order is gone by the time it is told.
	d.perform(t.Context(), d.tunnels["a.peer"], d.tunnels["a.peer"].ordered(t0, &wire.Punch{Attempt: "2", Peer: icePeer}, 1)[:0])
	d.perform(t.Context(), d.tunnels["a.peer"], d.tunnels["a.peer"].failed(t0, 1, "no path", false))
	if _, err := d.vici.SAs(t.Context(), ""); err == nil {
		t.Fatal("there is no charon")
	}
	status, body := ask("GET", "/metrics")
	for _, want := range []string{
		`bodkin_agent_tunnels{state="down"} 1`, `bodkin_agent_tunnels{state="direct"} 0`, `bodkin_agent_tunnels{state="relayed"} 0`,
		"bodkin_agent_connected 1", "bodkin_agent_charon_connected 0", "bodkin_agent_keepalive_bytes_total 0",
		`bodkin_agent_punch_total{strategy="ice",outcome="failed"} 1`, `bodkin_agent_punch_total{strategy="openers",outcome="direct"} 1`,
		fmt.Sprintf("bodkin_agent_certificate_expiry_timestamp_seconds %g", float64(d.id.credentials().leaf.NotAfter.Unix())),
		"# TYPE bodkin_agent_vici_errors_total counter",
	} {
		if status != http.StatusOK || !strings.Contains(body, want+"\n") {
			t.Errorf("%d: no %q in\n%s", status, want, body)
		}
	}
}

func TestMetricFormat(t *testing.T) {
	m := gaugeOf("x", "An x.")
	m.add(1.5, "a", "with \"quotes\"\nand \\", "b", "")
	if got, want := m.samples[0], `x{a="with \"quotes\"\nand \\",b=""} 1.5`; got != want {
		t.Errorf("%s; want %s", got, want)
	}
}

func TestReplies(t *testing.T) {
	d, _ := servedDaemon(t)
	r := d.replyTo(t.Context(), &wire.Ask{ID: "1", Question: "weather"})
	if r.ID != "1" || r.Body != nil || !strings.Contains(r.Error, `does not know the question "weather"`) || r.Validate() != nil {
		t.Errorf("%+v", r)
	}
	if r = d.replyTo(t.Context(), &wire.Ask{ID: "2", Question: wire.AskSAs}); r.Body != nil || !strings.Contains(r.Error, "charon") || r.Validate() != nil {
		t.Errorf("without charon: %+v", r)
	}
	// Questions beyond what a node works on at a time are answered at once.
	replies := make(chan *wire.Reply, 1)
	d.link.send = func(m wire.Message) { replies <- m.(*wire.Reply) }
	for range answersAtOnce {
		d.answering <- struct{}{}
	}
	d.answer(t.Context(), &wire.Ask{ID: "3", Question: wire.AskSAs})
	if r := receive(t, replies, "the answer"); r.ID != "3" || !strings.Contains(r.Error, "busy") {
		t.Errorf("%+v", r)
	}
	<-d.answering
	d.answer(t.Context(), &wire.Ask{ID: "4", Question: wire.AskSAs})
	if r := receive(t, replies, "the answer"); r.ID != "4" || !strings.Contains(r.Error, "charon") {
		t.Errorf("%+v", r)
	}
	d.answers.Wait()
}

// Nothing is lost on the way from charon through JSON to whoever formats it.
func TestSAsRoundTrip(t *testing.T) {
	list := []charon.SA{
		{
			Name: "a.peer", ID: 4, Version: "2", State: charon.StateEstablished, Initiator: true, InitiatorSPI: 0xda14230995406a58, ResponderSPI: 0xf83821754f9c263,
			Local: netip.MustParseAddrPort("10.22.46.30:4500"), Remote: netip.MustParseAddrPort("10.22.46.28:4500"), LocalID: "CN=a.self", RemoteID: "CN=a.peer",
			RemoteNAT: true, Algorithms: charon.Algorithms{Encryption: "AES_CBC", EncryptionBits: "128", PRF: "PRF_HMAC_SHA2_256"},
			EstablishedFor: 62 * time.Second, RekeyIn: time.Hour, ReauthIn: charon.Never, ExpiresIn: charon.Never,
			Children: []charon.ChildSA{{
				Name: "a.peer-p2p", ID: 7, ReqID: 3, State: charon.StateInstalled, Mode: "TUNNEL", Protocol: "ESP", Encap: true, SPIIn: 0xc056eddc, SPIOut: 0xba5947a,
				BytesIn: 84, PacketsIn: 1, LastIn: 3 * time.Second, LastOut: charon.Never, Algorithms: charon.Algorithms{Encryption: "AES_GCM_16", ESN: true},
				InstalledFor: time.Minute, RekeyIn: charon.Never, ExpiresIn: time.Hour,
				LocalTS: []charon.Selector{"10.233.66.0/24"}, RemoteTS: []charon.Selector{"10.233.67.0/24", "dynamic"},
			}},
		},
		{Name: "b.peer", State: charon.StateConnecting, InitiatorSPI: 1, EstablishedFor: charon.Never, RekeyIn: charon.Never, ReauthIn: charon.Never, ExpiresIn: charon.Never},
	}
	b, err := json.Marshal(sasOf(list))
	if err != nil {
		t.Fatal(err)
	}
	var sas []SA
	if err := json.Unmarshal(b, &sas); err != nil {
		t.Fatal(err)
	}
	for i := range sas {
		if got := sas[i].Charon(); !reflect.DeepEqual(got, list[i]) {
			t.Errorf("got  %+v\nwant %+v", got, list[i])
		}
	}
	if b, err := json.Marshal(sasOf(nil)); err != nil || string(b) != "[]" {
		t.Errorf("no SAs: %s, %v", b, err)
	}
}

func TestPingAddresses(t *testing.T) {
	self := wire.Endpoint{Name: "a.self", Subnets: prefixList("10.0.1.0/24"), NodeSubnets: prefixList("192.168.1.2/32")}
	peer := wire.Endpoint{Name: "a.peer", Subnets: prefixList("10.0.2.0/24"), NodeSubnets: prefixList("192.168.2.2/32")}
	locals := prefixList("10.0.1.1/24")
	for state, want := range map[string]string{stateDirect: "192.168.2.2", stateRelayed: "10.0.2.1"} {
		from, to, ok := probeAddrs(pingChildren(self, peer, state), locals)
		if !ok || from.String() != "10.0.1.1" || to.String() != want {
			t.Errorf("%s: from %s to %s, %v; want to %s", state, from, to, ok, want)
		}
	}
}

func TestEcho(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: run as root (make test does)")
	}
	for _, addr := range []string{"127.0.0.1", "::1"} {
		a := netip.MustParseAddr(addr)
		rtt, err := echo(t.Context(), a, a, testTimeout)
		if err != nil || rtt <= 0 {
			t.Errorf("%s: %s, %v", addr, rtt, err)
		}
	}
}

// pipeListener hands out one connection in memory, so that time may be a test's.
type pipeListener struct {
	conn   chan net.Conn
	closed chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error   { close(l.closed); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

// Who connects to the metrics and stays takes files that a search for ports needs.
func TestServeEndsIdleConnections(t *testing.T) {
	for _, said := range []string{"", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"} {
		synctest.Test(t, func(t *testing.T) {
			d := &Daemon{log: slog.New(slog.DiscardHandler)}
			ours, theirs := net.Pipe()
			defer ours.Close()
			l := &pipeListener{make(chan net.Conn, 1), make(chan struct{})}
			l.conn <- theirs
			ctx, stop := context.WithCancel(t.Context())
			var serving sync.WaitGroup
			defer serving.Wait()
			defer stop()
			serving.Go(func() { d.serve(ctx, l, http.NotFoundHandler()) })
			_ = ours.SetDeadline(time.Now().Add(time.Hour))
			if _, err := io.WriteString(ours, said); err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, ours); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("after %q the connection is open for an hour", said)
			}
		})
	}
}
