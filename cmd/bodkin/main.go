// Command bodkin is the rendezvous, the agent and their command line.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the Makefile.
var version = "devel"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := newRoot().ExecuteContext(ctx)
	stop()
	if err != nil {
		if err.Error() != "" {
			fmt.Fprintln(os.Stderr, "bodkin:", err)
		}
		os.Exit(exitCode(err))
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "bodkin",
		Short: "Direct strongSwan tunnels between edge nodes behind NATs",
		Long: "Bodkin gives edge nodes behind NAT direct IPsec tunnels to each other. A rendezvous on\n" +
			"a public node brings them together, an agent on each edge punches from strongSwan's\n" +
			"own port and hands the punched address to strongSwan.",
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       buildVersion(),
		Args:          args(cobra.NoArgs),
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	registerColour(root)
	addGroups(root)
	root.AddCommand(topics()...)
	strictHelp(root)
	return root
}

// args makes a wrong number of arguments a usage error, which says what is wanted.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, a []string) error {
		switch {
		case check(cmd, a) == nil:
			return nil
		case cmd.HasSubCommands() && len(a) > 0:
			return unknownCommand(cmd, a[0])
		}
		return usageError{fmt.Errorf("got %s: want %s", plural(len(a), "argument"), strings.TrimSuffix(cmd.UseLine(), " [flags]"))}
	}
}

// suggestionDistance is how many letters may differ for a command to be suggested.
const suggestionDistance = 2

// unknownCommand is for a word that names no command below parent.
func unknownCommand(parent *cobra.Command, word string) error {
	hint := ""
	parent.SuggestionsMinimumDistance = suggestionDistance
	if like := parent.SuggestionsFor(word); len(like) > 0 {
		hint = fmt.Sprintf(" (did you mean %s?)", orList(like))
	}
	return usageError{fmt.Errorf("unknown command %q%s: see %s --help", word, hint, parent.CommandPath())}
}

// strictHelp has `help` refuse what there is no help for.
func strictHelp(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() != "help" {
			continue
		}
		cmd.Args = func(_ *cobra.Command, words []string) error {
			if found, rest, _ := root.Find(words); len(rest) > 0 { // Find's error says as much
				return unknownCommand(found, rest[0])
			}
			return nil
		}
	}
}

// newLogger logs from a level on that can be changed.
func newLogger(level string) (*slog.Logger, *slog.LevelVar, error) {
	var l slog.LevelVar
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, nil, usageError{fmt.Errorf("logLevel: %q: want debug, info, warn or error", level)}
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: &l})), &l, nil
}
