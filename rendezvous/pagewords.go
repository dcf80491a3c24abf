package rendezvous

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/bodkin-net/bodkin/punch/nat"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// kindText is a candidate kind in the words of RFC 8445 section 5.1.1.
func kindText(k wire.PathKind) string {
	switch k {
	case wire.PathServerReflexive:
		return "server-reflexive"
	case wire.PathPeerReflexive:
		return "peer-reflexive"
	case wire.PathMapped:
		return "port mapping"
	case wire.PathPublic:
		return "public address"
	}
	return string(k)
}

// strategyText says how a pair is brought together.
func strategyText(s nat.Strategy) string {
	switch s {
	case nat.ICE:
		return "by ICE checks"
	case nat.Openers:
		return "by openers"
	case nat.Predict:
		return "by predicted ports"
	case nat.Probe:
		return "by a search for ports"
	case nat.None:
		return "nothing is tried"
	case strategyPublic:
		return "at a public address"
	}
	return string(s)
}

// describeNAT names a NAT. Agents ask the rendezvous at one address, which
// cannot tell full cones from address-restricted ones.
func describeNAT(n wire.NAT) natWords {
	if n.Blocked != "" {
		return natWords{"UDP blocked", n.Blocked}
	}
	var words []string
	if n.Present && n.Mapping != "" {
		words = append(words, string(n.Mapping)+" mapping")
	}
	if n.Filtering != "" {
		words = append(words, string(n.Filtering)+" filtering")
	}
	words = append(words, allocationWords(n)...)
	if n.Poisoned == wire.Yes {
		words = append(words, "remembers unasked packets (poisoned)")
	}
	if n.Hairpin == wire.Yes {
		words = append(words, "hairpins")
	}
	if n.LifetimeSeconds > 0 {
		words = append(words, fmt.Sprintf("mappings live %d s or longer", n.LifetimeSeconds))
	}
	if n.Present && n.Hops > 0 {
		words = append(words, fmt.Sprintf("TTL %d leaves it", n.Hops))
	}
	return natWords{natGloss(n), strings.Join(words, ", ")}
}

func allocationWords(n wire.NAT) []string {
	switch {
	case !n.Present || n.Allocation == "":
		return nil
	case n.Allocation == wire.Sequential:
		return []string{fmt.Sprintf("sequential ports in steps of %d", n.Step)}
	case n.Allocation == wire.Preserving:
		return []string{"preserves ports"}
	}
	return []string{string(n.Allocation) + " ports"}
}

func natGloss(n wire.NAT) string {
	open := n.Filtering == wire.EndpointIndependent
	switch {
	case n.Present && n.Mapping == "":
		return "NAT of unknown mapping"
	case n.Present && n.Mapping != wire.EndpointIndependent:
		return "symmetric"
	case n.Present && open:
		return "full or address-restricted cone"
	case n.Present && n.Filtering == wire.AddressDependent:
		return "address-restricted cone"
	case n.Present && n.Filtering == wire.AddressAndPortDependent:
		return "port-restricted cone"
	case n.Present:
		return "cone of unknown filtering"
	case n.Mapping == "" && n.Filtering == "":
		return "not known yet"
	case n.Filtering == "" || open:
		return "no NAT"
	}
	return "no NAT, stateful firewall"
}

// byteText is an amount in the decimal units that people are billed by.
func byteText(n int64) string {
	switch {
	case n >= 10_000_000:
		return fmt.Sprintf("%d MB", n/1_000_000)
	case n >= 10_000:
		return fmt.Sprintf("%d kB", n/1000)
	}
	return fmt.Sprintf("%d B", n)
}

// endpointText writes an address as strongSwan does: addr[port].
func endpointText(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return fmt.Sprintf("%s[%d]", a.Addr().Unmap(), a.Port())
}

func momentOf(now, t time.Time) moment {
	if t.IsZero() {
		return moment{}
	}
	t = t.UTC()
	return moment{ISO: t.Format(time.RFC3339), UTC: t.Format("2006-01-02 15:04:05 UTC"), Ago: ago(now.Sub(t))}
}

// ago allows for a time that is a little ahead: the snapshot's clock may have
// been read just before it.
func ago(d time.Duration) string {
	if d < time.Second {
		return "just now"
	}
	return span(d) + " ago"
}

// span is a duration in its largest unit, rounded down, at least one second.
func span(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d >= 2*day:
		return fmt.Sprintf("%d days", d/day)
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d h", d/time.Hour)
	case d >= 2*time.Minute:
		return fmt.Sprintf("%d min", d/time.Minute)
	}
	return fmt.Sprintf("%d s", max(1, d/time.Second))
}
