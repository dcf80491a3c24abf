package charon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var nodeNames = map[string]string{"a": "beijing.edge1", "b": "beijing.edge2"}

// pair is two nodes whose charons run, have credentials, and know each other.
type pair struct {
	a, b         *node
	ca, cb       *Client
	connA, connB Connection // as loaded; a's leads to b
}

func startPair(t *testing.T, ctx context.Context) *pair {
	t.Helper()
	p := &pair{}
	p.a, p.b = newPair(t)
	p.a.start()
	p.b.start()
	p.ca, p.cb = p.a.client(), p.b.client()
	auth := newAuthority(t)
	credsA, credsB := auth.issue(nodeNames["a"]), auth.issue(nodeNames["b"])
	must(t, p.ca.LoadCredentials(ctx, credsA))
	must(t, p.ca.LoadCredentials(ctx, credsA)) // again: nothing changes
	must(t, p.cb.LoadCredentials(ctx, credsB))
	p.connA, p.connB = p.a.connection(p.b, credsA), p.b.connection(p.a, credsB)
	p.connA.ESPProposals = espProposals(t, ctx, p.ca)
	p.connB.ESPProposals = p.connA.ESPProposals
	p.load(t, ctx)
	return p
}

func (p *pair) load(t *testing.T, ctx context.Context) {
	t.Helper()
	must(t, p.ca.Load(ctx, p.connA))
	must(t, p.cb.Load(ctx, p.connB))
}

// initiate asks for all children right after each other, and waits for them.
// charon's threads may take them up in another order.
func (p *pair) initiate(t *testing.T, ctx context.Context) {
	t.Helper()
	missing := map[string]bool{}
	for _, child := range p.connA.Children {
		must(t, p.ca.Initiate(ctx, p.connA.Name, child.Name))
		missing[child.Name] = true
	}
	waitEvent(t, p.ca, "all children are up", func(e Event) bool {
		if e.Kind == EventChildUp {
			delete(missing, e.Child)
		}
		return len(missing) == 0
	})
}

// connection has FabEdge's three children, in both nodes' view.
func (n *node) connection(peer *node, creds Credentials) Connection {
	dn := func(n *node) string { return "C=CN, O=fabedge.io, CN=" + nodeNames[n.name] }
	pods := func(n *node) []netip.Prefix {
		return []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr(n.inside), 24).Masked()}
	}
	itself := func(n *node) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(n.addr + "/32")} }
	name := nodeNames[peer.name]
	return Connection{
		Name:        name,
		LocalAddrs:  []string{anyAddr},
		RemoteAddrs: []string{peer.addr},
		LocalID:     dn(n),
		RemoteID:    dn(peer),
		CertPEM:     creds.CertPEM,
		CAPEMs:      creds.CAPEMs,
		Encap:       true,
		Children: []Child{
			{Name: name + "-p2p", LocalTS: pods(n), RemoteTS: pods(peer)},
			{Name: name + "-p2n", LocalTS: pods(n), RemoteTS: itself(peer)},
			{Name: name + "-n2p", LocalTS: itself(n), RemoteTS: pods(peer)},
		},
	}
}

