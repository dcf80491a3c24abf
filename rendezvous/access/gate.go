package access

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/bodkin-net/bodkin/store"
)

var (
	// ErrUnauthenticated says that it is not known whom a request is from.
	ErrUnauthenticated = errors.New("a credential is required: log in, or send what `bodkin access create` printed as bearer token or as password with any user name")
	// ErrForbidden says that it is known, and that they may not.
	ErrForbidden = errors.New("forbidden")
)

// LimitedError says that a source has failed too often.
type LimitedError struct{ Wait time.Duration }

func (e *LimitedError) Error() string {
	return fmt.Sprintf("too many failed logins from your address: try again in %s", e.Wait.Round(time.Second))
}

// Gate tells whom the requests on one TCP listener are from. Its fields do not
// change once it is in use; it is safe for concurrent use.
type Gate struct {
	// Trusting lets those read who show no credential: the listener is on a
	// loopback address, where a credential would only keep out other users of
	// the machine.
	Trusting bool
	// Credentials are those of the store, now.
	Credentials func() ([]store.Credential, error)
	// Certificate tells who the holder of a verified client certificate is. An
	// empty role is that of a node.
	Certificate func(*x509.Certificate) (Caller, error)
	// Failed is told of each failed login.
	Failed  func(from netip.Addr)
	Limiter *Limiter

	logins logins
}

// Identify tells whom a request is from, by the first of these that it shows: a
// token, a client certificate, the cookie of a login.
//
// Errors: ErrUnauthenticated, ErrForbidden, *LimitedError, or the store's.
func (g *Gate) Identify(r *http.Request, now time.Time) (Caller, error) {
	caller, err := g.identify(r, now)
	caller.From = source(r).String()
	return caller, err
}

func (g *Gate) identify(r *http.Request, now time.Time) (Caller, error) {
	if token := presented(r); token != "" {
		c, err := g.verify(r, token, now)
		return Caller{Who: c.Name, Role: Role(c.Role)}, err
	}
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		c, err := g.Certificate(r.TLS.PeerCertificates[0])
		if err != nil || c.Role != Nobody {
			return c, err
		}
	}
	if c, err := g.loggedIn(r, now); err != nil || c.Name != "" {
		return Caller{Who: c.Name, Role: Role(c.Role)}, err
	}
	if !g.Trusting || forwarded(r) {
		return Caller{}, ErrUnauthenticated
	}
	// A web site can give its own name this machine's address (DNS rebinding) and
	// have a visitor's browser read what it finds; it cannot make the browser ask
	// for localhost or for an IP address in its name.
	if !namesThisMachine(r.Host) {
		return Caller{}, fmt.Errorf("%w: asked for as %.100q: without a credential only localhost or an IP address is answered", ErrForbidden, r.Host)
	}
	return Caller{Who: loopback, Role: Viewer}, nil
}

// verify looks for the credential of a token.
func (g *Gate) verify(r *http.Request, token string, now time.Time) (c store.Credential, err error) {
	credentials, err := g.Credentials()
	if err != nil {
		return c, err
	}
	wait, ok := g.Limiter.Check(source(r), now, func() (ok bool) {
		c, ok = find(token, credentials)
		return ok
	})
	switch {
	case wait > 0:
		return store.Credential{}, &LimitedError{wait}
	case !ok:
		g.Failed(source(r))
		return c, fmt.Errorf("%w; the one that was sent is not known", ErrUnauthenticated)
	case expired(c, now):
		return store.Credential{}, fmt.Errorf("%w; %q ended on %s", ErrUnauthenticated, c.Name, c.Expires.UTC().Format(time.RFC1123))
	}
	return c, nil
}

// presented is a bearer token (RFC 6750) or a Basic password (RFC 7617).
func presented(r *http.Request) string {
	if _, password, ok := r.BasicAuth(); ok {
		return password
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if strings.EqualFold(scheme, "Bearer") {
		return strings.TrimSpace(token)
	}
	return ""
}

// source is the address a request came from, the zero one for a unix socket.
func source(r *http.Request) netip.Addr {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr().Unmap()
}

// forwarded reports whether a request says that a proxy has sent it on (RFC 7239,
// RFC 9110 section 7.6.3), which on loopback everybody may be behind.
func forwarded(r *http.Request) bool {
	return slices.ContainsFunc([]string{"Forwarded", "X-Forwarded-For", "Via"}, func(name string) bool { return r.Header[name] != nil })
}

func namesThisMachine(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.Trim(hostport, "[]")
	}
	_, err = netip.ParseAddr(host)
	return err == nil || host == "" || strings.EqualFold(host, "localhost")
}
