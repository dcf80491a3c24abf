package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

func TestTable(t *testing.T) {
	tests := []struct {
		name         string
		wide, colour bool
		want         string
	}{
		{"for people", false, false, "NODE    STATE   REASON\nédge1   direct  -\nedge10  down    no route\n"},
		{"wide", true, false, "NODE    STATE   PLAN  REASON\nédge1   direct  ice   -\nedge10  down    -     no route\n"},
		{"in colour", false, true, "\x1b[1mNODE\x1b[0m    \x1b[1mSTATE\x1b[0m   \x1b[1mREASON\x1b[0m\n" +
			"édge1   \x1b[32mdirect\x1b[0m  -\nedge10  \x1b[31mdown\x1b[0m    no route\n"},
	}
	for _, tt := range tests {
		p := printer{wide: tt.wide, colour: tt.colour}
		table := p.table("NODE", "STATE", "+PLAN", "REASON")
		table.row("édge1", stateCell("direct"), wire.PlanICE, "")
		table.row("edge10", stateCell("down"), "", "no route")
		table.end()
		if got := p.text.String(); got != tt.want {
			t.Errorf("%s:\n%q\nwant\n%q", tt.name, got, tt.want)
		}
	}
}

// YAML has JSON's keys in JSON's order, and words that readers of YAML 1.1 take
// for booleans in quotes.
func TestYAML(t *testing.T) {
	v := struct {
		Zone    string        `json:"zone"`
		Answer  wire.Answer   `json:"answer"`
		Version string        `json:"version"`
		Count   int           `json:"count"`
		Rate    float64       `json:"rate"`
		Up      bool          `json:"up"`
		None    []string      `json:"none"`
		Nested  []wire.Report `json:"nested"`
	}{"a: b\n<c>", wire.Yes, "1.10", 7, 0.25, true, []string{}, []wire.Report{{Peer: "beijing.edge1", Outcome: wire.OutcomeDirect}}}
	const want = `zone: |-
  a: b
  <c>
answer: "yes"
version: "1.10"
count: 7
rate: 0.25
up: true
none: []
nested:
  - peer: beijing.edge1
    outcome: direct
    elapsedMs: 0
`
	var out bytes.Buffer
	if err := printYAML(&out, v); err != nil || out.String() != want {
		t.Errorf("%v\n%s\nwant\n%s", err, out.String(), want)
	}
	var back map[string]any
	if err := yaml.Unmarshal(out.Bytes(), &back); err != nil || back["zone"] != "a: b\n<c>" {
		t.Errorf("%v, %q", err, back["zone"])
	}
}

func TestColours(t *testing.T) {
	for _, tt := range []struct {
		args, noColour string
		want           bool
	}{
		{"version", "", false}, // no terminal here
		{"version --color always", "", true},
		{"version --color always", "1", true},
		{"version --color never", "", false},
	} {
		t.Setenv("NO_COLOR", tt.noColour)
		root := newRoot()
		cmd, rest, err := root.Find(strings.Fields(tt.args))
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.ParseFlags(rest); err != nil {
			t.Fatal(err)
		}
		if got := colours(cmd); got != tt.want {
			t.Errorf("%s, NO_COLOR=%s: %v", tt.args, tt.noColour, got)
		}
	}
}

// What `bodkin help output` promises, and completion needs: every command that
// prints an answer takes all formats.
func TestEveryCommandHasHelp(t *testing.T) {
	for _, cmd := range allCommands(newRoot()) {
		path := cmd.CommandPath()
		switch {
		case !cmd.Runnable() || cmd.Name() == "help" || strings.HasPrefix(path, "bodkin completion") || path == "bodkin":
		case cmd.Example == "" && !cmd.HasSubCommands():
			t.Errorf("%s has no example", path)
		case cmd.Short == "" || strings.HasSuffix(cmd.Short, "."):
			t.Errorf("%s: %q: want what it does, without a full stop", path, cmd.Short)
		}
		for line := range strings.SplitSeq(cmd.Example, "\n") {
			if line != "" && !strings.HasPrefix(line, "  ") {
				t.Errorf("%s: example %q is not indented by two", path, line)
			}
		}
		if o := cmd.Flags().Lookup("output"); o != nil && o.Value.Type() != "format" {
			t.Errorf("%s: -o is %q", path, o.Usage)
		}
	}
}

func TestHelpTopics(t *testing.T) {
	for _, name := range []string{"exit-codes", "environment", "output"} {
		out, err := run(t, "", "help", name)
		if err != nil || strings.Contains(out, "Unknown help topic") || len(out) < 100 {
			t.Errorf("help %s: %v\n%s", name, err, out)
		}
	}
}

func TestVersionOutput(t *testing.T) {
	out, err := run(t, "", "version", "-o", "json")
	var got map[string]string
	if err != nil || json.Unmarshal([]byte(out), &got) != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, key := range []string{"version", "go", "platform"} {
		if got[key] == "" {
			t.Errorf("no %s in %s", key, out)
		}
	}
}

func TestOnTerminal(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if onTerminal(f) || onTerminal(&bytes.Buffer{}) {
		t.Error("neither is a terminal")
	}
}
