package agent

import (
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"github.com/bodkin-net/bodkin/agent/charon"
)

// SA is an IKE SA with its CHILD SAs, as `bodkin sas` and GET
// /api/v1/nodes/{name}/sas show it; its JSON is stable. Spans of time are in whole
// seconds as of the listing, and absent where charon gives none.
type SA struct {
	Connection string         `json:"connection"`
	ID         charon.IKEID   `json:"id"`
	Version    string         `json:"version"` // of IKE
	State      charon.State   `json:"state"`
	Initiator  bool           `json:"initiator"` // this end initiated it
	LocalSPI   string         `json:"localSPI"`  // 16 hexadecimal digits
	RemoteSPI  string         `json:"remoteSPI"`
	Local      netip.AddrPort `json:"local,omitzero"`
	Remote     netip.AddrPort `json:"remote,omitzero"`
	LocalID    string         `json:"localID"`
	RemoteID   string         `json:"remoteID"`
	// LocalNAT and RemoteNAT: IKE saw a NAT before that end, or one end pretends.
	LocalNAT           bool       `json:"localNAT"`
	RemoteNAT          bool       `json:"remoteNAT"`
	Proposal           SAProposal `json:"proposal"`
	EstablishedSeconds *int64     `json:"establishedSeconds,omitempty"`
	RekeySeconds       *int64     `json:"rekeySeconds,omitempty"`
	ReauthSeconds      *int64     `json:"reauthSeconds,omitempty"`
	ExpireSeconds      *int64     `json:"expireSeconds,omitempty"`
	Children           []ChildSA  `json:"children"`
}

// ChildSA is a CHILD SA: a pair of ESP SAs. Several have one name while one is
// rekeyed.
type ChildSA struct {
	Name             string         `json:"name"`
	ID               charon.ChildID `json:"id"`
	ReqID            uint32         `json:"reqID"`
	State            charon.State   `json:"state"`
	Mode             string         `json:"mode"`
	Protocol         string         `json:"protocol"`
	UDP              bool           `json:"udp"` // ESP in UDP, RFC 3948
	Proposal         SAProposal     `json:"proposal"`
	InstalledSeconds *int64         `json:"installedSeconds,omitempty"`
	RekeySeconds     *int64         `json:"rekeySeconds,omitempty"`
	ExpireSeconds    *int64         `json:"expireSeconds,omitempty"`
	In               SACounters     `json:"in"`
	Out              SACounters     `json:"out"`
	LocalTS          []string       `json:"localTS"`
	RemoteTS         []string       `json:"remoteTS"`
}

// SACounters are one direction's.
type SACounters struct {
	SPI     string `json:"spi"` // 8 hexadecimal digits
	Bytes   uint64 `json:"bytes"`
	Packets uint64 `json:"packets"`
	// LastSeconds is since the last packet, absent when there was none.
	LastSeconds *int64 `json:"lastSeconds,omitempty"`
}

// SAProposal are the algorithms that were agreed on, in charon's words.
type SAProposal struct {
	Encryption     string `json:"encryption,omitempty"`
	EncryptionBits string `json:"encryptionBits,omitempty"`
	Integrity      string `json:"integrity,omitempty"`
	IntegrityBits  string `json:"integrityBits,omitempty"`
	PRF            string `json:"prf,omitempty"`
	KeyExchange    string `json:"keyExchange,omitempty"`
	ESN            bool   `json:"esn,omitempty"` // RFC 4304
}

