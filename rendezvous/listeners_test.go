package rendezvous

import (
	"crypto/tls"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/bodkin-net/bodkin/rendezvous/access"
)

// startPublic starts a rendezvous whose status listener is not on loopback.
func startPublic(t *testing.T) (*running, *http.Client, string) {
	t.Helper()
	s := newIssuingSite(t)
	s.config.Status = "0.0.0.0:0"
	r := s.start()
	_, port, _ := strings.Cut(r.server.status.Addr().String(), "]:")
	return r, r.browser(), "https://127.0.0.1:" + port
}

// browser is a client that trusts the CA and follows no redirect.
func (r *running) browser(certs ...tls.Certificate) *http.Client {
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: r.ca.pool(), Certificates: certs, MinVersion: tls.VersionTLS13}}
	r.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{
		Transport: transport, Timeout: testWait,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// try sends a request and returns the status, the body and the header.
func try(t *testing.T, c *http.Client, method, target, body string, change func(*http.Request)) (int, string, http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(req)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b), resp.Header
}

func withBearer(token string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) }
}

// credential creates one by the admin socket.
func (r *running) credential(name string, role access.Role) string {
	r.t.Helper()
	var made CreatedCredential
	r.operate("POST", "/api/v1/access", NewCredential{Name: name, Role: role}, &made)
	return made.Token
}

// From elsewhere than loopback everything that shows something wants a credential,
// and says how to get one.
func TestPublicListener(t *testing.T) {
	r, c, base := startPublic(t)
	viewer, admin := r.credential("grafana", access.Viewer), r.credential("anna", access.Admin)
	for _, tt := range []struct {
		method, path, token string
		code                int
		text                string
	}{
		{"GET", "/healthz", "", 200, "ok"},
		{"GET", "/readyz", "", 200, "ok"},
		{"GET", "/", "", 200, "<html"},
		{"GET", "/login", "", 200, "<form"},
		{"GET", "/metrics", "", 401, "a credential is required"},
		{"GET", "/metrics", viewer, 200, "bodkin_store_ok 1"},
		{"GET", "/api/v1/overview", "", 401, `{"error":"a credential is required`},
		{"GET", "/api/v1/nothing", "", 401, "a credential is required"},
		{"GET", "/api/v1/whoami", viewer, 200, `"who": "grafana"`},
		{"GET", "/api/v1/whoami", admin, 200, `"role": "admin"`},
		{"GET", "/api/v1/audit", viewer, 403, "grafana may read only: this asks for a credential of role admin"},
		{"GET", "/api/v1/audit", admin, 200, "create credential"},
		{"GET", "/api/v1/events/stream", "", 401, "a credential is required"},
		{"DELETE", "/api/v1/communities/all", viewer, 403, "grafana may read only"},
		{"DELETE", "/api/v1/communities/all", admin, 404, `"community all: not found"`},
	} {
		var change func(*http.Request)
		if tt.token != "" {
			change = withBearer(tt.token)
		}
		code, body, header := try(t, c, tt.method, base+tt.path, "", change)
		if code != tt.code || !strings.Contains(body, tt.text) {
			t.Errorf("%s %s: %d %.200s, want %d %s", tt.method, tt.path, code, body, tt.code, tt.text)
		}
		if asks := header.Get("WWW-Authenticate"); (asks == `Bearer realm="bodkin rendezvous"`) != (tt.code == 401) {
			t.Errorf("%s %s: WWW-Authenticate %q", tt.method, tt.path, asks)
		}
	}
	// A node's certificate is good for its session, and for nothing here.
	node := r.browser(r.enrol(edge1, NewToken{}))
	if code, body, _ := try(t, node, "GET", base+"/api/v1/nodes", "", nil); code != 401 {
		t.Errorf("with a node's certificate: %d %s", code, body)
	}
}

// A login lasts as long as what was logged in with, and no page of another site
// can use it.
func TestLoginOverTLS(t *testing.T) {
	r, c, base := startPublic(t)
	token := r.credential("anna", access.Admin)
	form := func(r *http.Request) { r.Header.Set("Content-Type", "application/x-www-form-urlencoded") }
	if code, body, _ := try(t, c, "POST", base+"/login", "token=guess", form); code != 401 || strings.HasPrefix(body, "{") {
		t.Errorf("a guess: %d %s", code, body)
	}
	code, _, header := try(t, c, "POST", base+"/login", url.Values{"token": {token}}.Encode(), form)
	resp := http.Response{Header: header}
	if code != 303 || header.Get("Location") != "/" || len(resp.Cookies()) != 1 || !resp.Cookies()[0].Secure {
		t.Fatalf("login: %d %v", code, header)
	}
	cookie := resp.Cookies()[0]
	with := func(headers ...string) func(*http.Request) {
		return func(r *http.Request) {
			r.AddCookie(cookie)
			for i := 0; i < len(headers); i += 2 {
				r.Header.Set(headers[i], headers[i+1])
			}
		}
	}
	before := len(r.audits())
	for _, tt := range []struct {
		name   string
		change func(*http.Request)
		code   int
	}{
		{"by the page", with("Sec-Fetch-Site", "same-origin"), 404},
		{"by another site's page", with("Sec-Fetch-Site", "cross-site"), 403},
		{"by a page of a neighbour", with("Sec-Fetch-Site", "same-site"), 403},
		{"by an old browser, of another site", with("Origin", "https://attacker.example"), 403},
	} {
		if code, body, _ := try(t, c, "DELETE", base+"/api/v1/communities/all", "", tt.change); code != tt.code {
			t.Errorf("%s: %d %s, want %d", tt.name, code, body, tt.code)
		}
	}
	if code, body, _ := try(t, c, "POST", base+"/login", "token="+token, func(r *http.Request) { form(r); r.Header.Set("Sec-Fetch-Site", "cross-site") }); code != 403 {
		t.Errorf("logged in by another site: %d %s", code, body)
	}
	if n := len(r.audits()); n != before {
		t.Errorf("%d audit entries of what was refused", n-before)
	}
	r.operate("DELETE", "/api/v1/access/anna", nil, nil)
	if code, body, _ := try(t, c, "GET", base+"/api/v1/whoami", "", with()); code != 401 {
		t.Errorf("the credential is deleted, its login is not: %d %s", code, body)
	}
}

