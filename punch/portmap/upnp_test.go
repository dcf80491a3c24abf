package portmap

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// gateway is an Internet Gateway Device on loopback, whose ways a test sets.
type gateway struct {
	*httptest.Server
	mu sync.Mutex // guards the fields below
	// entries are the inside addresses by outside port.
	entries map[uint16]string
	// refusal is the error code of AddPortMapping, 0 for none.
	refusal func(port uint16, lease string) int
	// mute makes it refuse to tell of entries.
	mute    bool
	address string
	asked   []uint16
	leases  []string
}

const rootDescription = `<?xml version="1.0"?><root xmlns="urn:schemas-upnp-org:device-1-0">%s<device>
<deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType><serviceList><service>
<serviceType>%s</serviceType><controlURL>%s</controlURL></service></serviceList></device></root>`

func newGateway(t *testing.T, serviceType, urlBase, control string) *gateway {
	g := &gateway{entries: map[uint16]string{}, address: "203.0.113.7", refusal: func(uint16, string) int { return 0 }}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /d.xml", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, rootDescription, urlBase, serviceType, control)
	})
	mux.HandleFunc("GET /elsewhere.xml", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/d.xml", http.StatusFound)
	})
	mux.HandleFunc("GET /endless.xml", func(w http.ResponseWriter, r *http.Request) {
		for _, err := io.WriteString(w, "<root>"); err == nil && r.Context().Err() == nil; {
			_, err = io.WriteString(w, strings.Repeat("<a></a>", 1000))
		}
	})
	mux.HandleFunc("POST /control", g.control)
	g.Server = httptest.NewServer(mux)
	t.Cleanup(g.Close)
	return g
}

// control answers one SOAP request.
func (g *gateway) control(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	defer g.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	arg := func(name string) string {
		_, rest, _ := strings.Cut(string(body), "<"+name+">")
		value, _, _ := strings.Cut(rest, "</")
		return value
	}
	_, action, _ := strings.Cut(strings.Trim(r.Header.Get("SOAPAction"), `"`), "#")
	n, _ := strconv.Atoi(arg("NewExternalPort"))
	port, code, reply := uint16(n), 0, ""
	switch action {
	case "GetExternalIPAddress":
		reply = "<NewExternalIPAddress>" + g.address + "</NewExternalIPAddress>"
	case "GetSpecificPortMappingEntry":
		client, inside, ok := strings.Cut(g.entries[port], ":")
		switch {
		case g.mute:
			code = 401 // invalid action
		case !ok:
			code = upnpNoSuchEntry
		}
		reply = "<NewInternalPort>" + inside + "</NewInternalPort><NewInternalClient>" + client + "</NewInternalClient>" +
			"<NewEnabled>1</NewEnabled><NewPortMappingDescription></NewPortMappingDescription><NewLeaseDuration>0</NewLeaseDuration>"
	case "AddPortMapping":
		g.asked, g.leases = append(g.asked, port), append(g.leases, arg("NewLeaseDuration"))
		if code = g.refusal(port, arg("NewLeaseDuration")); code == 0 {
			g.entries[port] = arg("NewInternalClient") + ":" + arg("NewInternalPort")
		}
	case "DeletePortMapping":
		delete(g.entries, port)
	}
	envelope := `<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>%s</s:Body></s:Envelope>`
	if code != 0 {
		w.WriteHeader(http.StatusInternalServerError)
		fmt.Fprintf(w, envelope, fmt.Sprintf(`<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail>`+
			`<UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>%d</errorCode></UPnPError></detail></s:Fault>`, code))
		return
	}
	fmt.Fprintf(w, envelope, fmt.Sprintf(`<u:%sResponse xmlns:u="x">%s</u:%sResponse>`, action, reply, action))
}

const wanIP1 = "urn:schemas-upnp-org:service:WANIPConnection:1"

// announce answers searches on loopback, with each location.
func announce(t *testing.T, locations ...string) router {
	t.Helper()
	r := fakeRouter(t, func([]byte) (out [][]byte) {
		for _, l := range locations {
			out = append(out, []byte("HTTP/1.1 200 OK\r\nLOCATION: "+l+"\r\n\r\n"))
		}
		return out
	})
	r.ssdpPort = r.mapPort
	return r
}

func find(t *testing.T, r router) (*upnp, error) {
	t.Helper()
	m, err := findUPnP(t.Context(), site{router: r, inside: 4500})
	if err != nil {
		return nil, err
	}
	return m.(*upnp), nil
}

