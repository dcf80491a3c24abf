package punch

import (
	"fmt"
	"net/netip"

	"github.com/bodkin-net/bodkin/punch/nat"
)

// Attempt is all that is known of an attempt that found no path.
type Attempt struct {
	Local, Remote nat.Site
	// Strategy is what was tried.
	Strategy nat.Strategy
	// Hopeless is why no path was expected, empty when one was.
	Hopeless string
	// Trouble is why this side could not do its part of the strategy, nil when
	// it could.
	Trouble error
	Stats   Stats
}

// Explain says in words why an attempt found no path. What was seen comes before
// what can be concluded: a NAT is blamed only if it makes a path impossible, not
// merely unlikely, and only if nothing was seen that speaks against it.
func Explain(a Attempt) string {
	t := a.Stats.total()
	switch {
	case t.ResponsesReceived > 0:
		return "checks were answered, but the attempt ended before both sides agreed on a path"
	case t.RequestsReceived > 0:
		return "the peer's checks arrive here, but neither our answers nor our checks reach it: something on the way to the peer drops them"
	case a.Hopeless != "":
		return a.Hopeless
	case a.Local.NAT.Blocked != "":
		return "UDP does not leave this network: " + a.Local.NAT.Blocked
	case a.Remote.NAT.Blocked != "":
		return "UDP does not leave the peer's network: " + a.Remote.NAT.Blocked
	case t.RequestsSent == 0:
		return "no check could be sent: the peer named no address that may be tried"
	case a.Trouble != nil:
		return "this side could not do its part: " + a.Trouble.Error()
	}
	return a.silence() + a.forged()
}

// silence explains an attempt in which nothing came back.
func (a Attempt) silence() string {
	st := a.Stats
	verdict := nat.Judge(a.Local, a.Remote)
	switch {
	case verdict.Expect == nat.Relay:
		return verdict.Reason
	case a.Strategy == nat.Probe && st.Probes > 0:
		return fmt.Sprintf("%s sent to the peer's NAT, none hit a port that the peer holds open", count(st.Probes, "probe"))
	case a.Strategy == nat.Probe:
		return fmt.Sprintf("%s opened towards the peer, none of its probes hit one", count(st.Openers, "port"))
	case a.Strategy == nat.Predict:
		return fmt.Sprintf("%s sent to predicted ports, nothing came back: other traffic may have taken the ports", count(st.total().RequestsSent, "check"))
	case verdict.Strategy == nat.Probe || verdict.Strategy == nat.Predict:
		return verdict.Reason + "; this attempt did not"
	}
	return fmt.Sprintf("%s sent to %s, nothing came back: a firewall drops UDP between the two, or the peer did not start",
		count(st.total().RequestsSent, "check"), count(remotes(st), "address"))
}

func (a Attempt) forged() string {
	if a.Stats.Forged == 0 {
		return ""
	}
	return fmt.Sprintf("; %s that came in ignored, since they were not the peer's", count(a.Stats.Forged, "packet"))
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
