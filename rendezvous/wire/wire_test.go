package wire

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func sampleEndpoint() Endpoint {
	return Endpoint{
		ID: "C=CN, O=fabedge.io, CN=beijing.edge1", Name: "beijing.edge1",
		Subnets:     []netip.Prefix{netip.MustParsePrefix("10.10.1.0/24"), netip.MustParsePrefix("fd00:1::/64")},
		NodeSubnets: []netip.Prefix{netip.MustParsePrefix("192.168.1.10/32")},
		Type:        Edge,
	}
}

const sampleEndpointJSON = `{"id":"C=CN, O=fabedge.io, CN=beijing.edge1","name":"beijing.edge1",` +
	`"subnets":["10.10.1.0/24","fd00:1::/64"],"nodeSubnets":["192.168.1.10/32"],"type":"Edge"}`

func samplePeer() Peer {
	return Peer{Endpoint: sampleEndpoint(), Plan: PlanICE, Role: Controlling, Communities: []string{"all-edges"}}
}

const samplePeerJSON = `{"endpoint":` + sampleEndpointJSON + `,"plan":"ice","role":"controlling","communities":["all-edges"]}`

// relayPeer is a connector's peer whose relay has these ranges.
func relayPeer(ranges ...string) Peer {
	p := Peer{Endpoint: sampleEndpoint(), Plan: PlanPublic, Role: Controlling}
	for _, r := range ranges {
		p.Relay = append(p.Relay, netip.MustParsePrefix(r))
	}
	return p
}

func host(addr string) Candidate  { return Candidate{Host, netip.MustParseAddrPort(addr)} }
func srflx(addr string) Candidate { return Candidate{ServerReflexive, netip.MustParseAddrPort(addr)} }

func sampleHello() *Hello {
	return &Hello{
		AgentVersion: "0.1.0", Endpoint: sampleEndpoint(),
		Candidates: []Candidate{host("192.168.1.10:4500"), host("[2001:db8::10]:4500")},
		Tunnels: []Tunnel{{
			Peer: "beijing.edge2", Monitored: true,
			Path: Path{PathServerReflexive, netip.MustParseAddrPort("192.168.1.10:4500"), netip.MustParseAddrPort("203.0.113.7:1721")},
		}},
		Punch: PolicyICEOnly, NoProbe: "nftables is missing",
	}
}

func samplePunch() *Punch {
	return &Punch{
		Attempt: "0badcafe", Peer: samplePeer(), StartAfterMs: 40,
		Local:      Credentials{Ufrag: "abcd", Pwd: "abcdefghijklmnopqrstuv"},
		Remote:     Credentials{Ufrag: "wxyz", Pwd: "vutsrqponmlkjihgfedcba"},
		Candidates: []Candidate{host("192.168.1.10:4500"), srflx("203.0.113.7:4500")},
		RemoteNAT:  NAT{Present: true, Mapping: EndpointIndependent, Filtering: AddressAndPortDependent},
	}
}

func sampleWelcome() *Welcome {
	return &Welcome{Node: "beijing.edge1", StoreID: "5f1c", STUNPorts: []uint16{3478, 3479}, STUNUsername: "user", STUNPassword: "password"}
}

func sampleReport() *Report {
	return &Report{Peer: "beijing.edge2", Attempt: "0badcafe", Outcome: OutcomeDirect, ElapsedMs: 412,
		Path: Path{PathPeerReflexive, netip.MustParseAddrPort("192.168.1.10:4500"), netip.MustParseAddrPort("203.0.113.7:1721")}}
}

