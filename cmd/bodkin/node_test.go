package main

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/bodkin-net/bodkin/rendezvous"
	"github.com/bodkin-net/bodkin/store"
)

// enrolmentAPI answers as the rendezvous' API does, and notes what it was asked.
func enrolmentAPI(t *testing.T, asked *[]string, answers map[string]any) (socket string) {
	t.Helper()
	return daemon(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		what := r.Method + " " + r.URL.Path
		*asked = append(*asked, strings.TrimSpace(what+" "+string(body)))
		answer, ok := answers[what]
		switch {
		case !ok:
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"error":"node \"nonesuch\": not found"}`)
		case answer == nil:
			w.WriteHeader(http.StatusNoContent)
		default:
			if err := json.NewEncoder(w).Encode(answer); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestTokenCommands(t *testing.T) {
	now := time.Now()
	view := rendezvous.TokenView{ID: "3f9a01c2b4d5e6f7", Name: "beijing.edge1", Subnets: []string{"10.233.66.0/24"}, MaxUses: 1,
		Uses: []store.TokenUse{}, Created: now, Expires: now.Add(12 * time.Hour), By: "alice"}
	used, expired := view, view
	used.ID, used.Uses = "aaaa", []store.TokenUse{{Node: "beijing.edge1", At: now}}
	expired.ID, expired.Expires = "bbbb", now.Add(-time.Hour)
	var asked []string
	socket := enrolmentAPI(t, &asked, map[string]any{
		"POST /api/v1/tokens":        rendezvous.CreatedToken{TokenView: view, Token: "bodkin-join-abc", URL: "https://198.51.100.1:7443", Warning: "beijing.edge1 is a node already"},
		"GET /api/v1/tokens":         rendezvous.TokenList{Tokens: []rendezvous.TokenView{view, used, expired}},
		"DELETE /api/v1/tokens/aaaa": nil,
	})
	tests := []struct {
		args  string
		asked string
		words []string
	}{
		{"create --name beijing.edge1 --subnets 10.233.66.0/24", `POST /api/v1/tokens {"name":"beijing.edge1","subnets":["10.233.66.0/24"],"ttlSeconds":43200,"uses":1}`,
			[]string{"sudo bodkin join https://198.51.100.1:7443 --token bodkin-join-abc\n", "For beijing.edge1, 1 use", "warning: beijing.edge1 is a node already"}},
		{"create --uses 5 --ttl 1h --connector --replace -o json", `POST /api/v1/tokens {"connector":true,"replace":true,"ttlSeconds":3600,"uses":5}`,
			[]string{`"token": "bodkin-join-abc"`, `"url": "https://198.51.100.1:7443"`}},
		{"list", "GET /api/v1/tokens", []string{"3f9a01c2b4d5e6f7", "good", "used", "expired", "1 of 1", "10.233.66.0/24"}},
		{"delete aaaa", "DELETE /api/v1/tokens/aaaa", []string{"token aaaa deleted"}},
	}
	for _, tt := range tests {
		asked = nil
		out, err := run(t, "", append([]string{"token", "--socket", socket}, strings.Fields(tt.args)...)...)
		if err != nil || !reflect.DeepEqual(asked, []string{tt.asked}) {
			t.Errorf("%s: %v, asked %q, want %q", tt.args, err, asked, tt.asked)
		}
		for _, word := range tt.words {
			if !strings.Contains(out, word) {
				t.Errorf("%s: no %q in\n%s", tt.args, word, out)
			}
		}
	}
	for _, wrong := range []string{"create --ttl 0s", "create --ttl 1ms", "create --uses 0", "create extra", "delete"} {
		asked = nil
		if _, err := run(t, "", append([]string{"token", "--socket", socket}, strings.Fields(wrong)...)...); !errors.As(err, new(usageError)) || asked != nil {
			t.Errorf("%s: %v, asked %q", wrong, err, asked)
		}
	}
}

func TestNodeCommands(t *testing.T) {
	nodes := []rendezvous.NodeHistory{
		{NodeView: rendezvous.NodeView{Name: "beijing.edge1", Online: true, Since: time.Now(), Admission: store.Approved}},
		{NodeView: rendezvous.NodeView{Name: "beijing.edge2", Admission: store.Pending}},
		{NodeView: rendezvous.NodeView{Name: "beijing.edge3", LastSeen: time.Now(), Admission: store.Revoked}},
	}
	detail := rendezvous.NodeDetail{
		NodeHistory:  nodes[2],
		Admission:    rendezvous.AdmissionView{State: store.Revoked, By: "alice", Since: time.Now(), Reason: "stolen", Subnets: []string{"10.1.0.0/16"}},
		Certificates: []store.Certificate{{Serial: "2a", Revoked: time.Now(), NotAfter: time.Now().Add(time.Hour)}},
		Pairs:        rendezvous.PairCounts{Direct: 3, Down: 1},
	}
	var asked []string
	const edge = "/api/v1/nodes/beijing.edge3"
	socket := enrolmentAPI(t, &asked, map[string]any{
		"GET /api/v1/nodes":                        rendezvous.NodeList{Nodes: nodes},
		"GET " + edge:                              detail,
		"POST " + edge + "/approve":                detail.Admission,
		"POST " + edge + "/revoke":                 rendezvous.RevokedNode{Certificates: 2},
		"POST /api/v1/nodes/shanghai.edge1/revoke": rendezvous.RevokedNode{},
		"PATCH " + edge:                            detail.Admission,
		"DELETE " + edge:                           nil,
	})
	tests := []struct {
		args  []string
		asked string
		words []string
	}{
		{[]string{"list"}, "GET /api/v1/nodes", []string{"approved", "pending", "revoked", "never online", "online", "offline"}},
		{[]string{"list", "-o", "json"}, "GET /api/v1/nodes", []string{`"admission": "pending"`}},
		{[]string{"show", "beijing.edge3"}, "GET " + edge, []string{"revoked", "stolen", "by alice", "10.1.0.0/16", "2a", "3 direct, 0 relayed, 1 down"}},
		{[]string{"approve", "beijing.edge3"}, "POST " + edge + "/approve", []string{"approved"}},
		{[]string{"revoke", "beijing.edge3", "--reason", "stolen"}, "POST " + edge + `/revoke {"reason":"stolen"}`, []string{"2 certificates of it on the list"}},
		{[]string{"revoke", "shanghai.edge1"}, `POST /api/v1/nodes/shanghai.edge1/revoke {"reason":""}`, []string{"its own CA has to revoke"}},
		{[]string{"set", "beijing.edge3", "--punch", "never"}, "PATCH " + edge + ` {"punch":"never"}`, []string{"subnets 10.1.0.0/16"}},
		{[]string{"set", "beijing.edge3", "--subnets", "", "--note", ""}, "PATCH " + edge + ` {"subnets":[],"note":""}`, nil},
		{[]string{"set", "beijing.edge3", "--subnets", "10.1.0.0/16,10.2.0.0/16"}, "PATCH " + edge + ` {"subnets":["10.1.0.0/16","10.2.0.0/16"]}`, nil},
		{[]string{"delete", "beijing.edge3"}, "DELETE " + edge, []string{"node beijing.edge3 deleted"}},
	}
	for _, tt := range tests {
		asked = nil
		out, err := run(t, "", append([]string{"node", "--socket", socket}, tt.args...)...)
		if err != nil || !reflect.DeepEqual(asked, []string{tt.asked}) {
			t.Errorf("%q: %v, asked %q, want %q", tt.args, err, asked, tt.asked)
		}
		for _, word := range tt.words {
			if !strings.Contains(out, word) {
				t.Errorf("%q: no %q in\n%s", tt.args, word, out)
			}
		}
	}
	if _, err := run(t, "", "node", "--socket", socket, "set", "beijing.edge3"); !errors.As(err, new(usageError)) {
		t.Errorf("nothing to set: %v", err)
	}
	if _, err := run(t, "", "node", "--socket", socket, "approve", "nonesuch"); err == nil || err.Error() != `node "nonesuch": not found` {
		t.Errorf("a node that is none: %v", err)
	}
}
