package portmap

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/textproto"
	"net/url"
	"strings"
	"time"
)

// Searching for UPnP, UPnP Device Architecture 1.1 section 1.3.
const (
	// searchWindow is how long after the last question an answer may take: the
	// second that is asked for (MX), and as much again for slow routers.
	searchWindow = 2 * time.Second
	searchMX     = "1"
	// httpTimeout bounds one HTTP request to the router.
	httpTimeout = 5 * time.Second
	// maxDocument bounds what is read of any HTTP reply. Descriptions of real
	// routers are below 20 kB.
	maxDocument = 256 << 10
	// maxSearchReply is more than fits into one packet of Ethernet.
	maxSearchReply = 2048
	// maxDescriptions bounds how many are fetched; some routers have one for
	// each version.
	maxDescriptions = 4
)

// ssdpGroup is where UPnP devices listen; on this link alone, for the default
// TTL of multicast is 1.
var ssdpGroup = netip.AddrFrom4([4]byte{239, 255, 255, 250})

// gatewayTypes are asked for by name. A gateway of version 2 answers to 1 as
// well, says section 1.3.2, and some do not.
var gatewayTypes = []string{
	"urn:schemas-upnp-org:device:InternetGatewayDevice:1",
	"urn:schemas-upnp-org:device:InternetGatewayDevice:2",
}

func searchRequest(host, target string) []byte {
	return []byte("M-SEARCH * HTTP/1.1\r\nHOST: " + host + "\r\nMAN: \"ssdp:discover\"\r\nMX: " + searchMX + "\r\nST: " + target + "\r\n\r\n")
}

// locate asks for the router's description and calls try with each place it is
// said to be at, until one is good. Answers that do not come from the router,
// or lead elsewhere, are ignored.
func locate(ctx context.Context, r router, try func(*url.URL) error) error {
	lc := net.ListenConfig{Control: r.control}
	// Bound to the address, a socket sends multicast from its interface.
	pc, err := lc.ListenPacket(ctx, "udp4", netip.AddrPortFrom(r.source, 0).String())
	if err != nil {
		return err
	}
	defer pc.Close()
	unwatch := context.AfterFunc(ctx, func() { _ = pc.SetDeadline(time.Unix(1, 0)) })
	defer unwatch()

	l := &locator{router: r, try: try, tried: map[string]bool{}}
	for _, window := range []time.Duration{retransmit, searchWindow} { // what is lost is asked again
		l.ask(pc)
		if err := pc.SetReadDeadline(time.Now().Add(window)); err != nil {
			return err
		}
		if ctx.Err() != nil { // before the deadline was set anew
			return ctx.Err()
		}
		if err := l.listen(pc); !errors.Is(err, errUnanswered) {
			return err
		}
	}
	if l.err != nil {
		return l.err
	}
	return silence(ctx, netip.AddrPortFrom(r.addr, r.ssdpPort), l.ignored, errUnanswered)
}

// locator is one search.
type locator struct {
	router
	try     func(*url.URL) error
	tried   map[string]bool
	err     error // of the last try
	ignored int
}

// ask puts the question to the group, and to the router by itself, which
// reaches it where the LAN's switches lose multicast.
func (l *locator) ask(pc net.PacketConn) {
	for _, to := range []netip.Addr{ssdpGroup, l.addr} {
		dst := netip.AddrPortFrom(to, l.ssdpPort)
		for _, target := range gatewayTypes {
			// What is not sent is not answered.
			_, _ = pc.WriteTo(searchRequest(dst.String(), target), net.UDPAddrFromAddrPort(dst))
		}
	}
}

func (l *locator) listen(pc net.PacketConn) error {
	buf := make([]byte, maxSearchReply)
	for l.ignored < maxIgnored {
		n, from, err := pc.ReadFrom(buf)
		if isTimeout(err) {
			return errUnanswered
		}
		if err != nil {
			return err
		}
		if udp, ok := from.(*net.UDPAddr); !ok || udp.AddrPort().Addr().Unmap() != l.addr {
			continue // not counted: others must not be able to end the search
		}
		at, err := parseSearchReply(buf[:n])
		if err != nil || !l.owns(at) {
			l.ignored++
			continue
		}
		if l.tried[at.String()] || len(l.tried) == maxDescriptions {
			continue
		}
		l.tried[at.String()] = true
		if l.err = l.try(at); l.err == nil {
			return nil
		}
	}
	return errUnanswered
}

// parseSearchReply returns the place of the description.
func parseSearchReply(b []byte) (*url.URL, error) {
	text := textproto.NewReader(bufio.NewReader(bytes.NewReader(b)))
	status, err := text.ReadLine()
	if err != nil || !strings.HasPrefix(status, "HTTP/1.") || !strings.Contains(status, " 200") {
		return nil, fmt.Errorf("%w: no SSDP reply", errNonsense)
	}
	header, err := text.ReadMIMEHeader()
	if err != nil && len(header) == 0 {
		return nil, fmt.Errorf("%w: SSDP reply without headers", errNonsense)
	}
	at, err := url.Parse(header.Get("Location"))
	if err != nil || at.Scheme != "http" || at.Host == "" {
		return nil, fmt.Errorf("%w: SSDP reply that leads to %q", errNonsense, header.Get("Location"))
	}
	return at, nil
}

// owns reports whether a URL leads to the router's own address.
func (r router) owns(u *url.URL) bool {
	host, err := netip.ParseAddr(u.Hostname())
	return err == nil && host == r.addr
}

// client speaks HTTP with the router and with nobody else, wherever URLs and
// redirects lead.
func (r router) client() *http.Client {
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(r.source, 0)), Control: r.control}
	dial := func(ctx context.Context, _, addr string) (net.Conn, error) {
		to, err := netip.ParseAddrPort(addr)
		if err != nil || to.Addr() != r.addr {
			return nil, fmt.Errorf("%w: UPnP leads to %s, which is not the router %s", ErrRefused, addr, r.addr)
		}
		return dialer.DialContext(ctx, "tcp4", addr)
	}
	return &http.Client{
		Timeout:       httpTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     bounded{&http.Transport{DialContext: dial, DisableKeepAlives: true, DisableCompression: true}},
	}
}

// bounded limits the length of replies.
type bounded struct{ http.RoundTripper }

func (b bounded) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(req)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxDocument), resp.Body}
	}
	return resp, err
}
