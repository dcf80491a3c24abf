// Command configdoc fills in the tables of keys of docs/configuration.md, from
// the configurations' types: their fields' comments, types and defaults. make docs
// runs it in the repository's root.
package main

import (
	"fmt"
	"os"

	"github.com/bodkin-net/bodkin/agent"
	"github.com/bodkin-net/bodkin/rendezvous"
)

// parts are the tables of the document.
func parts(root string) (map[string]string, error) {
	out := map[string]string{}
	for name, config := range map[string]any{
		"rendezvous": rendezvous.DefaultConfig(),
		"agent":      agent.DefaultConfig(),
	} {
		comments, err := fieldComments(root + "/" + name + "/config.go")
		if err != nil {
			return nil, err
		}
		if out[name], err = table(config, comments); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func run(root, document string) error {
	text, err := os.ReadFile(document)
	if err != nil {
		return err
	}
	filled, err := fill(root, string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", document, err)
	}
	return os.WriteFile(document, []byte(filled), 0o644)
}

func main() {
	if err := run(".", "docs/configuration.md"); err != nil {
		fmt.Fprintln(os.Stderr, "configdoc:", err)
		os.Exit(1)
	}
}
