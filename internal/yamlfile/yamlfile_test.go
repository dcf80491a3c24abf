package yamlfile

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

type section struct {
	Port uint16   `yaml:"port"`
	List []string `yaml:"list"`
}

type file struct {
	Name    string  `yaml:"name"`
	On      bool    `yaml:"on"`
	Section section `yaml:"section"`
}

func write(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.yaml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLoad(t *testing.T) {
	got := file{Name: "default", Section: section{Port: 1}}
	if err := Load(write(t, "on: true\nsection: {list: [a, b]}\n"), &got); err != nil {
		t.Fatal(err)
	}
	want := file{Name: "default", On: true, Section: section{Port: 1, List: []string{"a", "b"}}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for _, empty := range []string{"", "\n", "# nothing\n"} {
		kept := want
		if err := Load(write(t, empty), &kept); err != nil || !reflect.DeepEqual(kept, want) {
			t.Errorf("%q: %+v, %v; want nothing changed", empty, kept, err)
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	for content, want := range map[string]string{
		"name: [\n":                      "yaml: line",
		"- name\n":                       "line 1: the file: want keys: name, on, section",
		"name: a\nnme: b\n":              "line 2: nme: unknown key: want one of name, on, section",
		"Name: a\n":                      "line 1: Name: unknown key",
		"name: a\nname: b\n":             "already defined",
		"name: a\n---\non: true\n":       "a second document: want one",
		"name: [a]\n":                    "line 1: name: want one value",
		"on: perhaps\n":                  "line 1: on: want true or false",
		"section: a\n":                   "line 1: section: want keys: port, list",
		"section:\n  port: 70000\n":      "line 2: section.port: want a number from 0 to 65535",
		"section:\n  list: {a: b}\n":     "line 2: section.list: want a list",
		"section:\n  ports: [1, 2, 3]\n": "line 2: section.ports: unknown key: want one of port, list",
	} {
		path := write(t, content)
		err := Load(path, new(file))
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), path+": ") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v; want one line with %s and %q", content, err, path, want)
		}
	}
	if err := Load("/nonexistent.yaml", new(file)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}