func TestFailedLoginsAreLimited(t *testing.T) {
	r, c, base := startPublic(t)
	token := r.credential("anna", access.Viewer)
	for range 5 {
		if code, body, _ := try(t, c, "GET", base+"/api/v1/whoami", "", withBearer("bodkin-access-guess")); code != 401 {
			t.Fatalf("%d %s", code, body)
		}
	}
	code, body, header := try(t, c, "GET", base+"/api/v1/whoami", "", withBearer(token))
	if code != 429 || header.Get("Retry-After") == "" || !strings.Contains(body, "too many failed logins from your address: try again in ") {
		t.Errorf("after five guesses: %d %s, Retry-After %q", code, body, header.Get("Retry-After"))
	}
	if w := apiCall(t, r.server.adminHandler(), "GET", "/metrics", nil); !strings.Contains(w.Body.String(), "bodkin_login_failures_total 5") ||
		!strings.Contains(w.Body.String(), `bodkin_api_requests_total{code="429",method="GET",route="/api/v1/whoami"} 1`) {
		t.Errorf("metrics: %s", w.Body)
	}
}

// An operator's certificate opens what its role says until it is revoked.
func TestOperatorCertificate(t *testing.T) {
	r, _, base := startPublic(t)
	for _, role := range []access.Role{access.Viewer, access.Admin} {
		name, key := "bert-"+string(role), newKey(t)
		var made OperatorCertificate
		r.operate("POST", "/api/v1/access/"+name+"/certificate", CertificateRequest{Role: role, CSR: newRequest(t, key)}, &made)
		c := r.browser(tlsCertificate(t, made.Certificate, key))
		code, body, _ := try(t, c, "GET", base+"/api/v1/whoami", "", nil)
		if code != 200 || !strings.Contains(body, `"who": "`+name+`"`) || !strings.Contains(body, `"role": "`+string(role)+`"`) {
			t.Errorf("%s: %d %s", name, code, body)
		}
		if code, body, _ := try(t, c, "GET", base+"/api/v1/audit", "", nil); (code == 200) != (role == access.Admin) {
			t.Errorf("%s reads the audit log: %d %s", name, code, body)
		}
		r.operate("DELETE", "/api/v1/access/"+name, nil, nil)
		if code, body, _ := try(t, c, "GET", base+"/api/v1/whoami", "", nil); code != 401 || !strings.Contains(body, "was revoked on") {
			t.Errorf("%s, revoked: %d %s", name, code, body)
		}
		if a := r.operate("DELETE", "/api/v1/access/"+name, nil, nil); a.status != 404 {
			t.Errorf("revoked twice: %d %s", a.status, a.body)
		}
	}
}

// With an existing CA nothing is issued; the answer says what to do.
func TestOperatorCertificateOfExistingCA(t *testing.T) {
	r := newSite(t).start()
	a := r.operate("POST", "/api/v1/access/bert/certificate", CertificateRequest{Role: access.Viewer, CSR: newRequest(t, newKey(t))}, nil)
	if a.status != 409 || !strings.Contains(a.failure(t), "organizational unit bodkin:viewer") {
		t.Errorf("%d %s", a.status, a.body)
	}
}

func TestCredentialsOverAPI(t *testing.T) {
	r := newSite(t).start()
	token := r.credential("anna", access.Admin)
	for _, tt := range []struct {
		in   any
		code int
		text string
	}{
		{NewCredential{Name: "anna", Role: access.Viewer}, 409, "credential anna is there already: delete it first"},
		{NewCredential{Role: access.Viewer}, 422, `name: "": want up to 63 letters`},
		{NewCredential{Name: "<b>", Role: access.Viewer}, 422, "name: "},
		{NewCredential{Name: "bert", Role: "root"}, 422, `role: "root": want viewer or admin`},
		{NewCredential{Name: "bert", Role: access.Viewer, TTLSeconds: -1}, 422, "ttlSeconds: -1"},
		{`{"name": "bert", "rolle": "viewer"}`, 422, `body: unknown field "rolle"`},
		{`{"name": 7}`, 422, "body: name: a number where that is not possible"},
		{`{"name": "bert"`, 422, "body: "},
		{`{} {}`, 422, "body: more than one value"},
		{``, 422, "body: empty: want JSON"},
		{strings.Repeat(" ", maxBody+2), 422, "larger than 1048576 bytes"},
	} {
		a := r.operate("POST", "/api/v1/access", tt.in, nil)
		if a.status != tt.code || !strings.Contains(a.failure(t), tt.text) {
			t.Errorf("%.60v: %d %s, want %d %s", tt.in, a.status, a.body, tt.code, tt.text)
		}
	}
	var list CredentialList
	a := r.operate("GET", "/api/v1/access", nil, &list)
	if len(list.Credentials) != 1 || list.Credentials[0].Name != "anna" || list.Credentials[0].By != "unix socket" ||
		strings.Contains(string(a.body), token) || strings.Contains(string(a.body), access.Hash(token)) {
		t.Errorf("%s", a.body)
	}
}
