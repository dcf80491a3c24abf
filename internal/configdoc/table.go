package main

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"reflect"
	"strconv"
	"strings"
)

// fieldComments are the comments of a file's struct fields, on one line each, by
// type and field: Config.Listen.
func fieldComments(path string) (map[string]string, error) {
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments)
	if err != nil {
		return nil, err
	}
	comments := map[string]string{}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok {
			return true
		}
		if fields, ok := spec.Type.(*ast.StructType); ok {
			for _, f := range fields.Fields.List {
				for _, name := range f.Names {
					comments[spec.Name.Name+"."+name.Name] = strings.Join(strings.Fields(f.Doc.Text()), " ")
				}
			}
		}
		return true
	})
	return comments, nil
}

// table is a row for each key of a configuration, those of a section as
// section.key.
func table(config any, comments map[string]string) (string, error) {
	var b strings.Builder
	b.WriteString("| key | type | default | meaning |\n|---|---|---|---|\n")
	err := rows(&b, "", reflect.ValueOf(config), comments)
	return b.String(), err
}

func rows(b *strings.Builder, section string, config reflect.Value, comments map[string]string) error {
	for field, value := range config.Fields() {
		key := section + field.Tag.Get("yaml")
		if value.Kind() == reflect.Struct {
			if err := rows(b, key+".", value, comments); err != nil {
				return err
			}
			continue
		}
		comment := comments[config.Type().Name()+"."+field.Name]
		if comment == "" {
			return fmt.Errorf("%s.%s: no comment to say what %s means", config.Type(), field.Name, key)
		}
		kind, byDefault, err := inWords(value)
		if err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		fmt.Fprintf(b, "| `%s` | %s | `%s` | %s |\n", key, kind, byDefault, meaning(key, field.Name, comment))
	}
	return nil
}

// meaning is a field's comment without the Go name that it begins with.
func meaning(key, field, comment string) string {
	for _, begin := range []string{field + " is ", field + " are "} {
		if rest, ok := strings.CutPrefix(comment, begin); ok {
			return rest
		}
	}
	if rest, ok := strings.CutPrefix(comment, field+" "); ok {
		return "`" + key + "` " + rest
	}
	return comment
}

// inWords is a value's type for people, and the value as YAML.
func inWords(v reflect.Value) (kind, value string, err error) {
	switch v.Kind() {
	case reflect.String:
		return "text", strconv.Quote(v.String()), nil
	case reflect.Bool:
		return "boolean", strconv.FormatBool(v.Bool()), nil
	case reflect.Uint16:
		return "number", strconv.FormatUint(v.Uint(), 10), nil
	case reflect.Uint32: // marks and masks
		return "number", fmt.Sprintf("%#x", v.Uint()), nil
	case reflect.Slice:
		list := []byte("[]")
		if v.Len() > 0 {
			list, err = json.Marshal(v.Interface())
		}
		kind, _, errKind := inWords(reflect.Zero(v.Type().Elem()))
		if err == nil {
			err = errKind
		}
		return "list of " + kind + "s", strings.ReplaceAll(string(list), ",", ", "), err
	}
	return "", "", fmt.Errorf("a %s has no words here yet", v.Type())
}

const partEnd = "<!-- end -->\n"

// fill replaces what stands between "<!-- NAME: generated -->" and "<!-- end -->".
func fill(root, text string) (string, error) {
	tables, err := parts(root)
	if err != nil {
		return "", err
	}
	for name, part := range tables {
		begin := "<!-- " + name + ": generated -->\n"
		before, rest, found := strings.Cut(text, begin)
		_, after, ended := strings.Cut(rest, partEnd)
		if !found || !ended {
			return "", fmt.Errorf("no lines %q and %q after it", strings.TrimSpace(begin), strings.TrimSpace(partEnd))
		}
		text = before + begin + part + partEnd + after
	}
	return text, nil
}