// sasOf is charon's listing for everybody else.
func sasOf(list []charon.SA) []SA {
	out := make([]SA, 0, len(list))
	for _, is := range list {
		sa := SA{
			Connection: is.Name, ID: is.ID, Version: is.Version, State: is.State, Initiator: is.Initiator,
			LocalSPI: hex(is.ResponderSPI, 16), RemoteSPI: hex(is.InitiatorSPI, 16),
			Local: is.Local, Remote: is.Remote, LocalID: is.LocalID, RemoteID: is.RemoteID,
			LocalNAT: is.LocalNAT || is.FakeNAT, RemoteNAT: is.RemoteNAT, Proposal: SAProposal(is.Algorithms),
			EstablishedSeconds: span(is.EstablishedFor), RekeySeconds: span(is.RekeyIn),
			ReauthSeconds: span(is.ReauthIn), ExpireSeconds: span(is.ExpiresIn), Children: []ChildSA{},
		}
		if is.Initiator {
			sa.LocalSPI, sa.RemoteSPI = sa.RemoteSPI, sa.LocalSPI
		}
		for _, c := range is.Children {
			sa.Children = append(sa.Children, ChildSA{
				Name: c.Name, ID: c.ID, ReqID: c.ReqID, State: c.State, Mode: c.Mode, Protocol: c.Protocol, UDP: c.Encap,
				Proposal: SAProposal(c.Algorithms), InstalledSeconds: span(c.InstalledFor), RekeySeconds: span(c.RekeyIn), ExpireSeconds: span(c.ExpiresIn),
				In:      SACounters{SPI: hex(uint64(c.SPIIn), 8), Bytes: c.BytesIn, Packets: c.PacketsIn, LastSeconds: span(c.LastIn)},
				Out:     SACounters{SPI: hex(uint64(c.SPIOut), 8), Bytes: c.BytesOut, Packets: c.PacketsOut, LastSeconds: span(c.LastOut)},
				LocalTS: words(c.LocalTS), RemoteTS: words(c.RemoteTS),
			})
		}
		out = append(out, sa)
	}
	return out
}

// Charon is the SA as package charon has it, which can format it as swanctl does.
func (s SA) Charon() charon.SA {
	out := charon.SA{
		Name: s.Connection, ID: s.ID, Version: s.Version, State: s.State, Initiator: s.Initiator,
		InitiatorSPI: unhex(s.RemoteSPI), ResponderSPI: unhex(s.LocalSPI),
		Local: s.Local, Remote: s.Remote, LocalID: s.LocalID, RemoteID: s.RemoteID, LocalNAT: s.LocalNAT, RemoteNAT: s.RemoteNAT,
		Algorithms: charon.Algorithms(s.Proposal), EstablishedFor: unspan(s.EstablishedSeconds), RekeyIn: unspan(s.RekeySeconds),
		ReauthIn: unspan(s.ReauthSeconds), ExpiresIn: unspan(s.ExpireSeconds),
	}
	if s.Initiator {
		out.InitiatorSPI, out.ResponderSPI = out.ResponderSPI, out.InitiatorSPI
	}
	for _, c := range s.Children {
		out.Children = append(out.Children, charon.ChildSA{
			Name: c.Name, ID: c.ID, ReqID: c.ReqID, State: c.State, Mode: c.Mode, Protocol: c.Protocol, Encap: c.UDP,
			SPIIn: uint32(unhex(c.In.SPI)), SPIOut: uint32(unhex(c.Out.SPI)), BytesIn: c.In.Bytes, BytesOut: c.Out.Bytes,
			PacketsIn: c.In.Packets, PacketsOut: c.Out.Packets, LastIn: unspan(c.In.LastSeconds), LastOut: unspan(c.Out.LastSeconds),
			Algorithms: charon.Algorithms(c.Proposal), InstalledFor: unspan(c.InstalledSeconds), RekeyIn: unspan(c.RekeySeconds),
			ExpiresIn: unspan(c.ExpireSeconds), LocalTS: selectors(c.LocalTS), RemoteTS: selectors(c.RemoteTS),
		})
	}
	return out
}

func hex(n uint64, digits int) string { return fmt.Sprintf("%0*x", digits, n) }

// unhex is hex's inverse, and 0 for what is none.
func unhex(s string) uint64 {
	n, _ := strconv.ParseUint(s, 16, 64)
	return n
}

func span(d time.Duration) *int64 {
	if d == charon.Never {
		return nil
	}
	s := int64(d / time.Second)
	return &s
}

func unspan(s *int64) time.Duration {
	if s == nil {
		return charon.Never
	}
	return time.Duration(*s) * time.Second
}

func words(ts []charon.Selector) []string {
	out := make([]string, 0, len(ts))
	for _, s := range ts {
		out = append(out, string(s))
	}
	return out
}

func selectors(ts []string) []charon.Selector {
	out := make([]charon.Selector, 0, len(ts))
	for _, s := range ts {
		out = append(out, charon.Selector(s))
	}
	return out
}
