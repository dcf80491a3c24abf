package main

import (
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/bodkin-net/bodkin/agent"
	"github.com/bodkin-net/bodkin/e2e/lab"
	"github.com/bodkin-net/bodkin/rendezvous"
)

// Where the documents and the example files are, seen from this folder.
const (
	docsDir   = "../../docs"
	deployDir = "../../deploy"
)

func read(t *testing.T, path ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// section is what stands below a heading of the second level.
func section(t *testing.T, doc, heading string) string {
	t.Helper()
	_, rest, ok := strings.Cut(doc, "\n## "+heading+"\n")
	if !ok {
		t.Fatalf("no section %q", heading)
	}
	text, _, _ := strings.Cut(rest, "\n## ")
	return text
}

// settings are the values of a configuration by key; those of a section by
// section.key.
func settings(config any) map[string]any {
	out := map[string]any{}
	v := reflect.ValueOf(config)
	for i := range v.NumField() {
		key, value := v.Type().Field(i).Tag.Get("yaml"), v.Field(i)
		if value.Kind() != reflect.Struct {
			out[key] = value.Interface()
			continue
		}
		for inner, value := range settings(value.Interface()) {
			out[key+"."+inner] = value
		}
	}
	return out
}

// keyRow is a row of the table of keys: key, type, default.
var keyRow = regexp.MustCompile("(?m)^\\| `([A-Za-z.]+)` \\| ([^|]+) \\| `?([^|`]*)`? \\|")

// documented are the defaults as the document has them, by key.
func documented(t *testing.T, heading string) map[string]string {
	t.Helper()
	text := section(t, read(t, docsDir, "configuration.md"), heading)
	_, table, ok := strings.Cut(text, "| key | type | default | meaning |\n")
	if !ok {
		t.Fatalf("section %q has no table of keys", heading)
	}
	table, _, _ = strings.Cut(table, "\n\n")
	defaults := map[string]string{}
	for _, row := range keyRow.FindAllStringSubmatch(table, -1) {
		defaults[row[1]] = row[3]
	}
	return defaults
}

// TestConfigurationDocument: every key is in the document with its default, and
// nothing else is.
func TestConfigurationDocument(t *testing.T) {
	for heading, config := range map[string]any{
		"rendezvous.yaml": rendezvous.DefaultConfig(),
		"agent.yaml":      agent.DefaultConfig(),
	} {
		want, got := settings(config), documented(t, heading)
		for key := range got {
			if _, ok := want[key]; !ok {
				t.Errorf("%s: the document has %s, which is no key", heading, key)
			}
		}
		for key, value := range want {
			text, ok := got[key]
			if !ok {
				t.Errorf("%s: the document lacks %s", heading, key)
				continue
			}
			if text == "none" {
				text = `""`
			}
			decoded := reflect.New(reflect.TypeOf(value))
			if err := yaml.Unmarshal([]byte(text), decoded.Interface()); err != nil {
				t.Errorf("%s: default of %s: %v", heading, key, err)
				continue
			}
			if got := decoded.Elem(); !reflect.DeepEqual(got.Interface(), value) && !(got.Kind() == reflect.Slice && got.Len() == 0) {
				t.Errorf("%s: the document says that the default of %s is %s; it is %v", heading, key, text, value)
			}
		}
	}
}

// keysOf are the keys a YAML file sets; those of a section as section.key.
func keysOf(t *testing.T, text string) []string {
	t.Helper()
	var file map[string]any
	if err := yaml.Unmarshal([]byte(text), &file); err != nil {
		t.Fatal(err)
	}
	var keys []string
	for key, value := range file {
		inner, ok := value.(map[string]any)
		if !ok {
			keys = append(keys, key)
		}
		for k := range inner {
			keys = append(keys, key+"."+k)
		}
	}
	return keys
}

func sameKeys(t *testing.T, what string, got []string, config any) {
	t.Helper()
	slices.Sort(got)
	if got = slices.Compact(got); !slices.Equal(got, slices.Sorted(maps.Keys(settings(config)))) {
		t.Errorf("%s: has the keys %v, want all of %v", what, got, slices.Sorted(maps.Keys(settings(config))))
	}
}

func TestRendezvousExample(t *testing.T) {
	path := filepath.Join(deployDir, "rendezvous.yaml")
	cfg, err := rendezvous.LoadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	want := rendezvous.DefaultConfig()
	want.CAKey = "/etc/bodkin/ca.key" // by default an existing CA is used
	if !reflect.DeepEqual(cfg, want) {
		t.Errorf("got %+v, want the defaults beside caKey: %+v", cfg, want)
	}
	sameKeys(t, path, keysOf(t, read(t, path)), cfg)
}

// TestAgentExamples loads the examples with certificates that were issued for
// the nodes they describe.
func TestAgentExamples(t *testing.T) {
	var keys []string
	for file, node := range map[string]string{
		"agent-edge.yaml":      "beijing.edge1",
		"agent-connector.yaml": "beijing.connector",
	} {
		pki, err := lab.NewPKI(filepath.Join(t.TempDir(), "pki"))
		if err != nil {
			t.Fatal(err)
		}
		cert, key, err := pki.Issue(node, lab.CertOptions{})
		if err != nil {
			t.Fatal(err)
		}
		text := read(t, deployDir, file)
		keys = append(keys, keysOf(t, text)...)
		def := agent.DefaultConfig()
		here := strings.NewReplacer(def.Certificate, cert, def.Key, key, def.CA, pki.CAPath()).Replace(text)
		cfg, err := agent.LoadConfig(writeFile(t, file, here))
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		def.Certificate, def.Key, def.CA = cert, key, pki.CAPath()
		def.Rendezvous, def.Endpoint = cfg.Rendezvous, cfg.Endpoint
		if !reflect.DeepEqual(cfg, def) {
			t.Errorf("%s: got %+v, want the defaults beside rendezvous and endpoint: %+v", file, cfg, def)
		}
	}
	sameKeys(t, "the agents' examples together", keys, agent.DefaultConfig())
}

func TestCommunityExample(t *testing.T) {
	cs, err := rendezvous.ParseCommunities("all-edges.yaml", strings.NewReader(read(t, deployDir, "all-edges.yaml")))
	if err != nil {
		t.Fatal(err)
	}
	want := []rendezvous.Community{{Name: "all-edges", Members: []string{"beijing.edge1", "beijing.edge2"}}}
	if !reflect.DeepEqual(cs, want) {
		t.Errorf("got %+v, want %+v", cs, want)
	}
}

// jsonKeys are the keys that values of type t can have in JSON, at any depth.
func jsonKeys(t reflect.Type, keys map[string]bool) {
	switch t.Kind() {
	case reflect.Slice, reflect.Array, reflect.Pointer, reflect.Map:
		jsonKeys(t.Elem(), keys)
	case reflect.Struct:
		for f := range t.Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name != "" {
				keys[name] = true
			}
			if name != "" || f.Anonymous {
				jsonKeys(f.Type, keys)
			}
		}
	}
}

