package access

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/store"
)

var noon = time.Date(2024, 5, 17, 12, 0, 0, 0, time.UTC)

// office is a gate with credentials that a test may change.
type office struct {
	*Gate
	credentials []store.Credential
	failed      []netip.Addr
}

// newOffice has a viewer, an admin and one whose time is over, and their tokens by
// name.
func newOffice(trusting bool) (*office, map[string]string) {
	o, tokens := &office{}, map[string]string{}
	for _, c := range []store.Credential{
		{Name: "grafana", Role: string(Viewer)}, {Name: "anna", Role: string(Admin)},
		{Name: "intern", Role: string(Admin), Expires: noon}, {Name: "odd", Role: "root"},
	} {
		tokens[c.Name], c.SecretSHA256 = NewToken()
		o.credentials = append(o.credentials, c)
	}
	o.Gate = &Gate{
		Trusting: trusting, Limiter: &Limiter{},
		Credentials: func() ([]store.Credential, error) { return o.credentials, nil },
		Certificate: func(c *x509.Certificate) (Caller, error) {
			switch c.Subject.CommonName {
			case "bert":
				return Caller{Who: "bert", Role: Admin}, nil
			case "revoked":
				return Caller{}, ErrUnauthenticated
			}
			return Caller{}, nil
		},
		Failed: func(a netip.Addr) { o.failed = append(o.failed, a) },
	}
	return o, tokens
}

func request(change func(*http.Request)) *http.Request {
	r := httptest.NewRequest(http.MethodGet, "http://127.0.0.1:7480/api/v1/nodes", nil)
	r.RemoteAddr = "198.51.100.7:40000"
	if change != nil {
		change(r)
	}
	return r
}

func bearer(token string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) }
}

func certificate(name string) func(*http.Request) {
	return func(r *http.Request) {
		c := &x509.Certificate{Subject: pkix.Name{CommonName: name}}
		r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{c}, VerifiedChains: [][]*x509.Certificate{{c}}}
	}
}

func TestIdentify(t *testing.T) {
	for _, tt := range []struct {
		name     string
		trusting bool
		change   func(tokens map[string]string) func(*http.Request)
		who      string
		role     Role
		err      error
	}{
		{"nothing", false, nil, "", Nobody, ErrUnauthenticated},
		{"nothing, on loopback", true, nil, "loopback", Viewer, nil},
		{"nothing, through a proxy on loopback", true, func(map[string]string) func(*http.Request) {
			return func(r *http.Request) { r.Header.Set("X-Forwarded-For", "198.51.100.7") }
		}, "", Nobody, ErrUnauthenticated},
		{"bearer", false, func(k map[string]string) func(*http.Request) { return bearer(k["grafana"]) }, "grafana", Viewer, nil},
		{"bearer of an admin, on loopback", true, func(k map[string]string) func(*http.Request) { return bearer(k["anna"]) }, "anna", Admin, nil},
		{"bearer in another case", false, func(k map[string]string) func(*http.Request) {
			return func(r *http.Request) { r.Header.Set("Authorization", "bearer "+k["anna"]) }
		}, "anna", Admin, nil},
		{"password", false, func(k map[string]string) func(*http.Request) {
			return func(r *http.Request) { r.SetBasicAuth("anybody", k["anna"]) }
		}, "anna", Admin, nil},
		{"user name", false, func(k map[string]string) func(*http.Request) {
			return func(r *http.Request) { r.SetBasicAuth(k["anna"], "") }
		}, "", Nobody, ErrUnauthenticated},
		{"another scheme", false, func(k map[string]string) func(*http.Request) {
			return func(r *http.Request) { r.Header.Set("Authorization", "Digest "+k["anna"]) }
		}, "", Nobody, ErrUnauthenticated},
		{"a character more", false, func(k map[string]string) func(*http.Request) { return bearer(k["anna"] + "0") }, "", Nobody, ErrUnauthenticated},
		{"the hash itself", false, func(k map[string]string) func(*http.Request) { return bearer(Hash(k["anna"])) }, "", Nobody, ErrUnauthenticated},
		{"a wrong one, on loopback", true, func(map[string]string) func(*http.Request) { return bearer("guess") }, "", Nobody, ErrUnauthenticated},
		{"expired", false, func(k map[string]string) func(*http.Request) { return bearer(k["intern"]) }, "", Nobody, ErrUnauthenticated},
		{"of a role that is none", false, func(k map[string]string) func(*http.Request) { return bearer(k["odd"]) }, "odd", "root", nil},
		{"an operator's certificate", false, func(map[string]string) func(*http.Request) { return certificate("bert") }, "bert", Admin, nil},
		{"a revoked certificate", true, func(map[string]string) func(*http.Request) { return certificate("revoked") }, "", Nobody, ErrUnauthenticated},
		{"a node's certificate", false, func(map[string]string) func(*http.Request) { return certificate("beijing.edge1") }, "", Nobody, ErrUnauthenticated},
		{"a certificate that nobody verified", false, func(map[string]string) func(*http.Request) {
			return func(r *http.Request) { certificate("bert")(r); r.TLS.VerifiedChains = nil }
		}, "", Nobody, ErrUnauthenticated},
		{"a cookie that is none", false, func(map[string]string) func(*http.Request) {
			return func(r *http.Request) { r.AddCookie(&http.Cookie{Name: loginCookie, Value: "x"}) }
		}, "", Nobody, ErrUnauthenticated},
	} {
		o, tokens := newOffice(tt.trusting)
		var change func(*http.Request)
		if tt.change != nil {
			change = tt.change(tokens)
		}
		got, err := o.Identify(request(change), noon)
		if got.Who != tt.who || got.Role != tt.role || !errors.Is(err, tt.err) || err == nil && got.From != "198.51.100.7" {
			t.Errorf("%s: %+v, %v; want %s, %s, %v", tt.name, got, err, tt.who, tt.role, tt.err)
		}
	}
	if Role("root").Permits(Viewer) || !Admin.Permits(Viewer) || Viewer.Permits(Admin) || Nobody.Permits(Viewer) {
		t.Error("roles permit what they should not, or not what they should")
	}
}