// espProposals leaves AES-GCM out where user-space ESP does not have it.
func espProposals(t *testing.T, ctx context.Context, c *Client) []string {
	t.Helper()
	plugins, err := c.Plugins(ctx)
	must(t, err)
	if !slices.Contains(plugins, "kernel-libipsec") {
		t.Fatalf("charon has plugins %q, want kernel-libipsec among them", plugins)
	}
	if slices.Contains(plugins, "gcm") || slices.Contains(plugins, "openssl") {
		return DefaultESPProposals()
	}
	return []string{"aes128-sha256"}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// oneSA waits until exactly one IKE_SA of the connection is there and returns it.
func oneSA(t *testing.T, ctx context.Context, c *Client, name string) (sa SA) {
	t.Helper()
	eventually(t, "one IKE_SA "+name, func() error {
		sas, err := c.SAs(ctx, name)
		if err != nil || len(sas) != 1 {
			return fmt.Errorf("%d SAs, err %v", len(sas), err)
		}
		sa = sas[0]
		return nil
	})
	return sa
}

// p2p returns the CHILD_SA between the pods.
func p2p(t *testing.T, sa SA) ChildSA {
	t.Helper()
	for _, child := range sa.Children {
		if strings.HasSuffix(child.Name, "-p2p") {
			return child
		}
	}
	t.Fatalf("IKE_SA %s has no CHILD_SA -p2p: %+v", sa.Name, sa.Children)
	return ChildSA{}
}

func TestTunnel(t *testing.T) {
	ctx := testContext(t)
	p := startPair(t, ctx)
	p.initiate(t, ctx)
	waitEvent(t, p.cb, "the responder hears of it too", func(e Event) bool {
		return e.Kind == EventChildUp && e.Child == "beijing.edge1-n2p"
	})

	t.Run("SAs", func(t *testing.T) {
		sa := oneSA(t, ctx, p.ca, "beijing.edge2")
		if sa.State != StateEstablished || !sa.Initiator || !sa.RemoteNAT {
			t.Errorf("state %s, initiator %v, remote NAT %v; want ESTABLISHED, by us, with the NAT that the peer's encap=yes pretends", sa.State, sa.Initiator, sa.RemoteNAT)
		}
		if want := netip.AddrPortFrom(netip.MustParseAddr(p.b.addr), DefaultPort); sa.Remote != want {
			t.Errorf("remote %s, want %s", sa.Remote, want)
		}
		if sa.RemoteID != p.connA.RemoteID {
			t.Errorf("remote ID %q, want %q", sa.RemoteID, p.connA.RemoteID)
		}
		var names []string
		for _, child := range sa.Children {
			names = append(names, child.Name)
			if child.State != StateInstalled || !child.Encap || child.SPIIn == 0 || child.SPIOut == 0 {
				t.Errorf("child %+v: want it installed, in UDP, with SPIs", child)
			}
		}
		slices.Sort(names)
		if want := []string{"beijing.edge2-n2p", "beijing.edge2-p2n", "beijing.edge2-p2p"}; !slices.Equal(names, want) {
			t.Errorf("children %q, want %q", names, want)
		}
	})

	t.Run("initiated again is the same", func(t *testing.T) {
		before := oneSA(t, ctx, p.ca, "beijing.edge2")
		p.load(t, ctx)
		// Without a timeout charon answers when the work is done, or not:
		// "existing duplicate", its log says.
		m, err := section{{"ike", "beijing.edge2"}, {"child", "beijing.edge2-p2p"}}.message()
		must(t, err)
		if err := p.ca.simple(ctx, "initiate", m); !errors.Is(err, ErrRefused) {
			t.Errorf("initiate of what is installed: %v, want ErrRefused", err)
		}
		after := oneSA(t, ctx, p.ca, "beijing.edge2")
		if after.ID != before.ID || len(after.Children) != 3 || p2p(t, after).ID != p2p(t, before).ID {
			t.Errorf("got %+v\nwant the same SAs as before: %+v", after, before)
		}
	})

	t.Run("counters", func(t *testing.T) {
		before := p2p(t, oneSA(t, ctx, p.cb, "beijing.edge1"))
		must(t, p.a.ping(p.b.inside, 5))
		after := p2p(t, oneSA(t, ctx, p.cb, "beijing.edge1"))
		// 84 bytes: the inner IPv4 packet of a default ping.
		if got := after.BytesIn - before.BytesIn; got < 5*84 {
			t.Errorf("bytes in grew by %d, want at least %d", got, 5*84)
		}
		if got := after.PacketsOut - before.PacketsOut; got < 5 {
			t.Errorf("packets out grew by %d, want at least 5", got)
		}
		if after.LastIn == Never {
			t.Error("LastIn is Never after a ping")
		}
	})

	t.Run("Format is what swanctl prints", func(t *testing.T) {
		sas, err := p.ca.SAs(ctx, "")
		must(t, err)
		var ours bytes.Buffer
		must(t, Format(&ours, sas))
		// swanctl complains on standard error about plugins that are not installed.
		theirs, err := exec.Command("swanctl", "--list-sas", "--uri", "unix://"+p.a.socket()).Output()
		must(t, err)
		times := regexp.MustCompile(`\d+s\b`)
		want := times.ReplaceAllString(string(theirs), "Ns")
		if got := times.ReplaceAllString(ours.String(), "Ns"); squeeze(got) != squeeze(want) {
			t.Errorf("Format:\n%s\nswanctl:\n%s", got, want)
		}
	})

	t.Run("rekeying", func(t *testing.T) {
		before := oneSA(t, ctx, p.ca, "beijing.edge2")
		// One after the other: a CHILD_SA that moves to another IKE_SA cannot be
		// named.
		must(t, p.ca.RekeyChild(ctx, p2p(t, before).ID))
		child := waitEvent(t, p.ca, "child-rekey", func(e Event) bool { return e.Kind == EventChildRekey })
		if child.Child != "beijing.edge2-p2p" || child.ChildID == p2p(t, before).ID {
			t.Errorf("rekeyed %s #%d, want a new one for #%d", child.Child, child.ChildID, p2p(t, before).ID)
		}
		must(t, p.ca.Rekey(ctx, before.ID))
		ike := waitEvent(t, p.ca, "ike-rekey", func(e Event) bool { return e.Kind == EventIKERekey })
		if ike.Name != "beijing.edge2" || ike.ID == before.ID || ike.SA.State != StateEstablished {
			t.Errorf("rekeyed %s #%d %s, want a new ESTABLISHED one for #%d", ike.Name, ike.ID, ike.SA.State, before.ID)
		}
		if err := p.ca.Rekey(ctx, ike.ID+1000); !errors.Is(err, ErrNotFound) {
			t.Errorf("rekey of what is not there: %v, want ErrNotFound", err)
		}
	})

	t.Run("terminate", func(t *testing.T) {
		must(t, p.ca.Terminate(ctx, "beijing.edge2"))
		for _, c := range []*Client{p.ca, p.cb} {
			waitEvent(t, c, "child down", func(e Event) bool { return e.Kind == EventChildDown && strings.HasSuffix(e.Child, "-p2p") })
		}
		eventually(t, "no SA left", func() error {
			if err := p.ca.Terminate(ctx, "beijing.edge2"); !errors.Is(err, ErrNotFound) {
				return fmt.Errorf("terminate again: %v, want ErrNotFound", err)
			}
			return nil
		})
	})
}

// squeeze removes the padding of ages, whose width changes with the age.
func squeeze(s string) string { return regexp.MustCompile(` +`).ReplaceAllString(s, " ") }

func TestConnections(t *testing.T) {
	ctx := testContext(t)
	p := startPair(t, ctx)
	conns, err := p.ca.Connections(ctx)
	must(t, err)
	if len(conns) != 1 {
		t.Fatalf("connections %+v, want one", conns)
	}
	got, want := conns[0], p.connA
	if got.Name != want.Name || got.LocalID != want.LocalID || got.RemoteID != want.RemoteID ||
		!slices.Equal(got.RemoteAddrs, want.RemoteAddrs) || len(got.Children) != 3 {
		t.Errorf("connection %+v, want what was loaded: %+v", got, want)
	}
	for _, child := range got.Children {
		if prefix, ok := child.RemoteTS[0].Prefix(); !ok || !prefix.IsValid() {
			t.Errorf("child %s: remote selector %q is not a prefix", child.Name, child.RemoteTS)
		}
	}

	err = p.ca.Initiate(ctx, want.Name, "nosuch")
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "nosuch") {
		t.Errorf("initiate of an unknown child: %v, want ErrRefused with charon's words", err)
	}
	broken := want
	broken.IKEProposals = []string{"rot13"}
	if err := p.ca.Load(ctx, broken); !errors.Is(err, ErrRefused) {
		t.Errorf("load with a proposal of rot13: %v, want ErrRefused", err)
	}
	must(t, p.ca.Unload(ctx, want.Name))
	if err := p.ca.Unload(ctx, want.Name); !errors.Is(err, ErrNotFound) {
		t.Errorf("unload again: %v, want ErrNotFound", err)
	}
}

