package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
	"golang.org/x/term"
)

// output is how a command prints its answer: the value of -o.
//
// JSON is an interface that scripts read: keys are only ever added, lists are in
// a stable order and never null, times are RFC 3339 in UTC, and what has a unit
// has it in its key (elapsedMs). YAML has the same keys in the same order. Tables
// are for people and may change.
type output string

// The formats.
const (
	outputTable output = "table"
	outputWide  output = "wide"
	outputJSON  output = "json"
	outputYAML  output = "yaml"
)

var outputs = []string{string(outputTable), string(outputWide), string(outputJSON), string(outputYAML)}

// register adds -o to a command.
func (o *output) register(cmd *cobra.Command) {
	*o = outputTable
	cmd.Flags().VarP(o, "output", "o", "table, wide, json or yaml")
	completeFlag(cmd, "output", outputs)
}

// String implements pflag.Value.
func (o *output) String() string { return string(*o) }

// Type implements pflag.Value.
func (o *output) Type() string { return "format" }

// Set implements pflag.Value.
func (o *output) Set(s string) error {
	if !slices.Contains(outputs, s) {
		return fmt.Errorf("want %s", orList(outputs))
	}
	*o = output(s)
	return nil
}

// print writes the answer v to the command's output: as JSON, as YAML, or for
// people as text writes it.
func (o *output) print(cmd *cobra.Command, v any, text func(p *printer)) error {
	w := cmd.OutOrStdout()
	switch *o {
	case outputJSON:
		return printJSON(w, v)
	case outputYAML:
		return printYAML(w, v)
	}
	p := newPrinter(cmd)
	p.wide = *o == outputWide
	text(p)
	return p.flush()
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// printYAML goes by way of JSON, for the keys and their order to be the same.
func printYAML(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return err
	}
	if err := unquote(&doc); err != nil {
		return err
	}
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	if err := enc.Encode(&doc); err != nil {
		return err
	}
	return enc.Close()
}

// unquote turns the JSON that n was read from into YAML as people write it: a
// string is quoted only where a reader might take it for something else.
func unquote(n *yaml.Node) error {
	n.Style = 0
	if n.Kind == yaml.ScalarNode && n.Tag == "!!str" {
		return n.Encode(n.Value)
	}
	for _, c := range n.Content {
		if err := unquote(c); err != nil {
			return err
		}
	}
	return nil
}

// style is how a word is shown where there are colours. What it says it says
// without them, too.
type style string

// Styles: the codes of ECMA-48 section 8.3.117.
const (
	plain style = ""
	good  style = "32"
	warn  style = "33"
	bad   style = "31"
	faint style = "2"
	bold  style = "1"
)

// printer writes text for people.
type printer struct {
	out    io.Writer
	text   bytes.Buffer
	wide   bool
	colour bool
	now    time.Time
}

func newPrinter(cmd *cobra.Command) *printer {
	return &printer{out: cmd.OutOrStdout(), colour: colours(cmd), now: time.Now()}
}

// printf appends to the text.
func (p *printer) printf(format string, args ...any) { fmt.Fprintf(&p.text, format, args...) }

// styled is s in a style, if there are colours.
func (p *printer) styled(s string, st style) string {
	if !p.colour || st == plain || s == "" {
		return s
	}
	return "\x1b[" + string(st) + "m" + s + "\x1b[0m"
}

// flush writes what has been appended. Every text goes out in one write, so that
// two commands' texts do not mix.
func (p *printer) flush() error {
	_, err := p.text.WriteTo(p.out)
	return err
}

// cell is a styled word of a table.
type cell struct {
	text  string
	style style
}

// table collects rows and aligns them. A header that begins with "+" is of a
// column that only wide output has.
type table struct {
	p       *printer
	columns []string
	rows    [][]cell
}

func (p *printer) table(columns ...string) *table {
	t := &table{p: p, columns: columns}
	var head []any
	for _, c := range columns {
		head = append(head, cell{strings.TrimPrefix(c, "+"), bold})
	}
	t.row(head...)
	return t
}

// list is a table without a header.
func (p *printer) list() *table { return &table{p: p} }

// row adds a row of strings and cells. An empty one shows as "-".
func (t *table) row(cells ...any) {
	var row []cell
	for i, c := range cells {
		if i < len(t.columns) && strings.HasPrefix(t.columns[i], "+") && !t.p.wide {
			continue
		}
		switch c := c.(type) {
		case cell:
			row = append(row, cell{dash(c.text), c.style})
		default:
			row = append(row, cell{text: dash(fmt.Sprint(c))})
		}
	}
	t.rows = append(t.rows, row)
}

// columnGap is between columns, in blanks.
const columnGap = 2

// end appends the table to the printer's text.
func (t *table) end() {
	var widths []int
	for _, row := range t.rows {
		for i, c := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c.text))
		}
	}
	for _, row := range t.rows {
		for len(row) > 0 && strings.TrimSpace(row[len(row)-1].text) == "" {
			row = row[:len(row)-1]
		}
		for i, c := range row {
			t.p.text.WriteString(t.p.styled(c.text, c.style))
			if i < len(row)-1 {
				t.p.text.WriteString(strings.Repeat(" ", widths[i]+columnGap-utf8.RuneCountInString(c.text)))
			}
		}
		t.p.text.WriteByte('\n')
	}
}

// colourFlag is --color: when to colour what is printed.
type colourFlag string

var colourModes = []string{"auto", "always", "never"}

// String implements pflag.Value.
func (c *colourFlag) String() string { return string(*c) }

// Type implements pflag.Value.
func (c *colourFlag) Type() string { return "when" }

// Set implements pflag.Value.
func (c *colourFlag) Set(s string) error {
	if !slices.Contains(colourModes, s) {
		return fmt.Errorf("want %s", orList(colourModes))
	}
	*c = colourFlag(s)
	return nil
}

func registerColour(root *cobra.Command) {
	when := colourFlag("auto")
	root.PersistentFlags().Var(&when, "color", "colours: auto (on a terminal, unless NO_COLOR is set), always or never")
	completeFlag(root, "color", colourModes)
}

// colours reports whether a command's output is to have colours.
func colours(cmd *cobra.Command) bool {
	when := "auto"
	if f := cmd.Flag("color"); f != nil {
		when = f.Value.String()
	}
	switch when {
	case "always":
		return true
	case "never":
		return false
	}
	// https://no-color.org: set to whatever but the empty string.
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && onTerminal(cmd.OutOrStdout())
}

func onTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// orList is "a, b or c".
func orList(words []string) string {
	last := len(words) - 1
	if last < 1 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// ago says how long before the printer's present t was.
func (p *printer) ago(t time.Time) string { return ago(t, p.now) }

func ago(t, now time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return now.Sub(t).Round(time.Second).String() + " ago"
}