// A web site that gives its own name this machine's address (DNS rebinding) reads
// nothing.
func TestRebinding(t *testing.T) {
	o, tokens := newOffice(true)
	for host, ok := range map[string]bool{
		"127.0.0.1:7480": true, "localhost:7480": true, "LocalHost": true, "[::1]:7480": true, "[::1]": true, "::1": true,
		"192.0.2.1": true, "": true,
		"attacker.example:7480": false, "attacker.example": false, "localhost.attacker.example": false, "127.0.0.1.attacker.example": false,
	} {
		_, err := o.Identify(request(func(r *http.Request) { r.Host = host }), noon)
		if ok != (err == nil) || !ok && !errors.Is(err, ErrForbidden) {
			t.Errorf("host %q: %v", host, err)
		}
	}
	// Who has a credential may call it what they like.
	if _, err := o.Identify(request(func(r *http.Request) { r.Host = "status.example.org"; bearer(tokens["anna"])(r) }), noon); err != nil {
		t.Error(err)
	}
}

func TestFailuresAreLimited(t *testing.T) {
	o, tokens := newOffice(false)
	for i := range 5 {
		if _, err := o.Identify(request(bearer("guess")), noon); !errors.Is(err, ErrUnauthenticated) {
			t.Fatalf("guess %d: %v", i, err)
		}
	}
	// Now even the right one waits, or guessing would go on.
	_, err := o.Identify(request(bearer(tokens["anna"])), noon)
	var limited *LimitedError
	if !errors.As(err, &limited) || limited.Wait != failurePause {
		t.Errorf("after five failures: %v", err)
	}
	if len(o.failed) != 5 || o.failed[0] != netip.MustParseAddr("198.51.100.7") {
		t.Errorf("told of %v", o.failed)
	}
	elsewhere := func(r *http.Request) { bearer(tokens["anna"])(r); r.RemoteAddr = "198.51.100.8:40000" }
	if _, err := o.Identify(request(elsewhere), noon); err != nil {
		t.Errorf("from another address: %v", err)
	}
	if _, err := o.Identify(request(bearer(tokens["anna"])), noon.Add(failurePause)); err != nil {
		t.Errorf("after the pause: %v", err)
	}
	// An expired one is no guess.
	for range 10 {
		if _, err := o.Identify(request(func(r *http.Request) { bearer(tokens["intern"])(r); r.RemoteAddr = "198.51.100.9:1" }), noon); !errors.Is(err, ErrUnauthenticated) || !strings.Contains(err.Error(), `"intern" ended on Fri, 17 May 2024`) {
			t.Fatalf("expired: %v", err)
		}
	}
}

