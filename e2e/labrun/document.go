package main

import (
	"fmt"
	"os"
	"strings"
)

// fillIn replaces the generated parts of a Markdown document: what stands
// between the lines "<!-- NAME: generated -->" and "<!-- end -->". A part the
// document has no place for is an error, as it would be lost.
func fillIn(path string, parts map[string]string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	text := string(b)
	for name, part := range parts {
		if text, err = replacePart(text, name, part); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return os.WriteFile(path, []byte(text), 0o644)
}

const partEnd = "<!-- end -->\n"

func replacePart(text, name, part string) (string, error) {
	begin := "<!-- " + name + ": generated -->\n"
	before, rest, ok := strings.Cut(text, begin)
	if !ok {
		return "", fmt.Errorf("no line %q", strings.TrimSpace(begin))
	}
	_, after, ok := strings.Cut(rest, partEnd)
	if !ok {
		return "", fmt.Errorf("no line %q after %q", strings.TrimSpace(partEnd), strings.TrimSpace(begin))
	}
	return before + begin + part + partEnd + after, nil
}
