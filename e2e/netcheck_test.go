package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

// netcheckResult is what `bodkin netcheck -o json` prints, of that what is
// looked at here.
type netcheckResult struct {
	UDP    bool
	Mapped netip.AddrPort
	NAT    struct {
		Present                                           bool
		Mapping, Filtering, Allocation, Hairpin, Poisoned string
		Step, Hops                                        int
	}
	Meaning string
}

// summary puts what a NAT does into one line.
func (r netcheckResult) summary() string {
	if !r.UDP {
		return "UDP blocked"
	}
	if !r.NAT.Present {
		return fmt.Sprintf("no NAT, filtering %s", r.NAT.Filtering)
	}
	s := fmt.Sprintf("mapping %s, filtering %s, allocation %s", r.NAT.Mapping, r.NAT.Filtering, r.NAT.Allocation)
	if r.NAT.Step != 0 {
		s += fmt.Sprintf(" %d", r.NAT.Step)
	}
	return s + fmt.Sprintf(", hairpin %s, poisoned %s, hops %d", r.NAT.Hairpin, r.NAT.Poisoned, r.NAT.Hops)
}

const (
	eiei   = "mapping endpoint-independent, filtering endpoint-independent, allocation preserving, "
	eiapd  = "mapping endpoint-independent, filtering address-and-port-dependent, allocation preserving, "
	apdapd = "mapping address-and-port-dependent, filtering address-and-port-dependent, allocation "
)

// What netcheck says behind each router of the lab, asking the rendezvous
// without an account. The rendezvous has one address: filtering by address
// looks like none.
func TestNetcheck(t *testing.T) {
	ctx, c := start(t, ClusterOptions{})
	carrier, err := c.Router("carrier", lab.RouterOptions{NAT: lab.PortRestricted, LAN: netip.MustParsePrefix("100.64.0.0/24")})
	must(t, err)
	hosts := map[string]*lab.Host{}
	want := map[string]string{}
	for _, site := range []struct {
		name, want string
		router     lab.RouterOptions
	}{
		{"none", "no NAT, filtering endpoint-independent", lab.RouterOptions{NAT: lab.None}},
		{"fullcone", eiei + "hairpin no, poisoned no, hops 2", lab.RouterOptions{NAT: lab.FullCone}},
		{"hairpin", eiei + "hairpin yes, poisoned no, hops 2", lab.RouterOptions{NAT: lab.FullCone, Hairpin: true}},
		{"addrrestricted", eiei + "hairpin no, poisoned no, hops 2", lab.RouterOptions{NAT: lab.AddressRestricted}},
		{"portrestricted", eiapd + "hairpin no, poisoned no, hops 2", lab.RouterOptions{NAT: lab.PortRestricted}},
		{"poisoned", eiapd + "hairpin no, poisoned yes, hops 2", lab.RouterOptions{NAT: lab.PortRestrictedPoisoned}},
		{"symmetric", apdapd + "random, hairpin no, poisoned , hops 2", lab.RouterOptions{NAT: lab.Symmetric}},
		{"sequential", apdapd + "sequential 1, hairpin no, poisoned , hops 2", lab.RouterOptions{NAT: lab.SymmetricSequential}},
		{"behindcarrier", eiapd + "hairpin no, poisoned no, hops 3", lab.RouterOptions{NAT: lab.PortRestricted, Carrier: carrier}},
		{"blocked", "UDP blocked", lab.RouterOptions{NAT: lab.UDPBlocked}},
	} {
		r, err := c.Router(site.name+"-nat", site.router)
		must(t, err)
		hosts[site.name], err = c.Host(site.name, lab.HostOptions{Router: r})
		must(t, err)
		want[site.name] = site.want
	}
	var all sync.WaitGroup
	for name, h := range hosts {
		all.Go(func() {
			out, err := h.Run(ctx, c.netcheck("-o", "json")...)
			if exit := (*exec.ExitError)(nil); name == "blocked" && errors.As(err, &exit) && exit.ExitCode() == 5 {
				err = nil // it has found a problem, and says so by that
			}
			var r netcheckResult
			if err == nil {
				err = json.Unmarshal([]byte(out), &r)
			}
			if err != nil {
				t.Errorf("%s: %v\n%s", name, err, out)
			} else if got := r.summary(); got != want[name] {
				t.Errorf("%s:\ngot  %s\nwant %s\n%s", name, got, want[name], out)
			}
		})
	}
	all.Wait()
	netcheckAgain(ctx, t, c, hosts["portrestricted"])
}

// netcheckAgain asks while the flows of the first time still live: nothing of
// the answer may have changed.
func netcheckAgain(ctx context.Context, t *testing.T, c *Cluster, h *lab.Host) {
	out, err := h.Run(ctx, c.netcheck()...)
	must(t, err)
	for _, words := range []string{
		fmt.Sprintf("from          %s[4500]\n", h.Addr()), "UDP           passes\n",
		"mapping       endpoint-independent\n", "filtering     address-and-port-dependent\n",
		"\ndirect with everybody whose network lets UDP out\n",
	} {
		if !strings.Contains(out, words) {
			t.Errorf("no %q in\n%s", words, out)
		}
	}
	t.Log("\n" + out)
}

// netcheck is a command line that asks the rendezvous' STUN service.
func (c *Cluster) netcheck(args ...string) []string {
	argv := []string{c.bin, "netcheck"}
	for _, port := range stunPorts[:2] {
		argv = append(argv, "--stun", netip.AddrPortFrom(c.PublicAddr, port).String())
	}
	return append(argv, args...)
}
