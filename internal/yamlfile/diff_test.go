package yamlfile

import (
	"reflect"
	"testing"
)

func TestDiff(t *testing.T) {
	before := file{Name: "a", Section: section{Port: 1, List: []string{"x"}}}
	for _, tt := range []struct {
		name  string
		after file
		want  []Change
	}{
		{"nothing", file{Name: "a", Section: section{Port: 1, List: []string{"x"}}}, nil},
		{"one", file{Name: "a", On: true, Section: before.Section}, []Change{{"on", "false", "true"}}},
		{"emptied", file{Section: before.Section}, []Change{{"name", "a", `""`}}},
		{"inside a section, in the file's order", file{Name: "b", Section: section{Port: 2, List: []string{"x", "y"}}},
			[]Change{{"name", "a", "b"}, {"section.port", "1", "2"}, {"section.list", "[x]", "[x y]"}}},
	} {
		if got := Diff(before, tt.after); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %v; want %v", tt.name, got, tt.want)
		}
	}
	if got := Diff(section{}, section{List: []string{}}); got != nil {
		t.Errorf("no list and an empty one: %v; want no change", got)
	}
}