// golden is the protocol as it is on the wire. What changes here breaks agents
// that are out there.
var golden = []struct {
	name    string
	message Message
	frame   string
}{
	{"hello", sampleHello(),
		`{"v":1,"type":"hello","body":{"agentVersion":"0.1.0","endpoint":` + sampleEndpointJSON +
			`,"candidates":[{"kind":"host","addr":"192.168.1.10:4500"},{"kind":"host","addr":"[2001:db8::10]:4500"}]` +
			`,"tunnels":[{"peer":"beijing.edge2","path":{"kind":"srflx","local":"192.168.1.10:4500","remote":"203.0.113.7:1721"},"monitored":true}]` +
			`,"punch":"ice-only","noProbe":"nftables is missing"}}`},
	{"hello of a connector", &Hello{Endpoint: Endpoint{
		ID: "CN=beijing.connector", Name: "beijing.connector", Type: Connector,
		PublicAddresses: []string{"198.51.100.1", "vpn.example.com"}, Port: 45000,
	}, Candidates: []Candidate{}},
		`{"v":1,"type":"hello","body":{"agentVersion":"","endpoint":{"id":"CN=beijing.connector","name":"beijing.connector",` +
			`"publicAddresses":["198.51.100.1","vpn.example.com"],"port":45000,"type":"Connector"},"candidates":[]}}`},
	{"hello of a metered node with a relay", &Hello{Endpoint: sampleEndpoint(), Candidates: []Candidate{}, Metered: true,
		Tunnels: []Tunnel{{Peer: "beijing.connector", Monitored: true, Relay: true, Path: Path{Kind: PathPublic}}}},
		`{"v":1,"type":"hello","body":{"agentVersion":"","endpoint":` + sampleEndpointJSON + `,"candidates":[]` +
			`,"tunnels":[{"peer":"beijing.connector","path":{"kind":"public"},"monitored":true,"relay":true}],"metered":true}}`},
	{"network", &Network{Candidates: []Candidate{host("192.168.1.10:4500")}, NAT: NAT{Present: true, Mapping: AddressDependent}},
		`{"v":1,"type":"network","body":{"candidates":[{"kind":"host","addr":"192.168.1.10:4500"}],"nat":{"present":true,"mapping":"address-dependent"}}}`},
	{"network in full", &Network{Candidates: []Candidate{{Mapped, netip.MustParseAddrPort("203.0.113.7:4500")}}, NAT: NAT{
		Present: true, Mapping: AddressAndPortDependent, Filtering: AddressAndPortDependent, Allocation: Sequential, Step: -2,
		Hairpin: No, Poisoned: Yes, LifetimeSeconds: 100, Hops: 2,
	}},
		`{"v":1,"type":"network","body":{"candidates":[{"kind":"mapped","addr":"203.0.113.7:4500"}],"nat":{"present":true` +
			`,"mapping":"address-and-port-dependent","filtering":"address-and-port-dependent","allocation":"sequential","step":-2` +
			`,"hairpin":"no","poisoned":"yes","lifetimeSeconds":100,"hops":2}}}`},
	{"network blocked", &Network{Candidates: []Candidate{}, NAT: NAT{Blocked: "no answer"}},
		`{"v":1,"type":"network","body":{"candidates":[],"nat":{"present":false,"blocked":"no answer"}}}`},
	{"report", sampleReport(),
		`{"v":1,"type":"report","body":{"peer":"beijing.edge2","attempt":"0badcafe","outcome":"direct",` +
			`"path":{"kind":"prflx","local":"192.168.1.10:4500","remote":"203.0.113.7:1721"},"elapsedMs":412}}`},
	{"report of a failure", &Report{Peer: "beijing.edge2", Attempt: "0badcafe", Outcome: OutcomeFailed, Reason: "no answer", ElapsedMs: 10_000, Packets: 2431},
		`{"v":1,"type":"report","body":{"peer":"beijing.edge2","attempt":"0badcafe","outcome":"failed","reason":"no answer","elapsedMs":10000,"packets":2431}}`},
	{"report of a loss", &Report{Peer: "beijing.connector", Outcome: OutcomeLost, Reason: "consent lost"},
		`{"v":1,"type":"report","body":{"peer":"beijing.connector","outcome":"lost","reason":"consent lost","elapsedMs":0}}`},
	{"report of a silent loss", &Report{Peer: "beijing.edge2", Attempt: "0badcafe", Outcome: OutcomeLost, Reason: "consent lost", Silent: true},
		`{"v":1,"type":"report","body":{"peer":"beijing.edge2","attempt":"0badcafe","outcome":"lost","reason":"consent lost","silent":true,"elapsedMs":0}}`},
	{"report of a relay", &Report{Peer: "beijing.connector", Outcome: OutcomeDirect, Relay: true, Path: Path{Kind: PathPublic}},
		`{"v":1,"type":"report","body":{"peer":"beijing.connector","outcome":"direct","path":{"kind":"public"},"relay":true,"elapsedMs":0}}`},
	{"usage", &Usage{Seconds: 300, Signalling: 4321, STUN: 1234, Peers: map[NodeName]int64{"beijing.edge2": 3400, "beijing.connector": 1900}},
		`{"v":1,"type":"usage","body":{"seconds":300,"signalling":4321,"stun":1234,"peers":{"beijing.connector":1900,"beijing.edge2":3400}}}`},
	{"welcome", sampleWelcome(),
		`{"v":1,"type":"welcome","body":{"node":"beijing.edge1","storeID":"5f1c","stunPorts":[3478,3479],"stunUsername":"user","stunPassword":"password"}}`},
	{"welcome of two families", &Welcome{Node: "beijing.edge1", StoreID: "5f1c", STUNPorts: []uint16{3478, 3479, 40001, 40002},
		STUNAddrs: []netip.Addr{netip.MustParseAddr("2001:db8::1")}, STUNUsername: "user", STUNPassword: "password"},
		`{"v":1,"type":"welcome","body":{"node":"beijing.edge1","storeID":"5f1c","stunPorts":[3478,3479,40001,40002]` +
			`,"stunAddrs":["2001:db8::1"],"stunUsername":"user","stunPassword":"password"}}`},
	{"peers", &Peers{Peers: []Peer{samplePeer()}}, `{"v":1,"type":"peers","body":{"peers":[` + samplePeerJSON + `]}}`},
	{"no peers", &Peers{Peers: []Peer{}}, `{"v":1,"type":"peers","body":{"peers":[]}}`},
	{"a peer that relays", &Peers{Peers: []Peer{relayPeer("10.10.0.0/16", "fd00:1::/48")}},
		`{"v":1,"type":"peers","body":{"peers":[{"endpoint":` + sampleEndpointJSON + `,"plan":"public","role":"controlling","relay":["10.10.0.0/16","fd00:1::/48"]}]}}`},
	{"a peer that pays for its bytes", &Peers{Peers: []Peer{{Endpoint: sampleEndpoint(), Plan: PlanICE, Role: Controlled, Metered: true}}},
		`{"v":1,"type":"peers","body":{"peers":[{"endpoint":` + sampleEndpointJSON + `,"plan":"ice","role":"controlled","metered":true}]}}`},
	{"forwarding", &Forwarding{Groups: []Group{{Community: "all-edges", Nodes: []NodeName{"beijing.edge1", "beijing.edge2"}}}},
		`{"v":1,"type":"forwarding","body":{"groups":[{"community":"all-edges","nodes":["beijing.edge1","beijing.edge2"]}]}}`},
	{"nothing to forward", &Forwarding{Groups: []Group{}}, `{"v":1,"type":"forwarding","body":{"groups":[]}}`},
	{"demote", &Demote{Peer: "beijing.edge2", Reason: "consent lost"},
		`{"v":1,"type":"demote","body":{"peer":"beijing.edge2","reason":"consent lost"}}`},
	{"planned demote", &Demote{Peer: "beijing.edge2", Reason: "punching is forbidden", StartAfterMs: 40},
		`{"v":1,"type":"demote","body":{"peer":"beijing.edge2","reason":"punching is forbidden","startAfterMs":40}}`},
	{"punch", samplePunch(),
		`{"v":1,"type":"punch","body":{"attempt":"0badcafe","peer":` + samplePeerJSON + `,"startAfterMs":40` +
			`,"local":{"ufrag":"abcd","pwd":"abcdefghijklmnopqrstuv"},"remote":{"ufrag":"wxyz","pwd":"vutsrqponmlkjihgfedcba"}` +
			`,"candidates":[{"kind":"host","addr":"192.168.1.10:4500"},{"kind":"srflx","addr":"203.0.113.7:4500"}]` +
			`,"remoteNAT":{"present":true,"mapping":"endpoint-independent","filtering":"address-and-port-dependent"}}}`},
	{"punch by search", changed(samplePunch(), func(p *Punch) {
		p.Strategy, p.Part, p.Candidates = StrategyProbe, PartSearch, []Candidate{}
	}),
		`{"v":1,"type":"punch","body":{"attempt":"0badcafe","peer":` + samplePeerJSON + `,"strategy":"probe","part":"search","startAfterMs":40` +
			`,"local":{"ufrag":"abcd","pwd":"abcdefghijklmnopqrstuv"},"remote":{"ufrag":"wxyz","pwd":"vutsrqponmlkjihgfedcba"}` +
			`,"candidates":[],"remoteNAT":{"present":true,"mapping":"endpoint-independent","filtering":"address-and-port-dependent"}}}`},
	{"punch without hope", changed(samplePunch(), func(p *Punch) {
		p.Strategy, p.Hopeless = StrategyICE, "both NATs are symmetric"
		p.Candidates = []Candidate{{Predicted, netip.MustParseAddrPort("203.0.113.7:1026")}}
	}),
		`{"v":1,"type":"punch","body":{"attempt":"0badcafe","peer":` + samplePeerJSON + `,"strategy":"ice","hopeless":"both NATs are symmetric","startAfterMs":40` +
			`,"local":{"ufrag":"abcd","pwd":"abcdefghijklmnopqrstuv"},"remote":{"ufrag":"wxyz","pwd":"vutsrqponmlkjihgfedcba"}` +
			`,"candidates":[{"kind":"predicted","addr":"203.0.113.7:1026"}]` +
			`,"remoteNAT":{"present":true,"mapping":"endpoint-independent","filtering":"address-and-port-dependent"}}}`},
	{"prepare", &Prepare{Attempt: "0badcafe"}, `{"v":1,"type":"prepare","body":{"attempt":"0badcafe"}}`},
	{"prepared", &Prepared{Attempt: "0badcafe", Next: 1026, Step: 2}, `{"v":1,"type":"prepared","body":{"attempt":"0badcafe","next":1026,"step":2}}`},
	{"prepared without a prediction", &Prepared{Attempt: "0badcafe"}, `{"v":1,"type":"prepared","body":{"attempt":"0badcafe","next":0,"step":0}}`},
	{"trickle", &Trickle{Attempt: "0badcafe", Candidates: []Candidate{srflx("203.0.113.7:4500")}},
		`{"v":1,"type":"trickle","body":{"attempt":"0badcafe","candidates":[{"kind":"srflx","addr":"203.0.113.7:4500"}]}}`},
	{"trickle with a NAT", &Trickle{Attempt: "0badcafe", Candidates: []Candidate{}, RemoteNAT: &NAT{Present: true, Mapping: AddressAndPortDependent}},
		`{"v":1,"type":"trickle","body":{"attempt":"0badcafe","candidates":[],"remoteNAT":{"present":true,"mapping":"address-and-port-dependent"}}}`},
	{"retry", &Retry{Peer: "beijing.edge2", Reason: "charon stopped"},
		`{"v":1,"type":"retry","body":{"peer":"beijing.edge2","reason":"charon stopped"}}`},
	{"cancel", &Cancel{Attempt: "0badcafe", Reason: "beijing.edge2 went offline"},
		`{"v":1,"type":"cancel","body":{"attempt":"0badcafe","reason":"beijing.edge2 went offline"}}`},
	{"bye", &Bye{Reason: "refused", Final: true}, `{"v":1,"type":"bye","body":{"reason":"refused","final":true}}`},
	{"bye without a reason", &Bye{}, `{"v":1,"type":"bye","body":{"reason":""}}`},
}

