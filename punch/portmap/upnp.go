package portmap

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/huin/goupnp"
	"github.com/huin/goupnp/dcps/internetgateway2"
	"github.com/huin/goupnp/soap"
)

// Errors of AddPortMapping and of asking for an entry, WANIPConnection:1
// section 2.4.
const (
	upnpNoSuchEntry      = 714
	upnpConflict         = 718
	upnpSamePortRequired = 724
	upnpOnlyPermanent    = 725
	upnpConflictPCP      = 729 // WANIPConnection:2: by another protocol
)

// What is asked for.
const (
	upnpDescription = "bodkin"
	upnpProtocol    = "UDP"
	upnpAnyHost     = ""
	// upnpAttempts bounds how many ports are tried when the wanted one is
	// taken; a second one taken by chance is rare.
	upnpAttempts = 8
	// Ports below need a privilege with version 2.
	firstPort, beyondPort = 1024, 65536
)

// connection is what all versions of the service have that maps ports.
type connection interface {
	AddPortMappingCtx(ctx context.Context, remote string, outside uint16, protocol string, inside uint16, client string,
		enabled bool, description string, seconds uint32) error
	DeletePortMappingCtx(ctx context.Context, remote string, outside uint16, protocol string) error
	GetExternalIPAddressCtx(ctx context.Context) (string, error)
	GetSpecificPortMappingEntryCtx(ctx context.Context, remote string, outside uint16, protocol string) (
		inside uint16, client string, enabled bool, description string, seconds uint32, err error)
}

// upnp speaks UPnP's Internet Gateway Device protocol, version 1 or 2.
type upnp struct {
	site
	connection
	// mapped is what was asked for last, port 0 for nothing.
	mapped netip.AddrPort
}

func findUPnP(ctx context.Context, s site) (mapper, error) {
	u := &upnp{site: s}
	client := s.client()
	err := locate(ctx, s.router, func(at *url.URL) error {
		root, err := describe(ctx, client, at)
		if err != nil {
			return err
		}
		u.connection, err = connected(ctx, client, root, at)
		return err
	})
	if err != nil {
		return nil, err
	}
	return u, nil
}

// describe fetches the router's description.
func describe(ctx context.Context, client *http.Client, at *url.URL) (*goupnp.RootDevice, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%w: %s: %s", ErrRefused, at, resp.Status)
	}
	root := &goupnp.RootDevice{}
	decoder := xml.NewDecoder(resp.Body)
	decoder.DefaultSpace = goupnp.DeviceXMLNamespace
	if err := decoder.Decode(root); err != nil {
		return nil, fmt.Errorf("%w: %s is no device description: %w", ErrRefused, at, err)
	}
	base := at
	if root.URLBaseStr != "" {
		if base, err = url.Parse(root.URLBaseStr); err != nil {
			return nil, fmt.Errorf("%w: %s: URLBase: %w", ErrRefused, at, err)
		}
	}
	root.SetURLBase(base)
	return root, nil
}

// connected returns the first of the router's WAN connections that has an
// address: some list a second line that is not in use.
func connected(ctx context.Context, client *http.Client, root *goupnp.RootDevice, at *url.URL) (connection, error) {
	err := fmt.Errorf("%w: %s describes no gateway that maps ports", ErrRefused, at)
	for _, c := range connections(client, root, at) {
		if _, err = outsideAddress(ctx, c); err == nil {
			return c, nil
		}
	}
	return nil, err
}

// connections are all of the router's, the newest version first. That a
// description lacks one is no error.
func connections(client *http.Client, root *goupnp.RootDevice, at *url.URL) []connection {
	var all []connection
	v2, _ := internetgateway2.NewWANIPConnection2ClientsFromRootDevice(root, at)
	for _, c := range v2 {
		c.SOAPClient.HTTPClient = *client
		all = append(all, c)
	}
	v1, _ := internetgateway2.NewWANIPConnection1ClientsFromRootDevice(root, at)
	for _, c := range v1 {
		c.SOAPClient.HTTPClient = *client
		all = append(all, c)
	}
	ppp, _ := internetgateway2.NewWANPPPConnection1ClientsFromRootDevice(root, at)
	for _, c := range ppp {
		c.SOAPClient.HTTPClient = *client
		all = append(all, c)
	}
	return all
}

