package doctor

import (
	"context"
	"net"
	"net/netip"
	"net/url"
	"os"
	"sync"
	"time"
)

const (
	// resolveTimeout is for the name of the rendezvous: a resolver that takes
	// longer is as good as none, and all else waits for it.
	resolveTimeout = 3 * time.Second
	// sourceTimeout bounds each source, beside each other: STUN's retransmissions
	// reach 3.1 s, and a TCP SYN is sent again after 1 and 3 s.
	sourceTimeout = 5 * time.Second
)

// source is where a group of facts comes from.
type source int

const (
	fromAgent source = iota
	fromCharon
	fromPorts
	fromICMP
	fromRaw
	fromKernel
	fromNetfilter
	fromTCP
	fromUDP
	fromMTU
	fromRewrite
	fromState
	sources // their number
)

// gatherers write each its own group of Facts, and read Config, Cert and Target.
var gatherers = [sources]func(context.Context, *Facts){
	fromAgent:     gatherAgent,
	fromCharon:    gatherCharon,
	fromPorts:     gatherPorts,
	fromICMP:      gatherICMP,
	fromRaw:       gatherRaw,
	fromKernel:    gatherKernel,
	fromNetfilter: gatherNetfilter,
	fromTCP:       gatherTCP,
	fromUDP:       gatherUDP,
	fromMTU:       gatherMTU,
	fromRewrite:   gatherRewrite,
	fromState:     gatherState,
}

// gather asks the sources that the checks need, all at once.
func gather(ctx context.Context, o Options, chosen []check) Facts {
	f := Facts{Now: time.Now(), Version: o.Version, Root: os.Geteuid() == 0}
	f.Config = readConfig(o.Config)
	f.Cert = readCertificate(f.Config.Config)
	f.Target = resolve(ctx, f.Config)
	f.Units = findUnits()
	var needed [sources]bool
	for _, c := range chosen {
		for _, s := range c.needs {
			needed[s] = true
		}
	}
	var all sync.WaitGroup
	for s, need := range needed {
		if need {
			all.Go(func() {
				ctx, cancel := context.WithTimeout(ctx, sourceTimeout)
				defer cancel()
				gatherers[s](ctx, &f)
			})
		}
	}
	all.Wait()
	return f
}

// resolve finds the addresses of the rendezvous.
func resolve(ctx context.Context, c ConfigFacts) (t TargetFacts) {
	u, err := url.Parse(c.Config.Rendezvous)
	if err != nil || u.Hostname() == "" {
		t.Err = errNoRendezvous
		return t
	}
	t.Host, t.Port = u.Hostname(), u.Port()
	if t.Port == "" {
		t.Port = "7443"
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", t.Host)
	if err != nil {
		t.Err = err
		return t
	}
	own, _ := net.InterfaceAddrs() // an error leaves Here false
	for _, a := range addrs {
		a = a.Unmap()
		t.Addrs = append(t.Addrs, a)
		for _, o := range own {
			if n, is := o.(*net.IPNet); is && n.IP.Equal(net.IP(a.AsSlice())) {
				t.Here = true
			}
		}
	}
	return t
}

// nowhere4 and nowhere6 are addresses that nobody has (RFC 5737, RFC 3849): where
// there is no rendezvous, the way to them is the default route.
var (
	nowhere4 = netip.MustParseAddr("192.0.2.1")
	nowhere6 = netip.MustParseAddr("2001:db8::1")
)