func TestGolden(t *testing.T) {
	seen := map[string]bool{}
	for _, tt := range golden {
		t.Run(tt.name, func(t *testing.T) {
			seen[tt.message.Type()] = true
			b, err := Encode(tt.message)
			if err != nil {
				t.Fatalf("Encode: %v", err)
			}
			if string(b) != tt.frame {
				t.Errorf("encoded\n%s\nwant\n%s", b, tt.frame)
			}
			m, err := Decode([]byte(tt.frame))
			if err != nil {
				t.Fatalf("Decode: %v", err)
			}
			if !reflect.DeepEqual(m, tt.message) {
				t.Errorf("decoded\n%+v\nwant\n%+v", m, tt.message)
			}
		})
	}
	for _, typ := range []string{"hello", "network", "report", "welcome", "peers", "prepare", "prepared", "punch", "trickle", "cancel", "retry", "forwarding", "demote", "usage", "bye"} {
		if !seen[typ] {
			t.Errorf("no golden bytes of %s", typ)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	long := fmt.Sprintf(`{"v":1,"type":"bye","body":{"reason":"%s"}}`, strings.Repeat("x", MaxFrame))
	tests := []struct {
		name, frame string
		want        error
	}{
		{"too large", long, ErrTooLarge},
		{"nothing", "", ErrSyntax},
		{"binary", "\x00\x01\xff\xfe", ErrSyntax},
		{"cut off", `{"v":1,"type":"bye","body":{"rea`, ErrSyntax},
		{"a list", `[]`, ErrSyntax},
		{"two objects", `{"v":1,"type":"bye","body":{}}{}`, ErrSyntax},
		{"version of another kind", `{"v":"1","type":"bye","body":{}}`, ErrSyntax},
		{"no version", `{"type":"bye","body":{}}`, ErrVersion},
		{"next version", `{"v":2,"type":"bye","body":{}}`, ErrVersion},
		// The type means nothing to a side that does not know the version.
		{"next version, unknown type", `{"v":2,"type":"hola","body":{}}`, ErrVersion},
		{"no type", `{"v":1,"body":{}}`, ErrType},
		{"unknown type", `{"v":1,"type":"hola","body":{}}`, ErrType},
		{"type in another case", `{"v":1,"type":"Bye","body":{}}`, ErrType},
		{"no body", `{"v":1,"type":"bye"}`, ErrSyntax},
		{"null body", `{"v":1,"type":"bye","body":null}`, ErrSyntax},
		{"body of another kind", `{"v":1,"type":"bye","body":"text"}`, ErrSyntax},
		{"field of another kind", `{"v":1,"type":"bye","body":{"reason":7}}`, ErrSyntax},
		{"address that is none", `{"v":1,"type":"trickle","body":{"attempt":"a","candidates":[{"kind":"host","addr":"here"}]}}`, ErrSyntax},
		{"port out of range", `{"v":1,"type":"trickle","body":{"attempt":"a","candidates":[{"kind":"host","addr":"192.0.2.1:65536"}]}}`, ErrSyntax},
		{"invalid", `{"v":1,"type":"cancel","body":{}}`, ErrInvalid},
	}
	sentinels := []error{ErrTooLarge, ErrSyntax, ErrVersion, ErrType, ErrInvalid}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, err := Decode([]byte(tt.frame))
			if m != nil {
				t.Errorf("decoded %+v", m)
			}
			for _, s := range sentinels {
				if errors.Is(err, s) != (s == tt.want) {
					t.Errorf("error %v: is %q: %v", err, s, errors.Is(err, s))
				}
			}
			// The text goes to the sender and into a log.
			if text := fmt.Sprint(err); len(text) > 256 || strings.ContainsAny(text, "\n\x00") {
				t.Errorf("text of %d bytes: %.300q", len(text), text)
			}
		})
	}
}