func outsideAddress(ctx context.Context, c connection) (netip.Addr, error) {
	text, err := c.GetExternalIPAddressCtx(ctx)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("outside address: %w", err)
	}
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("%w: the router calls %q its outside address", ErrRefused, text)
	}
	return addr, usable(addr)
}

// request maps the port that is suggested, or a random one where that is
// another host's.
func (u *upnp) request(ctx context.Context, suggested netip.AddrPort) (Mapping, error) {
	addr, err := outsideAddress(ctx, u.connection)
	if err != nil {
		return Mapping{}, err
	}
	port := suggested.Port()
	for range upnpAttempts {
		var lifetime time.Duration
		lifetime, err = u.add(ctx, port)
		if err == nil {
			u.mapped = netip.AddrPortFrom(addr, port)
			return Mapping{"UPnP", u.mapped, lifetime}, nil
		}
		if !errors.Is(err, errTaken) {
			return Mapping{}, err
		}
		port = uint16(firstPort + rand.IntN(beyondPort-firstPort))
	}
	return Mapping{}, err
}

// errTaken: the outside port leads to somebody else.
var errTaken = fmt.Errorf("%w: the outside port is taken", ErrRefused)

// add maps one outside port and returns for how long, 0 for ever.
func (u *upnp) add(ctx context.Context, port uint16) (time.Duration, error) {
	// Asked first, since some routers let the last one who asks have it.
	owned, err := u.owned(ctx, port)
	if err != nil {
		return 0, err
	}
	if owned == others {
		return 0, errTaken
	}
	u.mapped = netip.AddrPortFrom(netip.Addr{}, port) // to be released even if the reply is lost
	lifetime := requestedLifetime
	err = u.addFor(ctx, port, lifetime)
	if upnpError(err) == upnpOnlyPermanent {
		lifetime = 0
		err = u.addFor(ctx, port, lifetime)
	}
	if upnpError(err) != 0 && owned != ourselves {
		u.mapped = netip.AddrPort{} // nothing was made: what is there may be another host's
	}
	switch upnpError(err) {
	case upnpConflict, upnpConflictPCP:
		return 0, errTaken
	case upnpSamePortRequired:
		return 0, fmt.Errorf("%w: the router maps %d to no other outside port, and that one is taken", ErrRefused, u.inside)
	}
	return lifetime, err
}

func (u *upnp) addFor(ctx context.Context, port uint16, lifetime time.Duration) error {
	return u.AddPortMappingCtx(ctx, upnpAnyHost, port, upnpProtocol, u.inside, u.source.String(), true,
		upnpDescription, uint32(lifetime/time.Second))
}

// owner is whom an outside port leads to.
type owner int

const (
	nobody owner = iota
	ourselves
	others
)

func (u *upnp) owned(ctx context.Context, port uint16) (owner, error) {
	inside, client, enabled, _, _, err := u.GetSpecificPortMappingEntryCtx(ctx, upnpAnyHost, port, upnpProtocol)
	switch {
	case upnpError(err) == upnpNoSuchEntry:
		return nobody, nil
	case upnpError(err) != 0:
		return nobody, nil // some do not tell; adding will
	case err != nil:
		return nobody, err
	case client == u.source.String() && inside == u.inside && enabled:
		return ourselves, nil
	}
	return others, nil
}

func (u *upnp) check(ctx context.Context) error {
	owned, err := u.owned(ctx, u.mapped.Port())
	if err != nil {
		return err
	}
	if owned != ourselves {
		return fmt.Errorf("%w: the router no longer lists it", errLost)
	}
	addr, err := outsideAddress(ctx, u.connection)
	if err == nil && addr != u.mapped.Addr() {
		return fmt.Errorf("%w: the router's address changed from %s to %s", errLost, u.mapped.Addr(), addr)
	}
	return err
}

func (u *upnp) release(ctx context.Context) error {
	if u.mapped.Port() == 0 {
		return nil
	}
	return u.DeletePortMappingCtx(ctx, upnpAnyHost, u.mapped.Port(), upnpProtocol)
}

// upnpError is the code of a router's refusal, 0 for any other error.
func upnpError(err error) int {
	var fault *soap.SOAPFaultError
	if !errors.As(err, &fault) {
		return 0
	}
	return fault.Detail.UPnPError.Errorcode
}