// TestInitiateSA: the IKE_SA stands first, and its CHILD_SAs follow in it.
func TestInitiateSA(t *testing.T) {
	ctx := testContext(t)
	p := startPair(t, ctx)
	must(t, p.ca.InitiateSA(ctx, p.connA.Name))
	waitEvent(t, p.ca, "the IKE_SA is up", func(e Event) bool { return e.Kind == EventIKEUp })
	alone := oneSA(t, ctx, p.ca, p.connA.Name)
	if alone.State != StateEstablished || len(alone.Children) != 0 {
		t.Fatalf("%+v, want an IKE_SA without a CHILD_SA", alone)
	}
	p.initiate(t, ctx)
	if sa := oneSA(t, ctx, p.ca, p.connA.Name); sa.ID != alone.ID || len(sa.Children) != len(p.connA.Children) {
		t.Errorf("%+v, want all children in IKE_SA #%d", sa, alone.ID)
	}
	must(t, p.a.ping(p.b.inside, 3))
	if err := p.ca.InitiateSA(ctx, "nosuch"); !errors.Is(err, ErrRefused) {
		t.Errorf("initiate an unknown connection: %v, want ErrRefused", err)
	}
}

// TestEndpointChanges is the life of a punched path: the peer's mapping moves,
// and then the path dies.
func TestEndpointChanges(t *testing.T) {
	ctx := testContext(t)
	p := startPair(t, ctx)
	p.initiate(t, ctx)
	old := oneSA(t, ctx, p.ca, "beijing.edge2")

	run(t, "ip", "-n", p.b.netns, "addr", "add", "192.0.2.3/24", "dev", "eth0")
	p.connA.RemoteAddrs = []string{"192.0.2.3"}
	p.load(t, ctx)
	if sa := oneSA(t, ctx, p.ca, "beijing.edge2"); sa.ID != old.ID || sa.Remote != old.Remote {
		t.Fatalf("after loading: IKE_SA #%d to %s, want still #%d to %s", sa.ID, sa.Remote, old.ID, old.Remote)
	}

	// Initiating leads to the new endpoint. For ten seconds charon would keep
	// the old IKE_SA beside it, because the initiator's address is the same.
	p.initiate(t, ctx)
	must(t, p.ca.TerminateSA(ctx, old.ID))
	moved := oneSA(t, ctx, p.ca, "beijing.edge2")
	if moved.Remote.Addr() != netip.MustParseAddr("192.0.2.3") || len(moved.Children) != 3 {
		t.Fatalf("after initiating: IKE_SA to %s with %d children, want 192.0.2.3 and 3", moved.Remote, len(moved.Children))
	}
	oneSA(t, ctx, p.cb, "beijing.edge1")
	must(t, p.a.ping(p.b.inside, 3))

	// A peer that comes from another address replaces its IKE_SA at once.
	run(t, "ip", "-n", p.a.netns, "addr", "add", "192.0.2.4/24", "dev", "eth0")
	p.connA.LocalAddrs = []string{"192.0.2.4"}
	p.connB.RemoteAddrs = []string{"192.0.2.4"}
	p.load(t, ctx)
	p.initiate(t, ctx)
	oneSA(t, ctx, p.cb, "beijing.edge1")
	replaced := oneSA(t, ctx, p.ca, "beijing.edge2")
	if replaced.Local.Addr() != netip.MustParseAddr("192.0.2.4") {
		t.Fatalf("replaced IKE_SA comes from %s, want 192.0.2.4", replaced.Local)
	}

	// On a dead path only Destroy gets rid of it: nobody answers a delete.
	run(t, "ip", "-n", p.b.netns, "link", "set", "eth0", "down")
	must(t, p.ca.Destroy(ctx, replaced.ID))
	waitEvent(t, p.ca, "the destroyed IKE_SA is down", func(e Event) bool {
		return e.Kind == EventIKEDown && e.ID == replaced.ID
	})
	if err := p.ca.Destroy(ctx, replaced.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("destroy again: %v, want ErrNotFound", err)
	}
}