func TestDecodeTakesTheLargestFrame(t *testing.T) {
	m := &Peers{Peers: []Peer{}}
	for len(m.Peers) < MaxPeers {
		p := samplePeer()
		p.Endpoint.Name = NodeName(fmt.Sprintf("beijing.edge%d", len(m.Peers)))
		m.Peers = append(m.Peers, p)
	}
	b, err := Encode(m)
	if err != nil {
		t.Fatalf("%d peers: %v", MaxPeers, err)
	}
	padded := slices.Concat(b, bytes.Repeat([]byte{' '}, MaxFrame-len(b)))
	if got, err := Decode(padded); err != nil || !reflect.DeepEqual(got, Message(m)) {
		t.Errorf("a frame of %d bytes: %v", len(padded), err)
	}
}

func TestEncodeRefusesWhatNobodyWouldTake(t *testing.T) {
	b, err := Encode(&Bye{Reason: strings.Repeat("x", MaxFrame)})
	if b != nil || !errors.Is(err, ErrTooLarge) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

// A side that has learnt new fields can talk to one that has not.
func TestDecodeIgnoresNewFields(t *testing.T) {
	m, err := Decode([]byte(`{"v":1,"type":"bye","trace":"x","body":{"reason":"r","retryAfter":5}}`))
	if want := (&Bye{Reason: "r"}); err != nil || !reflect.DeepEqual(m, Message(want)) {
		t.Errorf("%+v, %v", m, err)
	}
}

// FuzzDecode: nothing a stranger sends panics, and what is let in can be passed
// on unchanged.
func FuzzDecode(f *testing.F) {
	for _, tt := range golden {
		f.Add([]byte(tt.frame))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Decode(b)
		if err != nil {
			if m != nil {
				t.Fatalf("%+v and %v", m, err)
			}
			return
		}
		again, err := Encode(m)
		if errors.Is(err, ErrTooLarge) {
			return // JSON has shorter ways to write the same, which Encode does not use
		}
		if err != nil {
			t.Fatalf("Encode of what was decoded: %v", err)
		}
		back, err := Decode(again)
		if err != nil {
			t.Fatalf("Decode of %s: %v", again, err)
		}
		if third, err := Encode(back); err != nil || !bytes.Equal(third, again) {
			t.Fatalf("encoded\n%s\nthen\n%s, %v", again, third, err)
		}
	})
}