var jsonBlock = regexp.MustCompile("(?s)```json\n(.*?)```")

// TestAPIDocument: the examples are what the programs send, and no field is
// kept back. Everything else is in openapi.yaml.
func TestAPIDocument(t *testing.T) {
	doc := read(t, docsDir, "api.md")
	for heading, answer := range map[string]any{
		"GET /api/v1/nodes":  new(rendezvous.NodeList),
		"GET /api/v1/pairs":  new(rendezvous.PairList),
		"The agent's status": new(agent.Status),
	} {
		text := section(t, doc, heading)
		block := jsonBlock.FindStringSubmatch(text)
		if block == nil {
			t.Errorf("%s: no example", heading)
			continue
		}
		dec := json.NewDecoder(bytes.NewReader([]byte(block[1])))
		dec.DisallowUnknownFields()
		if err := dec.Decode(answer); err != nil {
			t.Errorf("%s: the example is not what is sent: %v", heading, err)
		}
		if _, err := dec.Token(); err != io.EOF {
			t.Errorf("%s: something follows the example's value: %v", heading, err)
		}
		keys := map[string]bool{}
		jsonKeys(reflect.TypeOf(answer), keys)
		for key := range keys {
			if !strings.Contains(text, `"`+key+`"`) && !strings.Contains(text, "`"+key+"`") {
				t.Errorf("%s: the section does not mention %s", heading, key)
			}
		}
	}
}

// TestMetricsDocument: the metrics in the code are those in the document.
func TestMetricsDocument(t *testing.T) {
	code := read(t, "../../rendezvous/metrics.go") + read(t, "../../rendezvous/collector.go") + read(t, "../../agent/metrics.go")
	in := func(text, pattern string) []string {
		names := map[string]bool{}
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
			names[m[1]] = true
		}
		return slices.Sorted(maps.Keys(names))
	}
	want := in(code, `"(bodkin_[a-z_]+)"`)
	got := in(section(t, read(t, docsDir, "operating.md"), "Metrics"), "`(bodkin_[a-z_]+)")
	if len(want) == 0 || !slices.Equal(got, want) {
		t.Errorf("documented are %v, there are %v", got, want)
	}
}
