package rendezvous

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous/access"
	"github.com/bodkin-net/bodkin/store"
)

// serving are a server's routes for one caller.
func (r *running) serving(caller access.Caller) http.Handler {
	f := &front{metrics: r.server.hub.metrics, identify: func(*http.Request) (access.Caller, error) { return caller, nil }}
	return f.handler(r.server.routes())
}

// request sends a request with a body, as JSON unless it is a text.
func request(t *testing.T, h http.Handler, method, path string, in any) *httptest.ResponseRecorder {
	t.Helper()
	text, isText := in.(string)
	if !isText && in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		text = string(b)
	}
	return apiCall(t, h, method, path, func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader(text)) })
}

func (r *running) audits() []store.Audit {
	r.t.Helper()
	entries, err := r.server.store.Audits(0)
	if err != nil {
		r.t.Fatal(err)
	}
	return entries
}

// Every route that changes something leaves one entry, with who and from where;
// what is refused leaves none. No route is left out.
func TestAudit(t *testing.T) {
	r := newIssuingSite(t).start()
	anna := access.Caller{Who: "anna", From: "198.51.100.7", Role: access.Admin}
	admin, viewer := r.serving(anna), r.serving(access.Caller{Who: "grafana", Role: access.Viewer})

	cert := r.enrol(edge1, NewToken{})
	one := r.come(edge1, cert)
	two := r.come(edge2, r.enrol(edge2, NewToken{}))
	one.expectPeers()
	two.expectPeers()
	unused := r.token(NewToken{}).TokenID()
	pair := "/api/v1/pairs/" + string(edge1) + "/" + string(edge2) + "/punch"

	covered := map[string]bool{}
	for _, tt := range []struct {
		pattern, method, path string
		in                    any
		wrong                 any // a body that is refused, nil where there is no body
		code                  int
		action, object        string
	}{
		{"PUT /api/v1/communities", "PUT", "/api/v1/communities?file=all.yaml", communityFileOf("all", string(edge1), string(edge2)), "kind: Nothing", 200, "apply communities", "all"},
		{"POST /api/v1/pairs/{a}/{b}/punch", "POST", pair, nil, nil, 200, "punch pair", string(both12)},
		{"DELETE /api/v1/communities/{name}", "DELETE", "/api/v1/communities/all", nil, nil, 204, "delete community", "all"},
		{"POST /api/v1/access", "POST", "/api/v1/access", NewCredential{Name: "bert", Role: access.Viewer}, NewCredential{Name: "a b", Role: access.Viewer}, 200, "create credential", "bert"},
		{"POST /api/v1/access/{name}/certificate", "POST", "/api/v1/access/bert/certificate", CertificateRequest{Role: access.Admin, CSR: newRequest(t, newKey(t))},
			CertificateRequest{Role: access.Admin, CSR: "none"}, 200, "issue operator certificate", "bert"},
		{"DELETE /api/v1/access/{name}", "DELETE", "/api/v1/access/bert", nil, nil, 204, "delete credential", "bert"},
		{"POST /api/v1/tokens", "POST", "/api/v1/tokens", NewToken{Name: string(edge3)}, `{"ttl": 12}`, 200, "create token", ""},
		{"DELETE /api/v1/tokens/{id}", "DELETE", "/api/v1/tokens/" + unused, nil, nil, 204, "delete token", unused},
		{"PATCH /api/v1/nodes/{name}", "PATCH", "/api/v1/nodes/" + string(edge1), `{"note": "behind the bar"}`, `{"punch": "often"}`, 200, "set node", string(edge1)},
		{"POST /api/v1/nodes/{name}/revoke", "POST", "/api/v1/nodes/" + string(edge1) + "/revoke", Revocation{Reason: "stolen"}, `[]`, 200, "revoke node", string(edge1)},
		{"POST /api/v1/nodes/{name}/approve", "POST", "/api/v1/nodes/" + string(edge1) + "/approve", nil, nil, 409, "", ""},
		{"DELETE /api/v1/nodes/{name}", "DELETE", "/api/v1/nodes/" + string(edge1), nil, nil, 204, "delete node", string(edge1)},
	} {
		covered[tt.pattern] = true
		before := len(r.audits())
		if w := request(t, viewer, tt.method, tt.path, tt.in); w.Code != 403 || !strings.Contains(w.Body.String(), "grafana may read only") {
			t.Errorf("%s by a viewer: %d %s", tt.pattern, w.Code, w.Body)
		}
		if tt.wrong != nil {
			if w := request(t, admin, tt.method, tt.path, tt.wrong); w.Code != 422 || strings.Count(w.Body.String(), "\n") != 1 {
				t.Errorf("%s with %v: %d %s", tt.pattern, tt.wrong, w.Code, w.Body)
			}
		}
		if n := len(r.audits()); n != before {
			t.Errorf("%s: %d entries of what was refused", tt.pattern, n-before)
		}
		w := request(t, admin, tt.method, tt.path, tt.in)
		if w.Code != tt.code {
			t.Errorf("%s: %d %s, want %d", tt.pattern, w.Code, w.Body, tt.code)
		}
		entries := r.audits()
		if tt.action == "" {
			if len(entries) != before {
				t.Errorf("%s, refused: %+v", tt.pattern, entries[0])
			}
			continue
		}
		if len(entries) != before+1 {
			t.Errorf("%s: %d entries, want one", tt.pattern, len(entries)-before)
			continue
		}
		e := entries[0]
		if e.Who != "anna" || e.From != "198.51.100.7" || e.Action != tt.action || tt.object != "" && e.Object != tt.object || time.Since(e.At) > time.Hour {
			t.Errorf("%s: %+v", tt.pattern, e)
		}
	}
	for _, rt := range r.server.routes() {
		if rt.role == access.Admin && rt.method != "GET" && !covered[rt.method+" "+rt.pattern] {
			t.Errorf("%s %s is not in this test", rt.method, rt.pattern)
		}
	}
	for _, e := range r.audits() {
		if b, _ := json.Marshal(e); strings.Contains(string(b), "bodkin-access-") || strings.Contains(string(b), "bodkin-join-") {
			t.Errorf("a secret in %s", b)
		}
	}

	var list AuditList
	getJSON(t, admin, "/api/v1/audit?limit=2", &list)
	if len(list.Entries) != 2 || list.Entries[0].Action != "delete node" {
		t.Errorf("audit: %+v", list)
	}
}

// A change is told to whoever watches, and by whom.
func TestChangesAreEvents(t *testing.T) {
	r := newSite(t).start()
	admin := r.serving(access.Caller{Who: "anna", Role: access.Admin})
	request(t, admin, "PUT", "/api/v1/communities", communityFileOf("all", string(edge1), string(edge2)))
	request(t, admin, "POST", "/api/v1/access", NewCredential{Name: "bert", Role: access.Viewer})
	var list EventList
	getJSON(t, admin, "/api/v1/events", &list)
	var got []string
	for _, e := range slices.Backward(list.Events) {
		if e.Kind == EventCommunity || e.Kind == EventChange {
			got = append(got, string(e.Kind)+" "+e.Text)
		}
	}
	want := []string{"community anna: apply communities all from api", "change anna: create credential bert role viewer"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
