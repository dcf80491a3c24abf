package main

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

const communityYAML = "kind: Community\n"

// adminAPI answers as the rendezvous' admin socket does, and notes what it was
// asked.
func adminAPI(t *testing.T, asked *[]string) (socket string) {
	return daemon(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		*asked = append(*asked, fmt.Sprintf("%s %s %s", r.Method, r.URL.RequestURI(), body))
		switch {
		case r.Method == http.MethodPut && strings.HasSuffix(r.URL.Query().Get("file"), "bad.yaml"):
			w.WriteHeader(http.StatusUnprocessableEntity)
			fmt.Fprint(w, `{"error": "bad.yaml: document 1: spec.members: empty"}`)
		case r.Method == http.MethodPut:
			fmt.Fprint(w, `{"applied": ["all-edges", "east"]}`)
		case r.Method == http.MethodDelete && strings.HasSuffix(r.URL.Path, "/east"):
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"error": "community east not found"}`)
		case r.Method == http.MethodGet:
			fmt.Fprint(w, `{"communities": [{"name": "all-edges", "members": ["beijing.edge1", "beijing.edge2"], "source": "all.yaml"},
				{"name": "east", "members": ["shanghai.edge1"], "punch": "ice-only", "source": "east.yaml"}]}`)
		}
	})
}

func TestNodeDelete(t *testing.T) {
	var asked []string
	socket := adminAPI(t, &asked)
	out, err := run(t, "", "node", "--socket", socket, "delete", "beijing.edge9")
	if err != nil || out != "node beijing.edge9 deleted\n" || strings.Join(asked, ",") != "DELETE /api/v1/nodes/beijing.edge9 " {
		t.Errorf("%q, %v; asked %q", out, err, asked)
	}
}

func TestCommunity(t *testing.T) {
	good, bad := writeFile(t, "good.yaml", communityYAML), writeFile(t, "bad.yaml", communityYAML)
	query := func(file string) string { return strings.ReplaceAll(file, "/", "%2F") }
	tests := []struct {
		name  string
		args  []string
		asked string
		want  string
		code  int // 0 for success
	}{
		{"apply", []string{"apply", "-f", good}, "PUT /api/v1/communities?file=" + query(good) + " " + communityYAML,
			"community all-edges applied\ncommunity east applied\n", 0},
		{"apply standard input", []string{"apply", "-f", "-"}, "PUT /api/v1/communities?file=- from stdin",
			"community all-edges applied\ncommunity east applied\n", 0},
		{"apply what is refused", []string{"apply", "-f", bad}, "PUT /api/v1/communities?file=" + query(bad) + " " + communityYAML,
			"bad.yaml: document 1: spec.members: empty", exitConfig},
		{"get", []string{"get"}, "GET /api/v1/communities ",
			"NAME       PUNCH     MEMBERS\nall-edges  auto      beijing.edge1 beijing.edge2\neast       ice-only  shanghai.edge1\n", 0},
		{"get one", []string{"get", "east"}, "GET /api/v1/communities ", "NAME  PUNCH     MEMBERS\neast  ice-only  shanghai.edge1\n", 0},
		{"get one that is not", []string{"get", "west"}, "GET /api/v1/communities ", "community west not found", exitFailed},
		{"get json", []string{"get", "east", "-o", "json"}, "GET /api/v1/communities ", `[
  {
    "name": "east",
    "members": [
      "shanghai.edge1"
    ],
    "punch": "ice-only",
    "source": "east.yaml"
  }
]
`, 0},
		{"delete", []string{"delete", "all-edges"}, "DELETE /api/v1/communities/all-edges ", "community all-edges deleted\n", 0},
		{"delete what is not", []string{"delete", "east"}, "DELETE /api/v1/communities/east ", "community east not found", exitFailed},
		{"delete an odd name", []string{"delete", "a/b"}, "DELETE /api/v1/communities/a%2Fb ", "community a/b deleted\n", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var asked []string
			socket := adminAPI(t, &asked)
			out, err := run(t, "from stdin", append([]string{"community", "--socket", socket}, tt.args...)...)
			if got := strings.Join(asked, "\n"); got != tt.asked {
				t.Errorf("asked %q; want %q", got, tt.asked)
			}
			code := 0
			if err != nil {
				out, code = err.Error(), exitCode(err)
			}
			if out != tt.want || code != tt.code {
				t.Errorf("exit code %d, %q; want %d, %q", code, out, tt.code, tt.want)
			}
		})
	}
}