// childrenNamed returns the installed CHILD_SAs of that name.
func childrenNamed(sa SA, name string) (out []ChildSA) {
	for _, c := range sa.Children {
		if c.Name == name && c.State == StateInstalled {
			out = append(out, c)
		}
	}
	return out
}

// TestSelectorsBesideEachOther is what a tunnel has beside FabEdge's children: one
// of a single protocol, and a wide one whose range changes.
func TestSelectorsBesideEachOther(t *testing.T) {
	ctx := testContext(t)
	p := startPair(t, ctx)
	p.initiate(t, ctx)
	const check, relay = "check", "relay"
	inA, inB := p.connA.Children[0].LocalTS, p.connA.Children[0].RemoteTS
	fabedge := len(p.connA.Children)
	extend := func(ranges ...netip.Prefix) {
		p.connA.Children = append(p.connA.Children[:fabedge:fabedge],
			Child{Name: check, LocalTS: inA, RemoteTS: inB, Protocol: 253}, Child{Name: relay, LocalTS: inA, RemoteTS: ranges})
		p.connB.Children = append(p.connB.Children[:fabedge:fabedge],
			Child{Name: check, LocalTS: inB, RemoteTS: inA, Protocol: 253}, Child{Name: relay, LocalTS: ranges, RemoteTS: inA})
		p.load(t, ctx)
	}
	installed := func(c *Client, name, child string, want ...Child) []ChildSA {
		t.Helper()
		var got []ChildSA
		eventually(t, child+" as wanted", func() error {
			sas, err := c.SAs(ctx, name)
			if err != nil || len(sas) != 1 {
				return fmt.Errorf("%d SAs, err %v", len(sas), err)
			}
			got = childrenNamed(sas[0], child)
			if len(got) != len(want) {
				return fmt.Errorf("%d installed, want %d: %+v", len(got), len(want), got)
			}
			for _, w := range want {
				if !slices.ContainsFunc(got, func(c ChildSA) bool {
					return slices.Equal(c.LocalTS, w.Local()) && slices.Equal(c.RemoteTS, w.Remote())
				}) {
					return fmt.Errorf("got %+v, want one of %s === %s", got, w.Local(), w.Remote())
				}
			}
			return nil
		})
		return got
	}
	one := netip.MustParsePrefix("10.233.0.0/16")
	extend(one)
	for _, child := range []string{check, relay} {
		must(t, p.ca.Initiate(ctx, p.connA.Name, child))
	}
	checkA, oneA := p.connA.Children[fabedge], p.connA.Children[fabedge+1]
	installed(p.cb, p.connB.Name, check, p.connB.Children[fabedge])
	installed(p.cb, p.connB.Name, relay, p.connB.Children[fabedge+1])
	checks := installed(p.ca, p.connA.Name, check, checkA)
	old := installed(p.ca, p.connA.Name, relay, oneA)

	before := oneSA(t, ctx, p.cb, p.connB.Name)
	must(t, p.a.ping(p.b.inside, 3))
	after := oneSA(t, ctx, p.cb, p.connB.Name)
	if got := p2p(t, after).PacketsIn - p2p(t, before).PacketsIn; got < 3 {
		t.Errorf("%d of 3 pings came through -p2p: the narrower selectors have to win", got)
	}

	must(t, p.ca.TerminateChild(ctx, checks[0].ID))
	installed(p.ca, p.connA.Name, check)
	installed(p.cb, p.connB.Name, check)
	if err := p.ca.TerminateChild(ctx, checks[0].ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("terminate again: %v, want ErrNotFound", err)
	}

	// Another range under the same name comes beside the old one.
	extend(netip.MustParsePrefix("10.232.0.0/15"))
	must(t, p.ca.Initiate(ctx, p.connA.Name, relay))
	installed(p.ca, p.connA.Name, relay, oneA, p.connA.Children[fabedge+1])
	must(t, p.ca.TerminateChild(ctx, old[0].ID))
	wide := installed(p.ca, p.connA.Name, relay, p.connA.Children[fabedge+1])
	installed(p.cb, p.connB.Name, relay, p.connB.Children[fabedge+1])
	must(t, p.ca.RekeyChild(ctx, wide[0].ID))
	waitEvent(t, p.ca, "the wide child is rekeyed", func(e Event) bool { return e.Kind == EventChildRekey && e.Child == relay })
	must(t, p.a.ping(p.b.inside, 3))
}