func TestUPnP(t *testing.T) {
	for _, service := range []string{wanIP1, "urn:schemas-upnp-org:service:WANIPConnection:2", "urn:schemas-upnp-org:service:WANPPPConnection:1"} {
		g := newGateway(t, service, "", "/control")
		u, err := find(t, announce(t, "nonsense", g.URL+"/d.xml"))
		must(t, err)
		m, err := u.request(t.Context(), netip.AddrPortFrom(netip.IPv4Unspecified(), 4500))
		if want := (Mapping{"UPnP", netip.MustParseAddrPort("203.0.113.7:4500"), requestedLifetime}); err != nil || m != want {
			t.Errorf("%s: got %+v, %v; want %+v", service, m, err, want)
		}
		must(t, u.check(t.Context()))
		if _, err := u.request(t.Context(), m.Outside); err != nil {
			t.Errorf("%s: renewal: %v", service, err)
		}
		g.mu.Lock()
		g.address = "203.0.113.8"
		g.mu.Unlock()
		if err := u.check(t.Context()); !errors.Is(err, errLost) {
			t.Errorf("%s: another address: %v, want %v", service, err, errLost)
		}
		must(t, u.release(t.Context()))
		if len(g.entries) != 0 {
			t.Errorf("%s: left after release: %v", service, g.entries)
		}
		if err := u.check(t.Context()); !errors.Is(err, errLost) {
			t.Errorf("%s: deleted: %v, want %v", service, err, errLost)
		}
	}
}

func TestUPnPRefusals(t *testing.T) {
	const ours = "127.0.0.1:4500"
	tests := []struct {
		name    string
		entries map[uint16]string
		refusal func(port uint16, lease string) int
		want    func(Mapping, error) bool
	}{
		{"taken, as the entry says", map[uint16]string{4500: "192.168.1.9:4500"}, nil,
			func(m Mapping, err error) bool {
				return err == nil && m.Outside.Port() != 4500 && m.Outside.Port() >= firstPort
			}},
		{"taken, as the router says", nil, func(port uint16, _ string) int {
			if port == 4500 {
				return upnpConflict
			}
			return 0
		}, func(m Mapping, err error) bool { return err == nil && m.Outside.Port() != 4500 }},
		{"ours from before", map[uint16]string{4500: ours}, nil,
			func(m Mapping, err error) bool { return err == nil && m.Outside.Port() == 4500 }},
		{"all taken", nil, func(uint16, string) int { return upnpConflict },
			func(_ Mapping, err error) bool { return errors.Is(err, errTaken) }},
		{"only permanent", nil, func(_ uint16, lease string) int {
			if lease != "0" {
				return upnpOnlyPermanent
			}
			return 0
		}, func(m Mapping, err error) bool { return err == nil && m.Lifetime == 0 && m.Outside.Port() == 4500 }},
		{"only the same port, and that is taken", map[uint16]string{4500: "192.168.1.9:4500"}, func(port uint16, _ string) int {
			if port != 4500 {
				return upnpSamePortRequired
			}
			return 0
		}, func(_ Mapping, err error) bool { return errors.Is(err, ErrRefused) }},
		{"not authorized", nil, func(uint16, string) int { return 606 }, func(_ Mapping, err error) bool { return upnpError(err) == 606 }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := newGateway(t, wanIP1, "", "/control")
			if tt.entries != nil {
				g.entries = tt.entries
			}
			if tt.refusal != nil {
				g.refusal = tt.refusal
			}
			u, err := find(t, announce(t, g.URL+"/d.xml"))
			must(t, err)
			m, err := u.request(t.Context(), netip.AddrPortFrom(netip.IPv4Unspecified(), 4500))
			if !tt.want(m, err) || len(g.asked) > upnpAttempts {
				t.Errorf("got %+v, %v after asking for %d with leases %s", m, err, g.asked, g.leases)
			}
			others := maps.Clone(tt.entries)
			maps.DeleteFunc(others, func(_ uint16, to string) bool { return to == ours })
			if err := u.release(t.Context()); err != nil || !maps.Equal(g.entries, others) {
				t.Errorf("after release (%v): %v, want other hosts' %v", err, g.entries, others)
			}
		})
	}
}

