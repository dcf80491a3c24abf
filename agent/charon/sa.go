package charon

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/strongswan/govici/vici"
)

// IKEID is charon's number of an IKE_SA; it is not used twice while charon runs.
type IKEID uint32

// ChildID is charon's number of a CHILD_SA; it is not used twice while charon runs.
type ChildID uint32

// State is the state of an IKE_SA or of a CHILD_SA, in charon's words.
type State string

// The states most asked for. charon has more.
const (
	StateConnecting  State = "CONNECTING"  // of an IKE_SA
	StateEstablished State = "ESTABLISHED" // of an IKE_SA
	StateRekeying    State = "REKEYING"    // of either; it still works
	StateDeleting    State = "DELETING"    // of either
	StateInstalled   State = "INSTALLED"   // of a CHILD_SA
	// StateRekeyed is of a CHILD_SA that another has replaced. After rekeyings of
	// both ends at once it may carry all there is for some seconds more.
	StateRekeyed State = "REKEYED"
)

// Selector is a traffic selector as charon writes it: mostly a prefix, but it
// can be a range, name a protocol and ports, or be "dynamic".
type Selector string

// Prefix returns the selector as a prefix, if it is just that.
func (s Selector) Prefix() (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(string(s))
	return p, err == nil
}

func selectors(m *vici.Message, key string) []Selector {
	var out []Selector
	for _, s := range texts(m, key) {
		out = append(out, Selector(s))
	}
	return out
}

// Algorithms are what an SA negotiated, in charon's words; empty where none.
type Algorithms struct {
	Encryption     string // "AES_GCM_16"
	EncryptionBits string
	Integrity      string // empty with AEAD ciphers
	IntegrityBits  string
	PRF            string
	KeyExchange    string
	ESN            bool // RFC 4304
}

// SA is an IKE_SA. Spans of time are as of the listing, in whole seconds, and
// Never where charon gives none.
type SA struct {
	Name      string // of its connection
	ID        IKEID
	Version   string // "2"
	State     State
	Initiator bool // the IKE_SA was initiated here
	// Initiator's and responder's SPI, RFC 7296 section 2.6.
	InitiatorSPI, ResponderSPI uint64

	// Local and Remote have an invalid address while charon knows none.
	Local, Remote     netip.AddrPort
	LocalID, RemoteID string

	// LocalNAT and RemoteNAT: a NAT was seen before that side; a peer with Encap
	// makes itself look like that. FakeNAT: charon does so here.
	LocalNAT, RemoteNAT, FakeNAT bool

	Algorithms     Algorithms
	EstablishedFor time.Duration // Never unless State is StateEstablished
	RekeyIn        time.Duration
	ReauthIn       time.Duration
	ExpiresIn      time.Duration

	Children []ChildSA
}

// ChildSA is a CHILD_SA: a pair of ESP SAs. Several can have one name, for
// instance while one is rekeyed.
type ChildSA struct {
	Name     string // as configured
	ID       ChildID
	ReqID    uint32
	State    State
	Mode     string // "TUNNEL"
	Protocol string // "ESP"
	Encap    bool   // in UDP, RFC 3948

	SPIIn, SPIOut         uint32
	BytesIn, BytesOut     uint64
	PacketsIn, PacketsOut uint64
	// LastIn and LastOut: since the last packet; Never when there was none.
	LastIn, LastOut time.Duration

	Algorithms   Algorithms
	InstalledFor time.Duration
	RekeyIn      time.Duration
	ExpiresIn    time.Duration

	LocalTS, RemoteTS []Selector
}

// parseSA reads the section of an IKE_SA in list-sa and in events.
func parseSA(name string, m *vici.Message) (SA, error) {
	d := &decoder{m: m}
	sa := SA{
		Name:           name,
		ID:             IKEID(d.number("uniqueid", 10, 32)),
		Version:        d.text("version"),
		State:          State(d.text("state")),
		Initiator:      d.yes("initiator"),
		InitiatorSPI:   d.number("initiator-spi", 16, 64),
		ResponderSPI:   d.number("responder-spi", 16, 64),
		Local:          d.endpoint("local-host", "local-port"),
		Remote:         d.endpoint("remote-host", "remote-port"),
		LocalID:        d.text("local-id"),
		RemoteID:       d.text("remote-id"),
		LocalNAT:       d.yes("nat-local"),
		RemoteNAT:      d.yes("nat-remote"),
		FakeNAT:        d.yes("nat-fake"),
		Algorithms:     parseAlgorithms(d),
		EstablishedFor: d.seconds("established"),
		RekeyIn:        d.seconds("rekey-time"),
		ReauthIn:       d.seconds("reauth-time"),
		ExpiresIn:      d.seconds("life-time"),
	}
	// Keys here are "name-uniqueid"; the name proper stands inside.
	for key, c := range sections(m, "child-sas") {
		if next, ok := c.Get("new").(*vici.Message); ok {
			c = next // child-rekey has both the old and the new one
		}
		child, err := parseChild(c)
		if err != nil {
			return sa, fmt.Errorf("IKE_SA %s #%d, CHILD_SA %s: %w", name, sa.ID, key, err)
		}
		sa.Children = append(sa.Children, child)
	}
	if err := d.err(); err != nil {
		return sa, fmt.Errorf("IKE_SA %s: %w", name, err)
	}
	return sa, nil
}

func parseChild(m *vici.Message) (ChildSA, error) {
	d := &decoder{m: m}
	return ChildSA{
		Name:         d.text("name"),
		ID:           ChildID(d.number("uniqueid", 10, 32)),
		ReqID:        uint32(d.number("reqid", 10, 32)),
		State:        State(d.text("state")),
		Mode:         d.text("mode"),
		Protocol:     d.text("protocol"),
		Encap:        d.yes("encap"),
		SPIIn:        uint32(d.number("spi-in", 16, 32)),
		SPIOut:       uint32(d.number("spi-out", 16, 32)),
		BytesIn:      d.number("bytes-in", 10, 64),
		BytesOut:     d.number("bytes-out", 10, 64),
		PacketsIn:    d.number("packets-in", 10, 64),
		PacketsOut:   d.number("packets-out", 10, 64),
		LastIn:       d.seconds("use-in"),
		LastOut:      d.seconds("use-out"),
		Algorithms:   parseAlgorithms(d),
		InstalledFor: d.seconds("install-time"),
		RekeyIn:      d.seconds("rekey-time"),
		ExpiresIn:    d.seconds("life-time"),
		LocalTS:      selectors(m, "local-ts"),
		RemoteTS:     selectors(m, "remote-ts"),
	}, d.err()
}

func parseAlgorithms(d *decoder) Algorithms {
	return Algorithms{
		Encryption:     d.text("encr-alg"),
		EncryptionBits: d.text("encr-keysize"),
		Integrity:      d.text("integ-alg"),
		IntegrityBits:  d.text("integ-keysize"),
		PRF:            d.text("prf-alg"),
		KeyExchange:    d.text("dh-group"),
		ESN:            d.text("esn") != "",
	}
}
