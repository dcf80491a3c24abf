package main

import (
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/bodkin-net/bodkin/agent"
	"github.com/bodkin-net/bodkin/agent/doctor"
	"github.com/bodkin-net/bodkin/rendezvous"
)

// rootDir is the repository's, seen from this folder.
const rootDir = "../.."

// documents are all that people read, by path from the root.
func documents(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, pattern := range []string{"*.md", "docs/*.md", "deploy/*.md"} {
		paths, err := filepath.Glob(filepath.Join(rootDir, pattern))
		if err != nil || len(paths) == 0 {
			t.Fatalf("%s: %d documents, %v", pattern, len(paths), err)
		}
		for _, path := range paths {
			name, err := filepath.Rel(rootDir, path)
			if err != nil {
				t.Fatal(err)
			}
			out[name] = read(t, path)
		}
	}
	return out
}

var (
	fence     = regexp.MustCompile("(?ms)^```([a-z]*)\n(.*?)^```$")
	link      = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading   = regexp.MustCompile(`(?m)^#+ (.*)$`)
	notInSlug = regexp.MustCompile(`[^a-z0-9 _-]`)
)

// anchors are what GitHub makes of a document's headings.
func anchors(text string) []string {
	var out []string
	for _, m := range heading.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		slug := notInSlug.ReplaceAllString(strings.ToLower(m[1]), "")
		out = append(out, strings.ReplaceAll(slug, " ", "-"))
	}
	return out
}

// TestLinks: what a document refers to is there, down to the heading.
func TestLinks(t *testing.T) {
	docs := documents(t)
	for name, text := range docs {
		for _, m := range link.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
			to, err := url.Parse(m[1])
			if err != nil {
				t.Errorf("%s: %s: %v", name, m[1], err)
				continue
			}
			if to.Scheme != "" {
				continue
			}
			target := name
			if to.Path != "" {
				target = filepath.Join(filepath.Dir(name), to.Path)
			}
			if _, err := os.Stat(filepath.Join(rootDir, target)); err != nil {
				t.Errorf("%s: %s is not there", name, m[1])
			} else if to.Fragment != "" && !slices.Contains(anchors(docs[target]), to.Fragment) {
				t.Errorf("%s: %s has no heading for #%s", name, target, to.Fragment)
			}
		}
	}
}

var (
	prompt     = regexp.MustCompile(`^(?:[#$] )?(?:sudo )?(bodkin .*)$`)
	inlineCode = regexp.MustCompile("`(bodkin [^`]+)`")
	// placeholder is what stands for a word or for any number of them.
	placeholder = regexp.MustCompile(`[…|<>{}\[\]]`)
)

// commandLines are the command lines of bodkin in a document: in consoles after a
// prompt, in sh at the line's begin, and in the text between backquotes.
func commandLines(text string) []string {
	var out []string
	for _, block := range fence.FindAllStringSubmatch(text, -1) {
		for line := range strings.Lines(block[2]) {
			line = strings.TrimSpace(line)
			m := prompt.FindStringSubmatch(line)
			isShown := block[1] == "console" && (strings.HasPrefix(line, "# ") || strings.HasPrefix(line, "$ ") || strings.HasPrefix(line, "sudo "))
			if m != nil && (isShown || block[1] == "sh") {
				out = append(out, m[1])
			}
		}
	}
	for _, m := range inlineCode.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		out = append(out, m[1])
	}
	return out
}

// words are a command line's, up to what is the shell's or the reader's: comments,
// pipes, redirections. Quotes hold words together.
func words(line string) []string {
	var out []string
	for _, m := range regexp.MustCompile(`"[^"]*"|\S+`).FindAllString(line, -1) {
		if strings.HasPrefix(m, "#") || slices.Contains([]string{"|", ">", "&", "&&", ";"}, m) || strings.HasPrefix(m, "(") {
			break
		}
		out = append(out, strings.Trim(m, `"`))
	}
	return out
}

// wrongWith says what of a command line the command tree does not know.
func wrongWith(line string) string {
	root := newRoot()
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	cmd, rest, err := root.Find(words(line)[1:])
	if err != nil {
		return err.Error()
	}
	if len(rest) > 0 && cmd.HasSubCommands() && !strings.HasPrefix(rest[0], "-") && !placeholder.MatchString(rest[0]) {
		return "no command " + rest[0] + " of " + cmd.CommandPath()
	}
	cmd.InitDefaultHelpFlag()
	for _, arg := range rest {
		if strings.HasPrefix(arg, "-") && arg != "-" && !placeholder.MatchString(arg) && !hasFlag(cmd, arg) {
			return "no flag " + arg + " of " + cmd.CommandPath()
		}
	}
	return ""
}

