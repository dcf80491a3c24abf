package rendezvous

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

func TestParseCommunities(t *testing.T) {
	tests := []struct {
		file string
		want []Community
	}{
		{"all-edges.yaml", []Community{
			{Name: "all-edges", Members: []string{"beijing.edge1", "beijing.edge2"}},
		}},
		{"exported.yaml", []Community{
			{Name: "connectors", Members: []string{"beijing.connector", "fabedge.connector"}},
			{Name: "all-edges", Members: []string{"shanghai.edge1"}},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.file, func(t *testing.T) {
			f, err := os.Open(filepath.Join("testdata", "communities", tt.file))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = f.Close() }()
			got, err := ParseCommunities(tt.file, f)
			if err != nil || !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v, %v\nwant %+v", got, err, tt.want)
			}
		})
	}
}

// communityYAML is a good document; the tests below spoil it.
const communityYAML = `apiVersion: fabedge.io/v1alpha1
kind: Community
metadata:
  name: all-edges
spec:
  members:
    - beijing.edge1
    - beijing.edge2
`

func TestParseCommunitiesRefuses(t *testing.T) {
	spoil := func(old, replacement string) string {
		if !strings.Contains(communityYAML, old) {
			t.Fatalf("%q is not in the good document", old)
		}
		return strings.Replace(communityYAML, old, replacement, 1)
	}
	long := strings.Repeat("a", 64)
	tests := []struct {
		name     string
		yaml     string
		document int
		line     int
		field    string
		problem  string
	}{
		{"unknown field", spoil("spec:", "spce:"), 1, 5, "spce", "known here are apiVersion, kind, metadata, spec, status"},
		{"unknown field below", spoil("members:", "member:"), 1, 6, "spec.member", "known here are members"},
		{"unknown metadata", spoil("name:", "nmae:"), 1, 4, "metadata.nmae", "unknown field"},
		{"merge key", spoil("  name:", "  <<: {}\n  name:"), 1, 4, "metadata.<<", "unknown field"},
		{"field twice", spoil("spec:", "kind: Community\nspec:"), 1, 5, "kind", "given twice"},
		{"other version", spoil("v1alpha1", "v1"), 1, 1, "apiVersion", "only \"fabedge.io/v1alpha1\" is read here"},
		{"other kind", spoil("Community", "Cluster"), 1, 2, "kind", "only \"Community\" is read here"},
		{"no kind", spoil("kind: Community\n", ""), 1, 1, "kind", "missing"},
		{"no metadata", spoil("metadata:\n  name: all-edges\n", ""), 1, 1, "metadata", "name is required"},
		{"no name", spoil("  name: all-edges\n", "  labels: {}\n"), 1, 4, "metadata.name", "missing"},
		{"empty name", spoil("all-edges", `""`), 1, 4, "metadata.name", `"" is no name`},
		{"name in capitals", spoil("all-edges", "All-Edges"), 1, 4, "metadata.name", "a-z, 0-9"},
		{"name ends with a dash", spoil("all-edges", "all-"), 1, 4, "metadata.name", "is no name"},
		{"name part too long", spoil("all-edges", long), 1, 4, "metadata.name", "is no name"},
		{"name too long", spoil("all-edges", strings.Repeat(long[:62]+".", 4)+"abc"), 1, 4, "metadata.name", "at most 253"},
		{"name of two lines", spoil("all-edges", `"all\nedges"`), 1, 4, "metadata.name", `all\nedges`},
		{"name a number", spoil("all-edges", "17"), 1, 4, "metadata.name", "put it in quotes"},
		{"name a list", spoil("all-edges", "[a]"), 1, 4, "metadata.name", "is no text"},
		{"no spec", spoil("spec:\n  members:\n    - beijing.edge1\n    - beijing.edge2\n", ""), 1, 1, "spec", "members is required"},
		{"no members", spoil("  members:\n    - beijing.edge1\n    - beijing.edge2\n", "  {}\n"), 1, 6, "spec.members", "is empty"},
		{"empty members", spoil("\n    - beijing.edge1\n    - beijing.edge2", " []"), 1, 6, "spec.members", "is empty"},
		{"members a text", spoil("\n    - beijing.edge1\n    - beijing.edge2", " beijing.edge1"), 1, 6, "spec.members", "is no list"},
		{"member without cluster", spoil("beijing.edge2", "edge2"), 1, 8, "spec.members[1]", "write cluster.node"},
		{"member in capitals", spoil("beijing.edge2", "beijing.Edge2"), 1, 8, "spec.members[1]", "lower case"},
		{"member with an empty part", spoil("beijing.edge2", "beijing..edge2"), 1, 8, "spec.members[1]", "write cluster.node"},
		{"member a number", spoil("beijing.edge2", "1.10"), 1, 8, "spec.members[1]", "put it in quotes"},
		{"member null", spoil("beijing.edge2", ""), 1, 8, "spec.members[1]", "missing"},
		{"member a mapping", spoil("beijing.edge2", "name: beijing.edge2"), 1, 8, "spec.members[1]", "is no text"},
		{"member twice", spoil("beijing.edge2", "beijing.edge1"), 1, 8, "spec.members[1]", "in line 7 already"},
		{"second document", communityYAML + "---\n" + spoil("all-edges", "{}"), 2, 13, "metadata.name", "is no text"},
		{"name of an earlier document", communityYAML + "---\n---\n" + communityYAML, 3, 14, "metadata.name", "in document 1 already"},
		{"policy", spoil("spec:", "  annotations:\n    bodkin.net/punch: maybe\nspec:"), 1, 6, "metadata.annotations.bodkin.net/punch", `is "maybe": want auto, ice-only or never`},
		{"empty policy", spoil("spec:", "  annotations: {bodkin.net/punch: ''}\nspec:"), 1, 5, "metadata.annotations.bodkin.net/punch", "want auto"},
		{"policy not a text", spoil("spec:", "  annotations: {bodkin.net/punch: false}\nspec:"), 1, 5, "metadata.annotations.bodkin.net/punch", "put it in quotes"},
		{"policy twice", spoil("spec:", "  annotations:\n    bodkin.net/punch: auto\n    bodkin.net/punch: never\nspec:"), 1, 7, "metadata.annotations.bodkin.net/punch", "given twice"},
		{"policy misspelt", spoil("spec:", "  annotations: {bodkin.net/pnuch: never}\nspec:"), 1, 5, "metadata.annotations.bodkin.net/pnuch", "known is bodkin.net/punch"},
		{"annotations a list", spoil("spec:", "  annotations: [bodkin.net/punch]\nspec:"), 1, 5, "metadata.annotations", "is no mapping"},
		{"a list", "- " + communityKind, 1, 1, "", "is no mapping"},
		{"a text", "Community", 1, 1, "", "is no mapping"},
		{"not YAML", communityYAML + "status: 'open\n", 1, 9, "", "not YAML: "},
		{"not UTF-8", "kind: \xff\xfe\n", 1, 0, "", "not YAML: "},
		{"empty", "", 0, 0, "", "at least one Community"},
		{"only comments", "# none\n---\n# none\n", 0, 0, "", "at least one Community"},
		{"too large", communityYAML + strings.Repeat("# padding\n", maxCommunityFile/10), 0, 0, "", "larger than 1048576 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseCommunities("edges.yaml", strings.NewReader(tt.yaml))
			var ce *CommunityError
			if !errors.As(err, &ce) {
				t.Fatalf("got %+v, %v, want a CommunityError", got, err)
			}
			if got != nil {
				t.Errorf("got %+v beside the error", got)
			}
			if ce.File != "edges.yaml" || ce.Document != tt.document || ce.Line != tt.line || ce.Field != tt.field {
				t.Errorf("error %q\nplace %s %d %d %q, want edges.yaml %d %d %q",
					ce, ce.File, ce.Document, ce.Line, ce.Field, tt.document, tt.line, tt.field)
			}
			if !strings.Contains(ce.Problem, tt.problem) {
				t.Errorf("problem %q does not mention %q", ce.Problem, tt.problem)
			}
		})
	}
}

