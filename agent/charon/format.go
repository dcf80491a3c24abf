package charon

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"
)

// Format writes SAs the way `swanctl --list-sas` does, which operators of
// FabEdge know as list-sa. Marks, interface IDs, virtual addresses and queued
// tasks, which Bodkin's connections do not have, are left out.
func Format(w io.Writer, sas []SA) error {
	var b bytes.Buffer
	for _, sa := range sas {
		formatIKE(&b, sa)
		for _, child := range sa.Children {
			formatChild(&b, child)
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}

func formatIKE(b *bytes.Buffer, sa SA) {
	// The star marks our own side.
	initiator, responder := "", "*"
	if sa.Initiator {
		initiator, responder = "*", ""
	}
	fmt.Fprintf(b, "%s: #%d, %s, IKEv%s, %016x_i%s %016x_r%s\n",
		sa.Name, sa.ID, sa.State, sa.Version, sa.InitiatorSPI, initiator, sa.ResponderSPI, responder)
	fmt.Fprintf(b, "  local  '%s' @ %s\n", sa.LocalID, host(sa.Local))
	fmt.Fprintf(b, "  remote '%s' @ %s\n", sa.RemoteID, host(sa.Remote))
	if algs := sa.Algorithms.String(); algs != "" {
		fmt.Fprintf(b, "  %s\n", algs)
	}
	if sa.EstablishedFor != Never {
		fmt.Fprintf(b, "  established %s ago", seconds(sa.EstablishedFor))
		formatSpan(b, "rekeying", sa.RekeyIn)
		formatSpan(b, "reauth", sa.ReauthIn)
		formatSpan(b, "expires", sa.ExpiresIn)
		b.WriteByte('\n')
	}
}

func formatChild(b *bytes.Buffer, c ChildSA) {
	encap := ""
	if c.Encap {
		encap = "-in-UDP"
	}
	fmt.Fprintf(b, "  %s: #%d, reqid %d, %s, %s%s, %s:%s\n",
		c.Name, c.ID, c.ReqID, c.State, c.Mode, encap, c.Protocol, c.Algorithms)
	fmt.Fprintf(b, "    installed %s ago", seconds(c.InstalledFor))
	formatSpan(b, "rekeying", c.RekeyIn)
	formatSpan(b, "expires", c.ExpiresIn)
	b.WriteByte('\n')
	formatCounters(b, "in ", c.SPIIn, c.BytesIn, c.PacketsIn, c.LastIn)
	formatCounters(b, "out", c.SPIOut, c.BytesOut, c.PacketsOut, c.LastOut)
	fmt.Fprintf(b, "    local  %s\n", joinSelectors(c.LocalTS))
	fmt.Fprintf(b, "    remote %s\n", joinSelectors(c.RemoteTS))
}

func formatCounters(b *bytes.Buffer, dir string, spi uint32, octets, packets uint64, last time.Duration) {
	fmt.Fprintf(b, "    %s %08x, %6d bytes, %5d packets", dir, spi, octets, packets)
	if last != Never {
		fmt.Fprintf(b, ", %5ds ago", int64(last/time.Second))
	}
	b.WriteByte('\n')
}

func formatSpan(b *bytes.Buffer, what string, d time.Duration) {
	if d != Never {
		fmt.Fprintf(b, ", %s in %s", what, seconds(d))
	}
}

// String writes the algorithms as charon does: "AES_GCM_16-128",
// "AES_CBC-128/HMAC_SHA2_256_128/PRF_HMAC_SHA2_256/CURVE_25519".
func (a Algorithms) String() string {
	var parts []string
	add := func(name, bits string) {
		if bits != "" {
			name += "-" + bits
		}
		if name != "" {
			parts = append(parts, name)
		}
	}
	add(a.Encryption, a.EncryptionBits)
	add(a.Integrity, a.IntegrityBits)
	add(a.PRF, "")
	add(a.KeyExchange, "")
	if a.ESN {
		add("ESN", "")
	}
	return strings.Join(parts, "/")
}

func host(ap netip.AddrPort) string {
	addr := anyAddr
	if ap.Addr().IsValid() {
		addr = ap.Addr().String()
	}
	return fmt.Sprintf("%s[%d]", addr, ap.Port())
}

func seconds(d time.Duration) string { return fmt.Sprintf("%ds", int64(d/time.Second)) }

func joinSelectors(list []Selector) string {
	parts := make([]string, len(list))
	for i, s := range list {
		parts[i] = string(s)
	}
	return strings.Join(parts, " ")
}