// login sends the form and returns the recorded answer.
func (o *office) login(t *testing.T, token string, now time.Time) (*httptest.ResponseRecorder, error) {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, "http://127.0.0.1:7480/login", strings.NewReader(url.Values{"token": {token}}.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.RemoteAddr = "198.51.100.7:40000"
	w := httptest.NewRecorder()
	err := o.Login(w, r, now)
	return w, err
}

// cookiesOf are those that an answer sets.
func cookiesOf(w *httptest.ResponseRecorder) []*http.Cookie {
	resp := w.Result()
	_ = resp.Body.Close()
	return resp.Cookies()
}

func TestLogin(t *testing.T) {
	o, tokens := newOffice(false)
	for _, wrong := range []string{"", "guess", tokens["intern"]} {
		if resp, err := o.login(t, wrong, noon); !errors.Is(err, ErrUnauthenticated) || len(cookiesOf(resp)) != 0 {
			t.Errorf("%q: %v, cookies %v", wrong, err, cookiesOf(resp))
		}
	}
	resp, err := o.login(t, tokens["anna"], noon)
	if err != nil || resp.Code != http.StatusSeeOther || resp.Header().Get("Location") != "/" || len(cookiesOf(resp)) != 1 {
		t.Fatalf("%v, %+v", err, resp)
	}
	cookie := cookiesOf(resp)[0]
	if !cookie.HttpOnly || cookie.SameSite != http.SameSiteStrictMode || cookie.Path != "/" || cookie.MaxAge != 12*60*60 || strings.Contains(cookie.Value, tokens["anna"]) {
		t.Errorf("cookie %+v", cookie)
	}
	if secure := o.cookie(request(certificate("bert")), "x", 1).Secure; !secure {
		t.Error("over TLS the cookie is not marked Secure")
	}
	with := func(r *http.Request) { r.AddCookie(cookie) }
	who := func(now time.Time) string {
		c, err := o.Identify(request(with), now)
		if err != nil {
			return err.Error()
		}
		return c.Who + " " + string(c.Role)
	}
	if got := who(noon.Add(loginLifetime - time.Second)); got != "anna admin" {
		t.Errorf("logged in: %s", got)
	}
	if got := who(noon.Add(loginLifetime)); !strings.Contains(got, "required") {
		t.Errorf("after 12 hours: %s", got)
	}
	for hash := range o.logins.byHash {
		if strings.Contains(hash, cookie.Value) {
			t.Error("the cookie itself is kept")
		}
	}
}

// What a login rests on may end before it.
func TestLoginEnds(t *testing.T) {
	for name, end := range map[string]func(*office, *http.Cookie){
		"deleted": func(o *office, _ *http.Cookie) { o.credentials = o.credentials[:1] },
		"created anew": func(o *office, _ *http.Cookie) {
			_, o.credentials[1].SecretSHA256 = NewToken()
		},
		"expired": func(o *office, _ *http.Cookie) { o.credentials[1].Expires = noon },
		"logged out": func(o *office, c *http.Cookie) {
			w := httptest.NewRecorder()
			o.Logout(w, request(func(r *http.Request) { r.AddCookie(c) }))
			if got := cookiesOf(w); w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/login" || len(got) != 1 || got[0].MaxAge >= 0 {
				t.Errorf("logout: %d %v", w.Code, w.Header())
			}
		},
	} {
		o, tokens := newOffice(false)
		resp, err := o.login(t, tokens["anna"], noon)
		if err != nil {
			t.Fatal(err)
		}
		cookie := cookiesOf(resp)[0]
		end(o, cookie)
		if c, err := o.Identify(request(func(r *http.Request) { r.AddCookie(cookie) }), noon); !errors.Is(err, ErrUnauthenticated) {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
}

func TestLoginsAreBounded(t *testing.T) {
	o, _ := newOffice(false)
	first := o.logins.start(o.credentials[1], noon)
	for range maxLogins {
		o.logins.start(o.credentials[1], noon.Add(time.Second))
	}
	if len(o.logins.byHash) != maxLogins {
		t.Errorf("%d logins", len(o.logins.byHash))
	}
	if _, ok := o.logins.get(first, noon); ok {
		t.Error("the first login is not the one that ended")
	}
}

// A store that cannot be read lets nobody in.
func TestStoreFails(t *testing.T) {
	broken := errors.New("disk")
	o, tokens := newOffice(true)
	resp, err := o.login(t, tokens["anna"], noon)
	if err != nil {
		t.Fatal(err)
	}
	o.Credentials = func() ([]store.Credential, error) { return nil, broken }
	for _, change := range []func(*http.Request){bearer(tokens["anna"]), func(r *http.Request) { r.AddCookie(cookiesOf(resp)[0]) }} {
		if c, err := o.Identify(request(change), noon); !errors.Is(err, broken) || c.Role != Nobody {
			t.Errorf("%+v, %v", c, err)
		}
	}
}

func TestNewToken(t *testing.T) {
	a, hash := NewToken()
	b, _ := NewToken()
	if a == b || !strings.HasPrefix(a, "bodkin-access-") || len(a) < len("bodkin-access-")+26 || hash != Hash(a) || len(hash) != 64 {
		t.Errorf("%s, %s, %s", a, b, hash)
	}
}

// The callers of a request's context.
func TestCallerOf(t *testing.T) {
	if c := CallerOf(t.Context()); c != (Caller{}) {
		t.Errorf("of nobody's: %+v", c)
	}
	if c := CallerOf(WithCaller(t.Context(), Socket)); c != Socket {
		t.Errorf("%+v", c)
	}
}