func TestCommunityErrorIsOneLine(t *testing.T) {
	tests := []struct {
		err  CommunityError
		want string
	}{
		{
			CommunityError{"edges.yaml", 2, 14, "spec.members[1]", "is no text"},
			"edges.yaml: document 2, line 14: spec.members[1]: is no text",
		},
		{
			CommunityError{File: "edges.yaml", Document: 2, Problem: "not YAML: control characters"},
			"edges.yaml: document 2: not YAML: control characters",
		},
		{CommunityError{File: "edges.yaml", Problem: "no document"}, "edges.yaml: no document"},
	}
	for _, tt := range tests {
		if got := tt.err.Error(); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

func TestParseCommunitiesReportsReadError(t *testing.T) {
	_, err := ParseCommunities("edges.yaml", iotest.ErrReader(io.ErrUnexpectedEOF))
	if !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), "edges.yaml") {
		t.Errorf("error %v, want the reader's with the file", err)
	}
}

func TestAliasStandsForItsText(t *testing.T) {
	file := strings.Replace(communityYAML, "name: all-edges", "name: &n all.edges", 1)
	file = strings.Replace(file, "beijing.edge2", "*n", 1)
	got, err := ParseCommunities("edges.yaml", strings.NewReader(file))
	want := []Community{{Name: "all.edges", Members: []string{"all.edges", "beijing.edge1"}}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}

func annotation(c Community) string {
	if c.Punch == "" {
		return ""
	}
	return fmt.Sprintf("%s: %s", punchAnnotation, c.Punch)
}

func TestCommunityPolicy(t *testing.T) {
	for annotations, want := range map[string]wire.Policy{
		"annotations: {}": "",
		"annotations:":    "",
		"annotations: {kubectl.kubernetes.io/last-applied-configuration: x}": "",
		"annotations: {bodkin.net/punch: auto}":                              wire.PolicyAuto,
		"annotations: {bodkin.net/punch: ice-only}":                          wire.PolicyICEOnly,
		"annotations: {a/b: c, \"bodkin.net/punch\": \"never\"}":             wire.PolicyNever,
	} {
		file := strings.Replace(communityYAML, "spec:", "  "+annotations+"\nspec:", 1)
		got, err := ParseCommunities("edges.yaml", strings.NewReader(file))
		if err != nil || len(got) != 1 || got[0].Punch != want {
			t.Errorf("%s: %+v, %v, want %q", annotations, got, err, want)
		}
	}
}

func FuzzParseCommunities(f *testing.F) {
	f.Add([]byte(communityYAML))
	f.Fuzz(func(t *testing.T, data []byte) {
		cs, err := ParseCommunities("edges.yaml", strings.NewReader(string(data)))
		if err != nil {
			if len(cs) > 0 || strings.Contains(err.Error(), "\n") {
				t.Fatalf("got %+v and error %q", cs, err)
			}
			return
		}
		// What was accepted survives being written the plain way.
		var b strings.Builder
		for _, c := range cs {
			fmt.Fprintf(&b, "---\napiVersion: %s\nkind: %s\nmetadata: {name: %q, annotations: {%s}}\nspec:\n  members:\n",
				communityAPIVersion, communityKind, c.Name, annotation(c))
			for _, m := range c.Members {
				fmt.Fprintf(&b, "  - %q\n", m)
			}
		}
		if b.Len() > maxCommunityFile {
			return
		}
		again, err := ParseCommunities("again.yaml", strings.NewReader(b.String()))
		if err != nil || !reflect.DeepEqual(again, cs) {
			t.Fatalf("accepted %+v, which rewritten gives %+v, %v", cs, again, err)
		}
	})
}

func TestPairID(t *testing.T) {
	id := wire.NewPairID("beijing.edge2", "beijing.edge1")
	if id != "beijing.edge1|beijing.edge2" || id != wire.NewPairID("beijing.edge1", "beijing.edge2") {
		t.Errorf("got %q", id)
	}
	if a, b := id.Nodes(); a != "beijing.edge1" || b != "beijing.edge2" {
		t.Errorf("nodes %q, %q", a, b)
	}
}

func TestPairs(t *testing.T) {
	got := Pairs([]Community{
		{Name: "west", Members: []string{"a.1", "b.1", "c.1"}},
		{Name: "east", Members: []string{"b.1", "c.1", "d.1"}},
		{Name: "alone", Members: []string{"e.1"}},
	})
	want := map[wire.PairID][]string{
		"a.1|b.1": {"west"},
		"a.1|c.1": {"west"},
		"b.1|c.1": {"east", "west"},
		"b.1|d.1": {"east"},
		"c.1|d.1": {"east"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}
