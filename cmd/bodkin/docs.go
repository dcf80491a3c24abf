package main

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// newDocs writes the command line's own documentation: what is shown by --help is
// its one source.
func newDocs() *cobra.Command {
	cmd := &cobra.Command{
		Use: "docs", Short: "Write the manual of the command line", Hidden: true,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(&cobra.Command{
		Use: "man DIR", Short: "Write a man page of each command into a directory", Args: args(cobra.ExactArgs(1)),
		Example: "  bodkin docs man build/man",
		RunE:    func(cmd *cobra.Command, a []string) error { return writeMan(cmd.Root(), a[0]) },
	}, &cobra.Command{
		Use: "markdown", Short: "Print docs/cli.md", Args: args(cobra.NoArgs),
		Example: "  bodkin docs markdown > docs/cli.md",
		RunE:    func(cmd *cobra.Command, _ []string) error { return writeMarkdown(cmd.OutOrStdout(), cmd.Root()) },
	})
	return cmd
}

// documentedCommands lists what a user may type, and the help topics, in the order
// of --help.
func documentedCommands(root *cobra.Command) []*cobra.Command {
	root.InitDefaultCompletionCmd() // as executing does
	root.InitDefaultHelpCmd()
	out := []*cobra.Command{root}
	for _, c := range root.Commands() {
		out = append(out, documentedBelow(c)...)
	}
	return out
}

func documentedBelow(cmd *cobra.Command) []*cobra.Command {
	switch {
	case !cmd.IsAvailableCommand() && !cmd.IsAdditionalHelpTopicCommand():
		return nil
	case cmd.Name() == "completion": // cobra's: one for each shell, with the same said
		return []*cobra.Command{cmd}
	}
	out := []*cobra.Command{cmd}
	for _, c := range cmd.Commands() {
		out = append(out, documentedBelow(c)...)
	}
	return out
}

// writeMan writes bodkin-pair-show.1 and the like. The date in them is
// SOURCE_DATE_EPOCH's where that is set.
func writeMan(root *cobra.Command, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root.DisableAutoGenTag = true
	for _, cmd := range documentedCommands(root) {
		name := strings.ReplaceAll(cmd.CommandPath(), " ", "-")
		var page bytes.Buffer
		header := &doc.GenManHeader{Title: strings.ToUpper(name), Section: "1", Source: "Bodkin", Manual: "Bodkin"}
		if err := manPage(cmd, header, &page); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := os.WriteFile(filepath.Join(dir, name+".1"), page.Bytes(), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// manPage writes one page. That of a help topic is the text as it stands, for most
// of it is a table, and has nothing to be typed.
func manPage(cmd *cobra.Command, header *doc.GenManHeader, page *bytes.Buffer) error {
	if !cmd.IsAdditionalHelpTopicCommand() {
		return doc.GenMan(cmd, header, page)
	}
	long := cmd.Long
	cmd.Long = "```\n" + long + "\n```"
	defer func() { cmd.Long = long }()
	var whole bytes.Buffer
	if err := doc.GenMan(cmd, header, &whole); err != nil {
		return err
	}
	for i, section := range strings.Split(whole.String(), "\n.SH ") {
		switch {
		case i == 0:
			page.WriteString(section)
		case !strings.HasPrefix(section, "SYNOPSIS") && !strings.HasPrefix(section, "OPTIONS"):
			page.WriteString("\n.SH " + section)
		}
	}
	page.WriteString("\n")
	return nil
}

// writeMarkdown writes one page of all commands.
func writeMarkdown(w io.Writer, root *cobra.Command) error {
	var page bytes.Buffer
	page.WriteString("# Command line\n\nWritten by `make docs` from what `bodkin help COMMAND` and the man pages show, too.\n")
	for _, cmd := range documentedCommands(root) {
		manSection(&page, cmd)
	}
	_, err := page.WriteTo(w)
	return err
}

func manSection(page *bytes.Buffer, cmd *cobra.Command) {
	fmt.Fprintf(page, "\n%s %s\n", strings.Repeat("#", min(2+depth(cmd), 4)), cmd.CommandPath())
	text := cmp.Or(cmd.Long, cmd.Short+".")
	if cmd.IsAdditionalHelpTopicCommand() { // a table, most often
		block(page, text)
		return
	}
	fmt.Fprintf(page, "\n%s\n", strings.TrimSpace(text))
	flags := cmd.NonInheritedFlags()
	for _, name := range []string{"help", "version"} { // cobra's own, there once a command has been executed
		if f := flags.Lookup(name); f != nil {
			f.Hidden = true
		}
	}
	if cmd.Runnable() {
		block(page, cmd.UseLine())
	}
	if cmd.Example != "" {
		block(page, cmd.Example)
	}
	if usages := flags.FlagUsages(); usages != "" {
		block(page, usages)
	}
}

// depth is 0 of the root and of its commands, whose sections stand side by side.
func depth(cmd *cobra.Command) int {
	n := -1
	for ; cmd.HasParent(); cmd = cmd.Parent() {
		n++
	}
	return max(n, 0)
}

func block(page *bytes.Buffer, text string) {
	fmt.Fprintf(page, "\n```\n%s\n```\n", strings.Trim(text, "\n"))
}
