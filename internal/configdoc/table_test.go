package main

import (
	"os"
	"strings"
	"testing"
)

const (
	root     = "../.."
	document = root + "/docs/configuration.md"
)

// TestCurrent: the document in the tree is what make docs would write.
func TestCurrent(t *testing.T) {
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	want, err := fill(root, string(text))
	if err != nil {
		t.Fatal(err)
	}
	if string(text) != want {
		t.Errorf("%s is not what its types say: run make docs", document)
	}
}

type inner struct {
	Ports []uint16 `yaml:"ports"`
	Names []string `yaml:"names"`
}

type example struct {
	Name  string `yaml:"name"`
	Mark  uint32 `yaml:"mark"`
	On    bool   `yaml:"on"`
	Inner inner  `yaml:"inner"`
}

func TestTable(t *testing.T) {
	comments := map[string]string{
		"example.Name": "Name is who it is.", "example.Mark": "Mark sets bits.", "example.On": "Whether it runs.",
		"inner.Ports": "Ports are its own.", "inner.Names": "Names are others'.",
	}
	got, err := table(example{Name: "a", Mark: 16, Inner: inner{Ports: []uint16{1, 2}}}, comments)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Join([]string{
		"| key | type | default | meaning |",
		"|---|---|---|---|",
		"| `name` | text | `\"a\"` | who it is. |",
		"| `mark` | number | `0x10` | `mark` sets bits. |",
		"| `on` | boolean | `false` | Whether it runs. |",
		"| `inner.ports` | list of numbers | `[1, 2]` | its own. |",
		"| `inner.names` | list of texts | `[]` | others'. |",
		"",
	}, "\n")
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	delete(comments, "inner.Names")
	if _, err := table(example{}, comments); err == nil || !strings.Contains(err.Error(), "inner.names") {
		t.Errorf("a key without a comment: %v, want an error that names it", err)
	}
	if _, err := table(struct {
		At float64 `yaml:"at"`
	}{}, map[string]string{".At": "At is when."}); err == nil {
		t.Error("a type without words: want an error")
	}
	if _, err := fill(root, "a document without tables"); err == nil {
		t.Error("a document without places: want an error")
	}
}
