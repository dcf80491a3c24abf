package punch

import (
	"fmt"
	"net/netip"
)

// Explain says in words why an ICE attempt found no path, from what is known of
// both NATs and what the checks met. What was seen comes before what can
// be concluded; a NAT is blamed only if it makes a path impossible, not merely
// unlikely.
func Explain(local, remote NAT, st Stats) string {
	t := st.total()
	switch {
	case local.Blocked != "":
		return "UDP does not leave this network: " + local.Blocked
	case remote.Blocked != "":
		return "UDP does not leave the peer's network: " + remote.Blocked
	case t.RequestsSent == 0:
		return "no check could be sent: the peer named no address that may be tried"
	case t.ResponsesReceived > 0:
		return "checks were answered, but the attempt ended before both sides agreed on a path"
	case t.RequestsReceived > 0:
		return "the peer's checks arrive here, but neither our answers nor our checks reach it: something on the way to the peer drops them"
	}
	if why := impossible(local, remote); why != "" {
		return why
	}
	return fmt.Sprintf("%s sent to %s, nothing came back: a firewall drops UDP between the two, or the peer did not start",
		count(t.RequestsSent, "check"), count(remotes(st), "address"))
}

// impossible says why two NATs cannot be passed by checks from one port; empty
// when they can, or when too little is known.
//
// A mapping that depends on the destination has a port nobody can name before
// it is used. The peer can only learn it from a packet that arrives, so its
// filter must admit that packet from any port; and its own mapping must be one
// that can be aimed at.
func impossible(local, remote NAT) string {
	here, there := symmetric(local), symmetric(remote)
	const unpredictable = "symmetric NAT (%s mapping) %s and %s %s: the port to aim at changes with the destination, so neither side's packets match"
	switch {
	case here && there:
		return "both NATs are symmetric (mapping depends on the destination): each side's port is only known once the other has reached it, so neither can aim"
	case here && remote.Filtering == AddressAndPortDependent:
		return fmt.Sprintf(unpredictable, local.Mapping, "here", filter(remote), "at the peer")
	case there && local.Filtering == AddressAndPortDependent:
		return fmt.Sprintf(unpredictable, remote.Mapping, "at the peer", filter(local), "here")
	}
	return ""
}

func symmetric(n NAT) bool {
	return n.Present && (n.Mapping == AddressDependent || n.Mapping == AddressAndPortDependent)
}

func filter(n NAT) string {
	if n.Present {
		return "port-filtering NAT"
	}
	return "port-filtering firewall"
}

// remotes is how many of the peer's addresses were tried.
func remotes(st Stats) int {
	seen := map[netip.AddrPort]bool{}
	for _, p := range st.Pairs {
		seen[p.Remote.Addr] = true
	}
	return len(seen)
}

func count(n int, what string) string {
	switch {
	case n == 1:
		return "1 " + what
	case what == "address":
		return fmt.Sprintf("%d addresses", n)
	default:
		return fmt.Sprintf("%d %ss", n, what)
	}
}