// hasFlag tells whether a command has the flag, by itself or from above it.
func hasFlag(cmd *cobra.Command, arg string) bool {
	if long, ok := strings.CutPrefix(arg, "--"); ok {
		name, _, _ := strings.Cut(long, "=")
		return cmd.Flag(name) != nil
	}
	short := arg[1:2]
	return cmd.Flags().ShorthandLookup(short) != nil || cmd.InheritedFlags().ShorthandLookup(short) != nil
}

// TestCommandLines: commands and flags that documents show exist.
func TestCommandLines(t *testing.T) {
	seen := 0
	for name, text := range documents(t) {
		if name == "docs/cli.md" || name == "CHANGELOG.md" { // made of the tree itself; of former versions
			continue
		}
		for _, line := range commandLines(text) {
			seen++
			if wrong := wrongWith(line); wrong != "" {
				t.Errorf("%s: %s: %s", name, line, wrong)
			}
		}
	}
	if seen < 50 {
		t.Errorf("only %d command lines found", seen)
	}
	for line, wrong := range map[string]bool{
		"bodkin status": false,
		"bodkin node revoke NAME --reason \"a b\"": false,
		"bodkin pairs --node A -o json | jq .":     false,
		"bodkin punsh A B":                         true,
		"bodkin node remove NAME":                  true,
		"bodkin pairs --nodes A":                   true,
		"bodkin ping A -z 3":                       true,
	} {
		if got := wrongWith(line); (got != "") != wrong {
			t.Errorf("%s: %q", line, got)
		}
	}
}

// TestTroubleshooting: each check of the doctor is explained, and stands beside a
// symptom that leads to it.
func TestTroubleshooting(t *testing.T) {
	symptoms, checks, ok := strings.Cut(read(t, docsDir, "troubleshooting.md"), "\n## Checks\n")
	if !ok {
		t.Fatal("no section of checks")
	}
	checks, _, _ = strings.Cut(checks, "\n## ")
	var explained []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z0-9-]+)` \\|").FindAllStringSubmatch(checks, -1) {
		explained = append(explained, m[1])
	}
	var want []string
	for _, c := range doctor.Catalogue() {
		want = append(want, string(c.ID))
		if !strings.Contains(symptoms, "`"+string(c.ID)+"`") {
			t.Errorf("no symptom leads to the check %s", c.ID)
		}
	}
	if !slices.Equal(explained, want) {
		t.Errorf("explained are the checks %v, there are %v", explained, want)
	}
}

// dottedKey is how text names a key of a section.
var dottedKey = regexp.MustCompile("`([a-z][a-zA-Z]*)\\.([a-zA-Z]+)(?:: [^`]*)?`")

// TestConfigurationKeys: keys that documents name or show exist. A YAML block with
// a key of ours is a configuration and has no other; text names a section's keys
// with its name.
func TestConfigurationKeys(t *testing.T) {
	known, sections := map[string]bool{}, map[string]bool{}
	for _, config := range []any{rendezvous.DefaultConfig(), agent.DefaultConfig()} {
		for key := range settings(config) {
			known[key] = true
			if section, _, ok := strings.Cut(key, "."); ok {
				sections[section] = true
			}
		}
	}
	blocks, named := 0, 0
	for name, text := range documents(t) {
		for _, m := range dottedKey.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
			if sections[m[1]] {
				named++
				if key := m[1] + "." + m[2]; !known[key] {
					t.Errorf("%s: %s is no key", name, key)
				}
			}
		}
		for _, block := range fence.FindAllStringSubmatch(text, -1) {
			if block[1] != "yaml" {
				continue
			}
			keys := keysOf(t, block[2])
			if !slices.ContainsFunc(keys, func(key string) bool { return known[key] }) {
				continue
			}
			blocks++
			for _, key := range keys {
				if !known[key] {
					t.Errorf("%s: %s is no key", name, key)
				}
			}
		}
	}
	if blocks == 0 || named == 0 {
		t.Errorf("%d configurations and %d keys found", blocks, named)
	}
}