// TestMappingMoves: a NAT before the initiator gives it another port, and the
// responder's charon follows by itself, as RFC 7296 section 2.23 has it.
func TestMappingMoves(t *testing.T) {
	ctx := testContext(t)
	p := startPair(t, ctx)
	p.initiate(t, ctx)
	run(t, "ip", "netns", "exec", p.a.netns, "nft",
		"table ip nat { chain out { type nat hook postrouting priority srcnat; udp sport 4500 snat to 192.0.2.1:61234; }; }")
	run(t, "ip", "netns", "exec", p.a.netns, "conntrack", "-F")

	must(t, p.ca.RekeyChild(ctx, p2p(t, oneSA(t, ctx, p.ca, "beijing.edge2")).ID)) // any IKE message of the initiator's will do
	e := waitEvent(t, p.cb, "ike-update", func(e Event) bool { return e.Kind == EventIKEUpdate })
	want := netip.MustParseAddrPort("192.0.2.1:61234")
	if e.Name != "beijing.edge1" || e.SA.Remote != want {
		t.Errorf("%s moved to %s, want beijing.edge1 to %s", e.Name, e.SA.Remote, want)
	}
	if sa := oneSA(t, ctx, p.cb, "beijing.edge1"); sa.Remote != want {
		t.Errorf("the SA is with %s, want %s", sa.Remote, want)
	}
	must(t, p.a.ping(p.b.inside, 2))
}

func TestCharonRestart(t *testing.T) {
	needsRoot(t)
	ctx := testContext(t)
	n := newNode(t, "a", "", "")
	c := startClient(t, Options{Socket: n.socket()})
	first := waitEvent(t, c, "absence", func(Event) bool { return true })
	if first.Kind != EventDown || !errors.Is(first.Err, ErrUnreachable) {
		t.Fatalf("first event %s, %v; want down, ErrUnreachable", first.Kind, first.Err)
	}
	for range 2 {
		n.start()
		up := waitEvent(t, c, "up", func(e Event) bool { return e.Kind == EventUp })
		if up.Version.Version == "" {
			t.Error("EventUp without a version")
		}
		// The command session of the charon before is broken by now: the
		// caller must not see that.
		version, err := c.Version(ctx)
		must(t, err)
		if version != up.Version {
			t.Errorf("version %+v, EventUp said %+v", version, up.Version)
		}
		n.stop()
		waitEvent(t, c, "down", func(e Event) bool { return e.Kind == EventDown })
		if _, err := c.Version(ctx); !errors.Is(err, ErrUnreachable) {
			t.Errorf("command without charon: %v, want ErrUnreachable", err)
		}
	}
}