// A router that neither tells whose a port is nor why it refuses it may have
// given it to another host.
func TestUPnPLeavesWhatItDidNotMake(t *testing.T) {
	const neighbour = "192.168.1.9:4500"
	g := newGateway(t, wanIP1, "", "/control")
	g.mute, g.entries[4500] = true, neighbour
	g.refusal = func(uint16, string) int { return 501 } // action failed
	u, err := find(t, announce(t, g.URL+"/d.xml"))
	must(t, err)
	if m, err := u.request(t.Context(), netip.AddrPortFrom(netip.IPv4Unspecified(), 4500)); upnpError(err) != 501 {
		t.Errorf("got %+v, %v, want error 501", m, err)
	}
	must(t, u.release(t.Context()))
	if g.entries[4500] != neighbour {
		t.Error("another host's entry is deleted")
	}
}

// Nothing a router or a stranger says leads to another host.
func TestUPnPLeadsNowhereElse(t *testing.T) {
	// A second host of the LAN, with a gateway that would gladly map.
	stranger := newGateway(t, wanIP1, "", "/control")
	port := stranger.Listener.Addr().(*net.TCPAddr).Port
	other := fmt.Sprintf("http://127.0.0.2:%d", port)
	elsewhere, err := net.Listen("tcp", fmt.Sprintf("127.0.0.2:%d", port))
	must(t, err)
	visits := make(chan struct{}, 16)
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			c, err := elsewhere.Accept()
			if err != nil {
				return
			}
			c.Close()
			visits <- struct{}{}
		}
	})
	t.Cleanup(func() { // after the parallel tests below
		elsewhere.Close()
		accepting.Wait()
		if len(visits) != 0 {
			t.Error("another host was visited")
		}
	})

	base := newGateway(t, wanIP1, "<URLBase>"+other+"</URLBase>", "/control")
	control := newGateway(t, wanIP1, "", other+"/control")
	plain := newGateway(t, wanIP1, "", "/control")
	strange := newGateway(t, "urn:schemas-upnp-org:service:Dimming:1", "", "/control")
	for name, location := range map[string]string{
		"location":       other + "/d.xml",
		"host name":      strings.Replace(plain.URL, "127.0.0.1", "localhost", 1) + "/d.xml",
		"URLBase":        base.URL + "/d.xml",
		"control URL":    control.URL + "/d.xml",
		"redirect":       plain.URL + "/elsewhere.xml",
		"not found":      plain.URL + "/nothing.xml",
		"endless":        plain.URL + "/endless.xml",
		"no gateway":     strange.URL + "/d.xml",
		"user in URL":    strings.Replace(plain.URL, "127.0.0.1", "127.0.0.1@127.0.0.2", 1) + "/d.xml",
		"not HTTP":       "gopher://127.0.0.1/",
		"nothing at all": "",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if u, err := find(t, announce(t, location)); err == nil {
				t.Errorf("found %+v, want an error", u)
			}
		})
	}
}

// An answer from another address than the router's is not read at all, and any
// number of them does not end the search for the router's own.
func TestSearchHearsTheRouterAlone(t *testing.T) {
	g := newGateway(t, wanIP1, "", "/control")
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	must(t, err)
	defer pc.Close()
	liar, err := net.ListenPacket("udp4", "127.0.0.3:0")
	must(t, err)
	defer liar.Close()
	reply := []byte("HTTP/1.1 200 OK\r\nLOCATION: " + g.URL + "/d.xml\r\n\r\n")
	for range maxIgnored {
		_, err = liar.WriteTo(reply, pc.LocalAddr())
		must(t, err)
	}
	tried := 0
	l := &locator{router: router{addr: loopback}, tried: map[string]bool{}, try: func(*url.URL) error { tried++; return nil }}
	// Loopback delivers at once: what was sent is there to be read.
	must(t, pc.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
	if err := l.listen(pc); !errors.Is(err, errUnanswered) || tried != 0 {
		t.Errorf("got %v, %d tried; want %v, 0", err, tried, errUnanswered)
	}
	own, err := net.ListenPacket("udp4", netip.AddrPortFrom(loopback, 0).String())
	must(t, err)
	defer own.Close()
	_, err = own.WriteTo(reply, pc.LocalAddr())
	must(t, err)
	must(t, pc.SetReadDeadline(time.Now().Add(20*time.Second)))
	if err := l.listen(pc); err != nil || tried != 1 {
		t.Errorf("the router's own answer: %v, %d tried; want nil, 1", err, tried)
	}
}
