// Package portmap asks the router this host is behind to forward a UDP port to
// it: by PCP (RFC 6887), NAT-PMP (RFC 6886) or UPnP's Internet Gateway Device,
// whichever the router speaks.
//
// Only the default gateway itself is asked and believed: no other host of the
// LAN can make itself the router here, whatever it answers. IPv4 alone is
// translated by home routers, so IPv4 alone is mapped.
package portmap

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"time"
)

// Errors that Keep's log and its tests tell apart.
var (
	// ErrNoRouter: no default route, or one without a gateway.
	ErrNoRouter = errors.New("no router")
	// ErrSilent: nothing came back that answers what was asked.
	ErrSilent = errors.New("no answer")
	// ErrRefused: the router answered and does not do it.
	ErrRefused = errors.New("refused")
	// errNonsense marks what came from the router's address and answers
	// nothing that was asked: it is ignored.
	errNonsense = errors.New("no answer to what was asked")
	// errLost: the router answers and no longer has the mapping.
	errLost = errors.New("mapping lost")
)

// Mapping is a port of the router that leads to this host.
type Mapping struct {
	// Protocol is "PCP", "NAT-PMP" or "UPnP", empty when there is no mapping.
	Protocol string
	// Outside is the router's address and port. Behind a carrier's NAT the
	// address is not a public one.
	Outside netip.AddrPort
	// Lifetime is what the router granted, 0 when it ends with the router alone.
	Lifetime time.Duration
}

// Options say what is mapped.
type Options struct {
	// Inside is the socket's address. An address that is unspecified or not
	// set stands for the one this host has on the router's network.
	Inside netip.AddrPort
	// Mark is the socket mark (SO_MARK) of what is sent, 0 for none.
	Mark uint32
	// Secret makes the PCP mapping's nonce. The same secret after a restart
	// takes over what a killed process left on the router; without one the
	// router would refuse for hours, for want of the nonce. Empty means that a
	// random one is made.
	Secret []byte
	// Look, if not nil, brings requests to see at once whether the mapping
	// still stands.
	Look <-chan struct{}
	// Log gets what was found and lost.
	Log *slog.Logger
}

// Timing.
const (
	// requestedLifetime is what RFC 6886 section 3.3 recommends: two hours.
	requestedLifetime = 2 * time.Hour
	// longestLifetime bounds what is believed, RFC 6887 section 15.
	longestLifetime = 24 * time.Hour
	// shortestRenewal is the least time between two renewals, RFC 6887 section
	// 11.2.1, whatever lifetime a router grants.
	shortestRenewal = 4 * time.Second
	// checkInterval is between looks at whether the router still has the
	// mapping: one that rebooted has forgotten it. The two packets do not leave
	// the LAN.
	checkInterval = time.Minute
	// recheckInterval is between looks at a router that was silent, which may
	// be rebooting.
	recheckInterval = 5 * time.Second
	// silences in a row are a router that is gone.
	silences = 3
	// retryMin doubles up to retryMax between searches of a router that maps
	// nothing: at boot it may be slower than this host, and most never will.
	retryMin = 5 * time.Second
	retryMax = 10 * time.Minute
	// searchTimeout bounds the search for all protocols, which a router that
	// maps nothing ends in half of it.
	searchTimeout = 5 * time.Second
	// requestTimeout bounds one protocol's part in making a mapping: UPnP takes
	// some HTTP requests, of which slow routers need a second each.
	requestTimeout = 10 * time.Second
	// releaseTimeout bounds giving the mapping back, which a stopping agent
	// waits for.
	releaseTimeout = time.Second
)

// mapper is one protocol spoken with one router, about one port. It belongs to
// one goroutine.
type mapper interface {
	// request makes the mapping, or renews it. suggested is the outside address
	// and port that is wanted; the router may choose another.
	request(ctx context.Context, suggested netip.AddrPort) (Mapping, error)
	// check returns errLost when the router no longer has the mapping.
	check(ctx context.Context) error
	// release removes what request has made or may have made.
	release(ctx context.Context) error
}

// protocol finds out whether a router speaks it. Asking changes nothing there.
type protocol struct {
	name string
	find func(ctx context.Context, s site) (mapper, error)
}

// protocols are in the order of preference: PCP tells about everything, UPnP
// needs the most requests.
var protocols = []protocol{{"PCP", findPCP}, {"NAT-PMP", findNATPMP}, {"UPnP", findUPnP}}

// site is what all protocols need to know.
type site struct {
	router
	inside uint16
	nonce  nonce
}

// Probe returns the names of the protocols that the router speaks, in the order
// of preference. It takes 5 s at most, and makes no mapping.
func Probe(ctx context.Context, o Options) ([]string, error) {
	r, err := findRouter(o)
	if err != nil {
		return nil, err
	}
	return probe(ctx, site{router: r, inside: o.Inside.Port(), nonce: newNonce(o.Secret, r.addr)}), ctx.Err()
}

func probe(ctx context.Context, s site) []string {
	var names []string
	search := startSearch(ctx, s, protocols)
	defer search.stop()
	for i, p := range protocols {
		if _, err := search.result(i); err == nil {
			names = append(names, p.name)
		}
	}
	return names
}
