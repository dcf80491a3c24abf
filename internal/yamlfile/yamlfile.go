// Package yamlfile reads a configuration file strictly: an unknown key or a
// value of the wrong type is one line with the key, where it stands and what
// would be right. Both daemons read theirs by it, and neither may import the
// other.
package yamlfile

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Load reads the file at path over what into points to, a struct whose fields
// have yaml tags. What the file does not name stays as it is; an empty file
// names nothing. Errors name path unless it could not be read, when the
// system's error does.
func Load(path string, into any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := decode(b, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func decode(b []byte, into any) error {
	var doc, more yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil // an empty file
	} else if err != nil {
		return errors.New(oneLine(err))
	}
	if dec.Decode(&more) == nil {
		return fmt.Errorf("line %d: a second document: want one", more.Line)
	}
	if err := checkKeys(doc.Content[0], reflect.TypeOf(into).Elem(), ""); err != nil {
		return err
	}
	if err := doc.Decode(into); err != nil {
		return errors.New(oneLine(err))
	}
	return nil
}

// oneLine is a YAML error without its line breaks.
func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// checkKeys holds a YAML mapping against the struct it is to fill. The decoder
// would refuse the same, but in terms of Go types and without the key.
func checkKeys(n *yaml.Node, t reflect.Type, prefix string) error {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n.Tag == "!!null" {
		return nil
	}
	if n.Kind != yaml.MappingNode {
		return fmt.Errorf("line %d: %s: want keys: %s", n.Line, cmp.Or(strings.TrimSuffix(prefix, "."), "the file"), strings.Join(keys(t), ", "))
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		field, ok := fieldOf(t, key.Value)
		if instead := retired(t)[key.Value]; !ok && instead != "" {
			return fmt.Errorf("line %d: %s: is no key any more: %s", key.Line, prefix+key.Value, instead)
		}
		if !ok {
			return fmt.Errorf("line %d: %s: unknown key: want one of %s", key.Line, prefix+key.Value, strings.Join(keys(t), ", "))
		}
		if field.Kind() == reflect.Struct {
			if err := checkKeys(value, field, prefix+key.Value+"."); err != nil {
				return err
			}
			continue
		}
		if value.Decode(reflect.New(field).Interface()) != nil {
			return fmt.Errorf("line %d: %s: want %s", value.Line, prefix+key.Value, inWords(field))
		}
	}
	return nil
}

// retired are the keys that a struct had in former versions, if it says so by a
// method Retired, with what to do instead of giving them.
func retired(t reflect.Type) map[string]string {
	if r, ok := reflect.TypeAssert[interface{ Retired() map[string]string }](reflect.Zero(t)); ok {
		return r.Retired()
	}
	return nil
}

func fieldOf(t reflect.Type, key string) (reflect.Type, bool) {
	for f := range t.Fields() {
		if f.Tag.Get("yaml") == key {
			return f.Type, true
		}
	}
	return nil, false
}

func keys(t reflect.Type) []string {
	var out []string
	for f := range t.Fields() {
		out = append(out, f.Tag.Get("yaml"))
	}
	return out
}

// inWords is what a value of type t looks like in the file.
func inWords(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Uint16, reflect.Uint32:
		return fmt.Sprintf("a number from 0 to %d", uint64(1)<<t.Bits()-1)
	case reflect.Slice:
		return "a list, such as [a, b]"
	default:
		return "one value"
	}
}
